import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.actors.value import make_value_actor
from jaxrl_align.envs.tabular import frozen_lake, make_mdp, make_tabular_environment, random_mdp
from jaxrl_align.learner import train
from jaxrl_align.losses import discounted_returns
from jaxrl_align.nets.q_networks import make_table
from jaxrl_align.rl.dqn import Exploration
from jaxrl_align.rl.dynamic_programming import (
    QLearningHParams,
    action_values,
    make_q_learning,
    policy_evaluation,
    policy_iteration,
    solve_policy,
    value_iteration,
)

optimum, improve, solve = map(jax.jit, (value_iteration, policy_iteration, solve_policy))


def one_hot(policy, actions):
    return jax.nn.one_hot(jnp.asarray(policy), actions)


def test_two_states_by_hand():
    # Stay in 0 for 1, or go to 1 for 0; in 1 both stay for 3. gamma = 1/2: V(1) = 6, V(0) = max(2, 3).
    mdp = make_mdp([[[1, 0], [0, 1]], [[0, 1], [0, 1]]], [[1.0, 0.0], [3.0, 3.0]], 0.5)
    solution = optimum(mdp)
    np.testing.assert_allclose(solution.v, [3, 6], rtol=1e-5)
    np.testing.assert_allclose(solution.q, [[2.5, 3], [6, 6]], rtol=1e-5)
    np.testing.assert_array_equal(solution.policy, [1, 0])


@pytest.mark.parametrize("seed", range(5))
def test_the_optimum_is_the_best_of_all_policies(seed):
    mdp = random_mdp(jax.random.key(seed), 4, 3)
    policies = jnp.asarray(list(itertools.product(range(3), repeat=4)))
    best = jax.vmap(solve, (None, 0))(mdp, one_hot(policies, 3)).max(0)
    by_values, by_policies = optimum(mdp), improve(mdp)
    np.testing.assert_allclose(by_values.v, best, atol=2e-5)
    np.testing.assert_allclose(by_policies.v, best, atol=2e-5)
    np.testing.assert_array_equal(by_values.policy, by_policies.policy)
    np.testing.assert_allclose(by_policies.v, by_policies.q.max(1))
    assert by_policies.iterations < by_values.iterations


def test_in_double_precision_the_residual_vanishes_and_sweeps_contract():
    with jax.enable_x64(True):
        for mdp in (random_mdp(jax.random.key(0), 6, 3, gamma=0.95), frozen_lake()):
            solution = optimum(mdp, tolerance=1e-12)
            residual = action_values(mdp, solution.v).max(1) - solution.v
            assert np.abs(residual).max() < 1e-8
            exact = solve(mdp, one_hot(solution.policy, solution.q.shape[1]))
            np.testing.assert_allclose(solution.v, exact, atol=1e-8)
            v, error = jnp.zeros_like(exact), np.abs(exact).max()
            look_ahead = jax.jit(action_values)
            for _ in range(20):
                v = look_ahead(mdp, v).max(1)
                now = np.abs(v - exact).max()
                assert now <= mdp.gamma * error + 1e-12
                error = now


def test_sweeps_of_a_policy_agree_with_the_linear_solve():
    mdp = random_mdp(jax.random.key(7), 5, 2)
    policy = jax.nn.softmax(jax.random.normal(jax.random.key(8), (5, 2)))
    v, sweeps = jax.jit(policy_evaluation)(mdp, policy)
    np.testing.assert_allclose(v, solve_policy(mdp, policy), atol=1e-4)
    assert 10 < sweeps < 300


def test_frozen_lakes_known_value():
    # Undiscounted, the best policy reaches the goal in 14 of 17 episodes; gamma -> 1 approaches it.
    with jax.enable_x64(True):
        value = policy_iteration(frozen_lake(gamma=0.999999)).v[0]
    assert float(value) == pytest.approx(14 / 17, abs=1e-3)


