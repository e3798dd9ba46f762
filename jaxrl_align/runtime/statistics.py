"""Statistics of runs and of judged items: intervals and tests in closed form, and the interquartile mean.

Seeds are few and costly, so they get Student's t or the interquartile mean; shares of many items get Wilson's
interval. Everything else, and items that share a source, is bootstrapped: `runtime.resampling`.
"""

import functools
import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

DRAWS = 10_000
"""Resamples of a bootstrap."""
_Z = 1.959963984540054  # quantile 0.975 of the normal distribution


class Interval(NamedTuple):
    """An estimate and its 95% interval."""

    value: float
    low: float
    high: float
    kind: str
    """wilson, t or bootstrap; range, of a bootstrap over two units; none, where the ends are nan."""

    def __str__(self) -> str:
        """Return "0.53 [0.50, 0.56]", to no more digits than the interval carries."""
        if not math.isfinite(self.value):
            return "undefined"
        if self.kind == "none":
            return f"{self.value:.3g} (no interval)"
        if max(abs(self.low), abs(self.high)) < 1e-6:  # what float32 leaves of nothing
            return "0 [0, 0]"
        half = (self.high - self.low) / 2
        if not half > 0:
            return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]"
        digits = min(max(0, math.ceil(math.log10(2 / half))), 9)
        ends = f"[{self.low:.{digits}f}, {self.high:.{digits}f}]"
        return f"{self.value:.{digits}f} {ends}" + (" (range)" if self.kind == "range" else "")


