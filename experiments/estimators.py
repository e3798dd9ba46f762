"""The sign of an update, and the variance of REINFORCE against the horizon and against the discount.

Measured on the random decision processes of `variance_reduction.py`, whose exact gradient is known, and whose
discounted estimator's expectation is computed exactly too; the intervals are over the processes.

The sign is that of a single step along one path's gradient. It holds for small steps alone: log p is concave
in the logits, so that a large one overshoots where the return is positive, and never where it is negative.

The gradient itself grows with the horizon, so the variance is also told relative to its square. These
processes forget their past; where credit gets lost over long times that ratio would grow faster. The discount
trades variance for bias, and a mean over few paths has little use for what it saves in bias.
"""

import dataclasses
import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from variance_reduction import Config as Processes
from variance_reduction import (
    Paths,
    Process,
    expected_return,
    gradient_moments,
    make_process,
    sample_paths,
)

from jaxrl_align import losses, runtime
from jaxrl_align.runtime import cli, plots

CLAIM = runtime.Claim(
    "A positive return makes what was done likelier, a negative one less likely; REINFORCE's variance grows "
    "with the horizon, and a discount lowers it, at the price of a bias.",
    rows=("B5", "B6", "B8"),
    minutes=0.5,
)


@dataclass(frozen=True)
class Config(Processes):
    """Random tabular decision processes, each with its own random policy."""

    out: str = "runs/estimators"
    paths: int = 10_000
    """Sampled from each process at each horizon."""
    rates: tuple[float, ...] = (0.001, 0.01, 0.1, 1.0)
    """Of a single step along one path's gradient."""
    horizons: tuple[int, ...] = (5, 10, 20, 40, 80)
    """At discount 1."""
    discounts: tuple[float, ...] = (1.0, 0.99, 0.95, 0.9, 0.8, 0.5, 0.0)
    """At the one `horizon`; falling from 1."""
    batches: tuple[int, ...] = (10, 100, 1000)
    """Paths of a gradient whose mean squared error is told."""


def signs(config: Config, process: Process, paths: Paths) -> jax.Array:
    """Return how often one step moves log p(path) by the sign of its return, [rates, 2]: above 0, below.

    The return is told as its distance from the mean of all paths, so that both signs occur.
    """

    def log_prob(logits: jax.Array, path: Paths) -> jax.Array:
        return jnp.sum(jax.nn.log_softmax(logits)[path.state, path.action])

    def moves(path: Paths, ret: jax.Array, rate: jax.Array) -> jax.Array:
        before, score = jax.value_and_grad(log_prob)(process.logits, path)
        return log_prob(process.logits + rate * ret * score, path) - before

    ret = paths.reward.sum(1) - paths.reward.sum(1).mean()

    def at(rate: jax.Array) -> jax.Array:
        agrees = (jax.vmap(moves, (0, 0, None))(paths, ret, rate) * ret > 0).astype(jnp.float32)
        of = lambda sign: losses.masked_mean(agrees, (sign * ret > 0).astype(jnp.float32))
        return jnp.stack([of(1), of(-1)])

    return jax.lax.map(at, jnp.array(config.rates))


def against_horizon(config: Config, process: Process, paths: Paths, horizon: int) -> jax.Array:
    """Return the traces of the covariance of whole return and reward-to-go, and |exact gradient|^2."""
    exact = jax.grad(expected_return)(process.logits, process, horizon)
    to_go = jax.vmap(losses.reward_to_go)(paths.reward)
    whole = jnp.broadcast_to(to_go[:, :1], to_go.shape)
    variances = [gradient_moments(process.logits, paths, weight)[1] for weight in (whole, to_go)]
    return jnp.stack([*variances, jnp.sum(exact**2)])


