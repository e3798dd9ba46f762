"""Errors and losses of value functions, for one transition."""

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.losses._arrays import as_floats, pick, same_shape
from jaxrl_align.types import Array, Numeric


def _check_transition(q: jax.Array, *scalars: jax.Array) -> None:
    chex.assert_rank(q, 1)
    chex.assert_rank(scalars, 0)


def td_target(r_t: Numeric, discount_t: Numeric, q_t: Array) -> jax.Array:
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

    Source: Mnih et al. 2015, algorithm 1; docs/lectures.md (A8, A11).
    """
    r_t, discount_t, q_t = as_floats(r_t, discount_t, q_t)
    _check_transition(q_t, r_t, discount_t)
    return jax.lax.stop_gradient(r_t + discount_t * jnp.max(q_t))


def td_error(v_tm1: Numeric, r_t: Numeric, discount_t: Numeric, v_t: Numeric) -> jax.Array:
    """Compute the error of TD(0).

        r_t + discount_t v_t - v_tm1

    Args:
      v_tm1: [] value at the step's start.
      r_t: [] reward.
      discount_t: [] gamma * (1 - terminated), in [0, 1].
      v_t: [] value at the step's end, read before any reset.

    Returns:
      [] error; the target's gradient is stopped.

    Raises:
      AssertionError: if a rank differs.

    Source: Sutton 1988.
    """
    v_tm1, r_t, discount_t, v_t = as_floats(v_tm1, r_t, discount_t, v_t)
    chex.assert_rank([v_tm1, r_t, discount_t, v_t], 0)
    return jax.lax.stop_gradient(r_t + discount_t * v_t) - v_tm1


def q_learning_error(q_tm1: Array, a_tm1: Array, r_t: Numeric, discount_t: Numeric, q_t: Array) -> jax.Array:
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

    Source: Watkins & Dayan 1992; Mnih et al. 2015; docs/lectures.md (A8 to A10).
    """
    (q_tm1,) = as_floats(q_tm1)
    _check_transition(q_tm1)
    return td_target(r_t, discount_t, q_t) - pick(q_tm1, a_tm1)


def double_q_error(
    q_tm1: Array,
    a_tm1: Array,
    r_t: Numeric,
    discount_t: Numeric,
    q_t_value: Array,
    q_t_selector: Array,
) -> jax.Array:
    """Compute the error of double Q-learning: one estimate selects the next action, another judges it.

        r_t + discount_t q_t_value[argmax_a q_t_selector[a]] - q_tm1[a_tm1]

    Args:
      q_tm1: [A] action values at the step's start.
      a_tm1: [] integer, the action taken.
      r_t: [] reward.
      discount_t: [] gamma * (1 - terminated), in [0, 1].
      q_t_value: [A] action values at the step's end that judge, usually of the target network.
      q_t_selector: [A] action values at the step's end that select, usually of the online network.

    Returns:
      [] error; the target's gradient is stopped.

    Raises:
      AssertionError: if a rank, shape or type differs.

    Source: van Hasselt et al. 2016.
    """
    q_t_value, q_t_selector = same_shape(q_t_value, q_t_selector)
    _check_transition(q_t_selector)
    return sarsa_error(q_tm1, a_tm1, r_t, discount_t, q_t_value, jnp.argmax(q_t_selector))


def sarsa_error(
    q_tm1: Array,
    a_tm1: Array,
    r_t: Numeric,
    discount_t: Numeric,
    q_t: Array,
    a_t: Array,
) -> jax.Array:
    """Compute the error of SARSA, whose fixed point is the value of the policy that acts.

        r_t + discount_t q_t[a_t] - q_tm1[a_tm1]

    Args:
      q_tm1: [A] action values at the step's start.
      a_tm1: [] integer, the action taken.
      r_t: [] reward.
      discount_t: [] gamma * (1 - terminated), in [0, 1].
      q_t: [A] action values at the step's end.
      a_t: [] integer, the next action taken.

    Returns:
      [] error; the target's gradient is stopped.

    Raises:
      AssertionError: if a rank, shape or type differs.

    Source: Rummery & Niranjan 1994; docs/lectures.md (B11, H5).
    """
    q_tm1, q_t = same_shape(q_tm1, q_t)
    _check_transition(q_tm1)
    return td_error(pick(q_tm1, a_tm1), r_t, discount_t, pick(q_t, a_t))


def expected_sarsa_error(
    q_tm1: Array,
    a_tm1: Array,
    r_t: Numeric,
    discount_t: Numeric,
    q_t: Array,
    probs_t: Array,
) -> jax.Array:
    """Compute the error of expected SARSA, which averages the next action out.

        r_t + discount_t sum_a probs_t[a] q_t[a] - q_tm1[a_tm1]

    Args:
      q_tm1: [A] action values at the step's start.
      a_tm1: [] integer, the action taken.
      r_t: [] reward.
      discount_t: [] gamma * (1 - terminated), in [0, 1].
      q_t: [A] action values at the step's end.
      probs_t: [A] the policy's probabilities at the step's end; gradient stopped.

    Returns:
      [] error; the target's gradient is stopped.

    Raises:
      AssertionError: if a rank, shape or type differs.

    Source: van Seijen et al. 2009.
    """
    q_tm1, q_t, probs_t = same_shape(q_tm1, q_t, probs_t)
    _check_transition(q_tm1)
    return td_error(pick(q_tm1, a_tm1), r_t, discount_t, jnp.sum(probs_t * q_t))


def squared(x: Array) -> jax.Array:
    """Compute half the square, whose gradient is the error itself.

        0.5 x^2

    Args:
      x: [...] errors.

    Returns:
      [...] losses, float32 or wider.

    Source: docs/lectures.md (A8, A10).
    """
    (x,) = as_floats(x)
    return 0.5 * jnp.square(x)


def huber(x: Array, *, delta: Numeric = 1.0) -> jax.Array:
    """Compute Huber's loss: squared near 0, linear beyond `delta`, so that no gradient exceeds it.

        0.5 x^2 if |x| <= delta, else delta (|x| - 0.5 delta)

    Args:
      x: [...] errors.
      delta: [] where the linear part begins, > 0.

    Returns:
      [...] losses, float32 or wider.

    Raises:
      AssertionError: if `delta` would broadcast.

    Source: Huber 1964; Mnih et al. 2015.
    """
    size = jnp.abs(*same_shape(x, delta=delta))
    inside = jnp.minimum(size, delta)
    return 0.5 * inside**2 + delta * (size - inside)


def clipped_value_loss(value: Array, behaviour_value: Array, target: Array, *, clip: Numeric) -> jax.Array:
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
    value, behaviour_value, target = same_shape(value, behaviour_value, target, clip=clip)
    behaviour_value, target = jax.lax.stop_gradient((behaviour_value, target))
    clipped = behaviour_value + jnp.clip(value - behaviour_value, -clip, clip)
    return 0.5 * jnp.maximum(jnp.square(value - target), jnp.square(clipped - target))
