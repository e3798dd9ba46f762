"""PPO with continuous actions, and what running normalisation of observations and rewards is worth.

The learner that balances CartPole takes continuous actions when only the distribution changes; unit scales
(Engstrom et al. 2020; Andrychowicz et al. 2021) may decide whether it learns. Three policies play the same
environment: a Gaussian with and without normalisation, and a tanh-Gaussian with it. At the end each plays
greedily in fresh environments, the moments frozen. A seed counts as one that reached the goal at Gym's own
threshold; the pendulum has none, and -200 stands for it.

Two tasks: the pendulum, and with `--env MountainCarContinuous-v0 --gamma 0.99` a car in a valley, whose
reward for arriving is so rare and so large that normalisation may decide everything. Whether a seed happens
on the goal before the price of its actions stills it is a matter of how many cars search: it is played with
16, and again with `--num-envs 64 --total-env-steps 1000000`, a setting that was found by trying.

Published, one agent each: PPO of rl-baselines3-zoo (benchmark.md) -172.2 on the pendulum after 1e5 steps and
88.3 on the car after 2e4, there with state-dependent exploration; gymnax's README lists agents of -130 and
92.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import returns

from jaxrl_align import actors, envs, evaluate, nets, rl, runtime
from jaxrl_align.losses import DiagonalGaussian, TanhGaussian
from jaxrl_align.runtime import MembersConfig, RunFolder, cli, plots, train_members
from jaxrl_align.types import State

CLAIM = runtime.Claim(
    "The learner that balances a pole learns continuous actions when only the distribution changes, on every "
    "seed, and running normalisation of observations and rewards makes it learn better.",
    minutes=6,
)
PLAIN = "Gaussian, as it is"
WAYS: dict[str, tuple[envs.Distribution, bool]] = {
    "Gaussian, normalised": (DiagonalGaussian, True),
    "tanh-Gaussian, normalised": (TanhGaussian, True),
    PLAIN: (DiagonalGaussian, False),
}
"""The policy's distribution, and whether observations and rewards are normalised."""


@dataclass(frozen=True)
class Config(MembersConfig):
    """PPO on an environment with a Box of actions."""

    out: str = "runs/ppo_continuous"
    seeds: int = 24
    """Side by side. Of 8 the gain at the end left its interval on one machine and not on another, whose sums
    are rounded otherwise."""
    env: str = "Pendulum-v1"
    """A gymnax name."""
    num_envs: int = 16
    """Environments side by side, for each member."""
    num_steps: int = 128
    """Steps of each environment between two updates."""
    total_env_steps: int = 300_000
    """Of each member."""
    epochs: int = 10
    """Passes over each rollout."""
    minibatches: int = 8
    """Gradient steps of a pass."""
    learning_rate: float = 1e-3
    """At the start; it falls linearly to 0."""
    gamma: float = 0.95
    """The discount of a step."""
    entropy_coef: float = 0.0
    """Weight of the entropy [nats], which is rewarded."""
    episodes: int = 128
    """Played greedily by each member at the end."""


