"""PEFT's `adapter_config.json` both ways: the kind of an adapter, the modules it covers, ranks and scales.

An entry that could change the function and that is not understood is refused, whichever version of PEFT
wrote it.
"""

import collections
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrl_align.nets.quantize import kernel_shape
from jaxrl_align.nets.transformer import TransformerConfig
from jaxrl_align.runtime.huggingface.adapters.patterns import is_whole_match
from jaxrl_align.runtime.huggingface.entries import AdapterEntries
from jaxrl_align.runtime.huggingface.families import Family
from jaxrl_align.runtime.huggingface.parts import need
from jaxrl_align.runtime.huggingface.tensors import param_shapes
from jaxrl_align.typed import naming, read_object

VERSION = "0.21.2"
"""Of PEFT, whose entries these are."""
_EVERY = {
    "auto_mapping": None,
    "base_model_name_or_path": None,
    "inference_mode": True,
    "peft_version": VERSION,
    "revision": None,
    "task_type": "CAUSAL_LM",
}
_LINEAR = _EVERY | {"exclude_modules": None, "fan_in_fan_out": False, "target_modules": None}
_VIRTUAL = _EVERY | {
    "num_attention_heads": None,
    "num_layers": None,
    "num_virtual_tokens": None,
    "token_dim": None,
}


class Form(NamedTuple):
    """The entries of one `peft_type`, as written where nothing else is given."""

    free: Mapping[str, Any]
    """Those that are read, or that say how an adapter began or was trained."""
    fixed: Mapping[str, Any]
    """Those whose every other value is refused."""


FORMS = {
    "LORA": Form(
        _LINEAR
        | {
            "alpha_pattern": {},
            "corda_config": None,
            "ensure_weight_tying": False,
            "eva_config": None,
            "init_lora_weights": True,
            "layers_pattern": None,
            "layers_to_transform": None,
            "loftq_config": {},
            "lora_alpha": 8,
            "lora_dropout": 0.0,
            "lora_ga_config": None,
            "megatron_core": "megatron.core",
            "qalora_group_size": 16,
            "r": 8,
            "rank_pattern": {},
            "use_dora": False,
            "use_rslora": False,
        },
        {
            "alora_invocation_tokens": None,
            "arrow_config": None,
            "bias": "none",
            "kasa_config": None,
            "layer_replication": None,
            "lora_bias": False,
            "megatron_config": None,
            "modules_to_save": None,
            "monteclora_config": None,
            "target_parameters": None,
            "trainable_token_indices": None,
            "use_bdlora": None,
            "use_qalora": False,
            "velora_config": None,
        },
    ),
    "IA3": Form(
        _LINEAR | {"feedforward_modules": None, "init_ia3_weights": True},
        {"modules_to_save": None},
    ),
    "PROMPT_TUNING": Form(
        _VIRTUAL
        | {
            "prompt_tuning_init": "RANDOM",
            "prompt_tuning_init_text": None,
            "tokenizer_kwargs": None,
            "tokenizer_name_or_path": None,
        },
        {"modules_to_save": None, "num_transformer_submodules": 1},
    ),
    "PREFIX_TUNING": Form(
        # What a projection made of a prefix is what the file holds.
        _VIRTUAL | {"encoder_hidden_size": None, "init_weights": None, "prefix_projection": False},
        {"modules_to_save": None, "num_transformer_submodules": 1},
    ),
}
"""By `peft_type`."""

_MOVES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
_KEEPS_BASE = ("gaussian", "eva", "orthogonal", "mica")


class Module(NamedTuple):
    """A linear layer of the checkpoint."""

    name: str
    """Without `base_model.model.`, as patterns see it."""
    short: str
    """Its name within the block, for example "self_attn.q_proj"."""
    ours: tuple[str, ...]
    """Our linear layers that it holds, side by side along its outputs."""
    layer: int
    fan_in: int
    widths: tuple[int, ...]
    """Outputs of each of ours."""
    rank: int = 0
    scale: float = 1.0
    feedforward: bool = False
    """IA3 multiplies its input."""


class Adapter(NamedTuple):
    """What an `adapter_config.json` describes."""

    kind: str
    """Its `peft_type`."""
    modules: Sequence[Module] = ()
    """The linear layers that it covers."""
    dora: bool = False
    dropout: float = 0.0
    virtual_tokens: int = 0


