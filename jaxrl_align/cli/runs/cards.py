"""What a run says of itself: the plan before the first compilation, and the model card at its end."""

import importlib.metadata
import json
import math
import platform
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl_align.atomic import atomic_path
from jaxrl_align.cli.runs.course import Outcome

PACKAGES = ("jaxrl-align", "jax", "flax", "optax", "numpy", "tokenizers")
LISTED = 10
"""Rows left out that a plan names."""


class Card(NamedTuple):
    """What a model card holds beside a run's outcome."""

    method: str
    """In words, with its source."""
    wrote: str
    """What the folder is, in words."""
    base: str
    """As the user named it."""
    data: Mapping[str, str]
    """Facts about the rows, by name."""
    hyperparameters: Mapping[str, Any]
    judged_by: str
    """The metric that the best step was kept by."""
    command: Sequence[str]


def print_plan(lines: Mapping[str, str], skipped: Sequence[str] = ()) -> None:
    """Print what will happen, a line each, and the rows that were left out."""
    width = max(map(len, lines))
    for name, text in lines.items():
        print(f"{name:{width}}  {text}")
    if skipped:
        print(f"{len(skipped):,} rows are left out:")
        for message in skipped[:LISTED]:
            print(f"  {message[:160]}")
        if len(skipped) > LISTED:
            print(f"  and {len(skipped) - LISTED:,} more")
    print(flush=True)


def write_card(folder: Path, card: Card, outcome: Outcome, seconds: float) -> None:
    """Write the model card `README.md` of a run's outcome."""
    lines = [
        "---",
        f"base_model: {json.dumps(card.base)}",
        "library_name: jaxrl-align",
        f"tags: [{card.method.split(' ', 1)[0].strip(',:').lower()}, jaxrl-align]",
        "---",
        "",
        f"# {Path(card.base).name}, {card.method.split(' (')[0]}",
        "",
        f"{card.wrote[0].upper()}{card.wrote[1:]}: `{card.base}` trained by {card.method}.",
        "Licence: to be stated by whoever publishes it; those of the base and of the data apply.",
        "",
        *_metrics_lines(card, outcome),
        *_table("Data", card.data),
        *_table("Settings", card.hyperparameters),
        *_samples_lines(outcome.samples),
        "## Command",
        "",
        "```sh",
        shlex.join(["jaxrl-align", *card.command]),
        "```",
        "",
        f"{seconds:.0f} s on {jax.device_count()} {jax.devices()[0].platform} device(s), Python "
        f"{platform.python_version()}; " + ", ".join(f"{name} {_version(name)}" for name in PACKAGES) + ".",
        "",
    ]
    with atomic_path(folder / "README.md") as temporary:
        temporary.write_text("\n".join(lines), encoding="utf-8")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _metrics_lines(card: Card, outcome: Outcome) -> list[str]:
    steps = max((len(values) for values in outcome.history.values()), default=0)
    lines = ["## Metrics", ""]
    if outcome.held_out:
        best, first = outcome.held_out[outcome.step], outcome.held_out.get(0, {})
        lines += [
            f"On held-out rows, before training and at step {outcome.step} of {steps}, whose weights these "
            f"are (the best `{card.judged_by}`):",
            "",
            "| metric | before | after |",
            "|---|---|---|",
            *(f"| {name} | {_number(first.get(name))} | {_number(value)} |" for name, value in best.items()),
            "",
        ]
    lines += [f"In training, the first and the last tenth of {steps} steps:", "", "| metric | first | last |"]
    tenth = max(1, steps // 10)
    lines += ["|---|---|---|"]
    for name, values in outcome.history.items():
        if np.ndim(values) == 1:
            ends = (_number(_mean(values[:tenth])), _number(_mean(values[-tenth:])))
            lines.append(f"| {name} | {ends[0]} | {ends[1]} |")
    return [*lines, ""]


def _mean(values: Any) -> float:
    finite = np.asarray(values, np.float64)
    finite = finite[np.isfinite(finite)]
    return float(finite.mean()) if finite.size else math.nan


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"


def _table(title: str, facts: Mapping[str, Any]) -> list[str]:
    rows = [f"| {name} | {_cell(value)} |" for name, value in facts.items()]
    return [f"## {title}", "", "| | |", "|---|---|", *rows, ""]


def _cell(value: Any) -> str:
    text = ", ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return " ".join(text.replace("|", "\\|").split())


def _samples_lines(samples: Iterable[Mapping[str, Any]]) -> list[str]:
    rows = list(samples)
    if not rows:
        return []
    steps = {row["step"] for row in rows}
    ends = {min(steps): "before", max(steps): "after"}
    lines = ["## Samples", "", "The likeliest words, of the first and of the last table of the run.", ""]
    lines += ["| prompt | step | completion |", "|---|---|---|"]
    for prompt in dict.fromkeys(row["prompt"] for row in rows):
        for row in rows:
            if row["prompt"] == prompt and row["step"] in ends:
                cells = [_cell(row[name])[-200:] for name in ("prompt", "step", "completion")]
                lines.append(f"| {cells[0]} | {cells[1]} | {cells[2]} |")
    return [*lines, ""]
