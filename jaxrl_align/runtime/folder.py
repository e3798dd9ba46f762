"""The folder of a run: its configuration, its metrics and nothing half-written."""

import dataclasses
import inspect
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxrl_align.atomic import atomic_path, remove_left_files, writes
from jaxrl_align.runtime.devices.hosts import agree, exchange, together
from jaxrl_align.runtime.guards.lock import FolderLock, hold_folder
from jaxrl_align.runtime.metrics import METRICS_FILE
from jaxrl_align.runtime.source import source_commit

CONFIG_FILE = "config.json"
MADE_BY_FILE = "made_by.json"
"""What `jaxrl-align resume` reads: the experiment that a folder is of."""
SHOWN = 20
"""Fields that a message about two configurations names, at most."""
UNCOMPARED = ("resume", "out", "mesh", "checkpoint_minutes", "keep", "keep_best", "replay", "writers")
"""Fields that say where and how to run, not what: they may differ between a run and its continuation."""


class Upkeep(NamedTuple):
    """How a run's checkpoints are kept; no result depends on it."""

    minutes: float = 1.0
    """Between checkpoints, at least; 0 for none by time."""
    keep: int = 2
    """How many are kept, the newest."""
    best: str | None = None
    """A metric: of the checkpoints, the one is kept too whose last chunk has the most of it, or the least of
    a loss, error, perplexity, nats or kl, told by its name. `best.json` says which."""
    replay: bool = False
    """Take the steps after the last checkpoint singly, and say which operation makes the first nan."""
    writers: tuple[str, ...] = ()
    """Of `runtime.writers`, where metrics go beside metrics.jsonl."""


class Clock(NamedTuple):
    """A moment, to measure from."""

    wall: float
    """Seconds, monotonic."""
    cpu: float
    """Seconds of this process on all cores."""
    commit: str | None
    """Of the source that was loaded by then; see `source_commit`."""

    @classmethod
    def read(cls) -> "Clock":
        """Return the present moment."""
        return cls(time.monotonic(), time.process_time(), source_commit())


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
    old, new = flatten_config(old), flatten_config(new)
    fields = [f for f in {**old, **new} if f not in old or f not in new or old[f] != new[f]]

    def describe(config: dict[str, Any]) -> str:
        named = [(ascii(f)[1:-1][:60], f) for f in fields[:SHOWN]]
        texts = [f"{name}={repr(config[f])[:100]}" if f in config else f"no {name}" for name, f in named]
        return ", ".join(texts) + (f" and {len(fields) - SHOWN} more" if len(fields) > SHOWN else "")

    return describe(old), describe(new)


