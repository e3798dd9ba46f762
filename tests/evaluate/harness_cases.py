"""Small models, requests and a task on which ours and lm-eval's Hugging Face backend must agree."""

import json
from pathlib import Path

import jax
import numpy as np

from jaxrl_align.data.tokens.chat import ChatTemplate
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.data.tokens.vocabularies import train_bpe
from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from jaxrl_align.runtime.huggingface import Pretrained

TEXT = (
    "Question: is the sky blue or red? Answer: blue. the sea is blue, a rose is red and the grass is green. "
    "nothing is as green as the grass below the sea. "
)
CHAT = (
    "{% for m in messages %}<stop>{{ m['role'] + ': ' + m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<stop>assistant:{% endif %}"
)
VOCAB, CONTEXT = 300, 48
CONFIGS = {
    "gpt2": TransformerConfig(VOCAB, width=16, layers=2, heads=2, context=CONTEXT),
    "llama": TransformerConfig(
        VOCAB,
        width=16,
        layers=2,
        heads=4,
        context=CONTEXT,
        key_value_heads=2,
        positions="rotary",
        norm="rms",
        feed_forward="swiglu",
        feed_forward_width=24,
        biased=(),
        tied_head=False,
    ),
}


def make_tokenizer() -> Tokenizer:
    plain = train_bpe([TEXT] * 3, VOCAB)
    return Tokenizer(plain._backend, plain.special, ChatTemplate(CHAT, plain.special))


def make_model(name: str) -> Pretrained:
    """Return a model with drawn weights, which prefers to write letters."""
    config, tokenizer, draw = CONFIGS[name], make_tokenizer(), np.random.RandomState(7)
    shapes = jax.eval_shape(make_transformer(config).init, jax.random.key(0))
    params = jax.tree.map(lambda x: draw.standard_normal(x.shape).astype(np.float32) * 0.3, shapes)
    common = np.array([tokenizer.decode([i]).strip().isalpha() for i in range(VOCAB)])
    scale = np.where(common, 4.0, 0.3).astype(np.float32)
    params["tokens"] *= scale[:, None]
    if not config.tied_head:
        params["head"] *= scale
    return Pretrained(config, params, (1,), tokenizer)


ASKED = "Question: is the sea blue or red? Answer:"
PAIRS = [
    *((ASKED, option) for option in (" blue", " red", " green as the grass", " blue.", " rose")),
    *((ASKED + " ", option) for option in ("blue", "red")),
    *((ASKED, written) for written in ("t", "tse", "tset", "o", "oo")),
    ("the sky\n", "is blue"),
    *(("", text) for text in ("the sea is blue", "a rose", " red")),
    (TEXT, " the sea"),
    (TEXT, " nothing is as green"),
    ("nothing is as green as " * 5, "the grass below the sea"),
    ("<stop>user: is the sky red?\n<stop>assistant:", " the sky is blue"),
    *(("the rose is", " " + option) for option in ("a", "b", "red", "blue", "the", "green", "is")),
]
"""Contexts with several continuations, spaces at either side, empty, and longer than the model reads."""
TEXTS = ["the sky is blue", TEXT, TEXT * 3, "r", "", "grass " * CONTEXT]
PROMPTS = [
    (ASKED, {"until": ["zz", "ets", "vk"], "max_gen_toks": 12}),
    (TEXT * 2, {"until": ["zz", "ets", "vk"], "max_gen_toks": 12}),
    ("a rose is red and", {"until": "rQ", "max_gen_toks": 20, "do_sample": False}),
    ("nothing", {"until": [], "max_gen_toks": 9, "temperature": 0.0}),
    (TEXT * 2, {"until": ["g"], "max_gen_toks": 20}),
]


def write_task(folder: Path) -> str:
    """Write a multiple-choice task and its rows, 24 with four options each; return its name."""
    draw = np.random.RandomState(3)
    nouns = ["the sky", "a rose", "the grass", "the sea", "nothing", "below the sea"]
    colours = ["blue", "red", "green as the grass", "blue or red", "a rose", "nothing"]
    rows = []
    for i in range(24):
        options = list(draw.permutation(colours)[:4])
        rows.append({"q": f"{nouns[i % 6]}, {nouns[(i + i // 6) % 6]}", "choices": options, "gold": i % 4})
    data = folder / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "colours.yaml").write_text(
        f"""task: colours
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
output_type: multiple_choice
test_split: test
fewshot_split: test
doc_to_text: "Question: is {{{{q}}}} blue or red? Answer:"
doc_to_choice: choices
doc_to_target: gold
metric_list:
  - metric: acc
  - metric: acc_norm
  - metric: acc_bytes
"""
    )
    return "colours"
