"""Policy gradients on the same episodes: what a baseline, a critic of states and one of actions are worth.

Claim (lectures 000, 001, 003: B4 to B14): from REINFORCE with the whole return to reward-to-go, to baselines
and to actor-critics, each estimator has less variance and learns faster; the Q actor-critic, whose actor
follows Q itself, lacks the baseline that A2C has. Every method plays 8 whole episodes of CartPole-v1, cut at
200 steps, and takes one gradient step; nothing but the weight of the log-probabilities differs. The two
actor-critics, which need not wait for an episode's end, run a second time with a step every 8 steps.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.actors import gym
from jaxrl_align.nets.mlp import make_actor_critic_net
from jaxrl_align.rl.policy_gradients import (
    PolicyGradientHParams,
    make_a2c,
    make_q_actor_critic,
    make_reinforce,
)
from jaxrl_align.runtime import cli
from jaxrl_align.runtime.folder import RunFolder, open_run
from jaxrl_align.runtime.loop import run
from jaxrl_align.runtime.mesh import shard_members, use_cpu_devices
from jaxrl_align.runtime.metrics import mean_interval
from jaxrl_align.runtime.plots import curve_with_interval, figure, save_figure
from jaxrl_align.types import Actor, Learner


@dataclass(frozen=True)
class Config:
    """The estimators side by side."""

    seeds: int = 8
    seed: int = 0
    episodes: int = 8
    """Of each update."""
    time_limit: int = 200
    updates: int = 200
    learning_rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Every method runs at each."""
    short_steps: int = 8
    """Of a rollout of the methods that do not wait; divides the time limit."""
    gamma: float = 0.99
    out: str = "runs/policy_gradients"
    resume: bool = False


Method = tuple[Callable[[Actor], Learner], str, bool]
"""How a learner is made of an actor, what the actor's critic means, and whether it waits for episodes."""


def methods() -> dict[str, Method]:
    """Return the methods by name, in the lectures' order."""
    reinforce = lambda returns, baseline: functools.partial(
        make_reinforce, returns=returns, baseline=baseline
    )
    return {
        "REINFORCE, whole return": (reinforce("whole", "none"), "state", True),
        "reward-to-go": (reinforce("to_go", "none"), "state", True),
        "discounted": (reinforce("discounted", "none"), "state", True),
        "average baseline": (reinforce("discounted", "average"), "state", True),
        "learned baseline": (reinforce("discounted", "learned"), "state", True),
        "Q actor-critic": (make_q_actor_critic, "sarsa", True),
        "A2C": (make_a2c, "state", True),
        "Q actor-critic, at once": (make_q_actor_critic, "sarsa", False),
        "A2C, at once": (make_a2c, "state", False),
    }


def play(config: Config, folder: RunFolder, name: str, method: Method) -> np.ndarray:
    """Train every seed at every learning rate in one program; return mean returns [updates, rates, seeds].

    NaN where no episode ended. Of a method that does not wait, as many steps make one row.
    """
    make, critic, waits = method
    pieces = 1 if waits else config.time_limit // config.short_steps
    environment, env_params = gym.make_environment("CartPole-v1")
    env = (environment, env_params.replace(max_steps_in_episode=config.time_limit))
    net = make_actor_critic_net(2, hidden=(32, 32), action_values=critic != "state")
    size: dict[str, Any] = {"num_envs": config.episodes, "num_steps": config.time_limit // pieces}
    learner = make(gym.make_actor(env, net, critic=critic, whole_episodes=waits, **size))
    rates, seeds = len(config.learning_rates), config.seeds
    keys = jnp.tile(jax.random.split(jax.random.key(config.seed), seeds), rates)
    base = PolicyGradientHParams(gamma=config.gamma)
    hparams = jax.tree.map(lambda x: jnp.full(rates * seeds, x, jnp.float32), base)
    hparams = hparams._replace(learning_rate=jnp.repeat(jnp.array(config.learning_rates), seeds))
    _, history = run(
        jax.vmap(learner.step),
        shard_members(jax.jit(jax.vmap(learner.init))(keys, hparams)),
        config.updates * pieces,
        chunk=max(1, config.updates * pieces // 4),
        folder=folder.sub(name.replace(", ", "_").replace(" ", "_")),
        label=f"{name:24}",
        show=("episode_return_last100",),
    )
    total, count = (
        np.asarray(history[name]).reshape(config.updates, pieces, rates, seeds).sum(1)
        for name in ("episode_return_sum", "episodes")
    )
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def main(config: Config) -> None:
    """Train all methods, print and draw their returns."""
    if config.short_steps < 1 or config.time_limit % config.short_steps:
        raise ValueError(
            f"short_steps must divide time_limit; got short_steps={config.short_steps}, "
            f"time_limit={config.time_limit}"
        )
    if config.seeds < 2 or config.updates < 1 or config.episodes < 2:
        raise ValueError(
            f"need at least 2 seeds, 1 update and 2 episodes of each; got seeds={config.seeds}, "
            f"updates={config.updates}, episodes={config.episodes}"
        )
    use_cpu_devices()
    folder = open_run(config.out, config, resume=config.resume)
    results = {name: play(config, folder, name, method) for name, method in methods().items()}
    last = max(1, config.updates // 10)
    updates = np.arange(1, config.updates + 1)
    table = {}
    for i, rate in enumerate(config.learning_rates):
        print(f"\nlearning rate {rate:g}, {config.seeds} seeds: mean return, all updates and the last {last}")
        fig, ax = figure(
            f"rounds of {config.episodes} x {config.time_limit} steps",
            "return",
            title=f"CartPole-v1, learning rate {rate:g}",
        )
        for name, returns in results.items():
            whole, final = (
                mean_interval(np.nanmean(returns[:, i], 0)),
                mean_interval(np.nanmean(returns[-last:, i], 0)),
            )
            table[f"{name}, {rate:g}"] = {"mean": whole, "last": final}
            cells = "".join(f"{f'{mean:.1f} +- {half:.1f}':>18}" for mean, half in (whole, final))
            print(f"  {name:24}{cells}")
            curve_with_interval(ax, updates, returns[:, i], name)
        ax.legend(fontsize=8)
        save_figure(fig, folder.path / f"returns_{rate:g}.png")
    folder.write_json("results.json", table)
    print(f"\nfigures are in {folder.path}")


if __name__ == "__main__":
    cli.main(Config, main)