def linear_modules(config: TransformerConfig, record: Family) -> list[Module]:
    """Return every linear layer of a checkpoint's blocks, those of one kind behind one another."""
    layers, found = param_shapes(config)["layers"], []
    for theirs, ours in record.names.items():
        names = tuple(ours.split())
        if "{}" not in theirs or "kernel" not in layers.get(names[0], {}):
            continue
        shapes = [kernel_shape(layers[name]["kernel"]) for name in names]
        widths, short = tuple(shape[-1] for shape in shapes), theirs.split("{}.")[1]
        for i in range(config.layers):
            name = record.prefix + theirs.format(i)
            found.append(Module(name, short, names, i, shapes[0][-2], widths))
    return found


def read_adapter(path: Path, config: TransformerConfig, record: Family) -> Adapter:
    """Return what an `adapter_config.json` describes, for a base of a configuration and family.

    Raises:
      ValueError: for an entry that is missing, wrong or not supported; it names the file and the entry.
    """
    values = read_object(path, AdapterEntries, "give the local folder of a saved adapter")
    with naming(path):
        kind = values.get("peft_type")
        if kind not in list(FORMS):
            raise ValueError(
                f"peft_type must be one of {', '.join(FORMS)}; got {repr(kind)[:60]}, which is not "
                "supported; merge it with peft's merge_and_unload() and save the result"
            )
        _check_entries(values, FORMS[kind])
        if "num_virtual_tokens" in FORMS[kind].free:
            return Adapter(kind, virtual_tokens=need(values, "num_virtual_tokens", least=1))
        modules = [_tuned(values, kind, m) for m in _covered(values, config, record)]
        dropout = need(values, "lora_dropout", float, 0.0) if kind == "LORA" else 0.0
        if not 0 <= dropout < 1:
            raise ValueError(f"lora_dropout must be from 0 to below 1; got {dropout}")
        return Adapter(kind, modules, bool(values.get("use_dora")), dropout)


def _check_entries(values: Mapping[str, Any], form: Form) -> None:
    for name, got in values.items():
        usual = form.fixed.get(name)
        if name not in form.free and name != "peft_type" and got and got != usual:
            raise ValueError(
                f"{name} must be {usual!r} or left out; got {str(got)[:60]}, which is not supported; merge "
                "the adapter with peft's merge_and_unload() and save the result"
            )
    start = values.get("init_lora_weights", True)
    if any(str(start).lower().startswith(name) for name in _MOVES_BASE):
        raise ValueError(
            f"init_lora_weights must leave the base as it is; got {repr(start)[:60]}, which changes the "
            "base's kernels; convert it in peft: "
            "save_pretrained(..., path_initial_model_for_weight_conversion=...)"
        )
    if not isinstance(start, bool) and start is not None and str(start).lower() not in _KEEPS_BASE:
        raise ValueError(
            f"init_lora_weights must be true, false, {', '.join(_KEEPS_BASE)}; got {repr(start)[:60]}, "
            "which is not supported"
        )


def _covered(values: Mapping[str, Any], config: TransformerConfig, record: Family) -> list[Module]:
    """Return the linear layers that an adapter covers, by PEFT's rules."""
    targets = values.get("target_modules")
    if not targets:
        raise ValueError(f"target_modules must be a pattern or a list of names; got {targets!r}")
    modules = linear_modules(config, record)
    linear = {module.name for module in modules}
    others = {record.head} | {
        record.prefix + theirs.format(i) for theirs in record.names for i in range(config.layers)
    }
    if wrong := sorted(name for name in others - linear if _is_target(values, name, linear)):
        raise ValueError(
            f"target_modules must be linear layers of the blocks; got {', '.join(wrong[:3])}; adapters of "
            "embeddings, norms and the head are not supported"
        )
    found = [module for module in modules if _is_target(values, module.name, linear)]
    if not found:
        shorts = dict.fromkeys(module.short for module in modules)
        raise ValueError(
            f"target_modules must name linear layers of the base; got {str(targets)[:60]}, which are none "
            f"of {', '.join(shorts)}; is it an adapter of another family?"
        )
    return found


