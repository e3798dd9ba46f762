"""Language models from GGUF, llama.cpp's files, by the `gguf` package's reader and dequantiser.

A file's metadata becomes the `config.json` of its family, and a record of llama.cpp's names reads its
tensors, so that a file is taken as strictly as a folder: every tensor once, none left over, each of its shape
and finite.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxrl_align.nets.rope import rope_frequencies
from jaxrl_align.nets.transformer_config import RopeScaling, TransformerConfig
from jaxrl_align.runtime.huggingface.config import read_config
from jaxrl_align.runtime.huggingface.families import Family
from jaxrl_align.runtime.huggingface.gguf_tokenizer import read_tokenizer
from jaxrl_align.runtime.huggingface.models import Pretrained, check_vocabulary
from jaxrl_align.runtime.huggingface.parts import REQUIRED, need, write_scaling
from jaxrl_align.runtime.huggingface.saving import check_new, save_model
from jaxrl_align.runtime.huggingface.tensors import (
    check_size,
    empty_params,
    from_tensor,
    misfits,
    param_shapes,
    tensor_shape,
    tensors_of,
    to_jax,
)
from jaxrl_align.typed import brief, naming, short

ARCHITECTURES = ("llama", "qwen2", "qwen3")
LAYOUT = Family(
    "llama.cpp",
    {
        "token_embd": "tokens",
        "output_norm": "final_norm",
        "blk.{}.attn_norm": "attention_norm",
        "blk.{}.attn_q": "query",
        "blk.{}.attn_k": "key",
        "blk.{}.attn_v": "value",
        "blk.{}.attn_output": "attention_out",
        "blk.{}.attn_q_norm": "query_norm",
        "blk.{}.attn_k_norm": "key_norm",
        "blk.{}.ffn_norm": "feed_forward_norm",
        "blk.{}.ffn_gate": "gate",
        "blk.{}.ffn_up": "up",
        "blk.{}.ffn_down": "down",
    },
    parts=(),
    prefix="",
    head="output",
)
"""llama.cpp's names, the same in all of its architectures that are read here."""

_SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
}
_WIDTHS = ("attention.key_length", "attention.value_length", "rope.dimension_count")
_KNOWN = {
    *_SIZES.values(),
    *_WIDTHS,
    "vocab_size",
    "attention.head_count_kv",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
}
_FACTORS = "rope_freqs.weight"
_ROWS = 1024
"""As many of a tensor are dequantised at a time."""


def load_gguf(path: str | os.PathLike, *, dtype: str = "float32") -> Pretrained:
    """Read a language model and its tokenizer from a GGUF file.

    Tensors are dequantised one after the other, some rows at a time, so that no more than the result is in
    memory. llama.cpp interleaves the rows of Llama's queries and keys; they come back in rotate-half order.

    Args:
      path: a whole model of architecture llama, qwen2 or qwen3.
      dtype: of the parameters, "float32" or "bfloat16".

    Returns:
      What `load_model` returns.

    Raises:
      ImportError: if `gguf` is not installed.
      ValueError: for a damaged file, and an architecture, quantisation, tokenizer, piece of metadata or
        tensor that is missing, left over, of another shape or not supported; it names the file and the entry.
    """
    gguf, path = _require_gguf(), Path(path)
    if dtype not in ("float32", "bfloat16"):
        raise ValueError(f"dtype must be float32 or bfloat16; got {dtype!r}")
    reader = _open(gguf, path)
    with naming(path):
        return _load(gguf, reader, jnp.dtype(dtype))


def import_gguf(path: str | os.PathLike, folder: str | os.PathLike, *, dtype: str = "bfloat16") -> Path:
    """Write a GGUF file's model as a folder that `load_model` and transformers open; whole or not at all.

    Args:
      path: as `load_gguf`'s.
      folder: a new name.
      dtype: of the weights, "bfloat16" or "float32".

    Returns:
      The folder.

    Raises:
      ImportError, ValueError: as `load_gguf`; ValueError if the folder exists.
    """
    folder = Path(folder)
    check_new(folder)
    model = load_gguf(path, dtype=dtype)
    folder.parent.mkdir(parents=True, exist_ok=True)
    return save_model(
        folder, model.config, model.params, stop_tokens=model.stop_tokens, tokenizer=model.tokenizer
    )


