"""PEFT's adapter folders in and out: LoRA, rsLoRA, DoRA, IA3, prompt tuning and prefix tuning.

A folder holds `adapter_config.json` (`peft_config.py`) and `adapter_model.safetensors`
(`peft_tensors.py`). Where PEFT only warns, and computes something else, reading refuses: every tensor must be
there, none may be left over.

GPT-2 keeps query, key and value in one layer, `c_attn`. Its LoRA is read as three adapters that begin with
the same A; ours, each with an A of its own, are written as one whose B has a block for each, of the sum of
their ranks. The function stays, and reading drops the columns that write nothing.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl_align.nets.adapters import overlay
from jaxrl_align.nets.kinds import KINDS, Tuning
from jaxrl_align.nets.quantize import kernel_shape
from jaxrl_align.nets.transformer import TransformerConfig
from jaxrl_align.runtime.checkpoint import fingerprint
from jaxrl_align.runtime.devices.hosts import gather
from jaxrl_align.runtime.huggingface.adapters.peft_config import read_adapter, write_adapter
from jaxrl_align.runtime.huggingface.adapters.peft_tensors import adapter_shapes, read_part, write_part
from jaxrl_align.runtime.huggingface.config import family_of
from jaxrl_align.runtime.huggingface.families import FAMILIES
from jaxrl_align.runtime.huggingface.saving import check_new
from jaxrl_align.runtime.huggingface.storage import (
    check_floats,
    read_metadata,
    read_tensors,
    require_safetensors,
    stored_tensors,
    whole_folder,
    write_tensors,
)
from jaxrl_align.runtime.huggingface.tensors import misfits, param_shapes, to_jax
from jaxrl_align.typed import naming
from jaxrl_align.types import Params

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_BASE = "jaxrl_align_base_sha256"
"""Of the base's content, among the file's metadata: PEFT warns of an unknown entry in the configuration."""
_LAID = {*KINDS, "prompt", "prefix"}
"""Nodes that tuning lays over a base."""
_LINEAR = ("lora", "dora", "ia3", "ia3_input")
"""Those that PEFT has."""


def load_adapter(
    folder: str | os.PathLike, config: TransformerConfig, base: Params, *, any_base: bool = False
) -> Tuning:
    """Read a PEFT adapter as a part to lay over its base.

        model = load_model("models/base")
        part, constants = load_adapter("models/adapter", model.config, model.params)
        params = nets.overlay(nets.overlay(model.params, constants), part)

    Layers that the adapter does not cover have a part that changes nothing (B = 0, vectors of 1).

    Args:
      folder: holds `adapter_config.json` and `adapter_model.safetensors`.
      config: the base's.
      base: the parameters that the adapter was trained on, plain or packed.
      any_base: read an adapter that `save_adapter` wrote for a base of other content too: for example of
        another dtype, or packed otherwise. Of PEFT's own files only the shapes say which base they are for.

    Raises:
      ImportError: if `safetensors` is not installed.
      ValueError: for anything unsupported, missing, left over, mis-shaped, of another type, NaN or damaged,
        or an adapter of another base; it names the file and the entry.
    """
    require_safetensors()
    base = _plain(config, base)
    with naming(folder):
        return _load(Path(folder), config, base, any_base)


def _load(folder: Path, config: TransformerConfig, base: Params, any_base: bool) -> Tuning:
    adapter = read_adapter(folder / CONFIG, config, FAMILIES[family_of(config)])
    stored = stored_tensors(folder, WEIGHTS)
    check_floats(stored)
    if faults := misfits({n: t.shape for n, t in stored.items()}, adapter_shapes(adapter, config)):
        raise ValueError(
            f"the tensors in {folder} do not fit its {CONFIG} and the base: {faults}; take all three "
            "from the same adapter"
        )
    written_for = read_metadata(folder / WEIGHTS).get(_BASE)
    if written_for and not any_base and (got := fingerprint(base)["sha256"]) != written_for:
        raise ValueError(
            f"{folder} must be laid over the base that it was trained on, {written_for[:12]}; got "
            f"{got[:12]}: other weights, another dtype or packing; load that one, or pass any_base=True"
        )
    arrays = dict(read_tensors(stored, stored))
    tuning = read_part(adapter, config, base, arrays)
    return Tuning(to_jax(tuning.part), to_jax(tuning.constants))


def _plain(config: TransformerConfig, base: Params) -> Params:
    """Return a base without what is laid over it; ValueError if it is no base of the configuration."""
    plain = _strip(base)
    faults = misfits(_kernel_shapes(plain), _kernel_shapes(param_shapes(config)))
    if faults:
        raise ValueError(f"base must hold the parameters of its configuration; got {faults}")
    return plain


def _strip(tree: Any) -> Any:
    if not isinstance(tree, dict):
        return tree
    return {name: _strip(sub) for name, sub in tree.items() if name not in _LAID}


def _kernel_shapes(tree: Any, path: tuple[str, ...] = ()) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a base's leaves, those that packed kernels stand for included."""
    if not isinstance(tree, dict) or path[-1:] == ("kernel",):
        return {"/".join(path): tuple(kernel_shape(tree))}
    return {k: v for name, sub in tree.items() for k, v in _kernel_shapes(sub, (*path, name)).items()}


