"""Attention's arithmetic, of one sequence: among its tokens, and to a cache and a prefix beside them."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

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
    if config.attention == "cudnn":
        return _attend_cudnn(query, key, value, None if attend is None else attend[None], config)
    if attend is None:
        attend = jnp.tril(jnp.ones((query.shape[0], query.shape[0]), bool))
    own = Cache(jnp.swapaxes(key, 0, 1), jnp.swapaxes(value, 0, 1))
    return attend_all(query, [(own, attend)], config.scale)


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

    Writing the tokens to the cache first would copy it in every layer, and a prefix in it for every row. It
    has a reverse derivative of its own, so `jax.jvp` of it is refused.

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
    keys, values = zip(*((read.key, read.value) for read, _ in places), strict=True)
    far = -0.7 * jnp.finfo(jnp.float32).max
    biases = tuple(
        far * (1.0 - jnp.repeat(attend, heads // kv_heads, axis=0).astype(jnp.float32))
        for _, attend in places
    )
    mixed = _attend(query, keys, values, biases, scale).reshape(kv_heads, length, -1, depth)
    return jnp.swapaxes(mixed, 0, 1).reshape(length, heads, depth)


_product = functools.partial(jnp.matmul, preferred_element_type=jnp.float32)


def _compare(query: jax.Array, key: jax.Array, bias: jax.Array, scale: float) -> jax.Array:
    """Return `scale q k + bias` [kv_heads, Q, S]."""
    return _product(query, jnp.swapaxes(key, 1, 2)) * scale + bias[None]


@functools.partial(jax.custom_vjp, nondiff_argnums=(4,))
def _attend(
    query: jax.Array,
    keys: tuple[jax.Array, ...],
    values: tuple[jax.Array, ...],
    biases: tuple[jax.Array, ...],
    scale: float,
) -> jax.Array:
    """Return [kv_heads, Q, depth]: `softmax(scale q k + bias) v` over all places' slots at once."""
    return _attend_forward(query, keys, values, biases, scale)[0]


def _attend_forward(query: jax.Array, keys: Any, values: Any, biases: Any, scale: float) -> tuple[Any, Any]:
    scores = [_compare(query, key, bias, scale) for key, bias in zip(keys, biases, strict=True)]
    top = functools.reduce(jnp.maximum, (jnp.max(score, -1, keepdims=True) for score in scores))
    weights = [jnp.exp(score - top) for score in scores]
    total = functools.reduce(jnp.add, (jnp.sum(weight, -1, keepdims=True) for weight in weights))
    sums = (_product(w.astype(value.dtype), value) for w, value in zip(weights, values, strict=True))
    mixed = (functools.reduce(jnp.add, sums) / total).astype(query.dtype)
    return mixed, (query, keys, values, biases, mixed, top + jnp.log(total))


# The weights are computed again from the scores and the softmax's level, and their gradient's mean from what
# they mixed (Dao et al. 2022, appendix B.2): no sum over the slots, which took XLA's CPU backend as long as
# all products. Nothing as large as the weights is transposed.
def _attend_backward(scale: float, kept: Any, grad: jax.Array) -> tuple[Any, ...]:
    query, keys, values, biases, mixed, level = kept
    mean = jnp.sum(grad.astype(jnp.float32) * mixed.astype(jnp.float32), -1, keepdims=True)
    across = lambda rows, weights: jnp.swapaxes(_product(jnp.swapaxes(rows, 1, 2), weights), 1, 2)
    at_query, at_keys, at_values = jnp.zeros((), jnp.float32), [], []
    for key, value, bias in zip(keys, values, biases, strict=True):
        weight = jnp.exp(_compare(query, key, bias, scale) - level)
        at_score = weight * (_product(grad, jnp.swapaxes(value, 1, 2)) - mean)
        at_score = (at_score * scale).astype(query.dtype)
        at_query = at_query + _product(at_score, key)
        at_keys.append(across(query, at_score).astype(key.dtype))
        at_values.append(across(grad, weight.astype(grad.dtype)).astype(value.dtype))
    return at_query.astype(query.dtype), tuple(at_keys), tuple(at_values), None


_attend.defvjp(_attend_forward, _attend_backward)


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
