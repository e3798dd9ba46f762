"""Importance sampling from another policy, and the reuse of old paths with and without the ratio.

Claims (lectures 000, 001, 003: B17, B22): `E_p[f] = E_q[(p / q) f]`, so that the paths of one policy tell the
return of another; a policy gradient is on-policy, so that paths of an older policy mislead it unless the
ratio corrects them. Measured on the random decision processes of `variance_reduction.py`, whose expected
returns and whose weights' second moments are known exactly.

Measured (`python experiments/importance_sampling.py`: 16 processes, paths of 20 steps, 20,000 for each
estimate; means, geometric of the variance, with 95% intervals over the processes; seconds of 2 CPU cores), of
a policy p by the paths of q, whose logits are normal noise away:

    KL(p || q) of a path [nats]    effective share of paths    variance over on-policy    off by > 1.96 s.e.
    0.05 [0.04, 0.06]              0.904 [0.883, 0.926]        1.39 [1.12, 1.73]          0 of 16
    0.20 [0.16, 0.25]              0.677 [0.614, 0.743]        2.47 [1.62, 3.77]          1 of 16
    0.81 [0.62, 1.00]              0.256 [0.168, 0.357]        10.6 [5.1, 22]             0 of 16
    3.2 [2.4, 3.9]                 0.030 [0.003, 0.067]        160 [46, 553]              4 of 16
    11.3 [9.0, 13.6]               0.0002 [0.0000, 0.0007]     741 [171, 3210]            6 of 16

The identity holds, and its price grows with the divergence. Beyond a few nats 20,000 paths do not hold the
heavy weights: the estimates are off by more than their own errors say, and the effective share that the
sample tells, 0.0012 in the last row, is five times the exact one.

Two hundred paths of the first policy, used for one step of plain ascent after another (rate 0.1, chosen on
other processes); share of the possible gain in expected return [%]:

    steps                        4                  16                64                256
    fresh paths                  32.7 [25, 40]      71.4 [65, 77]     92.5 [90, 94]     97.4 [96, 98]
    old paths, no ratio          32.4 [25, 39]      62.8 [54, 72]     68.8 [60, 78]     73.0 [62, 83]
    old paths, ratio             32.3 [26, 39]      65.8 [58, 73]     84.7 [78, 90]     92.3 [89, 96]
    old paths, clipped ratio     14.6 [12, 18]      16.3 [13, 19]     17.6 [15, 21]     18.2 [16, 21]

Old paths without the ratio fall behind fresh ones by 9 [1, 16] points after 16 steps and 24 [13, 36] after
256 (paired), and behind the ratio by 19 [6, 32] after 256; a few steps cost nothing that shows. So they
mislead as claimed, although the policy still improves. The clip stops where the ratios leave its range, by
design.
"""

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from variance_reduction import Config as Processes
from variance_reduction import Paths, Process, expected_return, make_process, sample_paths

from jaxrl_align import losses
from jaxrl_align.runtime import bootstrap_mean, cli, plots, statistics


@dataclass(frozen=True)
class Config(Processes):
    """Random tabular decision processes, each with its own random policy."""

    out: str = "runs/importance_sampling"
    paths: int = 20_000
    """Sampled by the other policy for each estimate of a return."""
    shifts: tuple[float, ...] = (0.0, 0.1, 0.2, 0.4, 0.8, 1.6)
    """Deviations of the normal noise that makes the other policy's logits."""
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


NO_RATIO = "old paths, no ratio"
LOSSES: dict[str, Callable[..., jax.Array]] = {
    "fresh paths": lambda new, old, advantage: losses.reinforce_loss(new, advantage),
    NO_RATIO: lambda new, old, advantage: losses.reinforce_loss(new, advantage),
    "old paths, ratio": losses.surrogate,
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
        acting = logits if name == "fresh paths" else process.logits
        paths = sample_paths(key, process._replace(logits=acting), size)
        to_go = jax.vmap(losses.reward_to_go)(paths.reward)
        old = jax.nn.log_softmax(acting)[paths.state, paths.action]
        slope = jax.grad(loss)(logits, paths, old, to_go - losses.average_baseline(to_go))
        logits = logits - config.rate * slope
        return logits, value(logits)

    count = max(config.steps)
    keys = jax.random.split(key, count) if name == "fresh paths" else jnp.repeat(key[None], count)
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


def report(config: Config, found: dict[str, np.ndarray]) -> dict:
    """Print and return what was measured, with intervals over the processes."""
    table: dict = {}
    print(
        "logits off by | KL of paths [nats] | effective share, exact | sampled | error [standard errors]",
        end="",
    )
    print(" | beyond 1.96 of them | variance / on-policy")
    for shift, of_shift in zip(config.shifts, found["weights"].swapaxes(0, 1), strict=True):
        kl, exact, sampled, error, variance = of_shift.T
        cells = ["{:.3g} [{:.3g}, {:.3g}]".format(*bootstrap_mean(x)[:3]) for x in (kl, exact, sampled)]
        beyond = int((np.abs(error) > 1.96).sum())
        cells += [statistics.mean_text(error, ".2f"), f"{beyond} of {config.seeds}"]
        cells += [statistics.ratio_text(variance)]
        table[f"shift {shift:g}"] = cells
        print(f"  {shift:<6g}", " | ".join(cells))
    print("share of the possible gain [%] after steps:", *config.steps)
    for name, gains in zip(LOSSES, found["gains"].swapaxes(0, 1), strict=True):
        cells = ["{:.1f} [{:.1f}, {:.1f}]".format(*bootstrap_mean(100 * x)[:3]) for x in gains.T]
        table[name] = cells
        print(f"  {name:26}", " | ".join(cells))
    without = found["gains"][:, list(LOSSES).index(NO_RATIO)]
    for name in ("fresh paths", "old paths, ratio"):
        gains = found["gains"][:, list(LOSSES).index(name)]
        pairs = zip(100 * gains.T, 100 * without.T, strict=True)
        table[f"{name} less {NO_RATIO}"] = cells = [statistics.paired_interval(*pair) for pair in pairs]
        print(f"  {name} less {NO_RATIO}, paired by process:", " | ".join(map(str, cells)))
    return table


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
    """Measure every process, print and draw."""
    config.require(seeds=2, paths=2, old_paths=2, steps=1)
    folder = config.open_folder()
    of_process = jax.jit(functools.partial(measure, config))
    all_found = [folder.once(f"process_{i}.json", of_process, key) for i, key in enumerate(config.keys())]
    found = {name: np.asarray([one[name] for one in all_found], np.float64) for name in all_found[0]}
    folder.write_json("result.json", report(config, found))
    draw(config, found, folder.path / "importance_sampling.png")
    print(f"wrote {folder.path / 'importance_sampling.png'}")


if __name__ == "__main__":
    cli.main(Config, main)
