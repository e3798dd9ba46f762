"""The transformer's parts as Linen modules: linear layers that read adapters, attention, blocks."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_align.nets.attention import Cache, attend_all, attend_own
from jaxrl_align.nets.kinds import KINDS, is_complete
from jaxrl_align.nets.quantize import dequantise, is_packed, multiply
from jaxrl_align.nets.rope import layer_frequencies, rotate
from jaxrl_align.nets.sharding import output_shards, place_weights, read_gathered
from jaxrl_align.nets.transformer_config import TransformerConfig
from jaxrl_align.types import Numeric


class Places(NamedTuple):
    """Attention masks and positions of the tokens; the same for every layer."""

    attend: jax.Array | None = None
    """[L, L] True where a token may read another; None, itself and all before it."""
    near: jax.Array | None = None
    """[L, L] True within the window, where only some layers have one; otherwise None."""
    attend_cache: jax.Array | None = None
    """[L, S] True where a token may read one of the cache's first S slots; None, nothing is read there."""
    near_cache: jax.Array | None = None
    """[L, S], as `near`."""
    angle: jax.Array | None = None
    """[L, depth / 2] radians of rotary positions where all layers have the same, otherwise None."""
    positions: jax.Array | None = None
    """[L] where the layers' rotary frequencies differ, otherwise None."""
    near_prefix: jax.Array | None = None
    """[L, n] True where a virtual token lies within the window; None without virtual tokens."""


class Layer(NamedTuple):
    """Settings that differ from layer to layer; the scan takes one row of each leaf."""

    index: jax.Array  # type: ignore[assignment]
    """[] place in the cache of all layers."""
    windowed: jax.Array
    """[] whether it has the window."""
    frequency: jax.Array | None = None
    """[depth / 2] rotary frequencies where the layers' differ, otherwise None."""
    prefix: Cache | None = None
    """The virtual tokens' keys and values, each [kv_heads, n, depth]."""
    cache: Cache | None = None
    """Its own part of the cache, each [kv_heads, slots, depth]; None, `index` finds it."""


class Linear(nn.Module):
    """`x W + b`, and whatever adapter was laid over this place: `adapters.overlay`."""

    features: int
    stddev: float
    bias: bool

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., in] to [..., features] in x's dtype."""
        laid: dict[str, dict] = {name: self.get_variable("params", name, {}) for name in KINDS}
        path = ("layers", str(self.name))
        adapters = {
            name: place_weights(own, *path, name) for name, own in laid.items() if is_complete(name, own)
        }
        for name, own in adapters.items():
            x = KINDS[name].read(own, x)
        kernel: Any = self.get_variable("params", "kernel")
        if is_packed(kernel):
            shards = output_shards(str(self.name))
            read = lambda x, own: multiply(x, place_weights(own, *path, "kernel"), shards)
            y = read_gathered(read)(x, kernel)
            # Only what needs the kernel reads it; a compiler drops the rest.
            layer = {"kernel": dequantise(kernel) if adapters else kernel}
        else:
            kernel = self.param("kernel", nn.initializers.normal(self.stddev), (x.shape[-1], self.features))
            layer = {"kernel": kernel}
            read = read_gathered(lambda x, own: x @ place_weights(own.astype(x.dtype), *path, "kernel"))
            y = read(x, kernel)
        if self.bias:
            bias = self.param("bias", nn.initializers.zeros, (self.features,)).astype(x.dtype)
            layer["bias"] = place_weights(bias, *path, "bias")
            y = y + jnp.expand_dims(layer["bias"], range(x.ndim - 1))
        for name, own in adapters.items():
            y = KINDS[name].apply(own, x, y, layer)
        return y


def make_norm(config: TransformerConfig, name: str) -> Callable[[jax.Array], jax.Array]:
    """Return the configured norm as a function, computed in float32; the identity for "none"."""
    if config.norm == "none":
        return lambda x: x
    kind: Any = {"layer": nn.LayerNorm, "rms": nn.RMSNorm, "offset_rms": OffsetRMSNorm}[config.norm]
    module = nn.remat(kind, prevent_cse=False)(epsilon=config.norm_epsilon, dtype=jnp.float32, name=name)
    return lambda x: module(x).astype(x.dtype)


