"""What an experiment found, as one file: its claim, what of it holds, the numbers, and how they were made.

    CLAIM = runtime.Claim("A clip keeps PPO from falling.", rows=("B16", "B21"), minutes=3)
    gain = runtime.paired_interval(clip, none, bounds=(-500, 500))
    checks = {"with the clip the return is higher": gain.low > 0}
    tables = {"returns": {"PPO": {"clip": ..., "none": ...}}}
    runtime.write_result(folder, config, CLAIM, checks=checks, tables=tables, figures=["returns.png"],
                         headline={"return with the clip less without": gain})

`write_result` prints what it writes; `experiments/record.py` takes a run's file into `docs/results/`.
"""

import dataclasses
import importlib.metadata
import inspect
import math
import platform
import shlex
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jaxrl_align.atomic import writes
from jaxrl_align.runtime.folder import UNCOMPARED, RunFolder, to_json
from jaxrl_align.runtime.mesh import count_cores
from jaxrl_align.runtime.statistics import Interval

RESULT_FILE = "result.json"
RUN = "run"
"""The entry of a result that says how it was made; all others are those of any run of the same command."""
VERSIONED = ("jaxrl_align", "jax", "jaxlib", "flax", "optax", "numpy")
Table = Mapping[str, Mapping[str, Any]]
"""Rows by name, each with its cells by column: intervals, numbers or texts."""


class Claim(NamedTuple):
    """What an experiment is to show."""

    text: str
    """In our own words, one sentence or two."""
    rows: tuple[str, ...] = ()
    """Of docs/lectures.md, "B16"; none where no lecture says it."""
    minutes: float = 1
    """What the command takes with its defaults, on two idle CPU cores."""


def write_result(
    folder: RunFolder,
    config: Any,
    claim: Claim,
    *,
    headline: Mapping[str, Interval],
    checks: Mapping[str, bool],
    tables: Mapping[str, Table],
    baselines: Mapping[str, Interval] | None = None,
    notes: Sequence[str] = (),
    figures: Sequence[str] = (),
    seeds: int | None = None,
) -> dict[str, Any]:
    """Write `result.json` into a run's folder, print it, and return it as JSON gives it back.

    Args:
      folder: of the run, as it was opened at its start.
      config: of the run, a dataclass of an experiment; what differs from its defaults makes the command.
      claim: what was to be shown.
      headline: the one number that decides, or a few, by what it is with its unit, "test error [%]".
      checks: the parts of the claim as sentences, and whether the numbers say so; they make the verdict.
      tables: every other number, by the table's title.
      baselines: what the headline is held against.
      notes: sentences on what was seen beside the claim, composed from the numbers.
      figures: files in the folder; the first stands for the result.
      seeds: how many independent runs the intervals are over; None, the configuration's `seeds`, or 1.

    Raises:
      ValueError: nothing is checked, no headline, a figure that is not there.
    """
    if not checks or not headline:
        raise ValueError("a result needs at least one check of its claim, and a headline")
    if missing := [name for name in figures if writes() and not (folder.path / name).exists()]:
        raise ValueError(
            f"{folder.path} has no figure {', '.join(missing)}; draw it before the result is written"
        )
    result = _plain(
        {
            "claim": claim.text,
            "rows": claim.rows,
            "verdict": verdict_of(checks),
            "checks": {text: bool(holds) for text, holds in checks.items()},
            "headline": headline,
            "baselines": baselines or {},
            "tables": tables,
            "notes": notes,
            "figures": figures,
            RUN: describe_run(folder, config, seeds),
        }
    )
    if writes():
        folder.write_json(RESULT_FILE, result)
        print("\n" + result_text(result))
        print(f"\n{', '.join([*figures, RESULT_FILE])}: in {folder.path}")
    return result


def verdict_of(checks: Mapping[str, bool]) -> str:
    """Return "holds" where every check does, "does not hold" where none does, else "holds in part"."""
    held = [bool(value) for value in checks.values()]
    return "holds" if all(held) else "holds in part" if any(held) else "does not hold"


def describe_run(folder: RunFolder, config: Any, seeds: int | None = None) -> dict[str, Any]:
    """Return how a run was made: command, seeds, time, machine, versions and the source's commit."""
    seconds, cpu_seconds = time.monotonic() - folder.began.wall, time.process_time() - folder.began.cpu
    return {
        "command": command_of(config),
        "seeds": getattr(config, "seeds", 1) if seeds is None else seeds,
        "seconds": round(seconds, 1),
        "cpu_seconds": round(cpu_seconds, 1),
        "continued": folder.continued,
        "commit": folder.began.commit,
    } | describe_machine()


