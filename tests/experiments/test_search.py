"""Search and networks in miniature; the model is the environment's."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import envs
from jaxrl_align.runtime import Interval
from tests.experiments.loading import load

search = load("search")


@pytest.mark.slow
def test_it_plays_with_and_without_search(tmp_path):
    small = {"seeds": 2, "states": 5, "actions": 2, "horizon": 4, "updates": 1, "episodes": 2}
    config = search.Config(out=str(tmp_path), simulations=(2,), training_simulations=2, **small)
    search.main(config)
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert list(result["tables"]) == ["trained by PPO", "trained by expert iteration"]
    for table in result["tables"].values():
        assert list(table) == ["alone", "2 simulations a move"]
        gain = table["2 simulations a move"][search.SHARE]["value"] - table["alone"][search.SHARE]["value"]
        assert table["2 simulations a move"][search.GAIN]["value"] == pytest.approx(gain, abs=1e-6)
    found = [json.loads((tmp_path / f"{way}.json").read_text()) for way in ("PPO", "expert_iteration")]
    ppo, expert = (np.array(x)[:, 0] / np.array(x)[:, -1] for x in found)
    ahead = list(result["headline"].values())[1]
    assert ahead["value"] == pytest.approx((expert - ppo).mean(), abs=1e-5)
    assert (tmp_path / "search.png").stat().st_size > 5_000
    trained = (tmp_path / "expert_iteration.json").stat().st_mtime_ns
    search.main(dataclasses.replace(config, resume=True))
    assert (tmp_path / "expert_iteration.json").stat().st_mtime_ns == trained


def test_gains_are_over_the_network_alone():
    shares = {"PPO": np.array([[0.5, 0.6], [0.7, 0.9]])}
    (table,) = search.tabulate(search.Config(simulations=(4,)), shares).values()
    assert list(table) == ["alone", "4 simulations a move"] and search.GAIN not in table["alone"]
    assert table["4 simulations a move"][search.SHARE].value == pytest.approx(0.75)
    assert table["4 simulations a move"][search.GAIN].value == pytest.approx(0.15)
    assert search.lead(shares | {"search": np.array([[0.8, 0.0], [0.8, 0.0]])}).value == pytest.approx(0.2)


def test_the_verdict_is_that_of_the_gains():
    """The fewest simulations and the most, for either network; what lies between is not asked."""
    near = lambda value: Interval(value, value - 0.1, value + 0.1, "t")

    def judged(place=None, ahead=0.2):
        gains = [0.2, 0.0, 0.2] * 2
        if place is not None:
            gains[place] = 0.05
        names = ("alone", "4", "16", "64")
        table = lambda gains: {name: {search.GAIN: x} for name, x in zip(names, (None, *gains), strict=True)}
        tables = {"a": table(map(near, gains[:3])), "b": table(map(near, gains[3:]))}
        return list(search.judge(tables, near(ahead)).values())

    assert judged() == judged(place=1) == judged(place=4) == [True] * 5
    for check, place in enumerate((0, 2, 3, 5)):
        assert judged(place) == [True] * check + [False] + [True] * (4 - check)
    assert judged(ahead=0.05) == [True] * 4 + [False]


def test_the_model_does_what_the_environment_does():
    mdp, model = search.make_process(jax.random.key(0), search.Config(states=6, actions=2))
    environment, params = envs.make_tabular_environment(mdp, 100)
    begin = envs.reset(environment, params, jax.random.key(0))
    policy = lambda key, obs: jax.random.bernoulli(key).astype(jnp.int32)
    _, steps = envs.unroll(environment, params, policy, begin, jax.random.key(1), 20)
    reward, _, after = jax.vmap(model)(steps.obs, steps.action)
    np.testing.assert_array_equal(after, steps.final_obs)
    np.testing.assert_allclose(reward, steps.reward)


def test_refuses_before_a_folder_is_made(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="seeds must be at least 2; got seeds=1"):
        search.main(search.Config(out=str(out), seeds=1))
    assert not out.exists()
