"""Which tensor of a Hugging Face checkpoint holds which of our parameters, and how one becomes the other.

Torch's linear layers store `[out, in]` and are transposed; GPT-2's store `[in, out]`, with query, key and
value side by side. Ours are `[in, out]`, the layers stacked in front.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl_align.nets.transformer import TransformerConfig, make_transformer

__all__ = ["PREFIXES", "Tensor", "empty_params", "pack", "tensor_shape", "tensors_of", "unpack"]

PREFIXES = {"gpt2": "transformer.", "llama": "model.", "qwen2": "model.", "qwen3": "model."}
"""What stands before every name but the head's; files of the bare decoder leave it out."""


class Tensor(NamedTuple):
    """One tensor of a checkpoint."""

    name: str
    places: tuple[tuple[str, ...], ...]
    """Paths of the leaves that it holds, side by side along the last axis."""
    layer: int | None = None
    """Its index in the leaves' first axis, if they are stacked."""
    transposed: bool = False


def tensors_of(config: TransformerConfig, family: str) -> list[Tensor]:
    """Return every tensor that a checkpoint of this configuration must hold, once."""
    names = _gpt2 if family == "gpt2" else _llama
    found = names(config)
    if not config.tied_head:
        found.append(Tensor("lm_head.weight", (("head",),), transposed=True))
    return found


def _gpt2(config: TransformerConfig) -> list[Tensor]:
    found = [
        Tensor("transformer.wte.weight", (("tokens",),)),
        Tensor("transformer.wpe.weight", (("positions",),)),
        Tensor("transformer.ln_f.weight", (("final_norm", "scale"),)),
        Tensor("transformer.ln_f.bias", (("final_norm", "bias"),)),
    ]
    norms = {"ln_1": "attention_norm", "ln_2": "feed_forward_norm"}
    linears = {
        "attn.c_attn": ("query", "key", "value"),
        "attn.c_proj": ("attention_out",),
        "mlp.c_fc": ("up",),
        "mlp.c_proj": ("down",),
    }
    for i in range(config.layers):
        for theirs, ours in norms.items():
            for end, leaf in (("weight", "scale"), ("bias", "bias")):
                found.append(Tensor(f"transformer.h.{i}.{theirs}.{end}", (("layers", ours, leaf),), i))
        for theirs, ours in linears.items():
            for end, leaf in (("weight", "kernel"), ("bias", "bias")):
                places = tuple(("layers", name, leaf) for name in ours)
                found.append(Tensor(f"transformer.h.{i}.{theirs}.{end}", places, i))
    return found


def _llama(config: TransformerConfig) -> list[Tensor]:
    found = [
        Tensor("model.embed_tokens.weight", (("tokens",),)),
        Tensor("model.norm.weight", (("final_norm", "scale"),)),
    ]
    norms = {"input_layernorm": "attention_norm", "post_attention_layernorm": "feed_forward_norm"}
    if config.query_key_norm:
        norms |= {"self_attn.q_norm": "query_norm", "self_attn.k_norm": "key_norm"}
    linears = {
        "self_attn.q_proj": "query",
        "self_attn.k_proj": "key",
        "self_attn.v_proj": "value",
        "self_attn.o_proj": "attention_out",
        "mlp.gate_proj": "gate",
        "mlp.up_proj": "up",
        "mlp.down_proj": "down",
    }
    for i in range(config.layers):
        for theirs, ours in norms.items():
            found.append(Tensor(f"model.layers.{i}.{theirs}.weight", (("layers", ours, "scale"),), i))
        for theirs, ours in linears.items():
            start = f"model.layers.{i}.{theirs}"
            found.append(Tensor(f"{start}.weight", (("layers", ours, "kernel"),), i, transposed=True))
            if ours in config.biased:
                found.append(Tensor(f"{start}.bias", (("layers", ours, "bias"),), i))
    return found


def empty_params(config: TransformerConfig) -> dict[str, Any]:
    """Return the parameters' tree with float32 arrays whose content is not set."""
    shapes = jax.eval_shape(make_transformer(config).init, jax.random.key(0))
    return jax.tree.map(lambda leaf: np.empty(leaf.shape, np.float32), shapes)


def tensor_shape(tensor: Tensor, params: Mapping[str, Any]) -> tuple[int, ...]:
    """Return the shape that a tensor has in the checkpoint, given parameters of the configuration."""
    shapes = [_leaf(params, place).shape[tensor.layer is not None :] for place in tensor.places]
    shape = (*shapes[0][:-1], sum(s[-1] for s in shapes))
    return shape[::-1] if tensor.transposed else shape


def unpack(tensor: Tensor, array: np.ndarray, params: Mapping[str, Any]) -> None:
    """Write a tensor of the checkpoint to its place in NumPy parameters."""
    array = array.T if tensor.transposed else array
    leaves = [_leaf(params, place) for place in tensor.places]
    widths = np.cumsum([leaf.shape[-1] for leaf in leaves])[:-1]
    for leaf, part in zip(leaves, np.split(array, widths, -1), strict=True):
        leaf[... if tensor.layer is None else tensor.layer] = part


def pack(tensor: Tensor, params: Mapping[str, Any]) -> np.ndarray:
    """Return a tensor of the checkpoint; contiguous, since safetensors writes the memory behind an array."""
    leaves = [np.asarray(_leaf(params, place)) for place in tensor.places]
    leaves = leaves if tensor.layer is None else [leaf[tensor.layer] for leaf in leaves]
    array = np.concatenate(leaves, -1)
    return np.ascontiguousarray(array.T if tensor.transposed else array)


def _leaf(params: Mapping[str, Any], place: tuple[str, ...]) -> Any:
    for name in place:
        params = params[name]
    return params
