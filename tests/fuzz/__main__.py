"""The long run: `make fuzz N=100000`, or one case again: `python -m tests.fuzz --reader NAME --case 123`."""

import argparse
import os
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.fuzz.judge import FAULTS, KINDS, SECONDS, good_files, judge, lay
from tests.fuzz.readers import Reader
from tests.fuzz.tables import all_readers
from tests.fuzz.workers import FOLDER, Result, case_files, run_cases

SAVED = 5
"""Cases of one reader and kind that are shown, and whose files are kept."""


def main() -> int:
    """Return 1 if any reader has a fault."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--reader", action="append", help="a reader's name; all of them unless given")
    parser.add_argument("--cases", type=int, default=1000, help="altogether, shared out among the readers")
    parser.add_argument("--first", type=int, default=0, help="number of the first case of each reader")
    parser.add_argument("--case", type=int, help="run this case alone, here, and say what comes of it")
    parser.add_argument("--out", type=Path, default=Path("runs/fuzz"), help="where the failures' files go")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    known = all_readers()
    for name in options.reader or ():
        if name not in known:
            parser.error(f"{name} is no reader; there are {', '.join(known)}")
    readers = [known[name] for name in options.reader or known]
    if options.case is not None:
        return max(run_again(reader, options.case, options.out) for reader in readers)
    each = -(-options.cases // len(readers))
    return long_run(readers, range(options.first, options.first + each), options.out, options.workers)


def long_run(readers: list[Reader], cases: range, out: Path, workers: int) -> int:
    """Print a tally of each reader, keep the files of its failures, and return 1 if there are any."""
    tally = {reader.name: Counter[str]() for reader in readers}
    known, start = {reader.name: reader for reader in readers}, time.monotonic()
    kept: list[Result] = []
    for result in run_cases(readers, cases, workers=workers):
        name, case, verdict = result
        tally[name][verdict.kind] += 1
        if verdict.kind in FAULTS and tally[name][verdict.kind] <= SAVED:
            print(f"{name} {case}: {verdict.kind}: {verdict.said[:400]}", flush=True)
            kept.append(result)
    for result in kept:  # at the end: a good input may start JAX, and no process forks well after that
        _save(known[result.reader], result, out)
    width = max(map(len, tally))
    print(" ".join([f"{'':{width}}", *(f"{kind:>8}" for kind in KINDS)]))
    for name, counts in [*tally.items(), ("all", sum(tally.values(), Counter[str]()))]:
        print(" ".join([f"{name:{width}}", *(f"{counts[kind]:8,}" for kind in KINDS)]))
    print(f"{sum(map(Counter.total, tally.values())):,} cases in {time.monotonic() - start:.0f} s")
    return int(any(counts[kind] for counts in tally.values() for kind in FAULTS))


def _save(reader: Reader, result: Result, out: Path) -> None:
    """Keep the files of a case and what came of it."""
    folder = out / reader.name / f"{result.verdict.kind}-{result.case}"
    with tempfile.TemporaryDirectory() as scratch:
        good = good_files(reader, Path(scratch) / FOLDER)
    lay(folder, case_files(reader, good, result.case), {})
    (folder / "verdict.txt").write_text(f"{result.verdict.kind}: {result.verdict.said}\n", "utf-8")


def run_again(reader: Reader, case: int, out: Path) -> int:
    """Run one case in this process, without a bound that kills."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / FOLDER
        good = good_files(reader, folder)
        judge(reader, folder, 2**40, 600.0)
        files = case_files(reader, good, case)
        lay(folder, files, dict(good))
        verdict = judge(reader, folder, sum(map(len, files.values())), SECONDS)
    print(f"{reader.name} {case}: {verdict.kind}: {verdict.said}")
    _save(reader, Result(reader.name, case, verdict), out)
    return int(verdict.kind in FAULTS)


if __name__ == "__main__":
    sys.exit(main())
