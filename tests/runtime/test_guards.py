"""What guards a run: signals, the lock, left files, checkpoints by time, memory, and the search for a nan."""

import gc
import json
import os
import signal
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.runtime import checkpoint, cli, keeper
from jaxrl_align.runtime.folder import Upkeep, open_run
from jaxrl_align.runtime.guards import device_memory, interrupts
from jaxrl_align.runtime.guards.faults import find_first_nan
from jaxrl_align.runtime.loop import run


def count(state):
    """Count up; the loss is the count before the step."""
    return state + 1, {"loss": state}


def steps_in(path):
    return checkpoint._steps(path)


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


class Clock:
    """Time that passes only by the seconds a step is said to take."""

    def __init__(self, monkeypatch, save=0.0):
        self.now, real = 0.0, checkpoint.save
        monkeypatch.setattr(keeper.time, "monotonic", lambda: self.now)

        def saving(*args, **how):
            self.now += save
            return real(*args, **how)

        monkeypatch.setattr(checkpoint, "save", saving)

    def chunks(self, seconds):
        def on_chunk(done, state, metrics):
            self.now += seconds

        return on_chunk


@pytest.mark.parametrize(
    ("save", "minutes", "expected"),
    [
        (0.0, 1.0, [6, 12, 18, 20]),  # 25 s a chunk: each third
        (2.0, 1.0, [6, 12, 18, 20]),
        (5.0, 1.0, [6, 18, 20]),  # thirty times the five seconds of the last save
        (0.0, 0.2, [2, 4, 6, 8, 10, 12, 14, 16, 18, 20]),
        (0.0, 0.0, [20]),
    ],
)
def test_a_run_is_saved_about_once_a_minute(tmp_path, monkeypatch, save, minutes, expected):
    clock = Clock(monkeypatch, save)
    folder = open_run(tmp_path, {}, upkeep=Upkeep(minutes, keep=99))
    run(count, jnp.float32(0), 20, chunk=2, folder=folder, progress=False, on_chunk=clock.chunks(25.0))
    assert steps_in(tmp_path) == expected


@pytest.mark.filterwarnings("error")
def test_a_long_single_step_is_not_warned_of(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    how = {"progress": False, "on_chunk": clock.chunks(500.0)}
    run(count, jnp.float32(0), 3, chunk=1, folder=open_run(tmp_path, {}), **how)


def test_a_chunk_of_minutes_is_warned_of(tmp_path, monkeypatch):
    clock = Clock(monkeypatch)
    how = {"progress": False, "on_chunk": clock.chunks(121.0)}
    with pytest.warns(UserWarning, match="a chunk of 5 steps took 121 s, and nothing is saved within one"):
        run(count, jnp.float32(0), 10, chunk=5, folder=open_run(tmp_path, {}), **how)


@pytest.mark.parametrize(("keep", "expected"), [(1, [20]), (3, [16, 18, 20])])
def test_as_many_checkpoints_are_kept_as_were_asked_for(tmp_path, keep, expected):
    folder = open_run(tmp_path, {}, upkeep=Upkeep(keep=keep))
    run(count, jnp.float32(0), 20, chunk=2, folder=folder, checkpoint_every=2, progress=False)
    assert steps_in(tmp_path) == expected


@pytest.mark.parametrize(("upkeep", "got"), [(Upkeep(keep=0), "0 and 1.0"), (Upkeep(-1.0), "2 and -1.0")])
def test_upkeep_that_cannot_be(tmp_path, upkeep, got):
    with pytest.raises(
        ValueError, match=f"keep must be at least 1, and checkpoint_minutes at least 0; got {got}"
    ):
        open_run(tmp_path / "run", {}, upkeep=upkeep)
    assert not (tmp_path / "run").exists()


def wave(state):
    """Return metrics with their best at step 8: chunks of 4, members of 2, one of them without an episode."""
    height = jnp.where((state >= 4) & (state < 8), 5.0, 1.0)
    return state + 1, {"loss": height, "return": jnp.stack([height, jnp.nan]), "none": jnp.nan * height}


@pytest.mark.parametrize(("metric", "best"), [("return", 8), ("loss", 4), ("none", None), (None, None)])
def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path, metric, best):
    how = {"chunk": 4, "checkpoint_every": 4, "progress": False}
    upkeep = Upkeep(keep=1, best=metric)
    run(wave, jnp.float32(0), 20, folder=open_run(tmp_path, {}, upkeep=upkeep), **how)
    assert steps_in(tmp_path) == ([20] if best is None else [best, 20])
    folder = open_run(tmp_path, {}, resume=True, upkeep=upkeep)
    if best is None:
        assert keeper.read_best(folder) is None
        return
    value = {"return": 5.0, "loss": 1.0}[metric]
    assert keeper.read_best(folder) == {"metric": metric, "step": best, "value": value}
    state, step = checkpoint.restore(tmp_path, jnp.float32(0), step=best)
    assert step == best and float(state) == best
    run(wave, jnp.float32(0), 40, folder=folder, **how)
    assert steps_in(tmp_path) == [best, 40]


