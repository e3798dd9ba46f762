"""A grid in miniature: figures, times, and who is who."""

import dataclasses
import json

import numpy as np
import pytest

from jaxrl_align.runtime import Interval
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
    config = sweep.Config(out=str(tmp_path), timed=(4,), **SMALL)
    sweep.main(config)
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    returns = np.array(json.loads((tmp_path / "runs_8.json").read_text(encoding="utf-8"))["returns"])
    took, alone, table = result["tables"].values()
    assert list(took) == ["4 runs", "8 runs"] and list(alone) == ["the first 4 runs"]
    keys, hparams = sweep.make_grid(config)
    member = 6  # the second seed, the second rate, the first clip
    assert keys.shape == (8,) and keys[4] == keys[7] != keys[0]
    assert hparams.learning_rate[member] == np.float32(1e-2) and hparams.clip[member] == np.float32(0.1)
    assert len(set(returns)) > 4
    cell = table["rate 0.01"]["clip 0.1"]
    assert cell["value"] == pytest.approx((returns[2] + returns[6]) / 2) and cell["kind"] == "range"
    gain = returns[[1, 5]] - returns[[0, 4]]
    assert table["rate 0.001"]["0.2 less 0.1, paired"]["value"] == pytest.approx(gain.mean())
    for figure in result["figures"]:
        assert (tmp_path / figure).stat().st_size > 5_000
    assert "8 runs:" in capsys.readouterr().out
    trained = (tmp_path / "runs_8.json").stat().st_mtime_ns
    sweep.main(dataclasses.replace(config, resume=True))
    assert (tmp_path / "runs_8.json").stat().st_mtime_ns == trained
    again = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert again | {"run": None} == result | {"run": None}


def test_runs_alone_are_held_against_the_same_runs_among_all():
    found = {1: np.array([10.0]), 2: np.array([10.0, 30.0]), 3: np.array([10.0, 38.0, 99.0])}
    alone = sweep.tabulate_alone(sweep.Config(), found)
    one, two = alone.values()
    assert list(alone) == ["the first run", "the first 2 runs"]
    assert one["return otherwise"] == one["by at most"] == 0
    assert [two[of] for of in ("return otherwise", "by at most", "mean return alone")] == [1, 8, 20]
    assert two[sweep.APART].value == 4
    times = [{"runs": n, "compile_seconds": 3.0, "seconds": 5.0} for n in (1, 4)]
    one, four = sweep.tabulate_times(times).items()
    assert one == ("1 run", {"compiling": 3, "running": 5, sweep.COMPILED: 5, sweep.SECONDS: 8})
    assert four == ("4 runs", {"compiling": 3, "running": 5, sweep.COMPILED: 1.25, sweep.SECONDS: 2})


def test_the_grid_is_told_by_rate_and_clip():
    config = sweep.Config(learning_rates=(0.1, 0.2), clips=(0.3, 0.4, 0.5))
    row = np.array([[10.0, 20.0, 40.0], [1.0, 2.0, 3.0]])
    table = sweep.tabulate_grid(config, np.stack([row, row + 4.0]))
    values = {rate: [cell.value for cell in cells.values()] for rate, cells in table.items()}
    assert values == {"rate 0.1": [12, 22, 42, 30], "rate 0.2": [3, 4, 5, 2]}
    assert list(table["rate 0.2"]) == ["clip 0.3", "clip 0.4", "clip 0.5", "0.5 less 0.3, paired"]


def test_the_verdict_is_that_of_times_and_returns():
    def judged(slow=(6.0, 8.0), otherwise=0, apart=3.0):
        alone = {
            "the first run": {"return otherwise": 0},
            "the first 4 runs": {"return otherwise": otherwise},
        }
        interval = Interval(apart, apart - 1, apart + 1, "t")
        alone["the first 4 runs"] |= {"mean return alone": 100.0, sweep.APART: interval}
        seconds = {"1 run": slow, "4 runs": (7.0, 9.0), "8 runs": (5.0, 7.0)}
        times = {runs: {sweep.COMPILED: low, sweep.SECONDS: high} for runs, (low, high) in seconds.items()}
        return list(sweep.judge(times, alone).values())

    assert judged() == [True] * 5
    assert judged(slow=(6.0, 7.0)) == [False, True, True, True, True]
    assert judged(slow=(5.0, 8.0)) == [True, False, True, True, True]
    assert judged(otherwise=1) == [True, True, True, False, True]
    assert judged(apart=4.5) == judged(apart=-4.5) == [True, True, True, True, False]


def test_refuses_before_a_folder_is_made(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=r"timed must be at most the grid's 8 runs; got timed=\(64,\)"):
        sweep.main(sweep.Config(out=str(out), timed=(64,), **SMALL))
    with pytest.raises(
        ValueError, match=r"timed must hold a number below the grid's 8 runs; got timed=\(8,\)"
    ):
        sweep.main(sweep.Config(out=str(out), timed=(8,), **SMALL))
    assert not out.exists()
