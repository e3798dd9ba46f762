"""The command line of an experiment, made from its frozen dataclass."""

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, TypeVar

import tyro

Config = TypeVar("Config")

USER_ERRORS = (ValueError, OSError, FloatingPointError, ImportError)


def parse(config: type[Config], argv: Sequence[str] | None = None) -> Config:
    """Read a frozen dataclass from the command line: fields become flags, their docstrings the help.

    Args:
      config: the dataclass; every field has a default unless the user must give it.
      argv: the arguments; None reads the program's own.

    Raises:
      SystemExit: with code 2 after a message for a flag that does not parse, with 0 after `--help`.
    """
    return tyro.cli(config, args=argv)


def main(config: type[Config], function: Callable[[Config], Any], argv: Sequence[str] | None = None) -> None:
    """Parse the command line and run `function` on it; the last line of an experiment script.

    What the user can mend (a value, a file, a disk, a diverged loss, a missing extra) ends in one line
    `error: ...` and exit code 2; with JAXRL_ALIGN_DEBUG=1 the traceback comes instead. Ctrl-C ends with code
    130 and a line that says how to continue, where the configuration has a field `resume`.

    Args:
      config: the dataclass that `parse` reads.
      function: the experiment.
      argv: the arguments; None reads the program's own.
    """
    try:
        function(parse(config, argv))
    except KeyboardInterrupt:
        resumes = any(field.name == "resume" for field in dataclasses.fields(config))  # type: ignore[arg-type]
        remedy = "; the same command with --resume continues from the last checkpoint" if resumes else ""
        _leave(130, "interrupted" + remedy)
    except USER_ERRORS as error:
        if os.environ.get("JAXRL_ALIGN_DEBUG") == "1":
            raise
        _leave(2, "error: " + " ".join((str(error) or type(error).__name__).split()))


def _leave(code: int, line: str) -> NoReturn:
    print(line, file=sys.stderr)
    raise SystemExit(code)
