"""Bootstrap intervals: of any function of items, paired and by groups, of win rates, and of runs.

bootstrap(lambda p, y: accuracy(p, y), predictions, answers, groups=passages)
"""

import math
from collections.abc import Callable
from typing import SupportsFloat

import numpy as np
from numpy.typing import ArrayLike

from jaxrl_align.runtime.statistics import DRAWS, Interval, wilson_interval

_AT_A_TIME = 2**22  # random numbers held at once while means are drawn


def bootstrap(
    statistic: Callable[..., SupportsFloat],
    *arrays: ArrayLike,
    groups: ArrayLike | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Interval:
    """Return a statistic of items and its percentile bootstrap interval.

    Items are drawn with replacement, each with its entry of all arrays, so two systems on the same items are
    compared in pairs: `bootstrap(lambda a, b, y: f1(a, y) - f1(b, y), ours, theirs, answers)`. A value that
    the statistic takes nowhere cannot be an end. Draws that leave it undefined (nan) do not count. Of two
    units the draws are the one, the other or both, and the interval is marked as their range; of one there is
    none.

    Args:
      statistic: function of arrays, as many as follow, to a number.
      arrays: [N, ...] each.
      groups: [N] what items have in common, such as the passage of a question: whole groups are drawn.
      draws: how often the items are drawn anew.
      seed: of the draws.

    Raises:
      ValueError: for no items, arrays of different lengths, or groups that are not one an item.

    Source: Efron & Tibshirani 1993, An Introduction to the Bootstrap, chapter 13.
    """
    given = [np.asarray(x) for x in arrays]
    lengths = {x.shape[0] if x.ndim else None for x in given}
    if len(lengths) != 1 or None in lengths:
        raise ValueError(f"arrays must have one entry an item, [N, ...], got {[x.shape for x in given]}")
    units = _units(len(given[0]), groups)
    random, values = np.random.default_rng(seed), np.empty(draws)
    for i in range(draws):
        drawn = random.integers(len(units), size=len(units))
        index = drawn if groups is None else np.concatenate([units[j] for j in drawn])
        values[i] = float(statistic(*(x[index] for x in given)))
    return _percentiles(float(statistic(*given)), values, len(units))


def bootstrap_mean(
    x: ArrayLike, groups: ArrayLike | None = None, *, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Return the mean over items and its bootstrap interval: `bootstrap(np.mean, x)`, in one pass of NumPy.

    Args:
      x: [N] real numbers, for example two systems' differences on the same items.
      groups: as in `bootstrap`.
      draws: how often the items are drawn anew.
      seed: of the draws.
    """
    x = np.asarray(x, np.float64)
    if x.ndim != 1:
        raise ValueError(f"x must be one number an item, [N], got shape {x.shape}")
    units = _units(len(x), groups)
    totals = np.array([(x[unit].sum(), len(unit)) for unit in units]).T
    random, means = np.random.default_rng(seed), []
    rows = max(1, _AT_A_TIME // len(units))
    for at in range(0, draws, rows):
        drawn = random.integers(len(units), size=(min(rows, draws - at), len(units)))
        total, count = totals[:, drawn].sum(-1)
        means.append(total / count)
    return _percentiles(float(x.mean()), np.concatenate(means), len(units))


def share_interval(
    hits: ArrayLike, groups: ArrayLike | None = None, *, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Return the share of hits: with Wilson's interval of independent items, else bootstrapped over groups.

    Args:
      hits: [N] in [0, 1]: 1 for a hit, 0 for none, 0.5 for a tie.
      groups: [N] what items have in common, such as their passage; None, nothing.
      draws: of the bootstrap.
      seed: of the bootstrap.

    Raises:
      ValueError: for values outside [0, 1], or groups that are not one an item.
    """
    hits = np.asarray(hits, np.float64)
    if hits.ndim != 1 or not ((hits >= 0) & (hits <= 1)).all():
        raise ValueError(f"hits must be [N] from 0 to 1, got shape {hits.shape}: {hits}")
    if groups is None or not len(hits):
        return wilson_interval(float(hits.sum()), len(hits))
    return bootstrap_mean(hits, groups, draws=draws, seed=seed)


def win_rate(
    first: ArrayLike, second: ArrayLike, groups: ArrayLike | None = None, *, draws: int = DRAWS, seed: int = 0
) -> Interval:
    """Return the share of items on which `first` is the larger, ties half; its interval as `share_interval`.

    Args:
      first: [N] real numbers, none nan.
      second: [N], of the same items.
      groups: as in `share_interval`.
      draws: of the bootstrap.
      seed: of the bootstrap.
    """
    x, y = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if x.shape != y.shape or not (x == x).all() or not (y == y).all():
        raise ValueError(f"every item needs a number of both, none nan, got shapes {x.shape} and {y.shape}")
    # Of two infinite numbers the difference is nan; they are equal.
    return share_interval(0.5 + 0.5 * ((x > y) * 1.0 - (x < y)), groups, draws=draws, seed=seed)


def improvement_probability(first: ArrayLike, second: ArrayLike, *, seed: int = 0) -> Interval:
    """Return the chance that a run of `first` beats a run of `second`, mean over tasks, ties half.

    The interval is a stratified bootstrap: the runs of each system and each task are drawn apart.

    Args:
      first: [n] or [n, tasks] real numbers, more is better.
      second: [m] or [m, tasks]; its runs need not share seeds with the first's.
      seed: of the draws.

    Raises:
      ValueError: for other shapes, or tasks that differ in number.

    Source: Agarwal et al. 2021 (arXiv:2108.13264), section 4.3.
    """
    x, y = (np.asarray(z, np.float64) for z in (first, second))
    if x.ndim not in (1, 2) or x.ndim != y.ndim or x.shape[1:] != y.shape[1:] or not (x.size and y.size):
        raise ValueError(f"runs must be [n] or [n, tasks], of the same tasks, got {x.shape} and {y.shape}")
    x, y = x.reshape(len(x), -1), y.reshape(len(y), -1)
    random, shares, values = np.random.default_rng(seed), [], np.zeros(DRAWS)
    for ours, theirs in zip(x.T, y.T, strict=True):
        wins = 0.5 + 0.5 * np.sign(ours[:, None] - theirs)
        often, others = (random.multinomial(k, np.full(k, 1 / k), DRAWS) for k in wins.shape)
        shares.append(wins.mean())
        values += ((often @ wins) * others).sum(1) / wins.size / x.shape[1]
    return _percentiles(float(np.mean(shares)), values, len(x) + len(y) - 1)


def _units(items: int, groups: ArrayLike | None) -> list[np.ndarray]:
    """Return the indices of the items that are drawn together."""
    if not items:
        raise ValueError("a bootstrap needs at least one item, got none")
    if groups is None:
        return list(np.arange(items)[:, None])
    kinds = np.asarray(groups)
    if kinds.shape != (items,):
        raise ValueError(f"groups must be one an item, [{items}], got shape {kinds.shape}")
    label = np.unique(kinds, return_inverse=True)[1]
    return np.split(np.argsort(label, kind="stable"), np.cumsum(np.bincount(label))[:-1])


def _percentiles(value: float, values: np.ndarray, units: int) -> Interval:
    values = values[np.isfinite(values)]
    if units < 2 or not len(values) or not math.isfinite(value):
        return Interval(value, math.nan, math.nan, "none")
    low, high = np.percentile(values, [2.5, 97.5])
    return Interval(value, float(low), float(high), "range" if units == 2 else "bootstrap")