def expected_estimate(process: Process, horizon: int, gamma: jax.Array) -> jax.Array:
    """Return the expectation [S, A] of the estimator whose reward-to-go is discounted, exactly."""
    policy = jax.nn.softmax(process.logits)

    def back(value: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        q = process.reward + gamma * process.transition @ value
        return jnp.sum(policy * q, -1), q

    def forward(occupancy: jax.Array, _: None) -> tuple[jax.Array, jax.Array]:
        return jnp.einsum("sa,sat->t", occupancy[:, None] * policy, process.transition), occupancy

    q = jax.lax.scan(back, jnp.zeros_like(process.start), None, horizon)[1][::-1]
    occupancy = jax.lax.scan(forward, process.start, None, horizon)[1]
    weight = jnp.einsum("ts,tsa->sa", occupancy, q)
    return jax.grad(lambda logits: jnp.sum(jax.nn.softmax(logits) * weight))(process.logits)


def against_discount(config: Config, process: Process, paths: Paths, gamma: jax.Array) -> jax.Array:
    """Return variance and squared bias of the discounted estimator over |exact gradient|^2."""
    discount = jnp.full(config.horizon, gamma)
    weight = jax.vmap(losses.discounted_returns, (0, None))(paths.reward, discount)
    variance = gradient_moments(process.logits, paths, weight)[1]
    exact = jax.grad(expected_return)(process.logits, process, config.horizon)
    bias = jnp.sum(jnp.square(expected_estimate(process, config.horizon, gamma) - exact))
    return jnp.stack([variance, bias]) / jnp.sum(exact**2)


def measure(config: Config, key: jax.Array) -> dict[str, jax.Array]:
    """Return one process's shares of right signs, and its variances by horizon and by discount."""
    k_process, k_paths = jax.random.split(key)
    process = make_process(k_process, config)
    sample = lambda horizon: sample_paths(k_paths, process, dataclasses.replace(config, horizon=horizon))
    paths = sample(config.horizon)
    by_discount = functools.partial(against_discount, config, process, paths)
    return {
        "signs": signs(config, process, paths),
        "horizon": jnp.stack([against_horizon(config, process, sample(t), t) for t in config.horizons]),
        "discount": jax.lax.map(by_discount, jnp.array(config.discounts)),
    }


def growth(horizons: tuple[int, ...], found: np.ndarray) -> np.ndarray:
    """Return the exponents of the horizon in `found` [processes, horizons, n], by least squares on logs."""
    x = np.log(horizons) - np.mean(np.log(horizons))
    return np.einsum("h,phn->pn", x, np.log(found)) / np.sum(x**2)


SIGNS = "paths that one step moves by the sign of their return [%]"
POWERS = "power of the horizon with which it grows"
DISCOUNTS = "discount; geometric means, errors over those without a discount"
ABOVE, BELOW = "above the mean, likelier", "below, less likely"
NAMES = ("variance, whole return", "variance, reward-to-go", "|gradient|^2")
NAMES += ("relative variance, whole return", "relative variance, reward-to-go")


def tabulate(config: Config, found: dict[str, np.ndarray]) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the tables of what was measured, with intervals over the processes."""
    share = lambda x: runtime.t_interval(100 * x, bounds=(0, 100))
    shares = found["signs"].swapaxes(0, 1)
    horizon = found["horizon"]
    relative = horizon[..., :2] / horizon[..., 2:]
    exponents = growth(config.horizons, np.concatenate([horizon, relative], -1))
    variance, bias = np.moveaxis(found["discount"], -1, 0)
    by_discount: dict[str, dict[str, Any]] = {}
    ratio = lambda x, i, base: runtime.ratio_interval(x[:, i] / x[:, base])
    for i, gamma in enumerate(config.discounts):
        by_discount[f"{gamma:g}"] = row = {"variance over none's": ratio(variance, i, 0)}
        if i:
            row["over the one above's"] = ratio(variance, i, i - 1)
            row["squared bias / |gradient|^2"] = runtime.bootstrap_mean(bias[:, i])
        if i > 1:
            row["over the one above's bias"] = ratio(bias, i, i - 1)
        row |= {f"error of {n} paths": ratio(variance / n + bias, i, 0) for n in config.batches}
    return {
        SIGNS: {
            f"rate {rate:g}": {ABOVE: share(x[:, 0]), BELOW: share(x[:, 1])}
            for rate, x in zip(config.rates, shares, strict=True)
        },
        POWERS: {name: {"power": runtime.t_interval(x)} for name, x in zip(NAMES, exponents.T, strict=True)},
        DISCOUNTS: by_discount,
    }


def judge(config: Config, tables: dict[str, dict[str, dict[str, Any]]]) -> dict[str, bool]:
    """Return which parts of the claim the tables show."""
    right = {name: min(row[ABOVE].low, row[BELOW].low) > 99 for name, row in tables[SIGNS].items()}
    power = {name: row["power"] for name, row in tables[POWERS].items()}
    rows = list(tables[DISCOUNTS].values())
    few, many = (f"error of {n} paths" for n in (config.batches[0], config.batches[-1]))
    last = rows[-1]
    return {
        f"a step at a rate of {config.rates[0]:g} has the sign of the return on 99% of the paths": (
            right[f"rate {config.rates[0]:g}"]
        ),
        f"at every rate, {config.rates[-1]:g} too": all(right.values()),
        "the variance grows with the horizon": all(power[name].low > 0 for name in NAMES[:2]),
        "it grows faster than the squared gradient": all(power[name].low > 0 for name in NAMES[3:]),
        "the lower the discount, the lower the variance": all(
            row["over the one above's"].high < 1 for row in rows[1:]
        ),
        "the lower the discount, the larger the bias": all(
            row["over the one above's bias"].low > 1 for row in rows[2:]
        ),
        f"with {config.batches[0]} paths a discount of {config.discounts[-1]:g} errs less than none": (
            last[few].high < 1
        ),
        f"with {config.batches[-1]} it errs more": last[many].low > 1,
    }


def draw(config: Config, found: dict[str, np.ndarray], path: Path) -> None:
    """Draw variance against horizon, and variance, bias and error against the discount."""
    fig, (left, right) = plots.panels(1, 2, size=(10.5, 4.0))
    for name, x in zip(("whole return", "reward-to-go"), np.moveaxis(found["horizon"], -1, 0), strict=False):
        _geometric(left, config.horizons, x / found["horizon"][:, :, 2], name)
    left.set(xscale="log", yscale="log", xlabel="horizon", ylabel="variance / |exact gradient|^2")
    left.set_xticks(config.horizons, map(str, config.horizons))
    left.minorticks_off()
    variance, bias = np.moveaxis(found["discount"], -1, 0)
    for n in config.batches:
        _geometric(right, range(len(config.discounts)), variance / n + bias, f"{n} paths")
    right.set(yscale="log", xlabel="discount", ylabel="squared error / |exact gradient|^2")
    right.set_xticks(range(len(config.discounts)), [f"{x:g}" for x in config.discounts])
    for ax in (left, right):
        ax.legend(title=f"{config.seeds} processes, 95% interval")
    plots.save_figure(fig, path)


def _geometric(ax: Any, x: Any, ys: np.ndarray, label: str) -> None:
    middle, low, high = np.array([runtime.ratio_interval(y)[:3] for y in ys.T]).T
    ax.errorbar(x, middle, [middle - low, high - middle], marker="o", markersize=4, capsize=3, label=label)


def main(config: Config) -> None:
    """Measure every process, draw and write what was found."""
    config.require(seeds=2, paths=2, horizons=1, batches=1)
    folder = config.open_folder()
    of_process = jax.jit(functools.partial(measure, config))
    all_found = [folder.once(f"process_{i}.json", of_process, key) for i, key in enumerate(config.keys())]
    found = {name: np.asarray([one[name] for one in all_found], np.float64) for name in all_found[0]}
    draw(config, found, folder.path / "estimators.png")
    tables = tabulate(config, found)
    middle = f"{config.discounts[len(config.discounts) // 2]:g}"
    runtime.write_result(
        folder,
        config,
        CLAIM,
        headline={
            "power of the horizon with which REINFORCE's variance grows": tables[POWERS][NAMES[0]]["power"],
            f"its variance with a discount of {middle} over without, paired": (
                tables[DISCOUNTS][middle]["variance over none's"]
            ),
        },
        baselines={"power with which the squared gradient grows": tables[POWERS][NAMES[2]]["power"]},
        checks=judge(config, tables),
        tables=tables,
        figures=["estimators.png"],
    )


if __name__ == "__main__":
    cli.main(Config, main)