def flatten_config(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return a configuration without nesting: an entry `width` of `model` is `model.width`."""
    flat: dict[str, Any] = {}
    for name, value in config.items():
        nested = isinstance(value, dict) and value
        flat |= flatten_config(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return flat


UPKEEP = Upkeep()


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """An opened run: where it is, what it is a run of, and whether it continues an earlier one."""

    path: Path
    config: dict[str, Any]
    resume: bool
    upkeep: Upkeep = UPKEEP
    lock: FolderLock | None = dataclasses.field(default=None, repr=False, compare=False)
    """Of the whole run: no other process opens it meanwhile."""
    continued: bool = dataclasses.field(default=False, compare=False)
    """Whether there was a run in it already when it was opened."""
    began: Clock = dataclasses.field(default_factory=Clock.read, repr=False, compare=False)
    """When it was opened."""

    def sub(self, name: str) -> "RunFolder":
        """Open the folder of one stage inside this one, under the same configuration and rules.

        Args:
          name: of the folder; commas and spaces in it become underscores.
        """
        path = self.path / re.sub(r"[, ]+", "_", name)
        return _open(path, self.config, self.resume, self.upkeep, self.lock)

    def write_json(self, name: str, value: Any) -> Path:
        """Write `value` to the file `name` in this folder atomically and return its path."""
        write_json(self.path / name, value)
        return self.path / name

    def read_json(self, name: str) -> Any:
        """Read back what `write_json` wrote under `name` in this folder.

        Raises:
          ValueError: it is damaged.
        """
        try:
            return json.loads((self.path / name).read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f"{self.path / name} is damaged ({error}); copy it again, or pass --out with a new folder"
            ) from error

    def once(self, name: str, make: Callable[..., Any], *args: Any) -> Any:
        """Return the value in the file `name`, or of `make(*args)`, which is then written there.

        A continued run repeats none of the parts that it has finished. Either way the value is what JSON
        gives back: arrays are lists.
        """
        there = exchange(str((self.path / name).exists()))[0] == "True"
        if not there:
            self.write_json(name, make(*args))
        value = together(lambda: self.read_json(name) if writes() else None)
        return json.loads(exchange(json.dumps(value))[0])


def open_run(
    path: str | os.PathLike, config: Any, *, resume: bool = False, upkeep: Upkeep = UPKEEP
) -> RunFolder:
    """Create the folder of a run and write its `config.json`, or open the one to continue.

    No second process opens it while the `RunFolder` that is returned lives. What a killed one has left of its
    unfinished files is removed.

    Args:
      path: the run's folder; it and its parents are created.
      config: a dataclass or a mapping of JSON values, paths and nested dataclasses.
      resume: continue the run in `path`, or start one where there is none.
      upkeep: how `loop.run` keeps its checkpoints; a replay continues a run.

    Raises:
      ValueError: the folder already holds a run and `resume` is false, that run had another configuration, or
        another process is running it. Nothing is overwritten.
    """
    if upkeep.keep < 1 or not upkeep.minutes >= 0:
        raise ValueError(
            "keep must be at least 1, and checkpoint_minutes at least 0; "
            f"got {upkeep.keep} and {upkeep.minutes}"
        )
    return _open(Path(path), to_json(config), resume or upkeep.replay, upkeep, None)


def _open(
    path: Path, config: dict[str, Any], resume: bool, upkeep: Upkeep, lock: FolderLock | None
) -> RunFolder:
    _agree_on(path, config)
    holds_run = together(lambda: _look(path, config, resume))

    def take() -> FolderLock | None:
        if not writes():
            return None
        path.mkdir(parents=True, exist_ok=True)
        held = lock
        if held is None:
            held = hold_folder(path)
            remove_left_files(path)
        if not holds_run:
            write_json(path / CONFIG_FILE, config)
        return held

    return RunFolder(path, config, resume, upkeep, together(take), continued=holds_run)


def _agree_on(path: Path, config: dict[str, Any]) -> None:
    """Raise in every process unless all of them have the same configuration; it names what differs."""
    theirs, own = differences(json.loads(exchange(json.dumps(config))[0]), config)
    agree(f"configuration of {path}", f"{own} instead of {theirs}" if own or theirs else "its own")


def _look(path: Path, config: dict[str, Any], resume: bool) -> bool:
    """Return whether a folder holds this run already; raise where it may not be opened."""
    if path.exists() and not path.is_dir():
        raise ValueError(f"expected a folder, got the file {path}; pass --out with another name")
    config_path = path / CONFIG_FILE
    holds_run = config_path.exists() or (path / METRICS_FILE).exists()
    if holds_run and not resume:
        raise ValueError(
            f"{path} already holds a run; pass --resume to continue it, or --out with a new folder"
        )
    if holds_run:
        _check_same_run(config_path, config)
    return holds_run


@dataclasses.dataclass(frozen=True)
class KeepConfig:
    """Fields of a configuration that say how a run is kept."""

    resume: bool = False
    """Continue the run in this folder, or start it."""
    checkpoint_minutes: float = 1.0
    """Minutes between checkpoints; 0 for none by time."""
    keep: int = 2
    """Checkpoints that are kept, the newest."""
    keep_best: str | None = None
    """A metric: the checkpoint with the most of it is kept too (best.json), or with the least of a loss,
    error, perplexity, nats or kl, told by its name."""
    replay: bool = False
    """Of a run that met a nan: take its steps singly from the last checkpoint, and name the operation."""
    mesh: str | None = None
    """Devices side by side, "data=4,model=2" or "auto"; the axes are members, data, fsdp and model."""
    writers: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Where metrics go beside metrics.jsonl (extras [tensorboard], [wandb], [mlflow])."""

    def upkeep(self) -> Upkeep:
        """Return these fields as `open_run` takes them."""
        return Upkeep(self.checkpoint_minutes, self.keep, self.keep_best, self.replay, self.writers)


@dataclasses.dataclass(frozen=True)
class RunConfig(KeepConfig):
    """The fields of every experiment's configuration that has a folder."""

    out: str = dataclasses.field(kw_only=True)
    """Folder of the run: configuration, metrics, checkpoints, results and figures."""

    def open_folder(self) -> RunFolder:
        """Create the run's folder, or open the one to continue; see `open_run`."""
        folder = open_run(self.out, self, resume=self.resume, upkeep=self.upkeep())
        name = _name_script(type(self))
        if name is not None and not (folder.path / MADE_BY_FILE).exists():
            folder.write_json(MADE_BY_FILE, {"experiment": name})
        return folder


def _name_script(config: type) -> str | None:
    """Return the name of the script that defines a configuration; None of what stands in no script."""
    if config.__module__.startswith("jaxrl_align."):
        return None
    try:
        return Path(inspect.getfile(config)).stem
    except (TypeError, OSError):  # typed at a prompt
        return None


def _check_same_run(config_path: Path, config: dict[str, Any]) -> None:
    try:
        was, now = differences(json.loads(config_path.read_text(encoding="utf-8")), config)
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise ValueError(f"cannot read {config_path} ({error}); pass --out with a new folder") from error
    if was or now:
        raise ValueError(
            f"the run in {config_path.parent} was made with {was}, but this run has {now}; "
            "pass --out with a new folder, or the same configuration"
        )
