"""A task's metric of all items with its interval: by items, or by groups of items that share a source."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_align.evaluate.measures.task_metrics import (
    CORRELATIONS,
    GROUPED,
    ITEM_SCORES,
    METRICS,
    right_answers,
)
from jaxrl_align.runtime.resampling import bootstrap, bootstrap_mean, share_interval
from jaxrl_align.runtime.statistics import Interval

SHARES = ("accuracy", "exact_match", "normalised_exact_match")
"""Metrics that are 0 or 1 of an item: of independent items they have Wilson's interval."""


class Measured(NamedTuple):
    """A metric's value and its 95% interval."""

    value: float
    low: float
    high: float
    kind: str
    """Of the interval, as in `runtime.Interval`."""
    reason: str = ""
    """Why the value is not defined; empty for a number."""

    def __str__(self) -> str:
        """Return the value and its ends to as many digits as the interval carries, or why there is none."""
        return f"undefined: {self.reason}" if self.reason else str(Interval(*self[:4]))

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as JSON holds them: a number that is not defined is null."""
        lost = lambda value: isinstance(value, float) and not np.isfinite(value)
        return {name: None if lost(value) else value for name, value in self._asdict().items()}


def measure(
    name: str,
    predictions: Sequence[Any],
    answers: Sequence[Any],
    *,
    options: Sequence[Sequence[str]] | None = None,
    groups: Sequence[Any] | None = None,
) -> Measured:
    """Return a metric of a task's items.

    Args:
      name: of `METRICS`.
      predictions: [N] places of options, numbers or texts; None where there is none, which is wrong, and
        leaves a correlation undefined.
      answers: [N] of the same kind; a tuple names several right ones.
      options: [N] the texts that places stand for, which metrics of texts compare.
      groups: [N] what an item shares with others: intervals are then bootstrapped over groups.

    Raises:
      ValueError: for another name, no items, groups where a metric needs them, and what a metric refuses.
    """
    if name not in METRICS:
        raise ValueError(f"a metric must be one of {', '.join(sorted(METRICS))}; got {name!r}")
    if name in ITEM_SCORES or name in SHARES:
        values = score_items(name, predictions, answers, options)
        return Measured(*(share_interval if name in SHARES else bootstrap_mean)(values, groups))
    if name in GROUPED:
        if groups is None:
            raise ValueError(f"{name} needs the items' groups; name them in the task file, `group`")
        right, kinds = right_answers(predictions, answers), np.asarray(groups)
        return Measured(*share_interval(np.array([right[kinds == kind].all() for kind in np.unique(kinds)])))
    single = [_nearest(*pair) for pair in zip(predictions, answers, strict=True)]
    labels, missing = list(predictions), [i for i, given in enumerate(predictions) if given is None]
    if missing and name in CORRELATIONS:
        reason = f"{len(missing)} of {len(labels)} items have no prediction, which has no place on a scale"
        return Measured(np.nan, np.nan, np.nan, "none", reason)
    # What was not answered is a class of its own, which is never right.
    for i in missing:
        labels[i] = _unlike([*single, *(given for given in predictions if given is not None)])
    found = METRICS[name](labels, single)
    if found.reason:
        return Measured(found.value, np.nan, np.nan, "none", found.reason)
    return Measured(*bootstrap(METRICS[name], labels, single, groups=groups))


def score_items(
    name: str,
    predictions: Sequence[Any],
    answers: Sequence[Any],
    options: Sequence[Sequence[str]] | None = None,
) -> np.ndarray:
    """Return what each item earns, [N] in [0, 1]: a metric's own score of an item, else whether it is right.

    Arguments as `measure`.
    """
    if name not in ITEM_SCORES:
        return right_answers(predictions, answers).astype(float)
    rows = zip(predictions, answers, options or [()] * len(answers), strict=True)
    return np.array([ITEM_SCORES[name](*_as_texts(*row)) for row in rows])


def _nearest(prediction: Any, answer: Any) -> Any:
    """Return the right answer, of several the predicted one, or else the first."""
    if not isinstance(answer, tuple):
        return answer
    return prediction if prediction in answer else answer[0]


def _unlike(labels: Sequence[Any]) -> Any:
    """Return a label that is none of these: a longer text, or a number below 0 and them."""
    if any(isinstance(label, str) for label in labels):
        return "-" + max(map(str, labels), key=len)
    return min(0, *labels) - 1


def _as_texts(prediction: Any, answer: Any, options: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return a prediction and the gold answers as texts, places of options replaced."""
    name = lambda one: options[one] if isinstance(one, int) and options else one
    golds = answer if isinstance(answer, tuple) else (answer,)
    return name(prediction), [name(gold) for gold in golds]
