"""Every contest with other libraries, one after the other, into one file of record, one figure and one page.

Each benchmark runs in a process of its own and takes its sides in turn; what it needs is listed by its own
`--help`, what its peers need by `peers.INSTALL`. Run it on an idle machine from a clean commit: it takes
about 50 minutes on two CPU cores, `--only` a part of that. A benchmark that fails is named at the end, and
its earlier rows stay. Ratios depend on the host: `--elsewhere` keeps the rows of record and puts another
host's beside them. `make results` turns docs/benchmarks.json into docs/benchmarks.md and the README's table.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from host import describe_host

from jaxrl_align.runtime import cli
from jaxrl_align.runtime.evidence import describe_machine
from jaxrl_align.runtime.folder import write_json
from jaxrl_align.runtime.plots import COLORS, panels, save_figure
from jaxrl_align.runtime.source import source_commit

HERE = Path(__file__).parent
RECORD = HERE.parents[1] / "docs" / "benchmarks.json"

PEERS = {
    "rl": {"rejax": "rejax", "purejaxrl": "rejax", "purejaxrl_folder": "purejaxrl_folder", "sb3": "sb3"},
    "dqn": {"rejax": "rejax", "sb3": "sb3"},
    "replay": {"flashbax": "flashbax"},
    "rollout": {},
    "layerwise": {"torch": "text"},
    "generation": {"peers": "text"},
    "tuning": {"peers": "text"},
    "reward_model": {"peers": "text"},
    "alignment": {"peers": "text", "ppo_peers": "ppo"},
    "evaluation": {"peers": "text"},
}
"""Each benchmark's options that name an interpreter or a folder, and which of ours they take."""
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "lm-eval",
    "rejax",
    "gymnax",
    "jax",
    "stable-baselines3",
    "flashbax",
)
"""Those whose versions are recorded."""


@dataclass(frozen=True)
class Config:
    """Interpreters that hold the peers; what none is given for is measured alone."""

    only: tuple[str, ...] = tuple(PEERS)
    """Benchmarks; the rows of the others stay as they are."""
    rounds: int = 5
    text: str = ""
    """An interpreter with torch, transformers, peft, trl 1.16 and lm-eval."""
    ppo: str = ""
    """An interpreter with torch and trl 1.12."""
    rejax: str = ""
    """An interpreter with rejax, gymnax 0.0.9 and distrax."""
    purejaxrl_folder: str = ""
    """Where purejaxrl's ppo.py and wrappers.py lie."""
    sb3: str = ""
    """An interpreter with stable-baselines3."""
    flashbax: str = ""
    """An interpreter with flashbax."""
    record: str = str(RECORD)
    """The file of record."""
    elsewhere: bool = False
    """Put the rows beside those of record, as another host's."""


def command_of(name: str, config: Config) -> list[str]:
    """Return a benchmark's arguments behind the interpreter."""
    given = {option: getattr(config, ours) for option, ours in PEERS[name].items()}
    if not given.get("purejaxrl_folder"):
        given.pop("purejaxrl", None)
    flags = [[f"--{option.replace('_', '-')}", value] for option, value in given.items() if value]
    return [str(HERE / f"{name}.py"), "--rounds", str(config.rounds), *sum(flags, [])]


def measure(name: str, config: Config) -> dict[str, Any]:
    """Run one benchmark and return what it measured and how.

    Raises:
      RuntimeError: it failed.
    """
    arguments = command_of(name, config)
    commit, begin = source_commit(), time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        rows = Path(folder) / "rows.json"
        ended = subprocess.run([sys.executable, *arguments, "--rows", str(rows)], check=False)
        if ended.returncode:
            raise RuntimeError(f"{name} ended with {ended.returncode}")
        measured = json.loads(rows.read_text(encoding="utf-8"))
    run = {"rounds": config.rounds, "seconds": round(time.monotonic() - begin), "commit": commit}
    run |= describe_machine() | {"host": describe_host(), "peers": peer_versions(name, config)}
    return {"rows": measured, "run": run}


def peer_versions(name: str, config: Config) -> dict[str, str]:
    """Return the versions of a benchmark's peers, as their interpreters say."""
    code = (
        "import importlib.metadata as m, json\ninstalled = {}\n"
        f"for name in {PACKAGES!r}:\n"
        "    try: installed[name] = m.version(name)\n"
        "    except m.PackageNotFoundError: pass\n"
        "print(json.dumps(installed))"
    )
    pythons = {getattr(config, ours) for option, ours in PEERS[name].items() if option != "purejaxrl_folder"}
    found: dict[str, set[str]] = {}
    for python in sorted(pythons - {""}):
        said = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout
        for package, version in json.loads(said).items():
            found.setdefault(package, set()).add(version)
    return {package: " and ".join(sorted(versions)) for package, versions in found.items()}


def save_ratios(record: Mapping[str, Any], path: Path) -> None:
    """Save a figure of all ratios to peers, each with the range over its rounds."""
    named = [
        (f"{row['what']}: {rival['name']}", rival)
        for measured in record.values()
        for row in measured["rows"]
        for rival in row["rivals"]
        if not rival["name"].startswith("ours")
    ]
    fig, (ax,) = panels(1, 1, size=(11, 1 + 0.24 * len(named)))
    for y, (_, rival) in enumerate(reversed(named)):
        ax.hlines(y, rival["low"], rival["high"], color=COLORS[0], linewidth=4)
        ax.plot([rival["times"]], [y], "o", color=COLORS[6], markersize=4)
    ax.axvline(1.0, color=COLORS[6], linewidth=1)
    ax.set(xscale="log", xlabel="our rate over the peer's: median and range over the rounds")
    ax.set_ylim(-0.7, len(named) - 0.3)
    ax.set_yticks(range(len(named)), [name for name, _ in reversed(named)], fontsize=7)
    save_figure(fig, path)


def main(config: Config) -> None:
    """Measure each benchmark and write the file of record after each.

    Raises:
      ValueError: a benchmark that there is not; one that is put beside rows of record, and has none.
    """
    if unknown := set(config.only) - set(PEERS):
        raise ValueError(f"only must name {', '.join(PEERS)}; got {', '.join(sorted(unknown))}")
    path, failed = Path(config.record), []
    if config.elsewhere and (missing := set(config.only) - set(_read(path))):
        raise ValueError(f"{path} has no rows of {', '.join(sorted(missing))} to put others beside")
    for name in config.only:
        print(f"\n{name}", flush=True)
        try:
            measured = measure(name, config)
        except RuntimeError as error:
            failed.append(str(error))
            continue
        record = _read(path)
        record[name] = record[name] | {"elsewhere": measured} if config.elsewhere else measured
        record = {name: record[name] for name in PEERS if name in record}
        write_json(path, record)
        save_ratios(record, path.with_suffix(".png"))
    if failed:
        raise SystemExit(f"{'; '.join(failed)}; the rows of these are as they were in {path}")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


if __name__ == "__main__":
    cli.main(Config, main)
