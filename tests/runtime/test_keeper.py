"""When a run is saved, and which checkpoints are kept."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.runtime import checkpoint, keeper
from jaxrl_align.runtime.folder import Upkeep, open_run
from jaxrl_align.runtime.loop import run
from tests.runtime.counting import count, steps_in


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
    return state + 1, {
        "loss": height,
        "error_rate": height,
        "return": jnp.stack([height, jnp.nan]),
        "none": jnp.nan * height,
    }


@pytest.mark.parametrize(
    ("metric", "best"), [("return", 8), ("loss", 4), ("error_rate", 4), ("none", None), (None, None)]
)
def test_the_best_checkpoint_is_kept_beside_the_newest(tmp_path, metric, best):
    how = {"chunk": 4, "checkpoint_every": 4, "progress": False}
    upkeep = Upkeep(keep=1, best=metric)
    run(wave, jnp.float32(0), 20, folder=open_run(tmp_path, {}, upkeep=upkeep), **how)
    assert steps_in(tmp_path) == ([20] if best is None else [best, 20])
    folder = open_run(tmp_path, {}, resume=True, upkeep=upkeep)
    if best is None:
        assert keeper.read_best(folder) is None
        return
    value = 5.0 if metric == "return" else 1.0
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
