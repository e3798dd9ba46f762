"""The tokenizer in a GGUF file's metadata: byte-level byte pairs behind a splitter that the file names."""

from collections.abc import Mapping
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jaxrl_align.data.tokens.backends import backend_errors
from jaxrl_align.data.tokens.chat import ChatTemplate
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.runtime.huggingface.parts import need
from jaxrl_align.typed import short

SPLITTERS = ("gpt-2", "llama-bpe", "qwen2", "smollm")
_KEY = "tokenizer.ggml."
_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5


def read_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """Return the tokenizer that a GGUF file's metadata describe, with its chat template.

    Control tokens are special; user-defined ones are found whole in texts; unused ones, which fill a
    vocabulary up, are left out.

    Args:
      metadata: the file's entries; read are those that begin with `tokenizer.`.

    Raises:
      ValueError: for another kind of tokenizer, a splitter that is not supported, and an entry that is
        missing, of another type, or contradicts the others; it names the entry.
    """
    if (model := need(metadata, f"{_KEY}model", str)) != "gpt2":
        raise ValueError(
            f"{_KEY}model must be gpt2 (byte-level byte pairs); got {short(model)}: not supported"
        )
    splitter = need(metadata, f"{_KEY}pre", str)
    if splitter not in SPLITTERS:
        raise ValueError(
            f"{_KEY}pre must be {', '.join(SPLITTERS)}; got {short(splitter)}, which is not supported"
        )
    tokens, kinds = _list(metadata, "tokens", str), _list(metadata, "token_type", int)
    merges = [tuple(merge.split(" ")) for merge in _list(metadata, "merges", str)]
    if len(kinds) != len(tokens):
        raise ValueError(f"{_KEY}token_type must have {len(tokens)} entries, as tokens; got {len(kinds)}")
    if len(set(tokens)) != len(tokens):
        raise ValueError(
            f"{_KEY}tokens must all differ; got {len(tokens)}, of which {len(set(tokens))} differ"
        )
    if wrong := [" ".join(merge) for merge in merges if len(merge) != 2]:
        raise ValueError(f"{_KEY}merges must be two tokens each, with a space between; got {short(wrong[0])}")
    special = _special(metadata, tokens)
    first = _added(metadata, special, "bos_token", splitter == "llama-bpe")
    last = _added(metadata, special, "eos_token", False)
    named = special.values()
    ids = {token: i for i, token in enumerate(tokens) if kinds[i] != _UNUSED or token in named}
    with backend_errors(f"{_KEY}tokens and merges make no tokenizer"):
        backend = tokenizers.Tokenizer(models.BPE(ids, merges, ignore_merges=splitter == "llama-bpe"))
        if around := [(token, ids[token]) for token in first + last]:
            pieces = [*first, "$A", *last]
            backend.post_processor = processors.TemplateProcessing(single=pieces, special_tokens=around)
        backend.normalizer = normalizers.NFC() if splitter == "qwen2" else None
        backend.pre_tokenizer = _split(splitter)
        backend.decoder = decoders.ByteLevel()
        whole = [
            tokenizers.AddedToken(token, special=kind != _USER_DEFINED, normalized=False)
            for token, kind in zip(tokens, kinds, strict=True)
            if kind in (_CONTROL, _USER_DEFINED) or token in named
        ]
        backend.add_tokens(whole)
    source = need(metadata, "tokenizer.chat_template", str, "")
    return Tokenizer(backend, special, ChatTemplate(source, special) if source else None)


def _list(metadata: Mapping[str, Any], name: str, kind: type) -> list[Any]:
    values = need(metadata, _KEY + name, list)
    if not values or not all(isinstance(value, kind) for value in values):
        raise ValueError(f"{_KEY}{name} must be a list of {kind.__name__}; got another type, or none")
    return values


def _special(metadata: Mapping[str, Any], tokens: list[str]) -> dict[str, str]:
    """Return the texts of the special tokens by Hugging Face's names."""
    found = {}
    for name, key in {"bos_token": "bos", "eos_token": "eos", "pad_token": "padding"}.items():
        if (key := f"{_KEY}{key}_token_id") in metadata:
            if (index := need(metadata, key, least=0)) >= len(tokens):
                raise ValueError(f"{key} must be below the {len(tokens)} tokens; got {index}")
            found[name] = tokens[index]
    return found


def _added(metadata: Mapping[str, Any], special: Mapping[str, str], name: str, default: bool) -> list[str]:
    """Return the special token of a name if every text gets it; `default` where the file is silent."""
    if not need(metadata, f"{_KEY}add_{name}", bool, default):
        return []
    if name not in special:
        raise ValueError(f"{_KEY}{name}_id is missing; {_KEY}add_{name} puts it around every text")
    return [special[name]]


def _split(name: str) -> Any:
    """Return the pre-tokenizer of a name of llama.cpp's."""
    if name == "gpt-2":
        return pre_tokenizers.ByteLevel(add_prefix_space=False)
    if name == "smollm":
        whole = pre_tokenizers.ByteLevel(add_prefix_space=False)
        return pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), whole])
    words = tokenizers.Regex(_WORDS.replace("DIGITS", "{1,3}" if name == "llama-bpe" else ""))
    split = pre_tokenizers.Split(words, "isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
