"""Metrics of tasks: functions of predictions and answers, on the host; GLUE's, SuperGLUE's and more.

A value that is not defined is nan together with the reason, and never a silent 0.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from jaxrl_align.evaluate.measures import text_overlap
from jaxrl_align.evaluate.measures.calibration import brier_score

HUMAN_SCORES = {"GLUE": 87.1, "SuperGLUE": 89.8}
"""`benchmark_score` of people, times 100.

Sources: Nangia & Bowman 2019, arXiv:1905.10425; Wang et al. 2019, arXiv:1905.00537.
"""


class MetricValue(NamedTuple):
    """A metric's value; `float(measure)` is the value alone."""

    value: float
    reason: str = ""
    """Why the value is nan; empty for a number."""

    def __float__(self) -> float:
        """Return the value, so that `runtime.bootstrap` takes metrics as they are."""
        return self.value


def accuracy(predictions: Sequence[Any], answers: Sequence[Any]) -> MetricValue:
    """Return the share of predictions that are right.

    Args:
      predictions: [N] labels, texts or numbers; None is wrong.
      answers: [N] of the same kind; a tuple names several right answers.

    Raises:
      ValueError: for lengths that differ, or no items.
    """
    return MetricValue(float(np.mean(right_answers(predictions, answers))))


def right_answers(predictions: Sequence[Any], answers: Sequence[Any]) -> np.ndarray:
    """Return [N] bool, which predictions are right; arguments and errors as `accuracy`."""
    _check_lengths(predictions, answers)
    pairs = zip(predictions, answers, strict=True)
    return np.array([bool(p in a if isinstance(a, tuple) else p == a) for p, a in pairs])


def binary_f1(predictions: ArrayLike, answers: ArrayLike, *, positive: Any = 1) -> MetricValue:
    """Return F1 of the positive class, `2 TP / (2 TP + FP + FN)`, as MRPC, QQP and MultiRC (F1a) use it.

    0 where no positive is found; undefined where the class is neither answered nor predicted.

    Args:
      predictions: [N] labels.
      answers: [N] labels.
      positive: the label of the positive class.

    Raises:
      ValueError: for shapes that differ, or no items.
    """
    predicted, answered = (x == positive for x in _labels(predictions, answers))
    both = int(predicted.sum() + answered.sum())
    if not both:
        return MetricValue(np.nan, f"class {positive!r} is neither answered nor predicted")
    return MetricValue(float(2 * (predicted & answered).sum() / both))


def macro_f1(predictions: ArrayLike, answers: ArrayLike) -> MetricValue:
    """Return the unweighted mean of each class's F1 against the rest, as CB uses it.

    Over the classes that are answered or predicted, as scikit-learn takes them: a class of the task that
    occurs nowhere has no F1. Arguments and errors as `binary_f1`.
    """
    predicted, answered = _labels(predictions, answers)
    kinds = np.union1d(predicted, answered)
    return MetricValue(float(np.mean([binary_f1(predicted, answered, positive=k).value for k in kinds])))


def matthews(predictions: ArrayLike, answers: ArrayLike) -> MetricValue:
    """Return Matthews' correlation of labels, in [-1, 1], of two classes or more (CoLA).

    0 where all predictions, or all answers, are of one class: a row or column of the table is empty, the
    formula 0 / 0, and 0 the value of one who knows nothing. Arguments and errors as `binary_f1`.

    Source: Matthews 1975; of several classes Gorodkin 2004, Computational Biology and Chemistry 28.
    """
    predicted, answered = _labels(predictions, answers)
    place = np.unique(np.concatenate([predicted, answered]), return_inverse=True)[1]
    p, a = np.eye(place.max() + 1)[place].reshape(2, len(predicted), -1)
    # Counts are exact in floats, so that an empty row or column gives exactly 0.
    n, totals = len(p), (p.sum(0), a.sum(0))
    spread = (n**2 - totals[0] @ totals[0]) * (n**2 - totals[1] @ totals[1])
    if not spread:
        return MetricValue(0.0)
    return MetricValue(float((n * (p * a).sum() - totals[0] @ totals[1]) / np.sqrt(spread)))


