import functools
import json
import os
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.learner import make_gradient_learner
from jaxrl_align.rl.actor_critic import PPOHParams
from jaxrl_align.runtime import checkpoint, loop
from jaxrl_align.runtime.folder import open_run
from jaxrl_align.runtime.loop import run
from tests.runtime.counting import count


def bits(tree):
    """Return every leaf's raw bytes, so that equality means equality of bits."""
    is_key = lambda leaf: jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    data = lambda leaf: jax.random.key_data(leaf) if is_key(leaf) else leaf
    return [np.asarray(data(leaf)).tobytes() for leaf in jax.tree.leaves(tree)]


def assert_same_history(a, b):
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape
        assert a[name].tobytes() == b[name].tobytes(), name


def test_run_equals_stepping_by_hand(problem):
    step, state = problem
    expected, rows = state, []
    for _ in range(7):
        expected, metrics = jax.jit(step)(expected)
        rows.append(metrics)
    got, history = run(step, state, 7, chunk=3, progress=False)
    np.testing.assert_allclose(got.params["w"], expected.params["w"], rtol=1e-5)
    assert bits(got.key) == bits(expected.key)
    assert history.keys() == {"loss", "grad_norm", "learning_rate", "largest"}
    assert history["loss"].shape == (7, 2)
    np.testing.assert_allclose(history["loss"], np.stack([row["loss"] for row in rows]), rtol=1e-4)


def test_history_has_one_row_per_step_in_order():
    state, history = run(count, jnp.float32(5.0), 10, chunk=4, progress=False)
    assert float(state) == 15.0
    np.testing.assert_array_equal(history["loss"], np.arange(5.0, 15.0, dtype=np.float32))


def test_callers_state_survives_donation(problem):
    step, state = problem
    before = bits(state)
    run(step, state, 4, chunk=2, progress=False)
    assert bits(state) == before


def test_one_buffer_in_two_places_is_accepted():
    params = jnp.ones(3)
    step = lambda s: ({"policy": s["policy"] * 2, "reference": s["reference"]}, {"loss": s["policy"].sum()})
    state, _ = run(step, {"policy": params, "reference": params}, 4, chunk=2, progress=False)
    np.testing.assert_array_equal(state["policy"], [16.0] * 3)
    np.testing.assert_array_equal(state["reference"], [1.0] * 3)


def test_keys_are_used_once(problem):
    step, state = problem
    with jax.debug_key_reuse(True):
        run(step, state, 4, chunk=2, progress=False)


def test_a_program_is_compiled_per_chunk_length_even_for_a_weakly_typed_state():
    traces = []

    def step(state):
        traces.append(1)
        return {"x": state["x"] + 1}, {"loss": state["x"]}

    weak = {"x": jax.jit(lambda: jnp.asarray(1.0))() * 1.0}
    traced = {}
    for num_steps in (4, 40, 42):
        traces.clear()
        run(step, weak, num_steps, chunk=4, progress=False)
        traced[num_steps] = len(traces)
    assert traced[40] == traced[4]
    assert traced[42] <= 2 * traced[4]


@pytest.fixture(scope="module")
def whole(program, tmp_path_factory):
    """An uninterrupted run of 30 steps in chunks of 4: its folder, state and history."""
    path = tmp_path_factory.mktemp("whole")
    step, state = program.make_problem()
    return path, *run(step, state, 30, chunk=4, folder=open_run(path, {}), progress=False)


def assert_continues(problem, path, whole):
    """Continue the run in `path` to 30 steps, and compare every bit with the uninterrupted one."""
    step, state = problem
    got, history = run(step, state, 30, chunk=4, folder=open_run(path, {}, resume=True), progress=False)
    assert bits(got) == bits(whole[1])
    assert_same_history(history, whole[2])
    assert (path / "metrics.jsonl").read_bytes() == (whole[0] / "metrics.jsonl").read_bytes()


def test_resumed_run_equals_uninterrupted_bit_for_bit(problem, tmp_path, whole):
    step, state = problem
    run(step, state, 16, chunk=4, folder=open_run(tmp_path, {}), progress=False)
    assert_continues(problem, tmp_path, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_at_the_chunks_end_and_the_run_continues(problem, tmp_path, whole, number):
    step, state = problem
    calls = []

    def interrupted(*args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), number)
        return append(*args, **kwargs)

    append, loop.append_metrics = loop.append_metrics, interrupted
    handler = signal.getsignal(number)
    try:
        with pytest.raises(KeyboardInterrupt, match=str(int(number))):
            run(step, state, 30, chunk=4, folder=open_run(tmp_path, {}), progress=False)
    finally:
        loop.append_metrics = append
    assert signal.getsignal(number) is handler
    assert checkpoint.latest_step(tmp_path) == 16  # the signal fell after the third chunk's look at the flag
    assert_continues(problem, tmp_path, whole)


