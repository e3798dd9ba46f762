"""When a run is saved, and which of its checkpoints are kept."""

import time
import warnings
from typing import Any

import numpy as np

from jaxrl_align.runtime import checkpoint
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.metrics import History

BEST_FILE = "best.json"
LONG_CHUNK = 120.0
"""Seconds of a chunk from which on it is warned of: only between chunks a run can be saved."""
SHARE = 30
"""A save by time waits at least so many times as long as the last one took: of 4 seconds, two minutes."""


class Keeper:
    """The checkpoints of a run that goes on.

    Args:
      folder: of the run; None keeps nothing.
      every: steps between checkpoints, beside those by time; None for none.
    """

    def __init__(self, folder: RunFolder | None, every: int | None) -> None:
        self._folder, self._every = folder, every
        self._saved = self._seen = time.monotonic()
        self._cost, self._warned = 0.0, False

    def is_due(self, done: int, end: int) -> bool:
        """Return whether to save after a chunk, the steps from `done` to `end`."""
        if self._folder is None:
            return False
        now, minutes = time.monotonic(), self._folder.upkeep.minutes
        if now - self._seen > LONG_CHUNK and end - done > 1:
            warnings.warn(
                f"a chunk of {end - done} steps took {now - self._seen:.0f} s, and nothing is saved within "
                "one; a smaller chunk loses less to an interruption",
                stacklevel=3,
            )
        self._seen = now
        by_steps = self._every is not None and end // self._every > done // self._every
        return by_steps or (minutes > 0 and now - self._saved >= max(60 * minutes, SHARE * self._cost))

    def save(self, end: int, state: Any, metrics: History) -> None:
        """Write a checkpoint, remove those that are not to be kept, and note the best.

        Args:
          end: steps that the state has behind it.
          state: the run's.
          metrics: of the chunk that has just ended, each [steps, ...].

        Raises:
          OSError: it could not be written; the checkpoints before it are untouched.
        """
        if self._folder is None:
            return
        begin, path, upkeep = time.monotonic(), self._folder.path, self._folder.upkeep
        if upkeep.best is not None and upkeep.best not in metrics and not self._warned:
            self._warned = True
            warnings.warn(
                f"keep_best={upkeep.best} is no metric of {path}, whose best checkpoint is not told; it has "
                f"{', '.join(sorted(metrics))}",
                stacklevel=4,
            )
        was = read_best(self._folder)
        best = was if upkeep.best is None else _choose(upkeep.best, was, end, metrics)
        spare = [found["step"] for found in (was, best) if found is not None]
        checkpoint.save(path, end, state, self._folder.config, keep=upkeep.keep, spare=spare)
        if best != was:
            self._folder.write_json(BEST_FILE, best)
        self._saved = time.monotonic()
        self._cost = self._saved - begin


def read_best(folder: RunFolder) -> dict[str, Any] | None:
    """Return `{"metric", "step", "value"}` of the best checkpoint that a run keeps, or None."""
    try:
        best = folder.read_json(BEST_FILE)
        whole = isinstance(best["metric"], str) and np.isfinite(best["value"])
        return best if whole and checkpoint.has_step(folder.path, best["step"]) else None
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


_LESS_IS_BETTER = ("loss", "error", "perplexity", "nats", "kl")
"""What the name of a metric holds whose least value is its best."""


def _choose(name: str, was: dict[str, Any] | None, end: int, metrics: History) -> dict[str, Any] | None:
    """Return the better one of the best so far and a checkpoint at `end`, by the mean over its chunk."""
    if name not in metrics:
        return was
    values = np.asarray(metrics[name], np.float64)
    values = values[np.isfinite(values)]
    if not len(values):
        return was
    value, less = float(values.mean()), any(word in name for word in _LESS_IS_BETTER)
    if was is not None and was["metric"] == name and was["step"] <= end:
        stands = was["value"] <= value if less else was["value"] >= value
        if stands:
            return was
    return {"metric": name, "step": end, "value": value}
