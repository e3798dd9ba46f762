"""What replay changes: CartPole learnt online, from the latest steps, by uniform and by prioritised replay.

Claim (lecture 000, after Lin 1992): online Q-learning suffers from correlated, not identically distributed
samples, and replay mends that. Four learners differ only in their memory (the same Adam, one update an
environment step, every learning rate tried): none (Algorithm 4, one transition an update), the latest 32
steps, 32 draws from everything seen (Algorithm 1), and prioritised draws. As in the lecture's algorithms
there is no target network, unless --target-period asks for one, which Algorithm 4 cannot have.

The gradients' correlation is measured after training, at fixed parameters, in the order in which the learner
would meet the samples: the correlation of successive updates, and how many times the variance of a mean over
32 samples exceeds that of 32 independent ones. For the two that remember everything it is measured again over
the same memory in order of time.

Measured (`python experiments/replay_ablation.py`, and `--target-period 100`; 16 seeds at the rate that was
best of four on 4 other seeds, 60,000 steps, returns over the last quarter of training; mean and 95% t
interval; 3 minutes of 2 CPU cores each; "the memory in time" is the variance of 32 over the same memory in
order of time):

                                online           latest 32        uniform          prioritised
    learning rate               0.0001           0.001            0.001            0.0001
      target period 100         0.0001           0.001            0.001            0.001
    return                      9.61 +- 0.01     83 +- 23         76 +- 15         302 +- 32
      target period 100         9.61 +- 0.01     304 +- 30        252 +- 41        339 +- 18
    successive updates          -0.11 +- 0.00    0.36 +- 0.08     0.03 +- 0.05     -0.01 +- 0.03
      target period 100         -0.11 +- 0.00    0.44 +- 0.15     0.00 +- 0.05     -0.02 +- 0.02
    variance of 32              0.11 +- 0.01     1.69 +- 0.18     1.01 +- 0.08     0.94 +- 0.06
      target period 100         0.11 +- 0.01     2.25 +- 0.51     0.98 +- 0.03     0.97 +- 0.04
    the memory in time          -                -                0.86 +- 0.23     3.12 +- 1.17
      target period 100         -                -                1.85 +- 0.76     2.21 +- 0.80

What holds: draws from everything seen are as good as independent, the latest steps are not (their updates
correlate by 0.4, 32 of them are worth 14 to 19), and without any memory nothing is learnt. What does not:
that decorrelation is what helps. On CartPole uniform replay returns less than the latest 32 steps do by 7
[-27, 40], with a target network by 52 [10, 94], paired by seed, so that the batch, not the memory's age, is
its gain over Algorithm 4; prioritised draws return more than uniform ones, by 225 [194, 257] and 87 [35,
138]. And successive single gradients are not positively correlated: the learner that fails online repeats
episodes of ten steps, whose ends alone have errors (see the figure's peaks).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align import envs
from jaxrl_align.actors.value import make_value_actor
from jaxrl_align.learner import make_optimizer
from jaxrl_align.losses import squared
from jaxrl_align.nets.q_networks import make_q_net
from jaxrl_align.rl.dqn import DQNHParams, Exploration, make_dqn, make_online_q, td_loss, transition_loss
from jaxrl_align.rl.replay import Sample, make_replay
from jaxrl_align.runtime import cli, plots, statistics
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.members import MembersConfig, cross_rates, train_members
from jaxrl_align.types import Actor, Learner, State, Transition

ARMS = ("online", "latest", "uniform", "prioritised")
RATES = (3e-5, 1e-4, 3e-4, 1e-3)
LAGS = 32
RETURN = ("episode_return_last100",)


@dataclass(frozen=True)
class Config(MembersConfig):
    """One environment and one update a step, for every arm."""

    out: str = "runs/replay_ablation"
    env: str = "CartPole-v1"
    """A gymnax name."""
    seeds: int = 16
    """Of each arm at its learning rate."""
    choosing_seeds: int = 4
    """Others, of every learning rate, on which an arm's is chosen."""
    total_env_steps: int = 60_000
    """Of each member."""
    batch_size: int = 32
    """Transitions of a gradient step."""
    hidden: int = 64
    """Width of each of the two hidden layers."""
    target_period: int = 1
    """Updates between two copies of the target network; 1 is no target network."""
    epsilon_steps: int = 10_000
    """Environment steps over which the share of random actions falls."""
    batches: int = 64
    """Batches of gradients from which correlations are measured."""


