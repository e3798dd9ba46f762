"""A model of a few hundred weights in a folder, and a few rows of every kind of file."""

import json
import os

import jax
import pytest

from jaxrl_align import data, nets
from jaxrl_align.cli import run_command
from jaxrl_align.data.tokens.tokenizers import STOP, Tokenizer

TEMPLATE = (
    "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
WORDS = ("red", "green", "blue", "small", "large", "quick")
PROMPTS = [f"say {word}" for word in WORDS]


def tokenizer():
    """Return bytes as tokens; its padding is its stop token, as in many published models."""
    special = {"pad_token": STOP, "eos_token": STOP}
    return Tokenizer(data.byte_tokenizer()._backend, special, data.ChatTemplate(TEMPLATE, special))


def config():
    shape = {"width": 8, "layers": 1, "heads": 2, "context": 64, "feed_forward_width": 8}
    kind = {"positions": "rotary", "norm": "rms", "feed_forward": "swiglu", "biased": ()}
    return nets.TransformerConfig(258, **shape, **kind)


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_workshop(folder):
    """Write the model `tiny` and files of rows."""
    from jaxrl_align.runtime.huggingface import save_model

    shape = config()
    params = jax.tree.map(lambda x: 3 * x, jax.jit(nets.make_transformer(shape).init)(jax.random.key(0)))
    save_model(folder / "tiny", shape, params, stop_tokens=[1], tokenizer=tokenizer())
    pairs = [
        {"prompt": f"say {a}", "chosen": f" {a}", "rejected": f" {b}"}
        for a, b in zip(WORDS, WORDS[1:] + WORDS[:1], strict=True)
    ]
    write_rows(
        folder / "sft.jsonl", [{"prompt": row["prompt"], "completion": row["chosen"]} for row in pairs]
    )
    write_rows(folder / "pairs.jsonl", pairs)
    write_rows(folder / "prompts.jsonl", [{"prompt": row["prompt"], "word": row["chosen"]} for row in pairs])
    (folder / "own_rewards.py").write_text(
        "def spaces(prompts, completions, **columns):\n"
        "    return [float(c.count(' ')) + len(c) / 10 for c in completions]\n"
        "def knows(prompts, completions, word):\n"
        "    assert all(p.endswith(w.strip()) for p, w in zip(prompts, word))\n"
        "    return [float(c == w) for c, w in zip(completions, word)]\n"
        "def counts(prompts, completions):\n"
        "    texts = [c if isinstance(c, str) else c[0]['content'] for c in completions]\n"
        "    return [float(len(text)) for text in texts]\n"
        "def raises(prompts, completions, **columns):\n"
        "    if any('blue' in p for p in prompts):\n"
        "        raise KeyError('blue')\n"
        "    return [0.0 for c in completions]\n"
        "def nan(prompts, completions, **columns):\n"
        "    return [float('nan') for c in completions]\n"
        "def short(prompts, completions, **columns):\n"
        "    return [1.0]\n"
        "def single(prompts, completions, **columns):\n"
        "    return 1.0\n",
        encoding="utf-8",
    )


@pytest.fixture(scope="session")
def workshop(tmp_path_factory):
    """A folder with the model `tiny` and files of rows; nothing may be changed in it."""
    pytest.importorskip("safetensors")
    folder = tmp_path_factory.mktemp("workshop")
    write_workshop(folder)
    return folder


@pytest.fixture
def road(workshop, monkeypatch):
    """Call a command in the workshop: `road("sft --out {out}")`, with further arguments as they are."""
    monkeypatch.chdir(workshop)
    monkeypatch.delenv("JAXRL_ALIGN_DEBUG", raising=False)

    def call(line, *more):
        run_command([*line.split(), *map(os.fspath, more)])

    return call


@pytest.fixture
def fails(road, capsys):
    """Call a command that must fail, and return its exit code and the line that it says."""

    def call(line, *more):
        with pytest.raises(SystemExit) as stop:
            road(line, *more)
        return stop.value.code, capsys.readouterr().err.strip().splitlines()[-1]

    return call
