"""The model that a command reads: a folder, an adapter over one, or a name on the hub."""

import importlib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.nets.adapters import merge, overlay
from jaxrl_align.nets.transformer import LanguageModel, TransformerConfig, make_transformer
from jaxrl_align.runtime.huggingface import load_adapter, load_model
from jaxrl_align.runtime.huggingface.entries import AdapterEntries
from jaxrl_align.typed import naming, read_object
from jaxrl_align.types import Params

ADAPTER = "adapter_config.json"
WANTED = ("*.json", "*.safetensors", "*.jinja")
"""Files of a hub's folder that are downloaded: never pickles, never code."""


class Base(NamedTuple):
    """A language model as commands use it."""

    name: str
    """As the user named it."""
    lm: LanguageModel
    params: Params
    """Whole; where the name is an adapter's, with it folded in."""
    config: TransformerConfig
    tokenizer: Tokenizer
    stop_tokens: tuple[int, ...]
    """At least the tokenizer's."""
    adapted: bool
    """Whether the name is an adapter's, so that no folder holds these weights."""


def find_folder(name: str, hub: bool) -> Path:
    """Return the local folder of a model; with `hub`, download it first.

    Raises:
      ImportError: the hub needs `huggingface_hub`.
      ValueError: for a name that is no folder, and what the hub refuses.
    """
    if not hub:
        if os.path.isfile(name):
            raise ValueError(
                f"a model must be a folder; got the file {name}; jaxrl-align import makes one of a GGUF file"
            )
        if not os.path.isdir(name):  # no path is too long for it
            raise ValueError(f"a model must be a folder; found none at {name}; for a hub's name pass --hub")
        return Path(name)
    try:
        hub_package: Any = importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise ImportError("the hub needs huggingface_hub; pip install 'jaxrl-align[hub]'") from error
    try:
        return Path(hub_package.snapshot_download(name, allow_patterns=list(WANTED)))
    except Exception as error:  # whatever network and hub raise
        raise ValueError(
            f"{name} could not be downloaded ({type(error).__name__}: {error}); check the name, or give a "
            "local folder without --hub"
        ) from error


def load_base(
    name: str,
    *,
    base: str | None = None,
    hub: bool = False,
    quantise: str | None = None,
    fold: bool = True,
    **computing: Any,
) -> Base:
    """Read the model that a command starts from.

    Args:
      name: a folder of a language model or of a PEFT adapter, or with `hub` its name there.
      base: an adapter's base; None takes what `adapter_config.json` names.
      hub: download it.
      quantise: the kind in which kernels are packed; None leaves them plain.
      fold: fold an adapter into its base; otherwise it is laid over it.
      **computing: fields of `TransformerConfig` that say how, not what, for example `remat`.

    Raises:
      ImportError, ValueError: as `load_model` and `load_adapter`; ValueError for a folder without a
        tokenizer, and a tokenizer without a stop token.
    """
    folder = find_folder(name, hub)
    adapted = (folder / ADAPTER).is_file()
    below = (find_folder(base, hub) if base else _named_base(folder, hub)) if adapted else folder
    model = load_model(below, quantise=quantise)
    params = model.params
    if adapted:
        part, constants = load_adapter(folder, model.config, params)
        params = overlay(overlay(params, constants), part)
        params = merge(params) if fold else params
    tokenizer = model.tokenizer
    if tokenizer is None or tokenizer.stop_token is None:
        lacking = "tokenizer.json" if tokenizer is None else "token that ends a text (eos_token)"
        raise ValueError(f"{below} must hold a {lacking}; got none; copy it from the published model")
    lm = make_transformer(replace(model.config, **computing))
    return Base(name, lm, params, model.config, tokenizer, tokenizer.stop_tokens, adapted)


def _named_base(folder: Path, hub: bool) -> Path:
    named = read_object(folder / ADAPTER, AdapterEntries).get("base_model_name_or_path")
    if not named:
        raise ValueError(f"{folder / ADAPTER} names no base; pass --base FOLDER")
    with naming(folder / ADAPTER):
        return find_folder(named, hub)


def pad_of(base: Base) -> int:
    """Return the token that fills up rows: the tokenizer's, or else the stop token, told apart by masks."""
    pad, stop = base.tokenizer.pad_token, base.tokenizer.stop_token
    assert stop is not None  # load_base has seen to it
    return stop if pad is None else pad
