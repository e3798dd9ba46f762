"""A decoder-only transformer language model with a key-value cache.

One `TransformerConfig` covers GPT-2 (its default), Llama, Qwen, Mistral, Gemma 3, SmolLM3 and OLMo 2, and
each part can be left out.

The functions work on ONE sequence, the caller vmaps. A sequence may be padded anywhere: `mask` says which
tokens are real, positions count real tokens only, and no token attends to padding, so a real token's output
does not depend on how its sequence was padded. The layers are stacked: every leaf under `layers` has a
leading axis [layers], which one scan runs through.
"""

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from jaxrl_align.nets.adapters import overlay
from jaxrl_align.nets.blocks import Cache, Decoder, Places
from jaxrl_align.nets.kinds import Tuning
from jaxrl_align.nets.sharding import place_weights
from jaxrl_align.nets.transformer_config import TransformerConfig
from jaxrl_align.types import Numeric, Params

SHARED = -1
"""Segment of the tokens that all documents of a row begin with, but that stand there once."""


class LanguageModel(NamedTuple):
    """A language model as pure functions; `params` is a plain dict of arrays."""

    config: TransformerConfig
    init: Callable[[chex.PRNGKey], Params]
    encode: Callable[..., tuple[jax.Array, Any]]
    """`(params, tokens[L], mask=None, cache=None, start=0, positions=None, segments=None)
    -> (hidden, cache)`.

    Without a cache, `mask` [L] covers the tokens; None, all are real. With one, the tokens are written to its
    slots `start, ...`, `mask` covers all of its slots, and `positions` [L] must be given.

    Several documents may be packed into one sequence, one behind the other, without a cache: `segments` [L]
    int numbers them, no token reads another document and positions restart with each. What is numbered
    `SHARED`, for example the prompt of several completions, stands first, and every document goes on from it.

    Virtual tokens in the parameters (`init_prompt`, `init_prefix`) come before all others and count as
    positions. They do not depend on the tokens, so under `vmap` over rows they are read once for all rows; a
    cache keeps them, so that generation reads them once.

    `hidden` is [L, width], after the last norm.
    """
    logits: Callable[[Params, jax.Array], jax.Array]
    """`(params, hidden[..., width]) -> [..., vocab_size]`, float32."""
    init_cache: Callable[[int], Cache]
    """`length -> Cache` of zeros."""


def positions_of(mask: jax.Array, segments: jax.Array | None = None) -> jax.Array:
    """Return each token's position, the number of real tokens before it: an exclusive cumulative sum.

    Args:
      mask: [L] 1 for a real token, 0 for padding.
      segments: [L] int, the number of the document that a token belongs to, each document in one piece; the
        count restarts with every document, or goes on from the tokens that are `SHARED`.

    Returns:
      [L] int32, 0 for padding.
    """
    mask = mask.astype(jnp.int32)
    before = jnp.cumsum(mask) - mask
    if segments is not None:
        chex.assert_equal_shape([mask, segments])
        # The count never falls, so its running maximum over the documents' starts is the last start's.
        begins = jnp.concatenate([jnp.zeros(1, bool), segments[1:] != segments[:-1]])
        before = before - jax.lax.cummax(jnp.where(begins, before, 0))
        shared = segments == SHARED
        before = before + jnp.where(shared, 0, jnp.sum(mask * shared))
    return before * mask


