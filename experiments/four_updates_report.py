"""Figure, tables and verdict of `four_updates.py`."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from panels import save_panels
from rates import rates_table

from jaxrl_align.runtime import (
    Claim,
    Interval,
    RunFolder,
    paired_interval,
    ratio_interval,
    t_interval,
    write_result,
)

POLICIES = ("first policy", "last policy")
"""Where gradients are compared."""
PAIRS = (
    ("vanilla, score + 2", "vanilla"),
    ("variance", "vanilla"),
    ("exploration", "variance"),
    ("drift", "exploration"),
    ("drift", "variance"),
)
"""Arms whose differences are what an offset costs and what a stabiliser buys."""
BOUNDS = {"score": (-math.inf, math.inf), "gold": (0.0, 5.0)} | dict.fromkeys(
    ("entropy", "KL", "KL to pre-trained"), (0.0, math.inf)
)
"""What a measure can be."""
Table = dict[str, dict[str, Interval]]


def choose_rates(gold: np.ndarray, tuning: int) -> np.ndarray:
    """Return the place of each arm's best rate [A], by gold rewards [A, R, M] of the first `tuning` seeds."""
    return gold[..., :tuning].mean(-1).argmax(-1)


def tabulate(arms: Sequence[str], ends: Mapping[str, np.ndarray], places: np.ndarray) -> Table:
    """Return every arm and every pair's difference at a rate each.

    Args:
      arms: A names.
      ends: by measure [A, R, M] of the seeds that are reported.
      places: [A] of the rates.
    """
    at = {
        name: dict(zip(arms, values[np.arange(len(arms)), places], strict=True))
        for name, values in ends.items()
    }
    table = {arm: {k: t_interval(by[arm], bounds=BOUNDS[k]) for k, by in at.items()} for arm in arms}
    width = {name: high - low for name, (low, high) in BOUNDS.items()}
    return table | {
        f"{a} less {b}": {
            k: paired_interval(by[a], by[b], bounds=(-width[k], width[k])) for k, by in at.items()
        }
        for a, b in PAIRS
    }


def judge(common: Table, rates: Sequence[Table], variance: Mapping[str, Mapping[str, Interval]]) -> dict:
    """Return which parts of the claim hold.

    Args:
      common: of the rate at which all arms are compared.
      rates: of every rate.
      variance: of the gradient over the vanilla one's, by policy and arm.
    """
    first, last = (variance[policy] for policy in POLICIES)
    return {
        "the baseline's gradient varies less than the vanilla one, by the last policy": (
            last["variance"].high < 1
        ),
        "and by the first policy, whose scores are centred": first["variance"].high < 1,
        "scores raised by 2 multiply the vanilla variance": first["vanilla, score + 2"].low > 1,
        "and cost the vanilla update score": common["vanilla, score + 2 less vanilla"]["score"].high < 0,
        "the entropy term keeps the entropy above that without it": (
            common["exploration less variance"]["entropy"].low > 0
        ),
        "the drift term keeps the policy nearer than the entropy term alone": (
            common["drift less exploration"]["KL"].high < 0
        ),
        "and nearer than the baseline alone, at every rate": all(
            table["drift less variance"]["KL"].high < 0 for table in rates
        ),
    }


def table_of_rates(config: Any, arms: Sequence[str], gold: np.ndarray) -> dict[str, Any]:
    """Return the mean gold reward, [A, R, M], of the tuning seeds at every rate."""
    rates, means = config.learning_rates, gold[..., : config.tuning_seeds].mean(-1)
    best = choose_rates(gold, config.tuning_seeds)
    tried = {arm: dict(zip(rates, row, strict=True)) for arm, row in zip(arms, means, strict=True)}
    return rates_table(tried, {arm: rates[place] for arm, place in zip(arms, best, strict=True)})


def report(
    folder: RunFolder,
    config: Any,
    claim: Claim,
    arms: Sequence[str],
    first: Mapping[str, np.ndarray],
    ends: Mapping[str, np.ndarray],
    gradients: Mapping[str, Any],
) -> None:
    """Write the result: every arm at its own and at each common rate, and the gradients' variance.

    Args:
      folder: where to.
      config: of the run.
      claim: the experiment's.
      arms: A names.
      first: measures [M'] of the policy that all start from.
      ends: by measure [A, R, M].
      gradients: {policy: {arm: [M']}} of the seeds that are reported.
    """
    best, rates = choose_rates(ends["gold"], config.tuning_seeds), config.learning_rates
    reported = {name: values[..., config.tuning_seeds :] for name, values in ends.items()}
    of_rate = [tabulate(arms, reported, np.full(len(arms), i)) for i in range(len(rates))]
    variance = {
        policy: {arm: ratio_interval(by[arm] / by["vanilla"]) for arm in arms[1:3]}
        for policy, by in gradients.items()
    }
    common, at = of_rate[len(rates) // 2], f"at a rate of {rates[len(rates) // 2]:g}"
    what = "score [deviations], entropy [nats a token], KL to SFT [nats an answer], gold reward"
    write_result(
        folder,
        config,
        claim,
        headline={
            "variance of the gradient with a baseline over that without, last policy": (
                variance[POLICIES[1]]["variance"]
            ),
            f"entropy with its term less without, {at} [nats a token]": (
                common["exploration less variance"]["entropy"]
            ),
            f"KL to SFT with the drift term less with the baseline alone, {at} [nats]": (
                common["drift less variance"]["KL"]
            ),
        },
        baselines={
            f"{name} of the policy that all start from": t_interval(x, bounds=BOUNDS[name])
            for name, x in first.items()
        },
        checks=judge(common, of_rate, variance),
        tables={f"rate {rate:g}: {what}": table for rate, table in zip(rates, of_rate, strict=True)}
        | {
            f"own rates: {what}": tabulate(arms, reported, best),
            "variance of the gradient over the vanilla one's, on the same answers": variance,
            f"gold reward on {config.tuning_seeds} tuning seeds, by learning rate": table_of_rates(
                config, arms, ends["gold"]
            ),
        },
        figures=["four_updates.png"],
    )


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


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("four_updates")
