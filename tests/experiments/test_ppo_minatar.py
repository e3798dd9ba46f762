"""PPO from images in miniature."""

import json

import pytest

from tests.experiments.loading import load

ppo = load("ppo_minatar")


@pytest.mark.slow
def test_it_plays_from_images(tmp_path):
    small = {"seeds": 2, "num_envs": 2, "num_steps": 32, "total_env_steps": 64, "epochs": 1, "minibatches": 1}
    ppo.main(ppo.Config(out=str(tmp_path / "run"), hidden=4, channels=1, **small))
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    ((row,),) = (table.values() for table in result["tables"].values())
    assert all(0 <= x < 5 for x in row["each seed"]) and row["seeds that reach 28"] == 0
    assert result["claim"] == ppo.CLAIM.text and result["checks"]["every seed returns 28 or more"] is False


def test_refuses_before_a_folder_is_made(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=r"a convolution needs an image .* got shape \(4,\)"):
        ppo.main(ppo.Config(out=str(out), env="CartPole-v1"))
    assert not out.exists()
