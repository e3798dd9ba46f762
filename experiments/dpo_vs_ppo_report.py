"""Tables, verdict and figure of `dpo_vs_ppo.py`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rates import rates_table

from jaxrl_align.runtime import (
    Claim,
    Interval,
    RunFolder,
    mean_interval,
    paired_interval,
    plots,
    t_interval,
    write_result,
)

MARKERS = "osDP^v<>*hp8dXH"
"""In the figure's order of methods."""
NEAR = 0.25
"""Gold reward by which a method may differ from PPO and be near it."""
COLUMNS = {
    "gold": ("gold reward", (0.0, 5.0)),
    "score": ("reward model [deviations]", (-np.inf, np.inf)),
    "kl": ("KL to SFT [nats]", (0.0, np.inf)),
    "length": ("tokens", (0.0, np.inf)),
}


def less(row: Mapping[str, Any], other: Mapping[str, Any]) -> Interval:
    """Return the difference of two rows' gold reward, paired by seed."""
    return paired_interval(row["gold"], other["gold"], bounds=(-5, 5))


def tabulate(rows: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the comparison, PPO's row among the others: rates, steps, seconds, measures."""
    table: dict[str, dict[str, Any]] = {}
    for name, row in rows.items():
        cells = {title: t_interval(row[key], bounds=bounds) for key, (title, bounds) in COLUMNS.items()}
        table[name] = cells | {"gold, less PPO's": "" if name == "PPO" else less(row, rows["PPO"])}
        if "rate" in row:
            spent = row["steps"] * row["seconds"]
            table[name] |= {"rate": f"{row['rate']:g}", "steps": row["steps"], "seconds": spent}
    return table


def judge(
    gains: Mapping[str, Mapping[str, Interval]], direct: Sequence[str], group: Sequence[str]
) -> dict[str, bool]:
    """Return which parts of the claim hold.

    Args:
      gains: of gold reward, by method over "SFT", "PPO", "best of n" and, where it ran, "imitation".
      direct: the methods that learn from comparisons, without imitation.
      group: the methods without a critic.
    """
    checks = {"PPO's gold reward is above the SFT policy's": gains["PPO"]["SFT"].low > 0}
    if direct:
        over = lambda other: all(gains[name][other].low > 0 for name in direct if other in gains[name])
        under = lambda other: all(gains[name][other].high < 0 for name in direct)
        checks |= {
            "every direct method's is below PPO's": under("PPO"),
            "every direct method's is below that of choosing the best of n, which trains nothing": (
                under("best of n")
            ),
        }
        if "imitation" in gains[direct[0]]:
            checks["every direct method's is above that of imitating the chosen answers"] = over("imitation")
    if group:
        near = [max(-gains[name]["PPO"].low, gains[name]["PPO"].high) < NEAR for name in group]
        checks[f"a method without a critic comes within {NEAR:g} of PPO's"] = any(near)
        checks["none is above it"] = not any(gains[name]["PPO"].low > 0 for name in group)
    return checks


def table_of_rates(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the mean gold reward of the tuning seeds at every rate of a method."""
    mean = {name: np.mean(row["tried"], 1) for name, row in found.items()}
    tried = {name: dict(zip(row["rates"], mean[name], strict=True)) for name, row in found.items()}
    return rates_table(tried, {name: row["rate"] for name, row in found.items()})


def compare_gold(levels: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, dict[str, Interval]]:
    """Return every method's gold reward less the SFT policy's, the best of n's, PPO's and imitation's."""
    sft, best = levels.values()
    others = {"SFT": sft, "PPO": found["PPO"], "best of n": best}
    others |= {name: row for name, row in found.items() if name == "imitation"}
    return {
        name: {other: less(row, theirs) for other, theirs in others.items() if other != name}
        for name, row in found.items()
    }


def report(
    folder: RunFolder,
    config: Any,
    claim: Claim,
    levels: Mapping[str, Any],
    found: Mapping[str, Any],
    families: Mapping[str, Sequence[str]],
    agree: Mapping[str, np.ndarray],
) -> None:
    """Write the result: the comparison, the differences that decide, and the rates tried.

    Args:
      folder: of the run.
      config: of the run.
      claim: the experiment's.
      levels: policies without training, name -> measures [seeds]: "SFT", with `tried`, the gold reward on
        the tuning seeds, and the best of n.
      found: of every method what `compare` returned, PPO's first.
      families: the names of the "group" methods and of the "direct" ones, imitation among the latter.
      agree: share [seeds] of comparisons on which someone agrees.
    """
    gains = compare_gold(levels, found)
    direct, group = ([name for name in families[key] if name in found] for key in ("direct", "group"))
    direct = [name for name in direct if name != "imitation"]
    rival = max(direct, key=lambda name: np.mean(found[name]["gold"]), default="SFT")
    write_result(
        folder,
        config,
        claim,
        headline={
            f"gold reward of PPO less {rival}'s, paired": less(found["PPO"], {**levels, **found}[rival])
        },
        baselines={
            f"gold reward, {name}": t_interval(levels[name]["gold"], bounds=(0, 5)) for name in levels
        },
        checks=judge(gains, direct, group),
        tables={
            "held-out prompts": tabulate({**levels, **found}),
            "gold reward of direct methods, paired": {
                name: {f"less {other}'s": cell for other, cell in gains[name].items()} for name in direct
            },
            "comparisons on which the labels agree": {
                name: {"share": t_interval(x, bounds=(0, 1))} for name, x in agree.items()
            },
            "gold reward on the tuning seeds, by learning rate": table_of_rates(found),
        },
        notes=[f"the gold reward of the tuning seeds' SFT policies is {np.mean(levels['SFT']['tried']):.2f}"],
        figures=["gold_against_kl.png"],
    )


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
            x = mean_interval(np.sqrt(np.maximum(row["kl"], 0.0)))
            y = mean_interval(row["gold"])
            known = k >= len(levels)
            color = plots.COLORS[(k - len(levels)) % len(plots.COLORS)] if known else "#777777"
            look = {"fmt": MARKERS[k], "color": color, "markersize": 7, "capsize": 2, "elinewidth": 0.8}
            ax.errorbar(
                x[0], y[0], y[1], x[1], label=name, markerfacecolor=color if known else "white", **look
            )
        ax.set(title=title, xlabel="square root of KL(policy, SFT) [sqrt nats]", ylabel="gold reward")
        ax.legend(fontsize=8)
    plots.save_figure(fig, folder.path / "gold_against_kl.png")


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("dpo_vs_ppo")
