"""Metrics on the host: a JSON line for every step, and the memory that a process took."""

import json
import os
import re
import resource
import sys
from pathlib import Path

import numpy as np

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
