"""Flipped votes, alone or coordinated, and what each defence recovers of the gold reward's labels.

Annotators are biased, badly chosen or malicious, and their mistakes are easy to miss (lecture 002, F19). Of
20 annotators, who are noisy and may call a tie, 5 judge each of 1,000 pairs. The attacks:

- random: everybody reverses that share of their judgements;
- coordinated: that share of the annotators always prefers the worse answer, without noise;
- popular: that share judges by a reward that is independent of the gold one: half of its votes are wrong.

The defences: majority; Dawid and Skene's estimate, with ties as evidence (`classes=2`), as a third class, or
dropped; its log odds as weights of `soft_labels`; and log odds from a tenth of the pairs, whose gold label is
known (test questions). One vote is none, at a fifth of the cost. Accuracy is on the other pairs.

An estimate of who errs repairs what comes from some annotators, liars above all, whose votes it reverses. It
has nothing to find where all err alike. Liars without noise, who outvote honest people who are not, are
believed: there only labels known from elsewhere help.

`poisoned_rewards.py` trains reward models on such labels, and searches for what they like best.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxrl_align.feedback import TIE, Annotator, Crowd, Votes, dawid_skene, log_odds, majority, soft_labels
from jaxrl_align.runtime import (
    Claim,
    Interval,
    RunFolder,
    cli,
    paired_interval,
    plots,
    t_interval,
    write_result,
)
from jaxrl_align.runtime.members import MembersConfig

CLAIM = Claim(
    "Annotators err, follow a goal of their own or lie: an estimate of who errs repairs what some of them "
    "do, not what all do alike, and believes liars who outvote the honest; labels known from elsewhere then "
    "help.",
    rows=("F19",),
    minutes=1,
)
MANY = 0.4
"""Largest share of an attack that an estimate of who errs is to repair."""


@dataclass(frozen=True)
class Config(MembersConfig):
    """A crowd, what it is asked, and how much of it is malicious."""

    out: str = "runs/annotators"
    seeds: int = 8
    """Draws of the answers, the crowd's noise and who is asked; equal for all attacks."""
    pairs: int = 1000
    """Pairs of answers whose gold rewards are standard normal."""
    annotators: int = 20
    """How many people judge."""
    votes: int = 5
    """Annotators asked for each pair."""
    noise: float = 0.5
    """Temperature of a choice, in standard deviations of the gold reward."""
    tie_width: float = 0.25
    """Perceived gap below which the answers are called equal, likewise."""
    shares: tuple[float, ...] = (0.0, 0.1, 0.2, 0.3, 0.4, 0.45)
    """Of judgements reversed, or of annotators in the clique."""
    known: float = 0.1
    """Share of the pairs whose gold label the test questions use."""

    def __post_init__(self) -> None:
        """Refuse what would fail within the run."""
        self.require(seeds=2, pairs=10, annotators=1, votes=1, shares=0)


def make_crowds(config: Config, share: float) -> dict[str, list[Annotator]]:
    """Return the annotators under each attack, by its name."""
    clique = round(share * config.annotators)
    honest = {"noise": config.noise, "tie_width": config.tie_width}

    def mix(**malicious: Any) -> list[Annotator]:
        bad = [Annotator(**honest | malicious)] * clique
        return bad + [Annotator(**honest)] * (config.annotators - clique)

    return {
        "random": [Annotator(**honest, malice=share)] * config.annotators,
        "coordinated": mix(malice=1.0, noise=0.0),
        "popular": mix(target="popularity"),
    }


def drop_ties(votes: Votes, pairs: int) -> np.ndarray:
    """Return Dawid and Skene's probability [N] that the first is better, from the votes that are no ties."""
    decided = votes.label != TIE
    kept = Votes(*(x[decided] for x in votes))
    probs = np.full(pairs, 0.5)
    found, item = np.unique(kept.item, return_inverse=True)
    probs[found] = dawid_skene(kept._replace(item=item)).probs[:, 0]
    return probs


def weigh_by_known(votes: Votes, truth: np.ndarray, known: np.ndarray, annotators: int) -> np.ndarray:
    """Return log odds [A] that an annotator's choices are right, from the pairs whose labels are known."""
    asked = known[votes.item] & (votes.label != TIE)
    right = votes.label == truth[votes.item]
    hits, misses = (np.bincount(votes.annotator[asked & x], minlength=annotators) for x in (right, ~right))
    return np.log((hits + 1) / (misses + 1))


def make_defences(config: Config, truth: np.ndarray) -> dict[str, Callable[[Votes], np.ndarray]]:
    """Return each defence, votes -> probability [N] that the first answer is better.

    Args:
      config: of the run.
      truth: [N] the better answer, 0 or 1; read for the first pairs alone, the test questions.
    """
    known = np.arange(config.pairs) < round(config.known * config.pairs)

    def test_questions(votes: Votes) -> np.ndarray:
        weights = weigh_by_known(votes, truth, known, config.annotators)
        return soft_labels(votes, weights, classes=2)[:, 0]

    def tie_as_class(votes: Votes) -> np.ndarray:
        probs = dawid_skene(votes, classes=3).probs
        return probs[:, 0] + probs[:, TIE] / 2

    first = lambda votes: Votes(*(x[:: config.votes] for x in votes))
    return {
        "one vote": lambda votes: majority(first(votes), classes=2)[:, 0],
        "majority": lambda votes: majority(votes, classes=2)[:, 0],
        "Dawid-Skene": lambda votes: dawid_skene(votes, classes=2).probs[:, 0],
        "the same, tie a class": tie_as_class,
        "the same, ties dropped": lambda votes: drop_ties(votes, config.pairs),
        "weights": lambda votes: soft_labels(votes, log_odds(dawid_skene(votes, classes=2)), classes=2)[:, 0],
        "test questions": test_questions,
    }


