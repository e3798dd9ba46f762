"""What is made of the results of record: a page each, an index, the README's tiles, the lectures' verdicts.

Every text here is a function of docs/results/*.json, or of docs/benchmarks.json;
`tests/experiments/test_record.py` builds all of them again and fails where a file differs.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmark_pages import benchmark_text, read_speeds, with_speeds

from jaxrl_align.atomic import atomic_path
from jaxrl_align.runtime.evidence import RUN, cell_text, table_cells

Results = Mapping[str, dict[str, Any]]
"""Results of record by name."""
TILES = (
    "rlhf",
    "align",
    "trust_regions",
    "layerwise_pretraining",
    "instruction_tuning",
    "replay_ablation",
)
"""The README's, as far as they are recorded; the last one's claim does not hold as it stands."""
TILED = {
    "README.md": ("docs/results", '<a href="{page}"><img src="{png}" width="260" alt="{name}"></a>'),
    "docs/index.md": ("results", '[![{name}]({png}){{ width="260" }}]({page})'),
}
"""Pages with tiles: from where they see the results, and how they show a figure (GitHub, mkdocs)."""
BEGIN, END = "<!-- made by `make results` -->", "<!-- to here -->"
MARKS = {"holds": "holds", "holds in part": "in part", "does not hold": "no"}


def read_results(root: Path) -> dict[str, dict[str, Any]]:
    """Return the results of record by name."""
    paths = sorted((root / "docs" / "results").glob("*.json"))
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def pages(root: Path, results: Results) -> dict[Path, str]:
    """Return every file that is made from the results, and its text.

    Raises:
      ValueError: a file that is made in part has lost the marks of that part.
    """
    folder = root / "docs" / "results"
    made = {folder / f"{name}.md": page_text(name, result) for name, result in results.items()}
    made[folder / "README.md"] = index_text(results)
    for path, (to_results, figure) in TILED.items():
        text = (root / path).read_text(encoding="utf-8")
        made[root / path] = with_tiles(text, results, to_results=to_results, figure=figure)
    if speeds := read_speeds(root):
        made[root / "docs" / "benchmarks.md"] = benchmark_text(*speeds)
        made[root / "README.md"] = with_speeds(made[root / "README.md"], *speeds)
    lectures = root / "docs" / "lectures.md"
    made[lectures] = with_verdicts(lectures.read_text(encoding="utf-8"), results)
    return made


def build(root: Path, results: Results) -> list[Path]:
    """Write what `pages` returns; return the files that changed."""
    changed = []
    for path, text in pages(root, results).items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(exist_ok=True)
            with atomic_path(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
            changed.append(path)
    return changed


def page_text(name: str, result: Mapping[str, Any]) -> str:
    """Return the page of one result, Markdown."""
    run = result[RUN]
    rows = ", ".join(f"[{row}](../lectures.md#{row.lower()})" for row in result["rows"]) or "none"
    lines = [f"# {name.replace('_', ' ')}", "", f"**Claim** (lectures: {rows}). {result['claim']}", ""]
    lines += [f"**It {result['verdict']}.**", ""]
    lines += [f"- {'yes' if holds else '**no**'}: {text}" for text, holds in result["checks"].items()]
    lines += ["", *_numbers(result), ""]
    for figure in result["figures"]:
        lines += [f"![{name.replace('_', ' ')}]({figure})", ""]
    for title, table in result["tables"].items():
        lines += [f"### {title[:1].upper() + title[1:]}", "", *_markdown(table_cells(table)), ""]
    lines += [f"- {note}" for note in result["notes"]] + [""] * bool(result["notes"])
    versions = ", ".join(f"{package} {version}" for package, version in run["versions"].items() if version)
    continued = " of the last part of a continued run" if run["continued"] else ""
    minutes = f"{run['seconds'] / 60:.1f} minutes{continued} ({run['cpu_seconds'] / 60:.1f} of CPU time)"
    lines += ["## How it was run", "", "```sh", run["command"], "```", ""]
    seeds = f"{run['seeds']} seed{'s' * (run['seeds'] != 1)}"
    lines += [f"{seeds}; {minutes} on {run['machine']}; commit `{run['commit'][:12]}`.", ""]
    return "\n".join([*lines, f"Versions: {versions}.", ""])


def _numbers(result: Mapping[str, Any]) -> list[str]:
    named = [("", result["headline"]), (" (baseline)", result["baselines"])]
    cells = [[text + of, cell_text(value)] for of, numbers in named for text, value in numbers.items()]
    return _markdown([["number", "value [95% interval]"], *cells])


def _markdown(cells: list[list[str]]) -> list[str]:
    head, *rows = [["&nbsp;" if not x else x.replace("|", "\\|") for x in row] for row in cells]
    rule = "|---" + "|---:" * (len(head) - 1) + "|"
    return [f"| {' | '.join(head)} |", rule, *(f"| {' | '.join(row)} |" for row in rows)]


def index_text(results: Results) -> str:
    """Return the index of all results, Markdown."""
    lines = [
        "# Results",
        "",
        "What the experiments found, each with its claim, its numbers and its command.",
        "The digits are those of the machine and the cores that a page names ([why](../runs.md));",
        "elsewhere compare intervals.",
        "",
    ]
    lines += ["| result | claim | it | number |", "|---|---|---|---|"]
    for name, result in results.items():
        text, value = next(iter(result["headline"].items()))
        cells = f"[{name}]({name}.md) | {result['claim']} | {result['verdict']} | {text}: {cell_text(value)}"
        lines.append(f"| {cells} |")
    return "\n".join([*lines, ""])


def with_tiles(page: str, results: Results, *, to_results: str, figure: str) -> str:
    """Return a page with its tiles made anew, between their marks.

    Args:
      page: its text, Markdown.
      results: of record.
      to_results: where docs/results lies, seen from the page.
      figure: how the page shows one, with `{png}`, `{page}` and `{name}`.
    """
    lines = ["| | claim | what came out |", "|---|---|---|"]
    for name in [name for name in TILES if name in results]:
        result, md = results[name], f"{to_results}/{name}.md"
        shown = figure.format(png=f"{to_results}/{result['figures'][0]}", page=md, name=name)
        numbers = "; ".join(f"{text}: {cell_text(value)}" for text, value in result["headline"].items())
        lines.append(f"| {shown} | {result['claim']} | [It **{result['verdict']}**]({md}). {numbers} |")
    if BEGIN not in page or END not in page:
        raise ValueError(f"the page must hold the lines {BEGIN} and {END}, between which the tiles go")
    return page.partition(BEGIN)[0] + "\n".join([BEGIN, "", *lines, "", END]) + page.partition(END)[2]


def with_verdicts(lectures: str, results: Results) -> str:
    """Return docs/lectures.md with the last cell of every row of a lecture made anew."""
    by_row: dict[str, list[str]] = {}
    for name, result in results.items():
        for row in result["rows"]:
            by_row.setdefault(row, []).append(f"[{MARKS[result['verdict']]}](results/{name}.md)")

    def verdict(match: re.Match) -> str:
        return f"{match[1]} {', '.join(by_row.get(match[2], [])) or '-'} |"

    return re.sub(r'^(\| <a id="\w+"></a>([A-H]\d+) \|.*\|)[^|\n]*\|$', verdict, lectures, flags=re.M)


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("record")
