"""JSONL files larger than memory: a row is found by its place in the file, and batches are shuffled rows.

lines = open_jsonl(["part-0.jsonl", "part-1.jsonl"])
batches = stream_jsonl(lines, encode, batch_size=32, seed=0)    # encode(row's fields) -> tree of arrays
"""

import os
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import numpy as np

from jaxrl_align.data.batches import HostBatches, row_places, shuffled_rows
from jaxrl_align.data.files import parse_row
from jaxrl_align.typed import one_line


class LineIndex(NamedTuple):
    """Where the rows of a file begin."""

    path: Path
    starts: np.ndarray
    """[rows + 1] int64 byte of each line that is not blank, and the file's size."""
    changed: int
    """When the file was last changed, in nanoseconds."""


@dataclass(frozen=True, eq=False)
class JsonLines:
    """The rows of JSONL files, one file behind the other: `len(lines)`, and `lines.read(rows, parse)`."""

    files: tuple[LineIndex, ...]

    def __len__(self) -> int:
        """Return the number of rows of all files."""
        return sum(len(index.starts) - 1 for index in self.files)

    def read(self, rows: Sequence[int] | np.ndarray, parse: Callable[[dict[str, Any]], Any]) -> list[Any]:
        """Return what `parse(fields)` makes of some rows, of which each file gives its own in one go.

        Args:
          rows: numbers from 0 to `len(lines)` - 1, in any order.
          parse: is given the fields of a row that are not null.

        Raises:
          ValueError: with file and line, a row is no JSON object in UTF-8, or `parse` raises ValueError,
            a lookup, type or attribute error; or a file has changed since its rows were found.
          OSError: a file cannot be read.
        """
        ends = np.cumsum([len(index.starts) - 1 for index in self.files])
        rows = np.asarray(rows, np.int64)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise ValueError(f"rows must be from 0 to {len(self) - 1}; got {rows.min()} to {rows.max()}")
        owner, values = np.searchsorted(ends, rows, side="right"), [None] * len(rows)
        for number in np.unique(owner):
            index = self.files[number]
            local = rows - (ends[number] - (len(index.starts) - 1))
            mine = np.flatnonzero(owner == number)
            with open(index.path, "rb") as file:
                _check_unchanged(file, index)
                for i in mine[np.argsort(local[mine], kind="stable")]:
                    values[i] = _read_row(file, index, int(local[i]), parse)
        return values


def _check_unchanged(file: BinaryIO, index: LineIndex) -> None:
    now, size = os.fstat(file.fileno()), index.starts[-1]
    if now.st_size != size:
        raise ValueError(_changed(index.path, f"it had {size:,} bytes and has {now.st_size:,}"))
    if now.st_mtime_ns != index.changed:
        raise ValueError(_changed(index.path, "it was written again"))


def _changed(path: Path, how: str) -> str:
    return f"{path} must stay as it is while its rows are read; {how}; find them again with open_jsonl"


def _read_row(file: BinaryIO, index: LineIndex, row: int, parse: Callable[[dict[str, Any]], Any]) -> Any:
    start, end = (int(place) for place in index.starts[row : row + 2])
    file.seek(start)
    line = file.read(end - start)
    if len(line) < end - start:
        raise ValueError(_changed(index.path, f"a row had {end - start} bytes and has {len(line)}"))
    try:
        return parse(parse_row(line.strip()))
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        said = str(error) if isinstance(error, ValueError) else f"encoding the row raised {error!r}"
        raise ValueError(f"{_place(index.path, start)}: {one_line(said)}") from error


def _place(path: Path, start: int) -> str:
    """Return `file:line` of a byte, whose number is counted only where it is needed."""
    number = 1
    with open(path, "rb") as file:
        while start > 0 and (piece := file.read(min(start, 2**20))):
            number += piece.count(b"\n")
            start -= len(piece)
    return f"{path}:{number}"


