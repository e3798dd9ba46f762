"""Ways to hold an update near the policy that acted, and none: return, falls, and how far an update goes.

Claim (lectures 001 and 003, B16 to B21): a plain actor-critic may take a huge update and not recover; a trust
region (TRPO), a clip or a KL penalty (PPO) prevents it. Every method plays CartPole-v1; A2C, which is the
plain one, takes one gradient step a rollout, PPO sixteen, TRPO one of its policy, whose length the bound
sets: its learning rate is its critic's alone.

Measured (`python experiments/trust_regions.py`: 48 seeds, 153,600 steps each; about 8 minutes of 2 CPU
cores): interquartile mean over seeds of the return of the last 100 episodes with its 95% bootstrap interval,
how many seeds end below half of their best, and the KL of an update [nats]: median, 99% quantile and largest
of 7,200.

                                         rate 0.001          50%     99%    all
    PPO, clip                        433 [415, 449]   0   0.0031   0.015  0.039
    PPO, adaptive KL                 272 [220, 319]  17   0.0081    0.41    3.7
    PPO, fixed KL                    460 [423, 479]   2   0.0021    0.02   0.06
    PPO, no clip                     306 [273, 337]   5    0.015    0.42    1.9
    PPO, no clip of ratio or value   201 [151, 252]  22    0.019     1.4    8.5
    A2C                              253 [242, 263]   0     5e-5 0.00021 0.0004
    TRPO, bound 0.01                 496 [490, 499]   0   0.0077  0.0099   0.01
    TRPO, bound 1                    256 [215, 298]  13     0.46    0.98      1

                                          rate 0.01          50%     99%    all
    PPO, clip                        497 [491, 499]   0    0.006   0.052   0.52
    PPO, adaptive KL                 409 [357, 449]   8   0.0097    0.19    1.9
    PPO, fixed KL                    500 [499, 500]   0   0.0037   0.048   0.24
    PPO, no clip                         20 [9, 52]  34   0.0031      11     34
    PPO, no clip of ratio or value     51 [14, 107]  31     0.16      12     27
    A2C                              340 [243, 426]  17   0.0072    0.31   0.92
    TRPO, bound 0.01                 500 [500, 500]   0   0.0078  0.0099   0.01
    TRPO, bound 1                    193 [158, 236]  18     0.47    0.98      1

                                          rate 0.03          50%     99%    all
    PPO, clip                        457 [424, 478]   2    0.038     1.6    5.4
    A2C                               131 [80, 221]  30     0.09     3.1     11

                                           rate 0.1          50%     99%    all
    PPO, clip                            24 [9, 55]  36    1e-10      14     64
    A2C                                 28 [16, 48]  34     0.13      12     30

The claim holds for A2C: at 0.001 its updates are too small to fall, at 0.01 it falls on 17 seeds of 48, at
0.03 on 30, at 0.1 on 34, where single updates move it by up to 11 and 30 nats. PPO with its clip takes
sixteen times as many steps and falls on none, none and 2, and its mean return is higher by 171 [152, 191],
171 [119, 222] and 240 [183, 297], paired by seed; at 0.1 it falls too. Without the clip PPO falls at 0.01 on
34 seeds, and on 31 where the values' clip is dropped as well.

TRPO's bound decides: at 0.01 nats no update goes beyond it and no seed falls, at 1 nat 13 and 18 seeds do. A
fixed KL penalty does as well as the clip (+9 [-5, 23] at 0.01, 0 [-35, 36] at 0.001); the adaptive one
protects less, for its coefficient is doubled only after the update that it should have held back. Neither the
clip nor a penalty bounds the KL (erratum H13): the clip's median is 0.006 at 0.01, but one update in a
hundred goes beyond 0.05, and the largest, 0.5 here, grows with the number of updates that one looks at.
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
