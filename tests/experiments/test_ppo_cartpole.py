"""PPO on CartPole: in miniature it writes its figure and resumes bit for bit; at full length it solves."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from jaxrl_align.runtime import read_metrics
from tests.experiments.loading import load

ppo = load("ppo_cartpole")


def arrays(path):
    """Return the bytes of every array of a checkpoint, whose metadata tell `resume` apart."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name].tobytes() for name in file.files if name != "__metadata__"}


@pytest.mark.slow
def test_a_run_of_two_halves_is_the_uninterrupted_run(tmp_path):
    small = ppo.Config(seeds=2, num_envs=2, num_steps=16, total_env_steps=512, minibatches=2)
    config = dataclasses.replace(small, out=str(tmp_path / "whole"))
    ppo.main(config)
    whole = Path(config.out)
    result = json.loads((whole / "result.json").read_text(encoding="utf-8"))
    ((title, table),) = result["tables"].items()
    assert title == "return of the last 100 episodes, after 512 steps a seed"
    assert table["PPO"]["seeds that reach 475"] == 0
    played = read_metrics(whole / "metrics.jsonl")["episode_return_last100"]
    assert table["PPO"]["each seed"] == played[-1].tolist() != played[0].tolist()
    assert list(result["headline"].values()) == [table["PPO"]["interquartile mean"]]
    assert (whole / "learning_curve.png").stat().st_size > 5_000
    metrics = (whole / "metrics.jsonl").read_bytes()
    last = max(whole.glob("checkpoint_*"))
    final = arrays(last)
    last.unlink()  # as if the run had been killed before its last checkpoint
    ppo.main(dataclasses.replace(config, resume=True))
    assert (whole / "metrics.jsonl").read_bytes() == metrics
    assert arrays(last) == final
    again = json.loads((whole / "result.json").read_text(encoding="utf-8"))
    assert again | {"run": None} == result | {"run": None}


@pytest.mark.parametrize(
    "change, message",
    [
        ({"env": "CartPole"}, "unknown environment 'CartPole'; did you mean CartPole-v1"),
        ({"total_env_steps": 10}, "total_env_steps must be at least 1024; got total_env_steps=10"),
        ({"seeds": 0}, "seeds must be at least 1"),
        ({"minibatches": 3}, "minibatches must divide segments per rollout; .*=1024, minibatches=3; try"),
    ],
)
def test_refuses_before_a_folder_is_made(tmp_path, change, message):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match=message):
        ppo.main(ppo.Config(out=str(out), **change))
    assert not out.exists()


@pytest.mark.optimised
@pytest.mark.slow
def test_solves_cartpole_on_at_least_seven_of_eight_seeds(tmp_path):
    ppo.main(ppo.Config(out=str(tmp_path)))
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    ((row,),) = (table.values() for table in result["tables"].values())
    assert row["seeds that reach 475"] >= 7