@pytest.mark.parametrize(
    "content",
    [
        *("{torn", "[]", '{"metric": "loss", "step": 4}', '{"metric": 1, "step": 4, "value": 0}'),
        '{"metric": "return", "step": 5, "value": 9.0}',  # a checkpoint that is not there
    ],
)
def test_a_damaged_note_of_the_best_is_no_hindrance(tmp_path, content):
    how = {"chunk": 4, "checkpoint_every": 4, "progress": False}
    upkeep = Upkeep(keep=1, best="return")
    run(wave, jnp.float32(0), 8, folder=open_run(tmp_path, {}, upkeep=upkeep), **how)
    (tmp_path / "best.json").write_text(content)
    run(wave, jnp.float32(0), 12, folder=open_run(tmp_path, {}, resume=True, upkeep=upkeep), **how)
    assert json.loads((tmp_path / "best.json").read_text()) == {"metric": "return", "step": 12, "value": 1.0}


def test_a_best_that_lies_ahead_of_the_run_counts_no_more():
    """After a damaged checkpoint a run goes on from an earlier one, and takes those steps again."""
    was, metrics = {"metric": "loss", "step": 12, "value": 0.1}, {"loss": np.ones(4)}
    assert keeper._choose("loss", was, 12, metrics) == was
    assert keeper._choose("loss", was, 8, metrics) == {"metric": "loss", "step": 8, "value": 1.0}


def test_a_stage_without_the_metric_says_which_it_has_and_goes_on(tmp_path):
    folder = open_run(tmp_path, {}, upkeep=Upkeep(best="return")).sub("pretrain")
    with pytest.warns(
        UserWarning, match="keep_best=return is no metric of .*pretrain, .* it has loss"
    ) as said:
        run(count, jnp.float32(0), 8, chunk=2, folder=folder, checkpoint_every=2, progress=False)
    assert len(said) == 1 and steps_in(folder.path) == [6, 8] and keeper.read_best(folder) is None


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


def fall(state):
    """Fall until the root of what is below 0, at step 13; the metric that may be nan always is."""
    members = state["x"] - jnp.array([1.0, 0.5])
    loss = jnp.sqrt(members + 0.5)
    return {"x": members}, {"loss": loss, "episode_return_last100": jnp.full(2, jnp.nan)}


START = {"x": jnp.array([13.0, 100.0])}


def test_a_replay_names_the_step_the_member_and_the_operation(tmp_path):
    config = {"replay": False}
    how = {"chunk": 5, "checkpoint_every": 5, "progress": False}
    with pytest.raises(FloatingPointError, match=r"loss .* step 13 in members \[0\] of 2; .* --replay finds"):
        run(fall, START, 30, folder=open_run(tmp_path, config), **how)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    folder = open_run(tmp_path, config, upkeep=Upkeep(replay=True))
    with pytest.raises(FloatingPointError) as error:
        run(fall, START, 30, folder=folder, **how)
    text = str(error.value)
    assert "loss is not finite at step 13 in members [0] of 2" in text
    assert f"the first nan was made by sqrt at {__file__}:" in text
    assert f"the state before step 13 is {tmp_path / 'fault' / 'checkpoint_000000013.npz'}" in text
    state, step = checkpoint.restore(tmp_path / "fault", START)
    assert step == 13 and state["x"].tolist() == [0.0, 93.5]
    assert {path: path.read_bytes() for path in before} == before  # nothing else was touched


