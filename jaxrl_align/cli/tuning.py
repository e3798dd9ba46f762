"""What is trained of a model, and how the outcome is written."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.atomic import writes
from jaxrl_align.cli.bases import Base, load_base
from jaxrl_align.cli.options import ModelOptions, TuningOptions
from jaxrl_align.data.tokens.tokenizer_files import save_tokenizer
from jaxrl_align.nets.adapters import merge, overlay
from jaxrl_align.nets.kinds import init_ia3, init_lora
from jaxrl_align.nets.transformer import init_prefix, init_prompt
from jaxrl_align.runtime.huggingface import save_adapter, save_model
from jaxrl_align.types import Params

LAST = ("config.json", "adapter_config.json")
"""Files that make a folder a model, which appear in it last."""
QUANTISED = "nf4"
DROPPING = ("lora", "dora", "qlora")
"""Tunings that know dropout."""


class Tuned(NamedTuple):
    """A part to train and what it is laid over."""

    part: Params
    frozen: Params
    """The base with the part's constants."""


def load_tuned_base(options: ModelOptions, tuning: TuningOptions, *, whole: bool = False) -> Base:
    """Read the base, its kernels packed where the tuning wants them so; see `load_base`.

    Args:
      options: which.
      tuning: how it will be tuned.
      whole: whether the outcome is written whole in any case.
    """
    quantise = QUANTISED if tuning.tuning == "qlora" else None
    computing: dict[str, Any] = {"remat": options.remat, "dtype": options.dtype, "unroll": options.unroll}
    base = load_base(options.model, base=options.base, hub=options.hub, quantise=quantise, **computing)
    if base.adapted and not (whole or tuning.merge or tuning.tuning == "full"):
        raise ValueError(
            f"{options.model} is an adapter, and a further one over both could not be opened by peft; pass "
            "--merge to write a whole model, or merge it first: jaxrl-align merge"
        )
    return base


def start_tuning(options: TuningOptions, base: Base, key: chex.PRNGKey) -> Tuned:
    """Return what a tuning trains of a base, as it starts; only virtual tokens change anything at first.

    Raises:
      ValueError: for a rank or targets that the base does not have.
    """
    params = base.params
    if options.tuning == "full":
        return Tuned(params, params)
    if options.tuning == "head":
        return Tuned({}, params)
    if options.tuning == "ia3":
        return Tuned(init_ia3(params).part, params)
    if options.tuning in ("prompt", "prefix"):
        part = init_prompt(key, params, length=options.virtual_tokens).part
        part = part if options.tuning == "prompt" else init_prefix(base.lm, params, part).part
        return Tuned(part, params)
    part, constants = init_lora(
        key,
        params,
        rank=options.rank,
        alpha=2 * options.rank if options.alpha is None else options.alpha,
        dora=options.tuning == "dora",
        dropout=options.dropout,
        targets=options.targets,
    )
    return Tuned(part, overlay(params, constants))


def count_weights(tree: Any) -> int:
    """Return the number of weights in a tree; packed codes of 4 bits count for what they stand for."""
    total = 0
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        names = [getattr(key, "key", "") for key in path]
        packed = "kernel" in names[:-1]
        if not packed or names[-1] == "codes":
            total += leaf.size * (2 if packed and leaf.dtype == np.uint8 else 1)
    return total


def write_language_model(
    folder: Path, base: Base, tuned: Tuned, part: Params, options: TuningOptions, model: ModelOptions
) -> str:
    """Write a tuned language model into a new folder, and return what it is in words.

    Raises:
      ValueError: virtual tokens cannot be folded into weights.
    """
    if options.tuning != "full" and not options.merge:
        frozen = tuned.frozen
        if options.tuning == "qlora":  # an adapter is opened over the weights that were packed
            plain = load_base(model.model, base=model.base, hub=model.hub)
            frozen = start_tuning(options, plain, jax.random.key(0)).frozen
        save_adapter(folder, base.config, frozen, part, base_name=base.name)
        save_tokenizer(folder, base.tokenizer)
        return "a PEFT adapter"
    whole = part if options.tuning == "full" else fold(tuned, part)
    save_model(folder, base.config, whole, stop_tokens=base.stop_tokens, tokenizer=base.tokenizer)
    return "a whole model"


def fold(tuned: Tuned, part: Params) -> Params:
    """Return a base with a trained part folded in, every kernel plain."""
    return merge(overlay(tuned.frozen, part), dtype=jnp.float32)


def check_tuning(options: TuningOptions, *, reward_model: bool = False) -> None:
    """Raise ValueError for a tuning that the model does not have, or options that it does not know.

    Args:
      options: how it is tuned.
      reward_model: it is one, which is always written whole; False, a language model.
    """
    virtual = options.tuning in ("prompt", "prefix")
    if reward_model and virtual:
        raise ValueError(
            f"--tuning of a reward model, which is written whole, must be of weights; got {options.tuning}, "
            "whose virtual tokens are none; take lora"
        )
    if options.tuning == "head" and not reward_model:
        raise ValueError("--tuning head is of reward models; got it for a language model; take lora or full")
    if options.dropout and options.tuning not in DROPPING:
        raise ValueError(
            f"--dropout drops inputs of {', '.join(DROPPING)}; got {options.dropout} with --tuning "
            f"{options.tuning}; leave it out"
        )
    if options.merge and virtual:
        raise ValueError(
            f"--merge needs an adapter of linear layers; got --tuning {options.tuning}, whose virtual tokens "
            "are no weights; leave --merge out"
        )


def publish(out: Path, write: Callable[[Path], None]) -> None:
    """Write a model beside the run in `out`, and move it there whole: what makes it a model comes last."""
    staged = out / ".writing"
    if writes():
        shutil.rmtree(staged, ignore_errors=True)
    try:
        write(staged)  # by every process, since weights may be gathered
        if not writes():
            return
        for file in sorted(staged.iterdir(), key=lambda file: (file.name in LAST, file.name)):
            os.replace(file, out / file.name)
    finally:
        if writes():
            shutil.rmtree(staged, ignore_errors=True)
