"""How much of a gold answer a written one shares: SQuAD's match and token F1, and ROUGE.

All take one prediction and its gold answer, or several gold answers of which the best counts.
"""

import re
import string
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NamedTuple

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class Overlap(NamedTuple):
    """Shares of two texts that are common to both, in [0, 1]."""

    precision: float
    """Of the prediction."""
    recall: float
    """Of the gold answer."""
    f1: float
    """Their harmonic mean; 0 where nothing is common."""


def normalise_answer(text: str) -> str:
    """Return a text in lower case, without ASCII punctuation, English articles and spare white space.

    A minus sign and brackets are punctuation: compare numbers and symbols by `exact_match`.

    Source: the evaluation script of SQuAD (Rajpurkar et al. 2016, arXiv:1606.05250).
    """
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def exact_match(prediction: str | None, answers: str | Sequence[str]) -> float:
    """Return 1 if a prediction is one of the gold answers but for the white space around it, else 0.

    Args:
      prediction: what was written; None, nothing was found in it.
      answers: the gold answer, or several.
    """
    return float(prediction is not None and prediction.strip() in [gold.strip() for gold in _golds(answers)])


def normalised_match(prediction: str | None, answers: str | Sequence[str]) -> float:
    """Return `exact_match` of the texts behind `normalise_answer`."""
    golds = [normalise_answer(gold) for gold in _golds(answers)]
    return 0.0 if prediction is None else exact_match(normalise_answer(prediction), golds)


def token_f1(prediction: str | None, answers: str | Sequence[str]) -> float:
    """Return the F1 of the words of a prediction and of the best gold answer, each behind `normalise_answer`.

    Words count as often as both texts have them. Where one text has no word left, it is 1 if the other has
    none either, else 0.

    Args:
      prediction: what was written; None scores 0.
      answers: the gold answer, or several.

    Source: SQuAD 2.0's script (Rajpurkar et al. 2018, arXiv:1806.03822); ReCoRD's is the same where both have
    words.
    """
    golds = [normalise_answer(gold).split() for gold in _golds(answers)]
    if prediction is None:
        return 0.0
    words = normalise_answer(prediction).split()
    return max(
        _overlap((Counter(words) & Counter(gold)).total(), len(words), len(gold)).f1
        if words and gold
        else float(words == gold)
        for gold in golds
    )


def rouge_n(prediction: str, answers: str | Sequence[str], n: int) -> Overlap:
    """Return ROUGE-N: n-grams in common, each as often as both texts have it.

    Words are runs of `a-z0-9` in lower case, unstemmed, as in the package rouge-score; other letters part
    words.

    Args:
      prediction: what was written.
      answers: the gold answer, or several, of which the one with the best F1 counts.
      n: at least 1.

    Source: Lin 2004, "ROUGE: A Package for Automatic Evaluation of Summaries".
    """
    if n < 1:
        raise ValueError(f"n must be at least 1; got {n}")
    grams = lambda text: Counter(zip(*(_words(text)[i:] for i in range(n)), strict=False))
    ours = grams(prediction)
    found = []
    for gold in _golds(answers):
        theirs = grams(gold)
        found.append(_overlap((ours & theirs).total(), ours.total(), theirs.total()))
    return max(found, key=lambda overlap: overlap.f1)


def rouge_l(prediction: str, answers: str | Sequence[str]) -> Overlap:
    """Return ROUGE-L: the longest common subsequence of words, of whole texts; arguments as `rouge_n`."""
    ours = _words(prediction)
    found = []
    for gold in _golds(answers):
        theirs = _words(gold)
        found.append(_overlap(_common_subsequence(ours, theirs), len(ours), len(theirs)))
    return max(found, key=lambda overlap: overlap.f1)


def _golds(answers: str | Sequence[str]) -> Sequence[str]:
    golds = [answers] if isinstance(answers, str) else answers
    if not golds:
        raise ValueError("a prediction must have at least one gold answer; got none")
    return golds


def _words(text: str) -> list[str]:
    return re.findall("[a-z0-9]+", text.lower())


def _overlap(common: int, ours: int, theirs: int) -> Overlap:
    precision, recall = common / max(ours, 1), common / max(theirs, 1)
    return Overlap(precision, recall, 2 * common / (ours + theirs) if common else 0.0)


def _common_subsequence(x: Sequence[Hashable], y: Sequence[Hashable]) -> int:
    """Return the length of the longest common subsequence; a row of its table is one integer's bits.

    Source: Hyyro 2004, "Bit-parallel LCS-length computation revisited".
    """
    places: dict[Hashable, int] = {}
    for i, word in enumerate(x):
        places[word] = places.get(word, 0) | 1 << i
    everything = (1 << len(x)) - 1
    row = everything
    for word in y:
        hits = row & places.get(word, 0)
        row = ((row + hits) | (row - hits)) & everything
    return len(x) - row.bit_count()