class OffsetRMSNorm(nn.Module):
    """RMS norm that multiplies by `1 + scale`.

    The sum is taken in float32: near 1, bfloat16 could not hold a small `scale`.
    """

    epsilon: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """Map [..., features] to the same shape in `dtype`."""
        scale = self.param("scale", nn.initializers.zeros, (x.shape[-1],)).astype(jnp.float32)
        plain: Any = nn.RMSNorm(epsilon=self.epsilon, dtype=self.dtype, parent=None)
        return plain.apply({"params": {"scale": 1 + scale}}, x)


# Functions, not methods: flax would write the name of a method into that of every operation in it.
def norm_before(config: TransformerConfig, part: str, x: jax.Array) -> jax.Array:
    """Return the input of a block's part: the residual x, normalised unless norms come after."""
    return x if config.norm_placement == "after" else make_norm(config, f"{part}_norm")(x)


def norm_after(config: TransformerConfig, part: str, h: jax.Array) -> jax.Array:
    """Return a part's contribution to the residual: its output h, normalised unless norms come before."""
    return h if config.norm_placement == "before" else make_norm(config, f"{part}_post_norm")(h)


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each with its norms and around a residual."""

    config: TransformerConfig

    def linear(self, name: str, features: int) -> Linear:
        """Return the linear layer of a name; those that write to the residual start smaller (GPT-2)."""
        stddev = 0.02 / (2 * self.config.layers) ** 0.5 if name in ("attention_out", "down") else 0.02
        return Linear(features, stddev, name in self.config.biased, name=name)

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        layer: Layer,
        cache: Cache | None,
        places: Places,
    ) -> tuple[jax.Array, Cache | None]:
        """Map x [L, width] and return the keys and values [kv_heads, L, depth] where there is a cache."""
        residual = x if self.config.residual else 0.0
        h, written = self.attention(norm_before(self.config, "attention", x), layer, cache, places)
        x = residual + norm_after(self.config, "attention", h)
        if self.config.feed_forward == "none":
            return x, written
        residual = x if self.config.residual else 0.0
        h = self.feed_forward(norm_before(self.config, "feed_forward", x))
        return residual + norm_after(self.config, "feed_forward", h), written

    def attention(
        self, h: jax.Array, layer: Layer, cache: Cache | None, places: Places
    ) -> tuple[jax.Array, Cache | None]:
        """Let every token read those it may: `softmax(scale q k) v`, heads side by side."""
        config = self.config
        length, depth = h.shape[0], config.depth
        counts = {"query": config.heads, "key": config.kv_heads, "value": config.kv_heads}
        query, key, value = (
            self.linear(name, n * depth)(h).reshape(length, n, depth) for name, n in counts.items()
        )
        if config.query_key_norm != "none":
            query, key = self.norm_query_key("query_norm", query), self.norm_query_key("key_norm", key)
        angle = places.angle
        if layer.frequency is not None and places.positions is not None:
            angle = places.positions[:, None] * layer.frequency[None]
        if angle is not None:
            query, key = rotate(query, angle), rotate(key, angle)
        attend, attend_cache = (  # None where nothing is masked
            mask if near is None or mask is None else mask & (near | ~layer.windowed)
            for mask, near in ((places.attend, places.near), (places.attend_cache, places.near_cache))
        )
        own = Cache(*(jnp.swapaxes(t, 0, 1) for t in (key, value)))
        before = []
        if layer.prefix is not None and places.near_prefix is not None:
            before.append((layer.prefix, places.near_prefix | ~layer.windowed))
        if cache is not None and attend_cache is not None:
            find = lambda c: jax.lax.dynamic_index_in_dim(c, layer.index, keepdims=False)
            whole = layer.cache or Cache(find(cache.key), find(cache.value))
            slots = attend_cache.shape[1]
            before.append((Cache(whole.key[:, :slots], whole.value[:, :slots]), attend_cache))
        if not before or attend is None:
            h = attend_own(query, key, value, attend, config)
        else:
            h = attend_all(query, [*before, (own, attend)], config.scale)
        h = self.linear("attention_out", config.width)(h.reshape(length, config.heads * depth))
        return h, None if cache is None else own

    def norm_query_key(self, name: str, x: jax.Array) -> jax.Array:
        """Return queries or keys [L, heads, depth] after their RMS norm, over each head or all of them."""
        kind = OffsetRMSNorm if self.config.norm == "offset_rms" else nn.RMSNorm
        norm = kind(epsilon=self.config.norm_epsilon, dtype=jnp.float32, name=name)
        flat = x if self.config.query_key_norm == "head" else x.reshape(x.shape[0], -1)
        return norm(flat).astype(x.dtype).reshape(x.shape)

    def feed_forward(self, h: jax.Array) -> jax.Array:
        """Map every token on its own: `gelu(h U) D`, or gated, `(silu(h G) * h U) D` with silu or gelu."""
        up = self.linear("up", self.config.hidden)(h)
        gated = {"swiglu": _swiglu, "geglu": _geglu}.get(self.config.feed_forward)
        up = _gelu(up) if gated is None else gated(self.linear("gate", self.config.hidden)(h), up)
        return self.linear("down", self.config.width)(up)


# The backward passes of these and of the norms read the arguments alone: what lies between, several times as
# wide as a token, costs more to write and to read again than to compute again.
@functools.partial(jax.checkpoint, prevent_cse=False)
def _gelu(x: jax.Array) -> jax.Array:
    return nn.gelu(x, approximate=True)


@functools.partial(jax.checkpoint, prevent_cse=False)
def _swiglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    return nn.silu(gate) * up


@functools.partial(jax.checkpoint, prevent_cse=False)
def _geglu(gate: jax.Array, up: jax.Array) -> jax.Array:
    return nn.gelu(gate, approximate=True) * up


class Decoder(nn.Module):
    """Embeddings, the stack of blocks and the final norm."""

    config: TransformerConfig

    @nn.compact
    def __call__(
        self,
        tokens: jax.Array,
        positions: jax.Array,
        places: Places,
        cache: Cache | None,
        start: Numeric,
        prefix: Cache | None = None,
    ) -> tuple[jax.Array, Cache | None]:
        """Map tokens [L] to hidden states [L, width]."""
        config = self.config
        if not config.tied_head:
            self.param("head", nn.initializers.normal(0.02), (config.width, config.vocab_size))
        table = self.param("tokens", nn.initializers.normal(0.02), (config.vocab_size, config.width))
        x = place_weights(table, "tokens")[tokens]
        if config.embedding_scale != 1.0:
            x = x.astype(config.dtype) * jnp.asarray(config.embedding_scale, config.dtype)
        # A position past the context reads NaN: loud, where clamping would be silently wrong.
        if config.positions == "learned":
            place = self.param("positions", nn.initializers.normal(0.02), (config.context, config.width))
            place = place_weights(place, "positions")
            x = x + place.at[positions].get(mode="fill", fill_value=jnp.nan)
        else:
            x = jnp.where(positions[:, None] < config.context, x, jnp.nan)
        x = x.astype(config.dtype)
        frequencies = None
        if config.positions == "rotary":
            frequency = layer_frequencies(config)
            if frequency.ndim == 1:
                places = places._replace(angle=positions[:, None] * frequency[None])
            else:
                places, frequencies = places._replace(positions=positions), jnp.asarray(frequency)
        windowed = jnp.array(
            [config.window_layers is None or i in config.window_layers for i in range(config.layers)]
        )
        stack = nn.scan(
            nn.remat(Block, prevent_cse=False) if config.remat else Block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=config.layers,
            unroll=config.layers if config.unroll else 1,
        )
        layers = stack(config, name="layers")
        own = None
        # On a CPU, and so in float32, an index: the scan's slices would copy the whole cache, members first
        # to last. A GPU lays the layers out first, and by an index would copy the cache for every token.
        if cache is not None and config.dtype == "bfloat16" and tokens.shape[0] == 1:
            own = Cache(cache.key, cache.value)
        per_layer = Layer(jnp.arange(config.layers), windowed, frequencies, prefix, own)
        x, written = layers(x, per_layer, cache, places)
        if cache is not None and written is not None:
            at = (0, 0, start, 0)
            key, value = (
                jax.lax.dynamic_update_slice(*pair, at) for pair in zip(cache[:2], written[:2], strict=True)
            )
            cache = Cache(key, value, prefix)
        return make_norm(config, "final_norm")(x), cache