def accuracy(first: np.ndarray, truth: np.ndarray) -> float:
    """Return the share of pairs whose likelier answer is the better one; an even chance is half right."""
    return float(np.mean(np.where(first == 0.5, 0.5, (first < 0.5) == truth)))


def measure(config: Config, member: int, share: float) -> dict[str, dict[str, float]]:
    """Return by attack and defence the accuracy of the labels on the pairs that are no test questions."""
    rng = np.random.default_rng([config.seed, member])
    gold, popularity = rng.normal(size=(2, config.pairs, 2))
    truth = (gold[:, 1] > gold[:, 0]).astype(int)
    asked = slice(round(config.known * config.pairs), None)
    found: dict[str, dict[str, float]] = {}
    for attack, annotators in make_crowds(config, share).items():
        crowd = Crowd(annotators, np.random.default_rng([config.seed, member, 1]))
        votes = crowd.compare(gold, votes=config.votes, shuffle=True, others={"popularity": popularity})
        defences = make_defences(config, truth)
        found[attack] = {k: accuracy(d(votes)[asked], truth[asked]) for k, d in defences.items()}
    return found


Values = dict[str, dict[str, dict[float, np.ndarray]]]
"""Accuracy [%] of the labels, [seeds], by attack, defence and share."""


def gather(config: Config, results: list[list[dict]]) -> Values:
    """Return the accuracies [%] of `measure`'s results, [shares][seeds]."""
    return {
        attack: {
            defence: {
                share: np.array([100 * found[attack][defence] for found in row])
                for share, row in zip(config.shares, results, strict=True)
            }
            for defence in defences
        }
        for attack, defences in results[0][0].items()
    }


def over_majority(values: Values, attack: str, defence: str, share: float) -> Interval:
    """Return how many more labels [points] a defence has right than the majority, paired by seed."""
    row = values[attack]
    return paired_interval(row[defence][share], row["majority"][share], bounds=(-100, 100))


def judge(values: Values, many: float, most: float) -> dict[str, bool]:
    """Return which parts of the claim hold, at a large share of an attack and at the largest."""
    estimate, known = "Dawid-Skene", "test questions"
    gain = lambda *which: over_majority(values, *which)
    believed = t_interval(values["coordinated"][estimate][most], bounds=(0, 100))
    alike = [gain("random", name, many) for name in values["random"] if name != "majority"]
    return {
        f"{many:.0%} of liars: the estimate has more labels right than the majority": (
            gain("coordinated", estimate, many).low > 0
        ),
        f"{many:.0%} who judge by popularity: so it does": gain("popular", estimate, many).low > 0,
        f"{many:.0%} of all votes reversed: it has fewer right": gain("random", estimate, many).high < 0,
        "and no defence more": not any(x.low > 0 for x in alike),
        f"{most:.0%} of liars: it believes them, fewer than half are right": believed.high < 50,
        "labels known from elsewhere have more right than the majority there": (
            gain("coordinated", known, most).low > 0
        ),
    }


def report(config: Config, values: Values, folder: RunFolder) -> None:
    """Draw every attack and write the result."""
    many = max((x for x in config.shares if x <= MANY), default=min(config.shares))
    most, tables = max(config.shares), {}
    for attack, defences in values.items():
        tables[f"{attack}: labels right [%], by malicious share"] = {
            name: {f"{share:.0%}": t_interval(x, bounds=(0, 100)) for share, x in row.items()}
            for name, row in defences.items()
        }
        tables[f"{attack}: less the majority, paired [points]"] = {
            name: {f"{share:.0%}": over_majority(values, attack, name, share) for share in row}
            for name, row in defences.items()
            if name != "majority"
        }
        x = 100 * np.array(config.shares)
        curves = {name: (x, np.array(list(row.values()))) for name, row in defences.items()}
        labels = ("malicious share [%]", "accuracy of the labels [%]")
        plots.save_curves(
            folder.path / f"{attack}.png", *labels, curves, title=attack, bars=True, bounds=(0, 100)
        )
    coordinated = {
        share: over_majority(values, "coordinated", "Dawid-Skene", share) for share in (many, most)
    }
    write_result(
        folder,
        config,
        CLAIM,
        headline={
            f"labels right by Dawid-Skene less the majority, {share:.0%} of liars, paired [points]": gain
            for share, gain in coordinated.items()
        },
        baselines={
            f"labels right by the majority, {share:.0%} of liars [%]": t_interval(
                values["coordinated"]["majority"][share], bounds=(0, 100)
            )
            for share in (many, most)
        },
        checks=judge(values, many, most),
        tables=tables,
        figures=[f"{attack}.png" for attack in ("coordinated", "random", "popular")],
    )


def main(config: Config) -> None:
    """Ask every crowd, defend, report."""
    folder = config.open_folder()
    results = [
        [
            folder.once(f"{share:g}_{member}.json", measure, config, member, share)
            for member in range(config.seeds)
        ]
        for share in config.shares
    ]
    report(config, gather(config, results), folder)


if __name__ == "__main__":
    cli.main(Config, main)
