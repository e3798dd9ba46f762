"""Best-of-n, tables, verdict and figures of `poisoned_rewards.py`."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_align.runtime import (
    Claim,
    Interval,
    RunFolder,
    paired_interval,
    plots,
    t_interval,
    write_result,
)

CLIQUES = ("coordinated 40%", "popular 40%", "popular 60%")
NEAR = 0.25
"""Deviations of the gold reward that a defence may lose to an honest crowd."""


class Judged(NamedTuple):
    """Answers [M, N, G] by both rewards, each in deviations from the mean of the member's answers."""

    gold: np.ndarray
    popularity: np.ndarray


def best_of(scores: np.ndarray, reward: np.ndarray, n: int) -> np.ndarray:
    """Return the mean reward [...] of the best-scored of n answers, over prompts and groups of n.

    Args:
      scores: [..., N, G] of the reward model.
      reward: [..., N, G] of the same answers.
      n: divides G.
    """
    groups = lambda x: x.reshape(*x.shape[:-1], -1, n)
    best = groups(scores).argmax(-1, keepdims=True)
    chosen = np.take_along_axis(np.broadcast_to(groups(reward), groups(scores).shape), best, -1)
    return chosen.mean((-3, -2, -1))


Found = dict[str, dict[str, dict[str, np.ndarray]]]
"""By attack, way of labelling and measure; accuracies [M], rewards of the chosen [n, M]."""


def gains(found: Found, attack: str, way: str, reward: str = "gold") -> np.ndarray:
    """Return what the best of the most answers has more of a reward than the mean answer, [M]."""
    values = found[attack][way][reward]
    return values[-1] - values[0]


def judge(found: Found) -> dict[str, bool]:
    """Return which parts of the claim hold."""
    honest, soft, known = gains(found, "honest", "majority"), "Dawid-Skene, soft", "test questions, soft"
    less = lambda attack, way: paired_interval(gains(found, attack, way), honest)
    beside = lambda attack: paired_interval(gains(found, attack, soft), gains(found, attack, "majority"))
    popular = paired_interval(
        gains(found, "popular 60%", soft, "popularity"), gains(found, "honest", soft, "popularity")
    )
    return {
        "a popular clique of 60% costs the majority's reward model gold reward": (
            less("popular 60%", "majority").high < 0
        ),
        "where the clique is believed, by the estimate, the chosen answers are worse than the mean one": (
            t_interval(gains(found, "popular 60%", soft)).high < 0
        ),
        "and more popular than with an honest crowd": popular.low > 0,
        "against 40% of liars the estimate chooses better answers than the majority": (
            beside("coordinated 40%").low > 0
        ),
        "so it does against a popular clique of 40%": beside("popular 40%").low > 0,
        f"labels known from elsewhere lose less than {NEAR:g} deviations of it, by any clique": all(
            less(attack, known).low > -NEAR for attack in CLIQUES
        ),
        "nothing repairs votes that all reverse alike: every way loses gold reward": all(
            less("random 40%", way).high < 0 for way in found["random 40%"]
        ),
    }


def tabulate(found: Found) -> dict[str, dict[str, Interval]]:
    """Return every attack and way of labelling: accuracies [%] and gains [deviations]."""
    honest = gains(found, "honest", "majority")
    percent = lambda x: t_interval(100 * x, bounds=(0, 100))
    return {
        f"{attack}, {way}": {
            "labels [%]": percent(x["labels"]),
            "reward model [%]": percent(x["reward model"]),
            "gold": t_interval(gains(found, attack, way)),
            "popularity": t_interval(gains(found, attack, way, "popularity")),
            "gold less an honest crowd's majority": paired_interval(gains(found, attack, way), honest),
        }
        for attack, ways in found.items()
        for way, x in ways.items()
    }


def draw(found: Found, sizes: Sequence[int], folder: RunFolder) -> list[str]:
    """Draw best-of-n, a file for each attack; return their names, the largest clique's first."""
    names = {attack: f"{attack.replace(' ', '_').rstrip('%')}.png" for attack in reversed(found)}
    for attack, name in names.items():
        ways = found[attack]
        drawn = {
            f"{reward}, {way}": (np.array(sizes), ways[way][reward])
            for way in ("majority", "Dawid-Skene, soft", "test questions, soft")
            for reward in ("gold", "popularity")
        }
        labels = ("n of best-of-n", "reward of the chosen answers [deviations]")
        dashed = [line for line in drawn if line.startswith("popularity")]
        settings = {"title": attack, "dashed": dashed, "xscale": "log", "xticks": sizes, "xticklabels": sizes}
        settings |= {"ylim": (-2.4, 1.6)}
        plots.save_curves(folder.path / name, *labels, drawn, bars=True, **settings)
    return list(names.values())


def describe_limits(test: Judged, n: int) -> dict[str, dict[str, Interval]]:
    """Return what the best of n by either reward itself has of both, and how they go together."""
    within = [
        np.corrcoef(*((x[m] - x[m].mean(-1, keepdims=True)).ravel() for x in test))[0, 1]
        for m in range(len(test.gold))
    ]
    table = {
        f"best of {n} by {name} itself": {
            which: t_interval(best_of(known, x, n)) for which, x in test._asdict().items()
        }
        for name, known in test._asdict().items()
    }
    return table | {"correlation within a prompt": {"gold": t_interval(within, bounds=(-1, 1))}}


def report(
    folder: RunFolder,
    config: Any,
    claim: Claim,
    found: Found,
    sizes: Sequence[int],
    test: Judged,
    tried: Any,
) -> None:
    """Draw best-of-n and write the result.

    Args:
      folder: of the run.
      config: of the run.
      claim: the experiment's.
      found: of every attack.
      sizes: the n of best-of-n.
      test: the held-out answers of the reported members.
      tried: the table of the rates tried.
    """
    table, what = tabulate(found), f"gold reward of the best of {sizes[-1]}"
    write_result(
        folder,
        config,
        claim,
        headline={
            f"{what}, popular clique of 60%, less an honest crowd's, majority, paired [deviations]": (
                table["popular 60%, majority"]["gold less an honest crowd's majority"]
            ),
        },
        baselines={f"{what}, honest crowd, majority [deviations]": table["honest, majority"]["gold"]},
        checks=judge(found),
        tables={
            f"accuracy, and the best of {sizes[-1]} less the mean answer [deviations]": table,
            "rewards [deviations]": describe_limits(test, sizes[-1]),
            f"accuracy on {config.tuning_seeds} tuning members [%], by learning rate": tried,
        },
        figures=draw(found, sizes, folder),
    )


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("poisoned_rewards")
