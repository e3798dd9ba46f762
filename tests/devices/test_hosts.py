"""Two processes on one machine do what one does, agree before they begin, and end together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
LIMIT = 240


def start(out, *flags, process=None, port=0, devices=4, **environment):
    """Start the program, as one process or as one of two."""
    settings = {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(devices), **environment}
    if process is not None:
        address = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}"}
        settings |= address | {"JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(process)}
    command = [sys.executable, "-m", "tests.devices.program", "--out", str(out), *flags]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, env=os.environ | settings, cwd=ROOT, **pipes)


def start_two(out, *flags, mesh="fsdp=4,model=2", second=(), devices=4, **environment):
    """Start both processes; `second`, flags, and `environment` are the second one's own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    both = (*flags, "--mesh", mesh)
    first = start(out, *both, process=0, port=port, devices=devices)
    return first, start(out, *both, *second, process=1, port=port, devices=devices, **environment)


def read_losses(out):
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def ends_with(processes, code, match):
    """Return whether both end with a code, and one line among them, the first's, says what happened."""
    said = [process.communicate(timeout=LIMIT)[1] for process in processes]
    lines = [line for text in said for line in text.splitlines() if line.startswith(("error", "process"))]
    assert [process.returncode for process in processes] == [code, code], said
    assert len(lines) == 1 and match in lines[0], lines
    return said


def test_a_killed_run_of_two_goes_on_alone_on_another_mesh(tmp_path, monkeypatch):
    """(4, 2) on two processes, of which one is killed; then (2, 4) on one: the losses of one device."""
    alone = start(tmp_path / "alone", devices=1)
    monkeypatch.setenv("PAUSE", "3")
    first, second = start_two(tmp_path / "two")
    for line in first.stdout:
        if line == "step 4\n":
            break
    time.sleep(1)  # the checkpoint of step 4 comes after the pause of step 2
    second.send_signal(signal.SIGKILL)
    begin = time.monotonic()
    _, said = first.communicate(timeout=LIMIT)
    second.communicate()
    assert time.monotonic() - begin < 60 and first.returncode != 0
    assert "another process" in said or "task died" in said, said
    kept = sorted(path.name for path in (tmp_path / "two").glob("checkpoint*"))
    assert kept and all(name.endswith(".shards") for name in kept), kept

    resumed = start(tmp_path / "two", "--resume", "--mesh", "fsdp=2,model=4", devices=8, PAUSE="0")
    for process in (resumed, alone):
        _, said = process.communicate(timeout=LIMIT)
        assert process.returncode == 0, said
    np.testing.assert_allclose(read_losses(tmp_path / "two"), read_losses(tmp_path / "alone"), atol=1e-5)
    assert (tmp_path / "two" / "checkpoint_000000006.npz").is_file()


def test_an_error_of_ours_in_one_process_is_shown_and_ends_both(tmp_path):
    both = start_two(tmp_path / "run", mesh="fsdp=2", devices=1, FAIL="1")
    both[1].wait(LIMIT)
    begin = time.monotonic()
    said = [process.communicate(timeout=LIMIT)[1] for process in both]
    assert time.monotonic() - begin < 60 and all(process.returncode for process in both)
    assert "TypeError: this process alone" in said[1], said


@pytest.mark.parametrize(
    ("both", "second", "environment", "mesh", "match"),
    [
        ((), ("--rows", "24"), {}, "fsdp=8", "process 1 has rows=24 instead of rows=16"),
        (("--case", "lora"), (), {"NOISE": "1"}, "fsdp=8", "the same frozen weights; process 0 has sha256"),
        ((), (), {"SHIFT": "1"}, "fsdp=8", "the same rows; process 0 has sha256"),
        ((), (), {}, "data=4", "--mesh must use all of the 8 cpu devices; got data=4, which are 4"),
    ],
)
def test_processes_that_do_not_fit_together_end_at_once(tmp_path, both, second, environment, mesh, match):
    ends_with(start_two(tmp_path / "run", *both, mesh=mesh, second=second, **environment), 2, match)
