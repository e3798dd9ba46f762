"""The sign of an update, and the variance of REINFORCE against the horizon and against the discount.

Claims (lectures 001, 002, 003: B5, B6, B8): a positive return makes what was done likelier and a negative one
less likely; REINFORCE varies much, the more the longer an episode; a discount lowers the variance, at the
price of a bias. Measured on the random decision processes of `variance_reduction.py`, whose exact gradient is
known, and whose discounted estimator's expectation is computed exactly too.

Measured (`python experiments/estimators.py`: 16 processes, 10,000 paths each, 20 steps where nothing else is
said; 95% intervals over the processes; seconds of 2 CPU cores). The sign holds for small steps: at rates
0.001 and 0.01 every path of a return above the mean becomes likelier and every other one less likely. A
larger step overshoots, for log p is concave in the logits: at rate 0.1 98.5% [96.8, 100] of the paths above
become likelier, at rate 1 35.7% [31.2, 40.3]; those below become less likely always.

From 5 to 80 steps the variance of the whole return's estimator grows as the horizon to the power 2.52 +-
0.19, of the reward-to-go's as 2.40 +- 0.18. The squared gradient grows too, as 2.08 +- 0.06, so that relative
to it only 0.44 +- 0.19 and 0.31 +- 0.18 are left: the claim holds, but these processes forget their past, and
credit does not get lost in them as fast as the variance alone says.

    discount   variance over undiscounted   squared bias over |gradient|^2   error over undiscounted
                                                                              10       100      1000 paths
    0.99       0.875 [0.871, 0.879]         0.00005 [0.00002, 0.00009]       0.875    0.876    0.879
    0.95       0.545 [0.531, 0.561]         0.0011 [0.0004, 0.0021]          0.546    0.553    0.612
    0.9        0.340 [0.320, 0.363]         0.004 [0.002, 0.007]             0.343    0.367    0.527
    0.8        0.176 [0.154, 0.202]         0.014 [0.006, 0.024]             0.186    0.249    0.680
    0.5        0.069 [0.052, 0.092]         0.06 [0.03, 0.10]                0.105    0.332    2.38
    0          0.043 [0.029, 0.066]         0.19 [0.12, 0.28]                0.141    0.878    8.15

The discount does lower the variance, and the fewer the paths the lower the discount that pays.
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

from jaxrl_align import losses
from jaxrl_align.runtime import bootstrap_mean, cli, plots, statistics


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
    """At the one `horizon`."""
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


def report(config: Config, found: dict[str, np.ndarray]) -> dict:
    """Print and return what was measured, with intervals over the processes."""
    table: dict = {}
    print("share of paths [%] that one step makes likelier at a positive return; less likely at a negative")
    for rate, shares in zip(config.rates, found["signs"].swapaxes(0, 1), strict=True):
        table[f"sign, {rate:g}"] = row = [statistics.share_text(x) for x in shares.T]
        print(f"  rate {rate:<6g} {row[0]:>22} {row[1]:>22}")
    horizon = found["horizon"]
    relative = horizon[..., :2] / horizon[..., 2:]
    exponents = growth(config.horizons, np.concatenate([horizon, relative], -1))
    names = ("variance, whole return", "variance, reward-to-go", "|gradient|^2")
    names += ("relative variance, whole return", "relative variance, reward-to-go")
    for name, x in zip(names, exponents.T, strict=True):
        table[f"exponent of {name}"] = statistics.mean_text(x, ".2f")
        print(f"{name} grows as the horizon to the power {table[f'exponent of {name}']}")
    variance, bias = np.moveaxis(found["discount"], -1, 0)
    print("discount | variance / undiscounted | squared bias / |gradient|^2 | squared error of", end=" ")
    print(*config.batches, "paths / undiscounted")
    for i, gamma in enumerate(config.discounts):
        error = [variance / n + bias for n in config.batches]
        ratios = [variance, *error]
        cells = [statistics.ratio_text(x[:, i] / x[:, 0]) for x in ratios]
        table[f"discount {gamma:g}"] = {"variance": cells[0], "bias": bias[:, i], "errors": cells[1:]}
        squared = "{:.2g} [{:.2g}, {:.2g}]".format(*bootstrap_mean(bias[:, i])[:3])
        print(f"  {gamma:<6g} {cells[0]:22} | {squared:22} |", *cells[1:])
    return table


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
    middle, low, high = np.array([statistics.ratio_interval(y)[:3] for y in ys.T]).T
    ax.errorbar(x, middle, [middle - low, high - middle], marker="o", markersize=4, capsize=3, label=label)


def main(config: Config) -> None:
    """Measure every process, print and draw."""
    config.require(seeds=2, paths=2, horizons=1, batches=1)
    folder = config.open_folder()
    of_process = jax.jit(functools.partial(measure, config))
    all_found = [folder.once(f"process_{i}.json", of_process, key) for i, key in enumerate(config.keys())]
    found = {name: np.asarray([one[name] for one in all_found], np.float64) for name in all_found[0]}
    folder.write_json("result.json", report(config, found))
    draw(config, found, folder.path / "estimators.png")
    print(f"wrote {folder.path / 'estimators.png'}")


if __name__ == "__main__":
    cli.main(Config, main)