def pearson(predictions: ArrayLike, answers: ArrayLike) -> MetricValue:
    """Return Pearson's correlation, in [-1, 1]; undefined for a constant (STS-B).

    Args:
      predictions: [N] real numbers.
      answers: [N] real numbers.

    Raises:
      ValueError: for shapes that differ, no items, or a number that is not finite.
    """
    x, y = _numbers(predictions, answers)
    if reason := _constant(x, y):
        return MetricValue(np.nan, reason)
    x, y = ((z - z.mean()) / np.abs(z - z.mean()).max() for z in (x, y))
    return MetricValue(float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1.0, 1.0)))


def spearman(predictions: ArrayLike, answers: ArrayLike) -> MetricValue:
    """Return Spearman's correlation: Pearson's of the ranks, where equal values have their mean rank.

    Arguments, errors and what is undefined as `pearson`.
    """
    x, y = _numbers(predictions, answers)
    reason = _constant(x, y)
    return MetricValue(np.nan, reason) if reason else pearson(_ranks(x), _ranks(y))


def group_exact_match(
    predictions: Sequence[Any], answers: Sequence[Any], groups: Sequence[Any]
) -> MetricValue:
    """Return the share of groups whose items are all right: MultiRC's EM, with a group for each question.

    Args:
      predictions: [N].
      answers: [N], as in `accuracy`.
      groups: [N] what an item belongs to.

    Raises:
      ValueError: for lengths that differ, or no items.
    """
    right = right_answers(predictions, answers)
    _check_lengths(groups, answers)
    label = np.unique(np.asarray(groups).astype(str), return_inverse=True)[1]
    return MetricValue(float(np.mean(np.bincount(label, ~right) == 0)))


def corpus_perplexity(log_probs: ArrayLike, tokens: ArrayLike) -> MetricValue:
    """Return the perplexity of a corpus, `exp(-sum log p / tokens)`.

    Args:
      log_probs: [N] log-probability of each text in nats.
      tokens: [N] number of its tokens that were predicted.

    Raises:
      ValueError: for shapes that differ, no texts, or negative numbers of tokens.
    """
    nats, count = _totals(log_probs, tokens, "tokens")
    return MetricValue(float(np.exp(nats / count))) if count else MetricValue(np.nan, "there are no tokens")


def corpus_bits_per_byte(log_probs: ArrayLike, num_bytes: ArrayLike) -> MetricValue:
    """Return the bits that a byte of a corpus takes, `-sum log p / (bytes ln 2)`.

    Args:
      log_probs: [N] log-probability of each text in nats.
      num_bytes: [N] its length in UTF-8.

    Raises:
      ValueError: as `corpus_perplexity`.
    """
    nats, count = _totals(log_probs, num_bytes, "num_bytes")
    return (
        MetricValue(float(nats / (count * np.log(2.0))))
        if count
        else MetricValue(np.nan, "there are no bytes")
    )


def _mean_of(score: Callable[[Any, Any], float]) -> Callable[[Sequence[Any], Sequence[Any]], MetricValue]:
    """Return a metric that is the mean of a score of single items."""

    def metric(predictions: Sequence[Any], answers: Sequence[Any]) -> MetricValue:
        _check_lengths(predictions, answers)
        return MetricValue(float(np.mean([score(p, a) for p, a in zip(predictions, answers, strict=True)])))

    return metric


ITEM_SCORES: Mapping[str, Callable[[Any, Any], float]] = {
    "exact_match": text_overlap.exact_match,
    "normalised_exact_match": text_overlap.normalised_match,
    "token_f1": text_overlap.token_f1,
    "rouge1": lambda p, a: text_overlap.rouge_n(p or "", a, 1).f1,
    "rouge2": lambda p, a: text_overlap.rouge_n(p or "", a, 2).f1,
    "rougeL": lambda p, a: text_overlap.rouge_l(p or "", a).f1,
}
"""Of one written text, or None, and its gold answers."""

