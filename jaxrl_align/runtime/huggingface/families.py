"""The model families: one record each, with the names of its tensors and the parts of its `config.json`.

A new family whose parts are options of `TransformerConfig` is a new record here, and a case of
`tests/runtime/make_huggingface_fixtures.py` that proves it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from jaxrl_align.nets.transformer import TransformerConfig
from jaxrl_align.runtime.huggingface.parts import (
    Part,
    biases,
    entry,
    expect,
    fixed,
    need,
    read_rope,
    rope,
    windows,
)
from jaxrl_align.typed import short


class Family(NamedTuple):
    """A model family of transformers."""

    architecture: str
    """The class that holds its language model."""
    names: Mapping[str, str]
    """Their module -> ours; `{}` is the layer's number. Modules of ours that one tensor holds side by side,
    along its last axis, are separated by spaces. What a configuration lacks, say a query norm, is skipped."""
    parts: Sequence[Part]
    """The parts of its `config.json`."""
    prefix: str = "model."
    """Stands before every name but the head's; files of the bare decoder leave it out."""
    head: str = "lm_head"
    """The head of its own, where the embeddings do not serve as one."""
    transposed: bool = True
    """Kernels are stored `[out, in]`, as torch's linear layers do; ours are `[in, out]`."""


_ATTENTION = ("query", "key", "value", "attention_out")
_FEED_FORWARD = ("gate", "up", "down")
_NO_NORMS = {
    "embed_tokens": "tokens",
    "norm": "final_norm",
    "layers.{}.self_attn.q_proj": "query",
    "layers.{}.self_attn.k_proj": "key",
    "layers.{}.self_attn.v_proj": "value",
    "layers.{}.self_attn.o_proj": "attention_out",
    "layers.{}.self_attn.q_norm": "query_norm",
    "layers.{}.self_attn.k_norm": "key_norm",
    "layers.{}.mlp.gate_proj": "gate",
    "layers.{}.mlp.up_proj": "up",
    "layers.{}.mlp.down_proj": "down",
}
_LLAMA_NAMES = _NO_NORMS | {
    "layers.{}.input_layernorm": "attention_norm",
    "layers.{}.post_attention_layernorm": "feed_forward_norm",
}
_OLMO2_NAMES = _NO_NORMS | {
    "layers.{}.post_attention_layernorm": "attention_post_norm",
    "layers.{}.post_feedforward_layernorm": "feed_forward_post_norm",
}
_GEMMA3_NAMES = _OLMO2_NAMES | {
    "layers.{}.input_layernorm": "attention_norm",
    "layers.{}.pre_feedforward_layernorm": "feed_forward_norm",
}
_GPT2_NAMES = {
    "wte": "tokens",
    "wpe": "positions",
    "ln_f": "final_norm",
    "h.{}.ln_1": "attention_norm",
    "h.{}.ln_2": "feed_forward_norm",
    "h.{}.attn.c_attn": "query key value",
    "h.{}.attn.c_proj": "attention_out",
    "h.{}.mlp.c_fc": "up",
    "h.{}.mlp.c_proj": "down",
}


def _sizes(
    *, kv_heads: int | None, head_dim: int | None = None, epsilon: float = 1e-6, tied: bool = False
) -> tuple[Part, ...]:
    """Return the entries that Llama and its kin share, with a family's defaults."""
    return (
        entry("vocab_size", "vocab_size"),
        entry("hidden_size", "width"),
        entry("intermediate_size", "feed_forward_width"),
        entry("num_hidden_layers", "layers"),
        entry("num_attention_heads", "heads"),
        entry("num_key_value_heads", "key_value_heads", kv_heads, nullable=True),
        entry("head_dim", "head_width", head_dim),
        entry("max_position_embeddings", "context"),
        entry("rms_norm_eps", "norm_epsilon", epsilon, float),
        entry("tie_word_embeddings", "tied_head", tied, bool),
    )


_SWIGLU = (
    fixed(positions="rotary", norm="rms", feed_forward="swiglu"),
    expect("hidden_act", "silu", "swish"),
)


