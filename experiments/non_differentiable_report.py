"""Table and figure of `non_differentiable.py`."""

from typing import Any

import numpy as np
from panels import save_panels

from jaxrl_align.losses import best_of_n_kl
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.statistics import mean_text, share_text

BEST = (8, 64)
"""Answers among which the best one is chosen, by the reward."""


def report_rates(config: Any, task: str, tried: dict[str, Any], rates: dict[str, float]) -> None:
    """Print the mean reward of the tuning members at every rate."""
    print(f"\n{task}: mean reward at the end on {config.tuning_seeds} tuning seeds, by learning rate")
    for name, values in tried.items():
        cells = "   ".join(f"{r:g}: {x:.3f}" for r, x in zip(config.learning_rates, values, strict=True))
        print(f"  {name:18}{cells}   taken {rates[name]:g}")


def report(config: Any, found: dict[str, Any]) -> None:
    """Print, for each task, the rates tried and what every method came to on the other seeds."""
    seeds = config.seeds - config.tuning_seeds
    pattern = found["pattern"]
    report_rates(config, f"pattern {config.pattern}", pattern["tried"], pattern["rates"])
    print(f"held-out prompts, {seeds} other seeds, 95% t intervals:")
    print(f"  {'':18}{'hits [%]':>22}{'KL [nats]':>16}{'gold reward':>16}{'distinct [%]':>22}")
    for name, row in pattern["rows"].items():
        texts = mean_text(row["KL"]), mean_text(row["gold"], ".2f")
        cells = share_text(row["hits"]), *texts, share_text(row["distinct"])
        print(f"  {name:18}" + "".join(f"{x:>{w}}" for x, w in zip(cells, (22, 16, 16, 22), strict=True)))
    for name, row in pattern["rows"].items():
        if name != "RL":
            gain = 100.0 * (pattern["rows"]["RL"]["hits"] - row["hits"])
            print(f"  RL - {name}: {mean_text(gain, '+.1f')} points of hits")
    for n, hit in pattern["best"].items():
        print(f"  {f'best of {n}':18}{share_text(hit):>22}{f'<= {best_of_n_kl(n):.1f}':>16}")
    for name, texts in pattern["texts"].items():
        print(f"  {name}: " + " | ".join(" ".join(text.split()) for text in texts))
    for task in ("exact", "rivals"):
        rows = found[task]
        report_rates(config, task, rows["tried"], rows["rates"])
        heads = [*(f"{what} [%]" for what in ("p(sum)", "p(sum + 1)", "sum likelier")), "KL [nats]"]
        print(f"  {'':18}" + "".join(f"{head:>22}" for head in heads))
        ends = {"start": rows["sft"][1][-1]} | {name: path[-1] for name, (_, path) in rows["paths"].items()}
        for name, end in ends.items():
            kl = mean_text(rows["kl"][name], ".2f") if name in rows["kl"] else ""
            print(f"  {name:18}" + "".join(f"{share_text(x):>22}" for x in end.T[:3]) + f"{kl:>22}")
        for n, chance in zip(BEST, ends["start"].T[3:], strict=True):
            print(f"  {f'best of {n}':18}{share_text(chance):>22}{f'<= {best_of_n_kl(n):.1f}':>66}")
        print_gains(ends)


def print_gains(ends: dict[str, Any]) -> None:
    """Print how much likelier RL makes the exact answer than each other row does, paired over members."""
    for name, end in ends.items():
        if name != "RL":
            print(f"  RL - {name}: {mean_text(100.0 * (ends['RL'] - end)[:, 0], '+.1f')} points of p(sum)")


def draw(folder: RunFolder, config: Any, found: dict[str, Any]) -> None:
    """Write non_differentiable.png: the hit rates, and the likelihoods of two rivals through SFT and RL."""
    pattern, exact, rivals = (found[task] for task in ("pattern", "exact", "rivals"))
    steps = np.arange(config.rlhf_steps)
    hits = {name: (steps, 100.0 * curve.T) for name, curve in pattern["curves"].items()}
    start = exact["sft"][1][-1:, :, 0]
    right = {
        name: ([0, *at], 100.0 * np.concatenate([start, path[..., 0]]))
        for name, (at, path) in exact["paths"].items()
    }
    before, sft = rivals["sft"]
    after, path = rivals["paths"]["RL"]
    x, both = [*before, *(before[-1] + np.array(after))], 100.0 * np.concatenate([sft, path])
    pair = {"worth 8.0": (x, both[..., 0]), "worth 1.2": (x, both[..., 1])}
    panels = {
        "answers that match the pattern [%]": hits,
        "probability of the exact answer [%]": right,
        f"probability [%]; RL from {before[-1]} on": pair,
    }
    title = f"Rewards without a gradient, {config.seeds - config.tuning_seeds} seeds, 95% t intervals"
    bounds = dict.fromkeys(panels, (0.0, 100.0))
    save_panels(
        folder.path / "non_differentiable.png", "steps", panels, title=title, columns=3, bounds=bounds
    )
