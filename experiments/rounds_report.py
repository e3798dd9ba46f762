"""Tables and figure of `rounds.py`."""

import os
from typing import Any, NamedTuple

import numpy as np
from panels import save_panels

from jaxrl_align.runtime.statistics import mean_text


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

    def last(self) -> dict[str, np.ndarray]:
        """Return the columns of the table, [M] each; `refitted` compares two models on the same answers."""
        between = slice(1, -1)
        refitted = (self.fresh - self.stale)[between]
        columns = {"gold": self.gold[-1], "KL [nats]": self.kl[-1]}
        columns |= {"first [%]": 100 * self.fresh[0], "last [%]": 100 * self.stale[-1]}
        return columns | ({"refitted": 100 * refitted.mean(0)} if len(refitted) else {})


def report(found: dict[float, dict[str, Path]]) -> dict[str, Any]:
    """Print each arm's end, and the gold reward less that of one round; return all of it.

    The accuracy is that of the first reward model on the first policy's answers and of the last one on the
    last policy's; `refitted` is what fitting the model anew adds on a policy's own answers, in the mean.

    Args:
      found: by coefficient of the KL penalty and arm, the arm of one round first.
    """
    results: dict[str, Any] = {}
    for coef, arms in found.items():
        print(f"\nKL coefficient {coef:g}: at the end; accuracy of reward models")
        one = next(iter(arms.values()))
        print(
            f"  {'':34}{'gold':16}{'gold - 1 round':18}"
            + "".join(f"{name:16}" for name in ("KL [nats]", "first [%]", "last [%]", "refitted"))
        )
        results[str(coef)] = {}
        for name, path in arms.items():
            gold, *rest = path.last().values()
            cells = f"{mean_text(gold, '.2f'):16}{mean_text(gold - one.gold[-1], '+.2f'):18}"
            print(f"  {name:34}{cells}" + "".join(f"{mean_text(x, '.1f'):16}" for x in rest))
            steps, accuracy = path.accuracy()
            results[str(coef)][name] = path.last() | {
                "steps": path.steps,
                "gold by round": path.gold,
                "KL by round": path.kl,
                "accuracy": {"steps": steps, "fresh, stale, ...": accuracy},
            }
    return results


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
