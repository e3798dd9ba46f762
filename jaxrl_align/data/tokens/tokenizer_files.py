"""Tokenizers of published models: their folders, read and written."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypedDict

from jaxrl_align.atomic import atomic_path
from jaxrl_align.data.tokens.backends import read_backend
from jaxrl_align.data.tokens.chat import ChatTemplate
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.typed import naming, read_object


class _Named(TypedDict):
    content: str


class _Template(TypedDict):
    name: str
    template: str


class TokenizerEntries(TypedDict, total=False):
    """`tokenizer_config.json` and `special_tokens_map.json`: the entries that are read."""

    pad_token: str | _Named
    eos_token: str | _Named
    bos_token: str | _Named
    chat_template: str | list[_Template]


def load_tokenizer(
    folder: str | Path, *, pad_token: str | None = None, stop_token: str | None = None
) -> Tokenizer:
    """Read any tokenizer from a local Hugging Face folder, with its special tokens and chat template.

    Args:
      folder: holds `tokenizer.json`, and what there is of `tokenizer_config.json`, `special_tokens_map.json`
        and `chat_template.jinja`.
      pad_token: text of the padding token, where the folder names none or another is wanted.
      stop_token: likewise of the stop token.

    Raises:
      ValueError: for a file that cannot be read, or a special token outside the vocabulary.
    """
    given = {"pad_token": pad_token, "eos_token": stop_token}
    with naming(folder):
        return _load(Path(folder), given)


def _load(folder: Path, given: Mapping[str, str | None]) -> Tokenizer:
    backend = read_backend(folder / "tokenizer.json")
    files = (folder / "special_tokens_map.json", folder / "tokenizer_config.json")
    values: dict[str, Any] = {}
    for path in files:
        values |= read_object(path, TokenizerEntries) if path.is_file() else {}
    special = {}
    for name in ("pad_token", "eos_token", "bos_token"):
        stated = values.get(name)
        stated = stated["content"] if isinstance(stated, dict) else stated
        if text := given.get(name) or stated:
            special[name] = text
    source = _chat_source(folder, values)
    template = None if source is None else ChatTemplate(source, special, f"of {folder}")
    return Tokenizer(backend, special, template, str(folder))


def save_tokenizer(folder: str | Path, tokenizer: Tokenizer) -> None:
    """Write a tokenizer into an existing folder, as `load_tokenizer` and `transformers` read it."""
    folder = Path(folder)
    tokenizer.save(folder / "tokenizer.json")
    values = {"tokenizer_class": "PreTrainedTokenizerFast", **tokenizer.special}
    if tokenizer.chat_template is not None:
        values["chat_template"] = tokenizer.chat_template.source
    text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
    with atomic_path(folder / "tokenizer_config.json") as temporary:
        temporary.write_text(text, encoding="utf-8")


def _chat_source(folder: Path, values: Mapping[str, Any]) -> str | None:
    """Return the chat template: a file of its own, or an entry, which may hold several by name."""
    path = folder / "chat_template.jinja"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is no UTF-8 text ({error}); download it again") from error
    source = values.get("chat_template")
    if isinstance(source, list):
        source = {entry["name"]: entry["template"] for entry in source}.get("default")
    return source
