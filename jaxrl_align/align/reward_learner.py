"""Training of reward models: one learner, and an objective for each kind of feedback.

learner = make_reward_learner(lm, sample_rows(rankings, batch_size=8), objective=ranking_objective(lm))

| feedback | rows | objective |
|---|---|---|
| comparison; a correction against what it corrects | `Comparisons` | `comparison_objective`: Bradley-Terry |
| ranking | `Rankings` | `ranking_objective`: all pairs, or Plackett-Luce |
| rating; a remark by its sentiment | `Ratings` | `rating_objective`: regression |
| label | `Ratings` | `label_objective`: logistic |

Any part may train: given `{"head": ...}` or a LoRA as parameters, the rest is each step's `frozen`.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxrl_align.align.reward_model import RewardModel, init_reward_params, score_completions, stack_pair
from jaxrl_align.checks import check_tokens
from jaxrl_align.learner import LossFn, make_gradient_learner
from jaxrl_align.losses import (
    all_pairs,
    binary_label,
    bradley_terry,
    masked_mean,
    reward_centring,
    score_regression,
)
from jaxrl_align.nets.adapters import overlay, with_dropout
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.types import (
    Comparisons,
    Learner,
    Metrics,
    Numeric,
    PaddedTokens,
    Params,
    Rankings,
    Ratings,
    Sampler,
)


class RewardHParams(NamedTuple):
    """The traced scalars of reward-model training."""

    learning_rate: Numeric = 3e-4
    label_smoothing: Numeric = 0.0
    """Of comparisons, in [0, 0.5): the chance that any label is flipped, on top of the rows' own."""
    centring: Numeric = 0.0
    """Weight of `losses.reward_centring` in comparisons; 0.01 is usual."""


def score_rows(
    lm: LanguageModel, params: Params, prompt: PaddedTokens, completions: PaddedTokens, key: chex.PRNGKey
) -> jax.Array:
    """Return the scores [B, K] of rows in training, not normalised: each prompt once, dropout by row."""
    read = lambda p, c, key: score_completions(lm, RewardModel(with_dropout(params, key)), p, c)
    return jax.vmap(read)(prompt, completions, jax.random.split(key, len(prompt.tokens)))


def comparison_objective(lm: LanguageModel) -> LossFn:
    """Return the objective of `Comparisons`: `losses.bradley_terry`, mean over the rows.

    A row's margin is subtracted, its chance of being flipped smooths its label.

    Source: Bradley & Terry 1952; docs/lectures.md (F5).
    """

    def loss(
        params: Params, frozen: Any, batch: Comparisons, key: chex.PRNGKey, hparams: Any
    ) -> tuple[jax.Array, Metrics]:
        check_rows(batch, Comparisons)
        scores = score_rows(lm, overlay(frozen, params), batch.prompt, stack_pair(batch), key)
        chosen, rejected = scores[:, 0], scores[:, 1]
        margin = jnp.zeros(len(chosen)) if batch.margin is None else batch.margin
        flip = flip_chances(batch, hparams.label_smoothing)
        value = jnp.mean(bradley_terry(chosen, rejected, margin=margin, label_smoothing=flip))
        centring = jnp.mean(reward_centring(chosen, rejected))
        return value + hparams.centring * centring, {
            "accuracy": jnp.mean((chosen > rejected).astype(jnp.float32)),
            "margin": jnp.mean(chosen - rejected),
            **_spread(scores),
        }

    return loss


def ranking_objective(lm: LanguageModel, loss: Callable[..., jax.Array] = all_pairs) -> LossFn:
    """Return the objective of `Rankings`, mean over the prompts.

    Args:
      lm: the language model the reward model is built on.
      loss: of a row's scores, ranks and mask: `losses.all_pairs`, which leaves ties out, or
        `losses.plackett_luce`, which draws them together.

    Source: Ouyang et al. 2022, eq. 1; docs/lectures.md (F6).
    """
    row_loss = loss

    def objective(
        params: Params, frozen: Any, batch: Rankings, key: chex.PRNGKey, hparams: Any
    ) -> tuple[jax.Array, Metrics]:
        check_rows(batch, Rankings)
        scores = score_rows(lm, overlay(frozen, params), batch.prompt, batch.completions, key)
        better = (batch.ranks[:, :, None] < batch.ranks[:, None, :]).astype(jnp.float32)
        better = better * batch.mask[:, :, None] * batch.mask[:, None, :]
        gap = scores[:, :, None] - scores[:, None, :]
        return jnp.mean(jax.vmap(row_loss)(scores, batch.ranks, batch.mask)), {
            "accuracy": masked_mean((gap > 0).astype(jnp.float32), better),
            "margin": masked_mean(gap, better),
            **_spread(scores, batch.mask),
        }

    return objective


