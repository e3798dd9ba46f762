"""Metrics for other programs to draw: TensorBoard's event files, Weights & Biases, and MLflow.

    class Printer:
        def write(self, step, metrics):
            print(step, metrics)

    loop.run(step, state, 1_000, folder=folder, writers=[Printer()])

`metrics.jsonl` is written whether there is a writer or not.
"""

import importlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from jaxrl_align.atomic import writes
from jaxrl_align.runtime.folder import RunFolder, to_json
from jaxrl_align.runtime.metrics import History


class Writer(Protocol):
    """Where metrics go beside `metrics.jsonl`: any object with this method."""

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Take the numbers of one step, counted from 1; those that are not finite are left out."""


class OpenWriter(NamedTuple):
    """A writer that was opened by its name; close it at the end of a run."""

    write: Callable[[int, Mapping[str, float]], None]
    """`(step, metrics)`, as `Writer` has it."""
    close: Callable[[], None]


def open_writers(names: Sequence[str], folder: RunFolder, first_step: int = 0) -> OpenWriter:
    """Open several writers as one.

    Args:
      names: of "tensorboard", "wandb" and "mlflow"; none writes nothing.
      folder: of the run; all write below it, MLflow unless MLFLOW_TRACKING_URI names another place.
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

    return OpenWriter(write, close)


def write_history(writers: Sequence[Writer], done: int, metrics: History) -> None:
    """Write a chunk's metrics, each [steps] or [steps, members], which end at step `done`.

    Of members the mean is written, over those that are finite.
    """
    if not writers:
        return
    means = {name: _over_members(np.asarray(values, np.float64)) for name, values in metrics.items()}
    steps = max(map(len, means.values()), default=0)
    for i in range(steps):
        row = {name: float(values[i]) for name, values in means.items() if np.isfinite(values[i])}
        for writer in writers:
            writer.write(done - steps + i + 1, row)


def _over_members(values: np.ndarray) -> np.ndarray:
    values = values.reshape(len(values), -1)
    finite = np.isfinite(values)
    count = finite.sum(1)
    total = np.where(finite, values, 0.0).sum(1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _open_tensorboard(folder: RunFolder, first_step: int) -> OpenWriter:
    package = _need("tensorboardX", "tensorboard")
    events = package.SummaryWriter(str(folder.path / "tensorboard"), purge_step=first_step + 1)

    def write(step: int, metrics: Mapping[str, float]) -> None:
        for name, value in metrics.items():
            events.add_scalar(name, value, step)
        events.flush()

    return OpenWriter(write, events.close)


def _open_wandb(folder: RunFolder, first_step: int) -> OpenWriter:
    package = _need("wandb", "wandb")
    run = package.init(
        project=PROJECT,
        id=_name_run(folder, "wandb.json", lambda: np.random.default_rng().bytes(8).hex()),
        dir=str(folder.path),
        config=folder.config,
        resume="allow",
    )
    return OpenWriter(lambda step, metrics: run.log(dict(metrics), step=step), run.finish)


def _open_mlflow(folder: RunFolder, first_step: int) -> OpenWriter:
    package = _need("mlflow", "mlflow")
    own = f"sqlite:///{folder.path.absolute() / 'mlflow.db'}"
    client = package.MlflowClient(tracking_uri=os.environ.get("MLFLOW_TRACKING_URI") or own)

    def begin() -> str:
        known = client.get_experiment_by_name(PROJECT)
        project = client.create_experiment(PROJECT) if known is None else known.experiment_id
        started = client.create_run(project, run_name=folder.path.name).info.run_id
        for name, value in to_json(folder.config).items():
            client.log_param(started, name, str(value)[:MOST_MLFLOW])
        return started

    run = _name_run(folder, "mlflow.json", begin)

    def write(step: int, metrics: Mapping[str, float]) -> None:
        now = int(1_000 * time.time())
        rows = [package.entities.Metric(_plain_name(name), x, now, step) for name, x in metrics.items()]
        client.log_batch(run, metrics=rows)

    return OpenWriter(write, lambda: client.set_terminated(run))


PROJECT = "jaxrl-align"
"""What runs belong to, at wandb and at MLflow."""
MOST_MLFLOW = 500
"""Characters of a parameter that every store of MLflow takes."""


def _plain_name(name: str) -> str:
    """Return a metric's name as MLflow takes it."""
    return re.sub(r"[^\w\-. /]", "_", name, flags=re.ASCII)


def _name_run(folder: RunFolder, file: str, begin: Callable[[], str]) -> str:
    """Return the run's name elsewhere, kept in the folder so that a continued run is the same one."""
    if not (folder.path / file).exists():
        folder.write_json(file, begin())
    return folder.read_json(file)


def _need(package: str, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise ImportError(
            f"the writer {extra} needs {package}; pip install 'jaxrl-align[{extra}]'"
        ) from error


WRITERS: dict[str, Callable[[RunFolder, int], OpenWriter]] = {
    "tensorboard": _open_tensorboard,
    "wandb": _open_wandb,
    "mlflow": _open_mlflow,
}