def test_rows_past_the_checkpoint_are_cut_and_taken_again(problem, tmp_path, whole):
    step, state = problem
    run(step, state, 8, chunk=4, folder=open_run(tmp_path, {}), progress=False)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 8, "loss": [0.0, 0.0]}\n{"step": 9, "lo')
    assert_continues(problem, tmp_path, whole)
    rows = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(30))


def test_resuming_a_finished_run_returns_it_without_a_step(problem, tmp_path):
    step, state = problem
    final, whole = run(step, state, 6, folder=open_run(tmp_path, {}), progress=False)
    before = (tmp_path / "metrics.jsonl").read_bytes()
    got, history = run(step, state, 6, folder=open_run(tmp_path, {}, resume=True), progress=False)
    assert bits(got) == bits(final)
    assert_same_history(history, whole)
    assert (tmp_path / "metrics.jsonl").read_bytes() == before


def test_resume_before_the_first_checkpoint_starts_again(problem, tmp_path):
    step, state = problem
    folder = open_run(tmp_path, {})
    (tmp_path / "metrics.jsonl").write_text('{"step": 0, "loss": [1.0, 1.0]}\n')
    _, history = run(step, state, 4, folder=open_run(tmp_path, {}, resume=True), progress=False)
    assert folder.path == tmp_path
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 4 == len(history["loss"])


def test_checkpoints_fall_on_chunk_ends(tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(checkpoint, "save", lambda folder, step, *_, **how: saved.append(step))
    folder = open_run(tmp_path, {})
    run(count, jnp.float32(0), 30, chunk=4, folder=folder, checkpoint_every=10, progress=False)
    assert saved == [12, 20, 30]


def test_nan_loss_names_metric_step_and_members_and_keeps_the_checkpoint(tmp_path):
    def step(state):
        value = jnp.where((state >= 9) & (jnp.arange(3) != 1), jnp.nan, 1.0)
        return state + 1, {"policy_loss": value, "episode_return_last100": jnp.full(3, jnp.nan)}

    folder = open_run(tmp_path, {})
    message = r"policy_loss is not finite at step 9 in members \[0, 2\] of 3; .* step 8 in .* is intact"
    with pytest.raises(FloatingPointError, match=message):
        run(step, jnp.int32(0), 20, chunk=4, folder=folder, checkpoint_every=4, progress=False)
    assert checkpoint.latest_step(tmp_path) == 8
    row = json.loads((tmp_path / "metrics.jsonl").read_text().splitlines()[9])
    assert row["policy_loss"] == [None, 1.0, None]


def test_the_parts_of_a_policy_gradient_loss_are_losses():
    step = lambda s: (s + 1, {"loss/policy_avg": jnp.where(s < 2, 1.0, jnp.nan)})
    with pytest.raises(FloatingPointError, match="loss/policy_avg is not finite at step 2"):
        run(step, jnp.float32(0), 10, chunk=4, progress=False)


ROOT = make_gradient_learner(
    lambda key: {"w": jnp.ones(2)}, lambda p, *_: (jnp.sum(jnp.sqrt(jnp.abs(p["w"] - 1.0))), {})
)
"""Loss 0 at its start, where the gradient is nan, and with it the parameters."""


@pytest.mark.parametrize("saved", [True, False])
def test_parameters_that_are_nan_are_never_saved_however_fine_the_loss(tmp_path, saved):
    state = ROOT.init(jax.random.key(0), PPOHParams(learning_rate=0.1))
    step = lambda state: ROOT.step(state, jnp.zeros(1))
    folder = open_run(tmp_path, {}) if saved else None
    with pytest.raises(FloatingPointError, match=r"^params/w is nan after 1 steps, although the loss is fin"):
        run(step, state, 1, folder=folder, progress=False)
    assert checkpoint.latest_step(tmp_path) is None
    plain = lambda s: ({"x": jnp.sqrt(s["x"] - 1.0)}, {"loss": s["x"]})
    with pytest.raises(FloatingPointError, match="^x is nan after 1 steps"):
        run(plain, {"x": jnp.zeros(3)}, 1, progress=False)


def test_what_does_not_learn_may_hold_infinities_and_an_environment_what_it_likes(tmp_path):
    state = ROOT.init(jax.random.key(0), PPOHParams(value_clip=jnp.inf))._replace(
        env_state=jnp.full(2, jnp.nan)
    )
    run(
        lambda s: (s._replace(step=s.step + 1), {"loss": jnp.ones(())}),
        state,
        1,
        folder=open_run(tmp_path, {}),
        progress=False,
    )
    assert checkpoint.latest_step(tmp_path) == 1


def test_scalar_inf_loss_without_folder():
    step = lambda s: (s + 1, {"loss": 1.0 / (2.0 - s)})
    with pytest.raises(FloatingPointError, match="loss is not finite at step 2; lower the learning rate$"):
        run(step, jnp.float32(0), 5, progress=False)


def test_full_disk_while_saving_keeps_the_last_checkpoint(problem, tmp_path, monkeypatch, whole):
    step, state = problem
    run(step, state, 8, chunk=4, folder=open_run(tmp_path, {}), progress=False)

    def full(file, **arrays):
        file.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="No space left on device; the checkpoint of step 8 is intact"):
        run(step, state, 16, chunk=4, folder=open_run(tmp_path, {}, resume=True), progress=False)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        "checkpoint_000000008.npz",
        "config.json",
        "metrics.jsonl",
    ]
    assert_continues(problem, tmp_path, whole)


