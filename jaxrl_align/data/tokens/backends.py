"""The `tokenizers` library at its edges: what it reads, and what it raises."""

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tokenizers

from jaxrl_align.typed import brief

MOST_GROWTH = 100
"""Characters that a tokenizer's replacements may make of one: few make more than one."""


def read_backend(path: str | Path) -> tokenizers.Tokenizer:
    """Read a `tokenizer.json`.

    Raises:
      ValueError: it cannot be read, or makes texts much longer.
    """
    with backend_errors(f"cannot read a tokenizer from {path}"):
        backend = tokenizers.Tokenizer.from_file(str(path))
    if (growth := max(_growth(backend.normalizer), _growth(backend.decoder))) > MOST_GROWTH:
        raise ValueError(
            f"{path} must not make texts more than {MOST_GROWTH} times longer; its Replace and Prepend steps "
            f"make one character {growth}"
        )
    # What a model was trained with may have cut and filled its texts; here the caller does.
    backend.no_padding()
    backend.no_truncation()
    return backend


def _growth(part: Any) -> int:
    """Return how many characters a normaliser's or decoder's steps, one after the other, make of one."""
    waiting, growth = [] if part is None else [json.loads(part.__getstate__())], 1
    while waiting:
        step = waiting.pop()
        if step.get("type") in ("Replace", "Prepend"):
            growth *= max(1, len(step.get("content") or step.get("prepend") or ""))
        waiting += step.get("normalizers") or step.get("decoders") or []
    return growth


@contextlib.contextmanager
def backend_errors(place: str) -> Iterator[None]:
    """Make a ValueError, which names a place, of what the tokenizers library raises within.

    That is bare `Exception`, and where its Rust panics an error that is no `Exception`.
    """
    try:
        yield
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise ValueError(f"{place}: {brief(error)}") from error
        raise
