"""What the layer-wise experiments report: rates chosen on other members, errors, and paired differences."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from layerwise_starts import Judged, StartsConfig

from jaxrl_align.runtime import Interval, crossed_interval, t_interval

PER_CENT = (-100.0, 100.0)
"""What a difference of errors can be."""
Kept = dict[str, Any]
"""What JSON keeps of the members, [ways]: see `keep`."""


def choose_rates(error: Any, loss: Any) -> np.ndarray:
    """Return the index of each way's rate, by the validation images of the members that choose.

    It is the one with the lowest mean error, of equal ones that with the lowest mean loss. The loss alone
    would not do: with few labels it takes the rate that has learnt least, where the net is least sure.

    Args:
      error: [tuning members, ways, rates].
      loss: of the same; a rate with one that is not finite is never chosen.
    """
    error, loss = (np.asarray(x, np.float64).mean(0) for x in (error, loss))
    usable = np.isfinite(loss)
    error = np.where(usable, error.round(6), np.inf)
    lowest = error == error.min(1, keepdims=True)
    return np.where(lowest & usable, loss, np.inf).argmin(1)


def keep(config: StartsConfig, judged: Judged) -> Kept:
    """Return what is kept of all members, the reported ones first.

    Returns:
      `rate` [ways], each way's own; `validation` [ways, rates], the error of the members that choose;
      `error` [ways, rates, M] on the test set in per cent and `train` [ways, M] at the way's rate; and
      `wrong` [ways, M], a string of 0 and 1 by test image at that rate.
    """
    validation, loss, train, wrong = (np.asarray(x) for x in judged)
    own, tuning = slice(config.seeds), slice(config.seeds, None)
    best = choose_rates(validation[tuning], loss[tuning])
    ways = np.arange(len(best))
    at_best = wrong[own][:, ways, best].swapaxes(0, 1)
    return {
        "rate": [config.rates()[i] for i in best],
        "validation": validation[tuning].mean(0, dtype=np.float64),
        "error": 100 * wrong[own].mean(-1).transpose(1, 2, 0),
        "train": train[own][:, ways, best].T,
        "wrong": [["".join("01"[int(x)] for x in row) for row in of_way] for of_way in at_best],
    }


def wrong_images(kept: Kept) -> np.ndarray:
    """Return [ways, M, N]: 100 for a test image that is wrong at the way's rate, 0 for one that is right."""
    return np.array([[[100.0 * (x == "1") for x in row] for row in way] for way in kept["wrong"]])


def difference(first: np.ndarray, second: np.ndarray) -> Interval:
    """Return the paired difference of two errors [M, N] and its interval over members and test images."""
    return crossed_interval(first - second, bounds=PER_CENT)


def compare_row(wrong: np.ndarray, names: Sequence[str], way: int, against: Sequence[str]) -> dict[str, Any]:
    """Return one way's test error, of `wrong` [ways, M, N], and its paired differences from other ways."""
    row: dict[str, Any] = {"test error": crossed_interval(wrong[way], bounds=(0, 100))}
    for other in against:
        found = difference(wrong[way], wrong[names.index(other)])
        row[f"- {other}"] = "" if other == names[way] else found
    return row


def tabulate(kept: Kept, names: Sequence[str], against: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a row for each way: `compare_row`, its rate and its training error."""
    wrong, table = wrong_images(kept), {}
    for i, name in enumerate(names):
        at = {"rate": f"{kept['rate'][i]:g}", "training error": float(np.mean(kept["train"][i]))}
        table[name] = compare_row(wrong, names, i, against) | at
    return table


def every_rate(config: StartsConfig, kept: Kept, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return a row for each way: at every rate the test error over seeds, and the error that chose."""
    table = {}
    for i, name in enumerate(names):
        row: dict[str, Any] = {}
        for j, rate in enumerate(config.rates()):
            row[f"{rate:g}: test"] = t_interval(kept["error"][i][j], bounds=(0, 100))
            row[f"{rate:g}: choosing"] = float(kept["validation"][i][j])
        table[name] = row
    return table


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("layerwise_pretraining")