def make_arm(config: Config, name: str, actor: Actor) -> Learner:
    """Build one arm's learner."""
    optimizer = make_optimizer(max_grad_norm=10.0, eps=1e-8)
    if name == "online":
        return make_online_q(actor, optimizer=optimizer)
    return make_dqn(actor, optimizer=optimizer, warmup_steps=config.batch_size, **memory(config, name))


def memory(config: Config, name: str) -> dict[str, Any]:
    """Return the replay's arguments."""
    latest = name == "latest"
    return {
        "capacity": config.batch_size if latest else config.total_env_steps + config.batch_size,
        "batch_size": config.batch_size,
        "prioritised": name == "prioritised",
    }


def train(
    config: Config, name: str, learner: Learner, folder: RunFolder
) -> tuple[State, np.ndarray, np.ndarray]:
    """Choose the rate on other seeds than are reported, and train these at it.

    Returns:
      The reported members, their returns [steps, seeds], and the other seeds' mean late return of each rate.
    """
    hparams = DQNHParams(
        target_period=config.target_period,
        epsilon_steps=config.epsilon_steps,
        beta_steps=config.total_env_steps,
    )

    def run(keys: jax.Array, rates: tuple[float, ...], part: str) -> tuple[State, np.ndarray]:
        keys, tried = cross_rates(keys, hparams, rates)
        how = {"folder": folder.sub(f"{name}_{part}"), "label": f"{name:12}", "show": RETURN}
        trained = train_members(learner, tried, config, config.total_env_steps, keys=keys, **how)
        return trained.state, trained.history[RETURN[0]]

    others = jax.random.split(jax.random.key(config.seed + 1), config.choosing_seeds)
    choices = late(run(others, RATES, "choice")[1]).reshape(len(RATES), -1).mean(1)
    state, returns = run(config.keys(), (RATES[int(choices.argmax())],), "report")
    return state, returns, choices


