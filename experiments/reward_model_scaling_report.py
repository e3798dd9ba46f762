"""Tables, verdict and figure of `reward_model_scaling.py`."""

from typing import Any

import numpy as np
import reward_model_data as ukp
from reward_model_data import Arguments

from jaxrl_align.evaluate import report_pairs
from jaxrl_align.runtime import Claim, Interval, RunFolder, bootstrap_mean, plots, write_result

HUMAN = 85.0
"""Per cent in which a single worker agrees with the pooled label."""
LINEAR, FROZEN = "tf-idf", "SmolLM2, features frozen"


def share_right(margins: np.ndarray, debate: np.ndarray, than: np.ndarray | None = None) -> Interval:
    """Return the mean accuracy over seeds [%], or its gain on another's, and its interval over debates.

    Args:
      margins: [seeds, N].
      debate: [N] of each pair.
      than: [seeds, N] the margins of another way.
    """
    right = np.mean(0.5 + 0.5 * np.sign(margins), 0)
    if than is not None:
        right = right - np.mean(0.5 + 0.5 * np.sign(than), 0)
    return bootstrap_mean(100 * right, debate, draws=4000)


def compare(arguments: Arguments, margins: np.ndarray, than: np.ndarray | None = None) -> Interval:
    """Return `share_right` on the pairs that were judged."""
    judged = np.isfinite(margins[0])
    other = None if than is None else than[:, judged]
    return share_right(margins[:, judged], arguments.debate[judged], other)


def judge(best: Interval, length: float, over: dict[str, Interval]) -> dict[str, bool]:
    """Return which parts of the claim hold.

    Args:
      best: accuracy [%] of the largest model on all pairs.
      length: that of the longer argument.
      over: its gains [points]: over "tf-idf", and over itself with the "fewest" pairs.
    """
    return {
        "size helps: the largest model beats tf-idf": over[LINEAR].low > 0,
        "data help: with all pairs it beats itself with the fewest": over["fewest"].low > 0,
        "it comes more than half of the way from length alone to a single human": (
            best.low > (length + HUMAN) / 2
        ),
        "it reaches a single human: the interval holds their agreement": best.high >= HUMAN,
    }


def describe_last(arguments: Arguments, found: dict[str, dict[int, np.ndarray]]) -> dict[str, dict]:
    """Return the first seed's measures with all pairs: pairs of like length, calibration."""
    table = {}
    for way, by_number in found.items():
        last = list(by_number.values())[-1][0]
        judged = np.isfinite(last)
        seen = report_pairs(last[judged], arguments.lengths[judged], groups=arguments.debate[judged])
        like = (100 * x for x in (seen.matched_accuracy, *seen.matched_interval))
        table[way] = {
            "pairs": int(judged.sum()),
            "of like length": seen.matched_pairs,
            "right of these [%]": Interval(*like, "bootstrap"),
            "calibration error [points]": 100 * seen.calibration_error,
            "nats": seen.nats,
        }
    return table


def tabulate(
    arguments: Arguments, found: dict[str, dict[int, np.ndarray]], every: int
) -> dict[str, dict[str, Any]]:
    """Return the tables of accuracy, and of its gains on tf-idf and on the fewest pairs."""
    row = lambda by_number, read: {f"{n or every:,} pairs": read(n, x) for n, x in by_number.items()}
    ends = {way: list(by_number.values()) for way, by_number in found.items() if len(by_number) > 1}
    return {
        "held-out pairs ordered rightly [%], by pairs learnt from": {
            way: row(by_number, lambda _, x: compare(arguments, x)) for way, by_number in found.items()
        },
        "less tf-idf, on the same pairs [points]": {
            way: row(by_number, lambda n, x: compare(arguments, x, found[LINEAR][n]))
            for way, by_number in found.items()
            if way != LINEAR
        },
        "all pairs less the fewest [points]": {
            way: {"gain": compare(arguments, x[-1], x[0])} for way, x in ends.items()
        },
        "first seed, all pairs; like: lengths differ by a tenth at most": describe_last(arguments, found),
    }


def report(
    folder: RunFolder,
    config: Any,
    claim: Claim,
    arguments: Arguments,
    found: dict[str, dict[int, np.ndarray]],
    tried: Any,
) -> None:
    """Draw every way's accuracy by the number of pairs, and write the result.

    Args:
      folder: of the run.
      config: of the run.
      claim: the experiment's.
      arguments: the judgements.
      found: margins [seeds, N] by way and number of pairs, 0 for all; tf-idf's are the first, nan where a
        pair was not judged.
      tried: the table of the rates tried.
    """
    fold = ukp.make_folds(arguments, config.folds)
    every = round(len(fold) * (1 - 1 / config.folds))
    longer = arguments.lengths[:, :1] - arguments.lengths[:, 1:]
    length = share_right(longer.T, arguments.debate)
    way = FROZEN if FROZEN in found else list(found)[-1]
    own = list(found[way].values())
    over = {
        LINEAR: compare(arguments, own[-1], list(found[LINEAR].values())[-1]),
        "fewest": compare(arguments, own[-1], own[0]),
    }
    best = compare(arguments, own[-1])
    draw(folder, found, arguments, every, length.value)
    write_result(
        folder,
        config,
        claim,
        headline={f"held-out pairs ordered rightly, {way} [%]": best},
        baselines={
            f"less tf-idf's, {way} [points]": over[LINEAR],
            "the longer argument [%]": length,
            "a single human, published [%]": Interval(HUMAN, np.nan, np.nan, "none"),
        },
        checks=judge(best, length.value, over),
        tables=tabulate(arguments, found, every) | {"accuracy on another seed [%], by learning rate": tried},
        figures=["reward_model_scaling.png"],
    )


def draw(
    folder: RunFolder,
    found: dict[str, dict[int, np.ndarray]],
    arguments: Arguments,
    every: int,
    length: float,
) -> None:
    """Write reward_model_scaling.png: accuracy [%] by the number of pairs, beside length and a human."""
    fig, ax = plots.figure("pairs learnt from", "accuracy on held-out debates [%]", title="UKPConvArg1")
    fig.set_size_inches(7.6, 4.0)
    look = plots.looks(found)
    for i, (way, by_number) in enumerate(found.items()):
        x = np.array([n or every for n in by_number]) * 1.03 ** (i - 2)
        cells = [compare(arguments, margins) for margins in by_number.values()]
        mean, low, high = np.array([cell[:3] for cell in cells]).T
        ax.errorbar(x, mean, [mean - low, high - mean], markersize=4, capsize=2, label=way, **look[way])
    ax.axhline(HUMAN, color="#777777", linestyle=":", label="a single human")
    ax.axhline(length, color="#777777", linestyle="--", label="the longer argument")
    ax.set(xscale="log")
    plots.name_beside(fig, ax)
    plots.save_figure(fig, folder.path / "reward_model_scaling.png")


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("reward_model_scaling")
