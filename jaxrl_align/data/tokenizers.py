"""Byte-pair tokenizers with a padding and a stop token, on the `tokenizers` library."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

__all__ = ["Tokenizer", "left_pad", "right_pad", "train_bpe"]

PAD, STOP = "<pad>", "<stop>"


class Tokenizer:
    """Text to token ids and back; ids 0 and 1 are padding and stop, which no text encodes to."""

    pad_token = 0
    stop_token = 1

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        # Text that spells a special token is text: only code may write one.
        self._backend.encode_special_tokens = True

    @property
    def vocab_size(self) -> int:
        """Number of tokens, the two special ones included."""
        return self._backend.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Return the token ids of a text; none is unknown, since every byte is a token."""
        return self._backend.encode(text).ids

    def encode_batch(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the token ids of many texts."""
        return [encoding.ids for encoding in self._backend.encode_batch(list(texts))]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of token ids, without padding and stop."""
        return self._backend.decode([int(i) for i in ids], skip_special_tokens=True)

    def save(self, path: str | Path) -> None:
        """Write the tokenizer as a `tokenizer.json`."""
        self._backend.save(str(path))

    @classmethod
    def load(cls, path: str | Path) -> "Tokenizer":
        """Read a `tokenizer.json` that `save` wrote.

        Raises:
          ValueError: if the file cannot be read, or ids 0 and 1 are not `<pad>` and `<stop>`.
        """
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises bare Exception
            raise ValueError(f"cannot read a tokenizer from {path}: {error}") from error
        got = backend.id_to_token(0), backend.id_to_token(1)
        if got != (PAD, STOP):
            raise ValueError(f"tokens 0 and 1 of {path} must be {PAD} and {STOP}; got {got[0]} and {got[1]}")
        return cls(backend)


def train_bpe(texts: Sequence[str], vocab_size: int) -> Tokenizer:
    """Learn a byte-level byte-pair vocabulary (Sennrich et al. 2016, arXiv:1508.07909) from texts.

    Args:
      texts: what to learn from; the same texts give the same tokenizer.
      vocab_size: at least 258: 256 bytes, padding and stop.

    Raises:
      ValueError: for an empty corpus, a vocabulary below 258, or one that the corpus cannot fill.
    """
    if not any(text.strip() for text in texts):
        raise ValueError("the corpus is empty: a tokenizer needs text to learn from; give a file with text")
    if vocab_size < 258:
        raise ValueError(f"vocab_size must be at least 258 (256 bytes, padding, stop); got {vocab_size}")
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, STOP],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    if backend.get_vocab_size() < vocab_size:
        raise ValueError(
            f"the corpus fills a vocabulary of {backend.get_vocab_size()}; got vocab_size={vocab_size}; "
            "ask for less or give more text"
        )
    return Tokenizer(backend)


def left_pad(rows: Sequence[Sequence[int]], length: int, pad_token: int) -> np.ndarray:
    """Return rows [N, length] int32 whose tokens end at the right edge, as prompts do.

    Raises:
      ValueError: for a row that is longer than `length`.
    """
    return _pad(rows, length, pad_token, left=True)


def right_pad(rows: Sequence[Sequence[int]], length: int, pad_token: int) -> np.ndarray:
    """Return rows [N, length] int32 whose tokens begin at the left edge, as responses do.

    Raises:
      ValueError: for a row that is longer than `length`.
    """
    return _pad(rows, length, pad_token, left=False)


def _pad(rows: Sequence[Sequence[int]], length: int, pad_token: int, *, left: bool) -> np.ndarray:
    out = np.full((len(rows), length), pad_token, np.int32)
    for i, row in enumerate(rows):
        if len(row) > length:
            raise ValueError(
                f"row {i} has {len(row)} tokens, more than {length}; cut it or allow more tokens"
            )
        start = length - len(row) if left else 0
        out[i, start : start + len(row)] = row
    return out
