"""Policy objectives, divergences and group losses by hand or against exact sums."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import losses as L

from .checks import check

LOG = np.log


@pytest.mark.parametrize("advantage", [2.0, -2.0])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 1.5])
def test_clipped_surrogate_six_cases(ratio, advantage):
    """Value and gradient; the gradient is zero exactly where the clip binds: A > 0 above, A < 0 below."""
    binds = (ratio > 1.2 and advantage > 0) or (ratio < 0.8 and advantage < 0)
    clipped = np.clip(ratio, 0.8, 1.2)
    check(
        L.clipped_surrogate,
        -min(ratio * advantage, clipped * advantage),
        LOG(ratio),
        0.0,
        advantage,
        clip=0.2,
    )
    grad = jax.grad(lambda log_prob: L.clipped_surrogate(log_prob, 0.0, advantage, clip=0.2))(LOG(ratio))
    np.testing.assert_allclose(grad, 0.0 if binds else -ratio * advantage, rtol=1e-6)


def test_asymmetric_clip():
    check(
        L.clipped_surrogate, [-1.3, -1.25], LOG([1.5, 1.25]), [0.0, 0.0], [1.0, 1.0], clip=0.2, clip_high=0.3
    )


def test_simple_objectives_by_hand():
    log_prob, old, advantage = LOG([0.5, 0.25]), LOG([0.25, 0.5]), [3.0, -1.0]
    check(L.importance_ratio, [2.0, 0.5], log_prob, old)
    check(L.surrogate, [-6.0, 0.5], log_prob, old, advantage)
    check(L.kl_penalty_surrogate, [-5.8, 0.7], log_prob, old, advantage, [0.4, 0.4], kl_coef=0.5)
    check(L.reinforce_loss, [3 * LOG(2), -LOG(4)], log_prob, advantage)
    check(L.variance_stabilised_loss, [2 * LOG(2), -2 * LOG(4)], log_prob, advantage, [1.0, 1.0])


def test_surrogate_gradient_at_the_old_policy_is_the_score_function():
    log_prob, advantage = jnp.array([-1.0, -2.0]), jnp.array([3.0, -1.0])
    ours = jax.grad(lambda x: L.surrogate(x, log_prob, advantage).sum())(log_prob)
    np.testing.assert_allclose(ours, jax.grad(lambda x: L.reinforce_loss(x, advantage).sum())(log_prob))


def test_stops():
    f = lambda log_prob, old, advantage: L.clipped_surrogate(log_prob, old, advantage, clip=0.2).sum()
    grads = jax.grad(f, argnums=(1, 2))(jnp.zeros(2), jnp.zeros(2), jnp.ones(2))
    assert not any(np.any(g) for g in grads)


def test_adaptive_coefficients_by_hand():
    check(L.adapt_kl_coefficient, 0.5, 1.0, 0.01, target=0.02)
    check(L.adapt_kl_coefficient, 2.0, 1.0, 0.04, target=0.02)
    check(L.adapt_kl_coefficient, 1.0, 1.0, 0.025, target=0.02)
    proportional = {"target": 6.0, "num_episodes": 256.0, "horizon": 10000.0}
    check(L.proportional_kl_coefficient, 0.15 * (1 + 0.2 * 0.0256), 0.15, 60.0, **proportional)
    check(L.proportional_kl_coefficient, 0.15 * (1 - 0.1 * 0.0256), 0.15, 5.4, **proportional)


def test_q_advantage_has_mean_zero_under_the_policy():
    logits, q = jnp.array([0.3, -1.0, 2.0]), jnp.array([1.0, -2.0, 0.5])
    advantage = jax.vmap(L.q_advantage, (None, None, 0))(q, logits, jnp.arange(3))
    np.testing.assert_allclose(jnp.sum(jax.nn.softmax(logits) * advantage), 0.0, atol=1e-6)
    check(L.q_advantage, q[1] - jnp.sum(jax.nn.softmax(logits) * q), q, logits, 1)


def test_average_baseline_leaves_its_own_stream_out():
    check(L.average_baseline, [[2.5, 0.0], [2.0, 0.0], [1.5, 0.0]], [[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])
    with pytest.raises(ValueError, match="2 streams"):
        L.average_baseline(jnp.ones(1))


def test_divergences_by_hand():
    p, q = np.array([0.5, 0.25, 0.25]), np.array([0.25, 0.25, 0.5])
    check(L.entropy, 1.5 * LOG(2), LOG(p))
    check(L.categorical_kl, np.sum(p * LOG(p / q)), LOG(p), LOG(q))
    check(L.gaussian_entropy, 0.5 * LOG(2 * np.pi * np.e * 4.0), [LOG(2.0)])
    check(L.gaussian_kl, 0.5 * (4 + 9 - 1) - LOG(2), [3.0], [LOG(2.0)], [0.0], [0.0])
    log_p, log_q = LOG([0.5]), LOG([0.25])
    check(L.kl_estimate, [LOG(2)], log_p, log_q, kind="k1")
    check(L.kl_estimate, [0.5 * LOG(2) ** 2], log_p, log_q, kind="k2")
    check(L.kl_estimate, [0.5 - 1 + LOG(2)], log_p, log_q, kind="k3")
    with pytest.raises(ValueError, match="k4"):
        L.kl_estimate(log_p, log_q, kind="k4")


PI, PRE = np.array([0.6, 0.3, 0.1]), np.array([0.2, 0.3, 0.5])
REWARD = jnp.array([1.0, -0.5, 2.0])


def expected_gradient(loss_of_log_prob):
    """Sum the sampled loss's gradient over all actions, weighted by the policy: an exact expectation."""
    logits = jnp.log(PI)
    loss = lambda logits: jnp.sum(jnp.asarray(PI) * loss_of_log_prob(jax.nn.log_softmax(logits)))
    return jax.grad(loss)(logits)


