"""Text to train on: what every Python installation carries, or a file of the user's own."""

import re
from pathlib import Path
from pydoc_data.topics import topics

from jaxrl_align.data.files import DataFile, find_file

TINY_SHAKESPEARE = DataFile(
    "text/tinyshakespeare.txt",
    "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt",
    "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
)


def python_topics() -> str:
    """Return CPython's own language reference, about 465 kB of English that every machine has."""
    return "\n\n".join(topics[name] for name in sorted(topics))


def tiny_shakespeare() -> str:
    """Return 1,115,394 characters of Shakespeare's plays, Karpathy's selection (MIT licence).

    Raises:
      FileNotFoundError, ImportError: the file is nowhere and cannot be fetched; see `data.files.find_file`.
    """
    return read_text(find_file(TINY_SHAKESPEARE))


def read_text(path: str | Path) -> str:
    """Read a UTF-8 text file, without the mark that some programs put before it.

    Raises:
      ValueError: if there is no such file, it is not UTF-8, or it holds nothing but white space.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"the corpus must be a text file; found none at {path}; give the path of one")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"the corpus must be UTF-8; {path} is not ({error.reason}); convert it") from error
    if not text.strip():
        raise ValueError(f"the corpus is empty: {path} holds no text; give a file with text")
    return text


def paragraphs(text: str) -> list[str]:
    """Cut text at blank lines into paragraphs on one line each, without rules of punctuation or repeats."""
    found = []
    for block in re.split(r"\n\s*\n", text):
        lines = (line.strip() for line in block.splitlines())
        joined = " ".join(line for line in lines if re.search(r"\w", line))
        if joined := re.sub(r"\s+", " ", joined):
            found.append(joined)
    return list(dict.fromkeys(found))


def sentences(blocks: list[str]) -> list[str]:
    """Return the sentences of paragraphs: from a capital letter to a full stop, without repeats."""
    parts = (part for block in blocks for part in re.split(r"(?<=[.!?])\s+(?=[A-Z\"*])", block))
    return list(
        dict.fromkeys(part for part in parts if re.fullmatch(r"[A-Z].*\.", part) and "::" not in part)
    )
