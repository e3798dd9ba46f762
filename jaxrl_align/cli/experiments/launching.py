"""The commands `list`, `run` and `resume`."""

import dataclasses
import json
import shutil
import textwrap
import types
import typing
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from tyro.conf import Positional

from jaxrl_align.cli.experiments.catalogue import (
    Experiment,
    choose_experiment,
    find_scripts,
    first_sentence,
    import_script,
    read_experiments,
)
from jaxrl_align.runtime import cli
from jaxrl_align.runtime.folder import CONFIG_FILE, MADE_BY_FILE
from jaxrl_align.typed import brief, naming, read_object

_INNER = "run"
"""The folder in the --out of a training command where its run lies."""


@dataclass(frozen=True)
class List:
    """List the experiments: what each claims, and its minutes on two CPU cores.

    They are run by `jaxrl-align run NAME`.
    """

    words: Positional[tuple[str, ...]] = ()
    """Show those alone that have one of these words in their name or claim."""


def run_list(options: List, argv: Sequence[str]) -> None:
    """Print the experiments, and below them the tools."""
    folder = find_scripts()
    known = [x for x in read_experiments(folder).values() if _has(x, options.words)]
    if not known:
        raise ValueError(f"no experiment has {' or '.join(options.words)} in its name or claim")
    width, columns = max(len(x.name) for x in known), min(shutil.get_terminal_size().columns, 120)
    for tools, head in ((False, "experiment"), (True, "tool")):
        rows = [x for x in known if x.tool == tools]
        if rows:
            print(f"\n{head:{width}}    min  {'what it does' if tools else 'claim'}")
        for x in rows:
            minutes = "" if x.minutes is None else f"{x.minutes:g}"
            lead = f"{x.name:{width}}  {minutes:>5}  "
            blank = " " * len(lead)
            print(textwrap.fill(lead + first_sentence(x.claim), max(columns, 60), subsequent_indent=blank))
    print("\njaxrl-align run NAME --help lists the settings of one of them")


def _has(experiment: Experiment, words: Sequence[str]) -> bool:
    text = f"{experiment.name} {experiment.claim}".lower()
    return not words or any(word.lower() in text for word in words)


@dataclass(frozen=True)
class Run:
    """Run an experiment: jaxrl-align run NAME [its flags]; `jaxrl-align run NAME --help` lists them."""

    name: Positional[str]
    """Of `jaxrl-align list`."""


def run_experiment(argv: Sequence[str]) -> None:
    """Run the experiment that the first word names with the words behind it.

    Raises:
      SystemExit: with code 2 after a line for an experiment that there is not, and as `cli.main`.
    """
    if not argv or argv[0].startswith("-"):
        cli.parse(Run, argv, prog="jaxrl-align run")
    with cli.user_errors():
        chosen = choose_experiment(argv[0])
        module = import_script(chosen.path)
    cli.main(module.Config, module.main, argv[1:], prog=f"jaxrl-align run {chosen.name}")


@dataclass(frozen=True)
class Resume:
    """Continue an interrupted run with the settings in its folder, to the bits of an undisturbed one."""

    run: Positional[str]
    """The run's folder: an experiment's, or the --out of a training command."""
    experiment: str | None = None
    """What the run is of, where its folder does not say."""


def run_resume(options: Resume, argv: Sequence[str], call: Callable[[Sequence[str]], None]) -> None:
    """Continue a run.

    Args:
      options: which one.
      argv: unused.
      call: runs a command of `jaxrl-align`.

    Raises:
      ValueError: the folder holds no run, or does not say of what.
    """
    folder = Path(options.run)
    inner = folder / _INNER if not (folder / CONFIG_FILE).exists() else folder
    if not (inner / CONFIG_FILE).exists():
        raise ValueError(f"{folder} holds no run ({CONFIG_FILE} is missing); pass the folder of one")
    config = read_object(inner / CONFIG_FILE)
    if isinstance(config.get("command"), str):
        out = folder if inner != folder else _above(folder)
        call([config["command"], "--config", str(inner / CONFIG_FILE), "--out", str(out), "--resume"])
        return
    chosen = choose_experiment(options.experiment or _read_maker(folder))
    module = import_script(chosen.path)
    with naming(inner / CONFIG_FILE):
        settings = rebuild(module.Config, config | {"out": str(folder), "resume": True})
    with cli.meshed(settings):
        module.main(settings)


def _above(folder: Path) -> Path:
    """Return the --out of a training command whose `run/` is this folder, also where it is "." or a link."""
    if folder.name == _INNER:
        return folder.parent
    if folder.resolve().name != _INNER:
        raise ValueError(
            f"the run of a training command must lie in a folder called {_INNER}; got {folder}; rename it"
        )
    return folder.resolve().parent


def _read_maker(folder: Path) -> str:
    """Return the name of the experiment that a folder is of."""
    try:
        return str(json.loads((folder / MADE_BY_FILE).read_text(encoding="utf-8"))["experiment"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{folder} does not say which experiment it is of ({MADE_BY_FILE}: {brief(error)}); "
            "add --experiment NAME"
        ) from error


def rebuild(kind: Any, value: Any) -> Any:
    """Return a dataclass from what `to_json` made of it; lists become tuples again.

    Raises:
      ValueError: it has an entry that is no field.
    """
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return rebuild(args[0], value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind, include_extras=True)
        known = {field.name for field in dataclasses.fields(kind)}
        if not isinstance(value, dict) or not value.keys() <= known:
            wrong = ", ".join(sorted(set(value) - known)) if isinstance(value, dict) else str(value)
            raise ValueError(f"{wrong[:200]} is no setting of this version; run it anew, into a new folder")
        return kind(**{name: rebuild(hints[name], x) for name, x in value.items()})
    if origin in (typing.Union, types.UnionType):
        parts = [part for part in args if part is not types.NoneType]
        return value if value is None or len(parts) != 1 else rebuild(parts[0], value)
    if isinstance(value, list) and (origin is tuple or kind is tuple):
        kinds = list(args[:1]) * len(value) if args[1:] == (...,) else list(args)
        return (
            tuple(rebuild(part, x) for part, x in zip(kinds, value, strict=True)) if kinds else tuple(value)
        )
    return value
