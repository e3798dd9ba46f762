"""The command line of an experiment, made from its frozen dataclass."""

import contextlib
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn, TypeVar

import tyro

from jaxrl_align.runtime.guards.device_memory import explained_shortage
from jaxrl_align.runtime.guards.interrupts import raised_interrupts

Config = TypeVar("Config")

USER_ERRORS = (ValueError, OSError, FloatingPointError, ImportError, MemoryError)


def parse(config: type[Config], argv: Sequence[str] | None = None, *, prog: str | None = None) -> Config:
    """Read a frozen dataclass from the command line: fields become flags, their docstrings the help.

    Args:
      config: the dataclass; every field has a default unless the user must give it.
      argv: the arguments; None reads the program's own.
      prog: what the help calls the program; None, the script's name.

    Raises:
      SystemExit: with code 2 after a message for a flag that does not parse, with 0 after `--help`.
    """
    return tyro.cli(config, args=argv, prog=prog)


def main(config: type[Config], function: Callable[[Config], Any], argv: Sequence[str] | None = None) -> None:
    """Parse the command line and run `function` on it; the last line of an experiment script.

    What the user can mend ends in one line, as `user_errors` writes it; an interrupted run says how to
    continue where the configuration has a field `resume`.

    Args:
      config: the dataclass that `parse` reads.
      function: the experiment.
      argv: the arguments; None reads the program's own.
    """
    with user_errors(resumes=has_field(config, "resume")):
        function(parse(config, argv))


@contextlib.contextmanager
def user_errors(*, resumes: bool = False) -> Iterator[None]:
    """End the program in one line for what the user can mend: a value, a file, a disk, a missing extra.

    The line is `error: ...` and the exit code 2; with JAXRL_ALIGN_DEBUG=1 the traceback comes instead.
    Ctrl-C, SIGTERM and SIGHUP end with code 128 + signal: 130, 143, 129.

    Args:
      resumes: whether the program continues with `--resume`, which the line of an interrupted one then says.
    """
    try:
        with raised_interrupts(), explained_shortage({}):
            yield
    except KeyboardInterrupt as interrupt:
        remedy = "; the same command with --resume continues from the last checkpoint" if resumes else ""
        _leave(128 + (*interrupt.args, int(signal.SIGINT))[0], "interrupted" + remedy)
    except USER_ERRORS as error:
        if os.environ.get("JAXRL_ALIGN_DEBUG") == "1":
            raise
        _leave(2, "error: " + " ".join((str(error) or type(error).__name__).split()))


def has_field(config: Any, name: str) -> bool:
    """Return whether a dataclass, or one that it is composed of, has a field of that name."""
    kinds = {
        field.name: getattr(field.type, "__origin__", field.type) for field in dataclasses.fields(config)
    }
    inner = [kind for kind in kinds.values() if dataclasses.is_dataclass(kind)]
    return name in kinds or any(has_field(kind, name) for kind in inner)


def _leave(code: int, line: str) -> NoReturn:
    print(line, file=sys.stderr)
    raise SystemExit(code)
