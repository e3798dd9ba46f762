import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.data.tokens.vocabularies import byte_tokenizer
from jaxrl_align.evaluate.scoring.likelihood import (
    encode_texts,
    make_scorer,
    rank_of,
    share_preferred,
    text_log_prob,
)
from tests.tiny import BIGRAM, LM, PARAMS, VOCAB

RNG = np.random.default_rng(0)
ROWS = [RNG.integers(2, VOCAB, n).tolist() for n in (7, 2, 12, 5, 8, 7, 3)]
TABLE = BIGRAM.init(jax.random.key(3))
LOG_PROBS = np.asarray(jax.nn.log_softmax(TABLE))


def by_hand(row):
    return sum(LOG_PROBS[a, b] for a, b in zip(row[:-1], row[1:], strict=True))


def test_a_text_is_the_sum_of_its_tokens():
    """Under a bigram table, by hand; padding and what stands in it change nothing."""
    row = jnp.asarray([*ROWS[0], 5, 3])
    real = jnp.asarray([1.0] * 7 + [0.0] * 2)
    score = jax.jit(text_log_prob, static_argnums=0)
    np.testing.assert_allclose(score(BIGRAM, TABLE, row, real), by_hand(ROWS[0]), rtol=1e-5)
    assert float(score(BIGRAM, TABLE, row, jnp.zeros(9))) == 0.0


def test_texts_of_many_lengths_score_as_alone():
    """A transformer's scores in padded batches equal a loop over single texts without padding."""
    score, rows = make_scorer(LM, batch_size=4), [row for row in ROWS if len(row) < 9]
    read = jax.jit(lambda row: jax.nn.log_softmax(LM.logits(PARAMS, LM.encode(PARAMS, row)[0])))
    log_probs = np.asarray(read(jnp.asarray(rows[0])))
    alone = sum(log_probs[i, token] for i, token in enumerate(rows[0][1:]))
    np.testing.assert_allclose(score(PARAMS, rows)[0], alone, rtol=1e-4)


def test_members_score_side_by_side():
    tables = jnp.stack([TABLE, 2 * TABLE])
    found = make_scorer(BIGRAM._replace(config=LM.config), batch_size=3, members=True)(tables, ROWS)
    assert found.shape == (2, 7)
    np.testing.assert_allclose(found[0], [by_hand(row) for row in ROWS], rtol=1e-5)
    assert not np.allclose(found[0], found[1])


def test_buckets_share_programs():
    """Lengths of 2 to 12 take the two buckets 8 and 16, whatever the number of texts."""
    traced = []

    def encode(params, tokens, *rest, **named):
        traced.append(tokens.shape)
        return BIGRAM.encode(params, tokens, *rest, **named)

    score = make_scorer(BIGRAM._replace(config=LM.config, encode=encode), batch_size=3)
    score(TABLE, ROWS)
    score(TABLE, ROWS[:2])
    assert sorted(traced) == [(7,), (15,)]


def test_texts_that_cannot_be_scored_are_refused():
    score = make_scorer(LM)
    with pytest.raises(ValueError, match="context of 80 tokens; got one of 81"):
        score(PARAMS, [[2] * 81])
    with pytest.raises(ValueError, match="at least two tokens"):
        score(PARAMS, [[2, 3], [2]])
    assert score(PARAMS, []).shape == (0,)


def test_texts_are_encoded_behind_a_token_that_starts_them():
    tokenizer = byte_tokenizer()
    assert encode_texts(tokenizer, ["ab", "a"]) == [[1, *tokenizer.encode("ab")], [1, *tokenizer.encode("a")]]
    bare = Tokenizer(byte_tokenizer()._backend, {})
    assert encode_texts(bare, ["ab"]) == [tokenizer.encode("ab")]


def test_pairs_are_won_lost_or_tied():
    assert share_preferred([-1.0, -2.0, -3.0, -4.0], [-2.0, -2.0, -2.0, -5.0]) == (1 + 0.5 + 0 + 1) / 4
    np.testing.assert_array_equal(share_preferred([[-1.0], [-2.0]], [[-2.0], [-1.0]]), [1.0, 0.0])
    for good, bad in (([1.0], [1.0, 2.0]), ([], [])):
        with pytest.raises(ValueError, match="needs a bad one"):
            share_preferred(good, bad)


def test_the_place_of_a_candidate():
    scores = np.array([[-3.0, -1.0, -2.0], [-1.0, -1.0, -2.0]])
    np.testing.assert_array_equal(rank_of(scores, 0), [3, 2])
    np.testing.assert_array_equal(rank_of(scores, 2), [2, 3])


def test_scores_that_are_nan_are_refused():
    with pytest.raises(ValueError, match="scores must be numbers; got 1 nan"):
        share_preferred([np.nan, 0.0], [1.0, -1.0])
    with pytest.raises(ValueError, match="scores must be numbers; got 1 nan"):
        rank_of([np.nan, 0.0, 1.0], 0)