def test_another_configuration_is_refused_before_the_step_is_traced(problem, tmp_path):
    _, state = problem
    run(problem[0], state, 4, folder=open_run(tmp_path, {"width": 64}), progress=False)
    with pytest.raises(ValueError, match="was made with width=64, but this run has width=128; pass --out"):
        open_run(tmp_path, {"width": 128}, resume=True)
    (tmp_path / "config.json").write_text('{"width": 128}')  # even if that file was edited
    folder = open_run(tmp_path, {"width": 128}, resume=True)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ValueError, match="was made with width=64, but this run has width=128; pass --out"):
        run(lambda s: pytest.fail("traced"), state, 8, folder=folder, progress=False)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_errors_of_use(problem, tmp_path):
    step, state = problem
    with pytest.raises(ValueError, match="chunk must be at least 1; got 0"):
        run(step, state, 4, chunk=0)
    with pytest.raises(ValueError, match="num_steps must be at least 1; got -1"):
        run(step, state, -1)
    with pytest.raises(ValueError, match="checkpoint_every needs a folder"):
        run(step, state, 4, checkpoint_every=2)
    folder = open_run(tmp_path, {})
    run(step, state, 4, folder=folder, progress=False)
    with pytest.raises(ValueError, match="already holds a run; give each run its own folder.sub"):
        run(step, state, 4, folder=folder)
    with pytest.raises(ValueError, match="is at step 4, beyond num_steps=2"):
        run(step, state, 2, folder=open_run(tmp_path, {}, resume=True))


def test_progress_without_a_terminal_is_a_few_lines(capfd):
    run(count, jnp.float32(0), 100, chunk=2, label="count", show=("loss", "absent"))
    out, err = capfd.readouterr()
    lines = err.splitlines()
    assert out == "" and len(lines) == 10
    assert lines[0].startswith("count 10/100 loss=8.5 ") and lines[-1].startswith("count 100/100 loss=98.5 ")
    run(count, jnp.float32(0), 10, progress=False)
    assert capfd.readouterr().err == ""


def test_progress_on_a_terminal_is_a_bar(monkeypatch, capfd):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    run(count, jnp.float32(0), 100, chunk=10, label="count")
    err = capfd.readouterr().err
    assert "count: 100%" in err and "100/100" in err and "loss=94.5" in err


