"""Models as Hugging Face folders: language models, and reward models as sequence classifiers."""

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl_align.data.tokens.tokenizer_files import save_tokenizer
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.nets.transformer import TransformerConfig
from jaxrl_align.runtime.devices.hosts import gather
from jaxrl_align.runtime.huggingface.config import family_of, write_config
from jaxrl_align.runtime.huggingface.families import FAMILIES
from jaxrl_align.runtime.huggingface.models import CLASSIFIER, REWARD_BIAS, SCORE, check_vocabulary
from jaxrl_align.runtime.huggingface.storage import SINGLE, require_safetensors, whole_folder, write_tensors
from jaxrl_align.runtime.huggingface.tensors import empty_params, tensors_of, to_tensor
from jaxrl_align.types import Numeric, Params

_CAUSAL = re.compile("ForCausalLM$|LMHeadModel$")
_OWN_NAMES = {"gemma3_text": "Gemma3TextForSequenceClassification"}
"""Families whose classifier is not named as its language model is."""


def save_model(
    folder: str | os.PathLike,
    config: TransformerConfig,
    params: Params,
    *,
    stop_tokens: Iterable[int] = (),
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Write a language model as a folder that `transformers` opens; whole or not at all.

    Args:
      folder: a new name; its parent exists.
      config: a shape that one of the families can hold.
      params: its parameters, all float32 or all bfloat16; merge an adapter first (`nets.merge`), or
        save it apart (`save_adapter`).
      stop_tokens: the tokens that end a text.
      tokenizer: is written beside the weights.

    Returns:
      The folder.

    Raises:
      ImportError: if `safetensors` is not installed.
      ValueError: if the folder exists, no family can hold the configuration, or a parameter is missing, left
        over, mis-shaped, of another type or not finite, or the tokenizer has more tokens than the embedding.
    """
    pad = None if tokenizer is None else tokenizer.pad_token
    return _save(Path(folder), config, params, list(stop_tokens), tokenizer, {"pad_token_id": pad}, {})


def save_reward_model(
    folder: str | os.PathLike,
    config: TransformerConfig,
    params: Params,
    *,
    gain: Numeric = 1.0,
    bias: Numeric = 0.0,
    pad_token: int | None = None,
    stop_tokens: Iterable[int] = (),
    tokenizer: Tokenizer | None = None,
) -> Path:
    """Write a reward model as a sequence classifier with one label, which `transformers` opens.

    The normalisation becomes part of the head, `score.weight = gain * w`. A classifier has no bias: it is
    kept in `config.json`, where `load_reward_model` finds it, and transformers' scores are lower by it.

        save_reward_model(folder, lm.config, model.params, gain=model.gain, bias=model.bias, ...)

    Args:
      folder: a new name; its parent exists.
      config: of the language model it is built on.
      params: `{"lm": ..., "head": ...}`, merged as `save_model`'s; a head over words is left out.
      gain: of `align.RewardModel`.
      bias: likewise.
      pad_token: transformers reads the score at the last token that is not this one, so that no text may end
        with it; None takes the tokenizer's.
      stop_tokens: the tokens that end a text.
      tokenizer: is written beside the weights.

    Returns:
      The folder.

    Raises:
      ImportError: as `save_model`.
      ValueError: as `save_model`; for parts or a head of another form, a normalisation that is not finite, or
        a padding token that is missing, a stop token, or none of the vocabulary.
    """
    head = params["head"] if set(params) == {"lm", "head"} else {}
    if not (set(head) == {"kernel", "bias"} and np.shape(head["kernel"]) == (config.width,)):
        raise ValueError(
            f'params must be {{"lm", "head"}}, the head\'s kernel [{config.width}]; got the entries '
            f"{sorted(params)}; init_reward_params makes them"
        )
    kernel = np.asarray(gain, np.float32) * np.asarray(gather(head["kernel"]), np.float32)
    shift = float(gain) * float(head["bias"]) + float(bias)
    if not (np.isfinite(kernel).all() and np.isfinite(shift)):
        raise ValueError(f"the head must be finite; got gain={gain}, bias={bias} and a head beside them")
    stop = list(stop_tokens)
    pad = pad_token if pad_token is not None or tokenizer is None else tokenizer.pad_token
    if pad is None or pad in stop or not 0 <= pad < config.vocab_size:
        raise ValueError(
            f"pad_token must be a token of the vocabulary that ends no text; got {pad}, stop tokens {stop}; "
            "take one that texts do not hold, pad_token="
        )
    lm = {name: leaf for name, leaf in params["lm"].items() if name != "head"}
    labels = {"id2label": {"0": "reward"}, "label2id": {"reward": 0}}
    entries = {"pad_token_id": int(pad), REWARD_BIAS: shift} | labels
    tied = replace(config, tied_head=True)
    return _save(Path(folder), tied, lm, stop, tokenizer, entries, {SCORE: kernel[None]})


def _save(
    folder: Path,
    config: TransformerConfig,
    params: Params,
    stop_tokens: list[int],
    tokenizer: Tokenizer | None,
    entries: Mapping[str, Any],
    head: Mapping[str, np.ndarray],
) -> Path:
    """Write a model; with a classifier's head in its type."""
    require_safetensors()
    check_new(folder)
    family = family_of(config)
    check_vocabulary(tokenizer, config)
    dtype = _check_params(config, params)
    if outside := [i for i in stop_tokens if not 0 <= i < config.vocab_size]:
        raise ValueError(f"stop_tokens must lie in the vocabulary of {config.vocab_size}; got {outside}")
    stop = stop_tokens[0] if len(stop_tokens) == 1 else (stop_tokens or None)
    values = write_config(config, family)
    if head:
        name = _CAUSAL.sub(CLASSIFIER, FAMILIES[family].architecture)
        values["architectures"] = [_OWN_NAMES.get(family, name)]
    values |= {"dtype": dtype, "bos_token_id": None, "eos_token_id": stop, **entries}
    tensors = {tensor.name: to_tensor(tensor, params) for tensor in tensors_of(config, FAMILIES[family])}
    with whole_folder(folder) as temporary:
        write_tensors(temporary / SINGLE, tensors | {k: x.astype(dtype) for k, x in head.items()})
        (temporary / "config.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        if tokenizer is not None:
            save_tokenizer(temporary, tokenizer)
    return folder


def check_new(folder: Path) -> None:
    """Raise ValueError for a folder that holds anything."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} exists already; give a new name, or remove it")


def _check_params(config: TransformerConfig, params: Params) -> str:
    """Return the parameters' common dtype."""
    flat = lambda tree: {jax.tree_util.keystr(k): x for k, x in jax.tree_util.tree_leaves_with_path(tree)}
    wanted, got = flat(empty_params(config)), flat(params)
    if packed := sorted(name for name in got if "['kernel'][" in name):
        raise ValueError(
            f"params must have plain kernels; got params{packed[0]}; make them so with "
            "nets.merge(params, dtype=jnp.float32), all in one dtype"
        )
    if wanted.keys() != got.keys():
        raise ValueError(
            f"params do not fit the configuration: missing {sorted(wanted.keys() - got.keys())}, "
            f"unexpected {sorted(got.keys() - wanted.keys())}"
        )
    for name, leaf in got.items():
        if leaf.shape != wanted[name].shape:
            raise ValueError(f"params{name} must be of shape {wanted[name].shape}; got {leaf.shape}")
        if not np.isfinite(np.asarray(gather(leaf), np.float32)).all():
            raise ValueError(f"params{name} holds NaN or infinite values; nothing was written")
    dtypes = {str(leaf.dtype) for leaf in got.values()}
    if dtypes not in ({"float32"}, {"bfloat16"}):
        raise ValueError(f"params must all be float32 or all bfloat16; got {', '.join(sorted(dtypes))}")
    return dtypes.pop()
