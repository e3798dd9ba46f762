"""Hugging Face's `config.json` read as a `TransformerConfig` and written back, in old and new spellings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxrl_align.nets.transformer_config import RopeScaling, TransformerConfig

__all__ = ["FAMILIES", "family_of", "read_config", "write_config"]

FAMILIES = {
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
"""Each supported `model_type` and the architecture that holds its language model."""

_ATTENTION = ("query", "key", "value", "attention_out")
_FEED_FORWARD = ("gate", "up", "down")


def read_config(values: Mapping[str, Any]) -> TransformerConfig:
    """Return our configuration of a model that `config.json` describes.

    Args:
      values: the parsed file.

    Raises:
      ValueError: for a family, activation, rope scaling or quantisation that is not supported, or a missing
        entry; it names the entry.
    """
    family = values.get("model_type")
    if family not in FAMILIES:
        raise ValueError(
            f"model_type must be one of {', '.join(FAMILIES)}; got {family!r}; no other family is supported"
        )
    if values.get("quantization_config"):
        raise ValueError("the weights are quantised (quantization_config); load the unquantised model")
    return _read_gpt2(values) if family == "gpt2" else _read_llama(values, family)


def _read_gpt2(values: Mapping[str, Any]) -> TransformerConfig:
    _expect(values, "activation_function", "gelu_new", "gelu_new", "gelu_pytorch_tanh")
    _expect(values, "scale_attn_weights", True, True)
    _expect(values, "scale_attn_by_inverse_layer_idx", False, False)
    _expect(values, "add_cross_attention", False, False)
    return TransformerConfig(
        vocab_size=_need(values, "vocab_size"),
        width=_need(values, "n_embd"),
        layers=_need(values, "n_layer"),
        heads=_need(values, "n_head"),
        context=_need(values, "n_positions"),
        feed_forward_width=values.get("n_inner"),
        norm_epsilon=values.get("layer_norm_epsilon", 1e-5),
        tied_head=values.get("tie_word_embeddings", True),
    )


def _read_llama(values: Mapping[str, Any], family: str) -> TransformerConfig:
    _expect(values, "hidden_act", "silu", "silu", "swish")
    layers, context = _need(values, "num_hidden_layers"), _need(values, "max_position_embeddings")
    window, window_layers = (None, None) if family == "llama" else _read_window(values, layers)
    if family == "qwen2":
        biased = _ATTENTION[:3]
    else:
        biased = _ATTENTION if values.get("attention_bias") else ()
        biased += _FEED_FORWARD if family == "llama" and values.get("mlp_bias") else ()
    theta, scaling = _read_rope(values, context)
    return TransformerConfig(
        vocab_size=_need(values, "vocab_size"),
        width=_need(values, "hidden_size"),
        layers=layers,
        heads=_need(values, "num_attention_heads"),
        context=context,
        positions="rotary",
        norm="rms",
        feed_forward="swiglu",
        biased=biased,
        tied_head=values.get("tie_word_embeddings", False),
        key_value_heads=values.get("num_key_value_heads"),
        head_width=values.get("head_dim") or (128 if family == "qwen3" else None),
        feed_forward_width=_need(values, "intermediate_size"),
        query_key_norm=family == "qwen3",
        norm_epsilon=values.get("rms_norm_eps", 1e-6),
        rope_theta=theta,
        rope_scaling=scaling,
        window=window,
        window_layers=window_layers,
    )


def _read_window(values: Mapping[str, Any], layers: int) -> tuple[int | None, tuple[int, ...] | None]:
    window = values.get("sliding_window") if values.get("use_sliding_window") else None
    kinds = values.get("layer_types")
    if kinds is None:
        full = values.get("max_window_layers", 28)
        kinds = ["sliding_attention" if window and i >= full else "full_attention" for i in range(layers)]
    if len(kinds) != layers or set(kinds) - {"sliding_attention", "full_attention"}:
        raise ValueError(
            f"layer_types must give each of {layers} layers sliding_attention or full_attention; got {kinds}"
        )
    sliding = tuple(i for i, kind in enumerate(kinds) if kind == "sliding_attention")
    if sliding and window is None:
        raise ValueError(
            "layer_types has sliding_attention, but use_sliding_window or sliding_window is unset"
        )
    return (window if sliding else None), (sliding if 0 < len(sliding) < layers else None)


def _read_rope(values: Mapping[str, Any], context: int) -> tuple[float, RopeScaling | None]:
    rope = values.get("rope_parameters") or values.get("rope_scaling") or {}
    theta = rope.get("rope_theta", values.get("rope_theta", 10_000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", values.get("partial_rotary_factor", 1.0)) != 1.0:
        raise ValueError("partial_rotary_factor must be 1; rotating a part of each head is not supported")
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling(_need(rope, "factor", float))
    if kind == "llama3":
        return theta, RopeScaling(
            _need(rope, "factor", float),
            _need(rope, "low_freq_factor", float),
            _need(rope, "high_freq_factor", float),
            rope.get("original_max_position_embeddings", context),
        )
    raise ValueError(
        f"rope_type must be one of default, linear, llama3; got {kind!r}, which is not supported"
    )


def _need(values: Mapping[str, Any], name: str, kind: type = int) -> Any:
    got = values.get(name)
    if got is None:
        raise ValueError(f"{name} is missing; the configuration does not describe a model")
    if isinstance(got, bool) or not isinstance(got, (int, kind)):
        raise ValueError(f"{name} must be of type {kind.__name__}; got {got!r}")
    return got


def _expect(values: Mapping[str, Any], name: str, default: Any, *known: Any) -> None:
    if (got := values.get(name, default)) not in known:
        raise ValueError(
            f"{name} must be {' or '.join(map(str, known))}; got {got!r}, which is not supported"
        )


def family_of(config: TransformerConfig) -> str:
    """Return the family that a configuration belongs to: the one whose `config.json` reads back as it.

    Raises:
      ValueError: if none of the families can hold the configuration.
    """
    wanted = _shape(config)
    reasons = []
    for family in FAMILIES:
        try:
            got = _shape(read_config(write_config(config, family)))
        except ValueError as error:
            reasons.append(f"{family}: {error}")
            continue
        lost = [name for name in wanted if wanted[name] != got[name]]
        if not lost:
            return family
        reasons.append(f"{family} cannot hold {', '.join(lost)}")
    raise ValueError(f"no Hugging Face family has this configuration: {'; '.join(reasons)}")


def _shape(config: TransformerConfig) -> dict[str, Any]:
    """Return what defines the function, with defaults filled in; how it is computed is left out."""
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    for name in ("dtype", "remat", "attention"):
        del values[name]
    filled = {
        "key_value_heads": config.kv_heads,
        "head_width": config.depth,
        "feed_forward_width": config.hidden,
        "biased": {name for name in config.biased if name in config.linears},
        "window_layers": None
        if config.window_layers == tuple(range(config.layers))
        else config.window_layers,
    }
    return values | filled


def write_config(config: TransformerConfig, family: str) -> dict[str, Any]:
    """Return the entries of `config.json` that describe a configuration within a family."""
    common = {
        "architectures": [FAMILIES[family]],
        "model_type": family,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tied_head,
    }
    if family == "gpt2":
        return common | {
            "n_embd": config.width,
            "n_layer": config.layers,
            "n_head": config.heads,
            "n_positions": config.context,
            "n_inner": config.hidden,
            "activation_function": "gelu_new",
            "layer_norm_epsilon": config.norm_epsilon,
        }
    common |= {
        "hidden_size": config.width,
        "intermediate_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.depth,
        "max_position_embeddings": config.context,
        "hidden_act": "silu",
        "rms_norm_eps": config.norm_epsilon,
        **_write_rope(config),
    }
    if family != "qwen2":
        common["attention_bias"] = "query" in config.biased
    if family == "llama":
        return common | {"mlp_bias": "up" in config.biased}
    window_layers = config.window_layers or (range(config.layers) if config.window else ())
    kinds = [("sliding" if i in window_layers else "full") + "_attention" for i in range(config.layers)]
    return common | {
        "use_sliding_window": config.window is not None,
        "sliding_window": config.window,
        "max_window_layers": kinds.count("full_attention"),
        "layer_types": kinds,
    }


def _write_rope(config: TransformerConfig) -> dict[str, Any]:
    """Return both spellings: older readers would take an unknown entry's default without a word."""
    scaling, rope = config.rope_scaling, {"rope_type": "default"}
    if scaling is not None:
        rope = {"rope_type": "linear", "factor": scaling.factor}
        if scaling.low is not None:
            rope |= {
                "rope_type": "llama3",
                "low_freq_factor": scaling.low,
                "high_freq_factor": scaling.high,
                "original_max_position_embeddings": scaling.original_context,
            }
    return {
        "rope_parameters": rope | {"rope_theta": config.rope_theta},
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else rope,
    }
