"""The six kinds of feedback at equal cost, and whether comparisons beat ratings.

Ratings are noisy and every rater has a scale of their own, so ask for comparisons, say the lectures (001 and
003, F4; the kinds: 002, F8). A crowd of 20 judges, by `PlainProse`, answers of SFT policies as in `rlhf.py`
(width 64, one layer). Raters' offsets deviate by 2 points of 10, their scales by a factor of 1.6. 512 units
buy 512 comparisons, corrections (the best of 4 answers for the first one), rankings of 4, ratings, labels or
remarks; at "K - 1" and "K log2 K" a ranking costs so many comparisons; "two for one" are 1,024 ratings, as
many answers as comparisons read. A reward model learns from each, and orders all pairs of 8 answers to each
of 64 held-out prompts. The scorer of remarks is fitted on SST-2, which `$JAXRL_ALIGN_DATA` or a download has.
Noise is a temperature, in units of the gold reward, whose deviation is 1.

What costs raw ratings their place is the scales, which `feedback.standardise_ratings` takes away. One rate a
kind is chosen on 2 other members, in the mean over the noises for comparisons and ratings: chosen for each
noise apart, it was left to chance.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from answers import (
    Answers,
    AnswersConfig,
    Pool,
    choose_rates,
    fit_and_score,
    make_pool,
    pair_accuracy,
    repeat_rows,
)
from feedback_types_report import CURVES, Job, report

from jaxrl_align.align.reward_learner import (
    comparison_objective,
    label_objective,
    ranking_objective,
    rating_objective,
)
from jaxrl_align.data import load_sst2
from jaxrl_align.feedback import (
    Annotator,
    Comment,
    Crowd,
    Rating,
    as_rows,
    fit_sentiment,
    rate_comments,
    standardise_ratings,
)
from jaxrl_align.runtime import Claim, RunFolder, cli
from jaxrl_align.runtime.mesh import use_cpu_devices
from jaxrl_align.types import Comparisons, PaddedTokens, Rankings, Ratings

CLAIM = Claim(
    "A reward model learns from each of the six kinds of feedback; comparisons teach more than ratings by "
    "people of whom each has a scale of their own, and that is the scales' doing.",
    rows=("F4", "F5", "F6", "F8"),
    minutes=4,
)
OBJECTIVES = {
    ("comparison", "correction"): comparison_objective,
    ("ranking", "ranking, K - 1", "ranking, K log2 K"): ranking_objective,
    ("rating", "rating, standardised", "the same, two for one", "text"): rating_objective,
    ("label",): label_objective,
}
"""The kinds of each objective, which train in one program."""
KINDS = [kind for kinds in OBJECTIVES for kind in kinds]
TUNED = {
    "ranking, K - 1": "ranking",
    "ranking, K log2 K": "ranking",
    "the same, two for one": "rating, standardised",
}
"""Kind -> the kind whose learning rate it takes, where it has none of its own."""


@dataclass(frozen=True)
class Config(AnswersConfig):
    """A crowd that is asked for all kinds of feedback."""

    out: str = "runs/feedback_types"
    annotators: int = 20
    """How many people judge."""
    noise: float = 0.5
    """Of the crowd that gives all six kinds: temperature of a choice, in units of the gold reward."""
    noises: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)
    """Of the crowds that compare and rate."""
    points: float = 2.0
    """Points of a rating for a unit of the gold reward, the annotators' median."""
    offset_deviation: float = 2.0
    """Of the annotators' offsets, in points."""
    scale_deviation: float = 0.5
    """Of the logarithm of the annotators' scales."""

    def __post_init__(self) -> None:
        """Refuse what would fail within the run."""
        super().__post_init__()
        self.require(annotators=1, noise=0, noises=0, offset_deviation=0, scale_deviation=0)


def make_crowd(config: Config, gold: np.ndarray, member: int, job: Job) -> Crowd:
    """Return a member's crowd, who rate an answer of average gold reward 5.5 on average.

    Crowds of one member are alike but for the noise, and for the spread of offsets and scales.
    """
    rng = np.random.default_rng([config.seed, member, 50])
    offsets, scales = rng.normal(size=(2, config.annotators))
    scales = config.points * np.exp(job.spread * config.scale_deviation * scales)
    offsets = 5.5 - scales * gold.mean() + job.spread * config.offset_deviation * offsets
    traits = zip(offsets.tolist(), scales.tolist(), strict=True)
    annotators = [Annotator(noise=job.noise, offset=offset, scale=scale) for offset, scale in traits]
    return Crowd(annotators, np.random.default_rng([config.seed, member, 51]))


def take(texts: PaddedTokens, *index: np.ndarray) -> PaddedTokens:
    """Return the rows of a member's texts at an index."""
    return jax.tree.map(lambda x: np.asarray(x)[index], texts)