def _qwen_sliding(values: Mapping[str, Any], window: int | None) -> Sequence[int]:
    first = need(values, "max_window_layers", default=28)
    return () if window is None else range(first, need(values, "num_hidden_layers"))


_QWEN_WINDOWS = windows(
    _qwen_sliding, switched=True, older=lambda layers, count: {"max_window_layers": count - len(layers)}
)


def _gemma3_sliding(values: Mapping[str, Any], window: int | None) -> Sequence[int]:
    return _all_but_every(
        need(values, "sliding_window_pattern", default=6, least=1), need(values, "num_hidden_layers")
    )


def _gemma3_pattern(layers: Sequence[int], count: int) -> dict[str, int]:
    """Say by a period, where there is one, which layers have no window: 4.50 to 4.52 read nothing else."""
    periods = [n for n in range(1, count + 2) if _all_but_every(n, count) == layers]
    return {"sliding_window_pattern": periods[0]} if periods else {}


def _all_but_every(period: int, count: int) -> tuple[int, ...]:
    return tuple(i for i in range(count) if (i + 1) % period)


_GEMMA3_WINDOWS = windows(_gemma3_sliding, switched=False, numbered=True, older=_gemma3_pattern)


def _read_gemma3_rope(values: Mapping[str, Any]) -> dict[str, Any]:
    nested = values.get("rope_parameters") or {}
    if unknown := nested.keys() - {"full_attention", "sliding_attention"}:
        raise ValueError(
            "rope_parameters must hold full_attention and sliding_attention, each with its own; "
            f"got {short(', '.join(sorted(unknown)))[1:-1]}"
        )
    everywhere, local = (nested.get(f"{kind}_attention") or {} for kind in ("full", "sliding"))
    theta, scaling = read_rope(values, everywhere, 1e6)
    local, stretched = read_rope(values, local, 1e4, "rope_local_base_freq", "rope_local_scaling")
    if stretched is not None:
        raise ValueError("the rope_type of sliding_attention must be default; scaling it is not supported")
    needless = _GEMMA3_WINDOWS.read(values)["window"] is None or (local, None) == (theta, scaling)
    return {
        "rope_theta": theta,
        "rope_scaling": scaling,
        "local_rope_theta": None if needless else local,
    }


def _write_gemma3_rope(config: TransformerConfig) -> dict[str, Any]:
    return rope().write(config) | {"rope_local_base_freq": config.local_rope_theta or config.rope_theta}


def _read_gemma3_scale(values: Mapping[str, Any]) -> dict[str, Any]:
    scalar = need(values, "query_pre_attn_scalar", float, 256, least=1)
    usual = scalar == need(values, "head_dim", default=256)
    return {"attention_scale": None if usual else scalar**-0.5}


def _read_smollm3_rotary(values: Mapping[str, Any]) -> dict[str, Any]:
    """Read `no_rope_layers`, which holds 1 for a layer with positions, despite its name."""
    layers, flags = need(values, "num_hidden_layers"), values.get("no_rope_layers")
    if flags is None:
        period = need(values, "no_rope_layer_interval", default=4, least=1)
        flags = [int(i in _all_but_every(period, layers)) for i in range(layers)]
    if not isinstance(flags, list) or len(flags) < layers or any(flag not in (0, 1) for flag in flags):
        raise ValueError(f"no_rope_layers must give each of {layers} layers 0 or 1; got {short(flags)}")
    rotary = tuple(i for i in range(layers) if flags[i])
    return {"rotary_layers": None if len(rotary) == layers else rotary}


def _write_smollm3_rotary(config: TransformerConfig) -> dict[str, Any]:
    rotary = range(config.layers) if config.rotary_layers is None else config.rotary_layers
    return {"no_rope_layers": [int(i in rotary) for i in range(config.layers)]}


def _smollm3_sliding(values: Mapping[str, Any], window: int | None) -> Sequence[int]:
    """Return the layers without positions."""
    rotary = _read_smollm3_rotary(values)["rotary_layers"]
    if window is None or rotary is None:
        return ()
    return tuple(i for i in range(need(values, "num_hidden_layers")) if i not in rotary)


