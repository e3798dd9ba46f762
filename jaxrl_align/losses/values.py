"""Errors and losses of value functions, for one transition."""

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.losses._arrays import as_floats, pick, same_shape


def _check_transition(q: jax.Array, *scalars: jax.Array) -> None:
    chex.assert_rank(q, 1)
    chex.assert_rank(scalars, 0)


def td_target(r_t: chex.Numeric, discount_t: chex.Numeric, q_t: chex.Array) -> chex.Array:
    """Compute the target of Q-learning; a terminal step has discount 0 and so the reward alone.

        y = r_t + discount_t max_a q_t[a]

    Args:
      r_t: [] reward.
      discount_t: [] gamma * (1 - terminated), in [0, 1].
      q_t: [A] action values at the step's end.

    Returns:
      [] target; its gradient is stopped.

    Raises:
      AssertionError: if a rank differs.

    Source: Mnih et al. 2015, algorithm 1; lectures 000, 001, 003 (A8, A11).
    """
    r_t, discount_t, q_t = as_floats(r_t, discount_t, q_t)
    _check_transition(q_t, r_t, discount_t)
    return jax.lax.stop_gradient(r_t + discount_t * jnp.max(q_t))


def q_learning_error(
    q_tm1: chex.Array, a_tm1: chex.Array, r_t: chex.Numeric, discount_t: chex.Numeric, q_t: chex.Array
) -> chex.Array:
    """Compute the error of Q-learning.

        y - q_tm1[a_tm1],   y = r_t + discount_t max_a q_t[a]

    Args:
      q_tm1: [A] action values at the step's start.
      a_tm1: [] integer, the action taken.
      r_t: [] reward.
      discount_t: [] gamma * (1 - terminated), in [0, 1].
      q_t: [A] action values at the step's end, usually of the target network.

    Returns:
      [] error; the target's gradient is stopped.

    Raises:
      AssertionError: if a rank or type differs.

    Source: Watkins & Dayan 1992; Mnih et al. 2015; lectures 000, 001, 003 (A8, A9).
    """
    (q_tm1,) = as_floats(q_tm1)
    _check_transition(q_tm1)
    return td_target(r_t, discount_t, q_t) - pick(q_tm1, a_tm1)


def huber(x: chex.Array, *, delta: chex.Numeric = 1.0) -> chex.Array:
    """Compute Huber's loss: squared near 0, linear beyond `delta`, so that no gradient exceeds it.

        0.5 x^2 if |x| <= delta, else delta (|x| - 0.5 delta)

    Args:
      x: [...] errors.
      delta: [] where the linear part begins, > 0.

    Returns:
      [...] losses, float32 or wider.

    Source: Huber 1964; Mnih et al. 2015.
    """
    (x,) = as_floats(x)
    inside = jnp.clip(x, -delta, delta)
    return inside * (x - 0.5 * inside)


def clipped_value_loss(
    value: chex.Array, behaviour_value: chex.Array, target: chex.Array, *, clip: chex.Numeric
) -> chex.Array:
    """Compute the pessimistic squared error of a value that may move only `clip` from where it was.

        0.5 max((v - y)^2, (v_old + clip(v - v_old, -clip, clip) - y)^2)

    Args:
      value: [...] current estimates.
      behaviour_value: [...] estimates when the experience was made; gradient stopped.
      target: [...] regression targets; gradient stopped.
      clip: [] largest move, > 0, in units of value.

    Returns:
      [...] losses, float32 or wider.

    Raises:
      AssertionError: if the shapes differ.

    Source: Schulman et al. 2017 (released code); Stiennon et al. 2020.
    """
    value, behaviour_value, target = same_shape(value, behaviour_value, target)
    behaviour_value, target = jax.lax.stop_gradient((behaviour_value, target))
    clipped = behaviour_value + jnp.clip(value - behaviour_value, -clip, clip)
    return 0.5 * jnp.maximum(jnp.square(value - target), jnp.square(clipped - target))
