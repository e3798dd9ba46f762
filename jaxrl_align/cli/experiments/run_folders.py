"""What lies in folders of runs: histories by name, configurations, and the metric that is meant."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrl_align.cli.config_files import suggest
from jaxrl_align.runtime.folder import CONFIG_FILE, UNCOMPARED, flatten_config
from jaxrl_align.runtime.metrics import METRICS_FILE, History, read_metrics
from jaxrl_align.typed import read_object

USUAL = (
    "episode_return_last100",
    "objective/scores",
    "reward",
    "rewards/accuracies",
    "accuracy",
    "loss",
)
"""What is shown of a run unless something is asked for, the first that it has."""


class KeptRun(NamedTuple):
    """A run, or a stage of one, as its folder tells it."""

    name: str
    """The folder as it was given, with the stage's name behind it."""
    config: dict[str, Any]
    """Without nesting, and without what says only where and how it was run."""
    history: History
    """Each metric [steps], or [steps, members, ...]."""


def open_runs(folders: Sequence[str]) -> list[KeptRun]:
    """Return the runs in folders; one that consists of stages gives all of them.

    Raises:
      ValueError: no folder, one without a run, or damaged files; it names them.
    """
    if not folders:
        raise ValueError("name at least one run's folder")
    found = [run for folder in dict.fromkeys(folders) for run in _open_run(Path(folder))]
    return [run for run in found if run.history]


def _open_run(folder: Path) -> list[KeptRun]:
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; pass a run's")
    places = [path.parent for path in (folder / METRICS_FILE, folder / "run" / METRICS_FILE) if path.exists()]
    places = places[:1] or sorted(path.parent for path in folder.rglob(METRICS_FILE))
    if not places:
        raise ValueError(f"{folder} holds no run ({METRICS_FILE} is missing)")
    runs = []
    for place in places:
        stage = place.relative_to(folder).as_posix()
        name = str(folder) if stage in (".", "run") else f"{folder}/{stage}"
        runs.append(KeptRun(name, read_config_file(place), read_metrics(place / METRICS_FILE)))
    return runs


def read_config_file(folder: Path) -> dict[str, Any]:
    """Return the configuration in a run's folder, without nesting; empty where there is none."""
    path = folder / CONFIG_FILE
    values = read_object(path) if path.exists() else {}
    return {name: x for name, x in flatten_config(values).items() if name not in UNCOMPARED}


def choose_metric(runs: Sequence[KeptRun], name: str | None) -> str:
    """Return the metric that is meant.

    Args:
      runs: that must have it.
      name: as it was asked for; None takes the usual one.

    Raises:
      ValueError: no run, one that lacks it, or there is no usual one; it says the likest.
    """
    if not runs:
        raise ValueError(
            f"no run has a whole row of metrics yet ({METRICS_FILE} is empty); let it take a step"
        )
    shared = set.intersection(*(set(run.history) for run in runs))
    if name is None:
        usual = [one for one in USUAL if one in shared]
        if not usual:
            raise ValueError(f"say which metric; {_names(runs)} share {', '.join(sorted(shared)) or 'none'}")
        return usual[0]
    for run in runs:
        if name not in run.history:
            raise ValueError(f"{name[:80]} is no metric of {run.name}{suggest(name, run.history)}")
    return name


def _names(runs: Iterable[KeptRun]) -> str:
    return ", ".join(run.name for run in runs)


def by_member(values: np.ndarray) -> np.ndarray:
    """Return a metric as [steps], or as [steps, M]; of what a member has several, the mean."""
    values = np.asarray(values, np.float64)
    return values if values.ndim < 2 else values.reshape(*values.shape[:2], -1).mean(-1)


def config_differences(runs: Sequence[KeptRun]) -> dict[str, list[Any]]:
    """Return the settings in which runs differ, by name, with each run's value; None where it has none."""
    names = dict.fromkeys(name for run in runs for name in run.config)
    values: Mapping[str, list[Any]] = {name: [run.config.get(name) for run in runs] for name in names}
    return {name: row for name, row in values.items() if any(x != row[0] for x in row)}
