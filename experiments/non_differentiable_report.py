"""Tables, verdict, samples and figure of `non_differentiable.py`."""

from typing import Any

import numpy as np
from panels import save_panels
from rates import rates_table

from jaxrl_align.losses import best_of_n_kl
from jaxrl_align.runtime import Claim, Interval, RunFolder, paired_interval, t_interval, write_result

BEST = (8, 64)
"""Answers among which the best one is chosen, by the reward."""


LEVEL = 2.0
"""Points of probability by which two answers may differ and be equally likely."""
Table = dict[str, dict[str, Any]]


def percent(x: Any) -> Interval:
    """Return the mean of shares [M] in per cent."""
    return t_interval(100 * np.asarray(x), bounds=(0, 100))


def points(x: Any, y: Any) -> Interval:
    """Return how much larger shares [M] are than others, in points, paired by member."""
    return paired_interval(100 * np.asarray(x), 100 * np.asarray(y), bounds=(-100, 100))


def tabulate_pattern(pattern: dict[str, Any]) -> Table:
    """Return what every method came to on held-out prompts, and the best of n of the start's answers."""
    rows = pattern["rows"]
    table: Table = {
        name: {
            "hits [%]": percent(row["hits"]),
            "RL less it [points]": points(rows["RL"]["hits"], row["hits"]) if name != "RL" else "",
            "KL [nats]": t_interval(row["KL"], bounds=(0, np.inf)),
            "gold reward": t_interval(row["gold"], bounds=(0, 5)),
            "distinct [%]": percent(row["distinct"]),
        }
        for name, row in rows.items()
    }
    return table | {
        f"start, best of {n}": {"hits [%]": percent(hit), "KL [nats]": f"<= {best_of_n_kl(n):.1f}"}
        for n, hit in pattern["best"].items()
    }


def ends_of(task: dict[str, Any]) -> dict[str, np.ndarray]:
    """Return the last row [M, 5] of SFT and of every method, as `recorder` writes it."""
    return {"start": task["sft"][1][-1]} | {name: path[-1] for name, (_, path) in task["paths"].items()}


def tabulate_sums(task: dict[str, Any]) -> Table:
    """Return the likelihoods that every method came to, and the best of n of the start's answers."""
    ends, heads = ends_of(task), ("p(sum) [%]", "p(sum + 1) [%]", "sum likelier [%]")
    table: Table = {}
    for name, end in ends.items():
        cells: dict[str, Any] = {head: percent(x) for head, x in zip(heads, end.T[:3], strict=True)}
        cells["sum less sum + 1 [points]"] = points(end[:, 0], end[:, 1])
        cells["p(sum), RL less it [points]"] = points(ends["RL"][:, 0], end[:, 0]) if name != "RL" else ""
        if name in task["kl"]:
            cells["KL [nats]"] = t_interval(task["kl"][name], bounds=(0, np.inf))
        table[name] = cells
    for n, chance in zip(BEST, ends["start"].T[3:], strict=True):
        table[f"start, best of {n}"] = {heads[0]: percent(chance), "KL [nats]": f"<= {best_of_n_kl(n):.1f}"}
    return table


def judge(
    hits: dict[str, Interval], exact: dict[str, Interval], before: Interval, after: Interval
) -> dict[str, bool]:
    """Return which parts of the claim hold.

    Args:
      hits: share of answers that match under RL, less that of the start and of the other methods [points].
      exact: the same of the exact answer's probability.
      before: probability of the rival that is worth more less the other's, after SFT [points].
      after: the same after RL.
    """
    checks = {
        "RL raises the share of answers that match the pattern": hits["start"].low > 0,
        "RL raises the probability of the exact answer": exact["start"].low > 0,
        f"fine-tuning leaves two answers within {LEVEL:g} points that it is shown alike": (
            max(-before.low, before.high) < LEVEL
        ),
        "RL makes the one worth more the likelier": after.low > 0,
    }
    for name in hits:
        if name != "start":
            checks[f"RL matches the pattern more often than {name}"] = hits[name].low > 0
            checks[f"RL makes the exact answer likelier than {name}"] = exact[name].low > 0
    return checks


def report(folder: RunFolder, config: Any, claim: Claim, found: dict[str, Any]) -> None:
    """Print some answers of the first member, and write the result.

    Args:
      folder: where to.
      config: of the run.
      claim: the experiment's.
      found: by task, as `match_pattern` and `add_numbers` return it.
    """
    pattern = found["pattern"]
    for name, texts in pattern["texts"].items():
        print(f"  {name}: " + " | ".join(" ".join(text.split()) for text in texts))
    rows, ends = pattern["rows"], {task: ends_of(found[task]) for task in ("exact", "rivals")}
    others = [name for name in rows if name != "RL"]
    hits = {name: points(rows["RL"]["hits"], rows[name]["hits"]) for name in others}
    exact = {name: points(ends["exact"]["RL"][:, 0], ends["exact"][name][:, 0]) for name in others}
    before, after = (points(*ends["rivals"][name].T[:2]) for name in ("start", "RL"))
    tried = {
        f"{task}, {name}": dict(zip(config.learning_rates, map(float, values), strict=True))
        for task, row in found.items()
        for name, values in row["tried"].items()
    }
    taken = {f"{task}, {name}": rate for task, row in found.items() for name, rate in row["rates"].items()}
    write_result(
        folder,
        config,
        claim,
        headline={
            "answers that match the pattern, RL less the start, paired [points]": hits["start"],
            "probability of the exact answer, RL less the start, paired [points]": exact["start"],
            "probability of the answer worth more less its rival's, after RL [points]": after,
        },
        baselines={
            "answers that match the pattern at the start [%]": percent(rows["start"]["hits"]),
            "probability of the exact answer at the start [%]": percent(ends["exact"]["start"][:, 0]),
            "probability of the answer worth more less its rival's, after SFT [points]": before,
        },
        checks=judge(hits, exact, before, after),
        tables={f"pattern {config.pattern}, held-out prompts": tabulate_pattern(pattern)}
        | {task: tabulate_sums(found[task]) for task in ends}
        | {"reward at the end on the tuning seeds, by learning rate": rates_table(tried, taken)},
        figures=["non_differentiable.png"],
    )


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


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("non_differentiable")
