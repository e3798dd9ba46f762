"""The commands that write and convert: generate, chat, merge."""

import io
import json
import sys

import jax
import numpy as np
import pytest

from jaxrl_align import nets
from jaxrl_align.cli import serve
from jaxrl_align.cli.bases import load_base
from jaxrl_align.runtime.huggingface import load_model, save_adapter
from tests.cli.conftest import PROMPTS, tokenizer
from tests.tiny import disturb


@pytest.fixture(scope="module")
def adapter(workshop, tmp_path_factory):
    """The folder of an adapter over `tiny` that changes what is said."""
    folder = tmp_path_factory.mktemp("adapter") / "own"
    model = load_model(workshop / "tiny")
    part, constants = nets.init_lora(jax.random.key(0), model.params, rank=2)
    part = disturb(part, jax.random.key(1), 2.0)
    base = nets.overlay(model.params, constants)
    return save_adapter(folder, model.config, base, part, base_name="tiny")


def test_generate_answers_every_prompt_as_often_as_asked(road, tmp_path):
    out = tmp_path / "answers.jsonl"
    road("generate --model tiny --data prompts.jsonl --tokens 4 --samples 2 --batch-size 5 --out", out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["prompt"] for row in rows] == [prompt for prompt in PROMPTS for _ in range(2)]
    assert [row["word"] for row in rows[:2]] == [" red", " red"]
    assert len({row["completion"] for row in rows}) > 6
    assert all(isinstance(row["stopped"], bool) for row in rows)


def test_generate_reads_an_adapter_over_its_base_and_merge_folds_it_in(road, adapter, tmp_path, capsys):
    how = "generate --prompt say --tokens 6 --temperature 0 --model"

    def said(model):
        road(how, model)
        return capsys.readouterr().out.splitlines()[1]

    road("merge --model", adapter, "--out", tmp_path / "merged")
    capsys.readouterr()
    assert said(adapter) == said(tmp_path / "merged") != said("tiny")
    folded, laid = load_model(tmp_path / "merged").params, load_base(str(adapter), fold=False).params
    lm = load_base("tiny").lm
    ids = np.array(tokenizer().encode("say red"))
    read = jax.jit(lambda params: lm.logits(params, lm.encode(params, ids)[0]))
    np.testing.assert_allclose(read(folded), read(laid), atol=1e-5)


def test_chat_goes_on_until_the_input_ends(road, monkeypatch, capsys):
    asked = []

    def stream(lm, **settings):
        def write(params, prompt, key, temperature):
            asked.append((tokenizer().decode(prompt), temperature))
            yield from tokenizer().encode(f"answer {len(asked)} é")

        return write

    monkeypatch.setattr(serve, "make_streamer", stream)
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n\nmore\n/reset\nagain\n/quit\nnever\n"))
    road("chat --model tiny --tokens 8 --temperature 0 --system be")
    out = capsys.readouterr().out.splitlines()
    assert out[1:] == ["answer 1 é", "answer 2 é", "forgotten", "answer 3 é"]
    assert [prompt for prompt, _ in asked] == [
        "s:be\nu:hi\na:",
        "s:be\nu:hi\na:answer 1 é\nu:more\na:",
        "s:be\nu:again\na:",
    ]
    assert {temperature for _, temperature in asked} == {1.0}


def test_chat_streams_the_models_own_words(road, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("hi\n"))
    road("chat --model tiny --tokens 5 --temperature 0")
    streamed = capsys.readouterr().out.splitlines()[1:]
    road("generate --model tiny --tokens 5 --temperature 0 --chat --prompt hi")
    assert streamed == capsys.readouterr().out.splitlines()[1:-1]


def test_a_dialogue_beyond_the_context_loses_its_oldest_turns(road):
    base = load_base("tiny")
    turns = [{"role": "user", "content": "x" * 20}, {"role": "assistant", "content": "y" * 10}]
    system = {"role": "system", "content": "s"}
    messages = [system, *turns, *turns, {"role": "user", "content": "last"}]
    kept, prompt = serve.fit_turns(base, messages, 1, 8)
    assert kept == [system, *turns, {"role": "user", "content": "last"}]
    assert len(prompt) <= 64 - 8
    with pytest.raises(ValueError, match="a turn and its answer must fit the context of 64 tokens"):
        serve.fit_turns(base, [{"role": "user", "content": "z" * 80}], 0, 8)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("generate --model tiny", "give --prompt TEXT or --data FILE, and not both"),
        ("generate --model tiny --prompt a --temperature -1", "--temperature must be at least 0; got -1.0"),
        ("generate --model nowhere --prompt a", "found none at nowhere; for a hub's name pass --hub"),
        ("generate --model sft.jsonl --prompt a", "jaxrl-align import makes one of a GGUF file"),
        ("merge --model tiny --out new", "tiny must be an adapter's folder; got a whole model"),
        ("import --file sft.jsonl --out new", "sft.jsonl is truncated or no GGUF file"),
    ],
)
def test_what_cannot_be_is_said_in_a_line(fails, line, said):
    if line.startswith("import"):
        pytest.importorskip("gguf")
    code, found = fails(line)
    assert code == 2 and said in found
