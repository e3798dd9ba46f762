"""Map between the tensors of a PEFT file and a part of our parameters, both ways, for each kind."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxrl_align.nets.kinds import Tuning, column_norms
from jaxrl_align.nets.quantize import dequantise, is_packed
from jaxrl_align.nets.transformer import TransformerConfig
from jaxrl_align.runtime.huggingface.adapters.peft_config import Adapter, Module, linear_modules, write_scales
from jaxrl_align.runtime.huggingface.families import Family
from jaxrl_align.types import Params

_BEFORE = "base_model.model."
_VIRTUAL = "prompt_embeddings"
Tensors = Mapping[str, np.ndarray]


def adapter_shapes(adapter: Adapter, config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Return every tensor that an adapter's file must hold."""
    count = adapter.virtual_tokens
    if adapter.kind == "PROMPT_TUNING":
        return {_VIRTUAL: (count, config.width)}
    if adapter.kind == "PREFIX_TUNING":
        return {_VIRTUAL: (count, config.layers * 2 * config.kv_heads * config.depth)}
    found: dict[str, tuple[int, ...]] = {}
    for module in adapter.modules:
        name, out = _BEFORE + module.name, sum(module.widths)
        if adapter.kind == "IA3":
            found[f"{name}.ia3_l"] = (1, module.fan_in) if module.feedforward else (out, 1)
            continue
        found[f"{name}.lora_A.weight"] = (module.rank, module.fan_in)
        found[f"{name}.lora_B.weight"] = (out, module.rank)
        if adapter.dora:
            found[f"{name}.lora_magnitude_vector"] = (out,)
    return found


def _blocks(module: Module, array: np.ndarray) -> list[np.ndarray]:
    """Split an array's last axis, a checkpoint layer's outputs, into those of our layers."""
    return np.split(array, np.cumsum(module.widths)[:-1], -1)


def _norms(base: Params, name: str) -> np.ndarray:
    kernel = base["layers"][name]["kernel"]
    return np.asarray(column_norms(dequantise(kernel) if is_packed(kernel) else kernel))


def _read_lora(adapter: Adapter, config: TransformerConfig, base: Params, arrays: Tensors) -> Tuning:
    kind = "dora" if adapter.dora else "lora"
    part: dict[str, Any] = {}
    constants: dict[str, Any] = {}
    for _, same in itertools.groupby(adapter.modules, lambda module: module.short):
        modules = list(same)
        first, rank = modules[0], max(module.rank for module in modules)
        a = np.zeros((config.layers, first.fan_in, rank), np.float32)
        b = np.zeros((config.layers, rank, sum(first.widths)), np.float32)
        scale = np.full(config.layers, first.scale, np.float32)
        magnitude = np.concatenate([_norms(base, name) for name in first.ours], -1) if adapter.dora else None
        for module in modules:
            name, i = _BEFORE + module.name, module.layer
            a[i, :, : module.rank] = arrays[f"{name}.lora_A.weight"].T
            b[i, : module.rank] = arrays[f"{name}.lora_B.weight"].T
            scale[i] = module.scale
            if magnitude is not None:
                magnitude[i] = arrays[f"{name}.lora_magnitude_vector"]
        magnitudes = [None] * len(first.ours) if magnitude is None else _blocks(first, magnitude)
        for name, block, own in zip(first.ours, _blocks(first, b), magnitudes, strict=True):
            # Of one B for several layers, a block that writes nothing is of another's.
            used = np.any(block, (0, 2)) if len(first.ours) > 1 and b.any() else np.ones(rank, bool)
            if not used.any():
                if own is None:
                    continue
                used[:] = True
            leaves = {"a": a[..., used], "b": block[:, used]} | ({} if own is None else {"magnitude": own})
            part[name] = {kind: leaves}
            fixed = {"dropout": np.full_like(scale, adapter.dropout)} if adapter.dropout else {}
            constants[name] = {kind: {"scale": scale} | fixed}
    return Tuning({"layers": part}, {"layers": constants})


def _read_ia3(adapter: Adapter, config: TransformerConfig, base: Params, arrays: Tensors) -> Tuning:
    part: dict[str, Any] = {}
    for module in adapter.modules:
        vector = arrays[f"{_BEFORE}{module.name}.ia3_l"].reshape(-1)
        kind = "ia3_input" if module.feedforward else "ia3"
        vectors = [vector] * len(module.ours) if module.feedforward else _blocks(module, vector)
        for name, own in zip(module.ours, vectors, strict=True):
            ones = {"vector": np.ones((config.layers, own.size), np.float32)}
            part.setdefault(name, {}).setdefault(kind, ones)["vector"][module.layer] = own
    return Tuning({"layers": part}, {})


def _read_prompt(adapter: Adapter, config: TransformerConfig, base: Params, arrays: Tensors) -> Tuning:
    # Theirs come after the embeddings' scale, ours before it.
    return Tuning({"prompt": {"table": arrays[_VIRTUAL] / np.float32(config.embedding_scale)}}, {})


def _read_prefix(adapter: Adapter, config: TransformerConfig, base: Params, arrays: Tensors) -> Tuning:
    rows = arrays[_VIRTUAL].reshape(adapter.virtual_tokens, config.layers, 2, -1)
    key, value = (np.ascontiguousarray(rows[:, :, i].swapaxes(0, 1)) for i in (0, 1))
    return Tuning({"layers": {"prefix": {"key": key, "value": value}}}, {})


