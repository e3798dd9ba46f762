"""Hugging Face's `config.json` read as a `TransformerConfig` and written back, in old and new spellings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxrl_align.nets.transformer_config import TransformerConfig
from jaxrl_align.runtime.huggingface.entries import ConfigEntries
from jaxrl_align.runtime.huggingface.families import FAMILIES
from jaxrl_align.runtime.huggingface.parts import expect
from jaxrl_align.typed import check_entries, short


def read_config(values: Mapping[str, Any]) -> TransformerConfig:
    """Return our configuration of a model that `config.json` describes.

    Args:
      values: the parsed file.

    Raises:
      ValueError: for a family, activation, rope scaling or quantisation that is not supported, or an entry
        that is missing or not of its type (`ConfigEntries`); it names the entry.
    """
    check_entries(values, ConfigEntries)
    family = values.get("model_type")
    if family not in list(FAMILIES):
        raise ValueError(
            f"model_type must be one of {', '.join(FAMILIES)}; got {short(family)}; no other family is "
            "supported"
        )
    if values.get("quantization_config"):
        raise ValueError("the weights are quantised (quantization_config); load the unquantised model")
    fields: dict[str, Any] = {}
    for part in (expect("is_causal", True, None), *FAMILIES[family].parts):
        fields |= part.read(values)
    return TransformerConfig(**fields)


def write_config(config: TransformerConfig, family: str) -> dict[str, Any]:
    """Return the entries of `config.json` that describe a configuration within a family."""
    entries = {"architectures": [FAMILIES[family].architecture], "model_type": family}
    for part in FAMILIES[family].parts:
        entries |= part.write(config)
    return entries


def family_of(config: TransformerConfig) -> str:
    """Return the family that a configuration belongs to: the first whose `config.json` reads back as it.

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
    for name in ("dtype", "remat", "unroll", "attention"):
        del values[name]
    every = tuple(range(config.layers))
    filled = {
        "key_value_heads": config.kv_heads,
        "head_width": config.depth,
        "feed_forward_width": config.hidden,
        "biased": {name for name in config.biased if name in config.linears},
        "attention_scale": config.scale,
    }
    filled |= {n: None for n in ("window_layers", "rotary_layers") if getattr(config, n) == every}
    if config.rope_scaling is None and config.local_rope_theta == config.rope_theta:
        filled["local_rope_theta"] = None
    return values | filled
