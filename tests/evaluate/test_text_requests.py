"""Requests of texts, against what lm-eval's Hugging Face backend answered (`make_harness_fixtures`)."""

import json
from pathlib import Path

import numpy as np
import pytest

from jaxrl_align.evaluate.scoring import text_requests
from jaxrl_align.evaluate.scoring.text_requests import TextScorer, rolling_windows
from jaxrl_align.nets.transformer import make_transformer
from tests.evaluate.harness_cases import ASKED, CONTEXT, PAIRS, PROMPTS, TEXT, TEXTS, make_model
from tests.evaluate.test_choices import with_bos

ANSWERS = json.loads((Path(__file__).parent / "fixtures" / "harness.json").read_text())


def make_scorer_of(name, **settings):
    model = make_model(name)
    return TextScorer(
        make_transformer(model.config), model.params, model.tokenizer, model.stop_tokens, **settings
    )


@pytest.fixture(scope="module", params=["llama", pytest.param("gpt2", marks=pytest.mark.slow)])
def case(request):
    return make_scorer_of(request.param), ANSWERS[request.param]


def test_pairs(case):
    scorer, answers = case
    found = scorer.score_pairs(PAIRS)
    np.testing.assert_allclose([x for x, _ in found], [x for x, _ in answers["pairs"]], atol=1e-4)
    assert [flag for _, flag in found] == [flag for _, flag in answers["pairs"]]
    assert any(flag for _, flag in found)


@pytest.mark.slow
def test_whole_texts(case):
    scorer, answers = case
    np.testing.assert_allclose(scorer.score_texts(TEXTS), answers["texts"], rtol=1e-6, atol=1e-4)


@pytest.mark.slow
def test_written_texts(case):
    scorer, answers = case
    assert scorer.write(PROMPTS[:2]) == answers["written"][:2]


@pytest.mark.slow
def test_written_texts_of_many_settings(case):
    scorer, answers = case
    assert scorer.write(PROMPTS) == answers["written"]


def test_windows_of_the_interfaces_own_example():
    """Its documentation: ten tokens, four read at once; the last window reads old ones again."""
    found = rolling_windows(range(10), 4, -1)
    assert found == [([-1], [0, 1, 2, 3]), ([3], [4, 5, 6, 7]), ([5, 6, 7], [8, 9])]


@pytest.mark.parametrize("count", [0, 1, 4, 5, 8, 9, 23])
@pytest.mark.parametrize("length", [1, 4, 9])
def test_every_token_is_predicted_once_behind_as_many_as_fit(count, length):
    windows = rolling_windows(range(count), length, -1)
    assert [token for _, after in windows for token in after] == list(range(count))
    for before, after in windows:
        assert len(before) + len(after) - 1 == min(length, after[-1] + 1)
        assert [*before, *after] == list(range(before[0], before[0] + len(before) + len(after)))


def test_a_start_token_stands_once():
    tokenizer, bos = with_bos()
    seen = []
    scorer = make_scorer_of("gpt2")
    scorer.tokenizer, scorer._start = tokenizer, bos
    scorer._score_tokens = lambda pairs: seen.extend(pairs) or [(0.0, True)] * len(pairs)
    scorer.score_texts(["ab", "<s>ab"])
    ab = tokenizer.encode("ab", special=False)
    assert seen == [([bos], ab)] * 2


def test_a_text_is_the_sum_of_its_windows():
    """Were every token 1 nat, whatever stands before."""
    scorer = make_scorer_of("gpt2")
    scorer._score_tokens = lambda pairs: [(float(len(after)), True) for _, after in pairs]
    counts = [len(scorer.tokenizer.encode(text)) for text in TEXTS]
    assert max(counts) > 2 * CONTEXT and list(scorer.score_texts(TEXTS)) == counts


def test_settings_are_read(monkeypatch):
    scorer, made = make_scorer_of("gpt2", new_tokens=7, batch_size=2), []
    writer = lambda *_, **given: (
        made.append(given) or (lambda params, rows, key, t: [f"{t} {len(row)}" for row in rows])
    )
    monkeypatch.setattr(text_requests, "make_text_writer", writer)
    asked = [
        {"temperature": 0.5, "do_sample": True, "top_k": 3, "until": "x"},
        {"temperature": 0.5, "do_sample": False},
        {"temperature": 0.5, "top_k": 0, "max_new_tokens": 3, "until": ["", "y"]},
        {"do_sample": True},
        {"max_tokens": 4, "max_gen_toks": 5},
    ]
    prompts = ["the", "the sky", "a rose is red", "the", "grass", "the sea is blue", "is"]
    lengths = [len(scorer.tokenizer.encode(prompt)) for prompt in prompts]
    heat = [0.5, 1.0, 0.5, 1.0, 1.0, 0.5, 0.5]
    found = scorer.write(list(zip(prompts, [*asked, asked[0], asked[0]], strict=True)))
    assert found == [f"{t} {length}" for t, length in zip(heat, lengths, strict=True)]
    got = [(g["response_length"], g["stop_strings"], g["filters"].top_k) for g in made]
    assert got == [(7, ("x",), 3), (7, (), 1), (3, ("y",), None), (5, (), 1)]


def test_what_cannot_be_answered_is_refused():
    scorer = make_scorer_of("gpt2")
    with pytest.raises(ValueError, match="continuation must have 1 to 48 tokens; got 0: ''"):
        scorer.score_pairs([(ASKED, "")])
    with pytest.raises(ValueError, match="continuation must have 1 to 48 tokens; got "):
        scorer.score_pairs([(ASKED, TEXT)])
    with pytest.raises(ValueError, match=r"got \['num_beams'\]; leave them out"):
        scorer.write([(ASKED, {"num_beams": 4})])
    with pytest.raises(ValueError, match="max_gen_toks must be 1 to 47, .*; got 48"):
        scorer.write([(ASKED, {"max_gen_toks": CONTEXT})])
    with pytest.raises(ValueError, match="length must fit the context of 48 tokens; got 49"):
        make_scorer_of("gpt2", length=49)
