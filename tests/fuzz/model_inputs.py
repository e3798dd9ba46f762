"""Good inputs of the readers of models, as small as they can be: width 8, two layers."""

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from jaxrl_align import nets
from jaxrl_align.data.tokens.chat import ChatTemplate
from jaxrl_align.data.tokens.tokenizer_files import save_tokenizer
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.data.tokens.vocabularies import train_bpe
from jaxrl_align.runtime.huggingface import save_adapter, save_model, save_reward_model
from jaxrl_align.runtime.huggingface.tensors import param_shapes
from tests.shapes import GPT2, LLAMA

CHAT = [
    {"role": "user", "content": " hi there\n"},
    {"role": "assistant", "content": "the <cat> & 日", "tool_calls": [{"name": "add", "n": 1.5}]},
]
TEMPLATE = """{%- set ns = namespace(n=0) -%}
{% macro shout(text) %}{{ text | upper }}{% endmacro %}
{% for message in messages %}
    {% if loop.first and message.role == 'tool' %}
        {{ raise_exception('the user speaks first') }}
    {% endif %}
    {% set ns.n = ns.n + 1 %}
<turn>{{ message['role'] ~ ns.n }}
{% if message['role'] == 'assistant' %}{% generation %}{{ message['content'] | trim + eos_token }}
{% endgeneration %}{% else %}{{ shout(message.content.split('\\n')[0]) }}{% endif %}
{% for call in message.tool_calls if call.name is string %}{{ call | tojson(indent=2) }}{% endfor %}
{% endfor %}
{% if add_generation_prompt %}<turn>assistant
{% endif %}"""

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 20,
    "hidden_size": 8,
    "intermediate_size": 12,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 16,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e4,
    "rope_scaling": {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
    "attention_bias": False,
    "mlp_bias": False,
    "tie_word_embeddings": False,
    "eos_token_id": [1, 2],
}
_PLAIN = CONFIG | {"rope_scaling": None}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": CONFIG,
    "qwen2": _PLAIN
    | {
        "model_type": "qwen2",
        "rope_theta": None,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 2},
        "use_sliding_window": True,
        "sliding_window": 4,
        "max_window_layers": 1,
        "layer_types": ["full_attention", "sliding_attention"],
    },
    "gemma3": _PLAIN
    | {
        "model_type": "gemma3_text",
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 4,
        "query_pre_attn_scalar": 9,
        "sliding_window": 4,
        "sliding_window_pattern": 2,
        "rope_local_base_freq": 50.0,
        "rope_theta": 900.0,
    },
    "smollm3": _PLAIN | {"model_type": "smollm3", "no_rope_layers": [1, 0]},
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 20,
        "n_embd": 8,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": 16,
        "n_inner": None,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "scale_attn_weights": True,
    },
}
"""Entries of `config.json`, by family."""

REWARD = CONFIGS["gpt2"] | {"architectures": ["GPT2ForSequenceClassification"], "tie_word_embeddings": True}
"""Entries of the `config.json` of a reward model."""


def constant(config: nets.TransformerConfig) -> Any:
    """Return parameters of one value, which take no compiling."""
    return jax.tree.map(lambda leaf: np.full(leaf.shape, 0.5, np.float32), param_shapes(config))


@functools.cache
def small_tokenizer() -> Tokenizer:
    """Return a tokenizer of bytes, a few pairs and four special tokens, with a chat template."""
    backend = train_bpe(["the cat sees the dog"] * 4, 260)._backend
    backend.add_special_tokens(["<turn>", "<s>"])
    special = {"pad_token": "<pad>", "eos_token": "<stop>", "bos_token": "<s>"}
    return Tokenizer(backend, special, ChatTemplate(TEMPLATE, special))


def _letters() -> dict[str, int]:
    return {letter: i for i, letter in enumerate(["<unk>", "<stop>", *"abcdefghijklmnopqrstuvwxyz ▁<>"])}


def write_other_tokenizer(kind: str, folder: Path) -> None:
    """Write a `tokenizer.json` of other parts than ours: of pairs, word pieces or a unigram model."""
    letters = _letters()
    steps = [normalizers.NFC(), normalizers.Replace(" ", "▁"), normalizers.Prepend("▁")]
    split = pre_tokenizers.Split(tokenizers.Regex(r"\p{N}{1,3}| ?[\w▁]+"), "isolated")
    scores = [(letter, -1.0 - i) for letter, i in letters.items()]
    backend = tokenizers.Tokenizer(
        {
            "pairs": lambda: models.BPE(letters | {"th": 40}, [("t", "h")], unk_token="<unk>", dropout=0.1),
            "pieces": lambda: models.WordPiece(letters, unk_token="<unk>"),
            "unigram": lambda: models.Unigram(scores, 0, False),
        }[kind]()
    )
    backend.normalizer = normalizers.Sequence(steps) if kind == "pairs" else normalizers.BertNormalizer()
    whole = pre_tokenizers.Sequence([split, pre_tokenizers.Digits()])
    backend.pre_tokenizer = whole if kind == "pairs" else pre_tokenizers.Metaspace()
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    backend.post_processor = processors.TemplateProcessing(single="<stop> $A", special_tokens=[("<stop>", 1)])
    backend.add_special_tokens(["<stop>"])
    backend.enable_padding(length=8)
    backend.enable_truncation(max_length=5)
    backend.save(str(folder / "tokenizer.json"))
    (folder / "special_tokens_map.json").write_text('{"eos_token": {"content": "<stop>"}}', "utf-8")


