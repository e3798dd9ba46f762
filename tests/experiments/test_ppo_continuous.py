"""Continuous PPO in miniature: it trains, plays greedily and reports a return for each seed."""

import json

import numpy as np
import pytest

from jaxrl_align.runtime import Interval
from tests.experiments.loading import load

ppo = load("ppo_continuous")
SMALL = {"seeds": 2, "num_envs": 2, "num_steps": 8, "total_env_steps": 32, "epochs": 1, "minibatches": 1}


@pytest.mark.slow
def test_it_trains_and_plays_with_frozen_moments(tmp_path, monkeypatch):
    assert len(ppo.WAYS) == 3
    name = "tanh-Gaussian, normalised"
    monkeypatch.setattr(ppo, "WAYS", {name: ppo.WAYS[name], ppo.PLAIN: ppo.WAYS[ppo.PLAIN]})
    config = ppo.Config(out=str(tmp_path / "run"), episodes=1, **SMALL)
    ppo.main(config)
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    (table,) = result["tables"].values()
    assert list(table) == [name, ppo.PLAIN]
    assert all(-2000 < x < 0 for row in table.values() for x in row["greedy, each seed"])
    assert (
        result["headline"]["greedy return on Pendulum-v1, tanh-Gaussian, normalised"] == table[name]["greedy"]
    )
    assert result["baselines"] == {f"greedy return, {ppo.PLAIN}": table[ppo.PLAIN]["greedy"]}
    assert (tmp_path / "run" / "learning_curves.png").stat().st_size > 5_000


def test_ways_are_compared_by_seed_and_those_that_reach_the_goal_are_counted():
    config, name = ppo.Config(env="MountainCarContinuous-v0", seeds=2), "Gaussian, normalised"
    normalised = np.array([[np.nan, 10.0], [30.0, 50.0]]), np.array([94.0, 80.0])
    plain = np.array([[0.0, 0.0], [0.0, 10.0]]), np.array([0.0, 10.0])
    table = ppo.tabulate(config, {name: normalised, ppo.PLAIN: plain})
    row = table[name]
    assert [row[of].value for of in ("greedy", "last 100 sampled", "greedy, less as it is")] == [87, 40, 82]
    assert row["while learning, less as it is"].value == pytest.approx((30 + 25) / 2)
    assert row["seeds that reach 90"] == 1 and row["greedy"].high == 100
    assert table[ppo.PLAIN]["seeds that reach 90"] == 0 and "greedy, less as it is" not in table[ppo.PLAIN]
    assert "seeds that reach 90" not in ppo.tabulate(ppo.Config(env="other"), {ppo.PLAIN: plain})[ppo.PLAIN]


def test_the_verdict_is_that_of_goals_and_gains():
    config = ppo.Config(env="MountainCarContinuous-v0", seeds=8)

    def judged(reach=8, greedy=2, learning=2):
        row = {"seeds that reach 90": reach} | {
            f"{when}, less as it is": Interval(x, x - 1, x + 1, "t")
            for when, x in {"greedy": greedy, "while learning": learning}.items()
        }
        return list(ppo.judge(config, {"Gaussian, normalised": row, ppo.PLAIN: {}}).values())

    assert judged() == [True] * 3 and judged(reach=7) == [False, True, True]
    assert judged(greedy=0.5) == [True, False, True] and judged(learning=0.5) == [True, True, False]


def test_refuses_before_a_folder_is_made(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="total_env_steps must be at least 2048; got total_env_steps=10"):
        ppo.main(ppo.Config(out=str(out), total_env_steps=10))
    assert not out.exists()
