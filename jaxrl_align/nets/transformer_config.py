"""The shape of a decoder-only transformer: one configuration from GPT-2 to Llama, Gemma and OLMo."""

from dataclasses import dataclass
from typing import Annotated, Literal

from jaxrl_align.typed import Count, NotNegative, Positive, Within, check_fields, short

LINEARS = ("query", "key", "value", "attention_out", "gate", "up", "down")
"""The linear layers that a block may have; `gate` belongs to SwiGLU and GeGLU alone."""

MOST_LAYERS = 10_000


@dataclass(frozen=True)
class RopeScaling:
    """Rotary frequencies stretched to a longer context.

    With low and high the bounds of Llama 3 (Grattafiori et al. 2024, arXiv:2407.21783), a frequency whose
    wavelength exceeds `original_context / low` is divided by `factor`, one below `original_context / high` is
    kept, and those between are interpolated. Without bounds every frequency is divided (Chen et al. 2023,
    arXiv:2306.15595).
    """

    factor: Annotated[float, Within(1)]
    low: Positive | None = None
    high: Positive | None = None
    original_context: Count | None = None

    def __post_init__(self) -> None:
        """Refuse factors that would not stretch and bounds that are out of order."""
        bounds = (self.low, self.high, self.original_context)
        try:
            check_fields(self)
        except ValueError as error:
            raise ValueError(f"a rope scaling's {error}") from error
        if any(b is None for b in bounds) and bounds != (None, None, None):
            raise ValueError(f"give low, high and original_context together, or none of them; got {bounds}")
        low, high, context = (0.0 if b is None else b for b in bounds)
        if self.low is not None and not (0 < low < high and context > 0):
            raise ValueError(
                f"expected 0 < low < high and original_context > 0; got low={self.low}, high={self.high}, "
                f"original_context={self.original_context}"
            )


