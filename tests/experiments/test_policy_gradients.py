"""The estimators side by side in miniature."""

import json

import chex
import jax
import jax.numpy as jnp
import pytest

from jaxrl_align import nets
from tests.experiments.loading import load

policy_gradients = load("policy_gradients")


@pytest.mark.slow
def test_methods_run_and_are_reported(tmp_path, capsys):
    assert len(policy_gradients.methods()) == 14
    two = ("average baseline", "Q actor-critic, at once")
    small = {"seeds": 2, "episodes": 2, "time_limit": 16, "updates": 2, "learning_rates": (1e-2,)}
    policy_gradients.main(policy_gradients.Config(out=str(tmp_path / "run"), only=two, **small))
    results = json.loads((tmp_path / "run" / "results.json").read_text(encoding="utf-8"))
    assert results.keys() == {"average baseline, 0.01", "Q actor-critic, at once, 0.01"}
    assert all(8 < row["mean"][0] <= 16 for row in results.values())
    assert (tmp_path / "run" / "returns_0.01.png").stat().st_size > 5_000
    assert "learning rate 0.01, 2 seeds" in capsys.readouterr().out


def test_a_faster_critic_moves_ten_times_as_far_and_the_policy_as_far():
    net = nets.make_actor_critic_net(2, hidden=(3,))
    params = net.init(jax.random.key(0), jnp.zeros(4))
    grads = jax.tree.map(jnp.ones_like, params)

    def steps(factor):
        optimizer = policy_gradients.faster_critic(net, factor)
        return net.split_params(optimizer.update(grads, optimizer.init(params), params)[0])

    (policy, critic), (same, faster) = steps(1.0), steps(10.0)
    chex.assert_trees_all_close(same, policy)
    chex.assert_trees_all_close(faster, jax.tree.map(lambda x: 10 * x, critic), rtol=1e-6)
    assert policy and critic


def test_fast_critics_are_those_of_their_methods():
    every = policy_gradients.methods()
    fast = {name for name, method in every.items() if method.faster}
    assert fast == {f"{name}, fast critic" for name in every} & set(every) and len(fast) == 5
    for name in fast:
        assert every[name]._replace(faster=False).critic == every[name.removesuffix(", fast critic")].critic


def test_refuses_before_a_folder_is_made(tmp_path):
    out = tmp_path / "run"
    with pytest.raises(ValueError, match="seeds must be at least 2; got seeds=1"):
        policy_gradients.main(policy_gradients.Config(out=str(out), seeds=1))
    with pytest.raises(ValueError, match="short_steps must divide time_limit; .* try short_steps=5 or 8"):
        policy_gradients.main(policy_gradients.Config(out=str(out), short_steps=7))
    with pytest.raises(ValueError, match=r"only must name methods, .*; got \['A2D'\]"):
        policy_gradients.main(policy_gradients.Config(out=str(out), only=("A2C", "A2D")))
    assert not out.exists()
