"""Shares of `instruction_tuning.py`: of answers by set, and of the world's unseen tasks."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from instruction_tuning_sets import FAMILIES, UNSEEN_FAMILIES

MEASURES = {"format": "format", "right": "right", "named": "named right", "ranked": "ranked right"}
"""What is measured of an answer, and its name in the tables."""
UNSEEN = frozenset(name for family in UNSEEN_FAMILIES for name in FAMILIES[family])
PARTS = {"unseen families": True, "unseen sets of a learnt family": False}
CALLED = {"chat": "untuned, as a chat", "0": "untuned"}


def call(condition: str) -> str:
    """Return the name of a condition in the tables."""
    return CALLED.get(condition, f"{condition} sets" if condition != "1" else "1 set")


def names_of(questions: Sequence[Mapping[str, Any]], unseen_family: bool | None = None) -> list[str]:
    """Return the sets that are asked, all, or those of unseen or of learnt families."""
    names = list(dict.fromkeys(q["set"] for q in questions))
    return [name for name in names if unseen_family is None or (name in UNSEEN) == unseen_family]


def set_shares(
    questions: Sequence[Mapping[str, Any]],
    asked: Sequence[Mapping[str, Any]],
    measure: str,
    names: Sequence[str],
) -> np.ndarray:
    """Return shares [draws, sets] of one measure: a set counts as much as any, however often it is asked."""
    own = np.array([q["set"] for q in questions])
    hits = np.array([draw[measure] for draw in asked], float)
    return np.stack([hits[:, own == name].mean(1) for name in names], 1)


def chance(questions: Sequence[Mapping[str, Any]], which: str, names: Sequence[str]) -> float:
    """Return the share that a guess gets right, the mean over sets."""
    by_set = [np.mean([q[which] for q in questions if q["set"] == name]) for name in names]
    return float(np.mean(by_set))


def right_given_format(right: np.ndarray, form: np.ndarray) -> np.ndarray:
    """Return, for each draw, the share of right answers among those that have the format; nan without any."""
    total = form.sum(1)
    return np.where(total > 0, right.sum(1) / np.where(total > 0, total, 1.0), np.nan)


def gains(
    questions: Any, asked: Mapping[str, Any], measure: str, names: Sequence[str], first: str, last: str
) -> np.ndarray:
    """Return one condition less another, paired [draws, sets], in points; one untuned model meets all."""
    before, after = (100.0 * set_shares(questions, asked[c], measure, names) for c in (first, last))
    return after - np.broadcast_to(before, after.shape) if len(before) == 1 else after - before


WORLD = {"format": "format", "right": "right", "given": "right if in format"}


def unseen_shares(row: Mapping[str, Any], known: Any = None) -> dict[str, np.ndarray]:
    """Return shares [seeds] of the world's unseen tasks, all of them and those of two learnt words alone.

    Of a seed without such a task, and of no answer in the format, a share is nan.

    Args:
      row: one breadth's part of the results.
      known: [seeds, tasks] which tasks have two learnt words, if not by the row's own breadth.
    """
    known = np.array(row["known"] if known is None else known, float)
    found = {"known": known.mean(1)}
    for name, weight in {"": np.ones_like(known), "known ": known}.items():
        total = weight.sum(1)
        mean = lambda x, w=weight, n=total: np.where(
            n > 0, (np.array(x) * w).sum(1) / np.maximum(n, 1), np.nan
        )
        for measure in ("format", "right"):
            found[name + measure] = mean(row["unseen"][measure])
        form = found[name + "format"]
        found[name + "given"] = np.where(
            form > 0, found[name + "right"] / np.where(form > 0, form, 1), np.nan
        )
    return found


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("instruction_tuning")
