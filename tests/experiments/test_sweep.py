"""A grid in miniature: figures, times, and who is who."""

import dataclasses
import json

import numpy as np
import pytest

from jaxrl_align.runtime import paired_interval
from tests.experiments.loading import load

sweep = load("sweep")
SMALL = {
    "seeds": 2,
    "learning_rates": (1e-3, 1e-2),
    "clips": (0.1, 0.2),
    "num_envs": 2,
    "num_steps": 64,
    "total_env_steps": 2_048,
}


@pytest.mark.slow
def test_the_grid_runs_and_is_ordered_as_it_is_reported(tmp_path, capsys):
    config = sweep.Config(out=str(tmp_path), timed=(8,), **SMALL)
    sweep.main(config)
    results = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    returns = np.array(results["returns"])
    assert returns.shape == (2, 2, 2) and [row["runs"] for row in results["times"]] == [8]
    keys, hparams = sweep.make_grid(config)
    member = 6  # the second seed, the second rate, the first clip
    assert keys.shape == (8,) and keys[4] == keys[7] != keys[0]
    assert hparams.learning_rate[member] == np.float32(1e-2) and hparams.clip[member] == np.float32(0.1)
    assert len(set(returns.ravel())) > 4
    for figure in ("return_by_learning_rate.png", "return_by_clip.png"):
        assert (tmp_path / figure).stat().st_size > 5_000
    printed = capsys.readouterr().out
    assert "8 runs:" in printed and "the first 8 runs, alone and among 8: 0 return otherwise" in printed
    gain = returns[:, 0, 1] - returns[:, 0, 0]
    assert f"   {paired_interval(gain, np.zeros(2))}" in printed
    trained = (tmp_path / "runs_8.json").stat().st_mtime_ns
    sweep.main(dataclasses.replace(config, resume=True))
    assert (tmp_path / "runs_8.json").stat().st_mtime_ns == trained
    assert json.loads((tmp_path / "results.json").read_text(encoding="utf-8")) == results


def test_refuses_before_a_folder_is_made(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=r"timed must be at most the grid's 8 runs; got timed=\(64,\)"):
        sweep.main(sweep.Config(out=str(out), timed=(64,), **SMALL))
    assert not out.exists()
