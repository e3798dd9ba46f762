"""Whether a model knows how often it is right: calibration errors, Platt scaling, selective accuracy.

All take how sure the model was of each of its answers, [N] in [0, 1], and whether it was right, [N] 0 or 1;
`option_probs` makes the former of options' log-probabilities.
"""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_EDGE = 1e-12  # probabilities are kept this far from 0 and 1 before their logit is taken
_RIDGE = 1e-10  # of the slope, as scikit-learn's with C=1e10: it keeps a separable fit finite
_FLOOR = 1e-13  # of the curvature, where a separable fit leaves none


def option_probs(log_probs: ArrayLike) -> np.ndarray:
    """Return the softmax of options' scores, [..., K] nats; an option that is missing has -inf."""
    scores = np.asarray(log_probs, np.float64)
    odds = np.exp(scores - scores.max(-1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


def calibration_bins(
    confidence: ArrayLike, correct: ArrayLike, *, bins: int = 10, equal_mass: bool = True
) -> np.ndarray:
    """Return [bins, 3], the bins that hold items: mean confidence, share that is right, number.

    Args:
      confidence: [N] in [0, 1].
      correct: [N] in [0, 1]; a tie counts half.
      bins: at least 1.
      equal_mass: bins of equally many items, but equal confidences share one, so that the items' order
        changes nothing; otherwise `(0, 1 / bins], ...` of equal width.

    Raises:
      ValueError: for shapes that differ, no items, or values outside [0, 1].
    """
    sure, right = _check(confidence, correct)
    if bins < 1:
        raise ValueError(f"bins must be at least 1; got {bins}")
    if equal_mass:
        parts = np.array_split(np.sort(sure), min(bins, len(sure)))
        edges = np.array([part[-1] for part in parts[:-1]])
    else:
        edges = np.arange(1, bins) / bins
    place = np.searchsorted(edges, sure)
    sums = np.stack([np.bincount(place, weight) for weight in (sure, right, np.ones_like(sure))], 1)
    sums = sums[sums[:, 2] > 0]
    return np.hstack([sums[:, :2] / sums[:, 2:], sums[:, 2:]])


def expected_calibration_error(
    confidence: ArrayLike, correct: ArrayLike, *, bins: int = 10, equal_mass: bool = True
) -> float:
    """Return the mean distance between confidence and accuracy over items, by the means of their bins.

        ECE = sum_b n_b / N |accuracy_b - confidence_b|

    The error of a perfect model is above 0 by chance; below some 300 items ten bins say little. Arguments and
    errors as `calibration_bins`.

    Source: Naeini et al. 2015, AAAI; bins of equal mass as HELM (Liang et al. 2022, arXiv:2211.09110).
    """
    table = calibration_bins(confidence, correct, bins=bins, equal_mass=equal_mass)
    return float(np.abs(table[:, 0] - table[:, 1]) @ table[:, 2] / table[:, 2].sum())


class Platt(NamedTuple):
    """A map from confidences to calibrated ones, `sigma(slope logit(p) + intercept)`."""

    slope: float
    intercept: float
    """Infinite if all items were right, or none."""

    def scale(self, confidence: ArrayLike) -> np.ndarray:
        """Return calibrated confidences of the same shape."""
        return _sigmoid(self.slope * _logit(np.asarray(confidence, np.float64)) + self.intercept)


def fit_platt(confidence: ArrayLike, correct: ArrayLike) -> Platt:
    """Fit Platt's scaling to items by Newton's method: the logistic regression of right on `logit(p)`.

    The labels are 0 and 1 themselves, as in HELM; Platt's own smoothed targets matter for few items. The fit
    and what it is judged on are the same items, so that the error that is left is a lower bound.

    Args:
      confidence: [N] in [0, 1].
      correct: [N] 0 or 1.

    Raises:
      ValueError: as `calibration_bins`.

    Source: Platt 1999, "Probabilistic outputs for support vector machines".
    """
    sure, right = _check(confidence, correct)
    if right.min() == right.max() and right[0] in (0, 1):
        return Platt(0.0, math.inf if right[0] else -math.inf)
    x = _logit(sure)
    centre = float(x.mean())
    x = x - centre
    slope, intercept = 0.0, 0.0

    def loss(slope: float, intercept: float) -> float:
        score = slope * x + intercept
        return float(np.sum(np.logaddexp(0.0, score) - right * score)) + _RIDGE * slope**2 / 2

    now = loss(slope, intercept)
    for _ in range(100):
        probs = _sigmoid(slope * x + intercept)
        weight, error = probs * (1 - probs), probs - right
        along, across = float(x @ error) + _RIDGE * slope, float(error.sum())
        h11, h12, h22 = float(weight @ x**2) + _RIDGE, float(weight @ x), float(weight.sum()) + _FLOOR
        determinant = max(h11 * h22 - h12**2, _FLOOR * h11)
        steps = (h22 * along - h12 * across) / determinant, (h11 * across - h12 * along) / determinant
        size, new = 1.0, loss(slope - steps[0], intercept - steps[1])
        while new > now and size > 1e-6:
            size /= 2
            new = loss(slope - size * steps[0], intercept - size * steps[1])
        slope, intercept, now = slope - size * steps[0], intercept - size * steps[1], new
        if max(map(abs, steps)) < 1e-10 * (1 + max(abs(slope), abs(intercept))):
            break
    return Platt(slope, intercept - slope * centre)


def brier_score(probs: ArrayLike, answers: ArrayLike) -> float:
    """Return the mean squared distance of probabilities from what happened.

    Args:
      probs: [N] of the event, or [N, K] of the options; rows sum to 1.
      answers: [N] 0 or 1, or [N] the right option from 0.

    Returns:
      Of [N] the mean of `(p - y)^2`, in [0, 1]; of [N, K] that of `sum_k (p_k - [y = k])^2`, in [0, 2], which
      is twice the former for two options.

    Raises:
      ValueError: for shapes that do not fit, probabilities outside [0, 1], or answers outside the options.

    Source: Brier 1950, Monthly Weather Review 78.
    """
    probs, answers = np.asarray(probs, np.float64), np.asarray(answers)
    if probs.ndim not in (1, 2) or not probs.size or answers.shape != probs.shape[:1]:
        raise ValueError(
            f"probs must be [N] or [N, K], answers [N], N >= 1; got {probs.shape} and {answers.shape}"
        )
    options = probs.shape[1] if probs.ndim == 2 else 2
    if not ((probs >= 0) & (probs <= 1)).all() or not np.isin(answers, np.arange(options)).all():
        raise ValueError(f"probs must be from 0 to 1 and answers from 0 to {options - 1}; got others")
    happened = answers if probs.ndim == 1 else np.eye(options)[answers.astype(int)]
    return float(((probs - happened) ** 2).sum() / len(probs))


class SelectiveAccuracy(NamedTuple):
    """How accurate a model is that answers only where it is sure."""

    top: float
    """Accuracy on the most confident tenth: the first `floor(N / 10) + 1` items, as HELM counts them."""
    area: float
    """Area under the accuracy of the most confident items against their share, the mean over 1 to N items."""


def selective_accuracy(confidence: ArrayLike, correct: ArrayLike) -> SelectiveAccuracy:
    """Return the accuracy on the most confident items; those of equal confidence share their mean.

    Arguments and errors as `calibration_bins`.
    """
    sure, right = _check(confidence, correct)
    kind = np.unique(-sure, return_inverse=True)[1]
    shared = (np.bincount(kind, right) / np.bincount(kind))[np.sort(kind)]
    accuracy = np.cumsum(shared) / np.arange(1, len(sure) + 1)
    return SelectiveAccuracy(float(accuracy[len(sure) // 10]), float(accuracy.mean()))


def _check(confidence: ArrayLike, correct: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    sure, right = np.asarray(confidence, np.float64), np.asarray(correct, np.float64)
    if sure.ndim != 1 or not len(sure) or sure.shape != right.shape:
        raise ValueError(
            f"confidence and correct must be [N] with N >= 1; got {sure.shape} and {right.shape}"
        )
    for name, x in (("confidence", sure), ("correct", right)):
        if len(bad := np.flatnonzero(~((x >= 0) & (x <= 1)))):
            raise ValueError(f"{name} must be from 0 to 1; got {x[bad[0]]} for item {bad[0]}")
    return sure, right


def _sigmoid(x: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -x))


def _logit(p: np.ndarray) -> np.ndarray:
    p = np.clip(p, _EDGE, 1 - _EDGE)
    return np.log(p) - np.log1p(-p)
