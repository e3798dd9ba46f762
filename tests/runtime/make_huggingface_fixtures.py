"""Compare ours with `transformers` both ways, and write what it answers into a fixture for the test suite.

In an environment of its own, from the repository's root:

    pip install -e '.[hf]' torch transformers
    python -m tests.runtime.make_huggingface_fixtures [--write]
    pip install 'transformers==4.57.1'; python -m tests.runtime.make_huggingface_fixtures --older

`--older` adds each case's `config.json` as that older version writes it. Every case is a model that
transformers builds and saves; its weights are drawn by name from a fixed seed, so the fixture needs to hold
only the configuration, the tensors' names and shapes, and the answers. The check is repeated on a wider,
deeper version of each case.
"""

import argparse
import json
import logging
import tempfile
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import tokenizers

from jaxrl_align.align.reward_model import RewardModel, score
from jaxrl_align.data.tokens.chat import ChatTemplate
from jaxrl_align.data.tokens.padding import left_pad, right_pad
from jaxrl_align.data.tokens.tokenizer_files import load_tokenizer, save_tokenizer
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.data.tokens.vocabularies import train_bpe
from jaxrl_align.nets.transformer import make_transformer
from jaxrl_align.runtime.huggingface import load_model, load_reward_model, save_model

FIXTURE = Path(__file__).parent / "fixtures" / "huggingface.json"
NEW_TOKENS = 12
LENGTHS = (13, 20)
LLAMA = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
CASES = {
    "gpt2": (
        "gpt2",
        {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 64}
        | {"bos_token_id": None, "eos_token_id": None},
    ),
    "llama": (
        "llama",
        LLAMA
        | {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
    ),
    "llama_biased": (
        "llama",
        LLAMA
        | {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True, "head_dim": 6}
        | {"rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0}},
    ),
    "qwen2": (
        "qwen2",
        LLAMA
        | {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1, "num_key_value_heads": 1},
    ),
    "qwen3": ("qwen3", LLAMA | {"head_dim": 8, "tie_word_embeddings": True, "rms_norm_eps": 1e-5}),
    "mistral": ("mistral", LLAMA | {"sliding_window": 5, "head_dim": 6}),
    "gemma3": (
        "gemma3_text",
        LLAMA
        | {"head_dim": 6, "query_pre_attn_scalar": 9, "sliding_window": 4, "sliding_window_pattern": 2}
        | {
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "rope_theta": 900.0, "factor": 4.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
            }
        },
    ),
    "smollm3": ("smollm3", LLAMA | {"no_rope_layer_interval": 2}),
    "smollm3_windowed": (
        "smollm3",
        LLAMA
        | {"no_rope_layers": [0, 1, 1, 0], "layer_types": None, "tie_word_embeddings": False}
        | {"use_sliding_window": True, "sliding_window": 4, "attention_bias": True, "mlp_bias": True},
    ),
    "olmo2": ("olmo2", LLAMA | {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}}),
}
WIDER = {
    "hidden_size": 128,
    "n_embd": 128,
    "num_hidden_layers": 4,
    "n_layer": 4,
    "intermediate_size": 256,
    "vocab_size": 500,
}


