"""Token files larger than memory: written piece by piece, read through the page cache.

write_tokens("train.npy", (tokenizer.encode(line) for line in lines), vocab_size=tokenizer.vocab_size)
tokens = open_tokens("train.npy", vocab_size=tokenizer.vocab_size)
"""

import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxrl_align.atomic import atomic_path
from jaxrl_align.data.batches import HostBatches

# Only what describes an array of plain numbers: NumPy's own reader evaluates the header as Python's literals.
_HEADER = re.compile(
    rb"\{\s*'descr':\s*'([<>|=]?[a-zA-Z]\d{1,3})',\s*'fortran_order':\s*(?:True|False),\s*"
    rb"'shape':\s*\(([\d, ]{0,200})\)\s*,?\s*\}\s*"
)


def write_tokens(path: str | Path, pieces: Iterable[Sequence[int]], *, vocab_size: int) -> int:
    """Write pieces of text, as tokens, one behind the other into a `.npy` file of 16 or 32 bits each.

    The file appears under its name only when it is whole.

    Args:
      path: the file, replaced if it is there.
      pieces: token ids; one piece at a time is in memory.
      vocab_size: above every id.

    Returns:
      The number of tokens.

    Raises:
      ValueError: an id is out of range or no whole number, or there are no tokens.
    """
    path, count = Path(path), 0
    dtype = np.dtype("<u2" if vocab_size <= 2**16 else "<i4")
    header = {"descr": dtype.str, "fortran_order": False}
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.lib.format.write_array_header_1_0(file, header | {"shape": (0,)})
        for piece in pieces:
            tokens = np.asarray(piece)
            if tokens.size and tokens.dtype.kind not in "iu":
                raise ValueError(f"tokens must be whole numbers; got {tokens.dtype}; encode the text first")
            if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocab_size:
                raise ValueError(
                    f"tokens must be from 0 to {vocab_size - 1}; got {tokens.min()} to {tokens.max()}"
                )
            file.write(tokens.astype(dtype).tobytes())
            count += tokens.size
        if not count:
            raise ValueError(f"nothing to write to {path}: the pieces hold no tokens; give some text")
        # The header keeps room for a longer shape, so that it can be written again in place.
        file.seek(0)
        np.lib.format.write_array_header_1_0(file, header | {"shape": (count,)})
    return count


def open_tokens(path: str | Path, *, vocab_size: int) -> np.ndarray:
    """Return a file's tokens [N] as a memory map: read where they are used, never as a whole.

    Args:
      path: of `write_tokens`, or any `.npy` file of integers [N].
      vocab_size: of the model; the first and the last million tokens are checked against it.

    Raises:
      ValueError: there is no such file, it is not a `.npy` file, it is shorter than its header says, or it
        does not hold token ids.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"the tokens must be a .npy file; found none at {path}; make one with write_tokens")
    try:
        dtype, shape, start = _read_header(path)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is truncated or no .npy file ({error}); write it again with write_tokens"
        ) from error
    if len(shape) != 1 or dtype.kind not in "iu" or not shape[0]:
        raise ValueError(f"{path} must hold integer tokens [N]; got {dtype} {list(shape)}")
    tokens = np.memmap(path, dtype, "r", start, shape)
    for part in (tokens[:1_000_000], tokens[-1_000_000:]):
        if not 0 <= part.min() <= part.max() < vocab_size:
            raise ValueError(
                f"tokens in {path} must be from 0 to {vocab_size - 1}; got {part.min()} to {part.max()}; "
                "was another tokenizer used?"
            )
    return tokens


def _read_header(path: Path) -> tuple[np.dtype, tuple[int, ...], int]:
    """Return element type, shape and where the elements begin; TypeError for a type unknown to NumPy."""
    with open(path, "rb") as file:
        magic = file.read(8)
        if magic[:6] != b"\x93NUMPY" or magic[6:7] not in (b"\1", b"\2", b"\3"):
            raise ValueError(f"its first bytes are {magic[:6]!r}")
        length = int.from_bytes(file.read(2 if magic[6] == 1 else 4), "little")
        header = file.read(min(length, 10_000))
        start = file.tell()
    found = _HEADER.fullmatch(header)
    if found is None or len(header) < length:
        raise ValueError(f"its header of {length} bytes describes no array of numbers, {header[:60]!r}")
    dtype = np.dtype(found[1].decode())
    shape = tuple(int(size) for size in found[2].replace(b",", b" ").split())
    wanted, there = math.prod(shape) * dtype.itemsize, path.stat().st_size - start
    if wanted > there:
        raise ValueError(f"its header promises {wanted} bytes; {there} follow")
    return dtype, shape, start


def stream_rows(tokens: np.ndarray, *, batch_size: int, length: int, seed: int) -> HostBatches:
    """Return `(first_step, steps) -> [steps, batch_size, length + 1]`, random windows of a text on the host.

    The windows of a step are a function of the seed and the step's number alone, so that a run that goes on
    after an interruption reads what it would have read. With `rows=slice(start, stop)` those windows of each
    batch alone are read.

    Args:
      tokens: [N], for example a memory map.
      batch_size: windows per step.
      length: tokens that are read per window; one more is predicted.
      seed: another seed reads other windows.

    Raises:
      ValueError: if the text is shorter than one window, or `batch_size` below 1.
    """
    if len(tokens) < length + 1:
        raise ValueError(
            f"the text must hold at least one window of {length + 1} tokens; got {len(tokens)}; "
            "give more text or a shorter context"
        )

    def read(first_step: int, steps: int, rows: slice) -> np.ndarray:
        starts = [
            np.random.default_rng((seed, step)).integers(0, len(tokens) - length, batch_size)[rows]
            for step in range(first_step, first_step + steps)
        ]
        return np.asarray(tokens[np.stack(starts)[..., None] + np.arange(length + 1)], np.int32)

    return HostBatches(batch_size, read)
