"""What a fuzzer needs to know of a reader: a good input, and how a user reads it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple


class Reader(NamedTuple):
    """One way in for bytes that somebody else wrote."""

    name: str
    write: Callable[[Path], None]
    """Writes a small good input into an empty folder: one file or several."""
    read: Callable[[Path], Any]
    """Reads the folder as users do. Whatever bytes lie in it, the answer is a value or a one-line
    `ValueError` or `OSError` that names a file, within seconds, and within ten times the bytes read."""
    complain: Callable[[Any], str | None] = lambda value: None
    """What is wrong with a value that was returned, such as a width of -1, or None."""
    hostile: tuple[Any, ...] = ()
    """Inputs known to be bad: each a mapping of file names to bytes, laid over the good input."""
