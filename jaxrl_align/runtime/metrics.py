"""Metrics on the host: a JSON line for every step, and the interval around a mean over seeds."""

import functools
import json
import math
import os
import re
import resource
import sys
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

METRICS_FILE = "metrics.jsonl"

History = dict[str, np.ndarray]
"""Metrics by name, each [steps, ...]."""


def append_metrics(path: str | os.PathLike, first_step: int, history: History, *, sync: bool = False) -> None:
    """Append one JSON object per step, `{"step": 0, "loss": 1.5, ...}`, to the file at `path`.

    A metric with member axes becomes a list over the members. Floats are written with all the digits that
    bring the same float32 back; a value that is not finite becomes null, because JSON has no other word for
    it.

    Args:
      path: the `metrics.jsonl`; created when missing.
      first_step: the index of the first row.
      history: name -> [n, ...], the rows to append.
      sync: wait until the disk holds them.
    """
    columns = {name: _to_lists(values) for name, values in history.items()}
    num_rows = max((len(column) for column in columns.values()), default=0)
    rows = ({"step": first_step + i} | {n: c[i] for n, c in columns.items()} for i in range(num_rows))
    with open(path, "a", encoding="utf-8") as file:
        file.write("".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
        if sync:
            file.flush()
            os.fsync(file.fileno())


def _to_lists(values: np.ndarray) -> list:
    if values.dtype.kind in "biu":
        return values.tolist()
    values = values.astype(np.float64)
    numbers = values.astype(object)
    numbers[~np.isfinite(values)] = None
    return numbers.tolist()


def read_metrics(path: str | os.PathLike, num_steps: int | None = None) -> History:
    """Read a `metrics.jsonl` back: name -> [steps, ...] float64 (or int, bool), null as nan.

    Args:
      path: a file that `append_metrics` wrote.
      num_steps: read only this many rows; None reads every whole line.

    Raises:
      ValueError: the file has fewer rows than `num_steps`, or a row is damaged.
    """
    lines = Path(path).read_text(encoding="utf-8").split("\n")[:-1][:num_steps]
    if num_steps is not None and len(lines) < num_steps:
        raise ValueError(
            f"{path} holds {len(lines)} steps, expected {num_steps}; pass --out with a new folder"
        )
    rows: list[dict] = []
    for step, line in enumerate(lines):
        row = _parse_row(line)
        if row.pop("step", None) != step or row.keys() != (rows[0] if rows else row).keys():
            raise ValueError(f"{path} is damaged at line {step + 1}; pass --out with a new folder")
        rows.append(row)
    return {name: _to_array([row[name] for row in rows]) for name in (rows[0] if rows else ())}


def cut_metrics(path: str | os.PathLike, num_steps: int) -> None:
    """Drop every row after the first `num_steps`: the steps that no checkpoint covers are taken again."""
    path = Path(path)
    if not path.exists():
        return
    with open(path, "rb+") as file:
        for _ in range(num_steps):
            file.readline()
        file.truncate(file.tell())


def _parse_row(line: str) -> dict:
    try:
        row = json.loads(line)
    except ValueError:
        return {}
    return row if isinstance(row, dict) else {}


def _to_array(column: list) -> np.ndarray:
    array = np.array(column)
    return array.astype(np.float64) if array.dtype == object else array


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


def interquartile_mean(x: ArrayLike) -> tuple[float, float, float]:
    """Return the mean of the middle half of `n` members and its 95% bootstrap interval: (mean, low, high).

    A quarter of the members is dropped at each end, a fraction of a member with its weight, so one seed that
    failed moves it little (Agarwal et al. 2021). The interval is the 2.5% and 97.5% percentile over 10,000
    resamplings of the members, drawn from a fixed seed.

    Args:
      x: [n] real numbers, one for each independent member.

    Raises:
      ValueError: x is empty or not one-dimensional.
    """
    x = np.asarray(x, np.float64)
    if x.ndim != 1 or not x.size:
        raise ValueError(f"expected at least one member in an array [n], got shape {x.shape}")
    n = x.size
    inside = np.minimum(np.arange(1, n + 1), 0.75 * n) - np.maximum(np.arange(n), 0.25 * n)
    weight = np.maximum(inside, 0.0) / (0.5 * n)
    draws = np.random.default_rng(0).integers(n, size=(10_000, n))
    low, high = np.percentile(np.sort(x[draws], axis=1) @ weight, [2.5, 97.5])
    return float(np.sort(x) @ weight), float(low), float(high)


def mean_text(x: ArrayLike, spec: str = ".1f") -> str:
    """Return the mean over members and the half-width of its 95% interval as text, "421.3 +- 8.4".

    Args:
      x: [n] real numbers, one for each independent member.
      spec: the mean's format, with a sign or a width as in "+6.2f"; the half-width has its precision alone.
    """
    mean, half_width = mean_interval(x)
    return f"{mean:{spec}} +- {half_width:.{spec.partition('.')[2]}}"


def interquartile_text(x: ArrayLike, spec: str = ".1f") -> str:
    """Return the interquartile mean of members [n] and its interval as text, "36.3 [28.3, 48.5]"."""
    mean, low, high = interquartile_mean(x)
    return f"{mean:{spec}} [{low:{spec}}, {high:{spec}}]"


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


def peak_memory() -> int:
    """Return the largest resident size in bytes that this process has had.

    Linux: its own. Elsewhere it may include what the parent held when it started this process, as `getrusage`
    counts it.
    """
    status = Path("/proc/self/status")
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text(encoding="ascii"))):
        return 1024 * int(found[1])
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
