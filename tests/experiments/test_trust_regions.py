"""Methods side by side in miniature: figures, a table, and updates that are measured."""

import json

import pytest

from tests.experiments.loading import load

trust_regions = load("trust_regions")
SMALL = {"seeds": 2, "num_envs": 4, "num_steps": 32, "updates": 2, "learning_rates": (1e-2,)}


@pytest.mark.slow
def test_methods_run_and_report_their_kl(tmp_path, capsys, monkeypatch):
    every = trust_regions.methods
    two = lambda config: {name: every(config)[name] for name in ("A2C", "TRPO")}
    monkeypatch.setattr(trust_regions, "methods", two)
    trust_regions.main(trust_regions.Config(out=str(tmp_path / "run"), **SMALL))
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    table = results["0.01"]
    assert table.keys() == {"A2C", "TRPO"}
    assert table["A2C"]["max_kl"] > 0 and 0 < table["TRPO"]["max_kl"] <= 0.01
    for figure in ("learning_curves_0.01.png", "kl_per_update_0.01.png"):
        assert (tmp_path / "run" / figure).stat().st_size > 5_000
    assert "learning rate 0.01, 2 seeds" in capsys.readouterr().out


def test_refuses_before_a_folder_is_made(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="seeds must be at least 2; got seeds=1"):
        trust_regions.main(trust_regions.Config(out=str(out), seeds=1))
    assert not out.exists()