FAMILIES = {
    "gpt2": Family(
        "GPT2LMHeadModel",
        _GPT2_NAMES,
        (
            entry("vocab_size", "vocab_size"),
            entry("n_embd", "width"),
            entry("n_layer", "layers"),
            entry("n_head", "heads"),
            entry("n_positions", "context"),
            entry("n_inner", "feed_forward_width", None),
            entry("layer_norm_epsilon", "norm_epsilon", 1e-5, float),
            entry("tie_word_embeddings", "tied_head", True, bool),
            expect("activation_function", "gelu_new", "gelu_pytorch_tanh"),
            expect("scale_attn_weights", True),
            expect("scale_attn_by_inverse_layer_idx", False),
            expect("add_cross_attention", False),
        ),
        prefix="transformer.",
        transposed=False,
    ),
    "llama": Family(
        "LlamaForCausalLM",
        _LLAMA_NAMES,
        (
            *_SWIGLU,
            *_sizes(kv_heads=None),
            rope(),
            biases(attention_bias=_ATTENTION, mlp_bias=_FEED_FORWARD),
        ),
    ),
    "qwen2": Family(
        "Qwen2ForCausalLM",
        _LLAMA_NAMES,
        (*_SWIGLU, *_sizes(kv_heads=32), rope(), _QWEN_WINDOWS, fixed(biased=("query", "key", "value"))),
    ),
    "qwen3": Family(
        "Qwen3ForCausalLM",
        _LLAMA_NAMES,
        (
            *_SWIGLU,
            *_sizes(kv_heads=32, head_dim=128),
            rope(),
            _QWEN_WINDOWS,
            fixed(query_key_norm="head"),
            biases(attention_bias=_ATTENTION),
        ),
    ),
    "mistral": Family(
        "MistralForCausalLM",
        _LLAMA_NAMES,
        (
            *_SWIGLU,
            *_sizes(kv_heads=8),
            rope(),
            entry("sliding_window", "window", 4096, nullable=True),
            expect("layer_types", None),
            fixed(biased=()),
        ),
    ),
    "gemma3_text": Family(
        "Gemma3ForCausalLM",
        _GEMMA3_NAMES,
        (
            fixed(positions="rotary", norm="offset_rms", norm_placement="both"),
            fixed(feed_forward="geglu", query_key_norm="head"),
            Part(lambda values: {"embedding_scale": need(values, "hidden_size") ** 0.5}),
            *_sizes(kv_heads=4, head_dim=256, tied=True),
            Part(_read_gemma3_rope, _write_gemma3_rope),
            _GEMMA3_WINDOWS,
            Part(_read_gemma3_scale, lambda config: {"query_pre_attn_scalar": round(config.scale**-2)}),
            biases(attention_bias=_ATTENTION),
            expect("hidden_activation", "gelu_pytorch_tanh"),
            expect("attn_logit_softcapping", None),
            expect("final_logit_softcapping", None),
            expect("use_bidirectional_attention", False, None),
        ),
    ),
    "smollm3": Family(
        "SmolLM3ForCausalLM",
        _LLAMA_NAMES,
        (
            *_SWIGLU,
            *_sizes(kv_heads=4, tied=True),
            rope(2e6),
            Part(_read_smollm3_rotary, _write_smollm3_rotary),
            windows(_smollm3_sliding, None, switched=True),
            biases(attention_bias=_ATTENTION, mlp_bias=_FEED_FORWARD),
        ),
    ),
    "olmo2": Family(
        "Olmo2ForCausalLM",
        _OLMO2_NAMES,
        (
            *_SWIGLU,
            fixed(norm_placement="after", query_key_norm="width"),
            *_sizes(kv_heads=None, epsilon=1e-5),
            rope(),
            biases(attention_bias=_ATTENTION),
        ),
    ),
}
"""By `model_type`. Where several can hold a configuration, it is saved as the first."""
