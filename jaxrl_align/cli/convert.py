"""Commands that change a model's form: an adapter into a whole model, a GGUF file into a folder."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from jaxrl_align.cli.bases import load_base
from jaxrl_align.runtime.huggingface import import_gguf, save_model
from jaxrl_align.runtime.huggingface.saving import check_new


@dataclass(frozen=True)
class Merge:
    """Fold a PEFT adapter into its base: a whole model, which needs no peft."""

    model: str
    """The adapter's folder."""
    out: str
    """A new folder."""
    base: str | None = None
    """The adapter's base, if not where adapter_config.json says."""
    hub: bool = False
    """Take --model and --base for names on the Hugging Face hub, and download them (extra [hub])."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the weights."""


def run_merge(options: Merge, argv: Sequence[str]) -> None:
    """Write an adapter and its base as one model."""
    check_new(Path(options.out))
    base = load_base(options.model, base=options.base, hub=options.hub)
    if not base.adapted:
        raise ValueError(f"{options.model} must be an adapter's folder; got a whole model; nothing to merge")
    if "prompt" in base.params or "prefix" in base.params["layers"]:
        raise ValueError(f"{options.model} holds virtual tokens, which are no weights; use it as it is")
    params = jax.tree.map(lambda x: x.astype(jnp.dtype(options.dtype)), base.params)
    Path(options.out).parent.mkdir(parents=True, exist_ok=True)
    save_model(options.out, base.config, params, stop_tokens=base.stop_tokens, tokenizer=base.tokenizer)
    print(f"{options.out} holds a whole model, {options.dtype}")


@dataclass(frozen=True)
class Import:
    """Write a GGUF file, llama.cpp's format, as a Hugging Face folder (extra [gguf])."""

    file: str
    """Of architecture llama, qwen2 or qwen3."""
    out: str
    """A new folder."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the weights in the folder."""


def run_import(options: Import, argv: Sequence[str]) -> None:
    """Read, write, say so."""
    begin = time.monotonic()
    folder = import_gguf(options.file, options.out, dtype=options.dtype)
    size = sum(file.stat().st_size for file in folder.iterdir()) / 1e6
    print(f"{folder} holds {size:.0f} MB, {options.dtype}; {time.monotonic() - begin:.1f} s")