@pytest.mark.parametrize(
    ("kind", "bonus"),
    [("shannon", lambda p: -jnp.sum(p * jnp.log(p))), ("tsallis", lambda p: -jnp.sum(p * p))],
)
def test_exploration_term_is_the_gradient_of_its_entropy(kind, bonus):
    objective = lambda logits: -(jax.nn.softmax(logits) @ REWARD + 0.7 * bonus(jax.nn.softmax(logits)))
    sampled = lambda log_prob: L.exploration_stabilised_loss(
        log_prob, REWARD, jnp.full(3, 0.4), exploration_coef=0.7, kind=kind
    )
    np.testing.assert_allclose(expected_gradient(sampled), jax.grad(objective)(jnp.log(PI)), atol=1e-6)


def test_drift_with_equal_coefficients_is_a_kl_penalty():
    objective = lambda logits: (
        -(jax.nn.softmax(logits) @ REWARD) + 0.7 * L.categorical_kl(logits, jnp.log(PRE))
    )
    sampled = lambda log_prob: L.drift_stabilised_loss(
        log_prob, REWARD, jnp.full(3, 0.4), jnp.log(PRE), exploration_coef=0.7, drift_coef=0.7
    )
    np.testing.assert_allclose(expected_gradient(sampled), jax.grad(objective)(jnp.log(PI)), atol=1e-6)


def test_update_values_by_hand():
    check(
        L.exploration_stabilised_loss,
        LOG(2) * (2.0 + 0.1 * LOG(2)),
        LOG(0.5),
        3.0,
        1.0,
        exploration_coef=0.1,
    )
    check(
        L.drift_stabilised_loss,
        LOG(2) * (2.0 + 0.1 * LOG(2) + 0.2 * LOG(0.25)),
        LOG(0.5),
        3.0,
        1.0,
        LOG(0.25),
        exploration_coef=0.1,
        drift_coef=0.2,
    )
    with pytest.raises(ValueError, match="renyi"):
        L.exploration_stabilised_loss(0.0, 0.0, 0.0, exploration_coef=0.1, kind="renyi")


def test_group_losses_by_hand():
    """Ratios 2 and 1, A = 1, clip .2: tokens -1.2 and -1; the third is padding."""
    answer = LOG([2.0, 1.0, 1.0]), [0.0, 0.0, 0.0], 1.0, [1.0, 1.0, 0.0]
    check(L.grpo, -1.1, *answer, clip=0.2)
    check(L.dr_grpo, -2.2 / 3, *answer, clip=0.2)
    check(L.gspo, -np.sqrt(2.0), *answer, clip=0.5)
    check(L.gspo, -1.2, *answer, clip=0.2)
    check(L.rloo, -2.0, *answer, clip=1.5)
    check(L.rloo, -1.3, *answer, clip=0.2, clip_high=0.3)
    check(L.grpo, -(1.2 * 1.0 - 0.5) / 2, *answer[:2], [1.0, -0.5, 9.0], answer[3], clip=0.2)


def test_group_advantages_by_hand():
    check(L.group_advantages, np.array([-1.0, 0.0, 1.0]) / 1.0001, [1.0, 2.0, 3.0])
    check(L.group_advantages, [-1.0, 0.0, 1.0], [1.0, 2.0, 3.0], scale=False)
    check(L.group_advantages, [0.0, 0.0], [5.0, 5.0])
    for f in (L.group_advantages, L.leave_one_out_advantages):
        assert not f(jnp.full(3, 0.1)).any(), "equal scores have no advantage at all"
    check(L.leave_one_out_advantages, [-1.5, 0.0, 1.5], [1.0, 2.0, 3.0])
    for f in (L.group_advantages, L.leave_one_out_advantages):
        with pytest.raises(ValueError, match="2"):
            f(jnp.ones(1))
