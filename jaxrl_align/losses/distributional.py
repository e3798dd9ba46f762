"""Losses on whole return distributions: C51's projection and quantile regression, for one transition."""

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.losses._arrays import as_floats, same_shape
from jaxrl_align.losses.values import huber
from jaxrl_align.types import Array, Numeric


def categorical_projection(atoms: Array, probs: Array, support: Array) -> jax.Array:
    """Move probability mass from arbitrary atoms to the support, keeping the mean where that is within it.

        p_i = sum_j probs_j max(0, 1 - |clip(atom_j, support_0, support_{K-1}) - support_i| / width)

    Args:
      atoms: [N] returns that carry the mass.
      probs: [N] the mass of each, >= 0, summing to 1.
      support: [K] evenly spaced, increasing, K >= 2.

    Returns:
      [K] probabilities.

    Raises:
      AssertionError: if a rank or shape differs.

    Source: Bellemare et al. 2017, eq. 7.
    """
    atoms, probs = same_shape(atoms, probs)
    (support,) = as_floats(support)
    chex.assert_rank([atoms, support], 1)
    width = (support[-1] - support[0]) / (support.shape[0] - 1)
    distance = jnp.abs(jnp.clip(atoms, support[0], support[-1])[:, None] - support[None, :])
    return probs @ jnp.maximum(0.0, 1.0 - distance / width)


def categorical_q_loss(
    logits_tm1: Array,
    a_tm1: Array,
    r_t: Numeric,
    discount_t: Numeric,
    logits_t: Array,
    support: Array,
) -> jax.Array:
    """Compute C51's loss: cross-entropy to the projected distribution of the greedy action.

        -sum_i m_i log p_i(a_tm1),   m = projection of r_t + discount_t support under p_t(argmax_a E_a)

    Args:
      logits_tm1: [A, K] at the step's start.
      a_tm1: [] integer, the action taken.
      r_t: [] reward.
      discount_t: [] gamma * (1 - terminated), in [0, 1].
      logits_t: [A, K] at the step's end, usually of the target network; gradient stopped.
      support: [K] evenly spaced returns, increasing.

    Returns:
      [] nats; NaN for an action that is out of range.

    Raises:
      AssertionError: if a rank, shape or type differs.

    Source: Bellemare et al. 2017, algorithm 1.
    """
    logits_tm1, logits_t = same_shape(logits_tm1, logits_t)
    r_t, discount_t, support = as_floats(r_t, discount_t, support)
    chex.assert_type(jnp.asarray(a_tm1), int)
    chex.assert_rank([logits_tm1, support, r_t, discount_t], [2, 1, 0, 0])
    probs_t = jax.nn.softmax(logits_t)
    greedy = probs_t[jnp.argmax(probs_t @ support)]
    target = jax.lax.stop_gradient(categorical_projection(r_t + discount_t * support, greedy, support))
    a_tm1, log_p = jnp.asarray(a_tm1), jax.nn.log_softmax(logits_tm1)
    chosen = jnp.where((a_tm1 >= 0) & (a_tm1 < log_p.shape[0]), log_p[a_tm1], jnp.nan)
    return -jnp.sum(target * chosen)


def quantile_regression_loss(
    quantiles: Array, tau: Array, target: Array, *, delta: Numeric = 1.0
) -> jax.Array:
    """Compute the quantile Huber loss, minimal when each output is its quantile of the target.

        sum_i mean_j |tau_i - 1(u_ij < 0)| huber_delta(u_ij),   u_ij = target_j - quantiles_i

    Args:
      quantiles: [N] predicted quantiles.
      tau: [N] their levels, in (0, 1).
      target: [M] samples or quantiles of the target; gradient stopped.
      delta: [] where Huber's loss turns linear, in units of return; 0 gives |u|.

    Returns:
      [] loss.

    Raises:
      AssertionError: if a rank or shape differs.

    Source: Dabney et al. 2018, eq. 10.
    """
    quantiles, tau = same_shape(quantiles, tau)
    target, delta = as_floats(target, delta)
    chex.assert_rank([quantiles, target, delta], [1, 1, 0])
    u = jax.lax.stop_gradient(target)[None, :] - quantiles[:, None]
    weight = jnp.abs(tau[:, None] - (u < 0).astype(u.dtype))
    return jnp.sum(jnp.mean(weight * jnp.where(delta > 0, huber(u, delta=delta), jnp.abs(u)), axis=1))
