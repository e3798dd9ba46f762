"""Errors and losses of value functions by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import losses as L

from .checks import check

Q_TM1, Q_T, Q_SELECT = [1.0, 2.0, 3.0], [0.0, 4.0, 2.0], [5.0, 1.0, 6.0]


def test_targets_and_errors_by_hand():
    check(L.td_target, 1.0 + 0.5 * 4.0, 1.0, 0.5, Q_T)
    check(L.td_error, 1.0 + 0.5 * 4.0 - 3.0, 3.0, 1.0, 0.5, 4.0)
    check(L.q_learning_error, 1.0, Q_TM1, 1, 1.0, 0.5, Q_T, rtol=0)
    check(L.double_q_error, 1.0 + 0.5 * 2.0 - 2.0, Q_TM1, 1, 1.0, 0.5, Q_T, Q_SELECT)
    check(L.sarsa_error, 1.0 + 0.5 * 0.0 - 2.0, Q_TM1, 1, 1.0, 0.5, Q_T, 0)
    check(L.expected_sarsa_error, 1.0 + 0.5 * 2.5 - 2.0, Q_TM1, 1, 1.0, 0.5, Q_T, [0.25, 0.5, 0.25])


def test_a_terminal_step_is_the_reward_alone():
    check(L.td_target, 7.0, 7.0, 0.0, Q_T)


def test_no_gradient_reaches_the_target():
    grads = jax.grad(lambda q_t: L.squared(L.q_learning_error(jnp.ones(3), 1, 1.0, 0.9, q_t)))(
        jnp.asarray(Q_T)
    )
    assert not np.any(grads)
    online = jax.grad(lambda q: L.squared(L.q_learning_error(q, 1, 1.0, 0.5, jnp.asarray(Q_T))))
    np.testing.assert_allclose(online(jnp.asarray(Q_TM1)), [0.0, -1.0, 0.0])


def test_huber_and_squared_by_hand():
    check(L.huber, [2.5, 0.5, 0.125, 0.0, 1.5], [-3.0, 1.0, 0.5, 0.0, 2.0])
    check(L.huber, [1.375, 0.125], [-3.0, 0.5], delta=0.5)
    check(L.squared, [4.5, 0.125], [-3.0, 0.5])
    np.testing.assert_allclose(jax.vmap(jax.grad(L.huber))(jnp.array([-3.0, 0.5, 2.0])), [-1.0, 0.5, 1.0])
    np.testing.assert_allclose(jax.vmap(jax.grad(L.huber))(jnp.array([jnp.inf, -jnp.inf])), [1.0, -1.0])


def test_clipped_value_loss_takes_the_worse():
    """The value moved from 1 to 2, clipped to 1.2: worse for target 3, while 2 is worse for target 1."""
    check(L.clipped_value_loss, [0.5 * 1.8**2, 0.5 * 1.0], [2.0, 2.0], [1.0, 1.0], [3.0, 1.0], clip=0.2)


def test_categorical_projection_by_hand():
    """Mass at 0.25 splits 3:1 between 0 and 1; mass beyond the support lands on its end."""
    support = [-1.0, 0.0, 1.0]
    check(L.categorical_projection, [0.0, 0.375, 0.625], [0.25, 9.0], [0.5, 0.5], support)
    check(L.categorical_projection, [0.2, 0.3, 0.5], support, [0.2, 0.3, 0.5], support)


def test_categorical_q_loss_by_hand():
    """Reward 1 with discount 0 moves all of the target's mass to atom 1: -log softmax[2] = log 3."""
    logits_t = [[0.0, 0.0, 0.0], [-50.0, -50.0, 50.0]]
    check(L.categorical_q_loss, np.log(3.0), np.zeros((2, 3)), 0, 1.0, 0.0, logits_t, [-1.0, 0.0, 1.0])


def test_quantile_regression_by_hand_and_at_its_minimum():
    """u = 2, -1 around quantile 0 at level .25: (.25 * 1.5 + .75 * .5) / 2."""
    check(L.quantile_regression_loss, 0.375, [0.0], [0.25], [2.0, -1.0])
    check(L.quantile_regression_loss, 0.625, [0.0], [0.25], [2.0, -1.0], delta=0.0)
    target = jnp.asarray(np.random.default_rng(1).normal(size=2001))
    tau = jnp.array([0.1, 0.5])
    grad = jax.jit(jax.grad(lambda q: L.quantile_regression_loss(q, tau, target, delta=0.0)))
    assert np.all(np.abs(grad(np.quantile(target, tau).astype(np.float32))) < 1e-3)


def test_actions_must_be_integers_and_ranks_match():
    with pytest.raises(AssertionError):
        L.q_learning_error(jnp.ones(3), 1.0, 0.0, 0.9, jnp.ones(3))
    with pytest.raises(AssertionError):
        L.q_learning_error(jnp.ones((2, 3)), 1, 0.0, 0.9, jnp.ones(3))
    with pytest.raises(AssertionError):
        L.sarsa_error(jnp.ones(3), 1, 0.0, 0.9, jnp.ones(4), 0)
