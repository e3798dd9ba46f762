"""Language models of the families in `families.py` from and to local Hugging Face folders.

`load_model` reads `config.json` and safetensors, one file or many, and takes all or nothing: every tensor
must be there, none may be left over, each must have its shape and be finite. Pickles are never opened.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrl_align.data.tokens.tokenizer_files import load_tokenizer
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.nets.transformer import TransformerConfig
from jaxrl_align.runtime.huggingface.config import read_config
from jaxrl_align.runtime.huggingface.entries import AdapterEntries, ConfigEntries, GenerationEntries
from jaxrl_align.runtime.huggingface.families import FAMILIES
from jaxrl_align.runtime.huggingface.parts import need
from jaxrl_align.runtime.huggingface.storage import (
    Stored,
    check_floats,
    read_tensors,
    require_safetensors,
    stored_tensors,
)
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
from jaxrl_align.typed import naming, read_object, short
from jaxrl_align.types import Params

MODEL_VARIABLE = "JAXRL_ALIGN_MODEL"
_BUFFERS = re.compile(r"\.attn\.(masked_)?bias$|\.rotary_emb\.inv_freq$")
"""Constants that old checkpoints store beside the weights."""
_HEAD = "lm_head.weight"
SCORE = "score.weight"
CLASSIFIER = "ForSequenceClassification"
REWARD_BIAS = "reward_bias"
"""Our own entry of a classifier's `config.json`, since its head has no bias; transformers passes it by."""


class Pretrained(NamedTuple):
    """A language model read from a folder."""

    config: TransformerConfig
    params: Params
    """Parameters of `make_transformer(config)`, float32 unless asked for otherwise; of a reward model,
    `{"lm": these, "head": ...}`."""
    stop_tokens: tuple[int, ...]
    """The tokens that end a text; empty if the folder names none."""
    tokenizer: Tokenizer | None
    """With the stop tokens; None if the folder has no `tokenizer.json`."""


def find_model() -> Path:
    """Return the folder of the real model on this machine, SmolLM2-135M-Instruct unless you choose another.

    It is `$JAXRL_ALIGN_MODEL`, else `models/smollm2-135m-instruct` of this repository, where `make model`
    writes it.

    Raises:
      ValueError: if there is none.
    """
    own = os.environ.get(MODEL_VARIABLE)
    folder = Path(own or Path(__file__).parents[3] / "models" / "smollm2-135m-instruct")
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} holds no model (${MODEL_VARIABLE} is {own or 'unset'}); make model, or name a folder "
            "in the variable"
        )
    return folder


def load_model(
    folder: str | os.PathLike, *, pad_token: str | None = None, quantise: str | None = None
) -> Pretrained:
    """Read a language model from a local folder in Hugging Face's format.

    Args:
      folder: holds `config.json`, and `model.safetensors` or the files that its index names.
      pad_token: text of the tokenizer's padding token, where the folder names none or another is wanted.
      quantise: the kind in which the blocks' kernels are packed, as by `nets.quantise_params`, each tensor as
        it is read; None leaves them plain.

    Returns:
      The configuration, the parameters, the stop tokens and the tokenizer.

    Raises:
      ImportError: if `safetensors` is not installed.
      ValueError: for anything unsupported, missing, left over, mis-shaped, of another type, NaN or damaged;
        it names the file and the entry.
    """
    with naming(folder):
        return _load(Path(folder), pad_token, quantise, reward=False)


def load_reward_model(
    folder: str | os.PathLike, *, pad_token: str | None = None, quantise: str | None = None
) -> Pretrained:
    """Read a sequence classifier with one label, as most published reward models are.

    `align.RewardModel(load_reward_model(folder).params)` scores a text at its last real token. transformers
    reads the last token that is not `pad_token_id`: where that is the stop token too, and a text ends with
    it, call it padding in the mask to have the same score.

    Args:
      folder: as `load_model`'s.
      pad_token: likewise.
      quantise: likewise.

    Returns:
      What `load_model` returns, with the parameters `{"lm": ..., "head": ...}`; there is no head over words.
      The head's bias is what `save_reward_model` noted, otherwise 0.

    Raises:
      ImportError, ValueError: as `load_model`; ValueError for a folder that is no classifier of one label.
    """
    with naming(folder):
        return _load(Path(folder), pad_token, quantise, reward=True)


