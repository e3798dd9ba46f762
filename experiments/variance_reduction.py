"""The lecture's chain of policy-gradient estimators: what each step does to the variance, and to the bias.

Claim (lectures 001, 003): whole return -> reward-to-go -> discount -> baseline -> advantage lowers the
variance of REINFORCE at every step; reward-to-go and baselines keep its expectation, discount and
bootstrapping do not. Measured on random decision processes whose exact gradient is `jax.grad` through the
process itself. Values are tabular and learned from paths of their own.

Measured (`python experiments/variance_reduction.py`: 16 processes, 20,000 paths of 20 steps each; geometric
means with 95% intervals over the processes; seconds of 2 CPU cores), the variance over that of the whole
return, and over that of the step before, paired by process:

    reward-to-go         0.433 [0.410, 0.457]     0.433 [0.410, 0.457]
    discount 0.9         0.147 [0.132, 0.165]     0.340 [0.319, 0.362]
    average baseline     0.079 [0.049, 0.127]     0.536 [0.365, 0.786]
    learned V            0.075 [0.046, 0.122]     0.947 [0.918, 0.977]
    GAE(0.9)             0.050 [0.030, 0.081]     0.664 [0.648, 0.681]
    TD error             0.022 [0.014, 0.037]     0.451 [0.409, 0.497]

So every step lowers it, most of it by the first three; a learned V takes 5% off what an average baseline
leaves. The whole return and the reward-to-go have no bias beyond sampling noise; discounting brings a squared
bias of 2.3e-3 of the squared gradient; neither baselines nor bootstrapping from these well-fitted values add
to it.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align import losses
from jaxrl_align.runtime import cli, plots, statistics
from jaxrl_align.runtime.members import MembersConfig


@dataclass(frozen=True)
class Config(MembersConfig):
    """Random tabular decision processes, each with its own random policy."""

    out: str = "runs/variance_reduction"
    seeds: int = 16
    """Decision processes; the intervals are over them."""
    paths: int = 20_000
    """Sampled from each process, once for the values and once for the gradients."""
    horizon: int = 20
    """Steps of a path."""
    states: int = 5
    """Of each process."""
    actions: int = 3
    """Of each process."""
    gamma: float = 0.9
    """The discount of a step."""


class Process(NamedTuple):
    """A finite-horizon decision process and a softmax policy for it."""

    start: jax.Array
    transition: jax.Array
    reward: jax.Array
    logits: jax.Array


class Paths(NamedTuple):
    """States, actions and rewards, each [N, T]."""

    state: jax.Array
    action: jax.Array
    reward: jax.Array


def make_process(key: jax.Array, config: Config) -> Process:
    """Draw a process with sparse transitions, rewards and a policy."""
    k_start, k_move, k_reward, k_policy = jax.random.split(key, 4)
    shape = (config.states, config.actions)
    return Process(
        jax.random.dirichlet(k_start, jnp.ones(config.states)),
        jax.random.dirichlet(k_move, jnp.full(config.states, 0.3), shape),
        jax.random.normal(k_reward, shape),
        jax.random.normal(k_policy, shape),
    )


def expected_return(logits: jax.Array, process: Process, horizon: int) -> jax.Array:
    """Return the undiscounted objective, exact and differentiable, by pushing the states forward."""
    policy = jax.nn.softmax(logits)

    def step(occupancy: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        joint = occupancy[:, None] * policy
        return jnp.einsum("sa,sat->t", joint, process.transition), jnp.sum(joint * process.reward)

    return jnp.sum(jax.lax.scan(step, process.start, None, horizon)[1])


def sample_paths(key: jax.Array, process: Process, config: Config) -> Paths:
    """Draw `config.paths` paths."""

    def step(state: jax.Array, key: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        k_action, k_state = jax.random.split(key)
        action = jax.random.categorical(k_action, process.logits[state])
        after = jax.random.categorical(k_state, jnp.log(process.transition[state, action]))
        return after, (state, action, process.reward[state, action])

    def path(key: jax.Array) -> tuple[jax.Array, ...]:
        k_start, k_steps = jax.random.split(key)
        first = jax.random.categorical(k_start, jnp.log(process.start))
        return jax.lax.scan(step, first, jax.random.split(k_steps, config.horizon))[1]

    return Paths(*jax.vmap(path)(jax.random.split(key, config.paths)))


def learn_values(paths: Paths, config: Config) -> jax.Array:
    """Return V[t, s], [T + 1, S]: the mean discounted return that followed each visit."""
    discount = jnp.full(config.horizon, config.gamma)
    returns = jax.vmap(losses.discounted_returns, (0, None))(paths.reward, discount)
    visits = jax.nn.one_hot(paths.state, config.states)
    value = jnp.einsum("nt,nts->ts", returns, visits) / jnp.maximum(visits.sum(axis=0), 1.0)
    return jnp.append(value, jnp.zeros((1, config.states)), axis=0)


def make_chain(config: Config) -> dict[str, Callable[[Paths, jax.Array], jax.Array]]:
    """Return each estimator as `(paths, values) -> weights [N, T]` of the score."""
    one, discount = jnp.ones(config.horizon), jnp.full(config.horizon, config.gamma)
    steps = jnp.arange(config.horizon)

    def advantage(paths: Paths, values: jax.Array, lambda_: float) -> jax.Array:
        v_tm1 = values[steps, paths.state]
        v_t = jnp.pad(v_tm1[:, 1:], ((0, 0), (0, 1)))
        in_time = (0, None, None, 0, 0)
        return jax.vmap(losses.gae, in_time)(paths.reward, discount, lambda_ * one, v_tm1, v_t)

    def whole(paths: Paths, _: jax.Array) -> jax.Array:
        returns = jax.vmap(losses.trajectory_return, (0, None))(paths.reward, one)
        return jnp.broadcast_to(returns[:, None], paths.reward.shape)

    def discounted(paths: Paths, _: jax.Array) -> jax.Array:
        return jax.vmap(losses.discounted_returns, (0, None))(paths.reward, discount)

    return {
        "whole return": whole,
        "reward-to-go": lambda paths, _: jax.vmap(losses.reward_to_go)(paths.reward),
        "discount": discounted,
        "average\nbaseline": lambda paths, v: (
            discounted(paths, v) - losses.average_baseline(discounted(paths, v))
        ),
        "learned\nbaseline V": lambda paths, v: advantage(paths, v, 1.0),
        "advantage\nGAE(0.9)": lambda paths, v: advantage(paths, v, 0.9),
        "advantage\nTD error": lambda paths, v: advantage(paths, v, 0.0),
    }


def gradient_moments(logits: jax.Array, paths: Paths, weight: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return the mean [S, A] of the paths' policy gradients and the trace of their covariance [].

    Args:
      logits: [S, A] of the policy.
      paths: [N, T].
      weight: [N, T] of each step's score.
    """

    def loss(logits: jax.Array, path: Paths, weight: jax.Array) -> jax.Array:
        log_prob = jax.nn.log_softmax(logits)[path.state, path.action]
        return -jnp.sum(losses.reinforce_loss(log_prob, weight))

    gradients = jax.vmap(jax.grad(loss), (None, 0, 0))(logits, paths, weight)
    mean = gradients.mean(axis=0, keepdims=True)
    return mean[0], jnp.sum(jnp.mean(jnp.square(gradients - mean), axis=0))