def mean_interval(x: ArrayLike, axis: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean over `axis` and the half-width of its 95% Student-t interval.

    `mean +- t_{0.975, n - 1} s / sqrt(n)`, with `s` the sample deviation (n - 1 below the line) of `n`
    independent members. With 4 seeds `t` is 3.18, not 1.96: a normal interval over a few seeds promises too
    much.

    Args:
      x: [..., n, ...] real numbers.
      axis: the axis of the `n` members.

    Returns:
      `(mean, half_width)`, both float64 without `axis`; with one member the half-width is unknown, nan.
    """
    x = np.asarray(x, np.float64)
    n = x.shape[axis]
    if n < 1:
        raise ValueError(f"expected at least one member along axis {axis}, got shape {x.shape}")
    mean = x.mean(axis)
    if n == 1:
        return mean, np.full_like(mean, np.nan)
    return mean, t_quantile(n - 1) * x.std(axis, ddof=1) / math.sqrt(n)


def t_interval(x: ArrayLike, *, bounds: tuple[float, float] = (-math.inf, math.inf)) -> Interval:
    """Return the mean over members and its 95% Student-t interval; see `mean_interval`.

    Args:
      x: [n] real numbers, one for each independent member.
      bounds: what the mean can be, (0, 100) of shares in per cent; the interval is cut there.

    Raises:
      ValueError: no member.
    """
    x = np.asarray(x, np.float64)
    mean, half = mean_interval(x)
    low, high = np.clip([mean - half, mean + half], *bounds)
    return Interval(float(mean), float(low), float(high), "t" if len(x) > 1 else "none")


def interquartile_mean(x: ArrayLike) -> Interval:
    """Return the mean of the middle half of all values and its 95% bootstrap interval.

    A quarter of the values is dropped at each end, a fraction of a value with its weight, so one seed that
    failed moves it little. The interval is the 2.5% and 97.5% percentile over 10,000 resamplings of the
    members, drawn from a fixed seed. With several tasks the values of all are pooled, and the members of each
    task are resampled apart: the stratified bootstrap of Agarwal et al. 2021 (arXiv:2108.13264), whose code
    drops whole values alone, and so differs where four do not divide their number.
    Of two members the interval is marked as their range; of one there is none.

    Args:
      x: [n] real numbers, one for each independent member; or [n, tasks], on one scale.

    Raises:
      ValueError: x is empty or of another rank.
    """
    x = np.asarray(x, np.float64)
    if x.ndim not in (1, 2) or not x.size:
        raise ValueError(f"expected at least one member in an array [n] or [n, tasks], got shape {x.shape}")
    n = x.size
    inside = np.minimum(np.arange(1, n + 1), 0.75 * n) - np.maximum(np.arange(n), 0.25 * n)
    weight = np.maximum(inside, 0.0) / (0.5 * n)
    drawn = np.random.default_rng(0).integers(len(x), size=(DRAWS, *x.shape))
    values = x[drawn] if x.ndim == 1 else np.take_along_axis(x[None], drawn, axis=1)
    low, high = np.percentile(np.sort(values.reshape(DRAWS, n), axis=1) @ weight, [2.5, 97.5])
    mean = float(np.sort(x, axis=None) @ weight)
    if len(x) == 1:
        return Interval(mean, math.nan, math.nan, "none")
    return Interval(mean, float(low), float(high), "range" if len(x) == 2 else "bootstrap")


def ratio_interval(x: ArrayLike) -> Interval:
    """Return the geometric mean of ratios and its 95% interval.

    The interval is Student's t of the logarithms, so that it never reaches 0.

    Args:
      x: [n] positive, one for each independent member.

    Raises:
      ValueError: no member, or a ratio of 0 or below, which has no logarithm.
    """
    x = np.asarray(x, np.float64)
    if (x <= 0).any():
        raise ValueError(f"ratios must be above 0, got {x.min():g}; 0 has no geometric mean")
    logs = t_interval(np.log(x))
    return Interval(math.exp(logs.value), math.exp(logs.low), math.exp(logs.high), logs.kind)


def fell_by_half(returns: ArrayLike) -> np.ndarray:
    """Return which members [M] end below half of their own best.

    Args:
      returns: [n, M] none negative, in the order of time; a nan says that there was none yet.

    Raises:
      ValueError: for another rank, no entry, or a negative one, of which half is more.
    """
    x = np.asarray(returns, np.float64)
    if x.ndim != 2 or not x.size or np.nanmin(x) < 0:
        raise ValueError(f"returns must be [n, members], none negative, got shape {x.shape}: {x}")
    return x[-1] < 0.5 * np.fmax.reduce(x, axis=0)


def paired_interval(
    first: ArrayLike, second: ArrayLike, *, bounds: tuple[float, float] = (-math.inf, math.inf)
) -> Interval:
    """Return the mean of `first - second` and its t interval, of values that share a seed or an item.

    Args:
      first: [n] real numbers.
      second: [n], of the same units in the same order.
      bounds: what a difference can be, (-1, 1) of two shares; the interval is cut there.

    Raises:
      ValueError: for shapes that differ, or no unit.
    """
    return t_interval(_pairs(first, second), bounds=bounds)


def crossed_interval(x: ArrayLike, *, bounds: tuple[float, float] = (-math.inf, math.inf)) -> Interval:
    """Return the mean over members and items, and a 95% interval that covers a new draw of both.

    Every member is judged on the same items, such as nets of several seeds on one test set. The half-width is
    `sqrt(h_M^2 + h_N^2)`: Student's t of the members' means, and the normal one of the items' means. What
    neither member nor item explains counts in both, so that it is rather too wide than too narrow.

    Args:
      x: [M, N] real numbers; for two ways of the same members, their differences item by item.
      bounds: what the mean can be; the interval is cut there.

    Raises:
      ValueError: for another rank, or no entry.
    """
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or not x.size:
        raise ValueError(f"expected at least one member and one item, [M, N], got shape {x.shape}")
    mean, over_members = mean_interval(x.mean(1))
    if not math.isfinite(over_members) or x.shape[1] < 2:
        return Interval(float(mean), math.nan, math.nan, "none")
    over_items = _Z * x.mean(0).std(ddof=1) / math.sqrt(x.shape[1])
    half = math.hypot(over_members, over_items)
    low, high = np.clip([mean - half, mean + half], *bounds)
    return Interval(float(mean), float(low), float(high), "t")


def wilson_interval(hits: float, trials: int) -> Interval:
    """Return a share and Wilson's interval of it, which stays within [0, 1] and does not shrink to a point.

    Args:
      hits: how many of the trials succeeded; a tie may count half.
      trials: independent ones; without any the share is nan.

    Raises:
      ValueError: for hits that are not between 0 and the trials.

    Source: Wilson 1927, JASA 22.
    """
    if not 0 <= hits <= trials:
        raise ValueError(f"hits must be from 0 to the number of trials, got {hits} of {trials}")
    if not trials:
        return Interval(math.nan, math.nan, math.nan, "none")
    n, p, z = trials, float(hits) / trials, _Z
    centre, spread = p + z**2 / (2 * n), z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    scale = 1 + z**2 / n
    return Interval(p, max((centre - spread) / scale, 0.0), min((centre + spread) / scale, 1.0), "wilson")


class PairedTest(NamedTuple):
    """McNemar's test of two systems on the same items."""

    only_first: int
    """Items that the first alone has right."""
    only_second: int
    p_value: float
    """Two-sided and exact: that one of two equally good systems leads so far."""


def mcnemar_test(first: ArrayLike, second: ArrayLike) -> PairedTest:
    """Test whether two systems are right equally often, by the items on which they differ.

        p = min(1, 2 P(X <= min(b, c))),   X ~ Binomial(b + c, 1/2)

    Args:
      first: [N] bool, whether it is right.
      second: [N], of the same items.

    Raises:
      ValueError: for shapes that differ, no items, or values that are neither right nor wrong.

    Source: McNemar 1947, Psychometrika 12, in its exact form.
    """
    difference = _pairs(first, second)
    if not (np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()):
        raise ValueError("McNemar's test takes right (1) or wrong (0) answers, got other numbers")
    b, c = int((difference > 0).sum()), int((difference < 0).sum())
    count, ways = 1, 1
    for k in range(min(b, c)):
        count = count * (b + c - k) // (k + 1)
        ways += count
    return PairedTest(b, c, min(1.0, 2 * ways / 2 ** (b + c)))


def _pairs(first: ArrayLike, second: ArrayLike) -> np.ndarray:
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise ValueError(f"both must be one number a unit, [N] with N >= 1, got {x.shape} and {y.shape}")
    return x - y


@functools.lru_cache
def t_quantile(degrees: int) -> float:
    """Return `t` with `P(|T| < t) = 0.95` for Student's T with an integer number of degrees of freedom.

    Bisection of the closed form of the two-sided probability in `theta = atan(t / sqrt(degrees))`
    (Abramowitz & Stegun 26.7.3 and 26.7.4).
    """
    low, high = 0.0, math.pi / 2
    for _ in range(60):
        theta = (low + high) / 2
        low, high = (theta, high) if _two_sided_probability(theta, degrees) < 0.95 else (low, theta)
    return math.sqrt(degrees) * math.tan(low)


def _two_sided_probability(theta: float, degrees: int) -> float:
    odd = degrees % 2
    term = math.cos(theta) if odd else 1.0
    total = 0.0
    for k in range(1 + odd, degrees, 2):  # terms cos^{k-1}; each coefficient is k / (k + 1) times the last
        total += term
        term *= math.cos(theta) ** 2 * k / (k + 1)
    return 2 / math.pi * (theta + math.sin(theta) * total) if odd else math.sin(theta) * total
