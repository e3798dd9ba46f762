"""The lock of a run's folder: one process at a time writes there."""

import fcntl
import os
import socket
import weakref
from pathlib import Path

from jaxrl_align.atomic import named_shortage

LOCK_FILE = ".lock"


class FolderLock:
    """Holds a folder for this process, from its making until it is collected or the process ends."""

    def __init__(self, folder: Path) -> None:
        """Take the lock.

        On a file system without locks nothing is held.

        Raises:
          ValueError: another process holds it.
        """
        file = os.open(folder / LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = os.read(file, 200).decode("utf-8", "replace").strip()
            os.close(file)
            raise ValueError(
                f"{folder} is in use by {holder or 'another process'}; wait for its end, or pass --out with "
                "a new folder"
            ) from error
        except OSError:
            os.close(file)
            return
        weakref.finalize(self, os.close, file)
        with named_shortage(folder / LOCK_FILE):
            os.truncate(file, 0)
            os.write(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode())


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