def start(program, *arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, str(program.path), *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_interrupted_program_continues_in_a_new_process_to_the_same_bits(program, tmp_path):
    whole = start(program, "--out", tmp_path / "whole")
    first = start(program, "--out", tmp_path / "parts")
    metrics = tmp_path / "parts" / "metrics.jsonl"
    while not (metrics.exists() and metrics.stat().st_size > 20_000) and first.poll() is None:
        time.sleep(0.005)
    first.send_signal(signal.SIGINT)
    assert "the same command with --resume continues" in first.communicate(timeout=60)[1]
    assert first.returncode == 130
    stopped_at = checkpoint.latest_step(tmp_path / "parts")
    assert 0 < stopped_at < 3002 and stopped_at % 4 == 0
    assert whole.communicate(timeout=60)[1].splitlines()[-1].startswith("fit 3002/3002 loss=")

    refused = start(program, "--out", tmp_path / "parts")
    line = "already holds a run; pass --resume to continue it, or --out with a new folder"
    assert refused.communicate(timeout=60)[1] == f"error: {tmp_path / 'parts'} {line}\n"
    assert refused.returncode == 2
    other = start(program, "--out", tmp_path / "parts", "--resume", "--width", 5)
    assert "was made with width=3, but this run has width=5; pass --out" in other.communicate(timeout=60)[1]
    again = start(program, "--out", tmp_path / "parts", "--resume")  # one at a time: the folder is locked
    again.communicate(timeout=60)
    assert again.returncode == 0

    template = program.make_problem()[1]
    states = [checkpoint.restore(tmp_path / name, template) for name in ("whole", "parts")]
    assert states[0][1] == states[1][1] == 3002
    assert bits(states[0][0]) == bits(states[1][0])
    assert (tmp_path / "whole" / "metrics.jsonl").read_bytes() == metrics.read_bytes()


def drift(state, row):
    """Move by noise and by the row; the loss says where."""
    key, draw = jax.random.split(state["key"])
    x = 0.9 * state["x"] + row["a"].sum() + jax.random.normal(draw)
    return {"key": key, "x": x}, {"loss": x}


def rows_of(first, steps):
    draws = [np.random.default_rng((7, step)).normal(size=3) for step in range(first, first + steps)]
    return {"a": np.stack(draws).astype(np.float32)}


def test_batches_from_the_host_reach_their_steps():
    start = {"key": jax.random.key(0), "x": jnp.zeros(())}
    asked = []
    batches = lambda first, steps: asked.append((first, steps)) or rows_of(first, steps)
    _, history = run(drift, start, 7, chunk=3, progress=False, batches=batches)
    expected, state = [], start
    for step in range(7):
        state, metrics = drift(state, {"a": rows_of(step, 1)["a"][0]})
        expected.append(metrics["loss"])
    np.testing.assert_allclose(history["loss"], np.stack(expected), rtol=1e-5)
    assert asked[1:] == [(0, 3), (3, 3), (6, 1)]


def test_a_run_on_streamed_batches_resumes_in_the_same_bits(tmp_path):
    """Interrupted in its second chunk of four, and continued from the checkpoint after it."""
    start = {"key": jax.random.key(0), "x": jnp.zeros(())}
    options = {"chunk": 3, "progress": False, "batches": rows_of}
    want, want_history = run(drift, start, 11, **options)
    folder = tmp_path / "run"

    seen = []

    def interrupt(done, state, metrics):
        seen.append({name: values.copy() for name, values in metrics.items()})
        if done == 6:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(drift, start, 11, folder=open_run(folder, {}), on_chunk=interrupt, **options)
    assert checkpoint.latest_step(folder) == 6
    got, history = run(drift, start, 11, folder=open_run(folder, {}, resume=True), **options)
    assert bits(got) == bits(want)
    assert_same_history(history, want_history)
    for name, values in history.items():
        np.testing.assert_array_equal(np.concatenate([chunk[name] for chunk in seen]), values[:6])
    assert_same_history(
        {k: np.concatenate([m[k] for m in seen]) for k in seen[0]}, {k: v[:6] for k, v in history.items()}
    )


def towards(state, batch, frozen):
    """Move towards the frozen goal."""
    state = state + 0.5 * (frozen["goal"] - state)
    return state, {"loss": jnp.sum(state)}


def test_frozen_weights_are_read_and_neither_copied_nor_saved(tmp_path):
    frozen = {"goal": jnp.array([1.0, 3.0])}
    folder = open_run(tmp_path, {})
    state, history = run(towards, jnp.zeros(2), 4, chunk=2, folder=folder, frozen=frozen, progress=False)
    np.testing.assert_allclose(state, [0.9375, 2.8125])
    np.testing.assert_allclose(history["loss"], [2.0, 3.0, 3.5, 3.75])
    assert frozen["goal"][1] == 3.0, "they were not donated"
    assert folder.read_json("frozen.json")["bytes"] == 8
    assert checkpoint.restore(tmp_path, jnp.zeros(2))[1] == 4, "the checkpoint is the state alone"


def test_a_run_continues_on_the_frozen_weights_that_it_began_with(tmp_path):
    frozen = {"goal": jnp.array([1.0, 3.0])}
    run(towards, jnp.zeros(2), 2, folder=open_run(tmp_path, {}), frozen=frozen, progress=False)
    go = functools.partial(run, towards, jnp.zeros(2), 4, progress=False)
    resumed = lambda: open_run(tmp_path, {}, resume=True)
    for other in ({"goal": jnp.array([1.0, 3.5])}, {"aim": jnp.array([1.0, 3.0])}):
        with pytest.raises(
            ValueError, match="was begun with frozen weights [0-9a-f]{12}, but this run has froz"
        ):
            go(folder=resumed(), frozen=other)
    with pytest.raises(
        ValueError, match="but this run has no frozen weights; pass the same weights, or --out"
    ):
        run(lambda s: towards(s, None, frozen), jnp.zeros(2), 4, folder=resumed(), progress=False)
    state, _ = go(folder=resumed(), frozen=frozen)
    np.testing.assert_allclose(state, [0.9375, 2.8125])


def test_batches_and_frozen_weights_go_together():
    def step(state, batch, frozen):
        return state + batch * frozen, {"loss": state}

    rows = lambda first, count: jnp.arange(first, first + count, dtype=jnp.float32)
    state, _ = run(step, jnp.float32(0.0), 5, chunk=2, batches=rows, frozen=jnp.float32(2.0), progress=False)
    assert state == 20.0