_OF_ALL: dict[str, Callable[..., MetricValue]] = {
    "accuracy": accuracy,
    "f1": binary_f1,
    "macro_f1": macro_f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
    "brier": lambda probs, answers: MetricValue(brier_score(probs, answers)),
    "perplexity": corpus_perplexity,
    "bits_per_byte": corpus_bits_per_byte,
    "group_exact_match": group_exact_match,
}
METRICS: Mapping[str, Callable[..., MetricValue]] = _OF_ALL | {n: _mean_of(s) for n, s in ITEM_SCORES.items()}
"""Functions of (predictions, answers) by name; those in `GROUPED` take the items' groups as well."""

CORRELATIONS = ("pearson", "spearman")
"""Those of numbers on a scale."""
GROUPED = frozenset({"group_exact_match"})
OF_PROBABILITIES = frozenset({"brier", "perplexity", "bits_per_byte"})
"""Those that read probabilities, which a task's predictions are not."""


def benchmark_score(results: Mapping[str, Mapping[str, float]]) -> MetricValue:
    """Return a benchmark's score: the mean over tasks of the mean over each task's metrics, as GLUE's.

    Args:
      results: task -> metric -> value. MNLI's halves are two metrics of one task.

    Returns:
      The score; undefined where a metric is, or where there is no task.
    """
    if not results or not all(results.values()):
        return MetricValue(np.nan, "there is no task, or one without metrics")
    for task, values in results.items():
        for metric, value in values.items():
            if np.isnan(float(value)):
                return MetricValue(np.nan, f"{metric} of {task} is undefined")
    return MetricValue(
        float(np.mean([np.mean([float(v) for v in row.values()]) for row in results.values()]))
    )


def _check_lengths(first: Sequence[Any], second: Sequence[Any]) -> None:
    if len(first) != len(second) or not len(first):
        raise ValueError(
            f"every item needs a prediction and an answer, at least one; got {len(first)} and {len(second)}"
        )


def _labels(predictions: ArrayLike, answers: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = np.asarray(predictions), np.asarray(answers)
    kinds = {"U" if z.dtype.kind == "U" else "number" if z.dtype.kind in "biuf" else "none" for z in (x, y)}
    if x.ndim != 1 or x.shape != y.shape or not len(x) or kinds not in ({"U"}, {"number"}):
        raise ValueError(
            f"predictions and answers must be [N] texts or numbers alike, N >= 1; got {x.dtype} {x.shape} "
            f"and {y.dtype} {y.shape}"
        )
    return x, y


def _numbers(predictions: ArrayLike, answers: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    x, y = (np.asarray(z, np.float64) for z in _labels(predictions, answers))
    for name, z in (("predictions", x), ("answers", y)):
        if len(bad := z[~np.isfinite(z)]):
            raise ValueError(f"{name} must be finite numbers; got {bad[0]}")
    return x, y


def _constant(x: np.ndarray, y: np.ndarray) -> str:
    """Return why no correlation is defined, or nothing."""
    for name, z in (("predictions", x), ("answers", y)):
        if z.min() == z.max():
            return f"the {name} are constant ({z[0]:g})"
    return ""


def _ranks(x: np.ndarray) -> np.ndarray:
    place, count = np.unique(x, return_inverse=True, return_counts=True)[1:]
    return (np.cumsum(count) - (count - 1) / 2)[place]


def _totals(log_probs: ArrayLike, counts: ArrayLike, name: str) -> tuple[float, float]:
    x, n = (np.asarray(z, np.float64) for z in _labels(log_probs, counts))
    if (n < 0).any():
        raise ValueError(f"{name} must be at least 0; got {n.min():g}")
    return float(-x.sum()), float(n.sum())
