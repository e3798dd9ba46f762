"""The transformer's parts as Linen modules: linear layers with room for an adapter, attention, blocks."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_align.nets.adapters import KINDS, is_complete
from jaxrl_align.nets.rope import rope_frequencies, rotate
from jaxrl_align.nets.transformer_config import TransformerConfig


class Cache(NamedTuple):
    """Keys and values of the tokens read so far, each leaf [layers, kv_heads, slots, depth]."""

    key: chex.Array
    value: chex.Array


class Places(NamedTuple):
    """Where the tokens stand and what they may read; the same for every layer."""

    attend: chex.Array | None = None
    """[L, L] True where a token may read another; None, itself and all before it."""
    near: chex.Array | None = None
    """[L, L] True within the window, where only some layers have one; otherwise None."""
    attend_cache: chex.Array | None = None
    """[L, S] True where a token may read a slot of the cache; None, nothing is read there."""
    near_cache: chex.Array | None = None
    """[L, S], as `near`."""
    angle: chex.Array | None = None
    """[L, depth / 2] radians of rotary positions, or None."""


class Linear(nn.Module):
    """`x W + b`, and whatever adapter was laid over this place: `adapters.overlay`."""

    features: int
    stddev: float
    bias: bool

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        """Map [..., in] to [..., features] in x's dtype."""
        kernel = self.param("kernel", nn.initializers.normal(self.stddev), (x.shape[-1], self.features))
        y = x @ kernel.astype(x.dtype)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype)
            y = y + jnp.expand_dims(bias, range(x.ndim - 1))
        for name, kind in KINDS.items():
            own = self.get_variable("params", name, {})
            if is_complete(name, own):
                y = kind.apply(own, x, y)
        return y


def make_norm(config: TransformerConfig, name: str) -> Callable[[chex.Array], chex.Array]:
    """Return the configured norm as a function, computed in float32; the identity for "none"."""
    if config.norm == "none":
        return lambda x: x
    kind = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}[config.norm]
    module = kind(epsilon=config.norm_epsilon, dtype=jnp.float32, name=name)
    return lambda x: module(x).astype(x.dtype)


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each behind a norm and around a residual."""

    config: TransformerConfig

    def linear(self, name: str, features: int) -> Linear:
        """Return the linear layer of a name; those that write to the residual start smaller (GPT-2)."""
        stddev = 0.02 / (2 * self.config.layers) ** 0.5 if name in ("attention_out", "down") else 0.02
        return Linear(features, stddev, name in self.config.biased, name=name)

    @nn.compact
    def __call__(
        self,
        x: chex.Array,
        layer: chex.Array,
        windowed: chex.Array,
        cache: Cache | None,
        places: Places,
    ) -> tuple[chex.Array, Cache | None]:
        """Map x [L, width] and return the keys and values [kv_heads, L, depth] where there is a cache.

        `layer` [] picks from the cache of all layers, and `windowed` [] says whether this one has the window.
        """
        residual = x if self.config.residual else 0.0
        h = make_norm(self.config, "attention_norm")(x)
        h, written = self.attention(h, layer, windowed, cache, places)
        x = residual + h
        if self.config.feed_forward == "none":
            return x, written
        residual = x if self.config.residual else 0.0
        return residual + self.feed_forward(make_norm(self.config, "feed_forward_norm")(x)), written

    def attention(
        self, h: chex.Array, layer: chex.Array, windowed: chex.Array, cache: Cache | None, places: Places
    ) -> tuple[chex.Array, Cache | None]:
        """Let every token read those it may: `softmax(q k / sqrt(depth)) v`, heads side by side."""
        config = self.config
        length, depth = h.shape[0], config.depth
        counts = {"query": config.heads, "key": config.kv_heads, "value": config.kv_heads}
        query, key, value = (
            self.linear(name, n * depth)(h).reshape(length, n, depth) for name, n in counts.items()
        )
        if config.query_key_norm:
            query, key = (
                nn.RMSNorm(epsilon=config.norm_epsilon, dtype=jnp.float32, name=name)(t).astype(t.dtype)
                for name, t in (("query_norm", query), ("key_norm", key))
            )
        if places.angle is not None:
            query, key = rotate(query, places.angle), rotate(key, places.angle)
        attend, attend_cache = (
            mask if near is None else mask & (near | ~windowed)
            for mask, near in ((places.attend, places.near), (places.attend_cache, places.near_cache))
        )
        written = None if cache is None else Cache(*(jnp.swapaxes(t, 0, 1) for t in (key, value)))
        if attend_cache is None:
            h = jax.nn.dot_product_attention(
                query,
                key,
                value,
                mask=None if attend is None else attend[None],
                is_causal=attend is None,
                implementation=config.attention,
            )
        else:
            # An index, not the scan's own slices: those would copy the whole cache, members first to last.
            read = Cache(*(jax.lax.dynamic_index_in_dim(c, layer, keepdims=False) for c in cache))
            h = attend_both(query, read, attend_cache, written, attend)
        return self.linear("attention_out", config.width)(h.reshape(length, config.heads * depth)), written

    def feed_forward(self, h: chex.Array) -> chex.Array:
        """Map every token on its own: `gelu(h U) D`, or SwiGLU's `(silu(h G) * h U) D`."""
        up = self.linear("up", self.config.hidden)(h)
        if self.config.feed_forward == "swiglu":
            up = _swiglu(self.linear("gate", self.config.hidden)(h), up)
        else:
            up = _gelu(up)
        return self.linear("down", self.config.width)(up)


