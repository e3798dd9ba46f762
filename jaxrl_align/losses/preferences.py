"""Losses of reward models: pairs, rankings, ratings and labels, for one prompt."""

import jax
import jax.numpy as jnp

from jaxrl_align.losses._arrays import as_floats, same_shape, series
from jaxrl_align.losses.masking import masked_mean
from jaxrl_align.types import Array, Numeric


def bradley_terry(
    score_chosen: Array,
    score_rejected: Array,
    *,
    margin: Numeric = 0.0,
    label_smoothing: Numeric = 0.0,
) -> jax.Array:
    """Compute the negative log-likelihood that the chosen answer beats the rejected one.

        -(1 - eps) log sigma(d) - eps log sigma(-d),   d = r_chosen - r_rejected - margin

    Args:
      score_chosen: [...] reward of the preferred answer.
      score_rejected: [...] reward of the other.
      margin: [] or [...] by how much the chosen should win, >= 0.
      label_smoothing: [] or [...] eps in [0, 0.5), the chance that the label is flipped.

    Returns:
      [...] nats.

    Raises:
      AssertionError: if the shapes differ.

    Source: Bradley & Terry 1952; margin: Touvron et al. 2023; docs/lectures.md (F5).
    """
    score_chosen, score_rejected = same_shape(
        score_chosen, score_rejected, margin=margin, label_smoothing=label_smoothing
    )
    d = score_chosen - score_rejected - as_floats(margin)[0]
    (smoothing,) = as_floats(label_smoothing)
    return -(1.0 - smoothing) * jax.nn.log_sigmoid(d) - smoothing * jax.nn.log_sigmoid(-d)


def plackett_luce(scores: Array, ranks: Array | None = None, mask: Array | None = None) -> jax.Array:
    """Compute the negative log-likelihood of a whole ranking; with two answers it is Bradley-Terry's.

        -sum_i log(exp(s_i) / sum_{j not better than i} exp(s_j))

    Each of several tied answers is drawn as if it were the first of them (Breslow's form), so that no order
    among them counts and two that tie are drawn together.

    Args:
      scores: [K] rewards of the answers to one prompt.
      ranks: [K] their places, lower is better. None means best first.
      mask: [K] 1 for an answer, 0 for padding; None means all are answers.

    Returns:
      [] nats, 0 with fewer than two answers.

    Raises:
      AssertionError: if the shapes differ or the rank is not 1.

    Source: Plackett 1975; Luce 1959; ties: Breslow 1974.
    """
    scores, ranks, mask = series(
        scores,
        jnp.arange(len(scores)) if ranks is None else ranks,
        jnp.ones(len(scores)) if mask is None else mask,
    )
    left = (ranks[:, None] <= ranks[None, :]) & (mask > 0)[None, :]
    # A finite floor: -inf minus -inf inside the logarithm would make the gradient NaN.
    floor = jnp.finfo(scores.dtype).min / 4
    scores = jnp.where(mask > 0, scores, 0.0)
    total = jax.nn.logsumexp(jnp.where(left, scores[None, :], floor), axis=1)
    return jnp.sum(jnp.where(mask > 0, total - scores, 0.0))


def all_pairs(scores: Array, ranks: Array | None = None, mask: Array | None = None) -> jax.Array:
    """Average Bradley-Terry's loss over the pairs of a ranking, so that a prompt weighs the same for any K.

        -1 / C(K, 2) sum_{i better than j} log sigma(s_i - s_j)

    Args:
      scores: [K] rewards of the answers to one prompt.
      ranks: [K] their places, lower is better; tied pairs are left out. None means best first.
      mask: [K] 1 for an answer, 0 for padding; None means all are answers.

    Returns:
      [] nats, 0 with no pair to compare.

    Raises:
      AssertionError: if the shapes differ or the rank is not 1.

    Source: Ouyang et al. 2022, eq. 1; docs/lectures.md (F6, H8).
    """
    scores, ranks, mask = series(
        scores,
        jnp.arange(len(scores)) if ranks is None else ranks,
        jnp.ones(len(scores)) if mask is None else mask,
    )
    better = (ranks[:, None] < ranks[None, :]) * mask[:, None] * mask[None, :]
    scores = jnp.where(mask > 0, scores, 0.0)
    return masked_mean(-jax.nn.log_sigmoid(scores[:, None] - scores[None, :]), better)


def reward_centring(score_chosen: Array, score_rejected: Array) -> jax.Array:
    """Compute the penalty that pins a reward model's free constant near 0.

        (r_chosen + r_rejected)^2

    Args:
      score_chosen: [...] reward of the preferred answer.
      score_rejected: [...] reward of the other.

    Returns:
      [...] penalties, to be weighted (0.01 is usual) and added to `bradley_terry`.

    Raises:
      AssertionError: if the shapes differ.

    Source: Eisenstein et al. 2023, section 3.
    """
    score_chosen, score_rejected = same_shape(score_chosen, score_rejected)
    return jnp.square(score_chosen + score_rejected)


def score_regression(score: Array, rating: Array) -> jax.Array:
    """Compute the squared error of a reward against a scalar rating.

        0.5 (r - rating)^2

    Args:
      score: [...] reward.
      rating: [...] human rating on the scale that the reward should have; gradient stopped.

    Returns:
      [...] losses.

    Raises:
      AssertionError: if the shapes differ.

    Source: docs/lectures.md (F8, scalar feedback).
    """
    score, rating = same_shape(score, rating)
    return 0.5 * jnp.square(score - jax.lax.stop_gradient(rating))


def binary_label(score: Array, label: Array) -> jax.Array:
    """Compute the negative log-likelihood of a thumb up or down.

        -y log sigma(r) - (1 - y) log sigma(-r)

    Args:
      score: [...] reward, the logit of "good".
      label: [...] 1 or True for good, 0 for bad, or a share of the votes in between.

    Returns:
      [...] nats.

    Raises:
      AssertionError: if the shapes differ.

    Source: docs/lectures.md (F8, label feedback).
    """
    score, label = same_shape(score, label)
    return jax.nn.softplus(score) - label * score
