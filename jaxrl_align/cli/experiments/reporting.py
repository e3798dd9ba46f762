"""The command `report`: a run as one page of HTML that needs nothing beside it."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tyro.conf import Positional

from jaxrl_align.atomic import atomic_path
from jaxrl_align.cli.experiments.pages import curve, heading, page, paragraph, picture, table
from jaxrl_align.cli.experiments.run_folders import by_member, open_runs
from jaxrl_align.cli.runs.course import HELD_OUT_FILE, SAMPLES_FILE
from jaxrl_align.runtime.evidence import RESULT_FILE, RUN, cell_text, table_cells
from jaxrl_align.runtime.folder import CONFIG_FILE, MADE_BY_FILE, flatten_config
from jaxrl_align.typed import brief, read_object

SAMPLES = 60
"""Rows of samples that are shown, the last ones."""


@dataclass(frozen=True)
class Report:
    """Write a run as one page of HTML: result, figures, metrics, samples, configuration, environment.

    The page needs no other file and no network, and holds no script.
    """

    run: Positional[str]
    """The run's folder: an experiment's, or the --out of a training command."""
    out: str | None = None
    """The page; None, report.html in the folder."""


def run_report(options: Report, argv: Sequence[str]) -> None:
    """Write the page."""
    folder = Path(options.run)
    text = report_page(folder)
    out = folder / "report.html" if options.out is None else Path(options.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"{out}: {len(text.encode()) / 1e6:.1f} MB")


def report_page(folder: Path) -> str:
    """Return the page of a run.

    Raises:
      ValueError: the folder holds no run.
      OSError: a figure cannot be read.
    """
    runs = open_runs([str(folder)])
    config = _either(folder, CONFIG_FILE, read_object) or {}
    maker = (_either(folder, MADE_BY_FILE, read_object) or {}).get("experiment") or config.get("command")
    name = folder.name or folder.resolve().name
    title = f"{name}: {maker}" if maker else name
    parts = [heading(title, 1)]
    result = _either(folder, RESULT_FILE, read_object) or {}
    for show in (_result_parts, _other_parts):
        try:
            parts += show(result)
            break
        except (KeyError, TypeError, AttributeError, ValueError):  # of an experiment with a form of its own
            continue
    figures = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".gif"))
    if figures:
        parts += [heading("Figures"), *(picture(x, x.relative_to(folder).as_posix()) for x in figures)]
    parts.append(heading("Metrics"))
    for run in runs:
        if len(runs) > 1:
            parts.append(heading(run.name.removeprefix(f"{folder}/"), 3))
        curves = [curve(name, by_member(values)) for name, values in run.history.items()]
        parts.append('<div class="curves">\n' + "\n".join(curves) + "\n</div>")
    parts += _texts(folder)
    settings = [(name, value) for name, value in flatten_config(config).items()]
    parts += [heading("Configuration"), table([("setting", "value"), *settings])]
    environment = result.get(RUN)
    if isinstance(environment, Mapping):
        rows = flatten_config(dict(environment))
        parts += [heading("Environment"), table([("what", "value"), *rows.items()])]
    return page(title, parts)


def _result_parts(result: Mapping[str, Any]) -> list[str]:
    """Return what `runtime.write_result` has written."""
    checks = [(text, "yes" if holds else "no") for text, holds in result["checks"].items()]
    numbers = result["headline"] | result["baselines"]
    parts = [
        heading("Result"),
        paragraph(f"Claim: {result['claim']}"),
        paragraph(f"The claim {result['verdict']}."),
        table([("what the claim says", "holds"), *checks]),
        table([("number", "value [95%]"), *((name, cell_text(x)) for name, x in numbers.items())]),
    ]
    for name, cells in result["tables"].items():
        parts += [heading(name, 3), table(table_cells(cells))]
    return parts + [paragraph(note) for note in result["notes"]]


def _other_parts(result: Mapping[str, Any]) -> list[str]:
    rows = flatten_config(dict(result))
    return [heading("Result"), table([("what", "value"), *rows.items()])] if rows else []


def _texts(folder: Path) -> list[str]:
    """Return samples and held-out metrics, as training commands write them."""
    parts = []
    held_out = [
        {"step": step} | row for step, row in (_either(folder, HELD_OUT_FILE, _read_steps) or {}).items()
    ]
    samples = _either(folder, SAMPLES_FILE, _read_rows) or []
    for title, rows in (("Held-out rows", held_out), ("Samples", samples[-SAMPLES:])):
        names = list(dict.fromkeys(name for row in rows for name in row))
        cells = [[_text(row.get(name, "")) for name in names] for row in rows]
        parts += [heading(title), table([names, *cells])] if rows else []
    return parts


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _read_steps(path: Path) -> dict[str, dict[str, Any]]:
    rows = read_object(path)
    return dict(zip(rows, _objects(list(rows.values())), strict=True))


def _read_rows(path: Path) -> list[dict[str, Any]]:
    return _objects([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])


def _objects(rows: list[Any]) -> list[dict[str, Any]]:
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("it must hold objects alone")
    return rows


def _either(folder: Path, name: str, read: Callable[[Path], Any]) -> Any:
    """Return what a file in the folder, or in its `run/`, holds; None where there is none.

    Raises:
      ValueError: it is damaged.
    """
    for path in (folder / name, folder / "run" / name):
        if path.exists():
            try:
                return read(path)
            except (ValueError, RecursionError) as error:
                raise ValueError(
                    f"{path} is damaged ({brief(error)}); copy it again, or remove it"
                ) from error
    return None
