"""The estimators side by side in miniature."""

import json

import pytest

from tests.experiments.loading import load

policy_gradients = load("policy_gradients")


@pytest.mark.slow
def test_methods_run_and_are_reported(tmp_path, capsys, monkeypatch):
    every = policy_gradients.methods()
    assert len(every) == 9
    two = {name: every[name] for name in ("average baseline", "Q actor-critic, at once")}
    monkeypatch.setattr(policy_gradients, "methods", lambda: two)
    small = {"seeds": 2, "episodes": 2, "time_limit": 16, "updates": 2, "learning_rates": (1e-2,)}
    policy_gradients.main(policy_gradients.Config(out=str(tmp_path / "run"), **small))
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert results.keys() == {"average baseline, 0.01", "Q actor-critic, at once, 0.01"}
    assert all(8 < row["mean"][0] <= 16 for row in results.values())
    assert (tmp_path / "run" / "returns_0.01.png").stat().st_size > 5_000
    assert "learning rate 0.01, 2 seeds" in capsys.readouterr().out


def test_refuses_before_a_folder_is_made(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="seeds must be at least 2; got seeds=1"):
        policy_gradients.main(policy_gradients.Config(out=str(out), seeds=1))
    with pytest.raises(ValueError, match="short_steps must divide time_limit; .* try short_steps=5 or 8"):
        policy_gradients.main(policy_gradients.Config(out=str(out), short_steps=7))
    assert not out.exists()
