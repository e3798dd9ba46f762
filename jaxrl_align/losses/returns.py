"""Returns and advantages of one stream of experience, [T]; the caller vmaps over a batch.

Time conventions: the step from `t-1` to `t` yields `r_t` and `discount_t`; `v_tm1` judges its start and
`v_t` its end. `discount_t = gamma * (1 - terminated)` and `lambda_t = lambda * (1 - terminated) *
(1 - truncated)`, so a termination ends the sum, a truncation ends the trace but bootstraps from `v_t`, and
padding (all zeros) adds nothing. Nothing here is stopped: the losses stop their targets and advantages.
"""

import jax
import jax.numpy as jnp

from jaxrl_align.losses._arrays import check_coefficients, linear_recurrence, series
from jaxrl_align.types import Array, Numeric


def discounted_returns(r_t: Array, discount_t: Array, bootstrap: Numeric = 0.0) -> jax.Array:
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

    Source: Sutton & Barto 2018, eq. 3.9; docs/lectures.md (A2).
    """
    r_t, discount_t = series(r_t, discount_t)
    check_coefficients((), bootstrap=bootstrap)
    return linear_recurrence(r_t, discount_t, bootstrap)


def reward_to_go(r_t: Array) -> jax.Array:
    """Sum the rewards from each step to the end of one episode, undiscounted.

        sum_{t' >= t} r_t'

    Args:
      r_t: [T] rewards of one episode, 0 after its end.

    Returns:
      [T] sums, float32 or wider.

    Raises:
      AssertionError: if the rank is not 1.

    Source: docs/lectures.md (B7, idea 1 of variance reduction).
    """
    (r_t,) = series(r_t)
    return jnp.cumsum(r_t[::-1])[::-1]


def trajectory_return(r_t: Array, discount_t: Array) -> jax.Array:
    """Compute the discounted return of the whole trajectory.

        sum_t gamma^t r_{t+1}

    Args:
      r_t: [T] rewards.
      discount_t: [T] gamma * (1 - terminated), in [0, 1].

    Returns:
      [] return, float32 or wider.

    Raises:
      AssertionError: if the shapes differ or the rank is not 1.

    Source: docs/lectures.md (B1, B4).
    """
    return discounted_returns(r_t, discount_t)[0]


def n_step_returns(r_t: Array, discount_t: Array, lambda_t: Array, v_t: Array, *, n: int) -> jax.Array:
    """Compute the returns that bootstrap after `n` steps, or at the end of the stream if that is sooner.

        G^n_{t-1} = r_t + discount_t ((1 - lambda_t) v_t + lambda_t G^{n-1}_t),   G^0_t = v_t

    Args:
      r_t: [T] rewards.
      discount_t: [T] gamma * (1 - terminated), in [0, 1].
      lambda_t: [T] 1 for the plain n-step return; 0 where an episode was cut, which bootstraps there.
      v_t: [T] values at the end of each step, read before any reset.
      n: number of steps, >= 1, static; the program grows with it.

    Returns:
      [T] returns, float32 or wider.

    Raises:
      AssertionError: if the shapes differ or the rank is not 1.
      ValueError: if n < 1.

    Source: Sutton & Barto 2018, eq. 7.1.
    """
    if n < 1:
        raise ValueError(f"n must be at least 1; got n={n}; n=1 gives the TD target")
    r_t, discount_t, lambda_t, v_t = series(r_t, discount_t, lambda_t, v_t)
    length, n = len(r_t), min(n, len(r_t))
    # Beyond the end nothing is added: reward 0 and weight 1 carry the last value back.
    bootstrapped = jnp.pad(r_t + discount_t * (1.0 - lambda_t) * v_t, (0, n))
    decay = jnp.pad(discount_t * lambda_t, (0, n), constant_values=1.0)
    returns = jnp.pad(v_t, (0, n), mode="edge")[n - 1 : n - 1 + length]
    for i in reversed(range(n)):
        returns = bootstrapped[i : i + length] + decay[i : i + length] * returns
    return returns


def lambda_returns(r_t: Array, discount_t: Array, lambda_t: Array, v_t: Array) -> jax.Array:
    """Compute the exponential mean of all n-step returns.

        G_{t-1} = r_t + discount_t ((1 - lambda_t) v_t + lambda_t G_t),   G_T = v_T

    Args:
      r_t: [T] rewards.
      discount_t: [T] gamma * (1 - terminated), in [0, 1].
      lambda_t: [T] lambda * (1 - terminated) * (1 - truncated), in [0, 1].
      v_t: [T] values at the end of each step, read before any reset.

    Returns:
      [T] returns, float32 or wider.

    Raises:
      AssertionError: if the shapes differ or the rank is not 1.

    Source: Sutton & Barto 2018, eq. 12.2.
    """
    r_t, discount_t, lambda_t, v_t = series(r_t, discount_t, lambda_t, v_t)

    def backward(ret: jax.Array, step: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        r, discount, trace, v = step
        ret = r + discount * ((1.0 - trace) * v + trace * ret)
        return ret, ret

    return jax.lax.scan(backward, v_t[-1], (r_t, discount_t, lambda_t, v_t), reverse=True)[1]


def gae(r_t: Array, discount_t: Array, lambda_t: Array, v_tm1: Array, v_t: Array) -> jax.Array:
    """Estimate the advantage of each action by an exponential mean of n-step errors.

        A_{t-1} = delta_t + discount_t lambda_t A_t,   delta_t = r_t + discount_t v_t - v_tm1

    lambda = 0 gives the TD error, lambda = 1 the return minus the baseline. `advantage + v_tm1` is the lambda
    return, the critic's target. A CPU takes one step after the other, an accelerator computes
    `gae_associative`.

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

    Source: Schulman et al. 2016, eq. 16; docs/lectures.md (B15).
    """
    stream = series(r_t, discount_t, lambda_t, v_tm1, v_t)
    return jax.lax.platform_dependent(*stream, cpu=_gae_loop, default=gae_associative)


def _gae_loop(
    r_t: jax.Array, discount_t: jax.Array, lambda_t: jax.Array, v_tm1: jax.Array, v_t: jax.Array
) -> jax.Array:
    def backward(advantage: jax.Array, step: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        r, discount, trace, v_before, v_after = step
        advantage = r + discount * v_after - v_before + discount * trace * advantage
        return advantage, advantage

    # One pass: a sum formed before the scan would cross the memory once more.
    last = jnp.zeros((), r_t.dtype)
    return jax.lax.scan(backward, last, (r_t, discount_t, lambda_t, v_tm1, v_t), reverse=True)[1]


def gae_associative(r_t: Array, discount_t: Array, lambda_t: Array, v_tm1: Array, v_t: Array) -> jax.Array:
    """Estimate the same advantages as `gae` in log2(T) parallel passes: for long T on parallel hardware.

        (delta, c) o (delta', c') = (delta + c delta', c c'),   c_t = discount_t lambda_t

    On a CPU the loop of `gae` is faster (`experiments/benchmarks/losses.py`). On a GPU, where every step of a
    loop costs launches, this is, 38 times at T = 128 (docs/benchmarks.md), and `gae` computes it there.

    Args:
      r_t: [T] rewards.
      discount_t: [T] gamma * (1 - terminated), in [0, 1].
      lambda_t: [T] lambda * (1 - terminated) * (1 - truncated), in [0, 1].
      v_tm1: [T] values at the start of each step.
      v_t: [T] values at the end of each step, read before any reset.

    Returns:
      [T] advantages, float32 or wider, equal to `gae`'s up to rounding.

    Raises:
      AssertionError: if the shapes differ or the rank is not 1.

    Source: Blelloch 1990 (scan of a linear recurrence); Schulman et al. 2016, eq. 16.
    """
    r_t, discount_t, lambda_t, v_tm1, v_t = series(r_t, discount_t, lambda_t, v_tm1, v_t)

    def compose(
        later: tuple[jax.Array, jax.Array], earlier: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        return earlier[0] + earlier[1] * later[0], earlier[1] * later[1]

    steps = (r_t + discount_t * v_t - v_tm1, discount_t * lambda_t)
    return jax.lax.associative_scan(compose, steps, reverse=True)[0]


def n_step_error(
    r_t: Array,
    discount_t: Array,
    lambda_t: Array,
    v_tm1: Array,
    v_t: Array,
    *,
    n: int,
) -> jax.Array:
    """Compute the error of n-step TD.

        n_step_returns - v_tm1

    Args:
      r_t: [T] rewards.
      discount_t: [T] gamma * (1 - terminated), in [0, 1].
      lambda_t: [T] 1, or 0 where an episode was cut.
      v_tm1: [T] values at the start of each step.
      v_t: [T] values at the end of each step, read before any reset.
      n: number of steps, >= 1, static.

    Returns:
      [T] errors; the target's gradient is stopped.

    Raises:
      AssertionError: if the shapes differ or the rank is not 1.
      ValueError: if n < 1.

    Source: Sutton & Barto 2018, eq. 7.2.
    """
    r_t, discount_t, lambda_t, v_tm1, v_t = series(r_t, discount_t, lambda_t, v_tm1, v_t)
    return jax.lax.stop_gradient(n_step_returns(r_t, discount_t, lambda_t, v_t, n=n)) - v_tm1


def lambda_error(r_t: Array, discount_t: Array, lambda_t: Array, v_tm1: Array, v_t: Array) -> jax.Array:
    """Compute the error of TD(lambda).

        lambda_returns - v_tm1

    Args:
      r_t: [T] rewards.
      discount_t: [T] gamma * (1 - terminated), in [0, 1].
      lambda_t: [T] lambda * (1 - terminated) * (1 - truncated), in [0, 1].
      v_tm1: [T] values at the start of each step.
      v_t: [T] values at the end of each step, read before any reset.

    Returns:
      [T] errors; the target's gradient is stopped.

    Raises:
      AssertionError: if the shapes differ or the rank is not 1.

    Source: Sutton & Barto 2018, eq. 12.2.
    """
    r_t, discount_t, lambda_t, v_tm1, v_t = series(r_t, discount_t, lambda_t, v_tm1, v_t)
    return jax.lax.stop_gradient(lambda_returns(r_t, discount_t, lambda_t, v_t)) - v_tm1
