"""Rows of token ids as arrays of one length, with masks that say what is padding."""

from collections.abc import Sequence

import numpy as np

from jaxrl_align.types import PaddedTokens


def left_pad(rows: Sequence[Sequence[int]], length: int, pad_token: int) -> PaddedTokens:
    """Return rows [N, length] whose tokens end at the right edge, as prompts do.

    Args:
      rows: token ids of each.
      length: of every row.
      pad_token: stands before them; the rows may hold it too, since the mask says what is padding.

    Raises:
      ValueError: for a row that is longer than `length`, or a padding token that is none.
    """
    return _pad(rows, length, pad_token, left=True)


def right_pad(rows: Sequence[Sequence[int]], length: int, pad_token: int) -> PaddedTokens:
    """Return rows [N, length] whose tokens begin at the left edge, as responses do; see `left_pad`."""
    return _pad(rows, length, pad_token, left=False)


def _pad(rows: Sequence[Sequence[int]], length: int, pad_token: int, *, left: bool) -> PaddedTokens:
    if not isinstance(pad_token, int | np.integer):
        raise ValueError(f"pad_token must be a token id; got {pad_token}; take the stop token, or any other")
    out, real = np.full((len(rows), length), pad_token, np.int32), np.zeros((len(rows), length), np.float32)
    for i, row in enumerate(rows):
        if len(row) > length:
            raise ValueError(
                f"row {i} has {len(row)} tokens, more than {length}; cut it or allow more tokens"
            )
        start = length - len(row) if left else 0
        out[i, start : start + len(row)] = row
        real[i, start : start + len(row)] = 1.0
    return PaddedTokens(out, real)  # type: ignore[arg-type]
