"""Several completions of one prompt, read side by side in one row: the prompt is computed once for all."""

from collections.abc import Mapping, Sequence

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


def read_shared_tokens(lm: LanguageModel, params: Params, tokens: Sequence[int] | jax.Array) -> Params:
    """Return parameters under which every sequence goes on from these tokens, which are read here, once.

    They come before all else, behind virtual tokens that the parameters have already, as keys and values in
    every layer that all rows of a batch share (`nets.init_prefix`), and count as positions.

    Args:
      lm: the language model.
      params: its parameters; they are not changed, and the result shares their leaves.
      tokens: [n] at least one.
    """
    tokens = jnp.asarray(tokens, jnp.int32)
    count = tokens.shape[0]
    read = lm.encode(params, tokens, jnp.ones(count), lm.init_cache(count), 0, jnp.arange(count))[1]
    both = [read[:2]] if read.prefix is None else [read.prefix[:2], read[:2]]
    key, value = (jnp.concatenate(leaves, 2) for leaves in zip(*both, strict=True))
    flat = lambda x: jnp.swapaxes(x, 1, 2).reshape(x.shape[0], x.shape[2], -1)
    without = lambda tree, left_out: {name: leaf for name, leaf in tree.items() if name != left_out}
    layers = without(params["layers"], "prefix") | {"prefix": {"key": flat(key), "value": flat(value)}}
    return without(params, "prompt") | {"layers": layers}


def count_virtual_tokens(params: Params) -> int:
    """Return how many virtual tokens come before all others: of a prompt, of a prefix, or none."""
    if not isinstance(params, Mapping):
        return 0
    if "prompt" in params:
        return params["prompt"]["table"].shape[0]
    prefix = params.get("layers", {}).get("prefix")
    return 0 if prefix is None else prefix["key"].shape[1]


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