def _is_target(values: Mapping[str, Any], name: str, linear: set[str]) -> bool:
    targets, excluded = values["target_modules"], values.get("exclude_modules")
    if excluded and _is_named(excluded, name, "exclude_modules"):
        return False
    if isinstance(targets, str) and targets.lower() == "all-linear":
        return name in linear
    layers = values.get("layers_to_transform")
    if layers in (None, []) or name in targets:  # a full name is meant whatever the layers
        return _is_named(targets, name, "target_modules")
    patterns = values.get("layers_pattern") or [r"[^.]*"]
    found = re.search(r"\.(\d+)\.", name)
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        if found and _match(rf"(?:.*?\.)?{pattern}\.\d+\..*", name, "layers_pattern"):
            chosen = layers if isinstance(layers, list) else [layers]
            return int(found[1]) in chosen and _is_named(targets, name, "target_modules")
    return False


def _is_named(wanted: Any, name: str, entry: str) -> bool:
    """Return whether a pattern matches a whole name, or one of a list is the name or its end."""
    if isinstance(wanted, str):
        return _match(wanted, name, entry)
    return any(name == end or name.endswith(f".{end}") for end in wanted)


def _match(pattern: str, name: str, entry: str) -> bool:
    try:
        return is_whole_match(pattern, name)
    except ValueError as error:
        raise ValueError(
            f"{entry} must hold regular expressions; got {str(pattern)[:60]} ({error})"
        ) from error


def _tuned(values: Mapping[str, Any], kind: str, module: Module) -> Module:
    """Return a covered layer with its rank and scale, or the side at which IA3 multiplies."""
    if kind == "IA3":
        inputs = values.get("feedforward_modules")
        if inputs is None:
            raise ValueError("feedforward_modules is missing or null; give a list, which may be empty")
        if isinstance(inputs, list):  # without the dot that names elsewhere end at
            return module._replace(feedforward=any(module.name.endswith(end) for end in inputs))
        return module._replace(feedforward=_is_named(inputs, module.name, "feedforward_modules"))
    found = {name: _of_pattern(values, f"{key}_pattern", name, module.name) for key, name in _PATTERNS}
    rank, alpha = need(found, "r", least=1), need(found, "lora_alpha", float)
    return module._replace(rank=rank, scale=alpha / (rank**0.5 if values.get("use_rslora") else rank))


_PATTERNS = (("rank", "r"), ("alpha", "lora_alpha"))


def _of_pattern(values: Mapping[str, Any], entry: str, default: str, name: str) -> Any:
    """Return what the first pattern that a name ends with maps to; where none does, the default entry."""
    for pattern, value in (values.get(entry) or {}).items():
        if _match(rf"(.*\.)?({pattern})", name, entry):
            return value
    return values.get(default)


def write_adapter(kind: str, record: Family, base_name: str | None, **entries: Any) -> dict[str, Any]:
    """Return the whole `adapter_config.json` of a kind, in order."""
    values = {
        **FORMS[kind].free,
        **FORMS[kind].fixed,
        "peft_type": kind,
        "base_model_name_or_path": base_name,
    }
    if "fan_in_fan_out" in values:
        values["fan_in_fan_out"] = not record.transposed
    return dict(sorted((values | entries).items()))


def write_scales(modules: Sequence[Module]) -> dict[str, Any]:
    """Return the entries that give each of some layers its rank and scale, with patterns where they differ.

    Alpha is `scale * r` whether or not training used rsLoRA: the function is the same.
    """
    entries: dict[str, Any] = {"target_modules": sorted({module.short for module in modules})}
    for (key, name), value in zip(_PATTERNS, (lambda m: m.rank, _alpha), strict=True):
        usual = collections.Counter(map(value, modules)).most_common(1)[0][0]
        entries |= {name: usual, f"{key}_pattern": dict(_unusual(modules, value, usual))}
    return entries


def _unusual(modules: Sequence[Module], value: Any, usual: Any) -> Iterator[tuple[str, Any]]:
    """Yield layers with another value: by the name that all blocks share, where all have it."""
    by_short = collections.defaultdict(set)
    for module in modules:
        by_short[module.short].add(value(module))
    for module in modules:
        if value(module) != usual:
            yield (module.short if len(by_short[module.short]) == 1 else module.name), value(module)


def _alpha(module: Module) -> float:
    """Return the alpha that gives a layer its float32 scale; the integer nearby if that does."""
    alpha = module.scale * module.rank
    near = round(alpha)
    return near if np.float32(near / module.rank) == np.float32(module.scale) else alpha
