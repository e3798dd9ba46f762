"""Queries with their responses, and what a text actor refuses before anything is compiled."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.checks import check_tokens
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.placement import place_rows
from jaxrl_align.text.generation import TextConfig
from jaxrl_align.types import PaddedTokens, Params, Sampler


def join(prompt: PaddedTokens, response: jax.Array, mask: jax.Array) -> PaddedTokens:
    """Return the query and its response as one sequence [P + T].

    Args:
      prompt: [P] left-padded.
      response: [T] right-padded.
      mask: [T] 1 for a real response token.
    """
    return PaddedTokens(jnp.concatenate([prompt.tokens, response]), jnp.concatenate([prompt.real, mask]))


def _known(x: Any) -> bool:
    """Return whether a value can be looked at, as it cannot be while a program is traced."""
    return not isinstance(x, jax.core.Tracer)


def check_prompts(lm: LanguageModel, config: TextConfig, prompts: Any) -> PaddedTokens:
    """Return the prompts [B, P]; raise ValueError unless they are left-padded tokens of the vocabulary."""
    length = config.prompt_length
    if not isinstance(prompts, PaddedTokens):
        raise ValueError(
            f"prompts must be PaddedTokens(tokens, real) of [B, {length}]; got "
            f"{getattr(prompts, 'dtype', type(prompts).__name__)} {np.shape(prompts)}; left_pad makes them"
        )
    (shape, other), kind = map(np.shape, prompts), jnp.asarray(prompts.tokens).dtype
    if shape != other or shape[1:] != (length,) or not shape[0] or not jnp.issubdtype(kind, jnp.integer):
        raise ValueError(
            f"prompts must be integers and their mask, each [B, {length}], B >= 1; got {kind} {shape} and "
            f"{other}; pad or cut them"
        )
    if _known(prompts.tokens) and _known(prompts.real):
        check_tokens("tokens of prompts", prompts.tokens, lm.config.vocab_size)
        real = np.asarray(prompts.real)
        if wrong := np.flatnonzero((real[:, -1] != 1) | (np.diff(real, axis=1) < 0).any(1)).tolist():
            raise ValueError(
                "every prompt must be padding, then at least one token; got holes, or none at its end, in "
                f"rows {wrong[:5]}; left_pad makes them"
            )
    return prompts


def draw_prompts(
    lm: LanguageModel, config: TextConfig, sample: Sampler | None, key: chex.PRNGKey, given: Any
) -> PaddedTokens:
    """Return the prompts [B, P] of a rollout: those that were given, or else drawn ones."""
    if given is None:
        if sample is None:
            raise ValueError("this actor has no prompts; pass step(state, batch), or give sample_prompts")
        given = sample(key)
    return place_rows(check_prompts(lm, config, given))


def check_fits(lm: LanguageModel, config: TextConfig, critic: LanguageModel | None) -> None:
    """Raise ValueError for lengths and tokens that the policy, or a critic of its own trunk, cannot read."""
    for name, model in {"the context": lm, "the critic's context": critic}.items():
        if model is not None and config.prompt_length + config.response_length > model.config.context:
            raise ValueError(
                f"prompt and response must fit {name}; got prompt_length={config.prompt_length} + "
                f"response_length={config.response_length} > context={model.config.context}; shorten one of "
                "them"
            )
    if critic is not None and critic.config.vocab_size < lm.config.vocab_size:
        raise ValueError(
            f"the critic must know every token of the policy; got vocab_size={critic.config.vocab_size} < "
            f"{lm.config.vocab_size}; take a reward model of the policy's tokenizer"
        )
    for name, token in config.special_tokens:
        if not 0 <= token < lm.config.vocab_size:
            raise ValueError(
                f"{name} must lie in the vocabulary; got {token}, vocab_size={lm.config.vocab_size}; pass "
                f"the tokenizer's {name}"
            )


def check_critic(params: Params, critic: LanguageModel | None) -> None:
    """Raise ValueError unless the parameters have the kind of critic that the actor was built for."""
    wanted, trunk = ("value", "shared") if critic is None else ("critic", "separate")
    if params.keys() != {"lm", wanted}:
        raise ValueError(
            f"params must hold lm and {wanted}; got {', '.join(sorted(params))}; start from init_policy(..., "
            f"trunk={trunk!r}), or build the learner with{'' if critic is None else 'out'} a critic"
        )
