"""Files that are written whole or not at all, and whose errors name them."""

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path

_discards = False
_LEFT = re.compile(r"\..+\.tmp(\d+)(\.\w+)?")
"""What `atomic_path` calls a file until it is whole."""


def discard_writes() -> None:
    """Let this process write nothing from now on, since another one of the same run does."""
    global _discards
    _discards = True


def writes() -> bool:
    """Return whether this process writes files."""
    return not _discards


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and move what was written there onto `path` at the end.

    A reader sees the old file or the whole new one. The data reach the disk before the name does, so a crash
    or a full disk leaves the old file; the temporary file is removed when the block raises.

    Raises:
      OSError: it could not be written; it names `path`.
    """
    path = Path(path)
    if _discards:
        with tempfile.TemporaryDirectory() as nowhere:
            yield Path(nowhere) / path.name
        return
    # The suffix stays, because writers such as matplotlib read the format from it.
    temporary = path.with_name(f".{path.stem}.tmp{os.getpid()}{path.suffix}")
    try:
        with named_shortage(path, instead_of=temporary):
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def named_shortage(path: str | os.PathLike, instead_of: Path | None = None) -> Iterator[None]:
    """Let an error of writing, such as that of a full disk, name the file, which Python leaves out.

    Args:
      path: the file.
      instead_of: another that the error may name.
    """
    try:
        yield
    except OSError as error:
        named = error.filename is not None and error.filename not in (instead_of, str(instead_of))
        if named or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, os.fspath(path)) from error


def sync(path: Path) -> None:
    """Let a file, or a folder with all files below it, reach the disk before what comes next."""
    for below in sorted(path.iterdir()) if path.is_dir() else ():
        sync(below)
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def remove_left_files(folder: Path) -> None:
    """Remove the unfinished files in a folder whose writers live no more."""
    for path in folder.rglob(".*.tmp*"):
        left = _LEFT.fullmatch(path.name)
        if left and path.is_file() and not is_running(int(left[1])):
            path.unlink(missing_ok=True)


def is_running(process: int) -> bool:
    """Return whether a process of this number lives on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
