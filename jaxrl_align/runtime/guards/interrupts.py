"""Signals that end a run: Ctrl-C, and what a scheduler or a closing terminal sends."""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""All end a run as Ctrl-C does; one that the process was started to ignore, as by `nohup`, is left alone."""


@contextlib.contextmanager
def raised_interrupts() -> Iterator[None]:
    """Let every ending signal raise `KeyboardInterrupt(signal)`, so that what is open is closed."""

    def interrupt(number: int) -> None:
        raise KeyboardInterrupt(number)

    with _handled(interrupt):
        yield


@contextlib.contextmanager
def deferred_interrupts() -> Iterator[Callable[[], int]]:
    """Let an ending signal only be noted, so that it cannot fall between a state and its checkpoint.

    A second Ctrl-C raises KeyboardInterrupt at once. (A closing terminal's signal may come twice.)

    Yields:
      What returns the number of the signal that came first, or 0.
    """
    came = [0]

    def note(number: int) -> None:
        if came[0] and number == signal.SIGINT:
            raise KeyboardInterrupt(number)
        if not came[0]:
            came[0] = number
            again = "; Ctrl-C again stops at once" if number == signal.SIGINT else ""
            with contextlib.suppress(OSError):  # `| tee` may be gone already
                os.write(2, f"\nstopping at the end of this chunk{again}\n".encode())

    with _handled(note):
        yield lambda: came[0]


@contextlib.contextmanager
def _handled(handler: Callable[[int], None]) -> Iterator[None]:
    """Call `handler(signal)` for every ending signal; outside the main thread Python allows none."""
    terminals = [fd for fd in (1, 2) if os.isatty(fd)]
    former: dict[int, Any] = {}

    def handle(number: int, _: Any) -> None:
        if number == signal.SIGHUP:  # the terminal is gone: what is printed must not fail
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for fd in terminals:
                os.dup2(nowhere, fd)
            os.close(nowhere)
        handler(number)

    if threading.current_thread() is threading.main_thread():
        for number in ENDING:
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                former[number] = signal.signal(number, handle)
    try:
        yield
    finally:
        for number, handling in former.items():
            signal.signal(number, handling)
