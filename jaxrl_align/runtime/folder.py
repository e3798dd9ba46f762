"""The folder of a run: its configuration, its metrics and nothing half-written."""

import contextlib
import dataclasses
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jaxrl_align.runtime.metrics import METRICS_FILE

CONFIG_FILE = "config.json"
UNCOMPARED = ("resume", "out")
"""Fields that say where and how to run, not what: they may differ between a run and its continuation."""


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike) -> Iterator[Path]:
    """Yield a temporary path beside `path`, and move what was written there onto `path` at the end.

    A reader sees the old file or the whole new one. The data reach the disk before the name does, so a crash
    or a full disk leaves the old file; the temporary file is removed when the block raises.
    """
    path = Path(path)
    # The suffix stays, because writers such as matplotlib read the format from it.
    temporary = path.with_name(f".{path.stem}.tmp{os.getpid()}{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write a dataclass, a mapping or any JSON value to `path` atomically.

    Raises:
      ValueError: a value inside is neither JSON, a path, a dataclass nor a NumPy or JAX scalar.
    """
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(to_json(value), indent=2) + "\n", encoding="utf-8")


def to_json(value: Any) -> Any:
    """Return `value` as what JSON gives back: dataclasses become dicts, tuples lists, paths strings.

    Raises:
      ValueError: a value inside is none of these and no JSON value.
    """

    def default(item: Any) -> Any:
        if dataclasses.is_dataclass(item) and not isinstance(item, type):
            return {field.name: getattr(item, field.name) for field in dataclasses.fields(item)}
        if isinstance(item, Mapping):
            return dict(item)
        if isinstance(item, os.PathLike):
            return os.fspath(item)
        if hasattr(item, "tolist"):  # NumPy and JAX arrays and scalars
            return item.tolist()
        raise ValueError(f"expected a value that JSON can hold, got {item!r} of {type(item).__name__}")

    return json.loads(json.dumps(value, default=default))


def differences(old: Any, new: Any) -> tuple[str, str]:
    """Return how two configurations differ, as `("width=64, depth=2", "width=128, depth=3")`.

    Two empty strings say that they do not. Fields named in `UNCOMPARED` are passed over at the top level;
    nested fields are written `model.width`.
    """
    old, new = ({k: v for k, v in to_json(c).items() if k not in UNCOMPARED} for c in (old, new))
    old, new = _flatten(old), _flatten(new)
    fields = [f for f in {**old, **new} if f not in old or f not in new or old[f] != new[f]]
    texts = [", ".join(f"{f}={c[f]!r}" if f in c else f"no {f}" for f in fields) for c in (old, new)]
    return texts[0], texts[1]


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, dict) and value
        flat |= _flatten(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """An opened run: where it is, what it is a run of, and whether it continues an earlier one."""

    path: Path
    config: dict[str, Any]
    resume: bool

    def sub(self, name: str) -> "RunFolder":
        """Open the folder of one stage inside this one, under the same configuration and rules.

        Args:
          name: of the folder; commas and spaces in it become underscores.
        """
        return open_run(self.path / re.sub(r"[, ]+", "_", name), self.config, resume=self.resume)

    def write_json(self, name: str, value: Any) -> Path:
        """Write `value` to the file `name` in this folder atomically and return its path."""
        write_json(self.path / name, value)
        return self.path / name

    def read_json(self, name: str) -> Any:
        """Read back what `write_json` wrote under `name` in this folder."""
        return json.loads((self.path / name).read_text(encoding="utf-8"))

    def once(self, name: str, make: Callable[..., Any], *args: Any) -> Any:
        """Return the value in the file `name`, or of `make(*args)`, which is then written there.

        A continued run repeats none of the parts that it has finished. Either way the value is what JSON
        gives back: arrays are lists.
        """
        if not (self.path / name).exists():
            self.write_json(name, make(*args))
        return self.read_json(name)


def open_run(path: str | os.PathLike, config: Any, *, resume: bool = False) -> RunFolder:
    """Create the folder of a run and write its `config.json`, or open the one to continue.

    Args:
      path: the run's folder; it and its parents are created.
      config: a dataclass or a mapping of JSON values, paths and nested dataclasses.
      resume: continue the run in `path`, or start one where there is none.

    Raises:
      ValueError: the folder already holds a run and `resume` is false, or that run had another configuration.
        Nothing is overwritten.
    """
    path, config = Path(path), to_json(config)
    if path.exists() and not path.is_dir():
        raise ValueError(f"expected a folder, got the file {path}; pass --out with another name")
    config_path = path / CONFIG_FILE
    if config_path.exists() or (path / METRICS_FILE).exists():
        if not resume:
            raise ValueError(
                f"{path} already holds a run; pass --resume to continue it, or --out with a new folder"
            )
        _check_same_run(config_path, config)
    else:
        path.mkdir(parents=True, exist_ok=True)
        write_json(config_path, config)
    return RunFolder(path, config, resume)


def _check_same_run(config_path: Path, config: dict[str, Any]) -> None:
    try:
        was, now = differences(json.loads(config_path.read_text(encoding="utf-8")), config)
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(f"cannot read {config_path} ({error}); pass --out with a new folder") from error
    if was or now:
        raise ValueError(
            f"the run in {config_path.parent} was made with {was}, but this run has {now}; "
            "pass --out with a new folder, or the same configuration"
        )
