"""Continuous PPO in miniature: it trains, plays greedily and reports a return for each seed."""

import json

import pytest

from tests.experiments.loading import load

ppo = load("ppo_continuous")
SMALL = {"seeds": 2, "num_envs": 2, "num_steps": 8, "total_env_steps": 32, "epochs": 1, "minibatches": 1}


@pytest.mark.slow
def test_it_trains_and_plays_with_frozen_moments(tmp_path, capsys, monkeypatch):
    assert len(ppo.WAYS) == 3
    name = "tanh-Gaussian, normalised"
    monkeypatch.setattr(ppo, "WAYS", {name: ppo.WAYS[name]})
    config = ppo.Config(out=str(tmp_path / "run"), episodes=1, **SMALL)
    ppo.main(config)
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert results.keys() == {name} and all(-2000 < x < 0 for x in results[name])
    assert (tmp_path / "run" / "learning_curves.png").stat().st_size > 5_000
    assert "Pendulum-v1, 2 seeds, 32 steps each" in capsys.readouterr().out


def test_refuses_before_a_folder_is_made(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="total_env_steps must be at least 2048; got total_env_steps=10"):
        ppo.main(ppo.Config(out=str(out), total_env_steps=10))
    assert not out.exists()
