"""Table and figure of `ladder.py`."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_align.runtime import plots
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.statistics import mean_interval, mean_text, share_text

SHARES = ("format", "right", "right of the options")


class Cost(NamedTuple):
    """What a rung costs."""

    labels: str
    """That people write."""
    forward: int
    """Tokens that models read in training, padding too."""
    backward: int
    """Tokens that a gradient goes back through."""
    question: float
    """Tokens that the model reads to answer a question."""
    below: str | None = None
    """The rung that it is compared with."""

    def flops(self, weights: int) -> float:
        """Return the operations of training: 2 a weight and token forward, 2 back.

        The frozen weights have no gradient of their own, so going back costs as much as going forward.
        """
        return 2.0 * weights * (self.forward + self.backward)


def report(
    folder: RunFolder, draws: Sequence[Mapping[str, Any]], costs: Mapping[str, Cost], weights: int
) -> None:
    """Print the table, 95% t intervals over the draws; write results.json and ladder.png.

    Args:
      folder: of the run.
      draws: rung -> shares and seconds, of each draw.
      costs: of each rung.
      weights: of the model's layers, for the operations.
    """
    found = {
        rung: {share: [draw[rung][share] for draw in draws] for share in (*SHARES, "seconds")}
        for rung in costs
    }
    width = max(map(len, costs)) + 2
    print(f"\nanswers [%], {len(draws)} draws of the labelled rows")
    print(f"  {'':{width}}{'right':>20}{'in the format':>20}{'of the options':>20}")
    for rung, rows in found.items():
        shown = (share_text(rows[share]) for share in ("right", "format", "right of the options"))
        print(f"  {rung:{width}}" + "".join(f"{text:>20}" for text in shown))
    print(f"\n  {'':{width}}{'training [1e12 FLOP]':>22}{'[s]':>16}{'tokens a question':>20}  labels")
    for rung, cost in costs.items():
        seconds = mean_text(found[rung]["seconds"], ".0f")
        print(
            f"  {rung:{width}}{cost.flops(weights) / 1e12:>22.1f}{seconds:>16}{cost.question:>20.0f}  "
            f"{cost.labels}"
        )
    _print_paired(found, costs)
    as_json = {rung: {**cost._asdict(), "flops": cost.flops(weights)} for rung, cost in costs.items()}
    folder.write_json("results.json", {"answers": found, "costs": as_json})
    _draw(folder, found)


def _print_paired(found: Mapping[str, Any], costs: Mapping[str, Cost]) -> None:
    """Print what each rung gains over the one below it, by draw."""
    print("\n  right answers gained [points], paired by draw")
    for rung, cost in costs.items():
        if cost.below is not None:
            gain = 100.0 * (np.array(found[rung]["right"]) - np.array(found[cost.below]["right"]))
            print(f"    {rung:32}over {cost.below:30}{mean_text(gain, '+.1f')}")


def _draw(folder: RunFolder, found: Mapping[str, Any]) -> None:
    """Write ladder.png: right answers and answers in the format, a pair of bars for each rung."""
    fig, (ax,) = plots.panels(1, 1, size=(7.0, 3.6))
    places = np.arange(len(found))
    kinds = {"right": ("right", plots.COLORS[0], ""), "format": ("in the format", plots.COLORS[1], "//")}
    for i, (share, (label, color, hatch)) in enumerate(kinds.items()):
        mean, half = mean_interval(100.0 * np.array([rows[share] for rows in found.values()]), axis=1)
        ends = np.abs(np.clip([mean - half, mean + half], 0.0, 100.0) - mean)
        kind = {"color": color, "hatch": hatch, "alpha": 0.8, "label": label, "capsize": 3}
        ax.barh(places + 0.4 * i - 0.2, mean, 0.38, xerr=ends, **kind)
    ax.set_yticks(places, list(found), fontsize=9)
    ax.invert_yaxis()
    ax.set_xlim(0.0, 100.0)
    ax.set_xlabel("answers to held-out questions [%]; 95%", fontsize=10)
    ax.legend(fontsize=9, loc="upper right")
    plots.save_figure(fig, folder.path / "ladder.png")


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("ladder")
