"""Texts up to a stop string, against a completer's tokens cut afterwards."""

import jax
import jax.numpy as jnp
import pytest

from jaxrl_align.data.tokens.vocabularies import character_tokenizer, train_bpe
from jaxrl_align.evaluate.scoring.stop_strings import cut_at, make_text_writer
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
KEY = jax.random.key(100)
"""Of three texts two are as long as they may be, and hold a stop string at different places."""


@pytest.fixture(scope="module")
def whole():
    complete = make_completer(WRITER, response_length=LENGTH, stop_tokens=(1,))
    return complete(PARAMS, PROMPTS, KEY, 2.0)


def write(stops, **settings):
    writer = make_text_writer(
        WRITER, BPE, response_length=LENGTH, stop_tokens=(1,), stop_strings=stops, **settings
    )
    return writer(PARAMS, PROMPTS, KEY, 2.0)


@pytest.fixture
def looks(monkeypatch):
    """How many tokens each look decodes."""
    counts, real = [], BPE.decode
    monkeypatch.setattr(BPE, "decode", lambda ids: counts.append(len(ids)) or real(ids))
    return counts


def test_a_text_ends_before_the_first_stop_string_even_across_tokens_and_pieces(whole, looks):
    texts = [BPE.decode(completion.tokens) for completion in whole]
    assert [completion.stopped for completion in whole] == [False, True, False]
    pieces = [BPE.decode([token]) for token in whole[0].tokens]
    stop = pieces[4][-1] + pieces[5]
    assert stop in texts[2], "later than in the first text"
    for piece in (8, 5):
        assert write([stop], filters=Filters(), piece=piece) == [t.split(stop)[0] for t in texts]
        ended, _, last = looks[-3:]
        assert ended <= 2 * piece < last, "what has ended is not written on"
    assert write([], filters=Filters(), piece=8) == texts


def test_the_writing_ends_with_the_last_text(looks):
    """Every text holds a letter within the first piece, so that no second one is written."""
    assert write(["a", "b", "c", "d", " "], piece=8) == ["", "", ""]
    assert 1 < max(looks) <= 8
    assert len(looks) == 4 + 3, "once each letter, a token that could be special, and once each text"


def write_always(token, **stops):
    """Return the texts of a model that writes one token alone."""
    row = 1e3 * jax.nn.one_hot(token, 264)
    always = WRITER._replace(logits=lambda _, hidden: jnp.broadcast_to(row, (*hidden.shape[:-1], 264)))
    return make_text_writer(always, BPE, response_length=6, piece=2, **stops)(PARAMS, PROMPTS, KEY)


def test_a_special_tokens_text_stops_as_the_token(looks):
    assert write_always(0, stop_tokens=(), stop_strings=["<pad>"]) == ["", "", ""]
    assert max(looks) == 1, "the text `<pad>` itself; nothing that is written"


def test_only_a_special_tokens_text_counts_as_the_token():
    """A text with a letter that the tokenizer lacks is no token, and no error: it is never written."""
    letters = character_tokenizer("ab")
    found = [letters.special_token(text) for text in ("<pad>", "<stop>", "a", "\n")]
    assert found == [0, 1, None, None]
    make_text_writer(LM, letters, response_length=2, stop_tokens=(1,), stop_strings=["\n"])


def test_a_stop_token_that_is_a_letter_is_no_part_of_the_text():
    letter = BPE.encode("d")[-1]
    assert write_always(letter, stop_tokens=(1, letter)) == ["", "", ""]


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
