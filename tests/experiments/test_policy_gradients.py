"""The estimators side by side in miniature."""

import json

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import nets
from jaxrl_align.runtime import Interval
from tests.experiments.loading import load

policy_gradients = load("policy_gradients")


@pytest.mark.slow
def test_methods_run_and_are_reported(tmp_path):
    assert len(policy_gradients.methods()) == 14
    two = ("average baseline", "Q actor-critic, at once")
    small = {"seeds": 2, "episodes": 2, "time_limit": 16, "updates": 2, "learning_rates": (1e-2,)}
    policy_gradients.main(policy_gradients.Config(out=str(tmp_path / "run"), only=two, **small))
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    (table,) = result["tables"].values()
    assert tuple(table) == two and all(8 < row["all rounds"]["value"] <= 16 for row in table.values())
    assert list(result["headline"].values()) == [table[two[0]]["all rounds"]] and not result["rows"]
    assert result["figures"] == ["returns_0.01.png"] and result["baselines"] == {}
    assert (tmp_path / "run" / "returns_0.01.png").stat().st_size > 5_000


def test_what_is_compared_is_there():
    assert {name for pair in policy_gradients.PAIRS for name in pair} <= policy_gradients.methods().keys()


FIRST, LESS = policy_gradients.PAIRS[0]


def test_returns_are_compared_by_seed_and_falls_are_counted():
    """Two rates, three seeds; one seed of the lesser method falls, at the second rate."""
    config = policy_gradients.Config(seeds=3, updates=20, learning_rates=(0.1, 0.2))
    more, less = np.full((20, 2, 3), 50.0), np.full((20, 2, 3), 20.0)
    less[18:, 1, 2] = 9.0
    less[0, 0, 0] = np.nan  # no episode ended
    results = {FIRST: more, LESS: less}
    tables, gains = policy_gradients.tabulate(config, results), policy_gradients.differences(config, results)
    assert [[row["fall"] for row in tables[rate].values()] for rate in (0.1, 0.2)] == [[0, 0], [0, 1]]
    assert tables[0.2][LESS]["all rounds"].value == pytest.approx((20 + 20 + 18.9) / 3)
    assert tables[0.2][LESS]["last 2"].value == pytest.approx((20 + 20 + 9) / 3)
    assert [[gain.value for gain in row.values()] for row in gains.values()] == [
        [30, pytest.approx(31.1 / 3 + 20)]
    ]
    headline, baselines = policy_gradients.headline_of(config, tables, gains)
    assert list(headline.values()) == [gains[f"{FIRST} less {LESS}"]["rate 0.1"]]
    assert baselines == {f"return of {LESS} at rate 0.1": tables[0.1][LESS]["all rounds"]}


def test_the_verdict_is_that_of_differences_and_falls():
    config = policy_gradients.Config(seeds=32, learning_rates=(0.1, 0.2))
    judge = lambda gain, fall: list(
        policy_gradients.judge(
            config,
            {0.1: {FIRST: {"fall": 0}}, 0.2: {FIRST: {"fall": fall}}},
            {
                f"{FIRST} less {LESS}": {
                    "0.1": Interval(9, 8, 10, "t"),
                    "0.2": Interval(gain, gain - 2, gain + 2, "t"),
                }
            },
        ).values()
    )
    assert judge(3, 1) == [True, True] and judge(1, 1) == [False, True] and judge(3, 4) == [True, False]


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
