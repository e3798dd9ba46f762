"""The command line of an experiment, made from its frozen dataclass."""

import contextlib
import dataclasses
import inspect
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import tyro

from jaxrl_align.runtime.devices.hosts import agree, end_process, explained_lost_process, join_hosts, several
from jaxrl_align.runtime.guards.device_memory import explained_shortage
from jaxrl_align.runtime.guards.interrupts import raised_interrupts
from jaxrl_align.runtime.mesh import AUTO, use_cpu_devices, use_mesh

Config = TypeVar("Config")

USER_ERRORS = (ValueError, OSError, FloatingPointError, ImportError, MemoryError)


def parse(
    config: type[Config],
    argv: Sequence[str] | None = None,
    *,
    prog: str | None = None,
    description: str | None = None,
) -> Config:
    """Read a frozen dataclass from the command line: fields become flags, their docstrings the help.

    Args:
      config: the dataclass; every field has a default unless the user must give it.
      argv: the arguments; None reads the program's own.
      prog: what the help calls the program; None, the script's name.
      description: the help's first lines; None, the dataclass's docstring.

    Raises:
      SystemExit: with code 2 after a message for a flag that does not parse, with 0 after `--help`.
    """
    return tyro.cli(config, args=argv, prog=prog, description=description)


def main(
    config: type[Config],
    function: Callable[[Config], Any],
    argv: Sequence[str] | None = None,
    *,
    prog: str | None = None,
) -> None:
    """Parse the command line and run `function` on it; the last line of an experiment script.

    What the user can mend ends in one line, as `user_errors` writes it; an interrupted run says how to
    continue where the configuration has a field `resume`. The help starts with what the script claims and
    how long it takes.

    Args:
      config: the dataclass that `parse` reads.
      function: the experiment.
      argv: the arguments; None reads the program's own.
      prog: what the help calls the program; None, the script's name.
    """
    with user_errors(resumes=has_field(config, "resume")):
        options = parse(config, argv, prog=prog, description=_describe_script(config))
        with meshed(options):
            function(options)


def _describe_script(config: type) -> str | None:
    """Return the claims of the script that a configuration is of, its minutes, and the configuration's help.

    A script says them by `CLAIM`, an object with `text` and `minutes`, or by `CLAIMS`, one for each part, of
    which those count that its configuration has by default.
    """
    module: Any = sys.modules.get(config.__module__)
    claims = {"": module.CLAIM} if hasattr(module, "CLAIM") else getattr(module, "CLAIMS", {})
    claims = [claim for part, claim in claims.items() if part in getattr(config, "parts", claims)]
    if not claims:
        return None
    text = " ".join(claim.text for claim in claims)
    takes = f"Takes {minutes_text(sum(claim.minutes for claim in claims))} on two CPU cores."
    return f"{text} {takes}\n\n{inspect.getdoc(config) or ''}".strip()


def minutes_text(minutes: float) -> str:
    """Return a time in words, "about 3 minutes", "less than a minute", "about 2 hours"."""
    if minutes < 1:
        return "less than a minute"
    number, unit = (minutes, "minute") if minutes < 90 else (minutes / 60, "hour")
    return f"about {number:.2g} {unit}{'' if number == 1 else 's'}"


def point_to(experiment: str) -> None:
    """End a part of an experiment that was run as a program in one line that says which one to run.

    Raises:
      SystemExit: with code 0 where help was asked for, else 2.
    """
    script, asked = os.path.basename(sys.argv[0]), {"-h", "--help"} & set(sys.argv[1:])
    print(
        f"{script} is a part of {experiment}.py, and no program; run: jaxrl-align run {experiment} --help",
        file=sys.stdout if asked else sys.stderr,
    )
    raise SystemExit(0 if asked else 2)


@contextlib.contextmanager
def user_errors(*, resumes: bool = False) -> Iterator[None]:
    """End the program in one line for what the user can mend: a value, a file, a disk, a missing extra.

    The line is `error: ...` and the exit code 2; with JAXRL_ALIGN_DEBUG=1 the traceback comes instead.
    Ctrl-C, SIGTERM and SIGHUP end with code 128 + signal: 130, 143, 129; so does the end of whoever reads
    what is printed, in silence: 141.

    Args:
      resumes: whether the program continues with `--resume`, which the line of an interrupted one then says.
    """
    try:
        with raised_interrupts(), explained_lost_process(), explained_shortage({}):
            join_hosts()
            yield
            sys.stdout.flush()
    except KeyboardInterrupt as interrupt:
        remedy = "; the same command with --resume continues from the last checkpoint" if resumes else ""
        end_process(128 + (*interrupt.args, int(signal.SIGINT))[0], "interrupted" + remedy)
    except USER_ERRORS as error:
        if isinstance(error, BrokenPipeError) and _is_unread():
            # Python would try to write the rest once more.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            end_process(128 + signal.SIGPIPE, "")
        if os.environ.get("JAXRL_ALIGN_DEBUG") == "1" and not several():
            raise
        end_process(2, "error: " + " ".join((str(error) or type(error).__name__).split()))
    except Exception:
        if not several():
            raise
        # Raised, it would wait for the others in jax's farewell, and they for it.
        end_process(1, traceback.format_exc().rstrip())


def _is_unread() -> bool:
    """Return whether whoever read what is printed has gone, as `head` does; other pipes may break too."""
    poll = select.poll()
    try:
        poll.register(sys.stdout, 0)  # of what ends or breaks it tells unasked
    except (OSError, TypeError, ValueError):  # no file, as in a notebook
        return False
    return bool(poll.poll(0))


@contextlib.contextmanager
def meshed(options: Any) -> Iterator[None]:
    """Run on the mesh that a configuration's field `mesh` describes; several processes always have one.

    Args:
      options: a dataclass; its fields `mesh` and `seeds`, or those of a dataclass in it, are read.
    """
    text = read_field(options, "mesh") or (AUTO if several() else None)
    agree("mesh", str(text))
    if text is not None:
        use_cpu_devices()
    with use_mesh(text, members=read_field(options, "seeds") or 1):
        yield


def read_field(options: Any, name: str) -> Any:
    """Return a field of a dataclass, or of one that it is composed of; None where there is none."""
    if hasattr(options, name):
        return getattr(options, name)
    inner = [getattr(options, field.name) for field in dataclasses.fields(options)]
    found = (read_field(value, name) for value in inner if dataclasses.is_dataclass(value))
    return next((value for value in found if value is not None), None)


def has_field(config: Any, name: str) -> bool:
    """Return whether a dataclass, or one that it is composed of, has a field of that name."""
    kinds = {
        field.name: getattr(field.type, "__origin__", field.type) for field in dataclasses.fields(config)
    }
    inner = [kind for kind in kinds.values() if dataclasses.is_dataclass(kind)]
    return name in kinds or any(has_field(kind, name) for kind in inner)
