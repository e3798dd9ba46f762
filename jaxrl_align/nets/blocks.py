"""The transformer's parts as Linen modules: linear layers with room for an adapter, attention, blocks."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_align.nets.rope import rope_frequencies, rotate
from jaxrl_align.nets.transformer_config import TransformerConfig

__all__ = ["Cache", "Decoder", "Places"]


class Cache(NamedTuple):
    """Keys and values of the tokens read so far, each leaf [layers, slots, kv_heads, depth]."""

    key: chex.Array
    value: chex.Array


class Places(NamedTuple):
    """Where the tokens stand and what they may read; the same for every layer."""

    start: chex.Numeric
    """The cache slot of the first token."""
    attend: chex.Array | None
    """[L, S] True where a token may read a slot; None, its own and all before it, without a cache."""
    near: chex.Array | None
    """[L, S] True within the window, where only some layers have one; otherwise None."""
    angle: chex.Array | None
    """[L, depth / 2] radians of rotary positions, or None."""


class Linear(nn.Module):
    """`x W + b`, plus `scale * (x A) B` where the adapter has weights for this place (Hu et al. 2021)."""

    features: int
    stddev: float
    lora_scale: float
    bias: bool

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        """Map [..., in] to [..., features] in x's dtype."""
        kernel = self.param("kernel", nn.initializers.normal(self.stddev), (x.shape[-1], self.features))
        y = x @ kernel.astype(x.dtype)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype)
            y = y + jnp.expand_dims(bias, range(x.ndim - 1))
        if self.has_variable("lora", "a"):
            a, b = (self.get_variable("lora", name).astype(x.dtype) for name in ("a", "b"))
            y = y + self.lora_scale * ((x @ a) @ b)
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
    lora_scale: float

    def linear(self, name: str, features: int) -> Linear:
        """Return the linear layer of a name; those that write to the residual start smaller (GPT-2)."""
        stddev = 0.02 / (2 * self.config.layers) ** 0.5 if name in ("attention_out", "down") else 0.02
        return Linear(features, stddev, self.lora_scale, name in self.config.biased, name=name)

    @nn.compact
    def __call__(
        self,
        carry: tuple[chex.Array, Cache | None],
        layer: chex.Array,
        windowed: chex.Array,
        places: Places,
    ) -> tuple[tuple[chex.Array, Cache | None], None]:
        """Map x [L, width], and write to all layers' cache at `layer` [].

        `windowed` [] says whether `places.near` holds for this layer. The cache is carried, because one cut
        into layers and put together again would be copied with every token.
        """
        x, cache = carry
        residual = x if self.config.residual else 0.0
        h = make_norm(self.config, "attention_norm")(x)
        h, cache = self.attention(h, cache, layer, windowed, places)
        x = residual + h
        if self.config.feed_forward != "none":
            residual = x if self.config.residual else 0.0
            x = residual + self.feed_forward(make_norm(self.config, "feed_forward_norm")(x))
        return (x, cache), None

    def attention(
        self, h: chex.Array, cache: Cache | None, layer: chex.Array, windowed: chex.Array, places: Places
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
        if cache is not None:
            at = (layer, places.start, 0, 0)
            cache = Cache(
                *(
                    jax.lax.dynamic_update_slice(c, n[None], at)
                    for c, n in zip(cache, (key, value), strict=True)
                )
            )
            key, value = (jax.lax.dynamic_index_in_dim(c, layer, keepdims=False) for c in cache)
        attend = places.attend
        if places.near is not None:
            attend = attend & (places.near | ~windowed)
        h = jax.nn.dot_product_attention(
            query,
            key,
            value,
            mask=None if attend is None else attend[None],
            is_causal=attend is None,
            implementation=config.attention,
        )
        return self.linear("attention_out", config.width)(h.reshape(length, config.heads * depth)), cache

    def feed_forward(self, h: chex.Array) -> chex.Array:
        """Map every token on its own: `gelu(h U) D`, or SwiGLU's `(silu(h G) * h U) D`."""
        up = self.linear("up", self.config.hidden)(h)
        if self.config.feed_forward == "swiglu":
            up = _swiglu(self.linear("gate", self.config.hidden)(h), up)
        else:
            up = _gelu(up)
        return self.linear("down", self.config.width)(up)


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
    lora_scale: float

    @nn.compact
    def __call__(
        self,
        tokens: chex.Array,
        positions: chex.Array,
        attend: chex.Array | None,
        near: chex.Array | None,
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
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=(0, 0, nn.broadcast),
            length=config.layers,
        )
        places = Places(start, attend, near, angle)
        layers = stack(config, self.lora_scale, name="layers")
        (x, cache), _ = layers((x, cache), jnp.arange(config.layers), windowed, places)
        return make_norm(config, "final_norm")(x), cache
