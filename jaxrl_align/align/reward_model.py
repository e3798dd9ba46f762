"""A reward model: a language model with a scalar head, and an affine map that normalises its scores.

The score is read at the last real token of a query and its response, `gain * (w h + b) + bias`; gain and bias
are fitted once, so that scores have mean 0 and deviation 1 on the reference policy's samples (Stiennon et al.
2020, arXiv:2009.01325), and are saved with the model. `reward_learner.py` trains it.
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.nets.adapters import overlay
from jaxrl_align.nets.transformer import LanguageModel, apply_scalar_head, init_scalar_head
from jaxrl_align.text.shared_prompt import encode_completions, last_place
from jaxrl_align.types import Comparisons, Numeric, PaddedTokens, Params


class RewardModel(NamedTuple):
    """A scoring network and the affine map that normalises it."""

    params: Params
    """`{"lm": ..., "head": ...}`."""
    gain: Any = 1.0
    bias: Any = 0.0


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
    return _read(model, hidden[last_place(mask)])


def score_completions(
    lm: LanguageModel, model: RewardModel, prompt: PaddedTokens, completions: PaddedTokens
) -> jax.Array:
    """Return the rewards of K completions of ONE prompt, which is computed once for all of them.

    They stand one behind the other in a row of P + K C tokens, and none reads another.

    Args:
      lm: the language model the reward model is built on.
      model: network and normalisation.
      prompt: [P] padded anywhere.
      completions: [K, C] padded anywhere, each with a real token.

    Returns:
      [K] float32, each as `score` of the prompt with that completion alone.
    """
    count, length = completions.real.shape
    hidden = encode_completions(lm, model.params["lm"], prompt, completions)
    starts = prompt.real.shape[0] + length * jnp.arange(count)
    return _read(model, hidden[starts + jax.vmap(last_place)(completions.real)])


def _read(model: RewardModel, hidden: jax.Array) -> jax.Array:
    return model.gain * apply_scalar_head(model.params["head"], hidden) + model.bias


def normalise_scores(
    lm: LanguageModel, model: RewardModel, prompt: PaddedTokens, completion: PaddedTokens
) -> RewardModel:
    """Return the model with the gain and bias that give these samples mean 0 and deviation 1.

    Args:
      lm: the language model the reward model is built on.
      model: whatever its normalisation so far.
      prompt: [N, P] of samples of the reference policy, N >= 2.
      completion: [N, C].
    """
    one = lambda c: jax.tree.map(lambda x: x[None], c)
    read = lambda p, c: score_completions(lm, RewardModel(model.params), p, one(c))[0]
    raw = jax.vmap(read)(prompt, completion)
    gain = 1.0 / jnp.maximum(jnp.std(raw), 1e-6)
    return RewardModel(model.params, gain, -jnp.mean(raw) * gain)


def choose_completions(
    prompt: PaddedTokens, a: PaddedTokens, b: PaddedTokens, first: jax.Array
) -> Comparisons:
    """Return comparisons of completions [..., C]; `first` [...] says where the annotator preferred a."""
    first = jnp.asarray(first)[..., None]
    choose = lambda yes, no: jax.tree.map(lambda x, y: jnp.where(first, x, y), yes, no)
    return Comparisons(prompt, choose(a, b), choose(b, a))


def stack_pair(data: Comparisons) -> PaddedTokens:
    """Return the two completions of each comparison [..., 2, C], the chosen one first."""
    return jax.tree.map(lambda *pair: jnp.stack(pair, -2), data.chosen, data.rejected)


def score_margins(
    lm: LanguageModel, model: RewardModel, data: Comparisons, *, batch_size: int = 64
) -> jax.Array:
    """Return `score(chosen) - score(rejected)` [N]; the share above 0 is the model's accuracy.

    Args:
      lm: the language model the reward model is built on.
      model: network and normalisation.
      data: N comparisons.
      batch_size: comparisons at a time.
    """
    read = lambda row: score_completions(lm, model, *row)
    scores = jax.lax.map(read, (data.prompt, stack_pair(data)), batch_size=batch_size)
    return scores[:, 0] - scores[:, 1]


def score_members(
    lm: LanguageModel, members: RewardModel, tokens: jax.Array, mask: jax.Array, base: Params | None = None
) -> jax.Array:
    """Return the rewards [E] that the members of an ensemble give to ONE sequence.

    Their deviation says how far the reward can be trusted. An ensemble is `vmap`:

        heads = jax.vmap(init_scalar_head, (0, None))(keys, lm.config.width)         # parts, here heads alone
        run = jax.vmap(train(learner, steps), (0, None, 0, None))
        state, _ = run(keys, hparams, {"head": heads}, {"lm": lm_params})

    Args:
      lm: the language model the reward models are built on.
      members: each leaf [E, ...]; their `params` may be parts.
      tokens: [L] query and response, padded anywhere.
      mask: [L] 1 for a real token.
      base: what the parts are laid over, once in memory; None, they are whole.
    """
    one = lambda model: score(lm, model._replace(params=overlay(base, model.params)), tokens, mask)
    return jax.vmap(one)(members)


def score_cautiously(
    lm: LanguageModel,
    members: RewardModel,
    tokens: jax.Array,
    mask: jax.Array,
    base: Params | None = None,
    *,
    caution: Numeric = 1.0,
) -> jax.Array:
    """Return an ensemble's mean reward [] less `caution` times the members' deviation.

    A policy that is trained on it gains nothing where the members disagree (Coste et al. 2023,
    arXiv:2310.02743). The arguments are those of `score_members`.
    """
    scores = score_members(lm, members, tokens, mask, base)
    return jnp.mean(scores) - jnp.asarray(caution) * jnp.std(scores)