def test_a_replay_reads_the_rows_and_what_is_frozen(tmp_path):
    def step(state, row, frozen):
        return state + row, {"loss": jnp.log(frozen["limit"] - state)}

    rows = lambda first, steps: np.arange(first, first + steps, dtype=np.float32)
    how = {"batches": rows, "frozen": {"limit": jnp.float32(20)}, "progress": False, "chunk": 4}
    folder = open_run(tmp_path, {}, upkeep=Upkeep(replay=True))
    message = r"loss is not finite at step 7; .*the first nan was made by log at "
    with pytest.raises(FloatingPointError, match=message):  # 0 + 1 + ... + 6 = 21, without a checkpoint
        run(step, jnp.float32(0), 30, folder=folder, **how)


def test_a_replay_of_a_healthy_run_says_so_and_of_a_finished_one_returns_it(tmp_path):
    how = {"chunk": 4, "progress": False}
    run(count, jnp.float32(0), 4, folder=open_run(tmp_path, {}), **how)
    replaying = lambda: open_run(tmp_path, {}, upkeep=Upkeep(replay=True))
    with pytest.raises(ValueError, match="steps 4 to 7, taken one by one, are finite; continue"):
        run(count, jnp.float32(0), 8, folder=replaying(), **how)
    assert float(run(count, jnp.float32(0), 4, folder=replaying(), **how)[0]) == 4.0


def test_the_first_nan_is_found_inside_compiled_loops():
    def function(x):
        jnp.log(-x)  # a nan on which the output does not depend
        inner = lambda carry, _: (jax.nn.relu(carry) + jnp.arcsin(carry), None)
        return jax.vmap(lambda y: jax.lax.scan(inner, y, None, 5)[0])(x)

    assert "made by asin at" in find_first_nan(function, jnp.array([0.1, 0.9]))
    assert find_first_nan(lambda x: 1.0 / x, jnp.zeros(2)).startswith("no operation made a nan")


def test_a_run_folder_survives_a_full_disk_with_its_name(tmp_path, monkeypatch):
    folder = open_run(tmp_path, {})

    def full(file, **arrays):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="checkpoint_000000002.npz.*No space left on device.*no checkpoint"):
        run(count, jnp.float32(0), 2, folder=folder, progress=False)
    with pytest.raises(OSError, match=r"No space left on device: '.*result.json'"):
        monkeypatch.setattr(os, "fsync", lambda file: full(file))
        folder.write_json("result.json", {"a": 1})
    assert not (tmp_path / "result.json").exists() and not list(tmp_path.glob(".result*"))


def test_only_what_is_shown_in_a_history_is_recovered(tmp_path):
    """A run whose metrics are gone goes on from its checkpoint, and ends in the same state."""
    whole, _ = run(count, jnp.float32(0), 12, chunk=4, progress=False)
    run(count, jnp.float32(0), 8, chunk=4, folder=open_run(tmp_path, {}), progress=False)
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.warns(UserWarning, match="the metrics of steps 0 to 7 are lost"):
        folder = open_run(tmp_path, {}, resume=True)
        state, history = run(count, jnp.float32(0), 12, chunk=4, folder=folder, progress=False)
    assert float(state) == float(whole)
    np.testing.assert_array_equal(history["loss"], [np.nan] * 8 + [8.0, 9.0, 10.0, 11.0])
    renamed = lambda state: (state + 1, {"other": state})
    with pytest.warns(UserWarning, match="the metrics of steps 0 to 11 are lost"):
        folder = open_run(tmp_path, {}, resume=True)
        _, history = run(renamed, jnp.float32(0), 16, chunk=4, folder=folder, progress=False)
    assert history.keys() == {"other"} and np.isnan(history["other"][:12]).all()
