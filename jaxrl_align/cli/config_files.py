"""Configuration files: flags from a YAML or JSON file, put before those of the command line."""

import dataclasses
import difflib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from jaxrl_align.cli.options import RECORDED


def with_config(command: str, options: type, argv: Sequence[str]) -> list[str]:
    """Return the arguments with those of `--config FILE` before them, so that flags given by hand win.

    Args:
      command: a file that names one must name this one.
      options: the command's dataclass.
      argv: the arguments behind the command.

    Raises:
      ValueError: for a file that is missing or no mapping, a key that is no flag of the command, or a value
        that a flag cannot take.
    """
    path = _find_flag(argv, "config")
    if path is None:
        return list(argv)
    values = read_values(Path(path))
    named = values.get("command", command)
    if named != command:
        raise ValueError(f"{path} is of the command {named}; got {command}; run jaxrl-align {named}")
    known = field_names(options)
    flags: list[str] = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name in RECORDED:
            continue
        if name not in known or name == "config":
            raise ValueError(f"{path}: {key} is no setting of {command}{suggest(name, known)}")
        flags += _as_flag(f"{path}: {key}", name, value)
    return [*flags, *argv]


def read_values(path: Path) -> dict[str, Any]:
    """Return the mapping in a YAML or JSON file; YAML is read as data alone.

    Raises:
      ValueError: for a file that is missing, damaged, of another ending, or holds anything but a mapping.
    """
    if path.suffix not in (".json", ".yaml", ".yml"):
        raise ValueError(f"--config must end in .yaml, .yml or .json; got {path}")
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ValueError(f"--config {path} is missing; check the path") from error
    try:
        values = json.loads(text) if path.suffix == ".json" else _read_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping from settings to values; got {type(values).__name__}")
    return values


def _read_yaml(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error


def field_names(options: Any) -> list[str]:
    """Return the flags of a command's dataclass, those of its groups included."""
    names: list[str] = []
    for field in dataclasses.fields(options):
        group = getattr(field.type, "__origin__", field.type)
        names += field_names(group) if dataclasses.is_dataclass(group) else [field.name]
    return names


def suggest(name: str, known: Iterable[str]) -> str:
    """Return `; did you mean ...?` for the likest known names, or what there is."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else f"; there are {', '.join(known)}"


def _find_flag(argv: Sequence[str], name: str) -> str | None:
    found = None
    for i, argument in enumerate(argv):
        if argument == f"--{name}" and i + 1 < len(argv):
            found = argv[i + 1]
        elif argument.startswith(f"--{name}="):
            found = argument.partition("=")[2]
    return found


def _as_flag(where: str, name: str, value: Any) -> list[str]:
    flag = "--" + name.replace("_", "-")
    if isinstance(value, bool):
        return [flag if value else flag.replace("--", "--no-", 1)]
    if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
        return [flag, *map(str, value)]
    if isinstance(value, list | dict):
        raise ValueError(f"{where} must be a number, a text, or a list of them; got {value}")
    return [f"{flag}={value}"]
