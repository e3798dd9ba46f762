"""Take results of finished runs into the repository, and build what is read from them.

    python experiments/record.py runs/trust_regions            # into docs/results/trust_regions.json
    python experiments/record.py runs/modern --name layerwise_modern
    python experiments/record.py                               # pages and tiles alone; `make results`

Pages (docs/results/), the tiles of the README and the verdicts of docs/lectures.md are made from the files
docs/results/*.json and hold no number of their own. At the end it lists the results that are older than the
code they ran through.
"""

import json
import re
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import record_age
import record_pages
import tyro

from jaxrl_align.runtime import cli
from jaxrl_align.runtime.evidence import RESULT_FILE, RUN
from jaxrl_align.runtime.folder import write_json

FIGURES = 2
"""How many figures of a result are kept, the first ones."""


@dataclass(frozen=True)
class Config:
    """Take results of runs into docs/results and build the pages."""

    runs: tyro.conf.Positional[tuple[str, ...]] = ()
    """Folders of finished runs; none builds the pages alone."""
    name: str | None = None
    """What one result is called; else as its script."""
    root: str = str(record_age.ROOT)
    """The repository."""


def take(run: Path, name: str | None, results: Path) -> str:
    """Copy a run's result and figures into the folder `results`; return its name there.

    Raises:
      ValueError: the run has no result yet, or one of code that no commit holds.
    """
    if not (run / RESULT_FILE).exists():
        raise ValueError(f"{run} has no {RESULT_FILE}; let the run end first")
    result = json.loads((run / RESULT_FILE).read_text(encoding="utf-8"))
    commit = result[RUN]["commit"]
    if commit is None or commit.endswith("+"):
        raise ValueError(f"{run} was run from code that no commit holds ({commit}); commit, and run it again")
    name = name or script_of(result).stem
    if not re.fullmatch(r"\w+", name):
        raise ValueError(f"a result's name is made of letters, digits and _, got {name!r}")
    kept = {f"{name}{_number(i)}.png": figure for i, figure in enumerate(result["figures"][:FIGURES])}
    results.mkdir(parents=True, exist_ok=True)
    for old in results.glob(f"{name}*.png"):
        if re.fullmatch(rf"{name}(_\d)?\.png", old.name):
            old.unlink()
    for new, figure in kept.items():
        shutil.copyfile(run / figure, results / new)
    write_json(results / f"{name}.json", result | {"figures": list(kept)})
    return name


def _number(i: int) -> str:
    return f"_{i + 1}" if i else ""


def script_of(result: dict[str, Any]) -> Path:
    """Return the script in a result's command, relative to the repository."""
    return Path(shlex.split(result[RUN]["command"])[1])


def ages(results: dict[str, dict[str, Any]], root: Path) -> dict[str, list[str]]:
    """Return by name the changed files of each result that is older than what it ran through."""
    changed = {
        name: record_age.changed_since(result[RUN]["commit"], root / script_of(result), root)
        for name, result in results.items()
    }
    return {name: files for name, files in changed.items() if files}


def main(config: Config) -> None:
    """Take the runs in, build the pages, and list what is old."""
    root = Path(config.root)
    if config.name is not None and len(config.runs) != 1:
        raise ValueError(f"--name is of one run; got {len(config.runs)} runs")
    for run in config.runs:
        print(f"docs/results/{take(Path(run), config.name, root / 'docs' / 'results')}.json: from {run}")
    results = record_pages.read_results(root)
    for path in record_pages.build(root, results):
        print(f"wrote {path.relative_to(root)}")
    for name, files in ages(results, root).items():
        shown = ", ".join(files[:4]) + (f" and {len(files) - 4} more" if len(files) > 4 else "")
        print(f"{name} is older than {shown}")


if __name__ == "__main__":
    cli.main(Config, main)
