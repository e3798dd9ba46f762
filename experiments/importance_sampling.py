"""Importance sampling from another policy, and the reuse of old paths with and without the ratio.

Measured on the random decision processes of `variance_reduction.py`, whose expected returns and whose
weights' second moments are known exactly; the intervals are over the processes.

First the return of a policy p is estimated from the paths of q, whose logits are normal noise away. The
identity holds, and its price grows with the divergence: the effective share of q's paths is `1 / E_q[(p /
q)^2]`. Where the paths do not hold the heavy weights, the estimates are off by more than their own errors
say, and the share that the sample tells is larger than the exact one.

Then one set of paths of the first policy serves one step of plain ascent after another, at a rate that was
chosen on other processes. The clipped ratio stops where the ratios leave the clip's range, by design.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from variance_reduction import Config as Processes
from variance_reduction import Paths, Process, expected_return, make_process, sample_paths

from jaxrl_align import losses, runtime
from jaxrl_align.runtime import cli, plots

CLAIM = runtime.Claim(
    "Weighed by the ratio, the paths of another policy tell this one's return, at a price that grows with "
    "the divergence; old paths mislead a policy gradient unless the ratio corrects them.",
    rows=("B17", "B22"),
    minutes=0.5,
)


@dataclass(frozen=True)
class Config(Processes):
    """Random tabular decision processes, each with its own random policy."""

    out: str = "runs/importance_sampling"
    paths: int = 20_000
    """Sampled by the other policy for each estimate of a return."""
    shifts: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)
    """Deviations of the normal noise that makes the other policy's logits; rising from 0."""
    old_paths: int = 200
    """Of a data set that is used again and again."""
    steps: tuple[int, ...] = (1, 4, 16, 64, 256)
    """Gradient steps after which the policy is told."""
    rate: float = 0.1
    """Of these steps, plain ascent."""


def log_ratios(process: Process, other: jax.Array, paths: Paths) -> jax.Array:
    """Return log p / q of each step [N, T], q the policy of the logits `other`."""
    p, q = (jax.nn.log_softmax(x)[paths.state, paths.action] for x in (process.logits, other))
    return p - q


def moments(process: Process, other: jax.Array, horizon: int) -> tuple[jax.Array, jax.Array]:
    """Return KL(p || q) of whole paths [nats] and `E_q[(p / q)^2]`, exactly."""
    log_p, log_q = jax.nn.log_softmax(process.logits), jax.nn.log_softmax(other)

    def back(carry: tuple[jax.Array, jax.Array], _: None) -> tuple[tuple[jax.Array, jax.Array], None]:
        kl, square = (process.transition @ x for x in carry)
        kl = jnp.sum(jnp.exp(log_p) * (log_p - log_q + kl), -1)
        return (kl, jnp.sum(jnp.exp(2 * log_p - log_q) * square, -1)), None

    none = jnp.zeros_like(process.start)
    return tuple(process.start @ x for x in jax.lax.scan(back, (none, none + 1.0), None, horizon)[0])


def weigh(config: Config, process: Process, key: jax.Array, shift: jax.Array) -> jax.Array:
    """Return KL, exact and sampled effective share, error in standard errors, and variance over on-policy."""
    k_noise, k_other, k_own = jax.random.split(key, 3)
    other = process.logits + shift * jax.random.normal(k_noise, process.logits.shape)
    paths = sample_paths(k_other, process._replace(logits=other), config)
    weight = jnp.exp(log_ratios(process, other, paths).sum(1))
    weighted = weight * paths.reward.sum(1)
    exact = expected_return(process.logits, process, config.horizon)
    error = (weighted.mean() - exact) / (weighted.std() / config.paths**0.5)
    kl, square = moments(process, other, config.horizon)
    share = jnp.square(weight.mean()) / jnp.mean(jnp.square(weight))
    own = sample_paths(k_own, process, config).reward.sum(1)
    return jnp.stack([kl, 1.0 / square, share, error, weighted.var() / own.var()])


