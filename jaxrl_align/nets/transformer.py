"""A decoder-only transformer language model with a key-value cache and room for a LoRA adapter.

The functions work on ONE sequence, the caller vmaps. A sequence may be padded anywhere: `mask` says which
tokens are real, positions count real tokens only, and no token attends to padding, so a real token's output
does not depend on how its sequence was padded. The layers are stacked: every leaf under `layers` has a
leading axis [layers], which one scan runs through.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_align.types import Params


@dataclass(frozen=True)
class TransformerConfig:
    """The model's shape; GPT-2's layout (learned positions, pre-layer-norm, GELU, biases, tied head)."""

    vocab_size: int
    width: int = 64
    layers: int = 2
    heads: int = 4
    context: int = 64
    """The most real tokens of a sequence, prompt and response together."""

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built."""
        for name in ("vocab_size", "width", "layers", "heads", "context"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.width % self.heads:
            raise ValueError(f"heads must divide width; got width={self.width}, heads={self.heads}")


class Cache(NamedTuple):
    """Keys and values of the tokens read so far; `length` slots, each leaf [layers, length, heads, depth]."""

    key: chex.Array
    value: chex.Array


class LanguageModel(NamedTuple):
    """A language model as pure functions; `params` is a plain dict of arrays."""

    config: TransformerConfig
    init: Callable[[chex.PRNGKey], Params]
    encode: Callable[..., tuple[chex.Array, Cache | None]]
    """`(params, tokens[L], mask[L], cache=None, start=0, positions=None, adapter=None, segments=None)
    -> (hidden, cache)`.

    Without a cache, `mask` covers the tokens. With one, the tokens are written to its slots `start, ...`,
    `mask` covers all of its slots, and `positions` [L] must be given. Several documents may be packed into
    one sequence, one behind the other, without a cache: `segments` [L] int gives each document's number, tokens
    attend within their own document and positions restart with it. `hidden` is [L, width], after the last norm.
    """
    logits: Callable[[Params, chex.Array], chex.Array]
    """`(params, hidden[..., width]) -> [..., vocab_size]`, float32."""
    init_cache: Callable[[int], Cache]
    """`length -> Cache` of zeros."""


def positions_of(mask: chex.Array, segments: chex.Array | None = None) -> chex.Array:
    """Return each token's position, the number of real tokens before it: an exclusive cumulative sum.

    Args:
      mask: [L] 1 for a real token, 0 for padding.
      segments: [L] int, the number of the document that a token belongs to, each document in one piece; the
        count restarts with every document.

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
    return before * mask


class Linear(nn.Module):
    """`x W + b`, plus `scale * (x A) B` where the adapter has weights for this place (Hu et al. 2021)."""

    features: int
    stddev: float
    lora_scale: float

    @nn.compact
    def __call__(self, x: chex.Array) -> chex.Array:
        """Map [..., in] to [..., features]."""
        kernel = self.param("kernel", nn.initializers.normal(self.stddev), (x.shape[-1], self.features))
        bias = self.param("bias", nn.initializers.zeros, (self.features,))
        y = x @ kernel + jnp.expand_dims(bias, range(x.ndim - 1))
        if self.has_variable("lora", "a"):
            y = y + self.lora_scale * ((x @ self.get_variable("lora", "a")) @ self.get_variable("lora", "b"))
        return y


class Block(nn.Module):
    """Self-attention and a feed-forward layer, each behind a layer norm and around a residual."""

    config: TransformerConfig
    lora_scale: float

    @nn.compact
    def __call__(
        self, x: chex.Array, cache: Cache | None, start: chex.Array, attend: chex.Array
    ) -> tuple[chex.Array, Cache | None]:
        """Map x [L, width] under `attend` [L, S] (True where a token may read a slot)."""
        config = self.config
        length, depth = x.shape[0], config.width // config.heads
        residual_stddev = 0.02 / (2 * config.layers) ** 0.5

        def linear(name: str, features: int, stddev: float = 0.02) -> Linear:
            return Linear(features, stddev, self.lora_scale, name=name)

        h = nn.LayerNorm(epsilon=1e-5, name="attention_norm")(x)
        query, key, value = (
            linear(name, config.width)(h).reshape(length, config.heads, depth)
            for name in ("query", "key", "value")
        )
        if cache is not None:
            key = jax.lax.dynamic_update_slice_in_dim(cache.key, key, start, 0)
            value = jax.lax.dynamic_update_slice_in_dim(cache.value, value, start, 0)
            cache = Cache(key, value)
        h = jax.nn.dot_product_attention(query, key, value, mask=attend[None])
        x = x + linear("attention_out", config.width, residual_stddev)(h.reshape(length, config.width))
        h = nn.LayerNorm(epsilon=1e-5, name="feed_forward_norm")(x)
        h = nn.gelu(linear("up", 4 * config.width)(h), approximate=True)
        return x + linear("down", config.width, residual_stddev)(h), cache


class Decoder(nn.Module):
    """Embeddings, the stack of blocks and the final norm."""

    config: TransformerConfig
    lora_scale: float

    @nn.compact
    def __call__(
        self,
        tokens: chex.Array,
        positions: chex.Array,
        attend: chex.Array,
        cache: Cache | None,
        start: chex.Array,
    ) -> tuple[chex.Array, Cache | None]:
        """Map tokens [L] to hidden states [L, width]."""
        config = self.config
        table = self.param("tokens", nn.initializers.normal(0.02), (config.vocab_size, config.width))
        place = self.param("positions", nn.initializers.normal(0.02), (config.context, config.width))
        # A position past the context reads NaN: loud, where clamping would be silently wrong.
        x = table[tokens] + place.at[positions].get(mode="fill", fill_value=jnp.nan)
        stack = nn.scan(
            Block,
            variable_axes={"params": 0, "lora": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=config.layers,
        )
        x, cache = stack(config, self.lora_scale, name="layers")(x, cache, start, attend)
        return nn.LayerNorm(epsilon=1e-5, name="final_norm")(x), cache


def make_transformer(config: TransformerConfig, *, lora_scale: float = 1.0) -> LanguageModel:
    """Build the language model of a configuration.

    Args:
      config: the model's shape.
      lora_scale: the factor alpha / rank of whatever adapter is passed to `encode`.

    Returns:
      A `LanguageModel` of pure functions.
    """
    decoder = Decoder(config, lora_scale)

    def init(key: chex.PRNGKey) -> Params:
        one = jnp.zeros(1, jnp.int32)
        return decoder.init(key, one, one, jnp.ones((1, 1), bool), None, 0)["params"]

    def encode(
        params: Params,
        tokens: chex.Array,
        mask: chex.Array,
        cache: Cache | None = None,
        start: chex.Numeric = 0,
        positions: chex.Array | None = None,
        adapter: Params | None = None,
        segments: chex.Array | None = None,
    ) -> tuple[chex.Array, Cache | None]:
        chex.assert_rank([tokens, mask], 1)
        if cache is None:
            chex.assert_equal_shape([tokens, mask])
            positions = positions_of(mask, segments) if positions is None else positions
        elif positions is None:
            raise ValueError("encode with a cache needs the tokens' positions")
        elif segments is not None:
            raise ValueError("packed documents have no cache; pass segments without one, or one document")
        query_slot = start + jnp.arange(tokens.shape[0])[:, None]
        key_slot = jnp.arange(mask.shape[0])[None, :]
        real = (mask > 0)[None, :]
        if segments is not None:
            real = real & (segments[:, None] == segments[None, :])
        # A padded token reads itself, so that its softmax has something to sum and stays finite.
        attend = ((key_slot <= query_slot) & real) | (key_slot == query_slot)
        variables = {"params": params} | ({} if adapter is None else {"lora": adapter})
        return decoder.apply(variables, tokens, positions, attend, cache, start)

    def logits(params: Params, hidden: chex.Array) -> chex.Array:
        return hidden.astype(jnp.float32) @ params["tokens"].T.astype(jnp.float32)

    def init_cache(length: int) -> Cache:
        shape = (config.layers, length, config.heads, config.width // config.heads)
        return Cache(jnp.zeros(shape), jnp.zeros(shape))

    return LanguageModel(config, init, encode, logits, init_cache)


def init_scalar_head(key: chex.PRNGKey | None, width: int) -> dict[str, Any]:
    """Return a scalar read-out of the hidden state: a reward head drawn from N(0, 1 / (width + 1)), bias 0.

    Args:
      key: source of the draw; None starts at zero, as a value head does.
      width: the hidden state's width.
    """
    drawn = jnp.zeros(width) if key is None else jax.random.normal(key, (width,)) / (width + 1) ** 0.5
    return {"kernel": drawn, "bias": jnp.zeros(())}


def apply_scalar_head(head: dict[str, Any], hidden: chex.Array) -> chex.Array:
    """Map hidden states [..., width] to scalars [...]."""
    return hidden @ head["kernel"] + head["bias"]
