"""Tables, verdict and figure of `ladder.py`."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_align import runtime
from jaxrl_align.runtime import Interval, plots
from jaxrl_align.runtime.statistics import mean_interval

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


def count_costs(ladder: Any) -> dict[str, Cost]:
    """Return what each rung costs: labels, tokens that are read in training, tokens of a question."""
    config, task = ladder.config, ladder.task
    half, asked = config.labels // 2, task.count_tokens()
    first = config.labels - half
    costs = {"asked": Cost("none", 0, 0, asked)}
    examples = task.draw(config.seed, config.labels, 0).labelled

    def add(rung: str, labels: str, forward: int, backward: int, question: float, below: str) -> None:
        costs[rung] = Cost(labels, forward, backward, question, below)

    for before, count in zip((None, *config.shown), config.shown, strict=False):
        below = "asked" if before is None else f"{before} examples in the context"
        tokens = task.count_tokens(examples[-count:])
        add(f"{count} examples in the context", f"{count} right answers", 0, 0, tokens, below)

    def tuning(rows: int) -> int:
        return ladder.tuning_steps(rows) * config.batch * (config.length + 1)

    shown = f"{max(config.shown)} examples in the context"
    for rows, below in ((first, shown), (config.labels, f"tuned on {first}")):
        add(f"tuned on {rows}", f"{rows} right answers", tuning(rows), tuning(rows), asked, below)
    pairs = ladder.reward_steps() * config.batch * (config.length + 2)
    prompts = config.steps * config.batch * config.length
    # Sampling, the reference and the update read a prompt once, the reward model with each of its answers.
    answers = config.steps * config.batch * config.group
    forward, backward = tuning(first) + 3 * prompts, tuning(first) + prompts
    start = f"tuned on {first}"
    labels = f"{first} right answers, {answers} judgements"
    add(f"{start}, then RL, judged", labels, forward, backward, asked, start)
    labels = f"{first} right answers, {config.pairs} comparisons"
    forward += pairs + answers * (config.length + 1)
    add(f"{start}, then RLHF", labels, forward, backward + pairs, asked, start)
    return costs


def gain_over(found: Mapping[str, Any], rung: str, other: str) -> Interval:
    """Return how many points more right answers one rung gives than another, paired by draw."""
    right = [100.0 * np.array(found[name]["right"]) for name in (rung, other)]
    return runtime.paired_interval(*right, bounds=(-100, 100))


def judge_rungs(gains: Mapping[str, Interval], tuned: Interval, costs: Mapping[str, Cost]) -> dict[str, bool]:
    """Return which parts of the claim hold.

    Args:
      gains: of each rung over the one below it, points.
      tuned: of the first tuned rung over the untuned model, points.
      costs: of each rung.
    """
    shown = [rung for rung in costs if rung.endswith("in the context")]
    aligned = [rung for rung in costs if ", then " in rung]
    start = costs[aligned[0]].below
    return {
        "examples in the context teach the task without an update": gains[shown[0]].low > 0,
        "more of them teach it better": all(gains[rung].low > 0 for rung in shown[1:]),
        "tuning on right answers teaches it": tuned.low > 0,
        "a question then costs fewer tokens than with these answers in the context": (
            costs[start].question < costs[shown[-1]].question
        ),
    } | {f"{rung}, it is right more often than {start}": gains[rung].low > 0 for rung in aligned}


def tabulate(
    found: Mapping[str, Any], costs: Mapping[str, Cost], weights: int, gains: Mapping[str, Interval]
) -> dict[str, Any]:
    """Return the answers, the gains and the costs of every rung."""
    share = lambda x: runtime.t_interval(100.0 * np.array(x), bounds=(0, 100))
    answers = {rung: {name: share(rows[name]) for name in SHARES} for rung, rows in found.items()}
    priced = {
        rung: {
            "people write": cost.labels,
            "training [1e12 FLOP]": cost.flops(weights) / 1e12,
            "training [s]": runtime.t_interval(found[rung]["seconds"], bounds=(0, np.inf)),
            "tokens a question": float(cost.question),
        }
        for rung, cost in costs.items()
    }
    over = {rung: {"points": gain, "over": costs[rung].below} for rung, gain in gains.items()}
    return {
        "answers to held-out questions [%]": answers,
        "right answers gained, paired by draw": over,
        "costs": priced,
    }


def report(
    config: Any,
    folder: runtime.RunFolder,
    claim: runtime.Claim,
    draws: Sequence[Mapping[str, Any]],
    costs: Mapping[str, Cost],
    weights: int,
) -> None:
    """Write the result, 95% t intervals over the draws, and ladder.png.

    Args:
      config: of the run.
      folder: of the run.
      claim: what was to be shown.
      draws: rung -> shares and seconds, of each draw.
      costs: of each rung.
      weights: of the model's layers, for the operations.
    """
    found = {
        rung: {share: [draw[rung][share] for draw in draws] for share in (*SHARES, "seconds")}
        for rung in costs
    }
    below = {rung: cost.below for rung, cost in costs.items() if cost.below is not None}
    gains = {rung: gain_over(found, rung, other) for rung, other in below.items()}
    aligned = [rung for rung in costs if ", then " in rung]
    start = below[aligned[0]]
    _draw(folder, found)
    share = lambda rung: runtime.t_interval(100.0 * np.array(found[rung]["right"]), bounds=(0, 100))
    runtime.write_result(
        folder,
        config,
        claim,
        headline={f"right, {rung}, less {start}, paired [points]": gains[rung] for rung in aligned},
        baselines={f"right, {rung} [%]": share(rung) for rung in ("asked", below[start], start)},
        checks=judge_rungs(gains, gain_over(found, start, "asked"), costs),
        tables=tabulate(found, costs, weights, gains),
        figures=["ladder.png"],
        seeds=config.draws,
    )


def _draw(folder: runtime.RunFolder, found: Mapping[str, Any]) -> None:
    """Write ladder.png: right answers and answers in the format, a pair of bars for each rung."""
    fig, (ax,) = plots.panels(1, 1, size=(7.0, 3.6))
    places = np.arange(len(found))
    for i, (share, label) in enumerate({"right": "right", "format": "in the format"}.items()):
        mean, half = mean_interval(100.0 * np.array([rows[share] for rows in found.values()]), axis=1)
        ends = np.abs(np.clip([mean - half, mean + half], 0.0, 100.0) - mean)
        ax.barh(places + 0.4 * i - 0.2, mean, 0.38, xerr=ends, label=label, capsize=3, **plots.bar_look(i))
    ax.set_yticks(places, list(found), fontsize=9)
    ax.invert_yaxis()
    ax.set_xlim(0.0, 100.0)
    ax.set_xlabel("answers to held-out questions [%]; 95%", fontsize=10)
    fig.legend(loc="outside right upper", fontsize=9, frameon=False)
    plots.save_figure(fig, folder.path / "ladder.png")


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("ladder")