def _require_gguf() -> Any:
    try:
        import gguf
    except ImportError as error:
        raise ImportError("gguf is not installed; pip install 'jaxrl-align[gguf]'") from error
    return gguf


def _open(gguf: Any, path: Path) -> Any:
    class Reader(gguf.GGUFReader):
        """Refuses what lies behind the file's end, where the package's own may read on for ever."""

        data: Any

        def _get(self, offset: int, dtype: Any, count: int = 1, *more: Any, **named: Any) -> np.ndarray:
            end = int(offset) + np.dtype(dtype).itemsize * int(count)
            if end > len(self.data):
                raise ValueError(f"it must go on to byte {end}; got {len(self.data)}")
            self.data = np.asarray(self.data)  # its slices are leaner than those of a memory map
            return super()._get(offset, dtype, count, *more, **named)

    try:
        reader = Reader(path)
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; give a GGUF file") from error
    except (ValueError, LookupError, OverflowError) as error:
        raise ValueError(
            f"{path} is truncated or no GGUF file ({brief(error)}); download it again"
        ) from error
    if reader.byte_order != "I":
        raise ValueError(f"{path} is of the other byte order, which is not supported; convert it here")
    return reader


def _load(gguf: Any, reader: Any, dtype: Any) -> Pretrained:
    metadata = {name: _content(field) for name, field in reader.fields.items()}
    reader.fields.clear()  # several views of the file for every token
    stored = {tensor.name: tensor for tensor in reader.tensors}
    values = _config_values(metadata, stored)
    config = read_config(values)
    tokenizer = read_tokenizer(metadata)
    check_vocabulary(tokenizer, config)
    stop_tokens = _stop_tokens(metadata, config)
    check_size(config, map(_shape, stored.values()))
    tensors = {tensor.name: tensor for tensor in tensors_of(config, LAYOUT)}
    empty = param_shapes(config)
    shapes = {name: tensor_shape(tensor, empty) for name, tensor in tensors.items()}
    optional = [_FACTORS] if (values["rope_scaling"] or {}).get("rope_type") == "llama3" else []
    if faults := misfits({name: _shape(tensor) for name, tensor in stored.items()}, shapes, optional):
        raise ValueError(
            f"the tensors do not fit the metadata: {faults}; the file is damaged, or a variant that is not "
            "supported"
        )
    params = empty_params(config, dtype)
    for name, tensor in tensors.items():
        array = _dequantise(gguf, stored[name], dtype)
        if values["model_type"] == "llama" and tensor.places[0][1:2] in (("query",), ("key",)):
            array = _rotate_half_rows(array, config.depth)
        from_tensor(tensor, array, params)
    return Pretrained(config, to_jax(params), stop_tokens, tokenizer and tokenizer.with_stops(stop_tokens))


