"""Tables, verdict and figure of `rounds.py`."""

import os
from typing import Any, NamedTuple

import numpy as np
from panels import save_panels

from jaxrl_align.runtime import Claim, Interval, RunFolder, paired_interval, t_interval, write_result

GOLD = (0.0, 5.0)
"""What the gold reward can be."""


class Path(NamedTuple):
    """What an arm's policies were before the first round and after each, [rounds + 1, M] of M seeds."""

    steps: np.ndarray
    """[rounds + 1] of PPO taken so far."""
    gold: np.ndarray
    kl: np.ndarray
    """Nats from the fine-tuned policy."""
    fresh: np.ndarray
    """Accuracy on the policy's answers, of the reward model fitted next; nan after the last round."""
    stale: np.ndarray
    """Of the reward model that the policy was trained on; nan before the first."""

    def accuracy(self) -> tuple[np.ndarray, np.ndarray]:
        """Return steps [2 rounds] and accuracy [2 rounds, M]: fresh, then stale, round after round."""
        rows = np.stack([self.fresh[:-1], self.stale[1:]], 1)
        return np.stack([self.steps[:-1], self.steps[1:]], 1).ravel(), rows.reshape(-1, rows.shape[-1])

    def last(self) -> dict[str, Interval]:
        """Return the columns of the table; `refitted` compares two models on the same answers."""
        percent = lambda x: t_interval(100 * x, bounds=(0, 100))
        columns = {"gold": t_interval(self.gold[-1], bounds=GOLD)}
        columns |= {"KL [nats]": t_interval(self.kl[-1], bounds=(0, np.inf))}
        columns |= {"first [%]": percent(self.fresh[0]), "last [%]": percent(self.stale[-1])}
        fresh, stale = (100 * x[1:-1] for x in (self.fresh, self.stale))
        if not len(fresh):
            return columns
        return columns | {
            "refitted [points]": paired_interval(fresh.mean(0), stale.mean(0), bounds=(-100, 100))
        }


def gold_less(path: Path, other: Path) -> Interval:
    """Return the gold reward at the end of one arm less another's, paired by seed."""
    return paired_interval(path.gold[-1], other.gold[-1], bounds=(-GOLD[1], GOLD[1]))


def compare(arms: dict[str, Path]) -> dict[str, Interval]:
    """Return the numbers that decide at one coefficient.

    They are the "fall" of accuracy in one round [points], the "gain" of several rounds over it, what
    "refitted" adds [points], and what the policy's "own answers" add to the first policy's, where that arm
    ran: the last one.

    Args:
      arms: one round, several, others.
    """
    one, many, *others = arms.values()
    found = {
        "fall": paired_interval(100 * one.stale[-1], 100 * one.fresh[0], bounds=(-100, 100)),
        "gain": gold_less(many, one),
    }
    if "refitted [points]" in many.last():
        found["refitted"] = many.last()["refitted [points]"]
    return found | ({"own answers": gold_less(many, others[-1])} if others else {})


def judge(decided: dict[float, dict[str, Interval]]) -> dict[str, bool]:
    """Return which parts of the claim hold, at each coefficient of the KL penalty."""
    parts = {
        "fall": "a reward model that is fitted once orders fewer pairs rightly where the policy goes",
        "gain": "several rounds earn more gold reward than one",
        "refitted": "a model that is fitted anew orders the policy's answers better than the one before",
        "own answers": "the policy's own answers are worth more than the first policy's",
    }
    return {
        f"{text}, coefficient {coef:g}": (row[key].high < 0 if key == "fall" else row[key].low > 0)
        for key, text in parts.items()
        for coef, row in decided.items()
        if key in row
    }


def report(
    folder: RunFolder, config: Any, claim: Claim, found: dict[float, dict[str, Path]], tried: Any
) -> None:
    """Write the result, and what each round came to.

    Args:
      folder: where to.
      config: of the run.
      claim: the experiment's.
      found: by coefficient of the KL penalty and arm: one round, several, others.
      tried: the table of the rates tried.
    """
    values: dict[str, Any] = {
        f"{coef:g}": {name: path._asdict() | {"accuracy": path.accuracy()[1]} for name, path in arms.items()}
        for coef, arms in found.items()
    }
    folder.write_json("values.json", values)
    tables, ones = {}, {coef: next(iter(arms.values())) for coef, arms in found.items()}
    for coef, arms in found.items():
        tables[f"KL coefficient {coef:g}: at the end; accuracy of reward models"] = {
            name: path.last() | ({"gold, less 1 round": gold_less(path, ones[coef])} if i else {})
            for i, (name, path) in enumerate(arms.items())
        }
    decided = {coef: compare(arms) for coef, arms in found.items()}
    tables["what decides, paired by seed"] = {
        f"KL coefficient {coef:g}": row for coef, row in decided.items()
    }
    tables["gold reward on the tuning seeds, by learning rate"] = tried
    start = next(iter(ones.values())).gold[0]
    write_result(
        folder,
        config,
        claim,
        headline={
            f"gold reward of {config.rounds} rounds less one's, KL coefficient {coef:g}, paired": row["gain"]
            for coef, row in list(decided.items())[:3]
        },
        baselines={"gold reward of the fine-tuned policy": t_interval(start, bounds=GOLD)}
        | {
            f"gold reward of one round, KL coefficient {coef:g}": path.last()["gold"]
            for coef, path in ones.items()
        },
        checks=judge(decided),
        tables=tables,
        figures=["rounds.png"],
    )


def draw(path: str | os.PathLike, found: dict[float, dict[str, Path]]) -> None:
    """Draw gold reward, KL and accuracy by steps of PPO, a row for each coefficient beta of the KL penalty.

    The accuracy is that of the newest reward model on the policy's answers, before and after it is refitted.
    """
    panels: dict[str, Any] = {}
    for coef, arms in found.items():
        panels[f"gold reward, beta = {coef:g}"] = {k: (x.steps, x.gold) for k, x in arms.items()}
        panels[f"KL from the start [nats], beta = {coef:g}"] = {k: (x.steps, x.kl) for k, x in arms.items()}
        panels[f"reward model's accuracy, beta = {coef:g}"] = {k: x.accuracy() for k, x in arms.items()}
    seeds = next(iter(next(iter(found.values())).values())).gold.shape[1]
    title = f"One round and several, of equal comparisons and steps; {seeds} seeds, 95% intervals"
    save_panels(path, "steps of PPO", panels, title=title, columns=3)


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("rounds")
