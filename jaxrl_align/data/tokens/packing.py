"""Documents side by side in rows of one length, so that little of a batch is padding."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Packed(NamedTuple):
    """Rows of documents, each leaf [N, L] int32."""

    tokens: np.ndarray
    """0 where padded."""
    segments: np.ndarray
    """Number of each token's document within its row, from 1 on; 0 for padding."""


def pack(documents: Sequence[Sequence[int]], length: int) -> Packed:
    """Put documents into rows: longest first, each into the fullest row that it still fits (best fit).

    A document longer than a row is cut into pieces that do not see each other.

    Args:
      documents: token ids of each.
      length: L, tokens a row.

    Raises:
      ValueError: if there is no document, one is empty, or `length` is below 2.
    """
    if length < 2:
        raise ValueError(f"length must be at least 2, because a first token predicts nothing; got {length}")
    if not len(documents):
        raise ValueError("there must be at least one document; got none")
    pieces = []
    for number, document in enumerate(documents):
        if not len(document):
            raise ValueError(f"document {number} is empty; leave it out")
        pieces += [document[i : i + length] for i in range(0, len(document), length)]
    rows: list[list[Sequence[int]]] = []
    with_room: dict[int, list[int]] = {}
    for piece in sorted(pieces, key=len, reverse=True):
        room = next((r for r in range(len(piece), length) if with_room.get(r)), None)
        if room is None:
            room = length
            rows.append([])
            with_room.setdefault(length, []).append(len(rows) - 1)
        row = with_room[room].pop()
        rows[row].append(piece)
        with_room.setdefault(room - len(piece), []).append(row)
    tokens, segments = np.zeros((2, len(rows), length), np.int32)
    for i, packed in enumerate(rows):
        flat = np.concatenate([np.asarray(piece, np.int32) for piece in packed])
        tokens[i, : len(flat)] = flat
        segments[i, : len(flat)] = np.repeat(np.arange(1, len(packed) + 1), [len(p) for p in packed])
    return Packed(tokens, segments)
