"""Texts up to a stop string, against a completer's tokens cut afterwards."""

import jax
import jax.numpy as jnp
import pytest

from jaxrl_align.data.tokenizers import train_bpe
from jaxrl_align.evaluate.stop_strings import cut_at, make_text_writer
from jaxrl_align.text import Filters, make_completer
from tests.tiny import draw_params, make_bigram

BPE = train_bpe(["abab cdcd abcd dcba"] * 3, 264)
LM = make_bigram(264, context=72)
LETTERS = jnp.asarray([all(c in "abcd " for c in BPE.decode([i])) and i > 1 for i in range(264)])


def logits(params, hidden):
    """Bar all but letters, so that what is written can be read; stop now and then."""
    plain = 3.0 * LM.logits(params, hidden)
    allowed = LETTERS.at[1].set(True)
    return jnp.where(jnp.broadcast_to(allowed, plain.shape), plain, -1e9)


WRITER = LM._replace(logits=logits)
PARAMS = draw_params(LM)
PROMPTS = [BPE.encode(text) for text in ("ab", "cdcd abcd dcba", "d")]
LENGTH = 21
KEY = jax.random.key(7)


@pytest.fixture(scope="module")
def whole():
    complete = make_completer(WRITER, response_length=LENGTH, stop_tokens=(1,))
    return complete(PARAMS, PROMPTS, KEY, 2.0)


def write(stops, **settings):
    writer = make_text_writer(
        WRITER, BPE, response_length=LENGTH, stop_tokens=(1,), stop_strings=stops, **settings
    )
    return writer(PARAMS, PROMPTS, KEY, 2.0)


@pytest.mark.parametrize("piece", [5, pytest.param(8, marks=pytest.mark.slow)])
def test_a_text_ends_before_the_first_stop_string_even_across_tokens_and_pieces(whole, piece):
    texts = [BPE.decode(completion.tokens) for completion in whole]
    assert any(completion.stopped for completion in whole) or len(whole[0].tokens) == LENGTH
    pieces = [BPE.decode([token]) for token in max(whole, key=lambda c: len(c.tokens)).tokens]
    at = next(i for i in range(5, len(pieces)) if len(pieces[i - 1]) and len(pieces[i]))
    stop = pieces[at - 1][-1] + pieces[at]
    assert write([stop], filters=Filters(), piece=piece) == [t.split(stop)[0] for t in texts]


@pytest.mark.slow
def test_without_stop_strings_texts_are_whole(whole):
    assert write([], filters=Filters(), piece=8) == [BPE.decode(completion.tokens) for completion in whole]


@pytest.fixture
def looks(monkeypatch):
    """How many tokens each look decodes."""
    counts, real = [], BPE.decode
    monkeypatch.setattr(BPE, "decode", lambda ids: counts.append(len(ids)) or real(ids))
    return counts


def test_the_writing_ends_with_the_last_text(looks):
    """Every text holds a letter within the first piece, so that no second one is written."""
    assert write(["a", "b", "c", "d", " "], piece=8) == ["", "", ""]
    assert 1 < max(looks) <= 8


def test_a_special_tokens_text_stops_as_the_token(looks):
    """A model that writes padding alone goes on for six tokens, unless `<pad>` stops it at the first."""
    pad = 1e3 * jax.nn.one_hot(0, 264)
    always = WRITER._replace(logits=lambda _, hidden: jnp.broadcast_to(pad, (*hidden.shape[:-1], 264)))
    writer = make_text_writer(
        always, BPE, response_length=6, stop_tokens=(1,), stop_strings=["<pad>"], piece=2
    )
    assert writer(PARAMS, PROMPTS, KEY) == ["", "", ""] and max(looks) <= 1


def test_cut_at():
    assert cut_at("one two three", ["three", " two"]) == "one"
    assert cut_at("one", ["two"]) == "one" and cut_at("one", []) == "one" and cut_at("one", ["one"]) == ""


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"stop_strings": ["a", ""]}, r"stop_strings must be a list of texts, none empty; got \['a', ''\]"),
        ({"stop_strings": "ab"}, "stop_strings must be a list of texts, none empty; got 'ab'"),
        ({"response_length": 0}, "response_length must be a whole number of at least 1; got 0"),
        ({"piece": 0}, "piece must be a whole number of at least 1; got 0"),
        ({"stop_tokens": ()}, "stop_tokens must name some token"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        make_text_writer(LM, BPE, **({"response_length": 4, "stop_tokens": (1,)} | settings))


def test_prompts_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="got a prompt of 52 and response_length=21"):
        writer = make_text_writer(WRITER, BPE, response_length=LENGTH, stop_tokens=(1,))
        writer(PARAMS, [[5] * 52], KEY)
