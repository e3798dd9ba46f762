"""Configuration files: flags from a YAML or JSON file, put before those of the command line."""

import dataclasses
import difflib
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from jaxrl_align.cli.options import RECORDED
from jaxrl_align.data.files import decode_text, parse_json
from jaxrl_align.typed import one_line

MOST_YAML = 100_000
"""Characters of a YAML file of settings: it is read by slow code."""


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
    named = one_line(str(values.get("command", command)), 80)
    if named != command:
        raise ValueError(f"{path} is of the command {named}; got {command}; run jaxrl-align {named}")
    known = field_names(options)
    flags: list[str] = []
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name in RECORDED:
            continue
        if name not in known or name == "config":
            raise ValueError(f"{path}: {one_line(name, 80)} is no setting of {command}{suggest(name, known)}")
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
        text = decode_text(path.read_bytes(), str(path))
    except FileNotFoundError as error:
        raise ValueError(f"--config {path} is missing; check the path") from error
    try:
        values = parse_json(text, _without_repeats) if path.suffix == ".json" else _read_yaml(text)
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {one_line(str(error))}") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold a mapping from settings to values; got {type(values).__name__}")
    return values


class _PlainLoader(yaml.SafeLoader):
    """Reads data without references, which a few lines of can spell gigabytes, and keys that stand twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise ValueError("references (*name) are not read; write the value itself")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        _without_repeats([(key.value, None) for key, _ in node.value if isinstance(key, yaml.ScalarNode)])
        return super().construct_mapping(node, deep)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"{name!r:.80} stands twice; leave one out")
        values[name] = value
    return values


def _read_yaml(text: str) -> Any:
    if len(text) > MOST_YAML:
        raise ValueError(f"a file of settings has at most {MOST_YAML:,} characters; got {len(text):,}")
    try:
        return yaml.load(text, _PlainLoader)  # derived from the safe one
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("too many lists or mappings are inside each other") from error


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


_PLAIN = (str, int, float, type(None))


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
    if isinstance(value, list) and all(isinstance(item, _PLAIN) for item in value):
        return [flag, *map(str, value)]
    if not isinstance(value, _PLAIN):
        raise ValueError(f"{where} must be a number, a text, or a list of them; got {value!r:.80}")
    return [f"{flag}={value}"]