@dataclass(frozen=True)
class TransformerConfig:
    """The model's shape; by default GPT-2's layout (Radford et al. 2019).

    Every part can be taken away on its own: `positions="none"`, `norm="none"`, `feed_forward="none"`,
    `residual=False`.
    """

    vocab_size: Count
    width: Count = 64
    layers: Annotated[int, Within(1, MOST_LAYERS)] = 2
    heads: Count = 4
    context: Count = 64
    """The most real tokens of a sequence, prompt and response together."""
    positions: Literal["learned", "rotary", "none"] = "learned"
    """A learned vector per position, or queries and keys rotated by it (Su et al. 2021, arXiv:2104.09864)."""
    norm: Literal["layer", "rms", "offset_rms", "none"] = "layer"
    """Layer norm, RMS norm (Zhang & Sennrich 2019, arXiv:1910.07467), or an RMS norm that multiplies by
    `1 + scale`, with `scale` starting at 0 (Gemma)."""
    norm_placement: Literal["before", "after", "both"] = "before"
    """Attention and the feed-forward layer have a norm on what they read, on what they add to the residual
    (OLMo 2, Walsh et al. 2025, arXiv:2501.00656), or on both (Gemma 3, arXiv:2503.19786)."""
    feed_forward: Literal["gelu", "swiglu", "geglu", "none"] = "gelu"
    """GELU in its tanh form, or one of the gated layers of Shazeer (2020, arXiv:2002.05202)."""
    residual: bool = True
    biased: tuple[str, ...] = LINEARS
    """The linear layers that add a bias."""
    embedding_scale: Positive = 1.0
    """The token embeddings are multiplied by it, rounded to `dtype` (Gemma: the square root of the width)."""
    tied_head: bool = True
    """Logits read the token embeddings, unscaled; otherwise a matrix of their own."""
    key_value_heads: Count | None = None
    """Grouped queries: heads / key_value_heads queries share a key and a value; None, each has its own."""
    head_width: Count | None = None
    """None: width / heads."""
    feed_forward_width: Count | None = None
    """None: 4 width."""
    query_key_norm: Literal["none", "head", "width"] = "none"
    """Queries and keys pass through an RMS norm before they are rotated and compared: each head alone
    (Qwen3, Gemma 3), or all heads together (OLMo 2); it is of the kind "offset_rms" if `norm` is."""
    norm_epsilon: NotNegative = 1e-5
    attention_scale: Positive | None = None
    """The products of queries and keys are multiplied by it; None, by `depth^-0.5`."""
    rope_theta: Positive = 10_000.0
    rope_scaling: RopeScaling | None = None
    local_rope_theta: Positive | None = None
    """Base of the rotary frequencies, unscaled, in the layers with a window; None, as in the others."""
    rotary_layers: tuple[int, ...] | None = None
    """The layers that rotate queries and keys, the others know no positions (Yang et al. 2025,
    arXiv:2501.18795); None, all."""
    window: Count | None = None
    """A token reads at most this many real tokens, itself and those just before it; None, all."""
    window_layers: tuple[int, ...] | None = None
    """The layers that `window` holds for; None, all."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Type of the computation; softmax, norms and logits accumulate in float32, parameters keep their own."""
    remat: bool = False
    """Recompute each block's inside in the backward pass instead of storing it."""
    unroll: bool = False
    """Compile the layers one behind the other, not one of them in a loop. A GPU is faster so: a loop copies
    what each layer reads, and what it keeps for the backward pass. A CPU trains 2 to 3% faster and generates
    in 1.2 to 1.5 times the time. Compilation takes two to five times as long."""
    attention: Literal["xla", "cudnn"] = "xla"
    """Kernel of the attention; cuDNN's flash attention needs a GPU and bfloat16. A mask costs it what it
    otherwise saves, [heads, L, L] numbers of every row: they are read, and in the backward pass written."""

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built."""
        check_fields(self)
        for name in ("window_layers", "rotary_layers"):
            if outside := [i for i in getattr(self, name) or () if not 0 <= i < self.layers]:
                raise ValueError(f"{name} must lie in 0..{self.layers - 1}; got {short(outside)}")
        if self.head_width is None and self.width % self.heads:
            raise ValueError(f"heads must divide width; got width={self.width}, heads={self.heads}")
        if self.heads % self.kv_heads:
            raise ValueError(
                f"key_value_heads must divide heads; got heads={self.heads}, key_value_heads={self.kv_heads}"
            )
        if self.positions == "rotary" and self.depth % 2:
            raise ValueError(f"rotary positions turn pairs: a head's width must be even; got {self.depth}")
        if unknown := sorted(set(self.biased) - set(LINEARS)):
            raise ValueError(f"biased must name linear layers among {LINEARS}; got {unknown}")
        for name in ("window_layers", "local_rope_theta"):
            if getattr(self, name) is not None and self.window is None:
                raise ValueError(f"{name}={getattr(self, name)} needs a window; got window=None")
        for name in ("rotary_layers", "rope_scaling", "local_rope_theta"):
            if getattr(self, name) is not None and self.positions != "rotary":
                raise ValueError(
                    f"{name}={getattr(self, name)} needs rotary positions; got positions={self.positions!r}"
                )

    @property
    def depth(self) -> int:
        """Width of one head."""
        return self.head_width or self.width // self.heads

    @property
    def kv_heads(self) -> int:
        """Number of heads that keys and values have."""
        return self.key_value_heads or self.heads

    @property
    def hidden(self) -> int:
        """Width inside the feed-forward layer."""
        return self.feed_forward_width or 4 * self.width

    @property
    def scale(self) -> float:
        """The factor on the products of queries and keys."""
        return self.depth**-0.5 if self.attention_scale is None else self.attention_scale

    @property
    def linears(self) -> tuple[str, ...]:
        """Names of the linear layers of a block."""
        absent = {"gelu": ("gate",), "none": ("gate", "up", "down")}.get(self.feed_forward, ())
        return tuple(name for name in LINEARS if name not in absent)
