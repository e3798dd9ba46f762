"""Methods side by side in miniature: figures, a table, and updates that are measured."""

import json

import numpy as np
import pytest

from tests.experiments.loading import load

trust_regions = load("trust_regions")
SMALL = {"seeds": 2, "num_envs": 4, "num_steps": 32, "updates": 2}
RATES = {"learning_rates": (1e-2,), "high_rates": (1e-1,)}


@pytest.mark.slow
def test_methods_run_and_report_their_kl(tmp_path, capsys, monkeypatch):
    every = trust_regions.methods
    two = lambda config: {name: every(config)[name] for name in ("PPO, clip", "A2C", "TRPO, bound 0.01")}
    monkeypatch.setattr(trust_regions, "methods", two)
    trust_regions.main(trust_regions.Config(out=str(tmp_path / "run"), **SMALL, **RATES))
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    table = results["0.01"]
    assert table.keys() == {"PPO, clip", "A2C", "TRPO, bound 0.01"}
    assert results["0.1"].keys() == {"PPO, clip", "A2C"}
    assert table["PPO, clip"]["less clip"][0] == 0 != table["A2C"]["less clip"][0]
    assert 0 < table["TRPO, bound 0.01"]["max_kl"] <= 0.01
    assert 0 < table["A2C"]["median_kl"] <= table["A2C"]["kl_99"] <= table["A2C"]["max_kl"]
    assert results["0.1"]["A2C"]["max_kl"] > 10 * table["A2C"]["max_kl"]
    for figure in ("learning_curves_0.01.png", "kl_per_update_0.01.png"):
        assert (tmp_path / "run" / figure).stat().st_size > 5_000
    assert "learning rate 0.01, 2 seeds" in capsys.readouterr().out


def test_the_arms_differ_as_they_are_named():
    found = trust_regions.methods(trust_regions.Config(max_kl=0.02, loose_kl=0.5))
    assert len(found) == 8
    clip, bare, neither = (
        found[name][1] for name in ("PPO, clip", "PPO, no clip", "PPO, no clip of ratio or value")
    )
    assert bare == clip._replace(clip=np.inf) and neither == bare._replace(value_clip=np.inf)
    assert found["TRPO, bound 0.02"][1].max_kl == 0.02 and found["TRPO, bound 0.5"][1].max_kl == 0.5
    adaptive, fixed = (found[f"PPO, {name} KL"] for name in ("adaptive", "fixed"))
    assert fixed[0].keywords == adaptive[0].keywords | {"adaptive": False} and fixed[1].kl_target == 0.02


def test_refuses_before_a_folder_is_made(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="seeds must be at least 2; got seeds=1"):
        trust_regions.main(trust_regions.Config(out=str(out), seeds=1))
    assert not out.exists()
