"""Runs that are killed at random moments and continued, until they end: `make kills N=50`.

Four programs, a plain loop, PPO, RLHF and `jaxrl-align dpo`, each first run undisturbed; then over and over
with `--resume`, a SIGKILL falling at a random moment of each attempt, till N have fallen in all. Whatever was
killed must end in the bits of the undisturbed run.
"""

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors.numpy import load_file

from jaxrl_align.runtime.evidence import RESULT_FILE, RUN

ROOT = Path(__file__).parents[2]
MINUTES = "0.03"
"""Between checkpoints: the programs are short."""
COMMAND = "import sys; from jaxrl_align.cli import run_command; run_command(sys.argv[1:])"
SMALL_RLHF = (
    "--seeds 2 --vocab-size 280 --width 16 --layers 1 --heads 2 --context 32 --prompt-length 12 "
    "--response-length 20 --pretrain-steps 200 --sft-steps 60 --comparisons 20 --reward-steps 60 "
    "--rlhf-steps 60 --prompts-per-step 4"
)
DPO = (
    "dpo --model tiny --data pairs.jsonl --held-out pairs.jsonl --batch-size 6 --rank 2 --steps 150 "
    "--every 50 --samples 1"
)
PROGRAMS: dict[str, list[str]] = {
    "loop": [str(ROOT / "tests/runtime/program.py"), "--num-steps", "60000"],
    "ppo": [str(ROOT / "experiments/ppo_cartpole.py"), "--seeds", "2", "--total-env-steps", "400000"],
    "rlhf": [str(ROOT / "experiments/rlhf.py"), "--corpus", "corpus.txt", *SMALL_RLHF.split()],
    "dpo": ["-c", COMMAND, *DPO.split()],
}


WRITTEN = ("metrics.jsonl", "result.json", "held_out.json", "samples.jsonl")


class Fall(NamedTuple):
    """One SIGKILL."""

    after: float
    """Seconds from the start of its process."""
    lost: float
    """Seconds since the last checkpoint, or since the start of a process that had written none."""


def start(program: str, workshop: Path, out: Path) -> subprocess.Popen:
    """Start a program, or let it continue what lies in `out`."""
    keep = ["--out", str(out), "--resume", "--checkpoint-minutes", MINUTES]
    with open(workshop / f"{program}.log", "ab") as log:
        command = [sys.executable, *PROGRAMS[program], *keep]
        return subprocess.Popen(command, cwd=workshop, stdout=log, stderr=log)


def finish(program: str, workshop: Path, out: Path) -> float:
    """Let a program come to its end, and return its seconds.

    Raises:
      RuntimeError: it failed; with what it said last.
    """
    begin = time.monotonic()
    if start(program, workshop, out).wait() != 0:
        raise RuntimeError(f"{program}: {(workshop / f'{program}.log').read_text('utf-8')[-2000:]}")
    return time.monotonic() - begin


def fall(program: str, workshop: Path, out: Path, after: float) -> Fall | None:
    """Start a program and kill it after some seconds; None if it ended before."""
    begun = time.time()
    process = start(program, workshop, out)
    try:
        code = process.wait(after)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        saved = [path.stat().st_mtime for path in out.rglob("checkpoint_*.npz")]
        return Fall(after, time.time() - max([begun, *saved]))
    if code != 0:
        raise RuntimeError(f"{program}: {(workshop / f'{program}.log').read_text('utf-8')[-2000:]}")
    return None


def outcome(out: Path) -> dict[str, bytes]:
    """Return a finished run's bytes: metrics, results, models, and the arrays of its newest checkpoints."""
    found = {}
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.name in WRITTEN:
            found[name] = path.read_bytes()
            if path.name == RESULT_FILE:  # whose seconds no two runs share
                found[name] = json.dumps(json.loads(found[name]) | {RUN: None}).encode()
        elif path.suffix == ".safetensors":  # whose header writes its two notes in any order
            found |= {f"{name} {key}": x.tobytes() for key, x in load_file(path).items()}
        elif path.name == max((p.name for p in path.parent.glob("checkpoint_*.npz")), default=""):
            with np.load(path) as arrays:
                found |= {f"{name} {key}": arrays[key].tobytes() for key in arrays if key != "__metadata__"}
    return found


def differing(one: dict[str, bytes], other: dict[str, bytes]) -> list[str]:
    """Return the names under which two outcomes differ."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def torture(
    program: str, workshop: Path, kills: int, rng: random.Random, say: Callable[[str], None] = print
) -> Iterator[Fall]:
    """Yield the kills of a program, whose every finished run has been compared with the undisturbed one.

    Raises:
      RuntimeError: a continued run failed, or ended in other bits.
    """
    seconds = finish(program, workshop, workshop / f"{program}-whole")
    whole, fallen, runs = outcome(workshop / f"{program}-whole"), 0, 0
    while fallen < kills:
        out, own = workshop / f"{program}-{runs}", 0
        while fallen < kills:
            begin = time.monotonic()
            if (found := fall(program, workshop, out, rng.uniform(0, seconds))) is None:
                seconds = min(seconds, time.monotonic() - begin)  # the machine has grown faster
                break
            fallen, own = fallen + 1, own + 1
            yield found
        finish(program, workshop, out)
        if wrong := differing(whole, outcome(out)):
            raise RuntimeError(f"{program}, killed {own} times, ended in other bits of {', '.join(wrong)}")
        if left := [path.name for path in out.rglob(".*tmp*")]:
            raise RuntimeError(f"{program} left {', '.join(left)}")
        say(f"{program}: a run of {seconds:.0f} s, killed {own} times, ended in the same {len(whole)} parts")
        runs += 1


def prepare(workshop: Path) -> None:
    """Write what the programs read: a tiny model, comparisons, a text."""
    from tests.cli.conftest import write_workshop
    from tests.experiments.test_rlhf import CORPUS

    write_workshop(workshop)
    (workshop / "corpus.txt").write_text(CORPUS, encoding="utf-8")


def main() -> None:
    """Print what became of every program, and the most work that was lost."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.kills", description=__doc__)
    parser.add_argument("--kills", type=int, default=50, help="altogether")
    parser.add_argument("--program", action="append", choices=[*PROGRAMS], help="all unless given")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names, rng = options.program or [*PROGRAMS], random.Random(options.seed)
    with tempfile.TemporaryDirectory() as folder:
        workshop = Path(folder)
        prepare(workshop)
        falls = []
        for i, name in enumerate(names):
            kills = (i + 1) * options.kills // len(names) - i * options.kills // len(names)
            falls += list(torture(name, workshop, kills, rng))
    print(f"{len(falls)} kills; the most work lost {max(fall.lost for fall in falls):.1f} s")


if __name__ == "__main__":
    main()