def make_transformer(config: TransformerConfig) -> LanguageModel:
    """Build the language model of a configuration.

    Args:
      config: the model's shape.

    Returns:
      A `LanguageModel` of pure functions.
    """
    decoder: Any = Decoder(config)

    def init(key: chex.PRNGKey) -> Params:
        one = jnp.zeros(1, jnp.int32)
        return decoder.init(key, one, one, Places(), None, 0)["params"]

    def encode(
        params: Params,
        tokens: jax.Array,
        mask: jax.Array | None = None,
        cache: Cache | None = None,
        start: Numeric = 0,
        positions: jax.Array | None = None,
        segments: jax.Array | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        chex.assert_rank(tokens, 1)
        if cache is None:
            slots = jnp.ones(tokens.shape, jnp.int32) if mask is None else mask
            chex.assert_equal_shape([tokens, slots])
            positions = positions_of(slots, segments) if positions is None else positions
        elif positions is None or mask is None:
            raise ValueError("encode with a cache needs the tokens' positions and the mask of its slots")
        elif segments is not None:
            raise ValueError("packed documents have no cache; pass segments without one, or one document")
        else:
            slots = mask
        prefix = read_prefix(config, params) if cache is None or cache.prefix is None else cache.prefix
        places = Places()
        if not (mask is None and segments is None and config.window is None and prefix is None):
            attend, near = reachable(config, slots, tokens.shape[0], start, segments)
            places = Places(attend, near) if cache is None else around(attend, near, start)
        if prefix is not None:
            count = prefix.key.shape[2]
            positions = positions + count
            away = positions[:, None] - jnp.arange(count)[None]
            places = places._replace(near_prefix=away < (config.window or jnp.inf))
        return decoder.apply({"params": params}, tokens, positions, places, cache, start, prefix)

    def logits(params: Params, hidden: jax.Array) -> jax.Array:
        name = "tokens" if config.tied_head else "head"
        head = place_weights(params[name], name)
        head = (head.T if config.tied_head else head).astype(config.dtype)
        hidden = hidden.astype(config.dtype)
        if config.dtype == "float32":
            return _multiply(hidden, head)
        # A GPU's large products are slow where rows are no multiple of 16 bytes, as GPT-2's 50,257 logits are
        # not. For one token the head's copy would cost more.
        if hidden.ndim > 1 and hidden.shape[-2] > 1:
            head = jnp.pad(head, ((0, 0), (0, -config.vocab_size % 128)))
        return _multiply_narrow(hidden, head)[..., : config.vocab_size]

    return LanguageModel(config, init, encode, logits, lambda length: init_cache(config, length))


def _multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return jnp.matmul(x, kernel, preferred_element_type=jnp.float32)


@jax.custom_jvp
def _multiply_narrow(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return the product in float32, whose gradient enters its own products in x's dtype.

    By itself it would stay in float32, and two thirds of the work with a large vocabulary run at the rate of
    float32.
    """
    return _multiply(x, kernel)


@functools.partial(_multiply_narrow.defjvp, symbolic_zeros=True)
def _push_product(primals: tuple[jax.Array, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, Any]:
    (x, kernel), (dx, dkernel) = primals, tangents
    # What stays fixed, as a frozen head, adds nothing and is not multiplied.
    pairs = [(dx, kernel)] * (not isinstance(dx, SymbolicZero))
    pairs += [(x, dkernel)] * (not isinstance(dkernel, SymbolicZero))
    y = _multiply(x, kernel)
    moved = [jnp.matmul(*pair).astype(jnp.float32) for pair in pairs]
    return y, functools.reduce(jnp.add, moved) if moved else jnp.zeros_like(y)


def init_cache(config: TransformerConfig, length: int) -> Cache:
    """Return a cache of zeros with that many slots."""
    shape = (config.layers, config.kv_heads, length, config.depth)
    return Cache(jnp.zeros(shape, config.dtype), jnp.zeros(shape, config.dtype))


def read_prefix(config: TransformerConfig, params: Params) -> Cache | None:
    """Return the keys and values of the virtual tokens, each [layers, kv_heads, n, depth], if any."""
    own = params["layers"].get("prefix")
    if "prompt" in params and own is not None:
        raise ValueError("params must have a prompt or a prefix; got both; leave one out")
    if own is not None:
        split = lambda x: x.astype(config.dtype).reshape(*x.shape[:2], config.kv_heads, config.depth)
        return Cache(*(jnp.swapaxes(split(own[name]), 1, 2) for name in ("key", "value")))
    if "prompt" not in params:
        return None
    table = params["prompt"]["table"]
    count = table.shape[0]
    # A vocabulary of their own, of which each is read once.
    virtual: Any = Decoder(replace(config, vocab_size=count, tied_head=True))
    tokens, places = jnp.arange(count), Places(*reachable(config, jnp.ones(count), count, 0, None))
    read = {"params": {**params, "tokens": table}}
    return virtual.apply(read, tokens, tokens, places, init_cache(config, count), 0)[1]


def reachable(
    config: TransformerConfig,
    mask: jax.Array,
    length: int,
    start: Numeric,
    segments: jax.Array | None,
) -> tuple[jax.Array, jax.Array | None]:
    """Return which slots [S] each of `length` tokens from slot `start` on may read.

    Args:
      config: says whether all, some or no layers have a window.
      mask: [S] 1 where a slot holds a real token.
      length: L.
      start: slot of the first token.
      segments: [S] number of each slot's document, or None.

    Returns:
      `(attend, near)`, [L, S] bool: what a token may read, and what lies within the window where only some
      layers have one, otherwise None.
    """
    query_slot = start + jnp.arange(length)[:, None]
    key_slot = jnp.arange(mask.shape[0])[None, :]
    real = (mask > 0)[None, :]
    if segments is not None:
        real = real & ((segments[:, None] == segments[None, :]) | (segments[None, :] == SHARED))
    # A padded token reads itself, so that its softmax has something to sum and stays finite.
    itself = key_slot == query_slot
    attend = ((key_slot <= query_slot) & real) | itself
    if config.window is None:
        return attend, None
    count = positions_of(mask > 0, segments)
    here = jax.lax.dynamic_slice_in_dim(count, start, length)
    near = (here[:, None] - count[None, :] < config.window) | itself
    return (attend & near, None) if config.window_layers is None else (attend, near)


def around(attend: jax.Array, near: jax.Array | None, start: Numeric) -> Places:
    """Split attention masks [L, S] into their columns for the new tokens and for the cache before `start`."""
    length, slots = attend.shape
    own = lambda m: None if m is None else jax.lax.dynamic_slice_in_dim(m, start, length, 1)
    if isinstance(start, int):  # known when it is compiled: only the slots before it are read, a prompt none
        before = lambda m: None if m is None or start == 0 else m[:, :start]
        return Places(own(attend), own(near), before(attend), before(near))
    return Places(own(attend), own(near), attend & (jnp.arange(slots) < start)[None], near)


def init_prompt(
    key: chex.PRNGKey,
    params: Params,
    *,
    length: int = 20,
    start: Sequence[int] | Literal["vocabulary", "random"] = "vocabulary",
) -> Tuning:
    """Return a prompt of virtual tokens that every sequence begins with: prompt tuning.

    It changes what the model says from the start, as any prompt does, and takes `length` of its context.
    (Lester et al. 2021, arXiv:2104.08691: it needs large models.)

    Args:
      key: the draw.
      params: a language model's.
      length: number of virtual tokens; at least 1.
      start: tokens whose embeddings they start from, repeated or cut to `length`; "vocabulary", tokens
        drawn at random; "random", U(-0.5, 0.5), for comparison.

    Returns:
      A `Tuning` of `{"prompt": {"table": [length, width]}}`.

    Raises:
      ValueError: if length is below 1, or start names no token of the vocabulary.
    """
    if length < 1:
        raise ValueError(f"length must be at least 1; got {length}; 20 is usual")
    table = params["tokens"]
    size, width = table.shape
    if isinstance(start, str):
        if start not in ("vocabulary", "random"):
            raise ValueError(f'start must be "vocabulary", "random" or tokens; got {start!r}; encode a text')
        tokens = jax.random.randint(key, (length,), 0, size)
    elif not len(start) or not all(0 <= token < size for token in start):
        raise ValueError(f"start must hold tokens from 0 to {size - 1}; got {list(start)}")
    else:
        tokens = jnp.resize(jnp.asarray(start), (length,))
    drawn = lambda: jax.random.uniform(key, (length, width), table.dtype, -0.5, 0.5)
    return Tuning({"prompt": {"table": drawn() if start == "random" else table[tokens]}}, {})


def init_prefix(lm: LanguageModel, params: Params, prompt: Params) -> Tuning:
    """Return the keys and values of a prompt in every layer, to be trained themselves: prefix tuning.

    It starts as that prompt does. (Li & Liang 2021, arXiv:2101.00190.) Frozen, it is a text that many
    sequences share, read once for all of them.

    Args:
      lm: the language model.
      params: its parameters.
      prompt: what `init_prompt` returned as its part; of given tokens it is the same as reading these.

    Returns:
      A `Tuning` of `{"layers": {"prefix": {"key", "value"}}}`, each [layers, length, kv_heads * depth]; keys
      are as attention compares them, after norms and rotation.
    """
    one = jnp.zeros(1, jnp.int32)
    prefix = lm.encode(overlay(params, prompt), one, one + 1, lm.init_cache(1), 0, one)[1].prefix
    flat = lambda x: jnp.swapaxes(x, 1, 2).reshape(x.shape[0], x.shape[2], -1)
    return Tuning({"layers": {"prefix": {"key": flat(prefix.key), "value": flat(prefix.value)}}}, {})


def init_scalar_head(key: chex.PRNGKey | None, width: int) -> dict[str, Any]:
    """Return a scalar read-out of the hidden state: a reward head drawn from N(0, 1 / (width + 1)), bias 0.

    Args:
      key: source of the draw; None starts at zero, as a value head does.
      width: the hidden state's width.
    """
    drawn = jnp.zeros(width) if key is None else jax.random.normal(key, (width,)) / (width + 1) ** 0.5
    return {"kernel": drawn, "bias": jnp.zeros(())}


def apply_scalar_head(head: dict[str, Any], hidden: jax.Array) -> jax.Array:
    """Map hidden states [..., width] to scalars [...]."""
    return hidden @ head["kernel"] + head["bias"]
