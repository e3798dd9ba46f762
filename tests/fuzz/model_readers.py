"""Readers of models: configurations, tokenizers, chat templates, weights, adapters and GGUF files."""

import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl_align import nets
from jaxrl_align.cli.bases import load_base
from jaxrl_align.data.tokens.tokenizer_files import load_tokenizer
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.nets.kinds import Tuning
from jaxrl_align.runtime.huggingface import load_adapter, load_gguf, load_model, load_reward_model
from jaxrl_align.runtime.huggingface.config import read_config
from jaxrl_align.runtime.huggingface.entries import ConfigEntries
from jaxrl_align.runtime.huggingface.models import Pretrained
from jaxrl_align.runtime.huggingface.tensors import param_shapes
from jaxrl_align.typed import naming, read_object
from tests.fuzz import model_inputs as inputs
from tests.fuzz.hostile_models import (
    ADAPTER_ENTRIES,
    BASE_NAMES,
    CONFIG_ENTRIES,
    INDEXES,
    REWARD_ENTRIES,
    TEMPLATES,
    TOKENIZERS,
)
from tests.fuzz.readers import Reader
from tests.runtime.gguf_files import CONFIG as GGUF_CONFIG
from tests.runtime.gguf_files import write_gguf

LONGEST = 2**21
"""Characters of a text that a template may write of a short conversation, with room."""


def _hostile(name: str, *texts: str | bytes) -> tuple[dict[str, bytes], ...]:
    return tuple({name: text.encode() if isinstance(text, str) else text} for text in texts)


def _changed(values: dict[str, Any], changes: tuple[Any, ...]) -> tuple[str, ...]:
    """Return the texts of an object with entries changed; a text is a whole file."""
    return tuple(c if isinstance(c, str) else json.dumps(values | c) for c in changes)


# Configurations.


def read_config_file(folder: Path) -> nets.TransformerConfig:
    """Read a folder's `config.json` as `load_model` does."""
    path = folder / "config.json"
    values = read_object(path, ConfigEntries)
    with naming(path):
        return read_config(values)


def complain_of_config(config: nets.TransformerConfig) -> str | None:
    """Say what no model can have."""
    for name in ("vocab_size", "width", "layers", "heads", "context", "kv_heads", "depth", "hidden"):
        value = getattr(config, name)
        if type(value) is not int or not 0 < value < 2**31:
            return f"{name} is {value!r}"
    for name in ("norm_epsilon", "rope_theta", "embedding_scale", "scale"):
        value = getattr(config, name)
        if type(value) not in (int, float) or not math.isfinite(value) or value < 0:
            return f"{name} is {value!r}"
    if config.window is not None and (type(config.window) is not int or config.window < 1):
        return f"window is {config.window!r}"
    if not all(type(flag) is bool for flag in (config.tied_head, config.residual)):
        return f"a switch is no bool: {config}"
    return None


def _config_reader(family: str) -> Reader:
    values = inputs.CONFIGS[family]

    def write(folder: Path) -> None:
        (folder / "config.json").write_text(json.dumps(values, indent=1), "utf-8")

    bad = _changed(values, CONFIG_ENTRIES.get(family, ()))
    return Reader(
        f"config-{family}", write, read_config_file, complain_of_config, _hostile("config.json", *bad)
    )


# Tokenizers and templates.


def _read_tokenizer(folder: Path) -> Tokenizer:
    tokenizer = load_tokenizer(folder)
    ids = tokenizer.encode("the cat <turn> 日\u0301 a\n")
    tokenizer.decode(ids)
    return tokenizer


def _complain_of_tokenizer(tokenizer: Tokenizer) -> str | None:
    ids = tokenizer.encode("the dog")
    outside = [i for i in ids if not 0 <= i < tokenizer.vocab_size]
    special = (tokenizer.pad_token, tokenizer.stop_token, tokenizer.start_token)
    outside += [i for i in special if i is not None and not 0 <= i < tokenizer.vocab_size]
    if not 0 <= tokenizer.vocab_size < 2**31:
        return f"a vocabulary of {tokenizer.vocab_size}"
    return f"ids {outside} of a vocabulary of {tokenizer.vocab_size}" if outside else None


@functools.cache
def _template_files() -> dict[str, bytes]:
    """Return the files beside a template, which are the same in every case."""
    import tempfile

    with tempfile.TemporaryDirectory() as scratch:
        inputs.write_tokenizer(Path(scratch))
        return {path.name: path.read_bytes() for path in Path(scratch).iterdir()}


