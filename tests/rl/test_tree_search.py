"""Tree search: against brute force, against its own guarantees, and as a teacher."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.actors import gym
from jaxrl_align.envs.tabular import make_tabular_environment
from jaxrl_align.learner import train
from jaxrl_align.nets.mlp import Net
from jaxrl_align.rl.dynamic_programming import value_iteration
from jaxrl_align.rl.expert_iteration import SearchHParams, make_search_learner
from jaxrl_align.rl.tree_search import (
    Leaf,
    _add,
    _as_float32,
    _back_up,
    _children,
    _start,
    halving,
    search,
)
from tests.environments import PROBES

A, DEPTH, GAMMA = 3, 3, 0.9
REWARDS = jnp.asarray(np.random.default_rng(0).normal(size=(DEPTH, A**DEPTH, A)), jnp.float32)


def expand_game(state, action):
    """A tree of three moves, each paying its own reward; a state is (depth, number)."""
    depth, number = state
    goes_on = depth < DEPTH
    reward = jnp.where(goes_on, REWARDS[jnp.minimum(depth, DEPTH - 1), number, action], 0.0)
    after = (jnp.minimum(depth + 1, DEPTH), jnp.where(goes_on, number * A + action, number) % A**DEPTH)
    return Leaf(reward, GAMMA * (depth + 1 < DEPTH), after, jnp.zeros(A), jnp.zeros(()))


ROOT = Leaf(
    jnp.zeros(()), jnp.ones(()), (jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32)), jnp.zeros(A), 0.0
)


def best_returns():
    """Return the best return after each first action, of all 27 games."""
    rewards, best = np.asarray(REWARDS), np.full(A, -np.inf)
    for moves in itertools.product(range(A), repeat=DEPTH):
        number, total = 0, 0.0
        for depth, move in enumerate(moves):
            total += GAMMA**depth * rewards[depth, number, move]
            number = number * A + move
        best[moves[0]] = max(best[moves[0]], total)
    return best


@pytest.fixture(scope="module")
def plans():
    """32 searches with different noise in one program, of 300 simulations."""
    run = lambda key: search(key, ROOT, expand_game, simulations=300)
    with jax.debug_key_reuse(True):
        return jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), 32))


def test_every_search_finds_the_best_of_all_games(plans):
    best = best_returns()
    np.testing.assert_array_equal(plans.action, np.argmax(best))
    np.testing.assert_array_equal(plans.visits.sum(-1), 300)
    # Its value tends to that of the best play, although the network thinks that every state is worth 0.
    np.testing.assert_allclose(plans.q[:, np.argmax(best)], best.max(), atol=0.25)


def test_the_improved_policy_is_better_than_the_network(plans):
    """Under the true values of the actions."""
    best = best_returns()
    expected = jax.nn.softmax(plans.logits) @ jnp.asarray(best)
    assert (expected > best.mean()).all() and expected.mean() > 0.95 * best.max()


def test_one_step_by_hand():
    """Two simulations of a bandit: both arms tried once, the better one recommended."""
    pay = jnp.array([1.0, 3.0])
    expand = lambda state, action: Leaf(pay[action], 0.0, state, jnp.zeros(2), jnp.zeros(()))
    root = Leaf(0.0, 1.0, jnp.zeros(()), jnp.array([0.5, 0.0]), jnp.float32(2.0))
    plan = search(jax.random.key(1), root, expand, simulations=2)
    np.testing.assert_array_equal(plan.visits, [1, 1])
    np.testing.assert_allclose(plan.q, pay)
    np.testing.assert_allclose(plan.logits, [0.5, (50 + 1) * 0.1])  # sigma of q brought to [0, 1]
    assert plan.action == 1
    # One action tried, without noise the likelier: the other is worth (2 + 1 * its value) / 2.
    one = search(None, root, expand, simulations=1)
    np.testing.assert_array_equal(one.visits, [1, 0])
    np.testing.assert_allclose(one.q, [1.0, (2.0 + 1.0) / 2])
    assert one.action == 0


def test_the_schedule_of_sequential_halving():
    np.testing.assert_array_equal(halving(4, 8), [0] * 4 + [1] * 2 + [2] * 2)
    np.testing.assert_array_equal(halving(2, 5), [0, 0, 1, 1, 2])
    np.testing.assert_array_equal(halving(1, 3), [0, 1, 2])
    np.testing.assert_array_equal(halving(8, 3), [0, 0, 0])


def test_no_simulation_is_refused():
    with pytest.raises(ValueError, match="simulations and considered must be at least 1; got simulations=0"):
        search(jax.random.key(0), ROOT, expand_game, simulations=0)


MDP = PROBES["policy-dependent"]
NET = Net(
    lambda key, obs: {"logits": jnp.zeros((3, 2)), "value": jnp.zeros(3)},
    lambda params, state: (params["logits"][state], params["value"][state]),
)


def model(state, action):
    """Return what the probe does, read from its arrays."""
    after = jnp.argmax(MDP.transition[state, action]).astype(jnp.int32)
    return MDP.reward[state, action, after], 1.0 - MDP.terminal[after], after


@pytest.mark.optimised
@pytest.mark.slow
def test_a_network_learns_from_its_plans():
    actor = gym.make_actor(make_tabular_environment(MDP), NET, num_envs=4, num_steps=4)
    learner = make_search_learner(actor, NET.apply, model, simulations=4)
    state, metrics = jax.jit(train(learner, 60))(jax.random.key(0), SearchHParams(0.05, gamma=0.9))
    exact = value_iteration(MDP)
    going_on = ~MDP.terminal
    np.testing.assert_array_equal(
        jnp.argmax(state.params["logits"], -1)[going_on], jnp.argmax(exact.q, -1)[going_on]
    )
    np.testing.assert_allclose(state.params["value"][going_on], jnp.max(exact.q, -1)[going_on], atol=0.1)
    assert metrics["search/kl"][0] > 0.2 and metrics["search/kl"][-1] < 0.05


@pytest.mark.slow
def test_members_are_the_single_runs_and_a_grid_compiles_once():
    actor = gym.make_actor(make_tabular_environment(MDP), NET, num_envs=4, num_steps=4)
    run = train(make_search_learner(actor, NET.apply, model, simulations=4), 5)
    members = jax.jit(jax.vmap(lambda key, hparams: run(key, hparams)[0].params))
    keys = jax.random.split(jax.random.key(0), 8)
    grid = jax.tree.map(lambda x: jnp.full(8, x), SearchHParams())
    grid = grid._replace(learning_rate=jnp.logspace(-3, -1, 8))
    params = members(keys, grid)
    one = jax.jit(lambda key, hparams: run(key, hparams)[0].params)(
        keys[5], jax.tree.map(lambda x: x[5], grid)
    )
    np.testing.assert_allclose(params["value"][5], one["value"], atol=1e-5)
    np.testing.assert_allclose(params["logits"][5], one["logits"], atol=1e-5)
    members(keys, jax.tree.map(lambda x: 0.9 * x, grid))
    assert members._cache_size() == 1
    assert len({row.tobytes() for row in np.asarray(params["value"])}) == 8


@jax.enable_x64(True)
def test_double_precision_changes_no_type():
    plan = jax.eval_shape(lambda key: search(key, ROOT, expand_game, simulations=5), jax.random.key(0))
    assert plan.q.dtype == plan.logits.dtype == jnp.float32 and plan.visits.dtype == jnp.int32


def test_minibatches_that_do_not_divide_are_refused_before_compilation():
    actor = gym.make_actor(make_tabular_environment(MDP), NET, num_envs=4, num_steps=4)
    learner = make_search_learner(actor, NET.apply, model, minibatches=3)
    with pytest.raises(ValueError, match="minibatches must divide steps per rollout; got .*=16, minibatches"):
        jax.eval_shape(lambda key: learner.step(learner.init(key, SearchHParams())), jax.random.key(0))


def bandit(pay, logits, value=0.0):
    """A root whose every action pays and ends the episode."""
    pay, logits = jnp.asarray(pay, jnp.float32), jnp.asarray(logits, jnp.float32)
    expand = lambda state, action: Leaf(pay[action], 0.0, state, jnp.zeros_like(pay), 0.0)
    return Leaf(0.0, 1.0, jnp.zeros(()), logits, jnp.float32(value)), expand


@pytest.mark.parametrize("simulations", [1, 4, 7])
@pytest.mark.parametrize("allowed", [(2,), (1, 3)])
def test_a_forbidden_action_is_neither_tried_nor_played(allowed, simulations):
    logits = np.where(np.isin(np.arange(4), allowed), 0.0, -np.inf)
    root, expand = bandit([9.0, 1.0, 2.0, 3.0], logits)
    for key in (None, jax.random.key(0)):
        plan = search(key, root, expand, simulations=simulations)
        assert int(plan.action) in allowed
        assert plan.visits.sum() == simulations == plan.visits[jnp.array(allowed)].sum()
        np.testing.assert_array_equal(plan.logits == -jnp.inf, logits == -jnp.inf)


def test_nothing_behind_an_end_sets_the_scale_of_values():
    """Both arms end; simulations go on below them, where all is 0, but the scale is from 3 to 4."""
    root, expand = bandit([3.0, 4.0], [0.0, 0.0], value=3.5)
    plan = search(None, root, expand, simulations=8)
    np.testing.assert_allclose(plan.q, [3.0, 4.0])
    np.testing.assert_allclose(plan.logits, [0.0, (50 + plan.visits.max()) * 0.1], rtol=1e-6)
    assert plan.visits.max() > 2


def test_two_allowed_actions_share_the_simulations():
    root, expand = bandit([9.0, 1.0, 2.0, 3.0], [-jnp.inf, 0.0, -jnp.inf, 0.0])
    plan = search(None, root, expand, simulations=6)
    np.testing.assert_array_equal(plan.visits, [0, 3, 0, 3])
    assert plan.action == 3


def test_an_unlikely_action_counts_in_full_where_it_alone_was_tried():
    """Logits [0, 0, 25], action 0 tried once and worth 5, the network's own value 5: every value is 5."""
    root, expand = bandit([5.0, 0.0, 0.0], [0.0, 0.0, 25.0], value=5.0)
    tree = _add(_start(_as_float32(root), 1), 1, 0, 0, _as_float32(expand(root.state, 0)))
    visits, q = _children(_back_up(tree, jnp.int32(1)), 0)
    np.testing.assert_array_equal(visits, [1, 0, 0])
    np.testing.assert_allclose(q, [5.0, 5.0, 5.0], rtol=1e-6)


