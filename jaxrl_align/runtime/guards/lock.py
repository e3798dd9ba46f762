"""The lock of a run's folder: one process at a time writes there."""

import contextlib
import fcntl
import os
import socket
import weakref
from pathlib import Path

LOCK_FILE = ".lock"


class FolderLock:
    """Holds a folder for this process, from its making until it is collected or the process ends."""

    def __init__(self, folder: Path) -> None:
        """Take the lock.

        On a file system without locks nothing is held.

        Raises:
          ValueError: another process holds it.
        """
        self._file = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(self._file, 200).decode("utf-8", "replace").strip()
            os.close(self._file)
            raise ValueError(
                f"{folder} is in use by {holder or 'another process'}; wait for its end, or pass --out with "
                "a new folder"
            ) from error
        except OSError:
            return
        os.truncate(self._file, 0)
        os.write(self._file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())

    def __del__(self) -> None:
        """Give the folder free."""
        with contextlib.suppress(OSError, AttributeError):
            os.close(self._file)


_held: "weakref.WeakValueDictionary[str, FolderLock]" = weakref.WeakValueDictionary()


def hold_folder(folder: Path) -> FolderLock:
    """Return the lock of a folder; whoever opens it again in this process shares it.

    Raises:
      ValueError: another process holds it.
    """
    name = os.path.realpath(folder)
    lock = _held.get(name)
    if lock is None:
        lock = _held[name] = FolderLock(folder)
    return lock
