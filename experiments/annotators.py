"""Flipped votes, alone or coordinated, and what each defence recovers of the gold reward's labels.

Claim (lecture 002, F19): annotators are biased, badly chosen or malicious, and their mistakes are easy to
miss. Of 20 annotators, who are noisy and may call a tie, 5 judge each of 1,000 pairs. The attacks:

- random: everybody reverses that share of their judgements;
- coordinated: that share of the annotators always prefers the worse answer, without noise;
- popular: that share judges by a reward that is independent of the gold one: half of its votes are wrong.

The defences: majority; Dawid and Skene's estimate, with ties as evidence (`classes=2`), as a third class, or
dropped; its log odds as weights of `soft_labels`; and log odds from a tenth of the pairs, whose gold label is
known (test questions). One vote is none, at a fifth of the cost.

Measured (`python experiments/annotators.py`: 8 seeds, 95% t intervals; accuracy [%] on the other pairs; half
a minute of CPU time):

                     honest        random 20%    40%           coordinated 40%  45%           popular 40%
    one vote         82.8 +- 0.7   69.4 +- 1.3   56.8 +- 1.7   52.7 +- 0.7      48.8 +- 0.5   69.8 +- 1.4
    majority         90.8 +- 0.9   81.5 +- 0.9   61.9 +- 1.9   55.0 +- 0.7      47.2 +- 0.9   78.1 +- 0.7
    Dawid-Skene      90.9 +- 1.0   80.6 +- 1.1   49.5 +- 2.3   93.0 +- 0.9       6.7 +- 0.7   87.6 +- 1.0
      tie a class    90.5 +- 1.0   80.9 +- 1.0   53.5 +- 3.5   93.6 +- 0.7       6.4 +- 0.7   83.5 +- 1.7
      ties dropped   90.9 +- 1.0   81.1 +- 1.4   57.3 +- 2.0   93.6 +- 0.8      39.1 +- 37.7  87.6 +- 1.2
    weights          90.8 +- 1.1   81.2 +- 1.3   52.0 +- 3.6   93.7 +- 0.8       6.4 +- 0.7   87.7 +- 1.0
    test questions   90.9 +- 1.0   79.9 +- 1.8   59.0 +- 1.7   93.4 +- 0.7      93.4 +- 0.7   87.2 +- 1.1

An estimate of who errs repairs what comes from some annotators, liars above all, whose votes it reverses. It
has nothing to find where all err alike, and then loses up to 12 points to the majority. At 45% the liars, who
are without noise, outvote the honest, who are not, and it believes them: only labels known from elsewhere
help. Ties matter less: against a popular clique drop them or take them as evidence, not as a class.

`poisoned_rewards.py` trains reward models on such labels, and searches for what they like best.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxrl_align.feedback import TIE, Annotator, Crowd, Votes, dawid_skene, log_odds, majority, soft_labels
from jaxrl_align.runtime import cli, plots, statistics
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.members import MembersConfig


@dataclass(frozen=True)
class Config(MembersConfig):
    """A crowd, what it is asked, and how much of it is malicious."""

    out: str = "runs/annotators"
    seeds: int = 8
    """Draws of the answers, the crowd's noise and who is asked; equal for all attacks."""
    pairs: int = 1000
    """Pairs of answers whose gold rewards are standard normal."""
    annotators: int = 20
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


def report(config: Config, results: list[list[dict]], folder: RunFolder) -> None:
    """Print a table for each attack, with paired intervals against the majority, and draw it.

    Args:
      config: of the run.
      results: of `measure`, [shares][seeds].
      folder: of the run.
    """
    for attack, defences in results[0][0].items():
        values = {
            name: np.array([[100 * found[attack][name] for found in row] for row in results])
            for name in defences
        }
        print(f"\n{attack}: accuracy of the labels [%] (- majority)")
        print(f"{'':24}" + "".join(f"{share:<28.0%}" for share in config.shares))
        for name, column in values.items():
            cells = (
                f"{statistics.mean_text(x)} ({statistics.mean_text(x - base, '+.1f')})"
                for x, base in zip(column, values["majority"], strict=True)
            )
            print(f"{name:24}" + "".join(f"{cell:28}" for cell in cells))
        curves = {name: (100 * np.array(config.shares), column) for name, column in values.items()}
        labels = ("malicious share [%]", "accuracy of the labels [%]")
        plots.save_curves(folder.path / f"{attack}.png", *labels, curves, title=attack, bars=True)


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
    folder.write_json("results.json", results)
    report(config, results, folder)
    print(f"\nfigures and results.json are in {folder.path}")


if __name__ == "__main__":
    cli.main(Config, main)
