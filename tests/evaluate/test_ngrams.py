import numpy as np
import pytest

from jaxrl_align.evaluate.scoring.ngrams import count_ngrams, ngram_log_probs

TEXTS = [[0, 1, 2, 1, 2], [0, 1, 1], [0]]


def test_the_bigram_probabilities_by_hand():
    """Predicted are 1 2 1 2 and 1 1: c(1) = 4, c(2) = 2 of 6 tokens of two kinds."""
    model = count_ngrams(TEXTS, order=2, vocab_size=4)
    unigram = {1: (4 + 2 / 4) / 8, 2: (2 + 2 / 4) / 8, 3: (0 + 2 / 4) / 8}
    # After 1 came 2 twice and 1 once; after 0 came 1 twice; after 3 came nothing.
    after_1 = {w: (c + 2 * unigram[w]) / (3 + 2) for w, c in ((1, 1), (2, 2), (3, 0))}
    after_0 = {w: (c + 1 * unigram[w]) / (2 + 1) for w, c in ((1, 2), (3, 0))}
    expected = [np.log(after_0[1] * after_1[2]), np.log(after_0[3] * unigram[1]), 0.0]
    np.testing.assert_allclose(ngram_log_probs(model, [[0, 1, 2], [0, 3, 1], [0]]), expected)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
def test_probabilities_sum_to_one(order):
    rng = np.random.default_rng(0)
    rows = [[0, *rng.integers(1, 5, 30)] for _ in range(20)]
    model = count_ngrams(rows, order=order, vocab_size=6)
    for history in ([0], [0, 1, 2, 3, 4, 1], [0, 5, 5]):
        both = ngram_log_probs(model, [history, *([*history, token] for token in range(6))])
        np.testing.assert_allclose(np.exp(both[1:] - both[0]).sum(), 1.0)


def test_a_history_does_not_reach_into_the_text_before():
    rows = [[0, 1, 2, 3], [0, 3, 2, 1]]
    model = count_ngrams(rows, order=3, vocab_size=4)
    both = ngram_log_probs(model, rows)
    np.testing.assert_allclose(both, [ngram_log_probs(model, [row])[0] for row in rows])


@pytest.mark.parametrize(
    "rows, order, vocab_size, message",
    [([[0, 1]], 0, 4, "order=0"), ([[0, 1]], 5, 50_000, "63 bits"), ([[0]], 2, 4, "at least one text")],
)
def test_what_cannot_be_counted_is_refused(rows, order, vocab_size, message):
    with pytest.raises(ValueError, match=message):
        count_ngrams(rows, order=order, vocab_size=vocab_size)


@pytest.mark.parametrize("token", [3, 7, -1])
def test_tokens_outside_the_vocabulary_are_refused(token):
    with pytest.raises(ValueError, match="tokens must be from 0 to 2"):
        count_ngrams([[0, token, 1]], order=2, vocab_size=3)
    with pytest.raises(ValueError, match="tokens must be from 0 to 2"):
        ngram_log_probs(count_ngrams([[0, 2, 1]], order=2, vocab_size=3), [[0, 1], [0, token]])


def test_no_texts_have_no_log_probabilities():
    assert ngram_log_probs(count_ngrams([[0, 2, 1]], order=2, vocab_size=3), []).shape == (0,)
