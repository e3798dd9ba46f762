"""Table and figure of `dpo_vs_ppo.py`."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxrl_align.runtime import plots, statistics
from jaxrl_align.runtime.folder import RunFolder

MARKERS = "osDP^v<>*hp8dXH"
"""In the figure's order of methods."""
WIDTHS = (8, 7, 7, 15, 16, 16, 18, 14)
"""Of the table's columns."""


def report(folder: RunFolder, levels: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Print the rates tried, the comparison and the differences from PPO; draw it, write results.json.

    Args:
      folder: of the run.
      levels: policies without training, name -> measures [seeds]; of "SFT" also `tried`, the gold reward on
        the tuning seeds.
      found: of every method what `compare` returned, PPO's first.
    """
    start = np.mean(levels["SFT"]["tried"])
    print(f"\nlearning rates tried, on other seeds than are reported: gold reward, {start:.2f} of SFT")
    for name, row in found.items():
        tried = zip(row["rates"], np.mean(row["tried"], 1), strict=True)
        print(f"  {name:20}" + "".join(f"{f'{rate:g}: {gold:.2f}':>16}" for rate, gold in tried))
    seeds = len(found["PPO"]["gold"])
    print(f"\n{seeds} seeds, 95% t interval; differences are paired by seed")
    heads = ("rate", "steps", "s", "gold reward", "less PPO's", "reward model", "KL to SFT [nats]", "tokens")
    print(f"  {'':20}" + "".join(f"{h:>{w}}" for h, w in zip(heads, WIDTHS, strict=True)))
    for name, row in {**levels, **found}.items():
        gain = np.array(row["gold"]) - np.array(found["PPO"]["gold"])
        spent = row["steps"] * row["seconds"] if "rate" in row else 0.0
        cells = [f"{row['rate']:g}", str(row["steps"]), f"{spent:.1f}"] if "rate" in row else ["", "", ""]
        cells.append(statistics.mean_text(row["gold"], ".2f"))
        cells.append("" if name == "PPO" else statistics.mean_text(gain, "+.2f"))
        forms = {"score": "+.2f", "kl": ".1f", "length": ".1f"}
        cells += [statistics.mean_text(row[key], form) for key, form in forms.items()]
        print(f"  {name:20}" + "".join(f"{cell:>{w}}" for cell, w in zip(cells, WIDTHS, strict=True)))
    folder.write_json("results.json", {"levels": levels, "methods": found})


def draw(folder: RunFolder, levels: Mapping[str, Any], panels: Mapping[str, Mapping[str, Any]]) -> None:
    """Write gold_against_kl.png: a panel for each family, and in both the policies that all start from.

    Args:
      folder: of the run.
      levels: policies without training, name -> measures [seeds].
      panels: title -> method -> measures [seeds].
    """
    fig, axes = plots.panels(1, len(panels), size=(11, 4.6), sharex=True, sharey=True)
    for ax, (title, rows) in zip(axes, panels.items(), strict=True):
        for k, (name, row) in enumerate({**levels, **rows}.items()):
            x = statistics.mean_interval(np.sqrt(np.maximum(row["kl"], 0.0)))
            y = statistics.mean_interval(row["gold"])
            known = k >= len(levels)
            color = plots.COLORS[(k - len(levels)) % len(plots.COLORS)] if known else "#777777"
            look = {"fmt": MARKERS[k], "color": color, "markersize": 7, "capsize": 2, "elinewidth": 0.8}
            ax.errorbar(
                x[0], y[0], y[1], x[1], label=name, markerfacecolor=color if known else "white", **look
            )
        ax.set(title=title, xlabel="square root of KL(policy, SFT) [sqrt nats]", ylabel="gold reward")
        ax.legend(fontsize=8)
    plots.save_figure(fig, folder.path / "gold_against_kl.png")