def late(returns: np.ndarray) -> np.ndarray:
    """Return the means over the last quarter of training, [M] of [steps, M]."""
    return returns[-max(1, len(returns) // 4) :].mean(0)


def stream(config: Config, name: str, actor: Actor, learner: Learner, state: State) -> Sample:
    """Return the transitions that one member would meet next, [batches, batch_size], learning nothing."""
    still = state._replace(hparams=state.hparams._replace(learning_rate=jnp.zeros(())))
    if name == "online":
        # The state that an online learner keeps includes no transition, so the actor plays them again.
        explore = Exploration(state.hparams.epsilon_end)
        play = lambda s, key: actor.rollout(state.params, None, s, key, explore)[:2]
        keys = jax.random.split(state.key, config.batches * config.batch_size)
        _, steps = jax.lax.scan(play, state.env_state.envs, keys)
        steps = jax.tree.map(lambda x: x.reshape(config.batches, config.batch_size, *x.shape[3:]), steps)
        return to_samples(steps, state.hparams.gamma)
    replay = make_replay(**memory(config, name))

    def draw(state: State, _: None) -> tuple[State, Sample]:
        state, metrics = learner.step(state)
        key_draw, key = jax.random.split(state.key)
        batch = replay.sample(state.env_state.replay, key_draw, state.hparams.gamma, metrics["beta"])
        return state._replace(key=key), batch

    return jax.lax.scan(draw, still, None, config.batches)[1]


def by_time(config: Config, state: State) -> Sample:
    """Return one member's latest transitions in the order they were made, [batches, batch_size]."""
    replay, count = state.env_state.replay, config.batches * config.batch_size
    rows = (replay.head - count + jnp.arange(count)) % replay.data.reward.shape[0]
    data = jax.tree.map(
        lambda x: x[rows].reshape(config.batches, config.batch_size, *x.shape[1:]), replay.data
    )
    return to_samples(data, state.hparams.gamma)


def to_samples(steps: Transition, gamma: jax.Array) -> Sample:
    """Return single transitions as samples of weight 1."""
    one, discount = jnp.ones_like(steps.reward), gamma * (1.0 - steps.terminated)
    return Sample(steps.obs, steps.action, steps.reward, discount, steps.next_obs, one, one)


def correlations(actor: Actor, params: Any, samples: Sample, single: bool) -> dict[str, jax.Array]:
    """Measure how the gradients [batches, batch_size] of one member hang together.

    Args:
      actor: judges.
      params: of the member, fixed.
      samples: in the order the learner meets them.
      single: whether an update is made from each sample rather than from each batch.
    """
    one = transition_loss(actor, td_loss(squared))

    def gradient(sample: Sample) -> jax.Array:
        grads = jax.grad(lambda p: one(p, params, None, sample, jax.random.key(0))[0])(params)
        return sample.weight * jnp.concatenate([x.ravel() for x in jax.tree.leaves(grads)])

    g = jax.vmap(jax.vmap(gradient))(samples)
    centred = g - g.mean((0, 1), keepdims=True)
    variance = jnp.mean(jnp.sum(centred**2, -1))
    means = centred.mean(1)
    line = centred.reshape(-1, g.shape[-1])
    lagged = lambda x, k: jnp.mean(jnp.sum(x[:-k] * x[k:], -1)) / jnp.mean(jnp.sum(x**2, -1))
    return {
        "successive updates": lagged(line if single else means, 1),
        "variance of 32": g.shape[1] * jnp.mean(jnp.sum(means**2, -1)) / variance,
        "by lag": jnp.stack([lagged(line, k) for k in range(1, LAGS + 1)]),
    }


def measure(config: Config, name: str, actor: Actor, learner: Learner, state: State) -> dict[str, np.ndarray]:
    """Return the correlations of every member of one arm, each [M] or [M, LAGS]."""

    def member(state: State) -> dict[str, jax.Array]:
        samples = stream(config, name, actor, learner, state)
        measured = correlations(actor, state.params, samples, name == "online")
        if name in ("uniform", "prioritised"):
            in_time = correlations(actor, state.params, by_time(config, state), True)
            measured |= {f"{what}, in time": x for what, x in in_time.items()}
        return measured

    # One member at a time: the gradients of one take some tens of megabytes.
    return jax.device_get(jax.jit(lambda s: jax.lax.map(member, s))(state))


def report(
    name: str, measured: dict[str, np.ndarray], returns: np.ndarray, choices: np.ndarray
) -> dict[str, Any]:
    """Print and return an arm's rate, its late returns and its correlations, with their intervals."""
    rate = RATES[int(choices.argmax())]
    print(f"{name}: learning rate {rate:g}, chosen on other seeds among", end=" ")
    print(", ".join(f"{r:g} ({m:.0f})" for r, m in zip(RATES, choices, strict=True)))
    for what, x in ({"return": late(returns)} | measured).items():
        print("  {}: {:.3g} +- {:.2g}".format(what, *statistics.mean_interval(x)))
    return {"rate": rate, "return": late(returns), **measured, "choices": choices}


def main(config: Config) -> None:
    """Train each arm, measure its gradients, print and draw."""
    net = make_q_net(envs.num_actions(config.env), (config.hidden, config.hidden))
    actor = make_value_actor(config.env, net, num_envs=1, num_steps=1)
    folder = config.open_folder()
    every = max(1, config.total_env_steps // 200)
    at = np.arange(every, config.total_env_steps + 1, every)
    curves, lags, results = {}, {}, {}
    for name in ARMS:
        learner = make_arm(config, name, actor)
        state, returns, choices = train(config, name, learner, folder)
        measured = measure(config, name, actor, learner, state)
        for suffix in ("", ", in time"):
            if f"by lag{suffix}" in measured:
                of = f"{name}'s{suffix}" if suffix else name
                lags[f"{of}, {config.seeds} seeds"] = (
                    np.arange(1, LAGS + 1),
                    measured.pop(f"by lag{suffix}").T,
                )
        results[name] = report(name, measured, returns, choices)
        curves[f"{name}, rate {results[name]['rate']:g}"] = (at, returns[at - 1])
    for name in ("latest", "prioritised"):
        gain = statistics.paired_interval(results["uniform"]["return"], results[name]["return"])
        print(f"uniform less {name}, paired by seed: {gain}")
        results[f"uniform less {name}"] = gain
    folder.write_json("result.json", results)

    title = f"{config.env}: online, and with replay"
    plots.save_curves(folder.path / "learning_curve.png", *plots.RETURN_AXES, curves, title=title)
    title, labels = "In the order the learner meets them", ("samples apart", "correlation of gradients")
    plots.save_curves(folder.path / "correlation.png", *labels, lags, title=title)


if __name__ == "__main__":
    cli.main(Config, main)
