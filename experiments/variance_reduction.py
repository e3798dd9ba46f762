"""The lecture's chain of policy-gradient estimators: what each step does to the variance, and to the bias.

From the whole return over reward-to-go, discount and baseline to an advantage, each estimator is the one
before with one change, so that its own worth is its variance over that of the one before. Measured on random
decision processes whose exact gradient is `jax.grad` through the process itself; the intervals are over the
processes. Values are tabular and learned from paths of their own.

An unbiased mean of N paths is off by its variance / N, the noise that squared errors are held against. The
values fit well here, so that bootstrapping from them may bring less bias than it does elsewhere.
"""

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align import losses, runtime
from jaxrl_align.runtime import cli, plots

CLAIM = runtime.Claim(
    "From the whole return over reward-to-go, discount and baseline to an advantage, every step lowers the "
    "variance of REINFORCE; reward-to-go and baselines keep its expectation, the others do not.",
    rows=("B6", "B7", "B8", "B9", "B10", "B12", "B13", "B15"),
    minutes=0.5,
)


@dataclass(frozen=True)
class Config(runtime.MembersConfig):
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


CHAIN = "geometric means over the processes; squared errors of the mean of all paths"
WHOLE, LAST, NOISE, ADDED = (
    "variance over the whole return's",
    "variance over that of the one above",
    "squared error over sampling noise",
    "squared error over that of the one above",
)


def tabulate(config: Config, variance: np.ndarray, error: np.ndarray) -> dict[str, dict[str, Any]]:
    """Return the table of the chain.

    Args:
      config: of the run.
      variance: of each estimator over the exact gradient's square, [processes, estimators].
      error: squared, of its mean over all paths, likewise.
    """
    table: dict[str, dict[str, Any]] = {}
    for i, name in enumerate(make_chain(config)):
        table[name.replace("\n", " ")] = row = {
            WHOLE: runtime.ratio_interval(variance[:, i] / variance[:, 0]),
            "squared error / |gradient|^2": runtime.ratio_interval(error[:, i]),
            NOISE: runtime.ratio_interval(config.paths * error[:, i] / variance[:, i]),
        }
        if i:
            row[LAST] = runtime.ratio_interval(variance[:, i] / variance[:, i - 1])
            row[ADDED] = runtime.ratio_interval(error[:, i] / error[:, i - 1])
    return table


def judge(table: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """Return which parts of the claim the table of the chain shows."""
    names = list(table)
    whole, to_go, discount, average, learned, gae, td = names
    lowers = {
        f"{name}: less variance than {before}": table[name][LAST].high < 1
        for before, name in itertools.pairwise(names)
    }
    return lowers | {
        "whole return and reward-to-go have no bias: less than twice the noise": all(
            table[name][NOISE].high < 2 for name in (whole, to_go)
        ),
        "the discount brings one: more than twice the noise": table[discount][NOISE].low > 2,
        "neither baseline adds to it, by a tenth or more": all(
            table[name][ADDED].high < 1.1 for name in (average, learned)
        ),
        "bootstrapping does": all(table[name][ADDED].low > 1 for name in (gae, td)),
    }


def draw(config: Config, variance: np.ndarray, error: np.ndarray, path: Path) -> None:
    """Draw variances and squared errors along the chain."""
    names = list(make_chain(config))
    noise = variance / config.paths
    title = f"REINFORCE's descendants, {config.seeds} processes, 95%"
    fig, ax = plots.figure("", "relative to |exact gradient|^2", title=title)
    fig.set_size_inches(7.6, 4.0)
    measured = {"variance of one path": variance, "squared bias": error}
    look = plots.looks(measured)
    for text, x in measured.items():
        mean, low, high = np.array([runtime.ratio_interval(y)[:3] for y in x.T]).T
        ax.errorbar(range(len(names)), mean, [mean - low, high - mean], capsize=3, label=text, **look[text])
    centre = np.exp(np.log(noise).mean(0))
    ax.plot(centre, ":", color="#777777", label=f"noise of {config.paths} paths")
    ax.set(yscale="log")
    ax.set_xticks(range(len(names)), names, fontsize=7)
    plots.name_beside(fig, ax)
    plots.save_figure(fig, path)


def main(config: Config) -> None:
    """Measure every process, draw the chain and write what was found."""
    config.require(seeds=2, paths=2)
    folder = config.open_folder()
    of_process = jax.jit(functools.partial(measure, config))
    found = [folder.once(f"process_{i}.json", of_process, key) for i, key in enumerate(config.keys())]
    variance, error = np.moveaxis(np.asarray(found, np.float64), 1, 0)
    draw(config, variance, error, folder.path / "variance_reduction.png")
    table = tabulate(config, variance, error)
    first, *_, last = table
    runtime.write_result(
        folder,
        config,
        CLAIM,
        headline={f"variance of the {last} over the {first}'s, paired": table[last][WHOLE]},
        checks=judge(table),
        tables={CHAIN: table},
        figures=["variance_reduction.png"],
    )


if __name__ == "__main__":
    cli.main(Config, main)