def write_tokenizer(folder: Path) -> None:
    """Write `tokenizer.json` and its configuration."""
    save_tokenizer(folder, small_tokenizer())


def write_model(folder: Path, config: nets.TransformerConfig = LLAMA) -> None:
    """Write a model's folder without a tokenizer."""
    _fill(folder, lambda new: save_model(new, config, constant(config), stop_tokens=[3]))
    (folder / "generation_config.json").write_text('{"eos_token_id": [3, 4]}', "utf-8")


def write_gpt2(folder: Path) -> None:
    """Write GPT-2's folder."""
    write_model(folder, GPT2)


def write_adapted(folder: Path) -> None:
    """Write an adapter whose base, with a tokenizer, stands in a folder within: as seen from above."""
    config = replace(LLAMA, vocab_size=small_tokenizer().vocab_size)
    save_model(folder / "base", config, constant(config), tokenizer=small_tokenizer())
    write_adapter("lora", folder, config)
    path = folder / "adapter_config.json"
    values = json.loads(path.read_text("utf-8")) | {"base_model_name_or_path": f"{folder.name}/base"}
    path.write_text(json.dumps(values), "utf-8")


def write_sharded(folder: Path) -> None:
    """Write a model in two files and their index."""
    from safetensors.numpy import load_file, save_file

    write_model(folder)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {name: f"part{i % 2}.safetensors" for i, name in enumerate(sorted(tensors))}
    for part in sorted(set(places.values())):
        save_file({n: x for n, x in tensors.items() if places[n] == part}, folder / part)
    text = json.dumps({"metadata": {"total_size": 1}, "weight_map": places})
    (folder / "model.safetensors.index.json").write_text(text, "utf-8")


def write_reward_model(folder: Path) -> None:
    """Write a sequence classifier."""
    params = {"lm": constant(GPT2), "head": {"kernel": np.ones(8, np.float32), "bias": np.float32(0.5)}}
    _fill(folder, lambda new: save_reward_model(new, GPT2, params, pad_token=0, stop_tokens=[3]))


def _fill(folder: Path, save: Any) -> None:
    """Save into an existing folder what makes a new one."""
    save(folder / "new")
    for path in (folder / "new").iterdir():
        path.rename(folder / path.name)
    (folder / "new").rmdir()


_TARGETS = {"target_modules": ["q_proj", "down_proj"]}
ADAPTERS: dict[str, dict[str, Any]] = {
    "lora": {"peft_type": "LORA", "r": 2, "lora_alpha": 4} | _TARGETS,
    "dora": {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "use_dora": True, "target_modules": ["c_attn"]},
    "ia3": {"peft_type": "IA3", "feedforward_modules": []} | _TARGETS,
    "prompt": {"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 3},
    "prefix": {"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 3},
}
"""The entries of `adapter_config.json` that matter, by kind."""


def write_adapter(kind: str, folder: Path, config: nets.TransformerConfig | None = None) -> None:
    """Write a PEFT folder of a kind, over Llama unless told otherwise; DoRA over GPT-2."""
    config = config or adapter_base(kind)
    base, key = constant(config), jax.random.key(0)
    rows = np.ones((config.layers, 3, config.kv_heads * config.depth), np.float32)
    part, constants = {
        "lora": lambda: nets.init_lora(key, base, rank=2, targets=("*query", "*down")),
        "dora": lambda: nets.init_lora(key, base, rank=2, dora=True, targets="*query"),
        "ia3": lambda: nets.init_ia3(base),
        "prompt": lambda: nets.init_prompt(key, base, length=3),
        "prefix": lambda: nets.Tuning({"layers": {"prefix": dict.fromkeys(("key", "value"), rows)}}, {}),
    }[kind]()
    part = jax.tree.map(jnp.ones_like, part)
    _fill(folder, lambda new: save_adapter(new, config, nets.overlay(base, constants), part))


def adapter_base(kind: str) -> nets.TransformerConfig:
    """Return the configuration that `write_adapter`'s is for."""
    return GPT2 if kind == "dora" else LLAMA
