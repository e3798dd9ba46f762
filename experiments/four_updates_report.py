"""Tables and figure of `four_updates.py`."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from panels import save_panels

from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.statistics import mean_text, ratio_interval

POLICIES = ("first policy", "last policy")
"""Where gradients are compared."""
PAIRS = (
    ("variance", "vanilla"),
    ("exploration", "variance"),
    ("drift", "exploration"),
    ("drift", "variance"),
)
"""Arms whose differences are what a stabiliser buys."""


def choose_rates(gold: np.ndarray, tuning: int) -> np.ndarray:
    """Return the place of each arm's best rate [A], by gold rewards [A, R, M] of the first `tuning` seeds."""
    return gold[..., :tuning].mean(-1).argmax(-1)


def report(
    config: Any, arms: Sequence[str], ends: Mapping[str, np.ndarray], gradients: Mapping[str, Any]
) -> None:
    """Print the choice of rates, every arm at its own and at each common rate, and the gradients' variance.

    Args:
      config: of the run.
      arms: A names.
      ends: by measure [A, R, M].
      gradients: {policy: {arm: [M']}} of the seeds that are reported.
    """
    best = choose_rates(ends["gold"], config.tuning_seeds)
    print(f"gold reward at the end on {config.tuning_seeds} tuning seeds, by learning rate:")
    for arm, values, place in zip(arms, ends["gold"], best, strict=True):
        means = values[:, : config.tuning_seeds].mean(-1)
        cells = "".join(f"{r:>9g}: {x:.2f}" for r, x in zip(config.learning_rates, means, strict=True))
        print(f"  {arm:20}{cells}   taken {config.learning_rates[place]:g}")
    reported = {name: values[..., config.tuning_seeds :] for name, values in ends.items()}
    seeds = config.seeds - config.tuning_seeds
    print(f"\n{seeds} other seeds, 95% t intervals, differences paired; {', '.join(ends)}")
    rows = {"own rates": best}
    rows |= {f"rate {rate:g}": np.full(len(arms), i) for i, rate in enumerate(config.learning_rates)}
    for title, places in rows.items():
        print(title)
        at = {
            name: dict(zip(arms, values[np.arange(len(arms)), places], strict=True))
            for name, values in reported.items()
        }
        for arm in arms:
            print_row(arm, [by[arm] for by in at.values()])
        for a, b in PAIRS:
            print_row(f"  {a} - {b}", [by[a] - by[b] for by in at.values()], "+")
    print("\nvariance of the gradient over vanilla's, same answers:")
    for (policy, by), arm in itertools.product(gradients.items(), arms[1:3]):
        middle, low, high, _ = ratio_interval(by[arm] / by["vanilla"])
        print(f"  {policy:14}{arm:20}{middle:6.2f} [{low:.2f}, {high:.2f}]")


def print_row(name: str, columns: Sequence[np.ndarray], sign: str = "") -> None:
    """Print means over members and their intervals."""
    print(f"  {name:26}" + "".join(f"{mean_text(values, sign + '.2f'):>17}" for values in columns))


def draw(
    config: Any, folder: RunFolder, arms: Sequence[str], curves: Mapping[str, np.ndarray], times: list[int]
) -> None:
    """Write four_updates.png: every measure [A, R, M, ...] over steps, all arms at the middle rate."""
    middle = len(config.learning_rates) // 2
    labels = {"score": "reward model's score [deviations]", "gold": "gold reward, held-out prompts"}
    labels |= {"entropy": "entropy [nats a token]", "KL": "KL to SFT [nats an answer]"}
    panels = {}
    for name, label in labels.items():
        values = curves[name][:, middle, config.tuning_seeds :]
        x = np.array(times) if name == "gold" else np.arange(config.rlhf_steps)
        panels[label] = {arm: (x, ys.T) for arm, ys in zip(arms, values, strict=True)}
    seeds = config.seeds - config.tuning_seeds
    title = f"Four updates at learning rate {config.learning_rates[middle]:g}, {seeds} seeds, 95% t intervals"
    bounds = {labels[name]: (0.0, np.inf) for name in ("entropy", "KL")}
    save_panels(folder.path / "four_updates.png", "steps", panels, title=title, bounds=bounds)
