"""Several completions of one prompt, read side by side in one row: the prompt is computed once for all."""

import jax
import jax.numpy as jnp

from jaxrl_align.losses import token_log_prob
from jaxrl_align.nets.transformer import SHARED, LanguageModel
from jaxrl_align.types import PaddedTokens, Params


def encode_completions(
    lm: LanguageModel, params: Params, prompt: PaddedTokens, completions: PaddedTokens
) -> jax.Array:
    """Return the hidden states of ONE prompt and of its K completions, none of which reads another.

    Args:
      lm: the language model.
      params: its parameters.
      prompt: [P] padded anywhere.
      completions: [K, C] padded anywhere.

    Returns:
      [P + K C, width]: the prompt's, then those of each completion.
    """
    count, length = completions.real.shape
    tokens, real = (jnp.concatenate([p, c.reshape(-1)]) for p, c in zip(prompt, completions, strict=True))
    segments = jnp.concatenate([jnp.full(prompt.real.shape, SHARED), jnp.repeat(jnp.arange(count), length)])
    return lm.encode(params, tokens, real, segments=segments if count > 1 else None)[0]


def completion_log_probs(
    lm: LanguageModel, params: Params, prompt: PaddedTokens, completions: PaddedTokens
) -> jax.Array:
    """Return the log-probability of every token of K completions of ONE prompt, which is computed once.

        log p(y_t | x, y_{<t}),   read from the hidden state of the real token before: for a completion's
        first one, the prompt's last

    Logits are computed for completions alone.

    Args:
      lm: the language model.
      params: its parameters.
      prompt: [P] padded anywhere, with a real token.
      completions: [K, C] padded anywhere.

    Returns:
      [K, C] nats, 0 for padding; summed over C, that of each completion.
    """
    hidden = encode_completions(lm, params, prompt, completions)
    before = _places_before(prompt, completions).reshape(-1)
    log_prob = token_log_prob(lm.logits(params, hidden[before]), completions.tokens.reshape(-1))
    return jnp.where(completions.real > 0, log_prob.reshape(completions.real.shape), 0.0)


def last_place(real: jax.Array) -> jax.Array:
    """Return the index [] of the last real token of a mask [L], 0 where there is none."""
    return jnp.max(jnp.where(real > 0, jnp.arange(real.shape[0]), 0))


def _places_before(prompt: PaddedTokens, completions: PaddedTokens) -> jax.Array:
    """Return where in the row of `encode_completions` the real token before each token stands, [K, C]."""
    count, length = completions.real.shape
    own = jax.lax.cummax(jnp.where(completions.real > 0, jnp.arange(length)[None], -1), axis=1)
    own = jnp.pad(own[:, :-1], ((0, 0), (1, 0)), constant_values=-1)
    start = prompt.real.shape[0] + length * jnp.arange(count)[:, None]
    return jnp.where(own < 0, last_place(prompt.real), start + own)