def train(config: Config, folder: RunFolder, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Train every seed in one program; return training [updates, seeds] and final greedy [seeds] returns."""
    distribution, unit_scale = WAYS[name]
    environment, env_params = envs.make_environment(config.env)
    net = nets.make_gaussian_net(environment.action_space(env_params).shape)
    size = {"num_envs": config.num_envs, "num_steps": config.num_steps, "distribution": distribution}
    actor = actors.make_actor(config.env, net, normalise_obs=unit_scale, normalise_reward=unit_scale, **size)
    updates = config.total_env_steps // (config.num_envs * config.num_steps)
    size = {"epochs": config.epochs, "minibatches": config.minibatches, "total_steps": updates}
    learner = rl.make_actor_critic(actor, segment_length=1, **size)
    coefs = {"entropy_coef": config.entropy_coef, "value_clip": jnp.inf}
    hparams = rl.PPOHParams(config.learning_rate, config.gamma, **coefs)
    how = {"folder": folder.sub(name), "label": f"{name:26}", "show": ("episode_return_last100",)}
    trained = train_members(learner, hparams, config, updates, **how)
    evaluate.keep_policy(trained.folder, net, trained.state, env=config.env, distribution=distribution)

    def play(state: State, key: jax.Array) -> jax.Array:
        policy = actors.normalised(actors.greedy(net, state.params, distribution), state.env_state.normaliser)
        size = {"num_episodes": config.episodes, "max_steps": int(env_params.max_steps_in_episode)}
        episodes = envs.evaluate_policy(config.env, policy, key, distribution=distribution, **size)
        return jnp.mean(episodes.episode_return)

    final = jax.jit(jax.vmap(play))(trained.state, config.keys(1))
    return trained.history["episode_return_last100"], np.asarray(final)


Results = dict[str, tuple[np.ndarray, np.ndarray]]
"""By way: training [updates, seeds] and final greedy [seeds] returns."""


def tabulate(config: Config, results: Results) -> dict[str, dict[str, Any]]:
    """Return a row for each way."""
    solved, limits = returns.SOLVED.get(config.env), returns.difference_range(config.env)
    paired = lambda x, y: runtime.paired_interval(x, y, bounds=limits)
    whole = {name: np.nanmean(training, 0) for name, (training, _) in results.items()}
    table = {}
    for name, (training, final) in results.items():
        table[name] = row = {"greedy": runtime.t_interval(final, bounds=returns.return_range(config.env))}
        if name != PLAIN:
            row["greedy, less as it is"] = paired(final, results[PLAIN][1])
            row["while learning, less as it is"] = paired(whole[name], whole[PLAIN])
        if solved is not None:
            row[f"seeds that reach {solved:g}"] = int((final >= solved).sum())
        row["last 100 sampled"] = runtime.t_interval(training[-1], bounds=returns.return_range(config.env))
        row["greedy, each seed"] = final
    return table


def judge(config: Config, table: dict[str, dict[str, Any]]) -> dict[str, bool]:
    """Return which parts of the claim the table shows."""
    solved, checks = returns.SOLVED.get(config.env), {}
    for name, row in table.items():
        if name == PLAIN:
            continue
        if solved is not None:
            reached = row[f"seeds that reach {solved:g}"] == config.seeds
            checks[f"{name}: every seed returns {solved:g} or more"] = reached
        gains = {
            "at the end it returns more than as it is": "greedy, less as it is",
            "while it learns it returns more than as it is": "while learning, less as it is",
        }
        checks |= {f"{name}: {text}": row[column].low > 0 for text, column in gains.items()}
    return checks


def main(config: Config) -> None:
    """Train in all ways, draw and write the returns."""
    config.require(seeds=2, total_env_steps=config.num_envs * config.num_steps)
    envs.make_environment(config.env)
    folder = config.open_folder()
    results = {name: train(config, folder, name) for name in WAYS}
    curves = {
        name: (np.arange(1, len(training) + 1) * config.num_envs * config.num_steps, training)
        for name, (training, _) in results.items()
    }
    path = folder.path / "learning_curves.png"
    how = {"title": f"PPO on {config.env}", "bounds": returns.return_range(config.env)}
    plots.save_curves(path, *plots.RETURN_AXES, curves, **how)
    table = tabulate(config, results)
    first = next(iter(table))
    runtime.write_result(
        folder,
        config,
        CLAIM,
        headline={
            f"greedy return on {config.env}, {first}": table[first]["greedy"],
            "the same less as it is, paired": table[first]["greedy, less as it is"],
        },
        baselines={f"greedy return, {name}": row["greedy"] for name, row in table.items() if name == PLAIN},
        checks=judge(config, table),
        tables={f"return on {config.env} after {config.total_env_steps} steps a seed": table},
        figures=["learning_curves.png"],
    )


if __name__ == "__main__":
    cli.main(Config, main)