@pytest.mark.parametrize("wild", [1e6, -1e6, jnp.nan, jnp.inf])
def test_what_lies_behind_an_end_changes_nothing(wild):
    """Action 0 ends the episode; what the model says of the state after it, and beyond, is not read."""

    def expand(state, action, behind):
        after = state | (action == 0)
        reward = jnp.where(state, behind, jnp.where(action == 0, 0.6, 0.1))
        value, logits = jnp.where(after, behind, 0.5), jnp.where(after, behind * jnp.array([1.0, -1.0]), 0.0)
        return Leaf(reward, jnp.where(action == 0, 0.0, 0.9), after, logits, value)

    root = Leaf(0.0, 1.0, jnp.array(False), jnp.array([0.1, 0.0]), jnp.float32(0.5))
    run = lambda behind: search(None, root, functools.partial(expand, behind=behind), simulations=12)
    quiet, loud = run(0.0), run(wild)
    for plain, other in zip(quiet, loud, strict=True):
        np.testing.assert_array_equal(plain, other)
    assert quiet.visits[0] > 2  # beyond the end the tree does grow


def test_values_are_backed_up_discounted_by_hand():
    """One action: rewards 1 and 2, discount .5, network values 10 and 4. Then (10 + (2 + .5 x 4)) / 2 = 7."""
    expand = lambda s, a: Leaf(1.0 + s, 0.5, s + 1, jnp.zeros(1), jnp.where(s == 0, 10.0, 4.0))
    root = Leaf(0.0, 1.0, jnp.int32(0), jnp.zeros(1), jnp.float32(0.0))
    np.testing.assert_allclose(search(None, root, expand, simulations=2).q, [1.0 + 0.5 * 7.0])
