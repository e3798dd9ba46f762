"""Policy objectives, element by element, to be minimised; returns, advantages and old policies are stopped.

Every function takes log-probabilities in nats of the actions taken, of any one shape.
"""

import jax
import jax.numpy as jnp

from jaxrl_align.losses._arrays import as_floats, bounded_exp, pick, same_shape
from jaxrl_align.types import Array, Numeric


def importance_ratio(log_prob: Array, behaviour_log_prob: Array) -> jax.Array:
    """Compute how much likelier an action is now than under the policy that took it.

        r = pi(a|s) / pi_old(a|s) = exp(log pi - log pi_old), held at exp(20)

    Args:
      log_prob: [...] nats, under the current policy.
      behaviour_log_prob: [...] nats, under the policy that acted; gradient stopped.

    Returns:
      [...] ratios in [0, 4.9e8].

    Raises:
      AssertionError: if the shapes differ.

    Source: docs/lectures.md (B17).
    """
    log_prob, behaviour_log_prob = same_shape(log_prob, behaviour_log_prob)
    return bounded_exp(log_prob - jax.lax.stop_gradient(behaviour_log_prob))


def reinforce_loss(log_prob: Array, ret: Array) -> jax.Array:
    """Compute the loss whose gradient is the policy gradient: REINFORCE's, or an actor's under a critic.

        -log pi(a|s) G

    `G` is the whole return, the reward-to-go, its discounted form, or any of these minus a baseline `b(s_t)`
    *per step*; or a critic's `Q(s, a)`, `q_advantage` or `gae` (actor-critic).

    Args:
      log_prob: [...] nats.
      ret: [...] return or advantage of each action; gradient stopped.

    Returns:
      [...] losses.

    Raises:
      AssertionError: if the shapes differ.

    Source: Williams 1992; Sutton et al. 2000; docs/lectures.md (B4, B11-B13, B24).
    """
    log_prob, ret = same_shape(log_prob, ret)
    return -log_prob * jax.lax.stop_gradient(ret)


def surrogate(log_prob: Array, behaviour_log_prob: Array, advantage: Array) -> jax.Array:
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

    Source: Schulman et al. 2015 (TRPO), eq. 14; docs/lectures.md (B18, B23).
    """
    log_prob, behaviour_log_prob, advantage = same_shape(log_prob, behaviour_log_prob, advantage)
    return -importance_ratio(log_prob, behaviour_log_prob) * jax.lax.stop_gradient(advantage)


def clipped_surrogate(
    log_prob: Array,
    behaviour_log_prob: Array,
    advantage: Array,
    *,
    clip: Numeric,
    clip_high: Numeric | None = None,
) -> jax.Array:
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

    Source: Schulman et al. 2017, eq. 7; asymmetric: Yu et al. 2025 (DAPO); docs/lectures.md (B21).
    """
    log_prob, behaviour_log_prob, advantage = same_shape(
        log_prob, behaviour_log_prob, advantage, clip=clip, clip_high=clip_high
    )
    clip_high = clip if clip_high is None else clip_high
    advantage = jax.lax.stop_gradient(advantage)
    ratio = importance_ratio(log_prob, behaviour_log_prob)
    free, held = ratio * advantage, jnp.clip(ratio, 1.0 - clip, 1.0 + clip_high) * advantage
    return -jnp.where(free < held, free, held)  # a select's gradient is cheaper than a minimum's


