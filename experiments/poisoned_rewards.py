"""Reward models on a malicious crowd's labels, and best-of-n against them.

Claims (lecture 002, F17, F19): annotators are biased, badly chosen or malicious; who learns from retweets
learns what is popular (Tay). 20 annotators, 5 asked for each of 512 pairs, judge answers of SFT policies as
in `rlhf.py` (width 64, one layer) by `PlainProse`; attacks and defences are those of `annotators.py`. A
clique's popularity is an answer's length in characters, which is uncorrelated with the gold reward (-0.02 +-
0.06 within a prompt). No policy is trained on the reward model: it chooses the best of n = 1 to 32 answers
that were written before, to each of 64 held-out prompts.

Measured (`python experiments/poisoned_rewards.py`: 6 seeds, each with its own models, answers and crowd; 95%
t intervals; 154 s on 2 cores): accuracy of the labels, and of the reward model on held-out pairs [%]; gold
reward and popularity of the best of 32 less those of the mean answer [deviations]. Gold itself would choose
+1.39 +- 0.01 and +0.19 +- 0.07, popularity -0.60 +- 0.10 and +1.78 +- 0.05.

                                              labels        model         gold            popularity
    honest            one vote                82.6 +- 1.2   83.8 +- 0.6   +1.08 +- 0.03   +0.67 +- 0.18
                      majority                89.8 +- 0.6   84.4 +- 0.4   +1.09 +- 0.04   +0.67 +- 0.15
                      Dawid-Skene, soft       89.6 +- 1.1   84.5 +- 0.5   +1.09 +- 0.05   +0.66 +- 0.18
                      test questions, soft    89.6 +- 0.6   84.6 +- 0.5   +1.10 +- 0.06   +0.69 +- 0.17
    random 40%        one vote                56.2 +- 1.6   63.3 +- 3.0   -0.80 +- 0.30   +0.84 +- 0.12
                      majority                61.9 +- 2.0   69.6 +- 5.8   -0.14 +- 0.64   +0.67 +- 0.25
                      Dawid-Skene, soft       51.8 +- 4.3   52.7 +- 9.3   -1.10 +- 0.17   +0.88 +- 0.11
                      test questions, soft    58.6 +- 4.0   62.9 +- 6.6   -0.73 +- 0.39   +0.69 +- 0.28
    coordinated 40%   one vote                53.4 +- 2.1   59.5 +- 7.9   -0.76 +- 0.43   +0.70 +- 0.23
                      majority                55.6 +- 3.2   66.7 +- 5.4   -0.40 +- 0.56   +0.73 +- 0.20
                      Dawid-Skene, soft       91.3 +- 1.1   84.5 +- 0.7   +1.11 +- 0.04   +0.64 +- 0.17
                      test questions, soft    92.9 +- 1.5   84.7 +- 0.4   +1.11 +- 0.05   +0.64 +- 0.23
    popular 40%       one vote                70.8 +- 1.6   72.9 +- 2.2   +0.33 +- 0.51   +0.78 +- 0.22
                      majority                78.4 +- 2.4   75.5 +- 4.1   +0.84 +- 0.31   +0.82 +- 0.17
                      Dawid-Skene, soft       87.2 +- 1.5   84.0 +- 1.0   +1.09 +- 0.05   +0.71 +- 0.15
                      test questions, soft    86.1 +- 1.4   83.3 +- 2.3   +1.08 +- 0.07   +0.73 +- 0.21
    popular 60%       one vote                64.7 +- 2.1   65.4 +- 2.8   -0.26 +- 0.59   +0.92 +- 0.11
                      majority                66.8 +- 1.7   62.9 +- 3.4   -0.21 +- 0.76   +0.97 +- 0.18
                      Dawid-Skene, soft       52.8 +- 4.3   50.0 +- 2.3   -1.25 +- 0.09   +1.15 +- 0.10
                      test questions, soft    79.6 +- 2.3   81.3 +- 3.1   +1.03 +- 0.10   +0.66 +- 0.22

Hard labels of Dawid and Skene differ from soft ones by less than a point and 0.1 deviations. Popularity up
and true reward down is what a clique of 60% achieves where it is believed, as it is by Dawid and Skene's
estimate; with the plain majority of 5 votes the whole gain is lost (-1.30 +- 0.78, paired with an honest
crowd), with 40% in the clique nothing outside the interval (-0.24 +- 0.33). A reward model that is right on
63% of the pairs can still choose answers that are worse than the mean: the search finds its errors. Only
labels known from elsewhere help against every clique, and nothing does against errors that all make alike.

Rates tried on the majority of honest crowds of 2 other members: 5e-5 83.2%, 1.5e-4 85.1% (taken for all),
5e-4 84.9%, 1.5e-3 84.7%, 5e-3 82.1%; noisier labels might gain from lower ones.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from annotators import Config as CrowdConfig
from annotators import accuracy, make_crowds, make_defences
from answers import Answers, AnswersConfig, Pool, choose_rates, fit_and_score, make_pool, pair_accuracy

from jaxrl_align.align.reward_learner import comparison_objective
from jaxrl_align.feedback import Crowd, Votes
from jaxrl_align.runtime import cli, plots, statistics
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.mesh import use_cpu_devices
from jaxrl_align.types import Comparisons

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


class Judged(NamedTuple):
    """Answers [M, N, G] by both rewards, each in deviations from the mean of the member's answers."""

    gold: np.ndarray
    popularity: np.ndarray


