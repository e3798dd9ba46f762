"""Search and networks in miniature; the model is the environment's."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import envs
from tests.experiments.loading import load

search = load("search")


@pytest.mark.slow
def test_it_plays_with_and_without_search(tmp_path, monkeypatch):
    monkeypatch.setattr(search, "WAYS", search.WAYS[1:])
    small = {"seeds": 2, "states": 5, "actions": 2, "horizon": 4, "updates": 1, "episodes": 2}
    config = search.Config(out=str(tmp_path), simulations=(2,), training_simulations=2, **small)
    search.main(config)
    shares = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))
    assert shares.keys() == {"expert iteration"}
    assert all(np.shape(way) == (2, 2) for way in shares.values())
    assert (tmp_path / "search.png").stat().st_size > 5_000
    trained = (tmp_path / "expert_iteration.json").stat().st_mtime_ns
    search.main(dataclasses.replace(config, resume=True))
    assert (tmp_path / "expert_iteration.json").stat().st_mtime_ns == trained


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