def describe_machine() -> dict[str, Any]:
    """Return the machine that this process runs on, its first device, and the versions of what computes."""
    device = jax.devices()[0].device_kind
    return {
        "machine": f"{platform.system()} {platform.machine()}, {describe_cores()}, {device}",
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in VERSIONED},
    }


def describe_cores() -> str:
    """Return how many cores this process may use, "2 cores"."""
    count = count_cores()
    return "1 core" if count == 1 else f"{count} cores"


def command_of(config: Any) -> str:
    """Return the command line that gives an experiment this configuration.

    Where to put the run and how to keep it is left out, and so is what equals the default.
    """
    script = Path(inspect.getfile(type(config)))
    words = ["python", f"{script.parent.name}/{script.name}"]
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.name not in UNCOMPARED and to_json(value) != to_json(_default(field)):
            words += _flag(field.name.replace("_", "-"), value)
    return shlex.join(words)


def _default(field: dataclasses.Field) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return None if field.default is dataclasses.MISSING else field.default


def _flag(name: str, value: Any) -> list[str]:
    """Return the words that tyro reads as `value`."""
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if dataclasses.is_dataclass(value) or hasattr(value, "_asdict"):
        entries = to_json(value if dataclasses.is_dataclass(value) else value._asdict())
        return [
            word for key, entry in entries.items() for word in _flag(f"{name}.{key.replace('_', '-')}", entry)
        ]
    values = value if isinstance(value, tuple | list) else [value]
    words = [_number(x) if isinstance(x, float) else str(x) for x in values]
    if len(words) == 1 and isinstance(values[0], str) and words[0].startswith("-"):
        return [f"--{name}={words[0]}"]
    return [f"--{name}", *words]


def _number(x: float) -> str:
    """Return the shortest text that is read as the same number."""
    short = f"{x:g}"
    return short if float(short) == x else repr(x)


def result_text(result: Mapping[str, Any]) -> str:
    """Return a result as lines to read: claim, verdict with its checks, and the tables."""
    lines = [f"claim: {result['claim']}", f"verdict: it {result['verdict']}"]
    lines += [f"  {'yes' if holds else ' no'}  {text}" for text, holds in result["checks"].items()]
    for title, numbers in (("headline", result["headline"]), ("baselines", result["baselines"])):
        lines += [f"{title}: {text} {cell_text(value)}" for text, value in numbers.items()]
    for title, table in result["tables"].items():
        lines += ["", title, *aligned_rows(table_cells(table))]
    return "\n".join(lines + [f"note: {note}" for note in result["notes"]])


def table_cells(table: Table) -> list[list[str]]:
    """Return a table's texts, the row of column names first; a cell that a row lacks is empty."""
    columns = list(dict.fromkeys(column for row in table.values() for column in row))
    rows = [[name, *(cell_text(row[c]) if c in row else "" for c in columns)] for name, row in table.items()]
    return [["", *columns], *rows]


def cell_text(value: Any) -> str:
    """Return a number, an interval as `write_result` stores it, or a text, as tables show it."""
    if isinstance(value, Mapping):
        nan = {key: math.nan if value[key] is None else value[key] for key in ("value", "low", "high")}
        return str(Interval(kind=value["kind"], **nan))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(cell_text, value))
    return "undefined" if value is None else f"{value:.3g}" if isinstance(value, float) else str(value)


def three_digits(x: float) -> str:
    """Return three significant digits, with thousands set off: 12,300, 1.23, 0.0012."""
    rounded = float(f"{x:.3g}")
    return f"{rounded:,.0f}" if abs(rounded) >= 100 else f"{rounded:g}"


def aligned_rows(cells: list[list[str]]) -> list[str]:
    """Return a table's lines, its columns as wide as their longest text; all but the first lie right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return [
        "  "
        + "  ".join(
            f"{x:<{w}}" if not i else f"{x:>{w}}" for i, (x, w) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: intervals by the names of their fields, nan and infinity null."""
    if isinstance(value, Interval):
        return _plain(value._asdict())
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(entry) for entry in value]
    plain = to_json(value)
    if isinstance(plain, list):
        return _plain(plain)
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
