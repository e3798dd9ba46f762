"""V-trace: returns of one stream of experience that another policy made."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_align.losses._arrays import series
from jaxrl_align.types import Array, Numeric


class VTrace(NamedTuple):
    """V-trace's target for the critic and advantage for the actor, each [T]."""

    target: jax.Array
    advantage: jax.Array


def vtrace(
    r_t: Array,
    discount_t: Array,
    lambda_t: Array,
    v_tm1: Array,
    v_t: Array,
    ratio_tm1: Array,
    *,
    clip_rho: Numeric = 1.0,
    clip_c: Numeric = 1.0,
    clip_pg_rho: Numeric = 1.0,
) -> VTrace:
    """Correct lambda returns for experience made by another policy, with truncated importance ratios.

        target - v_tm1 = e_{t-1} = min(clip_rho, ratio) delta_t + min(clip_c, ratio) discount_t lambda_t e_t
        advantage = min(clip_pg_rho, ratio) (delta_t + discount_t lambda_t e_t)
        delta_t = r_t + discount_t v_t - v_tm1

    Args:
      r_t: [T] rewards.
      discount_t: [T] gamma * (1 - terminated), in [0, 1].
      lambda_t: [T] lambda * (1 - terminated) * (1 - truncated), in [0, 1].
      v_tm1: [T] values at the start of each step.
      v_t: [T] values at the end of each step, read before any reset.
      ratio_tm1: [T] pi / pi_behaviour of the action taken, >= 0.
      clip_rho: [] bound of the ratio on the TD error; sets which policy's value the critic
        converges to.
      clip_c: [] bound of the ratio on the trace; sets how fast it converges.
      clip_pg_rho: [] bound of the ratio on the advantage.

    Returns:
      `VTrace(target, advantage)`, each [T]. Nothing is stopped.

    Raises:
      AssertionError: if the shapes differ or the rank is not 1.

    Source: Espeholt et al. 2018, eq. 1.
    """
    r_t, discount_t, lambda_t, v_tm1, v_t, ratio = series(r_t, discount_t, lambda_t, v_tm1, v_t, ratio_tm1)

    def backward(error: jax.Array, step: tuple[jax.Array, ...]) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        r, discount, trace, v_before, v_after, rho = step
        delta, decay = r + discount * v_after - v_before, discount * trace * error
        advantage = jnp.minimum(clip_pg_rho, rho) * (delta + decay)
        error = jnp.minimum(clip_rho, rho) * delta + jnp.minimum(clip_c, rho) * decay
        return error, (error, advantage)

    last = jnp.zeros((), r_t.dtype)
    steps = (r_t, discount_t, lambda_t, v_tm1, v_t, ratio)
    _, (error, advantage) = jax.lax.scan(backward, last, steps, reverse=True)
    return VTrace(v_tm1 + error, advantage)