FRESH, NO_RATIO, RATIO = "fresh paths", "old paths, no ratio", "old paths, ratio"
LOSSES: dict[str, Callable[..., jax.Array]] = {
    FRESH: lambda new, old, advantage: losses.reinforce_loss(new, advantage),
    NO_RATIO: lambda new, old, advantage: losses.reinforce_loss(new, advantage),
    RATIO: losses.surrogate,
    "old paths, clipped ratio": functools.partial(losses.clipped_surrogate, clip=0.2),
}
"""Of a step, by (log probability, that of the policy that acted, advantage)."""


def best_return(process: Process, horizon: int) -> jax.Array:
    """Return the optimal expected return of so many steps."""

    def back(value: jax.Array, _: None) -> tuple[jax.Array, None]:
        return jnp.max(process.reward + process.transition @ value, -1), None

    return process.start @ jax.lax.scan(back, jnp.zeros_like(process.start), None, horizon)[0]


def reuse(config: Config, process: Process, key: jax.Array, name: str) -> jax.Array:
    """Return the share of the possible gain that the policy has made, after each number of steps."""
    size = dataclasses.replace(config, paths=config.old_paths)
    value = lambda logits: expected_return(logits, process, config.horizon)

    def loss(logits: jax.Array, paths: Paths, old: jax.Array, advantage: jax.Array) -> jax.Array:
        new = jax.nn.log_softmax(logits)[paths.state, paths.action]
        return jnp.mean(jnp.sum(LOSSES[name](new, old, advantage), -1))

    def step(logits: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        acting = logits if name == FRESH else process.logits
        paths = sample_paths(key, process._replace(logits=acting), size)
        to_go = jax.vmap(losses.reward_to_go)(paths.reward)
        old = jax.nn.log_softmax(acting)[paths.state, paths.action]
        slope = jax.grad(loss)(logits, paths, old, to_go - losses.average_baseline(to_go))
        logits = logits - config.rate * slope
        return logits, value(logits)

    count = max(config.steps)
    keys = jax.random.split(key, count) if name == FRESH else jnp.repeat(key[None], count)
    values = jax.lax.scan(step, process.logits, keys)[1][jnp.array(config.steps) - 1]
    begin = value(process.logits)
    return (values - begin) / (best_return(process, config.horizon) - begin)


def measure(config: Config, key: jax.Array) -> dict[str, jax.Array]:
    """Return what `weigh` finds at every shift, and what `reuse` finds of every loss."""
    k_process, k_weigh, k_reuse = jax.random.split(key, 3)
    process = make_process(k_process, config)
    at = functools.partial(weigh, config, process, k_weigh)
    gains = [reuse(config, process, k_reuse, name) for name in LOSSES]
    return {"weights": jax.lax.map(at, jnp.array(config.shifts)), "gains": jnp.stack(gains)}


WEIGHTS = "noise of the other policy's logits"
MISSES = "estimates that are off by more than 1.96 of their own standard errors [%], by effective share"
GAINS = "share of the possible gain in expected return [%]"
PAIRED = "the same, paired by process"
SHARE, LOST, OWN = "effective share of paths [%]", "lost since the row above", "variance over on-policy"
TRUSTED = 10.0
"""The effective share [%] from which on an estimate's own error is expected to be right."""


def tabulate_weights(config: Config, found: np.ndarray) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the tables of what `weigh` found, [processes, shifts, 5]."""
    percent = lambda x: runtime.t_interval(100 * x, bounds=(0, 100))
    weights: dict[str, dict[str, Any]] = {}
    for i, shift in enumerate(config.shifts):
        kl, share, sampled, error, variance = found[:, i].T
        kl, share = np.maximum(kl, 0.0), np.minimum(share, 1.0)  # but for rounding they are
        weights[f"{shift:g}"] = row = {
            "KL(p || q) of a path [nats]": runtime.bootstrap_mean(kl),
            SHARE: percent(share),
            "as the sample tells it": percent(sampled),
            "error [standard errors]": runtime.t_interval(error),
            OWN: runtime.ratio_interval(variance),
        }
        if i:
            row[LOST] = runtime.paired_interval(100 * found[:, i - 1, 1], 100 * share, bounds=(-100, 100))
    trusted = np.array([row[SHARE].low >= TRUSTED for row in weights.values()])
    off = np.abs(found[..., 3]) > 1.96
    named = {f"{TRUSTED:g}% or more": trusted, "less": ~trusted}
    misses = {
        name: {"misses": percent(off[:, which].mean(1))} for name, which in named.items() if which.any()
    }
    return {WEIGHTS: weights, MISSES: misses}


def tabulate_gains(config: Config, found: np.ndarray) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the tables of what `reuse` found, [processes, losses, steps]."""
    gains = {name: 100 * x for name, x in zip(LOSSES, found.swapaxes(0, 1), strict=True)}
    columns = [f"{n} steps" for n in config.steps]
    over = lambda interval, *xs: dict(zip(columns, map(interval, *(x.T for x in xs)), strict=True))
    pairs = ((FRESH, NO_RATIO), (RATIO, NO_RATIO), (FRESH, RATIO))
    return {
        GAINS: {name: over(runtime.bootstrap_mean, x) for name, x in gains.items()},
        PAIRED: {f"{a} less {b}": over(runtime.paired_interval, gains[a], gains[b]) for a, b in pairs},
    }


def judge(config: Config, tables: dict[str, dict[str, dict[str, Any]]]) -> dict[str, bool]:
    """Return which parts of the claim the tables show."""
    further = list(tables[WEIGHTS].values())[1:]
    last = f"{config.steps[-1]} steps"
    behind, mended, missing = (row[last] for row in tables[PAIRED].values())
    miss = "fewer than a fifth of the estimates miss the true return by more than their own 95% interval"
    return {
        f"effective share of {name}: {miss}": row["misses"].high < 20 for name, row in tables[MISSES].items()
    } | {
        "the further the other policy, the smaller the effective share": all(
            r[LOST].low > 0 for r in further
        ),
        "its paths give a larger variance than paths of one's own": all(r[OWN].low > 1 for r in further),
        f"after {last} old paths without the ratio are behind fresh ones": behind.low > 0,
        "the ratio gains more than none": mended.low > 0,
        "it makes up for all: old paths are less than 10 points behind fresh ones": missing.high < 10,
    }


def draw(config: Config, found: dict[str, np.ndarray], path: Path) -> None:
    """Draw the effective share against the divergence, and the gains against the steps."""
    fig, (left, right) = plots.panels(1, 2, size=(10.5, 4.0))
    kl, exact, sampled = np.moveaxis(found["weights"][..., :3], -1, 0)
    left.plot(kl.ravel(), exact.ravel(), ".", label="exact")
    left.plot(kl.ravel(), sampled.ravel(), "x", label=f"of {config.paths} paths")
    left.set(
        xscale="log", yscale="log", xlabel="KL(p || q) of a path [nats]", ylabel="effective share of paths"
    )
    left.set(xlim=(1e-3, None), ylim=(1e-5, 1.5))
    left.legend(title=f"{config.seeds} processes")
    for name, gains in zip(LOSSES, found["gains"].swapaxes(0, 1), strict=True):
        plots.curve_with_interval(right, config.steps, 100 * gains.T, name)
    right.set(xscale="log", xlabel="gradient steps", ylabel="share of the possible gain [%]")
    right.set_xticks(config.steps, map(str, config.steps))
    right.legend(title=f"{config.seeds} processes, 95% interval")
    plots.save_figure(fig, path)


def main(config: Config) -> None:
    """Measure every process, draw and write what was found."""
    config.require(seeds=2, paths=2, old_paths=2, steps=1)
    folder = config.open_folder()
    of_process = jax.jit(functools.partial(measure, config))
    all_found = [folder.once(f"process_{i}.json", of_process, key) for i, key in enumerate(config.keys())]
    found = {name: np.asarray([one[name] for one in all_found], np.float64) for name in all_found[0]}
    draw(config, found, folder.path / "importance_sampling.png")
    tables = tabulate_weights(config, found["weights"]) | tabulate_gains(config, found["gains"])
    last, less = f"{config.steps[-1]} steps", f"{FRESH} less {NO_RATIO}"
    runtime.write_result(
        folder,
        config,
        CLAIM,
        headline={f"possible gain after {last} [points], {less}, paired": tables[PAIRED][less][last]},
        baselines={f"possible gain after {last} [%], {NO_RATIO}": tables[GAINS][NO_RATIO][last]},
        checks=judge(config, tables),
        tables=tables,
        figures=["importance_sampling.png"],
    )


if __name__ == "__main__":
    cli.main(Config, main)
