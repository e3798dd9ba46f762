"""Options scored in packed rows, against each read alone, one at a time, without padding."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.data.tokens.vocabularies import byte_tokenizer, train_bpe
from jaxrl_align.evaluate.scoring import choices
from jaxrl_align.evaluate.scoring.choices import (
    Choices,
    OptionScores,
    encode_choices,
    encode_pairs,
    make_option_scorer,
    share_prefix,
)
from jaxrl_align.evaluate.scoring.option_rules import adjust_scores, choose_option
from jaxrl_align.nets.adapters import overlay
from jaxrl_align.nets.transformer import TransformerConfig, init_prompt, make_transformer
from tests.tiny import LM, PARAMS, VOCAB, bits, draw_params, make_bigram

RNG = np.random.default_rng(0)
ids = lambda n: tuple(RNG.integers(2, VOCAB, n).tolist())
ITEMS = [
    Choices(ids(9), (ids(3), ids(1), ids(5))),
    Choices(ids(4), (ids(1), ids(1))),
    Choices(ids(23), (ids(4),)),
    Choices(ids(1), (ids(2), ids(2), ids(6), ids(1))),
    Choices(ids(12), ((3,), (4,), (5, 6))),
]
PREFIX = ids(11)
BIGRAM = make_bigram(VOCAB, context=80)
TABLE = draw_params(BIGRAM, 1.0)
WINDOWED = TransformerConfig(VOCAB, 16, 2, 2, 80, positions="rotary", window=5, window_layers=(1,))


def read_alone(lm, params, items, prefix=()):
    """Return log-probabilities and greedy flags, one option at a time, padded behind it to one length."""
    found = []
    for context, options in items:
        before = (*prefix, *context)
        log_prob, greedy = [], []
        for option in options:
            row = jnp.array([*before, *option, *[0] * (60 - len(before) - len(option))])
            table = np.asarray(_read(lm, params, row), np.float64)[len(before) - 1 :][: len(option)]
            log_prob.append(table[np.arange(len(option)), option].sum())
            greedy.append(bool((table.argmax(-1) == option).all()))
        found.append(OptionScores(np.array(log_prob), np.array(greedy)))
    return found


@functools.partial(jax.jit, static_argnums=0)
def _read(lm, params, row):
    return jax.nn.log_softmax(lm.logits(params, lm.encode(params, row)[0]))


def check_equal(found, expected):
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_allclose(a.log_prob, b.log_prob, atol=1e-5)
        assert a.greedy.tolist() == b.greedy.tolist()


def likeliest(context, length):
    """Return what greedy decoding writes."""
    row = list(context)
    for _ in range(length):
        padded = jnp.array([*row, *[0] * (60 - len(row))])
        row.append(int(jnp.argmax(_read(LM, PARAMS, padded)[len(row) - 1])))
    return tuple(row[len(context) :])


@pytest.fixture(scope="module")
def score():
    return make_option_scorer(LM)


WRITTEN = 3
"""The place of the item that holds what greedy decoding writes."""


@pytest.fixture(scope="module")
def found(score):
    """Items, one of them with what greedy decoding writes, and their scores."""
    written = likeliest(ITEMS[0].context, 3)
    wrong = (*written[:2], (written[2] + 1) % VOCAB)
    late = ((written[0] + 1) % VOCAB, *written[1:])
    items = [
        *ITEMS[:WRITTEN],
        Choices(ITEMS[0].context, (wrong, written, late, written[:1])),
        *ITEMS[WRITTEN:],
    ]
    return items, score(PARAMS, items)


def test_options_score_as_each_read_alone(found):
    items, scores = found
    check_equal(scores, read_alone(LM, PARAMS, items))


def test_what_greedy_decoding_writes_is_marked(found):
    assert found[1][WRITTEN].greedy.tolist() == [False, True, False, True]


BOTH = pytest.mark.parametrize(
    "lm, params",
    [(BIGRAM, TABLE), pytest.param(LM, PARAMS, marks=pytest.mark.slow)],
    ids=["bigram", "transformer"],
)
"""One compiles fast, the other reads all that stands before."""


@pytest.mark.parametrize("batch_size", [2, pytest.param(1, marks=pytest.mark.slow)])
@BOTH
def test_batches_and_company_change_nothing(lm, params, batch_size):
    score, alone = make_option_scorer(lm, batch_size=batch_size), read_alone(lm, params, ITEMS)
    check_equal(score(params, ITEMS), alone)
    check_equal(score(params, ITEMS[3:4]), alone[3:4])


@BOTH
def test_many_options_take_several_rows_and_many_places_several_blocks(monkeypatch, lm, params):
    monkeypatch.setattr(choices, "ROW_OPTIONS", 6)
    monkeypatch.setattr(choices, "BLOCK_LOGITS", 4 * VOCAB)
    monkeypatch.setattr(choices, "BATCH_TOKENS", 20)
    seen = []
    spy = lm._replace(logits=lambda params, hidden: seen.append(hidden.shape[0]) or lm.logits(params, hidden))
    check_equal(make_option_scorer(spy)(params, ITEMS), read_alone(lm, params, ITEMS))
    assert [len(row.targets[0]) for row in choices._make_rows(0, ITEMS[0])] == [2, 1]
    rows = [row for item in ITEMS for row in choices._make_rows(0, item)]
    batches = [(len(batch), len(batch[0].tokens)) for batch in choices._make_batches(rows, 32)]
    assert all(count == 1 or count * length <= 20 for count, length in batches) and max(batches)[0] > 1
    assert max(seen) == 4, "logits of a block at a time, never of a context"


def test_a_prefix_serves_items_without_a_context(score):
    """All are read behind the prefix, the same as in every row."""
    items, before = [Choices((), ((5, 6), (7,))), *ITEMS[3:]], bits(PARAMS)
    check_equal(score(PARAMS, items, PREFIX), read_alone(LM, PARAMS, items, PREFIX))
    assert bits(PARAMS) == before


@pytest.mark.slow
@pytest.mark.parametrize("config", [LM.config, WINDOWED], ids=["learned", "rotary, window"])
def test_a_prefix_read_once_is_the_same_as_in_every_row(config):
    lm = make_transformer(config)
    params = draw_params(lm)
    check_equal(make_option_scorer(lm)(params, ITEMS, PREFIX), read_alone(lm, params, ITEMS, PREFIX))


@pytest.mark.slow
def test_virtual_tokens_come_before_the_prefix(score):
    """Prompt tuning started from tokens is the same as reading these, as far as the window reaches."""
    own, lm = (4, 9, 2), make_transformer(WINDOWED)
    params = draw_params(lm)
    prompt = init_prompt(jax.random.key(0), params, length=3, start=own).part
    found = make_option_scorer(lm)(overlay(params, prompt), ITEMS[:2], PREFIX[:2])
    check_equal(found, read_alone(lm, params, ITEMS[:2], own + PREFIX[:2]))


def test_virtual_tokens_take_room(score):
    prompt = {"prompt": {"table": jnp.zeros((3, LM.config.width))}}
    with pytest.raises(ValueError, match="item 0 must fit the context of 80 .* behind 14 shared tokens"):
        score(overlay(PARAMS, prompt), [Choices((2,) * 66, ((3, 3),))], PREFIX)


def test_the_common_beginning_is_found():
    contexts = [(1, 2, 3, 4, 5), (1, 2, 3, 4, 6), (1, 2, 3, 4)]
    items = [Choices(context, ((7,),)) for context in contexts]
    assert share_prefix(items, 1) == ((1, 2, 3), [i._replace(context=i.context[3:]) for i in items])
    assert share_prefix(items, 2)[0] == (1, 2)
    assert share_prefix([*items, Choices((1, 2, 4, 4), ((7,),))], 1)[0] == (1, 2)
    assert share_prefix(items)[0] == () and share_prefix([])[0] == ()
    assert share_prefix([*items, Choices((), ((7,),))], 1)[0] == ()


def test_the_last_token_needs_no_place(score):
    """Beside 11 shared tokens of 80, and padded: a position past the context would read NaN."""
    fits = [Choices((2,) * 69, ((3,), (4,))), Choices((2,) * 68, ((3, 4), (5, 6)))]
    assert np.isfinite([found.log_prob for found in score(PARAMS, fits, PREFIX)]).all()
    with pytest.raises(ValueError, match="item 2 must fit the context of 80 tokens; got 81; shorten it"):
        score(PARAMS, [*fits, Choices((2,) * 79, ((3, 4, 5), (5,)))])


def test_items_that_cannot_be_scored_are_refused(score):
    for bad in (Choices((), ((3,),)), Choices((3,), ()), Choices((3,), ((3,), ()))):
        with pytest.raises(ValueError, match="item 1 must have a context, options and a token in each"):
            score(PARAMS, [ITEMS[0], bad])
    for bad in (Choices((VOCAB,), ((3,),)), Choices((3,), ((VOCAB,),)), Choices((3,), ((3, 4, VOCAB),))):
        with pytest.raises(ValueError, match="must be from 0 to 19"):
            score(PARAMS, [bad])
    with pytest.raises(ValueError, match="tokens of the prefix must be from 0 to 19"):
        score(PARAMS, ITEMS, [VOCAB])
    with pytest.raises(ValueError, match="batch_size must be a whole number"):
        make_option_scorer(LM, batch_size=0)
    assert score(PARAMS, []) == []


BPE = train_bpe(["the sky is blue and the sea is blue too, the answer: yes; a no"] * 3, 275)


def test_the_space_between_words_belongs_to_the_option():
    for context in ("the sky is", "the sky is "):
        item = encode_choices(BPE, context, [" blue"] if context[-1] != " " else ["blue"])
        assert BPE.decode(item.context) == "the sky is"
        assert BPE.decode(item.options[0]) == " blue"
        assert [*item.context, *item.options[0]] == BPE.encode("the sky is blue")


def test_a_token_over_the_border_takes_no_letter_from_the_option():
    """ "the" is one token, so that "th" and "e" are split otherwise together than apart."""
    assert len(BPE.encode("the")) < len(BPE.encode("th")) + 1
    item = encode_choices(BPE, "the sky is th", ["e", "ere"])
    assert BPE.decode(item.context) == "the sky is th"
    assert [BPE.decode(option) for option in item.options] == ["e", "ere"]


def with_bos():
    """Return a tokenizer of bytes that puts a BOS before every text."""
    from tokenizers import processors

    backend = byte_tokenizer()._backend
    backend.add_special_tokens(["<s>"])
    bos = backend.token_to_id("<s>")
    backend.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", bos)])
    return Tokenizer(backend, {"pad_token": "<pad>", "eos_token": "<stop>", "bos_token": "<s>"}), bos


def test_a_bos_stands_once_and_before_an_empty_context():
    tokenizer, bos = with_bos()
    a, b, c = (tokenizer.encode(x, special=False)[0] for x in "abc")
    assert tokenizer.start_token == bos and byte_tokenizer().start_token == 1
    assert encode_choices(tokenizer, "a", ["b", "c"]) == Choices((bos, a), ((b,), (c,)))
    assert encode_choices(tokenizer, "", ["b"]) == Choices((bos,), ((b,),))
    assert encode_choices(tokenizer, "<s>a", ["b"], marked=True) == Choices((bos, a), ((b,),))
    assert encode_pairs(tokenizer, [("", "<s>b")], marked=True) == [([bos], [b])]
    spelled = encode_choices(tokenizer, "<s>", ["b"])
    assert spelled.context == (bos, *tokenizer.encode("<s>", special=False)), "a text that spells it is text"
    assert encode_choices(byte_tokenizer(), "", ["b"]).context == (1,)
    twice = encode_choices(byte_tokenizer(), "<stop><stop>", ["b"], marked=True)
    assert twice.context == (1, 1), "of a tokenizer that puts none, all stand as they are spelled"


def test_options_that_cannot_be_told_apart_are_refused():
    with pytest.raises(ValueError, match="every option must have a token; got ''; write it out"):
        encode_choices(BPE, "the ", ["sky", ""])
    with pytest.raises(ValueError, match="options must differ; got ' a' and ' a', the same tokens"):
        encode_choices(BPE, "the", [" sky", " a", " a"])
    with pytest.raises(ValueError, match="at least one option; got none behind 'the'"):
        encode_choices(BPE, "the", [])
    with pytest.raises(ValueError, match="needs a token to start it"):
        encode_choices(Tokenizer(byte_tokenizer()._backend, {}), "", ["a"])


SCORES = OptionScores(np.array([-4.0, -5.0, -6.0]), np.zeros(3, bool))


@pytest.mark.parametrize(
    "rule, options, baseline, expected, chosen",
    [
        ("raw", ["aa", "b", "cccc"], None, [-4, -5, -6], 0),
        ("characters", ["aa", "b", "cccc"], None, [-2, -5, -1.5], 2),
        ("characters", ["aa", "éééééééééé", "cccc"], None, [-2, -0.5, -1.5], 1),
        ("bytes", ["aa", "éé", "cccccc"], None, [-2, -1.25, -1], 2),
        ("mutual_information", ["aa", "b", "c"], [-4.0, -9.0, -7.0], [0, 4, 1], 1),
        ("calibrated", ["aa", "b", "c"], [-4.0, -5.0, -6.0], [0, 0, 0], 0),
    ],
)
def test_rules_by_hand(rule, options, baseline, expected, chosen):
    baseline = None if baseline is None else np.array(baseline)
    np.testing.assert_allclose(adjust_scores(SCORES, options, rule, baseline), expected)
    assert choose_option(SCORES, options, rule, baseline) == chosen


@pytest.mark.parametrize(
    "options, rule, baseline, message",
    [
        (["a", "b", "c"], "length", None, "rule must be one of raw, .*; got 'length'"),
        (["a", "b"], "raw", None, "those that were scored, 3; got 2"),
        (["a", "b", "c"], "calibrated", None, "rule 'calibrated' takes a baseline"),
        (["a", "b", "c"], "raw", np.zeros(3), "rule 'raw' takes no baseline"),
        (["a", "b", "c"], "calibrated", np.zeros(2), r"each of 3 options; got \(2,\)"),
        (["a", "", "c"], "characters", None, "must not be empty for rule 'characters'"),
    ],
)
def test_rules_that_cannot_be_applied_are_refused(options, rule, baseline, message):
    with pytest.raises(ValueError, match=message):
        choose_option(SCORES, options, rule, baseline)