_READERS = {
    "LORA": _read_lora,
    "IA3": _read_ia3,
    "PROMPT_TUNING": _read_prompt,
    "PREFIX_TUNING": _read_prefix,
}


def read_part(adapter: Adapter, config: TransformerConfig, base: Params, arrays: Tensors) -> Tuning:
    """Return the part and the constants that a file's tensors are, as NumPy arrays."""
    return _READERS[adapter.kind](adapter, config, base, arrays)


def write_part(
    kind: str, config: TransformerConfig, record: Family, base: Params, part: Params
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Return a part's tensors, and the entries of `adapter_config.json` that describe them.

    Args:
      kind: the part's `peft_type`.
      config: the base's.
      record: its family.
      base: holds the part's constants.
      part: NumPy arrays.
    """
    if kind in ("LORA", "IA3"):
        modules = [m for m in linear_modules(config, record) if part["layers"].keys() & set(m.ours)]
        return (_write_ia3 if kind == "IA3" else _write_lora)(modules, base, part["layers"])
    if kind == "PROMPT_TUNING":
        table = part["prompt"]["table"]
        rows = (table * np.float32(config.embedding_scale)).astype(table.dtype)
        heads, width = config.heads, config.width
    else:
        both = np.stack([part["layers"]["prefix"][name] for name in ("key", "value")], 1)
        rows = both.transpose(2, 0, 1, 3).reshape(both.shape[2], -1)
        heads, width = config.kv_heads, config.kv_heads * config.depth
    entries = {"num_virtual_tokens": len(rows), "num_layers": config.layers}
    return {_VIRTUAL: rows}, entries | {"num_attention_heads": heads, "token_dim": width}


def _write_lora(
    modules: Sequence[Module], base: Params, part: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    tensors: dict[str, np.ndarray] = {}
    written, dora = [], any("dora" in own for own in part.values())
    kind = "dora" if dora else "lora"
    untouched = {n for module in modules for n in module.ours if n not in part}
    norms = {n: _norms(base, n) for n in untouched} if dora else {}
    for module in modules:
        i, name, own = module.layer, _BEFORE + module.name, [n for n in module.ours if n in part]
        scales = [float(base["layers"][n][kind]["scale"][i]) for n in own]
        # Of layers that differ, each block takes its own.
        scale, gains = (scales[0], [1.0] * len(own)) if len(set(scales)) == 1 else (1.0, scales)
        a = np.concatenate([part[n][kind]["a"][i] for n in own], -1)
        b = np.zeros((a.shape[-1], sum(module.widths)), a.dtype)
        row = 0
        for n, gain in zip(own, gains, strict=True):
            block, end = part[n][kind]["b"][i], row + part[n][kind]["b"].shape[1]
            _blocks(module, b)[module.ours.index(n)][row:end] = block * np.float32(gain)
            row = end
        tensors |= {f"{name}.lora_A.weight": a.T, f"{name}.lora_B.weight": b.T}
        if dora:
            every = [part[n][kind]["magnitude"][i] if n in part else norms[n][i] for n in module.ours]
            tensors[f"{name}.lora_magnitude_vector"] = np.concatenate(every).astype(a.dtype)
        written.append(module._replace(rank=a.shape[-1], scale=scale))
    entries = {"use_dora": dora, "lora_dropout": _one_dropout(base, kind, part)}
    return tensors, write_scales(written) | entries


def _one_dropout(base: Params, kind: str, part: Mapping[str, Any]) -> float:
    rates = {float(x) for name in part for x in base["layers"][name][kind].get("dropout", np.zeros(1))}
    if len(rates) > 1:
        raise ValueError(
            f"base must hold one dropout for all layers; got {sorted(rates)}, which a PEFT folder cannot hold"
        )
    return float(f"{rates.pop():.7g}")  # as given, before float32


def _write_ia3(
    modules: Sequence[Module], base: Params, part: Mapping[str, Any]
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    tensors: dict[str, np.ndarray] = {}
    inputs = set()
    for module in modules:
        own = {kind: leaves for n in module.ours for kind, leaves in part.get(n, {}).items()}
        name, i = f"{_BEFORE}{module.name}.ia3_l", module.layer
        vectors = [part[n][k]["vector"][i] for k in own for n in module.ours if k in part.get(n, {})]
        dtype = vectors[0].dtype
        if "ia3_input" not in own:
            outputs = [
                part[n]["ia3"]["vector"][i] if n in part else np.ones(width, dtype)
                for n, width in zip(module.ours, module.widths, strict=True)
            ]
            tensors[name] = np.concatenate(outputs)[:, None]
        elif (
            len(own) == 1 and len(vectors) == len(module.ours) and not any(map(np.any, vectors - vectors[0]))
        ):
            tensors[name] = vectors[0][None]
            inputs.add(module.short)
        else:
            raise ValueError(
                f"part must multiply a layer's outputs or its input, by one vector; got {', '.join(own)} at "
                f"{' '.join(module.ours)}, which PEFT has as one layer; train one of them"
            )
    entries = {"target_modules": sorted({m.short for m in modules}), "feedforward_modules": sorted(inputs)}
    return tensors, entries