def rating_objective(lm: LanguageModel) -> LossFn:
    """Return the objective of `Ratings` by score: `losses.score_regression`, mean over the rows.

    The model learns its rows' scale; `feedback.standardise_ratings` first takes the annotators' own away.

    Source: docs/lectures.md (F8).
    """

    def loss(
        params: Params, frozen: Any, batch: Ratings, key: chex.PRNGKey, hparams: Any
    ) -> tuple[jax.Array, Metrics]:
        scores = _score_ratings(lm, overlay(frozen, params), batch, key)
        value = jnp.mean(score_regression(scores, batch.value))
        return value, {"rmse": jnp.sqrt(2.0 * value), **_spread(scores)}

    return loss


def label_objective(lm: LanguageModel) -> LossFn:
    """Return the objective of `Ratings` by label: `losses.binary_label`, mean over the rows.

    Source: docs/lectures.md (F8).
    """

    def loss(
        params: Params, frozen: Any, batch: Ratings, key: chex.PRNGKey, hparams: Any
    ) -> tuple[jax.Array, Metrics]:
        scores = _score_ratings(lm, overlay(frozen, params), batch, key)
        right = (scores > 0) == (batch.value > 0.5)
        return jnp.mean(binary_label(scores, batch.value)), {
            "accuracy": jnp.mean(right.astype(jnp.float32)),
            **_spread(scores),
        }

    return loss


def _score_ratings(lm: LanguageModel, params: Params, batch: Ratings, key: chex.PRNGKey) -> jax.Array:
    check_rows(batch, Ratings)
    one = jax.tree.map(lambda x: x[:, None], batch.completion)
    return score_rows(lm, params, batch.prompt, one, key)[:, 0]


def _spread(scores: jax.Array, mask: jax.Array | None = None) -> Metrics:
    mask = jnp.ones(scores.shape) if mask is None else mask
    return {
        "mean_reward": masked_mean(scores, mask),
        "min_reward": jnp.min(jnp.where(mask > 0, scores, jnp.inf)),
        "max_reward": jnp.max(jnp.where(mask > 0, scores, -jnp.inf)),
    }


def make_reward_learner(
    lm: LanguageModel,
    sample: Sampler | None = None,
    *,
    objective: LossFn | None = None,
    total_steps: int | None = None,
    warmup_steps: int = 0,
    optimizer: optax.GradientTransformation | None = None,
) -> Learner:
    """Build the learner that fits a reward model to feedback.

    Args:
      lm: the language model the reward model is built on.
      sample: `key -> batch` of what the objective reads.
      objective: one of this module's; None is `comparison_objective(lm)`.
      total_steps: the learning rate falls linearly to 0 over this many steps.
      warmup_steps: it first rises over this many.
      optimizer: an update rule without its learning rate.

    Returns:
      A `Learner` over `{"lm", "head"}`, or a part of it laid over `frozen`, with metrics `loss`, those of the
      objective (`accuracy`, `margin`, `rmse`), `mean_reward`, `min_reward`, `max_reward`, ...

    Raises:
      ValueError: if a sampled token lies outside the model's vocabulary; at trace time, for rows of another
        kind than the objective's.
    """
    if sample is not None:
        check_text_tokens(lm, sample(jax.random.key(0)))

    def init_params(key: chex.PRNGKey) -> Params:
        key_lm, key_head = jax.random.split(key)
        return init_reward_params(key_head, lm, lm.init(key_lm))

    return make_gradient_learner(
        init_params,
        objective or comparison_objective(lm),
        sample,
        optimizer=optimizer,
        total_steps=total_steps,
        warmup_steps=warmup_steps,
    )


def flip_chances(batch: Comparisons, label_smoothing: Numeric) -> jax.Array:
    """Return the chance [B] that each label is wrong: flipped by the row's own chance, then by another."""
    own = jnp.zeros(len(batch.prompt.tokens)) if batch.flip_chance is None else batch.flip_chance
    return own + label_smoothing * (1.0 - 2.0 * own)


def check_rows(batch: Any, kind: type) -> None:
    """Raise ValueError for a batch of another kind of feedback than an objective reads."""
    if not isinstance(batch, kind):
        raise ValueError(
            f"a batch of this objective must be {kind.__name__}; got {type(batch).__name__}; each kind of "
            "feedback has its own, objective="
        )


def check_text_tokens(lm: LanguageModel, batch: Any) -> None:
    """Raise ValueError for a token outside the vocabulary in any text of a batch."""
    found = jax.tree.leaves(batch, is_leaf=lambda x: isinstance(x, PaddedTokens))
    for texts in (x for x in found if isinstance(x, PaddedTokens)):
        check_tokens("tokens", texts.tokens, lm.config.vocab_size)
