"""Critic-free advantages from several answers to one prompt, and the losses of one answer that use them."""

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.losses._arrays import as_floats, series
from jaxrl_align.losses.masking import masked_mean
from jaxrl_align.losses.policies import average_baseline, clipped_surrogate
from jaxrl_align.types import Array, Numeric


def group_advantages(scores: Array, *, scale: bool = True) -> jax.Array:
    """Judge each answer against the others of its group.

        (s_i - mean(s)) / (std(s) + 1e-4),   std with N - 1;   without `scale` the numerator alone (Dr. GRPO)

    Args:
      scores: [G] rewards of the answers to one prompt, G >= 2.
      scale: divide by the standard deviation.

    Returns:
      [G] advantages; all 0 if the scores are equal. The gradient is stopped.

    Raises:
      AssertionError: if the rank is not 1.
      ValueError: if G < 2.

    Source: Shao et al. 2024 (GRPO), section 4.1; Liu et al. 2025 (Dr. GRPO).
    """
    (scores,) = as_floats(scores)
    chex.assert_rank(scores, 1)
    _check_group(scores)
    scores = _from_first(scores)
    centred = scores - jnp.mean(scores)
    return centred / (jnp.std(scores, ddof=1) + 1e-4) if scale else centred


def leave_one_out_advantages(scores: Array) -> jax.Array:
    """Judge each answer against the mean of the others, an unbiased baseline (RLOO).

        s_i - sum_{j != i} s_j / (G - 1)

    Args:
      scores: [G] rewards of the answers to one prompt, G >= 2.

    Returns:
      [G] advantages. The gradient is stopped.

    Raises:
      AssertionError: if the rank is not 1.
      ValueError: if G < 2.

    Source: Kool et al. 2019; Ahmadian et al. 2024.
    """
    (scores,) = as_floats(scores)
    chex.assert_rank(scores, 1)
    _check_group(scores)
    scores = _from_first(scores)
    return scores - average_baseline(scores)


def _check_group(scores: jax.Array) -> None:
    if scores.shape[0] < 2:
        raise ValueError(f"a group needs 2 answers or more; got {scores.shape[0]}; raise the group size")


def _from_first(scores: jax.Array) -> jax.Array:
    """Measure scores from the group's first, so that equal ones give advantages of exactly 0."""
    return jax.lax.stop_gradient(scores - scores[0])


def _token_losses(
    log_prob: Array,
    behaviour_log_prob: Array,
    advantage: Numeric,
    clip: Numeric,
    clip_high: Numeric | None,
) -> jax.Array:
    advantage = jnp.broadcast_to(as_floats(advantage)[0], jnp.shape(log_prob))
    return clipped_surrogate(log_prob, behaviour_log_prob, advantage, clip=clip, clip_high=clip_high)


def grpo(
    log_prob: Array,
    behaviour_log_prob: Array,
    advantage: Numeric,
    mask: Array,
    *,
    clip: Numeric,
    clip_high: Numeric | None = None,
) -> jax.Array:
    """Compute group-relative policy optimisation's loss of one answer: the mean over its tokens.

        1 / |y| sum_t clipped_surrogate(log pi_t, log pi_old_t, A)

    Args:
      log_prob: [T] nats of the tokens, under the current policy.
      behaviour_log_prob: [T] nats, under the policy that wrote them; gradient stopped.
      advantage: [] of the whole answer, from `group_advantages`, or [T] of each token; gradient stopped.
      mask: [T] 1 for a token, 0 for padding.
      clip: [] in (0, 1).
      clip_high: [] upper clip if it differs; default `clip`.

    Returns:
      [] loss; add `kl_coef * masked_mean(kl_estimate(...), mask)` for the reference penalty.

    Raises:
      AssertionError: if the shapes differ or the rank is not 1.

    Source: Shao et al. 2024, eq. 3.
    """
    log_prob, behaviour_log_prob, mask = series(log_prob, behaviour_log_prob, mask)
    return masked_mean(_token_losses(log_prob, behaviour_log_prob, advantage, clip, clip_high), mask)


