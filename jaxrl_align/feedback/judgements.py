"""What a crowd said that is no single label, all of it as rows of feedback, and ratings on one scale."""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_align.feedback.consensus import Votes
from jaxrl_align.feedback.fields import Text
from jaxrl_align.feedback.rows import Comment, Comparison, Correction, Label, Ranking, Rating

TIE = 2
"""The label of a comparison whose answers are called equal; 0 says that the first is better, 1 the second."""


class Judgements(NamedTuple):
    """Answers that are no single label, one entry a query."""

    annotator: np.ndarray
    """[V] int, from 0."""
    item: np.ndarray
    """[V] int, from 0."""
    value: np.ndarray
    """[V, K] places of a ranking, 1 for the best; or [V] remarks."""


def as_rows(
    kind: type[Any], judged: Votes | Judgements, prompts: Sequence[Text], answers: Sequence[Any]
) -> list[Any]:
    """Return a crowd's answers as rows of feedback, one a query, that name their annotator by number.

    Args:
      kind: of the rows; `judged` comes from the method of that kind: `Comparison` from `compare`, `Ranking`
        `rank`, `Rating` `rate`, `Comment` `comment`, `Correction` `correct`, `Label` `label`.
      judged: what the crowd said of the N items.
      prompts: N.
      answers: N; for comparisons two texts each, for rankings and corrections K in gold's order, else one.

    Returns:
      Rows of that kind. Ties of comparisons, and answers that were left uncorrected, make none.

    Raises:
      ValueError: for another kind, or prompts or answers that are not one an item.
    """
    if kind not in _ROWS:
        names = ", ".join(row.__name__ for row in _ROWS)
        raise ValueError(f"kind must be one of {names}; got {kind!r}; give the class itself")
    items = int(np.max(judged.item)) + 1
    if not items <= len(prompts) == len(answers):
        raise ValueError(
            f"prompts and answers must be one for each of {items} items; got {len(prompts)}, {len(answers)}"
        )
    rows = []
    for annotator, item, value in zip(*judged, strict=True):
        made = _ROWS[kind](prompts[item], answers[item], value.tolist())
        rows += [] if made is None else [made._replace(annotator=str(annotator))]
    return rows


_ROWS: dict[Any, Any] = {
    Comparison: lambda p, a, label: None if label == TIE else Comparison(p, a[label], a[1 - label]),
    Ranking: lambda p, a, places: Ranking(p, list(a), places),
    Rating: lambda p, a, score: Rating(p, a, float(score)),
    Comment: lambda p, a, text: Comment(p, a, text),
    Correction: lambda p, a, best: Correction(p, a[0], a[best]) if best else None,
    Label: lambda p, a, up: Label(p, a, bool(up)),
}


def standardise_ratings(rows: Sequence[Rating]) -> list[Rating]:
    """Return ratings as z-scores of their annotator, so that every annotator has mean 0 and deviation 1.

        z = (score - mean of the annotator's scores) / deviation of the annotator's scores

    It takes an annotator's offset and scale away, and with them what is true of them: that one was given the
    better answers. Rows should be dealt out evenly, and ten or more to each.

    Args:
      rows: N; those without an annotator are taken for one annotator's.

    Returns:
      N ratings in the same order, in deviations (of the population, 1 / n); 0 for an annotator with one row
      or equal scores.

    Raises:
      ValueError: with the row's file and line, for a score that is no finite number.
    """
    scores: defaultdict[str | None, list[float]] = defaultdict(list)
    for i, row in enumerate(rows):
        if not math.isfinite(row.score):
            where = row.source or f"rows[{i}]"
            raise ValueError(f"{where}: score must be a finite number; got {row.score}; remove the row")
        scores[row.annotator].append(row.score)
    # Equal scores may have a deviation of rounding errors, which would blow them up.
    scales = {
        name: (np.mean(said), np.std(said) if min(said) < max(said) else np.inf)
        for name, said in scores.items()
    }
    shift = lambda score, mean, deviation: float((score - mean) / deviation)
    return [row._replace(score=shift(row.score, *scales[row.annotator])) for row in rows]
