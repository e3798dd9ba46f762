"""The commands `plot` and `compare`: curves of runs, their final values, and how they were set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tyro.conf import Positional

from jaxrl_align.cli.experiments.run_folders import (
    KeptRun,
    by_member,
    choose_metric,
    config_differences,
    open_runs,
)
from jaxrl_align.runtime.evidence import aligned_rows
from jaxrl_align.runtime.plots import save_curves
from jaxrl_align.runtime.statistics import paired_interval, t_interval


@dataclass(frozen=True)
class Plot:
    """Draw a metric of runs: the mean over members with its 95% t interval, one curve a run."""

    runs: Positional[tuple[str, ...]]
    """Folders of runs; of one with stages, each stage is a curve."""
    metric: str | None = None
    """Of metrics.jsonl; None takes the return, reward, accuracy or loss, the first that all have."""
    out: str = "plot.png"
    """The figure, a PNG."""
    first: int = 0
    """The step with which the curves begin."""


def run_plot(options: Plot, argv: Sequence[str]) -> None:
    """Draw the curves."""
    runs = open_runs(options.runs)
    metric = choose_metric(runs, options.metric)
    path = Path(options.out)
    if path.suffix.lower() != ".png":
        raise ValueError(f"--out must be a .png; got {path}")
    curves = {}
    for run in runs:
        values = by_member(run.history[metric])
        if not 0 <= options.first < len(values):
            raise ValueError(
                f"--first must be below the {len(values)} steps of {run.name}; got {options.first}"
            )
        steps = np.arange(1, len(values) + 1)
        curves[_as_label(run.name)] = (steps[options.first :], values[options.first :])
    path.parent.mkdir(parents=True, exist_ok=True)
    save_curves(path, "step", _as_label(metric), curves)
    print(f"{path} shows {metric} of {len(runs)} run{'' if len(runs) == 1 else 's'}")


def _as_label(name: str) -> str:
    """Return a name as matplotlib shows it: it reads what is between $ as a formula, and hides `_name`."""
    return ("./" if name.startswith("_") else "") + name.replace("$", r"\$")


@dataclass(frozen=True)
class Compare:
    """Compare runs: final values with 95% t intervals over members, differences, and settings that differ.

    Differences from the first run are paired by member where both runs have the same seed and as many
    members.
    """

    runs: Positional[tuple[str, ...]]
    """Folders of runs; of one with stages, each stage is a row."""
    metrics: tuple[str, ...] = ()
    """Of metrics.jsonl; none takes the return, reward, accuracy or loss, the first that all have."""
    last: int = 1
    """Steps at the end that a final value is the mean of."""


def run_compare(options: Compare, argv: Sequence[str]) -> None:
    """Print the tables."""
    if options.last < 1:
        raise ValueError(f"--last must be at least 1; got {options.last}")
    runs = open_runs(options.runs)
    metrics = [choose_metric(runs, name) for name in options.metrics or (None,)]
    for metric in metrics:
        ends = [final_values(run, metric, options.last) for run in runs]
        rows = [[metric, "final value", "members", "steps", "less the first, paired"]]
        for i, (run, end) in enumerate(zip(runs, ends, strict=True)):
            difference = ""
            if i and shares_seeds(runs[0], run) and end.shape == ends[0].shape:
                difference = str(paired_interval(end, ends[0]))
            rows.append(
                [run.name, _value_text(end), str(len(end)), str(len(run.history[metric])), difference]
            )
        print("\n".join(["", *aligned_rows(rows)]))
    different = config_differences(runs)
    if different:
        table = [["settings that differ", *(run.name for run in runs)]]
        table += [[name, *map(_setting_text, row)] for name, row in different.items()]
        print("\n".join(["", *aligned_rows(table)]))
    elif len(runs) > 1:
        print("\nno setting differs")


def final_values(run: KeptRun, metric: str, last: int) -> np.ndarray:
    """Return each member's mean over the last steps, [M]; one number where there are no members."""
    return np.atleast_1d(by_member(run.history[metric])[-last:].mean(0))


def shares_seeds(first: KeptRun, second: KeptRun) -> bool:
    """Return whether the members of two runs have the same random keys, one by one."""
    known = "seed" in first.config and "seeds" in first.config
    return known and all(first.config[name] == second.config.get(name) for name in ("seed", "seeds"))


def _value_text(values: np.ndarray) -> str:
    if (values == values[0]).all():
        return f"{values[0]:.6g}"
    return str(t_interval(values))


def _setting_text(value: object) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