def measure(config: Config, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return each estimator's variance and squared error of the mean, over the exact gradient's square."""
    k_process, k_values, k_paths = jax.random.split(key, 3)
    process = make_process(k_process, config)
    exact = jax.grad(expected_return)(process.logits, process, config.horizon)
    values = learn_values(sample_paths(k_values, process, config), config)
    paths = sample_paths(k_paths, process, config)

    def of_estimator(weight: jax.Array) -> tuple[jax.Array, jax.Array]:
        mean, variance = gradient_moments(process.logits, paths, weight)
        return variance / jnp.sum(exact**2), jnp.sum(jnp.square(mean - exact)) / jnp.sum(exact**2)

    weights = jnp.stack([estimator(paths, values) for estimator in make_chain(config).values()])
    return jax.lax.map(of_estimator, weights)


def main(config: Config) -> None:
    """Measure every process, print the chain with intervals, and draw it."""
    config.require(seeds=2, paths=2)
    folder = config.open_folder()
    of_process = jax.jit(functools.partial(measure, config))
    found = [folder.once(f"process_{i}.json", of_process, key) for i, key in enumerate(config.keys())]
    variance, bias = np.moveaxis(np.asarray(found, np.float32), 1, 0)
    names = list(make_chain(config))
    folder.write_json("result.json", {"estimators": names, "variance": variance, "squared_bias": bias})

    centre = {}
    for label, values in (("variance", variance), ("bias", bias), ("noise", variance / config.paths)):
        mean, half = statistics.mean_interval(np.log(values), axis=0)
        centre[label] = np.exp(mean), np.exp(mean - half), np.exp(mean + half)
    of_whole = [statistics.ratio_text(x) for x in (variance / variance[:, :1]).T]
    of_last = ["", *(statistics.ratio_text(x) for x in (variance[:, 1:] / variance[:, :-1]).T)]
    print("estimator | variance / whole return's [95%] | / the one before's |", end=" ")
    print("squared bias / |gradient|^2 (sampling noise)")
    for i, name in enumerate(names):
        noise = f"{centre['bias'][0][i]:.2e} ({centre['noise'][0][i]:.2e})"
        print(f"{name.replace(chr(10), ' '):20s} | {of_whole[i]:20s} | {of_last[i]:20s} | {noise}")

    fig, ax = plots.figure(
        "", "relative to |exact gradient|^2", title="Variance and bias of REINFORCE's descendants"
    )
    for label, text in (("variance", "variance of one path"), ("bias", "squared bias")):
        mean, low, high = centre[label]
        ax.errorbar(range(len(names)), mean, [mean - low, high - mean], marker="o", capsize=3, label=text)
    ax.plot(centre["noise"][0], ":", color="#777777", label=f"noise of {config.paths} paths")
    ax.set(yscale="log")
    ax.set_xticks(range(len(names)), names, fontsize=7)
    ax.legend(title=f"{config.seeds} processes, 95% interval", loc="center left")
    plots.save_figure(fig, folder.path / "variance_reduction.png")
    print(f"wrote {folder.path / 'variance_reduction.png'}")


if __name__ == "__main__":
    cli.main(Config, main)
