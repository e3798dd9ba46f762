"""A reward model: a language model with a scalar head, trained on comparisons.

The score is read at the last real token of a query and its response, `gain * (w h + b) + bias`; gain and bias
are fitted once, so that scores have mean 0 and deviation 1 on the reference policy's samples (Stiennon et al.
2020, arXiv:2009.01325), and are saved with the model.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxrl_align.learner import make_gradient_learner
from jaxrl_align.losses import bradley_terry
from jaxrl_align.nets.adapters import overlay, with_dropout
from jaxrl_align.nets.transformer import LanguageModel, apply_scalar_head, init_scalar_head
from jaxrl_align.types import Answers, Comparisons, Learner, Metrics, Numeric, Params, Sampler


class RewardModel(NamedTuple):
    """A scoring network and the affine map that normalises it."""

    params: Params
    """`{"lm": ..., "head": ...}`."""
    gain: Any = 1.0
    bias: Any = 0.0


class RewardHParams(NamedTuple):
    """The traced scalars of reward-model training."""

    learning_rate: Numeric = 3e-4


def init_reward_params(key: chex.PRNGKey, lm: LanguageModel, lm_params: Params) -> Params:
    """Return the parameters of a reward model that starts from a language model, its head drawn afresh."""
    return {"lm": lm_params, "head": init_scalar_head(key, lm.config.width)}


def score(lm: LanguageModel, model: RewardModel, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the reward of ONE sequence, read at its last real token.

    Args:
      lm: the language model the reward model is built on.
      model: network and normalisation.
      tokens: [L] query and response, padded anywhere.
      mask: [L] 1 for a real token.

    Returns:
      [] float32.
    """
    hidden, _ = lm.encode(model.params["lm"], tokens, mask)
    last = jnp.max(jnp.where(mask > 0, jnp.arange(mask.shape[0]), 0))
    return model.gain * apply_scalar_head(model.params["head"], hidden[last]) + model.bias


def normalise_scores(
    lm: LanguageModel, model: RewardModel, tokens: jax.Array, mask: jax.Array
) -> RewardModel:
    """Return the model with the gain and bias that give these samples mean 0 and deviation 1.

    Args:
      lm: the language model the reward model is built on.
      model: whatever its normalisation so far.
      tokens: [N, L] samples of the reference policy, N >= 2.
      mask: [N, L].
    """
    raw = jax.vmap(lambda t, m: score(lm, RewardModel(model.params), t, m))(tokens, mask)
    gain = 1.0 / jnp.maximum(jnp.std(raw), 1e-6)
    return RewardModel(model.params, gain, -jnp.mean(raw) * gain)


def pair_answers(a: Answers, b: Answers, first: jax.Array) -> Comparisons:
    """Return comparisons of answers [..., L]; `first` [...] says where the annotator preferred a."""
    first = jnp.asarray(first)[..., None]
    choose = lambda yes, no: jax.tree.map(lambda x, y: jnp.where(first, x, y), yes, no)
    return Comparisons(choose(a, b), choose(b, a))


def score_margins(lm: LanguageModel, model: RewardModel, data: Comparisons) -> jax.Array:
    """Return `score(chosen) - score(rejected)` [N]; the share above 0 is the model's accuracy."""
    read = jax.vmap(lambda t, m: score(lm, model, t, m))
    return read(data.chosen.tokens, data.chosen.real) - read(data.rejected.tokens, data.rejected.real)


def make_reward_learner(
    lm: LanguageModel,
    sample: Sampler | None = None,
    *,
    total_steps: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> Learner:
    """Build the learner that fits a reward model to comparisons (Bradley & Terry 1952; lecture F5).

    Args:
      lm: the language model the reward model is built on.
      sample: `key -> Comparisons`.
      total_steps: the learning rate falls linearly to 0 over this many steps.
      optimizer: an update rule without its learning rate.

    Returns:
      A `Learner` over `{"lm", "head"}`, or a part of it laid over `frozen`, with metrics `loss`, `accuracy`,
      `margin`, `mean_reward`, ...
    """

    def init_params(key: chex.PRNGKey) -> Params:
        key_lm, key_head = jax.random.split(key)
        return init_reward_params(key_head, lm, lm.init(key_lm))

    def loss(
        params: Params, frozen: Any, batch: Comparisons, key: chex.PRNGKey, hparams: Any
    ) -> tuple[jax.Array, Metrics]:
        whole = overlay(frozen, params)
        read = lambda t, m, key: score(lm, RewardModel(with_dropout(whole, key)), t, m)
        tokens = jnp.concatenate([batch.chosen.tokens, batch.rejected.tokens])
        mask = jnp.concatenate([batch.chosen.real, batch.rejected.real])
        scores = jax.vmap(read)(tokens, mask, jax.random.split(key, len(tokens)))
        chosen, rejected = jnp.split(scores, 2)
        return jnp.mean(bradley_terry(chosen, rejected)), {
            "accuracy": jnp.mean((chosen > rejected).astype(jnp.float32)),
            "margin": jnp.mean(chosen - rejected),
            "mean_reward": 0.5 * jnp.mean(chosen + rejected),
            "min_reward": jnp.minimum(jnp.min(chosen), jnp.min(rejected)),
            "max_reward": jnp.maximum(jnp.max(chosen), jnp.max(rejected)),
        }

    return make_gradient_learner(init_params, loss, sample, optimizer=optimizer, total_steps=total_steps)
