"""A run that met a nan is taken again, and the operation is named."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.runtime import checkpoint
from jaxrl_align.runtime.folder import Upkeep, open_run
from jaxrl_align.runtime.guards.faults import find_first_nan
from jaxrl_align.runtime.loop import run
from tests.runtime.counting import count


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