def save_adapter(
    folder: str | os.PathLike,
    config: TransformerConfig,
    base: Params,
    part: Params,
    *,
    base_name: str | None = None,
) -> Path:
    """Write a trained part as a folder that `peft` opens over its base; whole or not at all.

        save_adapter("models/adapter", model.config, base, state.params)

    The file names the base by a hash of its content, by which `load_adapter` knows it.

    Args:
      folder: a new name; its parent exists.
      config: the base's; one of the families can hold it.
      base: what the part was laid over in training, its constants included.
      part: adapters of linear layers of one kind (LoRA, DoRA or IA3), a prompt or a prefix; all float32 or
        all bfloat16.
      base_name: the base's folder, or its name on the hub, for `adapter_config.json`.

    Returns:
      The folder.

    Raises:
      ImportError: if `safetensors` is not installed.
      ValueError: if the folder exists, no family can hold the configuration, or the part is of a kind that
        PEFT has not, does not fit the base, lacks its constants, or is not finite.
    """
    folder = Path(folder)
    require_safetensors()
    check_new(folder)
    record = FAMILIES[family_of(config)]
    plain = _plain(config, base)
    leaves = _flatten(part)
    kind = _kind_of(leaves)
    _check_part(plain, base, part, leaves)
    tensors, entries = write_part(kind, config, record, base, jax.tree.map(np.asarray, gather(part)))
    values = write_adapter(kind, record, base_name, **entries)
    with whole_folder(folder) as temporary:
        # safetensors writes the memory behind an array.
        tensors = {name: np.ascontiguousarray(x) for name, x in tensors.items()}
        write_tensors(temporary / WEIGHTS, tensors, **{_BASE: fingerprint(plain)["sha256"]})
        (temporary / CONFIG).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    return folder


def _flatten(tree: Any) -> dict[tuple[str, ...], Any]:
    return {tuple(k.key for k in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _kind_of(leaves: Mapping[tuple[str, ...], Any]) -> str:
    """Return the `peft_type` of a part's leaves, all of one kind."""
    found: dict[str, str] = {}
    for path in leaves:
        if path == ("prompt", "table"):
            found["prompt"] = "PROMPT_TUNING"
        elif len(path) == 3 and path[:2] == ("layers", "prefix"):
            found["prefix"] = "PREFIX_TUNING"
        elif len(path) == 4 and path[0] == "layers" and path[2] in _LINEAR:
            kind = path[2].removesuffix("_input")
            found[kind] = "IA3" if kind == "ia3" else "LORA"
        else:
            raise ValueError(
                f"part must hold {', '.join(_LINEAR)} beside kernels of the blocks, a prompt or a prefix; "
                f"got {'/'.join(path)}, which a PEFT folder cannot hold; merge, and save the model"
            )
    if len(found) != 1:
        raise ValueError(
            f"part must be of one kind; got {', '.join(sorted(found)) or 'nothing'}; merge all but one into "
            "the base"
        )
    return next(iter(found.values()))


def _check_part(plain: Params, base: Params, part: Params, leaves: Mapping[tuple[str, ...], Any]) -> None:
    """Raise ValueError for a part that does not fit its base, lacks leaves, or cannot be written."""
    overlay(plain, part)
    laid = _flatten(base)
    for path, leaf in leaves.items():
        name, node = "/".join(path), path[:-1]
        if path[-2] in KINDS:
            wanted = KINDS[path[-2]].trained((1, 1)).keys()
        else:
            wanted = {"table"} if path[-2] == "prompt" else {"key", "value"}
        got = {other[-1] for other in leaves if other[:-1] == node}
        if got != wanted:
            raise ValueError(
                f"part must hold {', '.join(sorted(wanted))} at {'/'.join(node)}; got "
                f"{', '.join(sorted(got))}; give what was trained, whole"
            )
        constant = (*node, "scale")
        if path[-1] == "a" and not (constant in laid and np.isfinite(laid[constant]).all()):
            raise ValueError(
                f"base must hold the part's constants; got no finite {'/'.join(constant)}; give the base "
                "that it was trained on, nets.overlay(base, constants)"
            )
        if str(leaf.dtype) not in ("float32", "bfloat16") or leaf.dtype != next(iter(leaves.values())).dtype:
            raise ValueError(f"part must be all float32 or all bfloat16; got {leaf.dtype} at {name}")
        if not np.isfinite(np.asarray(gather(leaf), np.float32)).all():
            raise ValueError(f"part/{name} holds NaN or infinite values; nothing was written")
        other, axis = {"b": ("a", -1), "value": ("key", 1)}.get(path[-1], (path[-1], None))
        if axis is not None and leaf.shape[-2] != leaves[(*node, other)].shape[axis]:
            raise ValueError(
                f"part must have one rank, and one length, at {'/'.join(node)}; got {other} of shape "
                f"{leaves[(*node, other)].shape} and {path[-1]} of {leaf.shape}"
            )
    for path in laid.keys() - leaves.keys():
        if _LAID & set(path) and path[-1] not in ("scale", "dropout"):
            raise ValueError(
                f"base must hold no tuning beside the part; got {'/'.join(path)}; merge it into the base"
            )
