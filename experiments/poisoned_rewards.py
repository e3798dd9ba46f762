"""Reward models on a malicious crowd's labels, and best-of-n against them.

Annotators are biased, badly chosen or malicious, and who learns from retweets learns what is popular (Tay;
lecture 002, F17 and F19). 20 annotators, 5 asked for each of 512 pairs, judge answers of SFT policies as in
`rlhf.py` (width 64, one layer) by `PlainProse`; attacks and defences are those of `annotators.py`. A clique's
popularity is an answer's length in characters, which hardly goes with the gold reward. No policy is trained
on the reward model: it chooses the best of n = 1 to 32 answers that were written before, to each of 64
held-out prompts; gains are over the mean answer, in deviations.

A reward model that is right on more than half of the pairs can still choose answers that are worse than the
mean: the search finds its errors. Only labels known from elsewhere help against every clique, and nothing
does against errors that all make alike. One rate was chosen, on the majority of honest crowds of 2 other
members; noisier labels might gain from lower ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from annotators import Config as CrowdConfig
from annotators import accuracy, make_crowds, make_defences
from answers import Answers, AnswersConfig, Pool, choose_rates, fit_and_score, make_pool, pair_accuracy
from poisoned_rewards_report import Judged, best_of, report

from jaxrl_align.align.reward_learner import comparison_objective
from jaxrl_align.feedback import Crowd, Votes
from jaxrl_align.runtime import Claim, RunFolder, cli
from jaxrl_align.runtime.mesh import use_cpu_devices
from jaxrl_align.types import Comparisons

CLAIM = Claim(
    "A reward model learns what its annotators say: a clique's labels turn the search for the best answer "
    "from what is wanted to what is popular; an estimate of who errs, or labels known from elsewhere, "
    "prevents it.",
    rows=("F17", "F19"),
    minutes=3,
)
ATTACKS = {
    "honest": ("random", 0.0),
    "random 40%": ("random", 0.4),
    "coordinated 40%": ("coordinated", 0.4),
    "popular 40%": ("popular", 0.4),
    "popular 60%": ("popular", 0.6),
}
"""Name -> attack of `annotators.make_crowds`, and its share."""
LABELS = {
    "one vote": ("one vote", False),
    "majority": ("majority", False),
    "Dawid-Skene": ("Dawid-Skene", False),
    "Dawid-Skene, soft": ("Dawid-Skene", True),
    "test questions, soft": ("test questions", True),
}
"""Name -> defence of `annotators.make_defences`, and whether its doubt becomes `Comparisons.flip_chance`."""


@dataclass(frozen=True)
class Config(AnswersConfig):
    """A crowd that compares, and a search against the reward model that it taught."""

    out: str = "runs/poisoned_rewards"
    test_answers: int = 32
    """The largest n of best-of-n, a power of 2."""
    annotators: int = 20
    """How many people judge."""
    votes: int = 5
    """Annotators asked for each pair."""
    noise: float = 0.5
    """Temperature of a choice, in deviations of the gold reward."""
    tie_width: float = 0.25
    """Perceived gap below which the answers are called equal, likewise."""
    known: float = 0.1
    """Share of the pairs whose gold label the test questions use."""

    def __post_init__(self) -> None:
        """Refuse what would fail within the run."""
        super().__post_init__()
        self.require(annotators=self.votes, votes=1, prompts=10)
        if self.test_answers & (self.test_answers - 1):
            raise ValueError(f"test_answers must be a power of 2; got {self.test_answers}; try 32")

    def crowd(self) -> CrowdConfig:
        """Return the settings of the crowds and of the defences."""
        shared = ("annotators", "votes", "noise", "tie_width", "known")
        return CrowdConfig(pairs=self.prompts, **{name: getattr(self, name) for name in shared})


def rate_answers(answers: Answers) -> Judged:
    """Return both rewards; an answer's popularity is its length in characters."""
    lengths = np.array([[len(text) for text in member] for member in answers.texts], float)
    norm = lambda x: (x - x.mean((1, 2), keepdims=True)) / x.std((1, 2), keepdims=True)
    return Judged(norm(answers.gold), norm(lengths.reshape(answers.gold.shape)))


def choose_pairs(gold: np.ndarray) -> np.ndarray:
    """Return two answers [N, 2] of a prompt: the first, and the next whose reward, gold [N, G], differs."""
    other = np.argmax(gold != gold[:, :1], axis=1)
    return np.stack([np.zeros_like(other), np.where(other == 0, 1, other)], 1)


