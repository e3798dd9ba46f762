"""Remarks in words: written by simulated annotators, and turned into a number by a scorer of sentiment."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from jaxrl_align.feedback.rows import Comment, Rating

REMARKS = (
    (
        "This is terrible, a complete failure.",
        "Awful: it is wrong and badly written.",
        "The worst answer I have read, useless.",
    ),
    ("Rather poor and dull.", "Not good, there are too many mistakes.", "A weak and disappointing answer."),
    ("It is an answer, in so many words.", "Some of it is so and some of it is not.", "I have read it."),
    ("A good answer, clear and pleasant.", "Nicely done and mostly right.", "Helpful, and I enjoyed it."),
    (
        "Excellent, a wonderful answer.",
        "Brilliant: it is right and beautifully written.",
        "The best answer I have read, perfect.",
    ),
)
"""From the worst mood to the best, alike in number."""

NEGATIONS = frozenset({"not", "no", "never", "without"})


def write_remarks(mood: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return a remark for each mood [V] in [0, 1], 0 the worst: five levels of equal width."""
    level = np.minimum((np.asarray(mood) * len(REMARKS)).astype(int), len(REMARKS) - 1)
    return np.array(REMARKS)[level, rng.integers(len(REMARKS[0]), size=len(level))]


def split_words(text: str) -> list[str]:
    """Return a text's lower-case words; those between a negation and the next mark begin with "not_"."""
    found, negated = [], False
    # "isn't" and the treebank's "is n't" both end in a word of their own.
    for piece in re.findall(r"[^\W\d_]+|[.,:;!?]", re.sub(r"n['’]t\b", " not", text.lower())):
        if piece in ".,:;!?":
            negated = False
        else:
            found.append(f"not_{piece}" if negated else piece)
            negated = negated or piece in NEGATIONS
    return found


def fit_sentiment(
    texts: Iterable[str], labels: Iterable[int], *, smoothing: float = 1.0
) -> Callable[[str], float]:
    """Fit naive Bayes on which words a text has: the sum of each distinct word's log odds.

        log((n_w1 + s) / (n_1 + 2 s)) - log((n_w0 + s) / (n_0 + 2 s))

    where `n_wc` of the `n_c` texts of class c have the word.

    Args:
      texts: labelled sentences.
      labels: 1 for a positive text, 0 for a negative one; as many.
      smoothing: s, above 0.

    Returns:
      A scorer `text -> nats`, above 0 for a positive text. A word it has not seen counts 0, and so does the
      classes' balance.

    Raises:
      ValueError: for texts and labels that differ in number, labels that are neither 0 nor 1, a class
        without texts, or smoothing that is not above 0.

    Source: Pang, Lee & Vaithyanathan 2002, EMNLP, for the presence of words and their negation.
    """
    texts, labels = list(texts), list(labels)
    if not smoothing > 0:
        raise ValueError(f"smoothing must be above 0; got {smoothing}; 1 is Laplace's")
    if len(texts) != len(labels) or set(labels) != {0, 1}:
        raise ValueError(
            "labels must be 0 or 1, one a text, and have both; got "
            f"{len(texts)} texts, {len(labels)} labels, values {sorted(set(labels), key=str)[:5]}"
        )
    labels = [int(label) for label in labels]
    counts: tuple[Counter[str], Counter[str]] = (Counter(), Counter())
    for text, label in zip(texts, labels, strict=True):
        counts[label].update(set(split_words(text)))

    def log_share(word: str, label: int) -> float:
        return math.log((counts[label][word] + smoothing) / (labels.count(label) + 2 * smoothing))

    words = sorted(counts[0].keys() | counts[1].keys())
    odds = {word: log_share(word, 1) - log_share(word, 0) for word in words}
    return lambda text: sum(odds.get(word, 0.0) for word in sorted(set(split_words(text))))


def rate_comments(rows: Sequence[Comment], scorer: Callable[[str], float]) -> list[Rating]:
    """Return remarks in words as ratings by their sentiment, for `losses.score_regression`.

    The weakest of the six kinds. A remark says whether somebody was pleased, not by how much; it mostly
    speaks of one part of the answer; irony and a subject that is sad itself mislead the scorer, which errs
    on about every fifth sentence even of its own sort. Where the annotator can be asked again, ask for a
    comparison.

    Args:
      rows: N.
      scorer: text -> number, higher for a more pleased remark, for example of `fit_sentiment`.

    Returns:
      N ratings in the scorer's units, with the annotator and the source of their remarks.

    Raises:
      ValueError: with the remark's file and line, for a score that is no finite number.
    """
    ratings = []
    for i, row in enumerate(rows):
        score = scorer(row.text)
        if not math.isfinite(score):
            where = row.source or f"rows[{i}]"
            raise ValueError(
                f"{where}: scorer must return a finite number; got {score} for {row.text[:40]!r}"
            )
        told = (row.annotator, row.source, row.tools)
        ratings.append(Rating(row.prompt, row.completion, float(score), *told))
    return ratings
