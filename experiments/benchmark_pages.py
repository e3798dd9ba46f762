"""What is made of docs/benchmarks.json: its page and the README's table of speeds.

`benchmarks/run_all.py` writes the file, `make results` these texts; a test builds them again and fails where
one differs.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jaxrl_align.runtime.evidence import three_digits

BEGIN, END = "<!-- speeds, made by `make results` -->", "<!-- to the last speed -->"
Record = Mapping[str, dict[str, Any]]
"""What `run_all.py` measured, by benchmark."""


def read_benchmarks(root: Path) -> dict[str, dict[str, Any]]:
    """Return docs/benchmarks.json; nothing where there is none yet."""
    path = root / "docs" / "benchmarks.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def benchmark_text(record: Record) -> str:
    """Return the page, Markdown: for each benchmark its rows and how they were measured."""
    lines = [
        "# Speed",
        "",
        "Each side in turn in one run, in the same precision and on the same shapes: medians of the rates,",
        "and of the rounds' ratios with their range. The floor is what the machine's own products and",
        "transfers of the work's shapes would take, nothing else; the scripts say how it is counted, where",
        "their time goes, and what was tried in vain. To measure again:",
        "`python experiments/benchmarks/run_all.py --help`.",
        "",
        "![ratios to other libraries](benchmarks.png)",
    ]
    for name, measured in record.items():
        lines += [
            "",
            f"## {name.replace('_', ' ')}",
            "",
            *_table(measured["rows"]),
            "",
            run_text(name, measured),
        ]
    return "\n".join([*lines, ""])


def run_text(name: str, measured: Mapping[str, Any]) -> str:
    """Return how a benchmark was run."""
    run = measured["run"]
    listed = lambda versions: ", ".join(f"{package} {v}" for package, v in versions.items() if v)
    peers = f"; beside {listed(run['peers'])}" if run["peers"] else ""
    commit = (run["commit"] or "unknown")[:12]
    return (
        f"`experiments/benchmarks/{name}.py`, {run['rounds']} rounds, {run['seconds'] / 60:.0f} minutes on "
        f"{run['machine']}; commit `{commit}`; {listed(run['versions'])}{peers}."
    )


def with_speeds(page: str, record: Record) -> str:
    """Return the README with its table of speeds made anew, between their marks.

    Raises:
      ValueError: the page has lost the marks.
    """
    if BEGIN not in page or END not in page:
        raise ValueError(f"the page must hold the lines {BEGIN} and {END}, between which the speeds go")
    compared = lambda row: any(not _own(rival) for rival in row["rivals"])
    rows = [row for measured in record.values() for row in measured["rows"] if compared(row)]
    return page.partition(BEGIN)[0] + "\n".join([BEGIN, "", *_table(rows), "", END]) + page.partition(END)[2]


def _own(rival: Mapping[str, Any]) -> bool:
    return rival["name"].startswith("ours")


def _table(rows: list[Mapping[str, Any]]) -> list[str]:
    """Return rows as a table, Markdown."""
    lines = ["| what | ours | others |", "|---|---|---|"]
    for row in rows:
        share = "" if row["floor"] is None else f" ({row['rate'] / row['floor']:.0%} of the floor)"
        others = "; ".join(
            f"{r['name']} {three_digits(r['rate'])}: {r['times']:.2f} times [{r['low']:.2f}, {r['high']:.2f}]"
            for r in row["rivals"]
        )
        lines.append(
            f"| {row['what']} | {three_digits(row['rate'])} {row['unit']}{share} | {others or '-'} |"
        )
    return lines


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("record")
