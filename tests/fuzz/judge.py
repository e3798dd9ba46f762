"""One case: the files are laid out, read, and what came of it is judged."""

import contextlib
import os
import re
import resource
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from tests.fuzz.readers import Reader

KINDS = ("crash", "escape", "hang", "memory", "silent", "error", "right")
FAULTS = KINDS[:5]
ESCAPE = "fuzz-escape"
"""What a hostile file would make, if it were executed or wrote where it likes."""
SECONDS = 5.0
"""Of the processor, for a case."""
ROOM = 64 * 2**20
"""Bytes that every reader may take, whatever the size of its files."""
LONGEST = 4_000
"""Characters of a message."""


class Verdict(NamedTuple):
    """What came of a case."""

    kind: str
    """One of `KINDS`: error is a refusal in one line, right a value without complaint."""
    said: str


class TooLong(BaseException):
    """Raised inside a reader whose time is over; no reader catches it."""


def lay(folder: Path, files: Mapping[str, bytes], present: dict[str, bytes]) -> None:
    """Make a folder hold these files, writing only those that differ from `present`, which is kept up."""
    for name in [name for name in present if name not in files]:
        (folder / name).unlink(missing_ok=True)
        del present[name]
    for name, data in files.items():
        if present.get(name) is not data:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
            present[name] = data


def good_files(reader: Reader, folder: Path) -> dict[str, bytes]:
    """Write a reader's good input and return it by names relative to the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    reader.write(folder)
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def judge(reader: Reader, folder: Path, size: int, seconds: float = SECONDS) -> Verdict:
    """Read a folder and say what came of it.

    Args:
      reader: what reads it.
      folder: holds the files, under a name that no message has by chance.
      size: bytes of the files.
      seconds: of the processor.
    """
    names = {folder.name, *(path.name for path in folder.rglob("*"))}
    before, start = _reset_peak(), time.process_time()
    try:
        with _alarm(seconds):
            value = reader.read(folder)
            complaint = reader.complain(value)
        verdict = Verdict("silent", complaint) if complaint else Verdict("right", "")
    except (ValueError, OSError) as error:
        verdict = _judge_message(error, names)
    except TooLong:
        verdict = Verdict("hang", f"more than {seconds:g} s of the processor")
    except MemoryError as error:
        verdict = Verdict("memory", f"MemoryError: {error}")
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a Rust panic is no Exception
        verdict = Verdict("crash", f"{type(error).__name__}: {str(error)[:300]}{_origin(error)}")
    taken = _peak() - before
    if os.path.lexists(ESCAPE) or os.path.lexists(folder / ESCAPE) or os.path.lexists(folder.parent / ESCAPE):
        return Verdict("escape", f"{ESCAPE} was made")
    if verdict.kind in FAULTS:
        return verdict
    if (spent := time.process_time() - start) > seconds:
        return Verdict("hang", f"{spent:.1f} s of the processor")
    if taken > max(10 * size, ROOM):
        return Verdict("memory", f"{taken / 2**20:.0f} MiB for files of {size:,} bytes; {verdict.said[:200]}")
    return verdict


def _judge_message(error: ValueError | OSError, names: set[str]) -> Verdict:
    message = str(error)
    found = f"{type(error).__name__}: {message[:300]}{_origin(error)}"
    if len(message.splitlines()) != 1:
        return Verdict("crash", f"a message of {len(message.splitlines())} lines: {found}")
    if len(message) > LONGEST:
        return Verdict("crash", f"a message of {len(message):,} characters: {found}")
    if not any(name in message for name in names):
        return Verdict("crash", f"a message that names no file: {found}")
    return Verdict("error", message)


def _origin(error: BaseException) -> str:
    """Return the innermost place in the package that the error went through."""
    place, trace = "", error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if "jaxrl_align" in code.co_filename or not place:
            place = f" at {Path(code.co_filename).name}:{trace.tb_lineno} {code.co_name}"
        trace = trace.tb_next
    return place


@contextlib.contextmanager
def _alarm(seconds: float) -> Iterator[None]:
    """Raise `TooLong` when the time is over; only the main thread can, and no code in C is stopped by it."""

    def stop(*_: Any) -> None:
        raise TooLong

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    old = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, old)


def _reset_peak() -> int:
    """Forget the most memory that the process had, and return what it has, in bytes (Linux)."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(name: str) -> int:
    try:
        with open("/proc/self/status") as file:
            found = re.search(rf"{name}:\s+(\d+)", file.read())
    except OSError:  # no Linux: the peak of the whole life cannot be reset, so nothing is found
        return 0
    return int(found[1]) * 1024 if found else 0


def bound_memory(room: int) -> None:
    """Let this process have so many bytes of addresses more than now: beyond is a MemoryError."""
    if now := _status("VmSize"):
        resource.setrlimit(resource.RLIMIT_AS, (now + room, now + room))
