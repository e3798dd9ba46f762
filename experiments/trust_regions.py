"""Ways to hold an update near the policy that acted, and none: return, falls, and how far an update goes.

Every method plays CartPole-v1; A2C, which is the plain one, takes one gradient step a rollout, PPO sixteen,
TRPO one of its policy, whose length the bound sets: its learning rate is its critic's alone. A method *falls*
on a seed where it ends below half of its own best return.

At small rates A2C's updates are too small to fall, at high ones single updates move it by many nats. PPO with
its clip takes sixteen times as many steps and falls on almost no seed, up to a rate at which it falls too. A
fixed KL penalty does as well as the clip; the adaptive one protects less, for its coefficient is doubled only
after the update that it should have held back. Neither the clip nor a penalty bounds the KL (erratum H13):
the largest grows with the number of updates that one looks at.
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

CLAIM = runtime.Claim(
    "A plain actor-critic may take a huge update and not recover; a trust region (TRPO), a clip or a KL "
    "penalty (PPO) prevents it.",
    rows=("B16", "B18", "B20", "B21", "H13"),
    minutes=8,
)


@dataclass(frozen=True)
class Config(runtime.MembersConfig):
    """The methods side by side."""

    out: str = "runs/trust_regions"
    seeds: int = 48
    num_envs: int = 8
    """Environments side by side, for each member."""
    num_steps: int = 128
    """Steps of each environment between two updates."""
    updates: int = 150
    """Rollouts, each with its update."""
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


COLUMNS = "interquartile mean of returns; seeds that fall; KL of all updates [nats]"
Played = dict[str, tuple[np.ndarray, np.ndarray]]
"""Returns and KLs [updates, seeds] by method, at one rate."""


def tabulate(results: Played) -> dict[str, dict[str, Any]]:
    """Return the table of one learning rate."""
    table = {}
    for name, (returns, kl) in results.items():
        clip = results["PPO, clip"][0][-1]
        table[name] = {
            "return": runtime.interquartile_mean(returns[-1]),
            "less the clip's, paired": runtime.paired_interval(returns[-1], clip, bounds=(-500, 500)),
            "fall": int(runtime.fell_by_half(returns).sum()),
        }
        quantiles = np.quantile(kl, [0.5, 0.99, 1.0])
        table[name] |= dict(zip(("KL: median", "99%", "largest"), quantiles, strict=True))
    return table


def draw(folder: runtime.RunFolder, config: Config, rate: float, results: Played) -> list[str]:
    """Draw the returns and the KLs at one learning rate; return the files' names."""
    steps = np.arange(1, config.updates + 1) * config.num_envs * config.num_steps
    curves = {name: (steps, returns) for name, (returns, _) in results.items()}
    kls = {
        name: (np.sort(np.maximum(kl.ravel(), 1e-7)), 1.0 - np.arange(kl.size) / kl.size)
        for name, (_, kl) in results.items()
    }
    title, dashed = f"CartPole-v1, learning rate {rate:g}", [name for name in results if "TRPO" in name]
    names = [f"learning_curves_{rate:g}.png", f"kl_per_update_{rate:g}.png"]
    ends = {"title": title, "dashed": dashed}
    plots.save_curves(
        folder.path / names[0], *plots.RETURN_AXES, curves, bounds=(0, 500), ylim=(0, 505), **ends
    )
    axes = ("KL(before || after) of an update [nats]", "share of updates beyond")
    log = {"xscale": "log", "yscale": "log", "xlim": (1e-5, None)}
    plots.save_curves(folder.path / names[1], *axes, kls, **log, **ends)
    return names


def judge(config: Config, tables: dict[float, dict[str, dict[str, Any]]]) -> dict[str, bool]:
    """Return which parts of the claim the tables of all rates show."""
    high = config.high_rates[0]
    strict, loose = (f"TRPO, bound {kl:g}" for kl in (config.max_kl, config.loose_kl))
    falls = lambda rate, name: tables[rate][name]["fall"] / config.seeds
    usual = [tables[rate] for rate in config.learning_rates]
    return {
        f"A2C falls at a rate of {high:g}, on a quarter of the seeds or more": falls(high, "A2C") >= 0.25,
        "the clip prevents it there: its return is the higher, and it falls on a quarter as many at most": (
            tables[high]["A2C"]["less the clip's, paired"].high < 0
            and falls(high, "PPO, clip") <= 0.25 * falls(high, "A2C")
        ),
        f"it prevents it at every rate tried, {config.high_rates[-1]:g} too": all(
            falls(rate, "PPO, clip") < 0.25 for rate in tables
        ),
        f"TRPO bounded at {config.max_kl:g} nats never falls": all(t[strict]["fall"] == 0 for t in usual),
        f"bounded at {config.loose_kl:g} it does": any(t[loose]["fall"] > 0 for t in usual),
        "PPO without a clip falls on more seeds than with it": (
            sum(t["PPO, no clip"]["fall"] for t in usual) > sum(t["PPO, clip"]["fall"] for t in usual)
        ),
        "a KL penalty with a fixed coefficient falls on no more than a tenth of the seeds": all(
            t["PPO, fixed KL"]["fall"] <= 0.1 * config.seeds for t in usual
        ),
    }


def main(config: Config) -> None:
    """Train all methods, and draw and write final returns, falls and the KL of their updates."""
    config.require(seeds=2, updates=1)
    folder = config.open_folder()
    played = {name: play(config, folder, name) for name in methods(config)}
    tables, drawn = {}, {}
    for rate in config.learning_rates + config.high_rates:
        results = {name: of_rate[rate] for name, of_rate in played.items() if rate in of_rate}
        tables[rate] = tabulate(results)
        drawn[rate] = draw(folder, config, rate, results)
    high = config.high_rates[0]
    a2c, clip = tables[high]["A2C"], tables[high]["PPO, clip"]
    runtime.write_result(
        folder,
        config,
        CLAIM,
        headline={f"return of A2C less PPO's, at a rate of {high:g}, paired": a2c["less the clip's, paired"]},
        baselines={f"return of PPO with its clip at {high:g}": clip["return"]},
        checks=judge(config, tables),
        tables={f"rate {rate:g}: {COLUMNS}": table for rate, table in tables.items()},
        figures=[file for rate in sorted(drawn, key=lambda rate: rate != high) for file in drawn[rate]],
    )


if __name__ == "__main__":
    cli.main(Config, main)