def label(probs: np.ndarray, soft: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return which answer is chosen [N], and the chance [N] that the other one is better.

    Args:
      probs: [N] probability that the first is better; an even chance teaches nothing.
      soft: keep the doubt; else the likelier side is taken for certain.
    """
    doubt = np.minimum(probs, 1.0 - probs)
    return (probs < 0.5).astype(int), np.where((probs == 0.5) | soft, doubt, 0.0)


class Labelled(NamedTuple):
    """What a reward model is trained on, and how good it is."""

    rows: Comparisons
    accuracy: float
    """Share of the pairs whose chosen answer is the better one."""


def ask(config: Config, answers: Answers, judged: Judged, member: int, attack: str) -> dict[str, Labelled]:
    """Let a member's crowd judge a pair of answers of each prompt; return rows by way of labelling."""
    pair = choose_pairs(judged.gold[member])
    gold, popularity = (np.take_along_axis(x[member], pair, 1) for x in judged)
    truth, (name, share), settings = (gold[:, 1] > gold[:, 0]).astype(int), ATTACKS[attack], config.crowd()
    crowd = Crowd(make_crowds(settings, share)[name], np.random.default_rng([config.seed, member, 1]))
    votes: Votes = crowd.compare(gold, votes=config.votes, shuffle=True, others={"popularity": popularity})
    defences = make_defences(settings, truth)
    item = np.arange(len(pair))
    texts = jax.tree.map(lambda x: np.asarray(x)[member], answers.completions)
    prompts = jax.tree.map(lambda x: np.asarray(x)[member], answers.prompts)
    take = lambda side: jax.tree.map(lambda x: x[item, pair[item, side]], texts)
    made = {}
    for label_name, (defence, soft) in LABELS.items():
        probs = defences[defence](votes)
        first, doubt = label(probs, soft)
        rows = Comparisons(prompts, take(first), take(1 - first), flip_chance=doubt.astype(np.float32))
        made[label_name] = Labelled(rows, accuracy(probs, truth))
    return made


def fit(
    pool: Pool, config: Config, folder: RunFolder, members: Sequence[int], labelled: Any, rates: Any
) -> np.ndarray:
    """Train on [settings][members] of labelled rows; return the held-out answers' scores [S, M, N, G]."""
    data = [[row.rows for row in setting] for setting in labelled]
    return fit_and_score(pool, config, folder, members, data, comparison_objective, rates)


def tune(pool: Pool, config: Config, folder: RunFolder, judged: Judged) -> tuple[float, Any]:
    """Return the learning rate, chosen on the majority of honest crowds of other members, and all tried."""
    members, rates = range(config.seeds, config.seeds + config.tuning_seeds), config.learning_rates
    made = [ask(config, pool.train, judged, member, "honest")["majority"] for member in members]
    scores = fit(pool, config, folder.sub("tuning"), members, [made] * len(rates), rates)
    tried = {"majority of honest crowds": pair_accuracy(scores, pool.test.gold[list(members)])}
    best, table = choose_rates(tried, rates)
    (rate,) = best.values()
    return rate, table


def main(config: Config) -> None:
    """Write answers, choose the rate, attack, defend, train, search, report."""
    use_cpu_devices()
    folder = config.open_folder()
    pool = make_pool(config, folder)
    judged, test = rate_answers(pool.train), Judged(*(x[: config.seeds] for x in rate_answers(pool.test)))
    (rate, tried), members = tune(pool, config, folder, judged), range(config.seeds)
    asked = {a: [ask(config, pool.train, judged, m, a) for m in members] for a in ATTACKS}
    settings = [(attack, way) for attack in ATTACKS for way in LABELS]
    labelled = [[made[way] for made in asked[attack]] for attack, way in settings]
    scores = fit(pool, config, folder.sub("reported"), members, labelled, [rate] * len(settings))
    sizes = [2**i for i in range(config.test_answers.bit_length())]
    found: dict[str, Any] = {attack: {} for attack in ATTACKS}
    for (attack, way), made, score in zip(settings, labelled, scores, strict=True):
        found[attack][way] = {
            "labels": np.array([row.accuracy for row in made]),
            "reward model": pair_accuracy(score, test.gold),
            "gold": np.array([best_of(score, test.gold, n) for n in sizes]),
            "popularity": np.array([best_of(score, test.popularity, n) for n in sizes]),
        }
    report(folder, config, CLAIM, found, sizes, test, tried)


if __name__ == "__main__":
    cli.main(Config, main)
