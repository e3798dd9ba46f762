"""N-gram language models with Witten-Bell smoothing, as a baseline."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from jaxrl_align.checks import check_tokens


class NGrams(NamedTuple):
    """Counts of all n-grams of up to `order` tokens; an n-gram is a number with a token per digit."""

    order: int
    vocab_size: int
    grams: tuple[np.ndarray, ...]
    """Of each length from 1: [G] int64, sorted; the last token is the last digit."""
    counts: tuple[np.ndarray, ...]
    """[G] how often each occurs."""


def count_ngrams(rows: Sequence[Sequence[int]], *, order: int, vocab_size: int) -> NGrams:
    """Count the n-grams that end at each token of each text but its first, which starts the text.

    Args:
      rows: token ids below `vocab_size`.
      order: the longest n-gram, the history and one token.
      vocab_size: V; `(V + 1)^order` must fit into 63 bits.

    Raises:
      ValueError: if it does not, there is nothing to count, or for a token outside the vocabulary.
    """
    if order < 1 or (vocab_size + 1) ** order >= 2**63:
        raise ValueError(
            f"n-grams of 1 token to 63 bits can be counted; got order={order}, vocab_size={vocab_size}"
        )
    codes = _codes(rows, order, vocab_size)
    if not codes.size:
        raise ValueError("n-grams need at least one text of two tokens; got none")
    pairs = [np.unique(code, return_counts=True) for code in codes]
    return NGrams(order, vocab_size, tuple(g for g, _ in pairs), tuple(c for _, c in pairs))


def ngram_log_probs(model: NGrams, rows: Sequence[Sequence[int]]) -> np.ndarray:
    """Return each text's log-probability [N] in nats, its first token given.

    `p(w | h) = (c(h w) + t(h) p(w | h')) / (c(h) + t(h))`, where `t(h)` counts the different tokens that
    followed the history `h`, `h'` lacks its oldest token, and the last resort is 1 / V (Witten & Bell 1991).

    Args:
      model: from `count_ngrams`.
      rows: token ids, each text behind the token that starts it.

    Raises:
      ValueError: for a token outside the vocabulary.
    """
    codes = _codes(rows, model.order, model.vocab_size)
    prob = np.full(codes.shape[1], 1 / model.vocab_size)
    for code, grams, counts in zip(codes, model.grams, model.counts, strict=True):
        histories, first, kinds = np.unique(
            grams // (model.vocab_size + 1), return_index=True, return_counts=True
        )
        total = np.add.reduceat(counts, first)
        seen = _find(histories, code // (model.vocab_size + 1))
        hit = _find(grams, code)
        count = np.where(hit < 0, 0, counts[hit])
        kind = np.where(seen < 0, 0, kinds[seen])
        prob = np.where(seen < 0, prob, (count + kind * prob) / np.maximum(total[seen] + kind, 1))
    lengths = np.array([max(len(row) - 1, 0) for row in rows], np.int64)
    owner = np.repeat(np.arange(len(rows)), lengths)
    return np.bincount(owner, np.log(prob), minlength=len(rows))


def _codes(rows: Sequence[Sequence[int]], order: int, vocab_size: int) -> np.ndarray:
    """Return the n-grams [order, tokens] that end at each token but the first of each row."""
    for row in rows:
        check_tokens("tokens", np.asarray(row, np.int64), vocab_size)
    # A token that no text holds stands before each row, so that no history reaches into another text.
    gap = [vocab_size] * (order - 1)
    stream = np.array([token for row in rows for token in (*gap, *row)], np.int64)
    lengths = np.array([len(row) for row in rows], np.int64)
    first = (np.cumsum(lengths + order - 1) - lengths)[lengths > 0]
    predicted = stream < vocab_size
    predicted[first] = False
    (place,) = np.nonzero(predicted)
    code, codes = np.zeros(len(place), np.int64), []
    for back in range(order):
        code = code + stream[place - back] * (vocab_size + 1) ** back
        codes.append(code)
    return np.stack(codes)


def _find(table: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return each value's index in a sorted table, -1 for values that it lacks."""
    place = np.minimum(np.searchsorted(table, values), len(table) - 1)
    return np.where(table[place] == values, place, -1)