def attend_both(
    query: chex.Array, read: Cache, attend_read: chex.Array, written: Cache, attend_written: chex.Array
) -> chex.Array:
    """Return one softmax's mean of values in two places: a cache, and the tokens themselves.

    Writing the tokens to the cache first would copy it in every layer.

    Args:
      query: [L, heads, depth].
      read: the cache, [kv_heads, S, depth].
      attend_read: [L, S] True where a token may read a slot.
      written: the tokens' own, [kv_heads, L, depth].
      attend_written: [L, L] True where a token may read another; each may read itself.

    Returns:
      [L, heads, depth].
    """
    length, heads, depth = query.shape
    query = query.reshape(length, read.key.shape[0], -1, depth)
    scores = [
        jnp.where(
            attend[None, None],
            jnp.einsum("lkgd,ksd->kgls", query, keys, preferred_element_type=jnp.float32) * depth**-0.5,
            -0.7 * jnp.finfo(jnp.float32).max,
        )
        for keys, attend in ((read.key, attend_read), (written.key, attend_written))
    ]
    weight = jax.nn.softmax(jnp.concatenate(scores, -1)).astype(query.dtype)
    parts = jnp.split(weight, [attend_read.shape[1]], -1)
    sums = (
        jnp.einsum("kgls,ksd->lkgd", part, values, preferred_element_type=jnp.float32)
        for part, values in zip(parts, (read.value, written.value), strict=True)
    )
    return sum(sums).astype(query.dtype).reshape(length, heads, depth)


# Their backward passes read the arguments alone: what lies between, several times as wide as a token, costs
# more to write and to read again than to compute again.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _gelu(x: chex.Array) -> chex.Array:
    return nn.gelu(x, approximate=True)


@functools.partial(jax.checkpoint, prevent_cse=False)
def _swiglu(gate: chex.Array, up: chex.Array) -> chex.Array:
    return nn.silu(gate) * up


class Decoder(nn.Module):
    """Embeddings, the stack of blocks and the final norm."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        tokens: chex.Array,
        positions: chex.Array,
        places: Places,
        cache: Cache | None,
        start: chex.Numeric,
    ) -> tuple[chex.Array, Cache | None]:
        """Map tokens [L] to hidden states [L, width]."""
        config = self.config
        if not config.tied_head:
            self.param("head", nn.initializers.normal(0.02), (config.width, config.vocab_size))
        table = self.param("tokens", nn.initializers.normal(0.02), (config.vocab_size, config.width))
        x = table[tokens]
        # A position past the context reads NaN: loud, where clamping would be silently wrong.
        if config.positions == "learned":
            place = self.param("positions", nn.initializers.normal(0.02), (config.context, config.width))
            x = x + place.at[positions].get(mode="fill", fill_value=jnp.nan)
        else:
            x = jnp.where(positions[:, None] < config.context, x, jnp.nan)
        x = x.astype(config.dtype)
        angle = None
        if config.positions == "rotary":
            frequency = rope_frequencies(config.depth, config.rope_theta, config.rope_scaling)
            angle = positions[:, None] * frequency[None]
        windowed = jnp.array(
            [config.window_layers is None or i in config.window_layers for i in range(config.layers)]
        )
        stack = nn.scan(
            nn.remat(Block, prevent_cse=False) if config.remat else Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, nn.broadcast, nn.broadcast),
            length=config.layers,
        )
        layers = stack(config, name="layers")
        x, written = layers(x, jnp.arange(config.layers), windowed, cache, places._replace(angle=angle))
        if cache is not None:
            at = (0, 0, start, 0)
            cache = Cache(
                *(jax.lax.dynamic_update_slice(*both, at) for both in zip(cache, written, strict=True))
            )
        return make_norm(config, "final_norm")(x), cache