def open_jsonl(paths: str | Path | Sequence[str | Path]) -> JsonLines:
    """Find the rows of one or several JSONL files: their places alone are kept, in 8 bytes a row.

    Args:
      paths: of files that are not compressed, in the order in which their rows count; blank lines are none.

    Raises:
      ValueError: a file is missing or compressed, or no file holds a row.
      OSError: a file cannot be read.
    """
    named = [Path(path) for path in ([paths] if isinstance(paths, str | Path) else paths)]
    lines = JsonLines(tuple(_find_rows(path) for path in named))
    if not len(lines):
        first = f"{named[0]} holds none" if named else "no file is named"
        raise ValueError(f"JSONL files must hold a row; {first}; write one JSON object a line")
    return lines


def _find_rows(path: Path) -> LineIndex:
    if not path.is_file():
        raise ValueError(f"rows must be in a JSONL file; found none at {path}; check the path")
    starts, place = array("q"), 0
    with open(path, "rb") as file:
        if path.suffix == ".gz" or file.read(2) == b"\x1f\x8b":
            raise ValueError(f"{path} is compressed, and rows cannot be sought in it; unpack it with gunzip")
        file.seek(0)
        changed = os.fstat(file.fileno()).st_mtime_ns
        for line in file:
            if not line.isspace():
                starts.append(place)
            place += len(line)
    starts.append(place)
    return LineIndex(path, np.frombuffer(starts, np.int64), changed)


def stream_jsonl(
    lines: JsonLines, encode: Callable[[dict[str, Any]], Any], *, batch_size: int, seed: int
) -> HostBatches:
    """Return batches of encoded rows, `(first_step, steps) -> tree of arrays [steps, batch_size, ...]`.

    Every row is read once an epoch, in an order of the epoch's own; a batch may reach over an epoch's end.
    Which rows a step reads is a function of the seed and the step's number (`data.shuffled_rows`), so that a
    run that goes on reads what it would have read, and any number of processes read the same batches.

    A row is read from where it lies. Measured on 200 MB in 912,337 rows of 28 tokens, in the page cache: rows
    found in 0.3 s; 78,000 rows a second of the processor shuffled, 149,000 in the file's order by a plain
    loop; 10 MiB of memory, of which 7 are the rows' places.

    Args:
      lines: of `open_jsonl`; equal on all processes.
      encode: `fields -> tree of arrays`, of one structure, with the shapes and types of the first row's, of a
        row's fields that are not null.
      batch_size: rows per step.
      seed: from 0 on; another seed reads in other orders.

    Raises:
      ValueError: `batch_size` or the seed is out of range; with file and line, at once for the first row and
        later for another, a row is no JSON object, `encode` refuses it, or makes other arrays of it than of
        the first row; the files have changed.
    """
    if seed < 0:
        raise ValueError(f"seed must be at least 0; got {seed}")
    arrays = lambda fields: _flatten(encode(fields))
    ((_, form),) = lines.read([0], arrays)

    def encode_alike(fields: dict[str, Any]) -> list[np.ndarray]:
        leaves, own = arrays(fields)
        if own != form:
            raise ValueError(
                f"encode must make the same arrays of every row: {form} as of the first; got {own}"
            )
        return leaves

    def read(first_step: int, steps: int, rows: slice) -> Any:
        places = row_places(first_step, steps, batch_size, rows)
        chosen = shuffled_rows(places.ravel(), num_rows=len(lines), seed=seed)
        columns = zip(*lines.read(chosen, encode_alike), strict=True)
        batch = [np.stack(column).reshape(*places.shape, *column[0].shape) for column in columns]
        return form.structure.unflatten(batch)

    return HostBatches(batch_size, read)


class _Form(NamedTuple):
    """What is alike in all rows."""

    structure: Any
    arrays: list[tuple[np.dtype, tuple[int, ...]]]

    def __str__(self) -> str:
        arrays = ", ".join(f"{dtype}{list(shape)}" for dtype, shape in self.arrays)
        return f"{one_line(str(self.structure), 60)} of {arrays}"


def _flatten(tree: Any) -> tuple[list[np.ndarray], _Form]:
    leaves, structure = jax.tree.flatten(tree)
    arrays = [np.asarray(leaf) for leaf in leaves]
    if not arrays:
        raise ValueError(f"encode must return a tree of arrays; got {tree!r}")
    return arrays, _Form(structure, [(array.dtype, array.shape) for array in arrays])
