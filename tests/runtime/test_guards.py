"""What guards a run: signals, the lock of its folder, and memory."""

import gc
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from jaxrl_align.runtime import cli, keeper
from jaxrl_align.runtime.folder import open_run
from jaxrl_align.runtime.guards import device_memory, interrupts
from jaxrl_align.runtime.loop import run
from tests.runtime.counting import count, steps_in


def test_a_second_ctrl_c_stops_at_once():
    with pytest.raises(KeyboardInterrupt), interrupts.deferred_interrupts() as interrupted:
        os.kill(os.getpid(), signal.SIGINT)
        assert interrupted() == signal.SIGINT
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the second interrupt was swallowed")


def test_a_closing_terminal_may_say_so_twice(capfd):
    with interrupts.deferred_interrupts() as interrupted:
        assert interrupted() == 0
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupted() == signal.SIGHUP
    assert capfd.readouterr().err.count("stopping at the end of this chunk") == 1


def test_what_is_ignored_stays_ignored():
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts.raised_interrupts(), interrupts.deferred_interrupts() as interrupted:
            os.kill(os.getpid(), signal.SIGHUP)
            assert interrupted() == 0
    finally:
        signal.signal(signal.SIGHUP, former)


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_outside_of_a_loop_a_signal_ends_the_program_in_a_line(number, code, capsys):
    with pytest.raises(SystemExit) as stop, cli.user_errors(resumes=True):
        os.kill(os.getpid(), getattr(signal, number))
    assert stop.value.code == code
    assert capsys.readouterr().err.startswith("interrupted; the same command with --resume continues")


HOLDER = """
import sys, time
from jaxrl_align.runtime.folder import open_run
folder = open_run(sys.argv[1], {}, resume=True)
print("held", flush=True)
time.sleep(60)
"""


