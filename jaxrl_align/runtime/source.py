"""Which source a program runs from."""

import functools
import subprocess
from pathlib import Path


@functools.cache
def source_commit(file: Path = Path(__file__)) -> str | None:
    """Return the commit of the checkout that a file lies in, with a "+" where tracked files of it differ.

    None where none tracks the file (installed from a wheel), or without git.
    """

    def git(*words: str) -> str:
        told = subprocess.run(("git", "-C", file.parent, *words), capture_output=True, text=True, check=True)
        return told.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", file.name)
        return git("rev-parse", "HEAD") + ("+" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.CalledProcessError):
        return None
