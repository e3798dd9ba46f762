"""Policy objectives, element by element, to be minimised; returns, advantages and old policies are stopped.

Every function takes log-probabilities in nats of the actions taken, of any one shape.
"""

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.losses._arrays import bounded_exp, same_shape


def importance_ratio(log_prob: chex.Array, behaviour_log_prob: chex.Array) -> chex.Array:
    """Compute how much likelier an action is now than under the policy that took it.

        r = pi(a|s) / pi_old(a|s) = exp(log pi - log pi_old), held at exp(20)

    Args:
      log_prob: [...] nats, under the current policy.
      behaviour_log_prob: [...] nats, under the policy that acted; gradient stopped.

    Returns:
      [...] ratios in [0, 4.9e8].

    Raises:
      AssertionError: if the shapes differ.

    Source: lectures 001, 003 (B17).
    """
    log_prob, behaviour_log_prob = same_shape(log_prob, behaviour_log_prob)
    return bounded_exp(log_prob - jax.lax.stop_gradient(behaviour_log_prob))


def reinforce_loss(log_prob: chex.Array, ret: chex.Array) -> chex.Array:
    """Compute the loss whose gradient is REINFORCE's.

        -log pi(a|s) G

    `G` is the whole return, the reward-to-go, its discounted form, or any of these minus a baseline `b(s_t)`
    *per step*.

    Args:
      log_prob: [...] nats.
      ret: [...] return of each action; gradient stopped.

    Returns:
      [...] losses.

    Raises:
      AssertionError: if the shapes differ.

    Source: Williams 1992; lectures 000-003 (B4, B24).
    """
    log_prob, ret = same_shape(log_prob, ret)
    return -log_prob * jax.lax.stop_gradient(ret)


def actor_critic_loss(log_prob: chex.Array, critic: chex.Array) -> chex.Array:
    """Compute the actor's loss under a critic.

        -log pi(a|s) C(s, a),   C = Q (Q actor-critic) or A = Q - V (advantage actor-critic)

    Args:
      log_prob: [...] nats.
      critic: [...] `Q(s, a)`, `q_advantage` or `gae`; gradient stopped.

    Returns:
      [...] losses.

    Raises:
      AssertionError: if the shapes differ.

    Source: Sutton et al. 2000; lectures 001, 003 (B11-B13).
    """
    log_prob, critic = same_shape(log_prob, critic)
    return -log_prob * jax.lax.stop_gradient(critic)


def surrogate(log_prob: chex.Array, behaviour_log_prob: chex.Array, advantage: chex.Array) -> chex.Array:
    """Compute the trust-region surrogate; at the old policy its gradient is the policy gradient.

        -r A,   r = pi / pi_old

    Args:
      log_prob: [...] nats, under the current policy.
      behaviour_log_prob: [...] nats, under the policy that acted; gradient stopped.
      advantage: [...] gradient stopped.

    Returns:
      [...] losses.

    Raises:
      AssertionError: if the shapes differ.

    Source: Schulman et al. 2015 (TRPO), eq. 14; lectures 001-003 (B18, B23).
    """
    log_prob, behaviour_log_prob, advantage = same_shape(log_prob, behaviour_log_prob, advantage)
    return -importance_ratio(log_prob, behaviour_log_prob) * jax.lax.stop_gradient(advantage)


def clipped_surrogate(
    log_prob: chex.Array,
    behaviour_log_prob: chex.Array,
    advantage: chex.Array,
    *,
    clip: chex.Numeric,
    clip_high: chex.Numeric | None = None,
) -> chex.Array:
    """Compute PPO's clipped surrogate, which removes the incentive to leave [1 - clip, 1 + clip].

        -min(r A, clip(r, 1 - clip, 1 + clip_high) A)

    The clip bounds neither the ratio nor the KL divergence: it only zeroes the gradient where a larger step
    would still look better.

    Args:
      log_prob: [...] nats, under the current policy.
      behaviour_log_prob: [...] nats, under the policy that acted; gradient stopped.
      advantage: [...] gradient stopped.
      clip: [] in (0, 1), the paper's epsilon.
      clip_high: [] upper epsilon if it differs; default `clip`.

    Returns:
      [...] losses.

    Raises:
      AssertionError: if the shapes differ.

    Source: Schulman et al. 2017, eq. 7; asymmetric: Yu et al. 2025 (DAPO); lectures 000, 002 (B21).
    """
    log_prob, behaviour_log_prob, advantage = same_shape(log_prob, behaviour_log_prob, advantage)
    clip_high = clip if clip_high is None else clip_high
    advantage = jax.lax.stop_gradient(advantage)
    ratio = importance_ratio(log_prob, behaviour_log_prob)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1.0 - clip, 1.0 + clip_high) * advantage)
