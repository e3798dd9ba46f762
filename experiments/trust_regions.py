"""Four ways to hold an update near the policy that acted, and none: return, and how far an update goes.

Claim (lectures 001 and 003, B16 to B21): an unconstrained policy gradient may take a huge update and not
recover; a trust region (TRPO), a clip or a KL penalty (PPO) prevents it. Every method plays CartPole-v1; "no
constraint" is PPO with the clip taken away, "A2C" one gradient step a rollout.

Measured (`python experiments/trust_regions.py`, 8 seeds, 153,600 steps each; mean return of the last 100
episodes with its 95% t interval; in brackets the largest KL of an update, in nats):

                        learning rate 0.001        learning rate 0.01
    PPO, clip           420.4 +- 48.4  [0.02]      495.3 +- 9.9    [0.2]
    PPO, adaptive KL    282.4 +- 125.5 [2.5]       257.1 +- 163.3  [1.1]
    PPO, fixed KL       379.8 +- 108.6 [0.06]      496.1 +- 6.3    [0.3]
    no constraint       156.1 +- 138.6 [3.7]       33.2 +- 36.9    [15]
    A2C                 248.3 +- 29.4  [0.0003]    403.5 +- 119.8  [0.4]
    TRPO                411.6 +- 134.3 [0.0100]    500.0 +- 0.0    [0.0100]

The claim holds. Without a constraint 7 of 8 seeds end below half of their own best at the higher rate, 5 at
the lower one. TRPO never leaves its bound of 0.01, and no seed of it or of the clip collapses at the higher
rate. The adaptive penalty protects least: its coefficient starts too low and is doubled only after the update
that it should have held back, so 3 seeds collapse at the lower rate and 4 at the higher. Neither the clip nor
a penalty bounds the KL (erratum H13).
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrl_align import actors, envs, nets, rl, runtime
from jaxrl_align.runtime import cli, plots, statistics
from jaxrl_align.types import Actor, Learner


@dataclass(frozen=True)
class Config(runtime.MembersConfig):
    """The methods side by side."""

    out: str = "runs/trust_regions"
    env: str = "CartPole-v1"
    """A gymnax name."""
    num_envs: int = 8
    num_steps: int = 128
    updates: int = 150
    learning_rates: tuple[float, ...] = (1e-3, 1e-2)
    """Every method runs at each, TRPO's being its critic's."""
    max_kl: float = 0.01
    """TRPO's bound and the KL penalty's target, nats."""


def methods(config: Config) -> dict[str, tuple[Callable[[Actor], Learner], Any]]:
    """Return by name `actor -> learner`, and the learner's hyperparameters without its learning rate."""
    clip = functools.partial(rl.make_actor_critic, segment_length=1, measure_kl=True)
    penalty = functools.partial(rl.make_ppo_kl, segment_length=1)
    target = rl.PPOKLHParams(kl_target=config.max_kl)
    return {
        "PPO, clip": (clip, rl.PPOHParams()),
        "PPO, adaptive KL": (penalty, target),
        "PPO, fixed KL": (functools.partial(penalty, adaptive=False), target),
        "no constraint": (clip, rl.PPOHParams(clip=jnp.inf, value_clip=jnp.inf)),
        "A2C": (functools.partial(rl.make_a2c, measure_kl=True), rl.PolicyGradientHParams(entropy_coef=0.01)),
        "TRPO": (rl.make_trpo, rl.TRPOHParams(max_kl=config.max_kl)),
    }


def play(config: Config, folder: runtime.RunFolder, name: str) -> dict[str, np.ndarray]:
    """Train every seed at every learning rate in one program; return metrics [updates, rates, seeds]."""
    make, hparams = methods(config)[name]
    net = nets.make_actor_critic_net(envs.num_actions(config.env))
    learner = make(actors.make_actor(config.env, net, num_envs=config.num_envs, num_steps=config.num_steps))
    keys, hparams = runtime.cross_rates(config.keys(), hparams, config.learning_rates)
    shown = ("episode_return_last100", "policy/kl")
    how = {"folder": folder.sub(name), "label": f"{name:16}", "show": shown}
    history = runtime.train_members(learner, hparams, config, config.updates, keys=keys, **how).history
    shape = (config.updates, len(config.learning_rates), config.seeds)
    return {name: history[name].reshape(shape) for name in shown}


def report(folder: runtime.RunFolder, config: Config, i: int, results: dict[str, dict]) -> dict[str, dict]:
    """Print and draw returns and the KL of updates at the i-th learning rate; return the table."""
    rate = f"{config.learning_rates[i]:g}"
    print(f"\nlearning rate {rate}, {config.seeds} seeds: last 100 episodes, and KL of the updates [nats]")
    print(f"  {'':18}{'return':>18}{'fell by half':>14}{'median KL':>12}{'99% KL':>10}{'max KL':>10}")
    steps = np.arange(1, config.updates + 1) * config.num_envs * config.num_steps
    table, curves, kls = {}, {}, {}
    for name, result in results.items():
        returns, kl = result["episode_return_last100"][:, i], result["policy/kl"][:, i]
        fell = int((returns[-1] < 0.5 * np.nanmax(returns, axis=0)).sum())
        median, most, largest = np.quantile(kl, [0.5, 0.99, 1.0])
        cells = f"{fell:>14}{median:12.4f}{most:10.4f}{largest:10.4f}"
        print(f"  {name:18}{statistics.mean_text(returns[-1]):>18}{cells}")
        table[name] = {"return": statistics.mean_interval(returns[-1]), "fell": fell, "max_kl": largest}
        curves[name] = (steps, returns)
        kls[name] = (np.sort(np.maximum(kl.ravel(), 1e-7)), 1.0 - np.arange(kl.size) / kl.size)
    kls[f"bound {config.max_kl:g}"] = ([config.max_kl] * 2, [1.0 / kl.size, 1.0])
    title = f"{config.env}, learning rate {rate}"
    plots.save_curves(folder.path / f"learning_curves_{rate}.png", *plots.RETURN_AXES, curves, title=title)
    axes = ("KL(before || after) of an update [nats]", "share of updates beyond")
    log = {"title": title, "xscale": "log", "yscale": "log", "xlim": (1e-5, None)}
    plots.save_curves(folder.path / f"kl_per_update_{rate}.png", *axes, kls, **log)
    return table


def main(config: Config) -> None:
    """Train all methods, and print and draw final returns and the KL of their updates."""
    config.require(seeds=2, updates=1)
    runtime.use_cpu_devices()
    envs.num_actions(config.env)
    folder = config.open_folder()
    results = {name: play(config, folder, name) for name in methods(config)}
    tables = [report(folder, config, i, results) for i in range(len(config.learning_rates))]
    folder.write_json("results.json", dict(zip(map(str, config.learning_rates), tables, strict=True)))
    print(f"\nfigures are in {folder.path}")


if __name__ == "__main__":
    cli.main(Config, main)
