"""Batches on the host of which a process reads its own rows alone, and the order of rows that are read often.

batches = HostBatches(32, read)        # read(first step, steps, rows) -> tree of arrays [steps, rows, ...]
batches(100, 10)                       # the batches of steps 100 to 109, whole
batches(100, 10, rows=slice(8, 16))    # rows 8 to 15 of each, from what those need of the disk
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

_ROUNDS = 16
"""Of the permutation. With 8, some orders of 5 rows are commoner than others (chi-squared test on 20,000
epochs, p < 1e-18); with 16, tests of positions, pairs and orders of 2 to 50 rows found nothing."""
_GAMMA, _FIRST, _SECOND = (np.uint64(x) for x in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


@dataclass(frozen=True)
class HostBatches:
    """Batches of a fixed number of rows as a function of the step: what `runtime.loop.run(batches=)` reads.

    Raises:
      ValueError: `batch_size` is below 1, or in a call `rows` are no slice of a batch.
    """

    batch_size: int
    """Rows of a batch, those of all processes together."""
    read: Callable[[int, int, slice], Any]
    """`(first step, steps, rows) -> tree of arrays [steps, number of rows, ...]`, a function of its arguments
    alone. What it gives for some rows is to the bit what it gives for them among all."""

    def __post_init__(self) -> None:
        """Check the size."""
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {self.batch_size}")

    def __call__(self, first_step: int, steps: int, rows: slice | None = None) -> Any:
        """Return the rows of so many batches from a step on; None for all rows."""
        return self.read(first_step, steps, self._bounded(slice(None) if rows is None else rows))

    def _bounded(self, rows: slice) -> slice:
        start = 0 if rows.start is None else rows.start
        stop = self.batch_size if rows.stop is None else rows.stop
        if rows.step not in (None, 1) or not 0 <= start < stop <= self.batch_size:
            raise ValueError(
                f"rows must be a slice with 0 <= start < stop <= batch_size={self.batch_size}; got "
                f"slice({rows.start}, {rows.stop}, {rows.step}); more processes need larger batches"
            )
        return slice(start, stop)


def row_places(first_step: int, steps: int, batch_size: int, rows: slice) -> np.ndarray:
    """Return where rows of batches stand among all that are ever read, [steps, number of rows] from 0 on."""
    return (first_step + np.arange(steps))[:, None] * batch_size + np.arange(rows.start, rows.stop)


def shuffled_rows(places: ArrayLike, *, num_rows: int, seed: int) -> np.ndarray:
    """Return which rows of a data set are read at some places of an endless reading.

    Every epoch, `num_rows` places from a multiple of it on, reads each row once, in an order of its own. A
    row is computed from its place alone, so that no process keeps an order, or needs to have read before it.

    Args:
      places: [...] integers from 0 on.
      num_rows: of the data set, 1 or more.
      seed: from 0 on; another seed gives other orders.

    Returns:
      [...] int64 from 0 to `num_rows` - 1.

    Raises:
      ValueError: the seed is negative, or there is no row.

    Source: Black and Rogaway, "Ciphers with arbitrary finite domains", 2002: Feistel rounds on a grid, and
    walking on where they lead beyond the last row; the function of a round is that of SplitMix64.
    """
    if seed < 0 or num_rows < 1:
        raise ValueError(
            f"seed must be at least 0 and num_rows at least 1; got seed={seed}, num_rows={num_rows}"
        )
    places = np.asarray(places, np.int64)
    epochs, cells = np.divmod(places.ravel(), num_rows)
    which, inverse = np.unique(epochs, return_inverse=True)
    # NumPy promises that SeedSequence stays the same in later versions; of its generators it does not.
    keys = [np.random.SeedSequence([seed, int(epoch)]).generate_state(_ROUNDS, np.uint64) for epoch in which]
    keys = np.reshape(keys, (-1, _ROUNDS))[inverse]
    cells, outside = cells.astype(np.uint64), np.arange(cells.size)
    while outside.size:
        cells[outside] = _permute_cells(cells[outside], keys[outside], num_rows)
        outside = outside[cells[outside] >= num_rows]
    return cells.astype(np.int64).reshape(places.shape)


def _permute_cells(cells: np.ndarray, keys: np.ndarray, num_rows: int) -> np.ndarray:
    """Permute the cells [n] of a grid a little larger than the rows, under keys [n, rounds]."""
    columns = math.isqrt(num_rows - 1) + 1
    # Cycles of even length are odd permutations: without any, half of all permutations would be missing.
    columns += columns % 2
    height, width = np.uint64(-(-num_rows // columns)), np.uint64(columns)
    column, line = np.divmod(cells, height)
    for i in range(0, _ROUNDS, 2):
        column = (column + _scramble(keys[:, i] + line * _GAMMA)) % width
        line = (line + _scramble(keys[:, i + 1] + column * _GAMMA)) % height
    return column * height + line


def _scramble(words: np.ndarray) -> np.ndarray:
    words = (words ^ (words >> np.uint64(30))) * _FIRST
    words = (words ^ (words >> np.uint64(27))) * _SECOND
    return words ^ (words >> np.uint64(31))