def _content(field: Any) -> Any:
    value = field.contents()
    # The shortest number that float32 takes for it: 1e-05, not 9.999999747378752e-06.
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _config_values(metadata: Mapping[str, Any], stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entries of the family's `config.json`."""
    architecture = need(metadata, "general.architecture", str)
    if architecture not in ARCHITECTURES:
        raise ValueError(
            f"general.architecture must be {', '.join(ARCHITECTURES)}; got {short(architecture)}, which is "
            "not supported; take the model's safetensors folder"
        )
    if (kind := metadata.get("general.type", "model")) != "model":
        raise ValueError(f"general.type must be model; got {short(kind)}; give the file of the whole model")
    if need(metadata, "split.count", default=1) > 1:
        raise ValueError("the file is one of several (split.count); merge them with llama-gguf-split --merge")
    unknown = [key for key in metadata if key.startswith(f"{architecture}.")]
    unknown = [key for key in unknown if key.removeprefix(f"{architecture}.") not in _KNOWN]
    if unknown:
        raise ValueError(f"the metadata {', '.join(sorted(unknown)[:3])} are not supported")

    def get(key: str, kind: type = int, default: Any = REQUIRED) -> Any:
        got = need(metadata, f"{architecture}.{key}", kind, default, least=1)
        if kind is int and got >= 2**31:
            raise ValueError(f"{architecture}.{key} must be below 2^31; got {got}")
        return got

    values = {theirs: get(key) for theirs, key in _SIZES.items()}
    layers, heads = values["num_hidden_layers"], values["num_attention_heads"]
    if not any(name.startswith(f"blk.{layers - 1}.") for name in stored):
        raise ValueError(f"{architecture}.block_count is {layers}, but there is no tensor of the last layer")
    depth = get("attention.key_length", default=values["hidden_size"] // heads)
    for key in _WIDTHS:
        if (got := get(key, default=depth)) != depth:
            raise ValueError(f"{architecture}.{key} must be a head's width {depth}; got {got}")
    theta = get("rope.freq_base", float, 10_000.0)
    kind, scaling = get("rope.scaling.type", str, "none"), None
    if kind == "linear":
        scaling = write_scaling(RopeScaling(get("rope.scaling.factor", float)))
    elif kind != "none":
        scaling = {"rope_type": kind}  # which the family refuses
    elif _FACTORS in stored:
        scaling = write_scaling(_llama3_scaling(stored[_FACTORS].data, theta, depth))
    return values | {
        "model_type": architecture,
        "vocab_size": get("vocab_size", default=len(need(metadata, "tokenizer.ggml.tokens", list))),
        "num_key_value_heads": get("attention.head_count_kv", default=heads),
        "head_dim": depth,
        "rms_norm_eps": get("attention.layer_norm_rms_epsilon", float),
        "rope_theta": theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": f"{LAYOUT.head}.weight" not in stored,
        "attention_bias": "blk.0.attn_q.bias" in stored,
        "mlp_bias": "blk.0.ffn_gate.bias" in stored,
    }


def _llama3_scaling(factors: np.ndarray, theta: float, depth: int) -> RopeScaling:
    """Return Llama 3's scaling, of which llama.cpp stores what it divides each frequency by."""
    scaling, alike = RopeScaling(float(np.max(factors, initial=1.0)), 1.0, 4.0, 8192), False
    if factors.shape == (depth // 2,):  # as many as the file holds, before any are made
        divisors = rope_frequencies(depth, theta) / rope_frequencies(depth, theta, scaling)
        alike = np.allclose(factors, divisors, rtol=1e-3)
    if not alike:
        raise ValueError(f"{_FACTORS} must hold the rope scaling of Llama 3; other factors are not supported")
    return scaling


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(int(size) for size in reversed(tensor.shape))


def _dequantise(gguf: Any, tensor: Any, dtype: Any) -> np.ndarray:
    """Return a tensor in a dtype."""
    data, shape = np.atleast_2d(tensor.data), _shape(tensor)
    array = np.empty((len(data), shape[-1]), dtype)
    for i in range(0, len(data), _ROWS):
        try:
            array[i : i + _ROWS] = gguf.dequantize(data[i : i + _ROWS], tensor.tensor_type)
        except NotImplementedError as error:
            raise ValueError(
                f"{tensor.name} is quantised as {tensor.tensor_type.name}, which the gguf package cannot "
                "dequantise; take another quantisation of the model"
            ) from error
    if not np.isfinite(array).all():
        raise ValueError(
            f"{tensor.name} holds NaN or infinite values; the model is broken: take another file"
        )
    return array.reshape(shape)


def _rotate_half_rows(array: np.ndarray, depth: int) -> np.ndarray:
    """Return a query's or key's rows, of `[..., depth / 2, 2]` within each head, as `[..., 2, depth / 2]`."""
    return array.reshape(-1, depth // 2, 2, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def _stop_tokens(metadata: Mapping[str, Any], config: TransformerConfig) -> tuple[int, ...]:
    keys = [f"tokenizer.ggml.{name}_token_id" for name in ("eos", "eot")]
    named = dict.fromkeys(need(metadata, key, least=0) for key in keys if key in metadata)
    if outside := [i for i in named if i >= config.vocab_size]:
        raise ValueError(f"stop tokens must lie in the vocabulary of {config.vocab_size}; got {outside}")
    return tuple(named)