def _load(folder: Path, pad_token: str | None, quantise: str | None, *, reward: bool) -> Pretrained:
    require_safetensors()
    values = _open_folder(folder, reward=reward)
    with naming(folder / "config.json"):
        # A classifier has no head over words.
        config = read_config(values | ({"tie_word_embeddings": True} if reward else {}))
    record = FAMILIES[values["model_type"]]
    stored = _with_prefix(folder, stored_tensors(folder), record.prefix)
    check_floats(stored)
    with naming(folder / "config.json"):
        check_size(config, [tensor.shape for tensor in stored.values()])
    tensors, empty = {tensor.name: tensor for tensor in tensors_of(config, record)}, param_shapes(config)
    score = {SCORE: (1, config.width)} if reward else {}
    _check_shapes(folder, stored, score | {name: tensor_shape(t, empty) for name, t in tensors.items()})
    tokenizer = _read_tokenizer(folder, pad_token)
    with naming(folder):
        check_vocabulary(tokenizer, config)
    params = empty_params(config, quantise=quantise)
    for name, array in read_tensors(stored, tensors):
        from_tensor(tensors[name], array, params)
    if config.tied_head and _HEAD in stored:
        ((_, head),) = read_tensors(stored, [_HEAD])
        if not np.array_equal(head, params["tokens"]):
            raise ValueError(
                f"{folder}: tie_word_embeddings is true, but {_HEAD} differs from the embeddings; "
                "set it to false in config.json if the head is a matrix of its own"
            )
    if reward:
        ((_, kernel),) = read_tensors(stored, [SCORE])
        bias = np.float32(need(values, REWARD_BIAS, float, 0.0))
        params = {"lm": params, "head": {"kernel": kernel[0], "bias": bias}}
    stop_tokens = _stop_tokens(folder, values, config)
    return Pretrained(config, to_jax(params), stop_tokens, tokenizer and tokenizer.with_stops(stop_tokens))


def _open_folder(folder: Path, *, reward: bool) -> dict[str, Any]:
    """Return `config.json` of a folder that holds the wanted kind of model."""
    if (folder / "adapter_config.json").is_file():
        base = read_object(folder / "adapter_config.json", AdapterEntries).get("base_model_name_or_path")
        raise ValueError(
            f"{folder} must hold a whole model; got a PEFT adapter of {base}; load that one, and lay over "
            "it what load_adapter reads here"
        )
    values = read_object(folder / "config.json", ConfigEntries, "give the local folder of a saved model")
    kinds = values.get("architectures") or []
    if any(kind.endswith(CLASSIFIER) for kind in kinds) != reward:
        raise ValueError(
            f"{folder} must hold a {'sequence classifier' if reward else 'language model'}; got "
            f"{short(', '.join(kinds) or 'no architectures')[1:-1]}; read it with "
            f"{'load_model' if reward else 'load_reward_model'}"
        )
    return values


def _read_tokenizer(folder: Path, pad_token: str | None) -> Tokenizer | None:
    if (folder / "tokenizer.json").is_file():
        return load_tokenizer(folder, pad_token=pad_token)
    if pad_token is not None:
        raise ValueError(
            f"pad_token needs a tokenizer; got {pad_token!r}, but {folder} has no tokenizer.json"
        )
    return None


def check_vocabulary(tokenizer: Tokenizer | None, config: TransformerConfig) -> None:
    """Raise ValueError for a tokenizer with more tokens than the embedding has rows."""
    if tokenizer is not None and tokenizer.vocab_size > config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} tokens, but the embedding {config.vocab_size} rows; "
            "take both from the same model"
        )


def _with_prefix(folder: Path, stored: Mapping[str, Stored], prefix: str) -> dict[str, Stored]:
    """Return the tensors by their full names, without the constants of old checkpoints."""
    full: dict[str, Stored] = {}
    for name, place in stored.items():
        if _BUFFERS.search(name):
            continue
        whole = name if name.startswith(prefix) or name in (_HEAD, SCORE) else prefix + name
        if whole in full:
            raise ValueError(f"{folder} holds {whole} twice, with and without {prefix!r}; remove one")
        full[whole] = place
    return full


def _check_shapes(folder: Path, stored: Mapping[str, Stored], shapes: Mapping[str, tuple[int, ...]]) -> None:
    faults = misfits({n: t.shape for n, t in stored.items()}, shapes, () if _HEAD in shapes else (_HEAD,))
    if faults:
        raise ValueError(
            f"the tensors in {folder} do not fit its config.json: {faults}; take both from the same model"
        )


def _stop_tokens(folder: Path, values: Mapping[str, Any], config: TransformerConfig) -> tuple[int, ...]:
    path = folder / "generation_config.json"
    own = read_object(path, GenerationEntries) if path.is_file() else {}
    named = own.get("eos_token_id", values.get("eos_token_id"))
    named = [] if named is None else named if isinstance(named, list) else [named]
    # A default that lies outside a small vocabulary is never written and ends nothing.
    return tuple(i for i in named if 0 <= i < config.vocab_size)
