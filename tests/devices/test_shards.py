"""Checkpoints as folders of shards, written here by one process that is told it is one of several."""

import os
import resource
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import atomic
from jaxrl_align.cli.tuning import publish
from jaxrl_align.runtime import checkpoint, loop
from jaxrl_align.runtime.folder import open_run
from jaxrl_align.runtime.huggingface.storage import whole_folder
from jaxrl_align.runtime.metrics import append_metrics
from tests.tiny import bits

STATE = {
    "w": jnp.arange(6.0).reshape(2, 3),
    "half": jnp.ones(3, jnp.bfloat16),
    "key": jax.random.key(3),
    "none": jnp.zeros((0, 4)),
    "count": jnp.int32(7),
}
CONFIG = {"width": 3}


@pytest.fixture
def as_several(monkeypatch):
    pytest.importorskip("orbax.checkpoint")
    monkeypatch.setattr(checkpoint, "several", lambda: True)


def scaled(factor):
    return STATE | {"w": factor * STATE["w"]}


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_every_leaf_comes_back_to_the_bit_and_the_oldest_goes(tmp_path, as_several):
    for step in (2, 4, 6):
        checkpoint.save(tmp_path, step, scaled(step), CONFIG)
    assert names(tmp_path) == ["checkpoint_000000004.shards", "checkpoint_000000006.shards"]
    state, step = checkpoint.restore(tmp_path, STATE, CONFIG)
    assert step == 6 and bits(state) == bits(scaled(6))
    assert checkpoint.latest_step(tmp_path) == 6 and checkpoint.has_step(tmp_path, 4)
    with pytest.raises(ValueError, match="was made with width=3, but this run has width=4"):
        checkpoint.restore(tmp_path, STATE, {"width": 4})
    with pytest.raises(ValueError, match="holds .*count.*, which this run does not have"):
        checkpoint.restore(tmp_path, {name: STATE[name] for name in STATE if name != "count"}, CONFIG)


@pytest.mark.parametrize("damage", ["metadata.json", "arrays", "[]", "{}"])
def test_a_damaged_one_is_passed_over(tmp_path, as_several, damage):
    for step in (2, 4):
        checkpoint.save(tmp_path, step, scaled(step), CONFIG)
    last = tmp_path / "checkpoint_000000004.shards"
    if damage == "arrays":
        shutil.rmtree(last / "arrays")
    else:
        (last / "metadata.json").write_text(damage)
    with pytest.warns(UserWarning, match="000000004.shards is damaged .*; trying the one before"):
        state, step = checkpoint.restore(tmp_path, STATE, CONFIG)
    assert step == 2 and bits(state) == bits(scaled(2))


def test_one_without_metadata_is_none(tmp_path, as_several):
    checkpoint.save(tmp_path, 2, STATE, CONFIG)
    (tmp_path / "checkpoint_000000002.shards" / "metadata.json").unlink()
    assert checkpoint.latest_step(tmp_path) is None


def test_either_kind_of_a_step_gives_way_to_the_other(tmp_path, monkeypatch):
    pytest.importorskip("orbax.checkpoint")
    for factor, several in ((1, False), (2, True), (3, False)):
        monkeypatch.setattr(checkpoint, "several", lambda several=several: several)
        checkpoint.save(tmp_path, 4, scaled(factor), CONFIG)
        assert names(tmp_path) == [f"checkpoint_000000004.{'shards' if several else 'npz'}"]
        assert bits(checkpoint.restore(tmp_path, STATE, CONFIG)[0]) == bits(scaled(factor))


def test_a_full_disk_leaves_the_one_before_and_its_rest_goes_with_the_next(tmp_path, as_several):
    checkpoint.save(tmp_path, 2, STATE, CONFIG)
    former = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, former[1]))
    try:
        with pytest.raises(OSError, match=r"write .*4.shards: .*; the checkpoint of step 2 is intact"):
            checkpoint.save(tmp_path, 4, scaled(4), CONFIG)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, former)
    assert checkpoint.latest_step(tmp_path) == 2
    assert bits(checkpoint.restore(tmp_path, STATE, CONFIG)[0]) == bits(STATE)
    checkpoint.save(tmp_path, 6, scaled(6), CONFIG)
    assert names(tmp_path) == ["checkpoint_000000002.shards", "checkpoint_000000006.shards"]


def test_a_process_that_is_not_the_first_writes_nothing(tmp_path, monkeypatch):
    (tmp_path / "old.txt").write_text("old")
    monkeypatch.setattr(atomic, "_discards", True)
    append_metrics(tmp_path / "metrics.jsonl", 0, {"loss": np.zeros(2)})
    with atomic.atomic_path(tmp_path / "a.txt") as path:
        path.write_text("new")
    with whole_folder(tmp_path / "model") as folder:
        (folder / "config.json").write_text("{}")
    publish(tmp_path, lambda staged: None)
    open_run(tmp_path / "run", {"width": 3})
    checkpoint.save(tmp_path, 2, STATE, CONFIG)
    assert os.listdir(tmp_path) == ["old.txt"]


def test_all_processes_stop_where_one_was_told_to_and_save_by_the_clock_of_the_first(monkeypatch):
    monkeypatch.setattr(loop, "exchange", lambda own: ["[0, true]", own, "[15, false]"])
    assert loop._decide(0, False) == (15, True)
    monkeypatch.setattr(loop, "exchange", lambda own: ["[0, false]", own])
    assert loop._decide(0, True) == (0, False)
