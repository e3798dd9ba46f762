"""What many annotators mean together: majority, and Dawid & Skene's estimate of who is to be believed.

Votes are arrays with one entry a vote; an annotator may have judged any of the items. A comparison of two
texts is an item with the labels 0 and 1.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxrl_align.data.files import decode_text, parse_table


class Votes(NamedTuple):
    """Labels that annotators gave to items, one entry a vote."""

    annotator: np.ndarray
    """[V] int, from 0."""
    item: np.ndarray
    """[V] int, from 0."""
    label: np.ndarray
    """[V] int, from 0."""


class Consensus(NamedTuple):
    """An estimate of the items' labels and of the annotators."""

    probs: np.ndarray
    """[I, C] probability of each class; rows sum to 1."""
    confusion: np.ndarray
    """[A, C, L] probability that an annotator says the last index where the truth is the one before."""
    prior: np.ndarray
    """[C] share of each class."""
    log_posterior: np.ndarray
    """[S] after each iteration, up to a constant; it never falls."""


def check_votes(votes: Votes) -> tuple[int, int, int]:
    """Return the number of annotators, items and labels.

    Raises:
      ValueError: for arrays of different lengths, no votes, or numbers that are negative or no integers.
    """
    shapes = [np.shape(x) for x in votes]
    if len(set(shapes)) != 1 or len(shapes[0]) != 1 or not shapes[0][0]:
        raise ValueError(f"votes must be three arrays [V] with V >= 1; got shapes {shapes}")
    for name, x in votes._asdict().items():
        x = np.asarray(x)
        if not np.issubdtype(x.dtype, np.integer) or x.min() < 0:
            raise ValueError(
                f"votes.{name} must hold integers from 0; got {x.dtype}, least {x.min()}; np.unique(..., "
                "return_inverse=True) numbers names"
            )
    annotators, items, labels = (int(np.max(x)) + 1 for x in votes)
    return annotators, items, max(labels, 2)


def majority(votes: Votes, weights: ArrayLike | None = None, *, classes: int | None = None) -> np.ndarray:
    """Return the share of each class among an item's votes, [I, C]; an item without votes has equal shares.

    Args:
      votes: the votes.
      weights: [A] how much each annotator's vote counts, for example `log_odds`; None, all the same. A
        negative weight counts against what was said. A may be more annotators than have voted.
      classes: C; None, as many as labels were given. A label from C on, such as a tie, counts for every
        class alike.

    Returns:
      [I, C], rows sum to 1; where weights are negative they are shares of what is left above the least.

    Raises:
      ValueError: for votes that `check_votes` refuses, weights that are not finite or too few, or
        classes below 2.
    """
    counts = _count(votes, weights, classes)
    counts -= np.minimum(counts.min(1, keepdims=True), 0)
    total = counts.sum(1, keepdims=True)
    return np.where(total > 0, counts / np.where(total > 0, total, 1), 1 / counts.shape[1])