def _write_template_alone(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(inputs.TEMPLATE, "utf-8")


def _read_template(folder: Path) -> str:
    for name, data in _template_files().items():
        (folder / name).write_bytes(data)
    tokenizer = load_tokenizer(folder)
    if tokenizer.chat_template is None:
        return ""
    return tokenizer.chat_template.render(inputs.CHAT, add_generation_prompt=True)


def _complain_of_text(text: str) -> str | None:
    return None if isinstance(text, str) and len(text) <= LONGEST else "a text too long, or none"


# Weights.


def complain_of_model(model: Pretrained) -> str | None:
    """Say where parameters do not fit their configuration."""
    params = model.params["lm"] if set(model.params) == {"lm", "head"} else model.params
    shapes = jax.tree.map(lambda leaf: leaf.shape, param_shapes(model.config))
    if jax.tree.map(lambda leaf: leaf.shape, params) != shapes:
        return "parameters of other shapes than the configuration's"
    if not all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(model.params)):
        return "parameters that are not finite"
    if not all(0 <= token < model.config.vocab_size for token in model.stop_tokens):
        return f"stop tokens {model.stop_tokens}"
    return complain_of_config(model.config)


def _adapter_reader(kind: str) -> Reader:
    config = inputs.adapter_base(kind)
    bad = _changed(inputs.ADAPTERS[kind], ADAPTER_ENTRIES.get(kind, ()))
    return Reader(
        f"adapter-{kind}",
        functools.partial(inputs.write_adapter, kind),
        lambda folder: load_adapter(folder, config, inputs.constant(config), any_base=True),
        _complain_of_tuning,
        _hostile("adapter_config.json", *bad),
    )


def _complain_of_tuning(tuning: Tuning) -> str | None:
    leaves = jax.tree.leaves((tuning.part, tuning.constants))
    return None if all(np.isfinite(leaf).all() for leaf in leaves) else "leaves that are not finite"


def _gguf_reader(name: str, config: dict[str, Any], **how: Any) -> Reader:
    return Reader(
        f"gguf-{name}",
        lambda folder: write_gguf(folder / "model.gguf", config, **how) and None,
        lambda folder: load_gguf(folder / "model.gguf"),
        complain_of_model,
        _hostile("model.gguf", b"", b"GGUF", b"GGUF\x03\0\0\0" + b"\xff" * 16),
    )


SMALLER = GGUF_CONFIG | {"hidden_size": 8, "intermediate_size": 12, "head_dim": 4, "num_attention_heads": 2}
SMALLER |= {"num_key_value_heads": 1}
BIASES = {
    f"blk.{i}.attn_{name}.bias": np.ones(width, np.float32)
    for i in (0, 1)
    for name, width in {"q": 8, "k": 4, "v": 4}.items()
}


def _model_reader(
    name: str, write: Callable[[Path], None], read: Callable[[Path], Any] = load_model, *hostile: Any
) -> Reader:
    return Reader(f"model-{name}", write, read, complain_of_model, tuple(hostile))


READERS: tuple[Reader, ...] = (
    *map(_config_reader, inputs.CONFIGS),
    Reader(
        "tokenizer",
        inputs.write_tokenizer,
        _read_tokenizer,
        _complain_of_tokenizer,
        tuple({name: text.encode()} for name, text in TOKENIZERS),
    ),
    *(
        Reader(
            f"tokenizer-{kind}",
            functools.partial(inputs.write_other_tokenizer, kind),
            _read_tokenizer,
            _complain_of_tokenizer,
        )
        for kind in ("pairs", "pieces", "unigram")
    ),
    Reader(
        "chat-template",
        _write_template_alone,
        _read_template,
        _complain_of_text,
        _hostile("chat_template.jinja", *TEMPLATES),
    ),
    _model_reader("llama", inputs.write_model),
    _model_reader("gpt2", inputs.write_gpt2),
    _model_reader(
        "sharded", inputs.write_sharded, load_model, *_hostile("model.safetensors.index.json", *INDEXES)
    ),
    _model_reader(
        "reward",
        inputs.write_reward_model,
        load_reward_model,
        *_hostile("config.json", *_changed(inputs.REWARD, REWARD_ENTRIES)),
    ),
    *map(_adapter_reader, inputs.ADAPTERS),
    Reader(
        "adapter-and-base",
        inputs.write_adapted,
        lambda folder: load_base(folder.name),
        lambda base: complain_of_config(base.config),
        _hostile("adapter_config.json", *_changed(inputs.ADAPTERS["lora"], BASE_NAMES)),
    ),
    _gguf_reader("llama", SMALLER),
    _gguf_reader(
        "qwen2", SMALLER | {"model_type": "qwen2"}, changed=BIASES, kinds={"blk.0.ffn_up.weight": "F16"}
    ),
)