def judge(answers: Answers) -> Judged:
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


def fit(
    pool: Pool, config: Config, folder: RunFolder, members: Sequence[int], labelled: Any, rates: Any
) -> np.ndarray:
    """Train on [settings][members] of labelled rows; return the held-out answers' scores [S, M, N, G]."""
    data = [[row.rows for row in setting] for setting in labelled]
    return fit_and_score(pool, config, folder, members, data, comparison_objective, rates)


def tune(pool: Pool, config: Config, folder: RunFolder, judged: Judged) -> float:
    """Return the learning rate, chosen on the majority of honest crowds of the members not reported."""
    members, rates = range(config.seeds, config.seeds + config.tuning_seeds), config.learning_rates
    made = [ask(config, pool.train, judged, member, "honest")["majority"] for member in members]
    scores = fit(pool, config, folder.sub("tuning"), members, [made] * len(rates), rates)
    tried = {"majority of honest crowds": pair_accuracy(scores, pool.test.gold[list(members)])}
    (rate,) = choose_rates(tried, rates).values()
    return rate


def report(
    found: dict[str, dict[str, dict[str, np.ndarray]]], sizes: Sequence[int], folder: RunFolder
) -> None:
    """Print a table for each attack, and draw best-of-n.

    Args:
      found: by attack, way of labelling and measure; accuracies [M], rewards of the chosen [n, M].
      sizes: the n of best-of-n.
      folder: of the run.
    """
    for attack, ways in found.items():
        print(f"\n{attack}: accuracy of labels and of the reward model [%], and best of {sizes[-1]} less the")
        print("mean answer: gold reward and popularity [deviations]")
        for name, x in ways.items():
            percent = [statistics.mean_text(100 * x[key]) for key in ("labels", "reward model")]
            gains = [statistics.mean_text(x[key][-1] - x[key][0], "+.2f") for key in ("gold", "popularity")]
            print(f"{name:24}" + "".join(f"{cell:18}" for cell in percent + gains))
        drawn = {
            f"{reward}, {name}": (np.array(sizes), ways[name][reward])
            for name in ("majority", "Dawid-Skene, soft", "test questions, soft")
            for reward in ("gold", "popularity")
        }
        labels = ("n of best-of-n", "reward of the chosen answers [deviations]")
        dashed = [name for name in drawn if name.startswith("popularity")]
        path = folder.path / f"{attack.replace(' ', '_').rstrip('%')}.png"
        settings = {"title": attack, "dashed": dashed, "xscale": "log", "xticks": sizes, "xticklabels": sizes}
        settings |= {"ylim": (-2.4, 1.6), "legend": "lower left"}
        plots.save_curves(path, *labels, drawn, bars=True, **settings)


def main(config: Config) -> None:
    """Write answers, choose the rate, attack, defend, train, search, report."""
    use_cpu_devices()
    folder = config.open_folder()
    pool = make_pool(config, folder)
    judged, test = judge(pool.train), Judged(*(x[: config.seeds] for x in judge(pool.test)))
    rate, members = tune(pool, config, folder, judged), range(config.seeds)
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
    limits = {"gold reward": test.gold, "popularity": test.popularity}
    for name, known in limits.items():
        best = [statistics.mean_text(best_of(known, x, sizes[-1]), "+.2f") for x in test]
        print(f"best of {sizes[-1]} by {name} itself: gold {best[0]}, popularity {best[1]} [deviations]")
    within = [
        np.corrcoef(*((x[m] - x[m].mean(-1, keepdims=True)).ravel() for x in test))[0, 1] for m in members
    ]
    print(f"correlation of the two within a prompt: {statistics.mean_text(within, '+.2f')}")
    report(found, sizes, folder)
    folder.write_json("results.json", found)
    print(f"\nfigures and results.json are in {folder.path}")


if __name__ == "__main__":
    cli.main(Config, main)
