"""Attention's arithmetic, of one sequence: among its tokens, and to a cache and a prefix beside them."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.nets.transformer_config import TransformerConfig


class Cache(NamedTuple):
    """Keys and values of the tokens read so far, each leaf [layers, kv_heads, slots, depth]."""

    key: jax.Array
    value: jax.Array
    prefix: Any = None
    """Keys and values of the virtual tokens, a `Cache` that all rows of a batch share; None before they were
    read, or where the parameters have none."""


def attend_own(
    query: jax.Array, key: jax.Array, value: jax.Array, attend: jax.Array | None, config: TransformerConfig
) -> jax.Array:
    """Return [L, heads, depth] of tokens that read each other: all before them, or where `attend` [L, L]."""
    mask = None if attend is None else attend[None]
    if config.attention == "cudnn":
        return _attend_cudnn(query, key, value, mask, config)
    attention = functools.partial(
        jax.nn.dot_product_attention,
        mask=mask,
        scale=config.attention_scale,
        is_causal=mask is None,
        implementation="xla",
    )
    return jax.checkpoint(attention, prevent_cse=False)(query, key, value)


def _attend_cudnn(
    query: jax.Array, key: jax.Array, value: jax.Array, mask: jax.Array | None, config: TransformerConfig
) -> jax.Array:
    """Return the same from cuDNN's kernel, which keeps nothing in between for the backward pass.

    Under `vmap` JAX wants the mask of every head, and the gradient an even length. The token that fills an
    odd one up stands last, where no other reads it.
    """
    length, heads = query.shape[:2]
    odd = length % 2
    fill = lambda x: jnp.pad(x, ((0, odd), (0, 0), (0, 0)))
    if mask is not None:
        mask = jnp.pad(mask, ((0, 0), (0, odd), (0, odd)))
        mask = jnp.broadcast_to(mask, (heads, *mask.shape[1:]))
    read = jax.nn.dot_product_attention(
        fill(query),
        fill(key),
        fill(value),
        mask=mask,
        scale=config.attention_scale,
        is_causal=mask is None,
        implementation="cudnn",
    )
    return read[:length]


def attend_all(query: jax.Array, places: Sequence[tuple[Cache, jax.Array]], scale: float) -> jax.Array:
    """Return one softmax's mean of values in several places: a prefix, a cache, and the tokens themselves.

    Writing the tokens to the cache first would copy it in every layer, and a prefix in it for every row.

    Args:
      query: [L, heads, depth].
      places: keys and values [kv_heads, S, depth], each place with [L, S] True where a token may read a slot;
        the last are the tokens' own, each of which may read itself.
      scale: factor on the products of queries and keys.

    Returns:
      [L, heads, depth].
    """
    length, heads, depth = query.shape
    kv_heads = places[0][0].key.shape[0]
    if length == 1 and query.dtype == jnp.bfloat16:
        return attend_one(query.reshape(kv_heads, -1, depth), places, scale).reshape(1, heads, depth)
    # The queries that share a key stand side by side: plain products of matrices, one for each key's head.
    query = jnp.swapaxes(query.reshape(length, kv_heads, -1, depth), 0, 1).reshape(kv_heads, -1, depth)
    product = functools.partial(jnp.einsum, preferred_element_type=jnp.float32)
    scores = [
        jnp.where(
            jnp.repeat(attend, heads // kv_heads, axis=0)[None],
            product("kqd,ksd->kqs", query, read.key) * scale,
            -0.7 * jnp.finfo(jnp.float32).max,
        )
        for read, attend in places
    ]
    weight = jax.nn.softmax(jnp.concatenate(scores, -1)).astype(query.dtype)
    parts = jnp.split(weight, np.cumsum([attend.shape[1] for _, attend in places])[:-1], -1)
    sums = (product("kqs,ksd->kqd", part, read.value) for part, (read, _) in zip(parts, places, strict=True))
    summed = functools.reduce(jnp.add, sums).astype(query.dtype).reshape(kv_heads, length, -1, depth)
    return jnp.swapaxes(summed, 0, 1).reshape(length, heads, depth)


def attend_one(query: jax.Array, places: Sequence[tuple[Cache, jax.Array]], scale: float) -> jax.Array:
    """Return `attend_all` of one token, multiplied and summed element by element in float32.

    A GPU then reads the cache where it lies; its matrix products want a copy of each layer's part first. And
    CPUs have no such products of bfloat16 numbers.

    Args:
      query: [kv_heads, heads / kv_heads, depth].
      places: as `attend_all` takes them, L = 1.
      scale: factor on the products of queries and keys.

    Returns:
      [kv_heads, heads / kv_heads, depth] of query's dtype.
    """
    low = -0.7 * jnp.finfo(jnp.float32).max
    scores = [jnp.where(attend, _compare_one(query, read.key) * scale, low) for read, attend in places]
    top = functools.reduce(jnp.maximum, (jnp.max(score, -1, keepdims=True) for score in scores))
    weights = [jnp.exp(score - top) for score in scores]
    sums = (_mix_one(weight, read.value) for weight, (read, _) in zip(weights, places, strict=True))
    total = functools.reduce(jnp.add, (jnp.sum(weight, -1, keepdims=True) for weight in weights))
    return (functools.reduce(jnp.add, sums) / total).astype(query.dtype)


# The shapes in both keep XLA from summing over the axis of layers too, one layer long: it would lay the whole
# cache out anew for every token.
def _compare_one(query: jax.Array, key: jax.Array) -> jax.Array:
    """Return the products [kv_heads, group, S] of queries [kv_heads, group, depth] and keys."""
    heads, slots, depth = key.shape
    group = query.shape[1]
    spread = jnp.broadcast_to(query[:, None], (heads, slots, group, depth)).reshape(-1, group, depth)
    flat = key.reshape(-1, 1, depth)
    scores = jnp.sum(spread.astype(jnp.float32) * flat.astype(jnp.float32), -1)
    return jnp.swapaxes(scores.reshape(heads, slots, group), 1, 2)


def _mix_one(weight: jax.Array, value: jax.Array) -> jax.Array:
    """Return the sums [kv_heads, group, depth] of values [kv_heads, S, depth] by weights."""
    heads, slots, depth = value.shape
    halves = value.reshape(heads, 1, slots, -1, depth // (2 - depth % 2)).astype(jnp.float32)
    return jnp.sum(weight[..., None, None] * halves, 2).reshape(heads, -1, depth)