def ask(config: Config, answers: Answers, member: int, scorer: Callable[[str], float], job: Job) -> Any:
    """Return the rows that a member's crowd gives for the budget of `config.prompts` units.

    Args:
      config: of the run.
      answers: of all members.
      member: whose.
      scorer: of remarks.
      job: its `kind`, noise and spread are read.

    Returns:
      `Comparisons`, `Rankings` or `Ratings`, of equal shape for all kinds of one type.
    """
    texts, gold = jax.tree.map(lambda x: x[member], answers[:2]), answers.gold[member]
    crowd, count, size = make_crowd(config, gold, member, job), *gold.shape
    every = np.arange(count)
    if job.kind in ("comparison", "correction"):
        if job.kind == "comparison":
            votes = crowd.compare(gold[:, :2], shuffle=True)
            item, chosen, rejected = votes.item, votes.label, 1 - votes.label
        else:
            votes = crowd.correct(gold, shuffle=True)
            corrected = votes.label > 0
            item, chosen = votes.item[corrected], votes.label[corrected]
            rejected = np.zeros_like(chosen)
        pairs = (take(texts[1], item, side) for side in (chosen, rejected))
        return repeat_rows(Comparisons(take(texts[0], item), *pairs), count)
    if job.kind.startswith("ranking"):
        cost = {"ranking": 1.0, "ranking, K - 1": size - 1.0}.get(job.kind, size * np.log2(size))
        asked = every[: max(1, int(count / cost))]
        places = crowd.rank(gold[asked], shuffle=True).value
        ranked = Rankings(take(texts[0], asked), take(texts[1], asked), places, np.ones(places.shape))
        return repeat_rows(ranked, count)
    item = np.tile(every, 2 if job.kind == "the same, two for one" else 1)
    which = np.arange(len(item)) // count
    value = rate(crowd, gold[item, which], scorer, job.kind)
    return repeat_rows(Ratings(take(texts[0], item), take(texts[1], item, which), value), 2 * count)


def rate(crowd: Crowd, gold: np.ndarray, scorer: Callable[[str], float], kind: str) -> np.ndarray:
    """Return what a crowd says of single answers [V]: labels, or ratings of mean 0 and deviation 1.

    Raw ratings too, but all together: only an annotator's own offset and scale remain in them.
    """
    names = [str(i) for i in range(len(gold))]
    if kind == "label":
        return crowd.label(gold, 5.5).label.astype(float)
    if kind == "text":
        rows = rate_comments(as_rows(Comment, crowd.comment(gold), names, names), scorer)
    else:
        rows = as_rows(Rating, crowd.rate(gold), names, names)
    if kind == "rating":
        rows = [row._replace(annotator=None) for row in rows]
    return np.array([row.score for row in standardise_ratings(rows)], np.float32)


def measure(
    pool: Pool, config: Config, folder: RunFolder, members: Sequence[int], jobs: Sequence[Job], scorer: Any
) -> dict[Job, np.ndarray]:
    """Train every job on every member, one program for each objective; return held-out accuracy [M]."""
    found = {}
    for kinds, objective in OBJECTIVES.items():
        here = [job for job in jobs if job.kind in kinds]
        if not here:
            continue
        data = [[ask(config, pool.train, member, scorer, job) for member in members] for job in here]
        sub = folder.sub(kinds[0])
        scores = fit_and_score(pool, config, sub, members, data, objective, [job.rate for job in here])
        accuracy = pair_accuracy(scores, pool.test.gold[list(members)])
        found |= dict(zip(here, accuracy, strict=True))
    return found


def list_jobs(config: Config) -> list[Job]:
    """Return the settings that are reported, without their learning rates."""
    six = [Job(kind, config.noise, 1.0) for kind in KINDS]
    by_noise = [Job(kind, noise, spread) for kind, spread in CURVES.values() for noise in config.noises]
    return list(dict.fromkeys(six + by_noise))


def tune(pool: Pool, config: Config, folder: RunFolder, scorer: Any) -> tuple[list[Job], Any]:
    """Return the reported settings with the rates that do best on other members, and a table of all rates.

    One rate a kind, for all noises: chosen apart for each noise, on a few members, it is left to chance.
    Ratings on one scale take the rate of standardised ones, others that of `TUNED`.
    """
    members = range(config.seeds, config.seeds + config.tuning_seeds)
    teacher = lambda job: TUNED.get(job.kind, job.kind) if job.spread else "rating, standardised"
    settings = list(dict.fromkeys(Job(teacher(job), job.noise) for job in list_jobs(config)))
    rates = config.learning_rates
    jobs = [job._replace(rate=rate) for job in settings for rate in rates]
    found = measure(pool, config, folder.sub("tuning"), members, jobs, scorer)
    by_kind: dict[str, list[np.ndarray]] = {}
    for job in settings:
        by_kind.setdefault(job.kind, []).append(np.array([found[job._replace(rate=rate)] for rate in rates]))
    best, tried = choose_rates({kind: np.concatenate(x, axis=-1) for kind, x in by_kind.items()}, rates)
    return [job._replace(rate=best[teacher(job)]) for job in list_jobs(config)], tried


def main(config: Config) -> None:
    """Write answers, choose rates, ask for all kinds of feedback, train, report."""
    use_cpu_devices()
    folder = config.open_folder()
    scorer = fit_sentiment(*load_sst2().train)
    pool = make_pool(config, folder)
    jobs, tried = tune(pool, config, folder, scorer)
    found = measure(pool, config, folder.sub("reported"), range(config.seeds), jobs, scorer)
    lengths = pool.test.lengths()[: config.seeds]
    short = pair_accuracy(-lengths, pool.test.gold[: config.seeds])
    report(folder, config, CLAIM, found, short, tried)


if __name__ == "__main__":
    cli.main(Config, main)