def test_policy_iteration_finds_small_gains_in_any_unit():
    # A ring, where going by 1.05 instead of 1.00 is worth 1050 and not 1000.
    ring = np.repeat(np.roll(np.eye(10), 1, axis=1)[:, None], 2, 1)
    solution = improve(make_mdp(ring, np.tile([1.0, 1.05], (10, 1)), 0.999))
    np.testing.assert_allclose(solution.v, 1050, rtol=1e-3)
    lake = frozen_lake()
    small = improve(lake._replace(reward=lake.reward * 1e-5))
    np.testing.assert_allclose(small.v * 1e5, improve(lake).v, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_equals_that_differ_by_rounding_take_no_turns(seed):
    # Rewards gamma phi(s') - phi(s): every policy is worth -phi; where that is 0, rounding looks like a gain.
    rng = np.random.default_rng(seed)
    phi = 100.0 * rng.normal(size=12) * (np.arange(12) % 2)
    reward = np.broadcast_to(0.999 * phi - phi[:, None, None], (12, 4, 12))
    solution = improve(make_mdp(rng.dirichlet(np.ones(12), (12, 4)), reward, 0.999))
    np.testing.assert_allclose(solution.v, -phi, atol=0.02)
    assert solution.iterations < 10


def test_a_policy_is_probabilities_or_an_action_of_each_state():
    mdp = random_mdp(jax.random.key(7), 4, 4)
    solution = optimum(mdp)
    for evaluate in (solve_policy, lambda mdp, policy: policy_evaluation(mdp, policy)[0]):
        np.testing.assert_allclose(evaluate(mdp, solution.policy), solution.v, atol=1e-4)
        for policy, message in (
            (solution.v, r"integers \[S\] = \[4\], an action of each state; got float32 of shape \(4,\)"),
            (jnp.ones((4, 4)), "must be probabilities that sum to 1; got sums from 4 to 4"),
            (jnp.eye(4).at[0, 1].set(-1.0).at[0, 2].set(1.0), "numbers of at least -1"),
            (jnp.array([0, 1, 2, 4]), "actions must be from 0 to 3; got 0 to 4"),
            (jnp.array([0, 1, 2, -1]), "actions must be from 0 to 3; got -1 to 2"),
        ):
            with pytest.raises(ValueError, match=message):
                evaluate(mdp, policy)


@pytest.mark.slow
def test_the_value_is_the_mean_of_played_returns():
    # A2: returns of whole episodes, by the recursion, average to the value of the policy that played them.
    mdp = frozen_lake(gamma=0.9)
    actor = make_value_actor(
        make_tabular_environment(mdp, 400), make_table(16, 4), num_envs=2000, num_steps=100
    )
    random_policy = jnp.full((16, 4), 0.25)
    begun = actor.init_env(jax.random.key(0), None)
    random = Exploration(1.0)
    _, steps, _ = jax.jit(actor.rollout)(jnp.zeros((16, 4)), None, begun, jax.random.key(1), random, None)
    discount = mdp.gamma * (1.0 - steps.terminated)
    returns = jax.vmap(discounted_returns)(steps.reward, discount)[:, 0]
    error = abs(returns.mean() - solve_policy(mdp, random_policy)[0])
    assert error < 4 * returns.std() / 2000**0.5


def test_q_learning_converges_with_robbins_monro_rates_and_not_with_a_constant_one():
    # A16. Noise keeps a constant rate from settling; rates that fall too fast stop before they arrive.
    mdp = random_mdp(jax.random.key(3), 4, 2, 0.5)
    actor = make_value_actor(make_tabular_environment(mdp), make_table(4, 2), num_envs=1, num_steps=100)
    rates = QLearningHParams(
        learning_rate=jnp.array([1.0, 0.5, 1.0]),
        decay=jnp.array([0.8, 0.0, 2.0]),
        gamma=jnp.full(3, 0.5),
        epsilon=jnp.ones(3),
    )
    run = jax.jit(jax.vmap(train(make_q_learning(actor), 1_000), (None, 0)))
    state, _ = run(jax.random.key(0), rates)
    good, constant, too_fast = np.abs(state.params - value_iteration(mdp).q[None]).max((1, 2))
    np.testing.assert_array_equal(state.opt_state.sum((1, 2)), 100_000)
    assert good < 1e-2
    assert constant > 10 * good
    assert too_fast > 10 * good


LOOP = make_mdp([[[1.0]]], [[1.0]], 0.9)


@pytest.mark.parametrize("visits", [2**24, 2**30, 2**31 - 1])
def test_visits_are_counted_beyond_what_a_float32_counts(visits):
    actor = make_value_actor(make_tabular_environment(LOOP), make_table(1, 1), num_envs=1, num_steps=1)
    learner = make_q_learning(actor)
    state = learner.init(jax.random.key(0), QLearningHParams(1.0, 1.0, 0.0, 1.0))
    state, _ = learner.step(state._replace(opt_state=jnp.full((1, 1), visits, jnp.int32)))
    assert state.opt_state[0, 0] == min(visits + 1, 2**31 - 1)
    np.testing.assert_allclose(state.params[0, 0], 1.0 / visits, rtol=1e-6)  # rate 1 / n, reward 1


@pytest.mark.slow
def test_a_grid_of_seeds_and_hyperparameters_compiles_once_and_equals_single_runs():
    mdp = random_mdp(jax.random.key(3), 4, 2)
    actor = make_value_actor(make_tabular_environment(mdp), make_table(4, 2), num_envs=2, num_steps=5)
    run = train(make_q_learning(actor), 10)
    grid = jax.jit(jax.vmap(jax.vmap(run, (0, None)), (None, 0)))
    keys = jax.random.split(jax.random.key(0), 8)
    for scale in (0.5, 1.0):
        hparams = jax.tree.map(lambda x: x * scale * jnp.linspace(0.5, 1.0, 7), QLearningHParams())  # noqa: B023
        together = grid(keys, hparams)[0].params
    assert grid._cache_size() == 1
    assert len(np.unique(np.asarray(together).reshape(56, -1), axis=0)) == 56
    single = jax.jit(run)
    for i in range(8):
        alone = single(keys[i], jax.tree.map(lambda x: x[3], hparams))[0].params
        np.testing.assert_allclose(together[3, i], alone, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("x64", [False, True])
def test_it_runs_in_either_precision_and_never_reuses_a_key(x64):
    with jax.enable_x64(x64), jax.debug_key_reuse(True):
        mdp = random_mdp(jax.random.key(3), 4, 2)
        actor = make_value_actor(make_tabular_environment(mdp), make_table(4, 2), num_envs=2, num_steps=1)
        jax.jit(train(make_q_learning(actor), 2)).trace(jax.random.key(0), QLearningHParams())


def test_solutions_vmap():
    mdps = jax.tree.map(lambda *x: jnp.stack(x), *(random_mdp(jax.random.key(i), 3, 2) for i in range(4)))
    together = jax.jit(jax.vmap(value_iteration))(mdps)
    by_policies = jax.jit(jax.vmap(policy_iteration))(mdps)
    np.testing.assert_allclose(together.v, by_policies.v, atol=2e-5)