def test_a_folder_is_one_process_own(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    (tmp_path / ".left.tmp1.json").write_text("of a running process")
    before = {path.name for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match=rf"is in use by process {holder.pid} on .*; wait for its end"):
        open_run(tmp_path, {}, resume=True)
    assert {path.name for path in tmp_path.iterdir()} == before
    holder.kill()
    holder.wait()
    folder = open_run(tmp_path, {}, resume=True)  # a killed process holds nothing
    again, stage = open_run(tmp_path, {}, resume=True), folder.sub("stage")
    assert again.lock is folder.lock is stage.lock


def test_a_folder_is_free_when_its_run_is_forgotten(tmp_path):
    stage = open_run(tmp_path, {}).sub("stage")
    gc.collect()
    take = [sys.executable, "-c", HOLDER.replace("time.sleep(60)", ""), tmp_path]
    refused = subprocess.run(take, capture_output=True, text=True)
    assert "is in use by process" in refused.stderr and stage.resume is False
    del stage
    gc.collect()
    assert subprocess.run(take, capture_output=True, text=True).stdout == "held\n"


def test_what_killed_processes_left_is_removed_and_nothing_else(tmp_path):
    open_run(tmp_path, {}).sub("stage")
    gc.collect()
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    names = (".checkpoint_000000010.tmp{}.npz", "stage/.config.tmp{}.json", ".README.tmp{}")
    left = [name.format(gone.pid) for name in names]
    kept = [f".tmp{gone.pid}.json", f"note.tmp{gone.pid}.json", ".mine.tmp", ".mine.tmpx.json"]
    kept += [
        "stage/checkpoint_000000010.npz",
        f"stage/.metrics.tmp{os.getpid()}.jsonl",
    ]  # a writer that lives
    for name in left + kept:
        (tmp_path / name).write_text("x")
    open_run(tmp_path, {}, resume=True)
    assert [name for name in left + kept if (tmp_path / name).exists()] == kept


def test_a_refused_lock_closes_its_own_file_once(tmp_path):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "held\n"
    opened = len(os.listdir("/dev/fd"))
    try:
        open_run(tmp_path, {}, resume=True)
    except ValueError:
        file = open(tmp_path / "other", "w")  # noqa: SIM115  it takes the number that was given free
    gc.collect()
    assert len(os.listdir("/dev/fd")) == opened + 1
    with file:
        file.write("whole")
    assert (tmp_path / "other").read_text() == "whole"
    holder.kill()
    holder.wait()


def test_a_program_that_keeps_its_folder_to_the_end_says_nothing(tmp_path):
    program = "import sys; from jaxrl_align.runtime import open_run; folder = open_run(sys.argv[1], {})"
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""


def test_a_run_whose_output_nobody_reads_is_saved(tmp_path):
    """Ctrl-C ends `| tee log` first."""
    read, write = os.pipe()
    former = os.dup(2)
    os.close(read)
    os.dup2(write, 2)
    try:
        with interrupts.deferred_interrupts() as interrupted:
            os.kill(os.getpid(), signal.SIGINT)
            assert interrupted() == signal.SIGINT
    finally:
        os.dup2(former, 2)
        os.close(former)
        os.close(write)


def test_a_signal_during_the_last_save_ends_the_run_after_it(tmp_path, monkeypatch):
    save = keeper.Keeper.save

    def late(self, *arguments):
        save(self, *arguments)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(keeper.Keeper, "save", late)
    with pytest.raises(KeyboardInterrupt, match=str(int(signal.SIGTERM))):
        run(count, jnp.float32(0), 4, folder=open_run(tmp_path, {}), progress=False)
    assert steps_in(tmp_path) == [4]


class Memory:
    """What a compiler says of a program, in bytes."""

    def __init__(self, temp, output, alias):
        self.temp_size_in_bytes, self.output_size_in_bytes, self.alias_size_in_bytes = temp, output, alias

    def memory_analysis(self):
        return self


@pytest.mark.parametrize(
    ("config", "remedy"),
    [
        ({"batch_size": 32, "seeds": 8}, r"half of it: --batch-size 16 \(now 32\) or --seeds 4 \(now 8\)"),
        ({"num_envs": 1, "rows": 9}, "take smaller batches or fewer members"),
    ],
)
def test_a_step_without_room_is_refused_before_it_is_taken(monkeypatch, config, remedy):
    monkeypatch.setattr(device_memory, "free_memory", lambda: 3_000_000_000)
    device_memory.check_room(Memory(3_000_000_000, 2_000_000_000, 2_000_000_000), config)
    message = rf"^a step needs 3.50 GB beside what is loaded, but 3.00 GB are free; {remedy}$"
    with pytest.raises(MemoryError, match=message):
        device_memory.check_room(Memory(3_000_000_000, 2_500_000_000, 2_000_000_000), config)
    monkeypatch.setattr(device_memory, "free_memory", lambda: None)
    device_memory.check_room(Memory(10**15, 0, 0), config)


def test_the_loop_asks_the_compiler_before_the_first_step(monkeypatch, tmp_path):
    monkeypatch.setattr(device_memory, "free_memory", lambda: 1_000_000)

    def wide(state):
        table = jnp.sin(jnp.arange(1_000_000.0) + state)
        return state + jnp.sort(table)[7], {"loss": jnp.float32(0)}

    folder = open_run(tmp_path, {"seeds": 2})
    with pytest.raises(MemoryError, match=r"a step needs .* --seeds 1 \(now 2\)"):
        run(wide, jnp.float32(0), 4, folder=folder, progress=False)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_memory_of_a_host_is_not_taken_for_an_accelerators(monkeypatch):
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: None)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert device_memory.free_memory() is None
    device.memory_stats = lambda: {"bytes_limit": 100, "bytes_in_use": 30}
    assert device_memory.free_memory() == 70


def test_memory_that_is_free_is_told_where_linux_tells_it():
    free = device_memory.free_memory()
    assert (free is not None and free > 10**7) if sys.platform == "linux" else True


def test_a_device_without_memory_says_what_to_halve(capsys):
    error = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 17179869184 bytes.")
    message = r"out of memory \(it asked for 17179869184 bytes\); half of it: --batch-size 4 \(now 8\)"
    with pytest.raises(MemoryError, match=message), device_memory.explained_shortage({"batch_size": 8}):
        raise error
    with pytest.raises(SystemExit) as stop, cli.user_errors():
        raise MemoryError("the device is out of memory")
    assert stop.value.code == 2 and capsys.readouterr().err == "error: the device is out of memory\n"
    with pytest.raises(jax.errors.JaxRuntimeError), device_memory.explained_shortage({}):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")
