"""PPO from images in miniature."""

import json

import pytest

from tests.experiments.loading import load

ppo = load("ppo_minatar")


@pytest.mark.slow
def test_it_plays_from_images(tmp_path, capsys):
    small = {"seeds": 2, "num_envs": 2, "num_steps": 32, "total_env_steps": 64, "epochs": 1, "minibatches": 1}
    ppo.main(ppo.Config(out=str(tmp_path / "run"), hidden=4, channels=1, **small))
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert all(0 <= x < 5 for x in result["episode_return_last100"])
    assert "at least 28: 0 of 2 seeds" in capsys.readouterr().out


def test_refuses_before_a_folder_is_made(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=r"a convolution needs an image .* got shape \(4,\)"):
        ppo.main(ppo.Config(out=str(out), env="CartPole-v1"))
    assert not out.exists()
