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

from jaxrl_align import actors, nets, rl, runtime
from jaxrl_align.runtime import cli, plots
from jaxrl_align.types import Actor, Learner


@dataclass(frozen=True)
class Config(runtime.MembersConfig):
    """The methods side by side."""

    out: str = "runs/trust_regions"
    seeds: int = 48
    num_envs: int = 8
    num_steps: int = 128
    updates: int = 150
    learning_rates: tuple[float, ...] = (1e-3, 1e-2)
    """Every method runs at each; TRPO's is its critic's alone."""
    high_rates: tuple[float, ...] = (3e-2, 1e-1)
    """A2C and PPO's clip run at these too."""
    max_kl: float = 0.01
    """TRPO's bound and the KL penalty's target, nats."""
    loose_kl: float = 1.0
    """The bound of a second TRPO, nats."""


def methods(config: Config) -> dict[str, tuple[Callable[[Actor], Learner], Any]]:
    """Return by name `actor -> learner`, and the learner's hyperparameters without its learning rate."""
    clip = functools.partial(rl.make_actor_critic, segment_length=1, measure_kl=True)
    penalty = functools.partial(rl.make_ppo_kl, segment_length=1)
    target = rl.PPOKLHParams(kl_target=config.max_kl)
    return {
        "PPO, clip": (clip, rl.PPOHParams()),
        "PPO, adaptive KL": (penalty, target),
        "PPO, fixed KL": (functools.partial(penalty, adaptive=False), target),
        "PPO, no clip": (clip, rl.PPOHParams(clip=jnp.inf)),
        "PPO, no clip of ratio or value": (clip, rl.PPOHParams(clip=jnp.inf, value_clip=jnp.inf)),
        "A2C": (functools.partial(rl.make_a2c, measure_kl=True), rl.PolicyGradientHParams(entropy_coef=0.01)),
        f"TRPO, bound {config.max_kl:g}": (rl.make_trpo, rl.TRPOHParams(max_kl=config.max_kl)),
        f"TRPO, bound {config.loose_kl:g}": (rl.make_trpo, rl.TRPOHParams(max_kl=config.loose_kl)),
    }


def play(config: Config, folder: runtime.RunFolder, name: str) -> dict[float, tuple[np.ndarray, np.ndarray]]:
    """Train every seed at every rate in one program; return (returns, KLs) [updates, seeds] by rate."""
    make, hparams = methods(config)[name]
    rates = config.learning_rates + (config.high_rates if name in ("PPO, clip", "A2C") else ())
    net = nets.make_actor_critic_net(2)
    learner = make(
        actors.make_actor("CartPole-v1", net, num_envs=config.num_envs, num_steps=config.num_steps)
    )
    keys, hparams = runtime.cross_rates(config.keys(), hparams, rates)
    shown = ("episode_return_last100", "policy/kl")
    how = {"folder": folder.sub(name), "label": f"{name:30}", "show": shown}
    history = runtime.train_members(learner, hparams, config, config.updates, keys=keys, **how).history
    returns, kl = (history[key].reshape(config.updates, len(rates), config.seeds) for key in shown)
    return {rate: (returns[:, i], kl[:, i]) for i, rate in enumerate(rates)}


def report(
    folder: runtime.RunFolder, config: Config, rate: float, results: dict[str, tuple[np.ndarray, np.ndarray]]
) -> dict[str, dict]:
    """Print and draw returns and KLs [updates, seeds] at one learning rate; return the table."""
    print(f"\nlearning rate {rate:g}, {config.seeds} seeds: last 100 episodes, and KL of the updates [nats]")
    heads = "".join(f"{head:>10}" for head in ("median", "99%", "largest"))
    print(f"  {'':30}{'interquartile mean':>22}{'fell by half':>14}{heads}   mean less the clip's, paired")
    steps = np.arange(1, config.updates + 1) * config.num_envs * config.num_steps
    table, curves, kls = {}, {}, {}
    for name, (returns, kl) in results.items():
        fell = int(runtime.fell_by_half(returns).sum())
        quantiles = np.quantile(kl, [0.5, 0.99, 1.0])
        cells = "".join(f"{x:10.2g}" for x in quantiles)
        gain = runtime.paired_interval(returns[-1], results["PPO, clip"][0][-1])
        print(f"  {name:30}{runtime.interquartile_text(returns[-1]):>22}{fell:>14}{cells}   {gain}")
        table[name] = {"return": runtime.interquartile_mean(returns[-1]), "fell": fell, "less clip": gain}
        table[name] |= dict(zip(("median_kl", "kl_99", "max_kl"), quantiles, strict=True))
        curves[name] = (steps, returns)
        kls[name] = (np.sort(np.maximum(kl.ravel(), 1e-7)), 1.0 - np.arange(kl.size) / kl.size)
    title, dashed = f"CartPole-v1, learning rate {rate:g}", [name for name in results if "TRPO" in name]
    path = folder.path / f"learning_curves_{rate:g}.png"
    plots.save_curves(path, *plots.RETURN_AXES, curves, title=title, dashed=dashed, ylim=(0, 505))
    axes = ("KL(before || after) of an update [nats]", "share of updates beyond")
    log = {"title": title, "xscale": "log", "yscale": "log", "xlim": (1e-5, None)}
    plots.save_curves(folder.path / f"kl_per_update_{rate:g}.png", *axes, kls, dashed=dashed, **log)
    return table


def main(config: Config) -> None:
    """Train all methods, and print and draw final returns and the KL of their updates."""
    config.require(seeds=2, updates=1)
    runtime.use_cpu_devices()
    folder = config.open_folder()
    played = {name: play(config, folder, name) for name in methods(config)}
    tables = {}
    for rate in config.learning_rates + config.high_rates:
        results = {name: of_rate[rate] for name, of_rate in played.items() if rate in of_rate}
        tables[f"{rate:g}"] = report(folder, config, rate, results)
    folder.write_json("results.json", tables)
    print(f"\nfigures are in {folder.path}")


if __name__ == "__main__":
    cli.main(Config, main)
