"""Returns and advantages of one stream of experience, [T]; the caller vmaps over a batch.

Time conventions: the step from `t-1` to `t` yields `r_t` and `discount_t`; `v_tm1` judges its start and
`v_t` its end. `discount_t = gamma * (1 - terminated)` and `lambda_t = lambda * (1 - terminated) *
(1 - truncated)`, so a termination ends the sum, a truncation ends the trace but bootstraps from `v_t`, and
padding (all zeros) adds nothing. Nothing here is stopped: the losses stop their targets and advantages.
"""

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.losses._arrays import series

_UNROLL = 16
"""Steps a compiled loop takes at a time: the bodies are a few multiplications, so the loop dominates."""


def _accumulate(x: jax.Array, decay: jax.Array, last: chex.Numeric = 0.0) -> jax.Array:
    """Return y_t = x_t + decay_t y_{t+1} with y_{T+1} = last."""

    def backward(y: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        y = step[0] + step[1] * y
        return y, y

    last = jnp.asarray(last, x.dtype)
    return jax.lax.scan(backward, last, (x, decay), reverse=True, unroll=min(_UNROLL, x.shape[0]))[1]


def discounted_returns(r_t: chex.Array, discount_t: chex.Array, bootstrap: chex.Numeric = 0.0) -> chex.Array:
    """Compute the discounted return that follows each step.

        G_{t-1} = r_t + discount_t G_t,   G_T = bootstrap

    Args:
      r_t: [T] rewards.
      discount_t: [T] gamma * (1 - terminated), in [0, 1].
      bootstrap: [] value of the last observation; 0 when the episode ended.

    Returns:
      [T] returns, float32 or wider.

    Raises:
      AssertionError: if the shapes differ or the rank is not 1.

    Source: Sutton & Barto 2018, eq. 3.9; lecture 002 (A2).
    """
    return _accumulate(*series(r_t, discount_t), bootstrap)


def reward_to_go(r_t: chex.Array) -> chex.Array:
    """Sum the rewards from each step to the end of one episode, undiscounted.

        sum_{t' >= t} r_t'

    Args:
      r_t: [T] rewards of one episode, 0 after its end.

    Returns:
      [T] sums, float32 or wider.

    Raises:
      AssertionError: if the rank is not 1.

    Source: lectures 001, 003 (B7, idea 1 of variance reduction).
    """
    (r_t,) = series(r_t)
    return jnp.cumsum(r_t[::-1])[::-1]


def gae(
    r_t: chex.Array, discount_t: chex.Array, lambda_t: chex.Array, v_tm1: chex.Array, v_t: chex.Array
) -> chex.Array:
    """Estimate the advantage of each action by an exponential mean of n-step errors.

        A_{t-1} = delta_t + discount_t lambda_t A_t,   delta_t = r_t + discount_t v_t - v_tm1

    lambda = 0 gives the TD error, lambda = 1 the return minus the baseline. `advantage + v_tm1` is the lambda
    return, the critic's target.

    Args:
      r_t: [T] rewards.
      discount_t: [T] gamma * (1 - terminated), in [0, 1].
      lambda_t: [T] lambda * (1 - terminated) * (1 - truncated), in [0, 1].
      v_tm1: [T] values at the start of each step.
      v_t: [T] values at the end of each step, read before any reset.

    Returns:
      [T] advantages, float32 or wider.

    Raises:
      AssertionError: if the shapes differ or the rank is not 1.

    Source: Schulman et al. 2016, eq. 16; lecture 002 (B15).
    """
    r_t, discount_t, lambda_t, v_tm1, v_t = series(r_t, discount_t, lambda_t, v_tm1, v_t)
    return _accumulate(r_t + discount_t * v_t - v_tm1, discount_t * lambda_t)
