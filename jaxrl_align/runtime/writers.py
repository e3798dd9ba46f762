"""Metrics for other programs to draw: TensorBoard's event files, and Weights & Biases."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_align.atomic import writes
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.metrics import History


class Writer(NamedTuple):
    """Where metrics go beside `metrics.jsonl`; close it at the end of a run."""

    write: Callable[[int, Mapping[str, float]], None]
    """`(step, metrics)`: the numbers of one step; those that are not finite are left out."""
    close: Callable[[], None]


def open_writers(names: Sequence[str], folder: RunFolder, first_step: int = 0) -> Writer:
    """Open several writers as one.

    Args:
      names: of "tensorboard" and "wandb"; none writes nothing.
      folder: of the run; both write below it.
      first_step: where a continued run goes on; what was drawn from there on is replaced.

    Raises:
      ImportError: naming the extra that brings a writer.
      ValueError: for another name.
    """
    if unknown := sorted(set(names) - WRITERS.keys()):
        raise ValueError(f"writers must be of {', '.join(WRITERS)}; got {', '.join(unknown)}")
    kinds = dict.fromkeys(names) if writes() else ()
    opened = [WRITERS[name](folder, first_step) for name in kinds]

    def write(step: int, metrics: Mapping[str, float]) -> None:
        finite = {name: float(value) for name, value in metrics.items() if np.isfinite(value)}
        for writer in opened:
            writer.write(step, finite)

    def close() -> None:
        for writer in opened:
            writer.close()

    return Writer(write, close)


def write_history(writer: Writer, done: int, metrics: History) -> None:
    """Write a chunk's metrics, each [steps], which end at step `done`."""
    steps = max((len(values) for values in metrics.values()), default=0)
    for i in range(steps):
        row = {name: float(values[i]) for name, values in metrics.items() if np.ndim(values) == 1}
        writer.write(done - steps + i + 1, row)


def _open_tensorboard(folder: RunFolder, first_step: int) -> Writer:
    package = _need("tensorboardX", "tensorboard")
    events = package.SummaryWriter(str(folder.path / "tensorboard"), purge_step=first_step + 1)

    def write(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            events.add_scalar(name, value, step)
        events.flush()

    return Writer(write, events.close)


def _open_wandb(folder: RunFolder, first_step: int) -> Writer:
    package = _need("wandb", "wandb")
    run = package.init(
        project="jaxrl-align",
        id=_name_run(folder),
        dir=str(folder.path),
        config=folder.config,
        resume="allow",
    )
    return Writer(lambda step, metrics: run.log(dict(metrics), step=step), run.finish)


def _name_run(folder: RunFolder) -> str:
    """Return the run's name at wandb, kept in the folder so that a continued run is the same one."""
    if not (folder.path / "wandb.json").exists():
        folder.write_json("wandb.json", np.random.default_rng().bytes(8).hex())
    return folder.read_json("wandb.json")


def _need(package: str, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"the writer {extra} needs {package}; pip install 'jaxrl-align[{extra}]'"
        ) from error


WRITERS: dict[str, Callable[[RunFolder, int], Writer]] = {
    "tensorboard": _open_tensorboard,
    "wandb": _open_wandb,
}
