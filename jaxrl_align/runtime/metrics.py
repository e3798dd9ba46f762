"""Metrics on the host: a JSON line for every step."""

import json
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl_align.atomic import atomic_path, named_shortage, writes

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

    Raises:
      OSError: they could not be written; it names the file.
    """
    if not writes():
        return
    columns = {name: _to_lists(values) for name, values in history.items()}
    num_rows = max((len(column) for column in columns.values()), default=0)
    rows = ({"step": first_step + i} | {n: c[i] for n, c in columns.items()} for i in range(num_rows))
    with named_shortage(path), open(path, "a", encoding="utf-8") as file:
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
    lines = Path(path).read_bytes().split(b"\n")[:-1][:num_steps]
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
    try:
        return {name: _to_array([row[name] for row in rows]) for name in (rows[0] if rows else ())}
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{path} is damaged: its values are no numbers of one shape ({error})") from error


def recover_metrics(path: str | os.PathLike, num_steps: int, kinds: Mapping[str, Any]) -> History:
    """Read a run's first steps for its continuation, and drop the rows after them, which are taken again.

    Whole checkpoints are worth more than their metrics: where the file lacks rows, or holds damaged ones,
    those steps are nan, a warning says which, and the file is written anew.

    Args:
      path: the `metrics.jsonl`.
      num_steps: how many rows the checkpoint has behind it.
      kinds: name -> what has the shape and dtype of one step's metric.

    Returns:
      name -> [num_steps, ...] in the metrics' dtypes; float64 where whole numbers have lost a row.
    """
    path, rows, order = Path(path), {}, []
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    for line in lines:
        row = _parse_row(line)
        step = row.pop("step", None)
        fits = type(step) is int and 0 <= step < num_steps and _fits(row, kinds)
        order.append(step if fits else None)
        if fits:
            rows[step] = row
    history = {name: _fill(rows, name, num_steps, kind) for name, kind in kinds.items()}
    if order[:num_steps] == list(range(num_steps)):
        if writes():
            os.truncate(path, sum(len(line) + 1 for line in lines[:num_steps]))
        return history
    if lost := sorted(set(range(num_steps)) - rows.keys()):
        warnings.warn(
            f"{path}: the metrics of {_name_ranges(lost)} are lost, and read as nan from here on; the "
            "checkpoint is whole, and the run goes on from it",
            stacklevel=3,
        )
    with atomic_path(path) as temporary:
        append_metrics(temporary, 0, history)
    return history


def _fits(row: dict, kinds: Mapping[str, Any]) -> bool:
    """Return whether a row holds the run's metrics, every one a number, or null, or lists of them."""
    try:
        return row.keys() == kinds.keys() and all(_is_value(row[name], kinds[name]) for name in kinds)
    except (TypeError, ValueError, OverflowError):
        return False


def _is_value(value: Any, kind: Any) -> bool:
    array = np.array(value, np.float64)
    if np.dtype(kind.dtype).kind in "biu":
        known = array[~np.isnan(array)]
        with np.errstate(invalid="ignore"):
            if (known != known.astype(kind.dtype)).any():
                return False
    return array.shape == kind.shape


def _fill(rows: Mapping[int, dict], name: str, num_steps: int, kind: Any) -> np.ndarray:
    values = np.full((num_steps, *kind.shape), np.nan)
    for step, row in rows.items():
        values[step] = np.array(row[name], np.float64)
    lost = np.dtype(kind.dtype).kind in "biu" and np.isnan(values).any()
    return values if lost else values.astype(kind.dtype)


def _name_ranges(steps: list[int]) -> str:
    """Return rising step numbers in words: "steps 3 to 5, 9"."""
    ranges: list[list[int]] = []
    for step in steps:
        if ranges and step == ranges[-1][1] + 1:
            ranges[-1][1] = step
        else:
            ranges.append([step, step])
    shown = ", ".join(str(low) if low == high else f"{low} to {high}" for low, high in ranges[:5])
    return f"steps {shown}" + (", and more" if len(ranges) > 5 else "")


def _parse_row(line: bytes) -> dict:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return row if isinstance(row, dict) else {}


def _to_array(column: list) -> np.ndarray:
    array = np.array(column)
    if array.dtype == object:
        array = array.astype(np.float64)
    if array.dtype.kind not in "biuf":
        raise ValueError(f"got {array.dtype}")
    return array
