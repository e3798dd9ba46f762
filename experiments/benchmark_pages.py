"""What is made of docs/benchmarks.json and docs/accelerator.json: their page, and the README's speeds.

`benchmarks/run_all.py` writes the one, `benchmarks/accelerator.py` the other, `make results` these texts; a
test builds them again and fails where one differs.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrl_align.runtime.evidence import three_digits

BEGIN, END = "<!-- speeds, made by `make results` -->", "<!-- to the last speed -->"
Record = Mapping[str, dict[str, Any]]
"""What `run_all.py` measured, by benchmark."""
Rows = Sequence[Mapping[str, Any]]
"""What `accelerator.py` measured."""
SHOWN = ("GPT-2 124M, unrolled", "SmolLM2-135M, unrolled", "32 runs by vmap", "ours", "rejax", "purejaxrl")
"""Its rows that the README shows."""

VARIANTS = (
    "Text in bfloat16. `unrolled` compiles a model's layers one behind the other (`unroll=True`), `looped`",
    "as a loop. Training reads by cuDNN's attention (`attention=\"cudnn\"`), and its products are cuBLAS's",
    "alone, which a flag asks for that small networks lose by.",
)


def read_speeds(root: Path) -> tuple[dict[str, dict[str, Any]], list[dict[str, Any]]] | None:
    """Return docs/benchmarks.json and docs/accelerator.json, None where nothing was measured yet."""
    paths = [root / "docs" / name for name in ("benchmarks.json", "accelerator.json")]
    if not all(path.exists() for path in paths):
        return None
    record, rows = (json.loads(path.read_text(encoding="utf-8")) for path in paths)
    return record, rows


def benchmark_text(record: Record, rows: Rows) -> str:
    """Return the page, Markdown: for each benchmark its rows and how they were measured."""
    lines = [
        "# Speed",
        "",
        "Each side in turn in one run, in the same precision and on the same shapes: medians of the rates,",
        "and of the rounds' ratios with their range. The floor is what the machine's own products and",
        "transfers of the work's shapes would take, nothing else; the scripts say how it is counted, where",
        "their time goes, and what was tried in vain. `elsewhere` is the ratio on another host, whose rates",
        "stand below. To measure again:",
        "`python experiments/benchmarks/run_all.py --help`, and on a GPU `accelerator.py --help` there.",
        "",
        "![ratios to other libraries](benchmarks.png)",
    ]
    for name, measured in record.items():
        lines += [
            "",
            f"## {name.replace('_', ' ')}",
            "",
            *_table([measured]),
            "",
            run_text(name, measured["run"]),
        ]
        if "elsewhere" in measured:
            lines[-1] += f" Elsewhere: {run_text(name, measured['elsewhere']['run'])}"
    commits = sorted({_short(row["commit"]) for row in rows})
    lines += ["", f"## One {rows[0]['device']}", "", *VARIANTS, "", *_device_table(rows), ""]
    lines += [f"`experiments/benchmarks/accelerator.py`, commits {', '.join(f'`{c}`' for c in commits)};"]
    versions = {name: version for name, version in rows[0]["versions"].items() if name != "XLA_FLAGS"}
    return "\n".join([*lines, f"{_listed(versions)}.", ""])


def run_text(name: str, run: Mapping[str, Any]) -> str:
    """Return how a benchmark was run."""
    peers = f"; beside {_listed(run['peers'])}" if run["peers"] else ""
    host = ""
    if "host" in run:
        rates = run["host"]
        host = (
            f" (products at {rates['gflop_s']} GFLOP/s, memory read at {rates['read_gb_s']} GB/s, "
            f"{rates['wake_us']} us to wake the other core)"
        )
    return (
        f"`experiments/benchmarks/{name}.py`, {run['rounds']} rounds, {run['seconds']:,.0f} s on "
        f"{run['machine']}{host}; commit `{_short(run['commit'])}`; {_listed(run['versions'])}{peers}."
    )


def with_speeds(page: str, record: Record, rows: Rows) -> str:
    """Return the README with its tables of speeds made anew, between their marks.

    Raises:
      ValueError: the page has lost the marks.
    """
    if BEGIN not in page or END not in page:
        raise ValueError(f"the page must hold the lines {BEGIN} and {END}, between which the speeds go")
    shown = [row for row in rows if row["what"] in SHOWN]
    lines = [BEGIN, "", *_table(list(record.values()), alone=False), "", *_device_table(shown), "", END]
    return page.partition(BEGIN)[0] + "\n".join(lines) + page.partition(END)[2]


def _own(rival: Mapping[str, Any]) -> bool:
    return rival["name"].startswith("ours")


def _short(commit: str | None) -> str:
    return (commit or "unknown")[:12]


def _listed(versions: Mapping[str, str | None]) -> str:
    return ", ".join(f"{package} {version}" for package, version in versions.items() if version)


def _device_table(rows: Rows) -> list[str]:
    """Return what a device measured as a table, Markdown."""
    lines = [f"| on one {rows[0]['device']} | | how |", "|---|---|---|"]
    for row in rows:
        ratio = "" if row["ratio"] is None else f", {three_digits(row['ratio'])} times"
        value = f"{three_digits(row['value'])} {row['unit']}{ratio}"
        flags = row["versions"].get("XLA_FLAGS")
        note = row["note"] + (f"; `{flags}`" if flags else "")
        lines.append(f"| {row['part']}: {row['what']} | {value} | {note} |")
    return lines


def _table(benchmarks: Sequence[Mapping[str, Any]], alone: bool = True) -> list[str]:
    """Return benchmarks' rows as a table, Markdown; not `alone`, those beside other libraries."""
    lines = ["| what | ours | others |", "|---|---|---|"]
    for measured in benchmarks:
        there = measured.get("elsewhere", {"rows": ()})["rows"]
        elsewhere = {(row["what"], rival["name"]): rival for row in there for rival in row["rivals"]}
        for row in measured["rows"]:
            if not alone and all(_own(rival) for rival in row["rivals"]):
                continue
            share = "" if row["floor"] is None else f" ({row['rate'] / row['floor']:.0%} of the floor)"
            others = "; ".join(
                _rival_text(rival, elsewhere.get((row["what"], rival["name"]))) for rival in row["rivals"]
            )
            rate = f"{three_digits(row['rate'])} {row['unit']}{share}"
            lines.append(f"| {row['what']} | {rate} | {others or '-'} |")
    return lines


def _rival_text(rival: Mapping[str, Any], elsewhere: Mapping[str, Any] | None) -> str:
    """Return a peer's rate and our ratio to it, on another host too where it was measured there."""
    ratio = lambda r: f"{r['times']:.2f} times [{r['low']:.2f}, {r['high']:.2f}]"
    there = "" if elsewhere is None else f", elsewhere {ratio(elsewhere)}"
    return f"{rival['name']} {three_digits(rival['rate'])}: {ratio(rival)}{there}"


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("record")
