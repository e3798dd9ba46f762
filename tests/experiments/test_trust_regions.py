"""Methods side by side in miniature: figures, a table, and updates that are measured."""

import json

import numpy as np
import pytest

from jaxrl_align.runtime import Interval
from tests.experiments.loading import load

trust_regions = load("trust_regions")
SMALL = {"seeds": 2, "num_envs": 4, "num_steps": 32, "updates": 2}
RATES = {"learning_rates": (1e-2,), "high_rates": (1e-1,)}


TITLE = f"rate {{}}: {trust_regions.COLUMNS}"


@pytest.mark.slow
def test_methods_run_and_report_their_kl(tmp_path, capsys, monkeypatch):
    every = trust_regions.methods
    two = lambda config: {name: every(config)[name] for name in ("PPO, clip", "A2C", "TRPO, bound 0.01")}
    monkeypatch.setattr(trust_regions, "methods", two)
    monkeypatch.setattr(trust_regions, "judge", lambda config, tables: {"rates": list(tables) == [0.01, 0.1]})
    trust_regions.main(trust_regions.Config(out=str(tmp_path / "run"), **SMALL, **RATES))
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["verdict"] == "holds"
    table, high = (result["tables"][TITLE.format(rate)] for rate in ("0.01", "0.1"))
    assert table.keys() == {"PPO, clip", "A2C", "TRPO, bound 0.01"} and high.keys() == {"PPO, clip", "A2C"}
    less = {name: row["less the clip's, paired"]["value"] for name, row in table.items()}
    assert less["PPO, clip"] == 0 != less["A2C"]
    assert 0 < table["TRPO, bound 0.01"]["largest"] <= 0.01
    assert 0 < table["A2C"]["KL: median"] <= table["A2C"]["99%"] <= table["A2C"]["largest"]
    assert high["A2C"]["largest"] > 10 * table["A2C"]["largest"]
    assert list(result["headline"].values()) == [high["A2C"]["less the clip's, paired"]]
    kinds = ("learning_curves", "kl_per_update")
    assert result["figures"] == [f"{kind}_{rate}.png" for rate in (0.1, 0.01) for kind in kinds]
    for figure in result["figures"]:
        assert (tmp_path / "run" / figure).stat().st_size > 5_000
    assert "verdict: it holds" in capsys.readouterr().out


def test_the_verdict_is_that_of_returns_and_falls():
    """At 0.01 all is well but for the loose bound and PPO without its clip; at 0.1 the clip falls too."""
    config = trust_regions.Config(learning_rates=(0.01,), high_rates=(0.03, 0.1), seeds=8)
    row = lambda fall, less: {
        "fall": fall,
        "less the clip's, paired": Interval(less, less - 1, less + 1, "t"),
    }
    usual = {name: row(0, -5) for name in trust_regions.methods(config)}
    usual |= {"TRPO, bound 1": row(1, -5), "PPO, no clip": row(5, -300)}
    high = {"A2C": row(4, -100), "PPO, clip": row(1, 0)}
    tables = {0.01: usual, 0.03: high, 0.1: high | {"PPO, clip": row(2, 0)}}
    judged = list(trust_regions.judge(config, tables).values())
    assert judged == [True, True, False, True, True, True, True]
    assert list(trust_regions.judge(config, tables | {0.1: high}).values()) == [True] * 7
    level = tables | {0.03: high | {"A2C": row(4, -0.5)}}
    assert list(trust_regions.judge(config, level).values())[:2] == [True, False]
    calm = tables | {0.01: usual | {"PPO, no clip": row(0, 0), "TRPO, bound 0.01": row(1, 0)}}
    assert list(trust_regions.judge(config, calm).values())[3:] == [False, True, False, True]


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
