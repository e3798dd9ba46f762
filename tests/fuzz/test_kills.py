"""Programs that are killed and continued end in the bits of undisturbed ones, and the test can tell."""

import os
import pty
import random
import signal
import subprocess
import sys
import time

import pytest

kills = pytest.importorskip("tests.fuzz.kills", reason="needs safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("program", ["loop", "dpo"])
def test_a_killed_program_continues_to_the_same_bits(program, tmp_path):
    kills.prepare(tmp_path)
    falls = list(kills.torture(program, tmp_path, 2, random.Random(1)))
    assert len(falls) == 2 and all(0 <= fall.lost < 120 for fall in falls)


def test_outcomes_that_differ_are_told_apart(tmp_path):
    for name, loss in {"a": 1.0, "b": 2.0}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "metrics.jsonl").write_text(f'{{"step": 0, "loss": {loss}}}\n')
        (tmp_path / name / "config.json").write_text(name)
    outcomes = [kills.outcome(tmp_path / name) for name in "ab"]
    assert kills.differing(*outcomes) == ["metrics.jsonl"]
    assert kills.differing(outcomes[0], {}) == ["metrics.jsonl"] and not kills.differing(*outcomes[:1] * 2)


def test_a_program_that_fails_says_what_it_said(tmp_path, monkeypatch):
    monkeypatch.setitem(kills.PROGRAMS, "loop", ["-c", "raise SystemExit('no such thing')"])
    with pytest.raises(RuntimeError, match="loop: no such thing"):
        kills.finish("loop", tmp_path, tmp_path / "out")


@pytest.mark.slow
def test_a_run_whose_terminal_closes_is_saved(tmp_path):
    """The kernel sends SIGHUP, and nothing that the run still prints may keep it from saving."""
    controller, terminal = pty.openpty()
    command = [sys.executable, *kills.PROGRAMS["loop"], "--out", str(tmp_path / "run")]
    attach = (
        "import fcntl, os, sys, termios; os.setsid(); fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "os.execv(sys.argv[1], sys.argv[1:])"
    )
    ends = dict.fromkeys(("stdin", "stdout", "stderr"), terminal)
    process = subprocess.Popen([sys.executable, "-c", attach, *command], **ends)
    os.close(terminal)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size > 20_000):
        assert process.poll() is None
        time.sleep(0.05)
    os.close(controller)
    assert process.wait(60) == 128 + signal.SIGHUP
    saved = [int(path.stem[-9:]) for path in (tmp_path / "run").glob("checkpoint_*.npz")]
    rows = metrics.read_text().count("\n")
    assert max(saved) == rows