def kl_penalty_surrogate(
    log_prob: Array,
    behaviour_log_prob: Array,
    advantage: Array,
    kl: Array,
    *,
    kl_coef: Numeric,
) -> jax.Array:
    """Compute PPO's other surrogate, which pays for distance instead of clipping it.

        -r A + beta KL(pi_old || pi)

    Args:
      log_prob: [...] nats, under the current policy.
      behaviour_log_prob: [...] nats, under the policy that acted; gradient stopped.
      advantage: [...] gradient stopped.
      kl: [...] nats, `categorical_kl(old, new)` or another divergence; its gradient flows.
      kl_coef: [] beta >= 0; see `adapt_kl_coefficient`.

    Returns:
      [...] losses.

    Raises:
      AssertionError: if the shapes differ.

    Source: Schulman et al. 2017, eq. 8; docs/lectures.md (B20).
    """
    loss = surrogate(log_prob, behaviour_log_prob, advantage)
    loss, kl = same_shape(loss, kl, kl_coef=kl_coef)
    return loss + kl_coef * kl


def adapt_kl_coefficient(kl_coef: Numeric, kl: Numeric, *, target: Numeric) -> jax.Array:
    """Halve or double the weight of the KL penalty when the last update moved too little or too far.

        beta / 2 if KL < target / 1.5,   2 beta if KL > 1.5 target,   else beta

    Args:
      kl_coef: [] beta > 0.
      kl: [] mean KL of the last update, nats.
      target: [] nats, > 0.

    Returns:
      [] the next beta.

    Source: Schulman et al. 2017, section 4; docs/lectures.md (B20).
    """
    kl_coef, kl, target = as_floats(kl_coef, kl, target)
    return kl_coef * jnp.where(kl < target / 1.5, 0.5, jnp.where(kl > 1.5 * target, 2.0, 1.0))


def proportional_kl_coefficient(
    kl_coef: Numeric,
    kl: Numeric,
    *,
    target: Numeric,
    num_episodes: Numeric,
    horizon: Numeric,
) -> jax.Array:
    """Move the weight of the KL penalty in proportion to the relative error, in logarithmic time.

        beta (1 + clip(KL / target - 1, -0.2, 0.2) n / horizon)

    Args:
      kl_coef: [] beta > 0.
      kl: [] KL summed over each sequence and averaged over the batch, nats.
      target: [] nats, > 0.
      num_episodes: [] n, episodes in the batch.
      horizon: [] episodes over which beta may change by a factor of about exp(0.2).

    Returns:
      [] the next beta.

    Source: Ziegler et al. 2019, section 2.2.
    """
    kl_coef, kl, target = as_floats(kl_coef, kl, target)
    return kl_coef * (1.0 + jnp.clip(kl / target - 1.0, -0.2, 0.2) * num_episodes / horizon)


def q_advantage(q: Array, logits: Array, action: Array) -> jax.Array:
    """Compute how much better an action is than the policy expects of the state.

        A(s, a) = Q(s, a) - V(s),   V(s) = sum_a pi(a|s) Q(s, a)

    Args:
      q: [..., A] action values.
      logits: [..., A] of the policy.
      action: [...] integers, the actions taken.

    Returns:
      [...] advantages, whose mean under the policy is 0.

    Raises:
      AssertionError: if a shape or type differs.

    Source: docs/lectures.md (B12).
    """
    q, logits = same_shape(q, logits)
    return pick(q, action) - jnp.sum(jax.nn.softmax(logits) * q, axis=-1)


def average_baseline(ret: Array) -> jax.Array:
    """Average the returns of the *other* streams, so that the baseline cannot depend on the action it judges.

        b_i = sum_{j != i} G_j / (N - 1)

    A mean that includes stream i would shrink the expected gradient by (N - 1) / N.

    Args:
      ret: [N, ...] returns of N streams, N >= 2; each further axis (time) has its own average.

    Returns:
      [N, ...] baselines.

    Raises:
      ValueError: if N < 2.

    Source: docs/lectures.md (B9, average baseline); Kool et al. 2019.
    """
    (ret,) = as_floats(ret)
    if ret.ndim < 1 or ret.shape[0] < 2:
        raise ValueError(f"an average baseline needs returns of 2 streams or more; got shape {ret.shape}")
    return (jnp.sum(ret, axis=0, keepdims=True) - ret) / (ret.shape[0] - 1)