def draw_weights(shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Return a checkpoint's tensors, drawn in the order of their names; NumPy keeps this stream frozen."""
    draw = np.random.RandomState(7)
    offset = any("pre_feedforward_layernorm" in name for name in shapes)  # Gemma's norms are around 0
    center = lambda name, shape: float(
        len(shape) == 1 and "norm" in name and not offset or ".ln_" in name and "weight" in name
    )
    return {
        name: (
            center(name, shape) + draw.standard_normal(shape) * 0.3 / max(1, shape[-1] / 16) ** 0.5
        ).astype(np.float32)
        for name, shape in sorted(shapes.items())
    }


def draw_tokens(vocab_size: int) -> np.ndarray:
    """Return a prompt [20]."""
    return np.random.RandomState(8).randint(0, vocab_size, 20)


def ours(config, params, tokens: np.ndarray, new: int) -> tuple[np.ndarray, list[int]]:
    """Return the prompt's logits [20, V] and the tokens written greedily after it."""
    lm, length = make_transformer(config), len(tokens)

    @jax.jit
    def write(params, tokens):
        mask = jnp.ones(length + new)
        hidden, cache = lm.encode(params, tokens, mask, lm.init_cache(length + new), 0, jnp.arange(length))
        logits = lm.logits(params, hidden)

        def step(carry, slot):
            token, cache = carry
            hidden, cache = lm.encode(params, token[None], mask, cache, slot, slot[None])
            return (jnp.argmax(lm.logits(params, hidden[0])), cache), token

        steps = length + jnp.arange(new)
        return logits, jax.lax.scan(step, (jnp.argmax(logits[-1]), cache), steps)[1]

    logits, written = write(params, jnp.asarray(tokens))
    return np.asarray(logits), np.asarray(written).tolist()


def theirs(model, tokens: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Return the same of a torch model."""
    import torch

    row = torch.tensor(tokens)[None]
    with torch.no_grad():
        logits = model(row).logits[0].numpy()
        written = model.generate(
            row, attention_mask=torch.ones_like(row), max_new_tokens=NEW_TOKENS, do_sample=False
        )
    return logits, written[0, len(tokens) :].tolist()


def opened_without_a_warning(folder: Path):
    """Return the model that transformers reads from a folder; any warning, logged or raised, is an error."""
    import transformers

    said = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("transformers")
    logger.addHandler(handler)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model, info = transformers.AutoModelForCausalLM.from_pretrained(
            folder, output_loading_info=True, attn_implementation="eager"
        )
    logger.removeHandler(handler)
    if said or any(info.values()):
        raise SystemExit(f"{folder}: transformers warns: {said} {info}")
    return model.eval()


def compare(name: str, folder: Path, changes: dict[str, int]) -> dict:
    """Check one case both ways and return its fixture."""
    import torch
    import transformers

    kind, values = CASES[name]
    values = values | {key: value for key, value in changes.items() if key in values}
    config = transformers.AutoConfig.for_model(kind, **values)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    model.save_pretrained(folder / "unused")
    from safetensors import safe_open

    with safe_open(folder / "unused" / "model.safetensors", "numpy") as file:
        shapes = {key: tuple(file.get_slice(key).get_shape()) for key in file.keys()}  # noqa: SIM118
    model.load_state_dict({k: torch.tensor(x) for k, x in draw_weights(shapes).items()}, strict=False)
    model.save_pretrained(folder / "theirs")
    tokens = draw_tokens(values["vocab_size"])
    logits, greedy = theirs(model, tokens)
    read = load_model(folder / "theirs")
    our_logits, our_greedy = ours(read.config, read.params, tokens, NEW_TOKENS)
    save_model(folder / "ours", read.config, read.params, stop_tokens=read.stop_tokens)
    back_logits, back_greedy = theirs(opened_without_a_warning(folder / "ours"), tokens)
    error, back = np.abs(our_logits - logits).max(), np.abs(back_logits - logits).max()
    same = greedy == our_greedy == back_greedy
    print(f"{name:16} error {error:.1e}, back {back:.1e}, std {logits.std():.2f}, greedy equal: {same}")
    if error > 2e-5 or back > 0 or not same:
        raise SystemExit(f"{name}: no parity")
    config = json.loads((folder / "theirs" / "config.json").read_text(encoding="utf-8"))
    rounded = [[round(float(x), 5) for x in row] for row in logits]
    return {"config": config, "shapes": shapes, "logits": rounded, "greedy": greedy}


def compare_classifier(name: str, folder: Path) -> dict:
    """Check one case as a sequence classifier of one label, for whole texts, and return its fixture."""
    import torch
    import transformers

    kind, values = CASES[name]
    config = transformers.AutoConfig.for_model(kind, **values, num_labels=1)
    model = transformers.AutoModelForSequenceClassification.from_config(config).eval()
    shapes = {key: tuple(x.shape) for key, x in model.state_dict().items()}
    model.load_state_dict({k: torch.tensor(x) for k, x in draw_weights(shapes).items()})
    model.save_pretrained(folder)
    tokens = draw_tokens(values["vocab_size"])
    with torch.no_grad():
        scores = [float(model(torch.tensor(tokens[None, :n])).logits[0, 0]) for n in LENGTHS]
    got = our_scores(load_reward_model(folder), tokens)
    print(f"{name:16} as a reward model: error {np.abs(got - scores).max():.1e}, scores {scores}")
    if np.abs(got - scores).max() > 1e-5:
        raise SystemExit(f"{name}: no parity")
    return {
        "config": json.loads((folder / "config.json").read_text(encoding="utf-8")),
        "shapes": shapes,
        "scores": scores,
    }


def our_scores(model, tokens: np.ndarray) -> np.ndarray:
    """Return the rewards of a text's beginnings, padded at either end."""
    lm, reward = make_transformer(model.config), RewardModel(model.params)
    rows = right_pad([tokens[: LENGTHS[0]]], len(tokens), 3), left_pad([tokens[: LENGTHS[1]]], len(tokens), 3)
    return np.array([float(score(lm, reward, *(x[0] for x in row))) for row in rows])


def older_configs() -> dict[str, dict]:
    """Return each case's `config.json` as the installed transformers 4 writes it, for the types it knows."""
    import transformers

    known, found = transformers.models.auto.configuration_auto.CONFIG_MAPPING, {}
    for name, (kind, values) in CASES.items():
        values = dict(values)
        rope = values.pop("rope_parameters", {})
        if "sliding_attention" in rope:
            values["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
            rope = rope["full_attention"]
        values |= {"rope_theta": rope["rope_theta"]} if rope else {}
        scaling = {key: value for key, value in rope.items() if key != "rope_theta"}
        values |= {} if scaling.get("rope_type", "default") == "default" else {"rope_scaling": scaling}
        if kind in known:
            found[name] = json.loads(transformers.AutoConfig.for_model(kind, **values).to_json_string())
    return found


CHAT = (
    "{{ bos_token }}{% for m in messages %}{% if loop.first and m.role not in ['system', 'user'] %}"
    "{{ raise_exception('start with the user') }}{% endif %}<turn>{{ m['role'] }}\n{{ m['content'] | trim }}"
    "{{ eos_token }}\n{% endfor %}{% if add_generation_prompt %}<turn>assistant\n{% endif %}"
)


MARKED = """{{ bos_token }}{% if tools %}<turn>tools
{{ tools | tojson(indent=2, sort_keys=true) }}{{ eos_token }}
{% endif %}{% for m in messages %}<turn>{{ m.role }}
{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% for call in m.tool_calls %}
{{ call | tojson(separators=(',', ':'), ensure_ascii=true) }}{% endfor %}{{ eos_token }}{% endgeneration %}
{% else %}{{ m.content }}{{ eos_token }}{% endif %}

{% endfor %}{{ mood }}"""
CALL = {"name": "count", "arguments": {"what": "dögs"}}
CHATS = (
    (
        [
            {"role": "user", "content": "the cat?"},
            {"role": "assistant", "content": " the dogs & cats see"},
            {"role": "user", "content": "then?"},
            {"role": "assistant", "content": "dogs"},
        ],
        {"mood": "the dog"},
    ),
    (
        [
            {"role": "user", "content": "the cat?"},
            {"role": "assistant", "tool_calls": [CALL]},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": "3 dogs"},
        ],
        {"tools": [{"type": "function", "function": {"name": "count", "description": "<two> & ü"}}]},
    ),
)


def chat_tokenizer() -> tokenizers.Tokenizer:
    """Return a backend with turns and a start token, which trims the places of its tokens, as Llama 3's."""
    backend = train_bpe(["the cat sees the dog", "then the cats see dogs"] * 4, 270)._backend
    backend.add_special_tokens(["<turn>", "<s>"])
    backend.post_processor = tokenizers.processors.ByteLevel(trim_offsets=True)
    return backend


def compare_chats() -> list[dict]:
    """Check texts, ids and the assistant's share of conversations; return them as transformers gives them."""
    import transformers

    special = {"pad_token": "<pad>", "eos_token": "<stop>", "bos_token": "<s>"}
    wrapped = transformers.PreTrainedTokenizerFast(tokenizer_object=chat_tokenizer(), **special)
    read, found = Tokenizer(chat_tokenizer(), special, ChatTemplate(MARKED, special)), []
    for messages, variables in CHATS:
        text = wrapped.apply_chat_template(messages, chat_template=MARKED, tokenize=False, **variables)
        encoded = wrapped.apply_chat_template(
            messages, chat_template=MARKED, return_dict=True, return_assistant_tokens_mask=True, **variables
        )
        ids, said = encoded["input_ids"], encoded["assistant_masks"]
        if (ids, said) != read.encode_demonstration(messages, **variables):
            raise SystemExit(f"chat: no parity: {text}")
        found.append({"text": text, "ids": ids, "said": said})
    print("chats         texts, ids and the assistant's share equal")
    return found


def compare_tokenizer(folder: Path) -> None:
    """Check ids, texts and conversations against transformers, and the way back."""
    import transformers

    texts = ["the cat sees <turn> the dogs", "", " ü日 the\n\n  then", "dog" * 9]
    chat = [{"role": "user", "content": " the cat?\n"}, {"role": "assistant", "content": "<turn> dogs ü"}]
    backend = train_bpe(["the cat sees the dog", "then the cats see dogs"] * 4, 270)._backend
    backend.add_special_tokens(["<turn>", "<s>"])
    starts = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", backend.token_to_id("<s>"))]
    )
    backend.post_processor = starts
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<stop>", bos_token="<s>", chat_template=CHAT
    )
    wrapped.save_pretrained(folder / "theirs")
    read = load_tokenizer(folder / "theirs")
    (folder / "ours").mkdir()
    save_tokenizer(folder / "ours", read)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        back = transformers.AutoTokenizer.from_pretrained(folder / "ours")
    for other in (wrapped, back):
        plain = [other(text, split_special_tokens=True).input_ids for text in texts]
        assert plain == read.encode_batch(texts), (plain, read.encode_batch(texts))
        assert [other.decode(row, skip_special_tokens=True) for row in plain] == [
            read.decode(r) for r in plain
        ]
        for prompt in (False, True):
            ids = other.apply_chat_template(chat, add_generation_prompt=prompt)["input_ids"]
            assert ids == read.encode_chat(chat, add_generation_prompt=prompt)
        assert (other.pad_token_id, other.eos_token_id) == (read.pad_token, read.stop_token)
    print("tokenizer     ids, texts and conversations equal, both ways")


def main() -> None:
    """Check every case at both sizes; write the fixture on request."""
    import torch
    import transformers

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--older", action="store_true")
    arguments = parser.parse_args()
    fixture = json.loads(FIXTURE.read_text(encoding="utf-8")) if FIXTURE.is_file() else {"older": {}}
    if arguments.older:
        fixture["older"][transformers.__version__] = older_configs()
    else:
        with tempfile.TemporaryDirectory() as folder:
            compare_tokenizer(Path(folder))
        cases = {}
        for name in CASES:
            for changes in (WIDER, {}):
                with tempfile.TemporaryDirectory() as folder:
                    cases[name] = compare(name, Path(folder), changes)
        classifiers = {}
        for name in ("gpt2", "llama", "qwen2"):
            with tempfile.TemporaryDirectory() as folder:
                classifiers[name] = compare_classifier(name, Path(folder))
        fixture |= {"cases": cases, "classifiers": classifiers, "chats": compare_chats()} | {
            "origin": "Made by make_huggingface_fixtures.py from the libraries below; do not edit.",
            "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
        }
    if arguments.write or arguments.older:
        FIXTURE.write_text(json.dumps(fixture) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