def dr_grpo(
    log_prob: Array,
    behaviour_log_prob: Array,
    advantage: Numeric,
    mask: Array,
    *,
    clip: Numeric,
    clip_high: Numeric | None = None,
) -> jax.Array:
    """Compute Dr. GRPO's loss of one answer: a constant divisor, so that long wrong answers are not favoured.

        1 / T sum_t clipped_surrogate(log pi_t, log pi_old_t, A),   T = longest possible answer

    Args:
      log_prob: [T] nats of the tokens, under the current policy.
      behaviour_log_prob: [T] nats, under the policy that wrote them; gradient stopped.
      advantage: [] from `group_advantages(scores, scale=False)`; gradient stopped.
      mask: [T] 1 for a token, 0 for padding.
      clip: [] in (0, 1).
      clip_high: [] upper clip if it differs; default `clip`.

    Returns:
      [] loss.

    Raises:
      AssertionError: if the shapes differ or the rank is not 1.

    Source: Liu et al. 2025, section 3.2.
    """
    log_prob, behaviour_log_prob, mask = series(log_prob, behaviour_log_prob, mask)
    losses = _token_losses(log_prob, behaviour_log_prob, advantage, clip, clip_high)
    return jnp.mean(jnp.where(mask > 0, losses, 0.0))


def gspo(
    log_prob: Array,
    behaviour_log_prob: Array,
    advantage: Numeric,
    mask: Array,
    *,
    clip: Numeric,
    clip_high: Numeric | None = None,
) -> jax.Array:
    """Compute group sequence policy optimisation's loss of one answer: one ratio, its tokens' geometric mean.

        -min(s A, clip(s, 1 - clip, 1 + clip_high) A),   s = (pi(y) / pi_old(y))^(1 / |y|)

    Args:
      log_prob: [T] nats of the tokens, under the current policy.
      behaviour_log_prob: [T] nats, under the policy that wrote them; gradient stopped.
      advantage: [] of the whole answer; gradient stopped.
      mask: [T] 1 for a token, 0 for padding.
      clip: [] in (0, 1); far smaller than a token's, 3e-4 in the paper.
      clip_high: [] upper clip if it differs; default `clip`.

    Returns:
      [] loss.

    Raises:
      AssertionError: if the shapes differ or the rank is not 1.

    Source: Zheng et al. 2025, eq. 5.
    """
    log_prob, behaviour_log_prob, mask = series(log_prob, behaviour_log_prob, mask)
    means = masked_mean(log_prob, mask), masked_mean(behaviour_log_prob, mask)
    loss = clipped_surrogate(*means, jnp.asarray(advantage), clip=clip, clip_high=clip_high)
    return jnp.where(jnp.any(mask > 0), loss, 0.0)


def rloo(
    log_prob: Array,
    behaviour_log_prob: Array,
    advantage: Numeric,
    mask: Array,
    *,
    clip: Numeric,
    clip_high: Numeric | None = None,
) -> jax.Array:
    """Compute the loss of one answer taken as a single action: REINFORCE on its whole probability, clipped.

        -min(s A, clip(s, 1 - clip, 1 + clip_high) A),   s = pi(y) / pi_old(y)

    On the policy that wrote the answer its gradient is `-A grad log pi(y)`, the paper's; the clip holds a
    second step on the same answers.

    Args:
      log_prob: [T] nats of the tokens, under the current policy.
      behaviour_log_prob: [T] nats, under the policy that wrote them; gradient stopped.
      advantage: [] of the whole answer, from `leave_one_out_advantages`; gradient stopped.
      mask: [T] 1 for a token, 0 for padding.
      clip: [] in (0, 1).
      clip_high: [] upper clip if it differs; default `clip`.

    Returns:
      [] loss.

    Raises:
      AssertionError: if the shapes differ or the rank is not 1.

    Source: Ahmadian et al. 2024, section 3; the clip: Schulman et al. 2017, eq. 7.
    """
    log_prob, behaviour_log_prob, mask = series(log_prob, behaviour_log_prob, mask)
    new, old = (jnp.sum(jnp.where(mask > 0, x, 0.0)) for x in (log_prob, behaviour_log_prob))
    loss = clipped_surrogate(new, old, jnp.asarray(advantage), clip=clip, clip_high=clip_high)
    return jnp.where(jnp.any(mask > 0), loss, 0.0)
