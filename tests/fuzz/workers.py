"""Cases in processes of their own, which may die: one forked worker a core, watched by its parent."""

import faulthandler
import os
import random
import selectors
import shutil
import signal
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.fuzz.judge import SECONDS, Verdict, bound_memory, good_files, judge, lay
from tests.fuzz.mutations import mutate
from tests.fuzz.readers import Reader

CHUNK = 1_000
"""Cases of a worker's life: a reader may compile something at its first."""
HARD = 4 * 2**30
"""Bytes that a worker may take: beyond, Python raises MemoryError and the machine goes on."""
FOLDER = "fuzzed-input"
READY = "ready"
"""What a worker says once it has read the good input, which may take longer than a case."""
PATIENCE = 3.0
"""Seconds on the clock that a case may always take, on a machine that has other things to do."""
START = 60.0
"""Seconds of the processor that the good input may take."""


class Result(NamedTuple):
    """What came of a case of a reader."""

    reader: str
    case: int
    verdict: Verdict


class _Work(NamedTuple):
    reader: Reader
    cases: range


class _Worker(NamedTuple):
    work: _Work
    process: int
    pipe: int
    scratch: Path


def case_files(reader: Reader, good: Mapping[str, bytes], case: int) -> dict[str, bytes]:
    """Return the files of a case: the same for the same reader, good input and number."""
    return mutate(good, random.Random(f"{reader.name} {case}"))


def run_cases(
    readers: Sequence[Reader], cases: range, *, workers: int, seconds: float = SECONDS
) -> Iterator[Result]:
    """Yield the result of every case of every reader, in no order.

    Args:
      readers: R.
      cases: numbers of the cases of each.
      workers: processes at a time.
      seconds: of the processor for a case; a worker that says nothing for four times as long on the clock,
        but for `PATIENCE` at least and a while at its start, is killed.
    """
    chunks = [cases[i : i + CHUNK] for i in range(0, len(cases), CHUNK)]
    waiting = deque(_Work(reader, chunk) for chunk in chunks for reader in readers)
    selector = selectors.DefaultSelector()
    states: dict[int, _State] = {}
    try:
        while waiting or states:
            while waiting and len(states) < workers:
                worker = _start(waiting.popleft(), seconds)
                states[worker.pipe] = _State(worker, seconds)
                selector.register(worker.pipe, selectors.EVENT_READ)
            ready = {key.fd for key, _ in selector.select(timeout=0.2)}
            for pipe, state in list(states.items()):
                yield from state.take(pipe in ready)
                if state.over:
                    selector.unregister(pipe)
                    del states[pipe]
                    if rest := state.close():
                        waiting.appendleft(rest)
    finally:
        for state in states.values():
            state.close()


class _State:
    """What a parent knows of a worker: which case is next, and since when it is silent."""

    def __init__(self, worker: _Worker, seconds: float) -> None:
        self.worker, self.patience = worker, max(4 * seconds, PATIENCE)
        self.heard, self.rest, self.over = time.monotonic(), b"", False
        self.next, self.slack = worker.work.cases.start, START

    def take(self, ready: bool) -> list[Result]:
        """Return the results that have come, or that a worker which hangs or died leaves behind."""
        if ready:
            data = os.read(self.worker.pipe, 2**16)
            self.heard = time.monotonic()
            *lines, self.rest = (self.rest + data).split(b"\n")
            said = [line.decode("utf-8", "replace").split("\t", 1) for line in lines]
            results = [self._result(*parts) for parts in said if parts[0] != READY]
            self.slack = 0.0 if lines else self.slack
            if data:
                return results
            self.over = True
            if self.next < self.worker.work.cases.stop:
                return [*results, self._result("crash", "the process died")]
            return results
        if time.monotonic() - self.heard > self.patience + self.slack:
            self.over = True
            return [self._result("hang", f"nothing for {self.patience + self.slack:g} s; killed")]
        return []

    def _result(self, kind: str, said: str) -> Result:
        self.next += 1
        return Result(self.worker.work.reader.name, self.next - 1, Verdict(kind, said))

    def close(self) -> _Work | None:
        """End the worker; return the work that it leaves undone."""
        os.close(self.worker.pipe)
        os.kill(self.worker.process, signal.SIGKILL)
        os.waitpid(self.worker.process, 0)
        shutil.rmtree(self.worker.scratch, ignore_errors=True)
        left = range(self.next, self.worker.work.cases.stop)
        return _Work(self.worker.work.reader, left) if left else None


def _start(work: _Work, seconds: float) -> _Worker:
    memory = Path("/dev/shm")
    scratch = Path(tempfile.mkdtemp(prefix="fuzz", dir=memory if os.access(memory, os.W_OK) else None))
    read, write = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    process = os.fork()
    if process:
        os.close(write)
        return _Worker(work, process, read, scratch)
    code = 1
    try:  # the child: it never returns
        os.close(read)
        _work(work, scratch, write, seconds)
        code = 0
    finally:
        os._exit(code)


def _work(work: _Work, scratch: Path, pipe: int, seconds: float) -> None:
    """Read the good input and then every case, and write a line for each."""
    os.chdir(scratch)
    faulthandler.disable()
    null = os.open(os.devnull, os.O_RDWR)
    for standard in (0, 1, 2):
        os.dup2(null, standard)
    good, folder = good_files(work.reader, scratch / FOLDER), scratch / FOLDER
    # What is imported and compiled once is no case's.
    first = judge(work.reader, folder, 2**40, START)
    if first.kind != "right":
        for _ in work.cases:
            os.write(pipe, f"crash\tthe good input: {first.kind} {first.said!r}\n".encode())
        return
    bound_memory(HARD)
    os.write(pipe, f"{READY}\n".encode())
    present = dict(good)
    for case in work.cases:
        files = case_files(work.reader, good, case)
        lay(folder, files, present)
        verdict = judge(work.reader, folder, sum(map(len, files.values())), seconds)
        said = verdict.said.encode("utf-8", "backslashreplace")[:2_000].replace(b"\n", b" | ")
        os.write(pipe, verdict.kind.encode() + b"\t" + said + b"\n")