def soft_labels(votes: Votes, weights: ArrayLike, *, classes: int | None = None) -> np.ndarray:
    """Return the probability of each class, [I, C], from votes whose weights are known beforehand.

        softmax_c sum of the weights of those who said c

    the posterior where classes are equally frequent and an annotator errs alike on all. A comparison becomes
    a pair whose chosen answer is the likelier one, with `label_smoothing` of `losses.bradley_terry` the
    probability of the other. `dawid_skene` returns such probabilities of the votes that it was fitted to;
    these may be others, of the same annotators.

    Args:
      votes: the votes.
      weights: [A] log odds that an annotator says the truth, for example `log_odds`.
      classes: as in `majority`.

    Raises:
      ValueError: as `majority`.

    Source: Nitzan & Paroush 1982, International Economic Review 23(2).
    """
    counts = _count(votes, weights, classes)
    odds = np.exp(counts - counts.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def _count(votes: Votes, weights: ArrayLike | None, classes: int | None) -> np.ndarray:
    """Return the weight of each item's votes for each class, [I, C]."""
    annotators, items, labels = check_votes(votes)
    weight = np.ones(annotators) if weights is None else np.asarray(weights, float)
    if weight.ndim != 1 or len(weight) < annotators or not np.isfinite(weight).all():
        raise ValueError(
            f"weights must be {annotators} finite numbers or more, one an annotator; got {weight.shape}"
        )
    classes = labels if classes is None else classes
    if classes < 2:
        raise ValueError(f"classes must be at least 2; got {classes}; leave it out where there are no ties")
    counts = np.zeros((items, max(labels, classes)))
    np.add.at(counts, (votes.item, votes.label), weight[votes.annotator])
    return counts[:, :classes] + counts[:, classes:].sum(1, keepdims=True) / classes


def dawid_skene(
    votes: Votes,
    *,
    classes: int | None = None,
    max_iterations: int = 200,
    tolerance: float = 1e-7,
    smoothing: float = 1.0,
) -> Consensus:
    """Estimate labels and annotators together by expectation maximisation, starting from the majority.

    An annotator is a confusion matrix; what one says of an item depends on its label alone. Someone who is
    always wrong is as useful as someone who is always right, as long as most are not.

    Args:
      votes: the votes.
      classes: C; None, as many as labels were given. No item is of a label from C on, such as a tie, but
        how often each annotator says it in each class is estimated, and counts.
      max_iterations: at most so many.
      tolerance: stop when no probability moves by more.
      smoothing: added to every cell of a confusion matrix and of the prior: a Dirichlet prior of 1 +
        smoothing, which keeps an annotator of few votes from certainty; 0 is the paper's maximum likelihood.

    Returns:
      The `Consensus`.

    Raises:
      ValueError: for votes that `check_votes` refuses, smoothing below 0, or max_iterations below 1.

    Source: Dawid & Skene 1979, Applied Statistics 28(1).
    """
    if not smoothing >= 0 or max_iterations < 1:
        raise ValueError(
            "smoothing must be at least 0 and max_iterations at least 1; got "
            f"smoothing={smoothing}, max_iterations={max_iterations}"
        )
    annotators, items, labels = check_votes(votes)
    probs, history = majority(votes, classes=classes), []
    classes = probs.shape[1]
    labels = max(labels, classes)
    for _ in range(max_iterations):
        counts = np.full((annotators, classes, labels), float(smoothing))
        np.add.at(counts.swapaxes(1, 2), (votes.annotator, votes.label), probs[votes.item])
        said = counts.sum(2, keepdims=True)
        confusion = np.where(said > 0, counts / np.where(said > 0, said, 1), 1 / labels)
        prior = probs.sum(0) + smoothing
        prior /= prior.sum()
        with np.errstate(divide="ignore"):
            log_confusion, log_prior = np.log(confusion), np.log(prior)
        joint = np.tile(log_prior, (items, 1))
        np.add.at(joint, votes.item, log_confusion.swapaxes(1, 2)[votes.annotator, votes.label])
        top = joint.max(1, keepdims=True)
        evidence = np.exp(joint - top)
        before, probs = probs, evidence / evidence.sum(1, keepdims=True)
        likelihood = np.sum(top[:, 0] + np.log(evidence.sum(1)))
        pull = 0.0 if smoothing == 0 else smoothing * (log_confusion.sum() + log_prior.sum())
        history.append(likelihood + pull)
        if np.abs(probs - before).max() <= tolerance:
            break
    return Consensus(probs, confusion, prior, np.array(history))


def log_odds(consensus: Consensus) -> np.ndarray:
    """Return [A] weights for `majority`: the log odds that an annotator says the truth, at the prior.

    For two labels and annotators who err alike on both, the weighted majority is the most probable label
    (Nitzan & Paroush 1982); a coin's vote weighs 0, a liar's counts against what was said. Labels that are no
    class, such as ties, are left out of the odds.
    """
    classes = len(consensus.prior)
    said = consensus.confusion[:, :, :classes]
    right = np.einsum("acc,c->a", said, consensus.prior)
    right = right / np.maximum(np.einsum("acd,c->a", said, consensus.prior), 1e-300)
    right = np.clip(right, 1e-6, 1 - 1e-6)
    return np.log(right * (classes - 1) / (1 - right))


def read_votes(path: str | os.PathLike) -> tuple[Votes, np.ndarray, Sequence[str]]:
    """Read a table of `annotator, item, label, gold[, ...]` without a header, as in Active Crowd Toolkit.

    Returns:
      The votes, the items' gold labels [I], and the annotators' names.

    Raises:
      ValueError: for a row with fewer columns, a label that is no integer, or an item of two gold labels; it
        names file and line.
    """
    text = io.StringIO(decode_text(Path(path).read_bytes(), str(path)), newline="")
    rows, lines = [], []
    for number, row in parse_table(text, str(path)):
        if len(row) < 4 or not (all(map(_is_label, row[2:4])) and row[0].strip() and row[1].strip()):
            raise ValueError(
                f"{path}:{number}: expected annotator, item, label, gold; got {str(row[:4])[:80]}"
            )
        rows.append(row)
        lines.append(number)
    if not rows:
        raise ValueError(f"{path} is empty; expected rows of annotator, item, label, gold")
    names, annotator = _number([row[0] for row in rows])
    items, item = _number([row[1] for row in rows])
    first = np.full(len(items), len(rows))
    np.minimum.at(first, item, np.arange(len(rows)))
    label, truth = (np.array([int(row[i]) for row in rows]) for i in (2, 3))
    gold = truth[first]
    if len(wrong := np.flatnonzero(gold[item] != truth)):
        number = wrong[0]
        raise ValueError(
            f"{path}:{lines[number]}: item {items[item[number]]:.40} has gold label {truth[number]}, before "
            f"it had {gold[item[number]]}; every item needs one"
        )
    return Votes(annotator, item, label), gold, names


def _is_label(text: str) -> bool:
    return text.isascii() and text.isdecimal() and len(text) <= 9


def _number(names: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Return the different names in order, and the place of each.

    NumPy's `unique` would make every name take as much memory as the longest.
    """
    different = sorted(set(names))
    places = {name: i for i, name in enumerate(different)}
    return different, np.array([places[name] for name in names])
