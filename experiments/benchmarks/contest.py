"""A contest: our rate beside others', in turn in one run; each is printed and kept as a row.

`run_all.py` reads the rows that every benchmark writes where `--rows` says.
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import peers

from jaxrl_align.runtime import cli
from jaxrl_align.runtime.evidence import three_digits
from jaxrl_align.runtime.folder import write_json


class Rival(NamedTuple):
    """Another side of a contest."""

    name: str
    rate: float
    """Median over the rounds."""
    times: float
    """Our rate over its, median over the rounds."""
    low: float
    """The least of the rounds."""
    high: float
    """The largest."""


class Row(NamedTuple):
    """What one contest measured."""

    what: str
    unit: str
    rate: float
    """Ours, median over the rounds."""
    rivals: tuple[Rival, ...]
    floor: float | None = None
    """The rate at which the machine would do the work's products or transfers alone."""


Side = peers.Round | Sequence[peers.Round]
"""What measures a side's rate; of several, a peer with one and with two threads, a round's best counts."""

ROWS: list[Row] = []
"""Of this process, in their order."""


def contest(
    what: str, unit: str, sides: Mapping[str, Side], rounds: int, *, floor: float | None = None
) -> Row:
    """Measure every side in each round, every other round in the opposite order; print and keep the row.

    Args:
      what: what is measured, for a reader who knows the script's name.
      unit: of the rates, "tokens/s".
      sides: by name, ours first; other ways of ours are called "ours, ...", which tells them from peers.
      rounds: how often every side is measured.
      floor: the machine's own rate, if it is known.
    """
    measures = [[side] if callable(side) else list(side) for side in sides.values()]
    rates = np.empty((rounds, len(measures)))
    for i in range(rounds):
        order = range(len(measures))
        for j in order if i % 2 == 0 else reversed(order):
            rates[i, j] = max(measure() for measure in measures[j])
    median = np.median(rates, 0)
    rivals = []
    for name, rate, other in zip(list(sides)[1:], median[1:], rates.T[1:], strict=True):
        low, middle, high = np.quantile(rates[:, 0] / other, [0, 0.5, 1])
        rivals.append(Rival(name, float(rate), float(middle), float(low), float(high)))
    row = Row(what, unit, float(median[0]), tuple(rivals), floor)
    print(row_text(row), flush=True)
    ROWS.append(row)
    return row


def row_text(row: Row) -> str:
    """Return a row as a line."""
    share = (
        "" if row.floor is None else f", {row.rate / row.floor:.0%} of the floor's {three_digits(row.floor)}"
    )
    others = (
        f"; {r.name} {three_digits(r.rate)}: {r.times:.2f} times [{r.low:.2f}, {r.high:.2f}]"
        for r in row.rivals
    )
    return f"{row.what}: {three_digits(row.rate)} {row.unit}{share}{''.join(others)}"


@contextlib.contextmanager
def rivals(
    python: str, peer: str, *, name: str, flag: str = "peers", threads: Sequence[int] = (), **arguments: Any
) -> Iterator[dict[str, Side]]:
    """Yield a peer as a side, while it runs; nothing where there is no interpreter that has it.

    Args:
      python: the interpreter; empty leaves the peer out, and says so.
      peer: a function of `agent_peers`, `text_peers` or `trl_peers`.
      name: of the side.
      flag: the option that gives the interpreter.
      threads: the numbers of threads that it is measured with; none, it is not asked to set any.
      arguments: of the peer's function.
    """
    if not python:
        print(f"{peer} is left out, give --{flag} PYTHON, an interpreter that has it")
        yield {}
        return
    each = [{"threads": n} for n in threads] or [{}]
    processes = [peers.start(python, peer, **arguments, **own) for own in each]
    seconds = [process.compile_seconds for process in processes if process.compile_seconds > 0]
    if seconds:
        print(f"{name} compiled in {max(seconds):.1f} s")
    try:
        yield {name: [lambda process=process: peers.ask(process) for process in processes]}
    finally:
        for process in processes:
            peers.stop(process)


@dataclasses.dataclass(frozen=True)
class ContestConfig:
    """What every benchmark of contests knows."""

    rounds: int = 7
    """Each side is measured so often, in turn."""
    rows: str = ""
    """A JSON file that the rows are written to as well."""


def run(config: type, main: Callable[[Any], None]) -> None:
    """Run a benchmark by its command line and write its rows where `--rows` says."""

    def run_and_write(settings: Any) -> None:
        main(settings)
        if settings.rows:
            rows = [row._asdict() | {"rivals": [rival._asdict() for rival in row.rivals]} for row in ROWS]
            write_json(Path(settings.rows), rows)

    cli.main(config, run_and_write)
