"""Over-optimisation: how far a reward model can be optimised before the reward that is meant falls.

The lectures omit the KL term (001 and 003, F12); Gao et al. 2022 (arXiv:2210.10760) measured what becomes of
a reward without it. With d the square root of the KL divergence from the fine-tuned policy they found the
gold reward gained to be `d (alpha - beta d)` for best-of-n and `d (alpha - beta log d)` for PPO, and a
penalty to stop only earlier on the same way. Models, answers and the gold reward are those of `rlhf.py`,
smaller (width 64, one layer). Noisy annotators give 16 comparisons, too few to learn from, so that the gold
reward may fall within the run, or 1,024. All KL coefficients, both reward models and all seeds of PPO train
in one program; no score is replaced where an answer does not end, so that all that PPO is paid was learnt.
The KL divergence of best-of-n is not measured but `log n - (n - 1) / n`, which is exact without equal scores
and otherwise a bound from above. Gains are in deviations of the fine-tuned policy's answers; a seed's peak is
where the others' mean is highest.

The laws are of large models whose path bends slowly. PPO's first steps go far here and gain little, which no
form in d alone describes. Rates are chosen on 2 other seeds: the reward models' by accuracy, PPO's by the
score on the fewest comparisons.
"""

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rlhf
import rlhf_setup
from answers import (
    AnswersConfig,
    Pool,
    choose_rates,
    fit_rewards,
    make_pool,
    make_setup,
    pair_accuracy,
    repeat_rows,
    score_answers,
)
from overoptimisation_report import Curve, Found, draw, report
from rates import rates_table
from rlhf_setup import Setup

from jaxrl_align import losses
from jaxrl_align.actors.text import Frozen
from jaxrl_align.align import RLHFHParams, expected_best, init_policy, make_rlhf_learner, model_reward
from jaxrl_align.align import reward_model as rm
from jaxrl_align.align.reward_learner import comparison_objective
from jaxrl_align.checks import check_divides
from jaxrl_align.feedback.annotators import compare
from jaxrl_align.pretrain.lm import sample_rows
from jaxrl_align.runtime import Claim, cli
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.members import train_members
from jaxrl_align.runtime.mesh import use_cpu_devices
from jaxrl_align.types import Comparisons, Params

CLAIM = Claim(
    "Without a KL penalty the learnt score goes on rising while the reward that is meant falls; a better "
    "reward model is fooled later, and a penalty keeps what was gained.",
    rows=("F12", "F19"),
    minutes=12,
)
MARGIN = 0.1
"""Deviations of the score; of rates that come so near to each other, the smaller takes the finer steps."""


@dataclass(frozen=True)
class Config(AnswersConfig):
    """Two reward models of different worth, and what optimising their scores does to the gold reward."""

    out: str = "runs/overoptimisation"
    seeds: int = 8
    """Members whose results are reported."""
    vocab_size: int = 512
    comparisons: tuple[int, ...] = (16, 1024)
    """Of each reward model; the smaller sets are the beginning of the largest."""
    annotator_temperature: float = 1.0
    """Noise of the annotators' choice, in units of the gold reward."""
    prompts: int = 1024
    """At least as many as the most comparisons, one of each."""
    answers: int = 2
    test_prompts: int = 32
    test_answers: int = 256
    """The largest n of best-of-n, a power of 2."""
    learning_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3)
    """Tried for the reward models."""
    policy_rates: tuple[float, ...] = (3e-4, 1e-3)
    """Tried for PPO, in rising order."""
    kl_coefs: tuple[float, ...] = (0.0, 0.03, 0.1)
    """Of PPO, for a score of deviation 1; they stay as they are."""
    policy_steps: int = 100
    """Updates of the policy by PPO."""
    prompts_per_step: int = 16
    """Prompts of an update."""
    epochs: int = 2
    """Passes over the answers of an update."""
    minibatches: int = 2
    """Gradient steps of a pass."""

    def __post_init__(self) -> None:
        """Refuse what would fail after minutes of training."""
        super().__post_init__()
        least = {"comparisons": 1, "prompts": max(self.comparisons), "kl_coefs": 0, "policy_rates": 0}
        self.require(**least, policy_steps=20)
        if min(self.kl_coefs) > 0:
            raise ValueError(f"kl_coefs must hold 0, where the curves are taken; got {self.kl_coefs}")
        if list(self.policy_rates) != sorted(self.policy_rates):
            raise ValueError(f"policy_rates must be in rising order; got {self.policy_rates}")
        if not self.annotator_temperature > 0:
            raise ValueError(f"annotator_temperature must be above 0; got {self.annotator_temperature}")
        check_divides(self.minibatches, self.prompts_per_step, "minibatches", "prompts_per_step")


class Run(NamedTuple):
    """One run of PPO."""

    comparisons: int
    """Place of the reward model's number of comparisons."""
    kl_coef: float
    rate: float
    seed: int


def annotate(config: Config, pool: Pool, member: int, count: int) -> Comparisons:
    """Return `count` noisy comparisons of a member's answers, repeated in turn up to the largest number."""
    rng = np.random.default_rng([config.seed, member, 2])
    gold = pool.train.gold[member]
    first = compare(gold[:, 0], gold[:, 1], rng, temperature=config.annotator_temperature)
    prompts, texts = jax.tree.map(lambda x: np.asarray(x)[member], pool.train[:2])
    a, b = (jax.tree.map(lambda x, i=i: x[:, i], texts) for i in (0, 1))
    rows = rm.choose_completions(prompts, a, b, first)
    return repeat_rows(jax.tree.map(lambda x: x[:count], rows), max(config.comparisons))


def agreement(config: Config, pool: Pool) -> np.ndarray:
    """Return the chance [M] that a comparison prefers what the gold reward does, where that differs."""
    gap = np.abs(np.diff(pool.train.gold[..., :2], axis=-1)[..., 0])
    chance = 1.0 / (1.0 + np.exp(-gap / config.annotator_temperature))
    return (chance * (gap > 0)).sum(1) / (gap > 0).sum(1)


def learn_rewards(config: Config, folder: RunFolder, pool: Pool) -> tuple[rm.RewardModel, np.ndarray, Any]:
    """Fit a reward model to each number of comparisons, at a rate chosen on the tuning members.

    Returns:
      The models, leaves [C, M, ...] over all members, the share of held-out pairs that they order rightly
      [C, M], and the table of the rates tried. The scores have mean 0 and deviation 1 on the fine-tuned
      policies' answers to training prompts.
    """
    tuning, rates = range(config.seeds, config.seeds + config.tuning_seeds), config.learning_rates
    every = range(config.seeds + config.tuning_seeds)

    def fit(name: str, members: Sequence[int], settings: Sequence[tuple[int, float]]) -> Any:
        data = [[annotate(config, pool, member, count) for member in members] for count, _ in settings]
        chosen = [rate for _, rate in settings]
        how = (members, data, comparison_objective, chosen)
        params = fit_rewards(pool, config, folder.sub(name), *how)
        return params, measure(pool, params, members, len(settings))

    settings = list(itertools.product(config.comparisons, rates))
    accuracy = fit("tuning rewards", tuning, settings)[1].reshape(len(config.comparisons), len(rates), -1)
    tried = {f"{n} comparisons": x for n, x in zip(config.comparisons, accuracy, strict=True)}
    best, table = choose_rates(tried, rates)
    settings = list(zip(config.comparisons, best.values(), strict=True))
    params, accuracy = fit("rewards", every, settings)
    params = jax.tree.map(lambda x: x.reshape(len(settings), len(every), *x.shape[1:]), params)
    samples = pool.train.prompts, jax.tree.map(lambda x: x[:, :, 0], pool.train.completions)
    normalise = lambda p, *text: rm.normalise_scores(pool.lm, rm.RewardModel(p), *text)
    return jax.jit(jax.vmap(jax.vmap(normalise), (0, None, None)))(params, *samples), accuracy, table


def measure(pool: Pool, params: Params, members: Sequence[int], settings: int) -> np.ndarray:
    """Return the share [settings, M] of held-out pairs that reward models [settings M] order rightly."""
    few = pool.test._replace(completions=jax.tree.map(lambda x: x[:, :, :8], pool.test.completions))
    scores = score_answers(pool.lm, params, few, np.tile(np.array(members), settings))
    scores = scores.reshape(settings, len(members), *scores.shape[1:])
    return pair_accuracy(scores, pool.test.gold[list(members), :, :8])


def choose_best(config: Config, pool: Pool, models: rm.RewardModel) -> list[Curve]:
    """Return the gains of the best of n = 2, 4, ... by reward models, leaves [C, M, ...], of each of C."""
    count, members = len(config.comparisons), np.arange(config.seeds)
    flat = jax.tree.map(lambda x: x[:, members].reshape(-1, *x.shape[2:]), models)
    scores = score_answers(pool.lm, flat.params, pool.test, np.tile(members, count))
    scores = scores * np.asarray(flat.gain)[:, None, None]
    gold = pool.test.gold[members]
    gold = np.tile(gold / gold.std((1, 2), keepdims=True), (count, 1, 1))
    sizes = 2 ** np.arange(1, config.test_answers.bit_length())

    def gain(scores: jax.Array, values: jax.Array) -> jax.Array:
        return jnp.stack([expected_best(scores, values, int(n)) for n in sizes]) - jnp.mean(values)

    every = jax.jit(jax.vmap(jax.vmap(gain)))
    best = lambda values: np.moveaxis(
        np.asarray(every(scores, values)).mean(1).reshape(count, len(members), -1), -1, 1
    )
    root = np.sqrt(np.asarray(losses.best_of_n_kl(sizes)))
    root = np.repeat(root[:, None], len(members), 1)
    return [Curve(root, *curves) for curves in zip(best(gold), best(scores), strict=True)]


def optimise(
    config: Config,
    folder: RunFolder,
    setup: Setup,
    pool: Pool,
    models: rm.RewardModel,
    runs: Sequence[Run],
) -> Curve:
    """Train all runs of PPO in one program; return their gains from step to step, [steps, runs]."""
    seeds = np.array([run.seed for run in runs])
    which = np.array([run.comparisons for run in runs]), seeds
    pick = lambda tree, index: jax.tree.map(lambda x: x[index], tree)
    frozen = Frozen(pick(pool.params, seeds), pick(models, which))
    prompts = pick(setup.draw_prompts(rlhf_setup.SAMPLES, setup.test_prompts, 7), seeds)
    learner = make_rlhf_learner(
        setup.lm,
        model_reward(setup.lm),
        replace(setup.text, missing_stop="keep"),
        sample_rows(setup.prompts, batch_size=config.prompts_per_step),
        epochs=config.epochs,
        minibatches=config.minibatches,
    )
    rates, coefs = (jnp.array([getattr(run, name) for run in runs]) for name in ("rate", "kl_coef"))
    hparams = RLHFHParams(rates, kl_coef=coefs, kl_horizon=jnp.inf)
    start = jax.vmap(functools.partial(init_policy, setup.lm))(frozen.reference)

    def evaluate(step: int, policy: Any) -> None:
        if step > 20 and step % 20:  # most of the way is made early
            return
        samples = setup.write(policy, frozen.reference, prompts, setup.keys(5)[seeds])
        scores = setup.score_answers(frozen.reward_model, samples)
        rows = {"kl": samples.kl, "gold": samples.gold, "score": scores}
        folder.write_json(f"evaluation_{step:05d}.json", {k: np.mean(v, 1) for k, v in rows.items()})

    evaluate(0, start)
    how = {"keys": setup.keys(6)[seeds], "params": start, "frozen": frozen, "folder": folder}
    how |= {"label": folder.path.name, "show": ("objective/scores", "objective/kl"), "chunk": 5}
    how |= {"on_chunk": lambda step, state, _: evaluate(step, state.params)}
    train_members(learner, hparams, config, config.policy_steps, **how)
    path = list(rlhf.read_steps(folder, "evaluation").values())
    kl, gold, score = (np.array([row[name] for row in path]) for name in ("kl", "gold", "score"))
    spread = pool.test.gold.std((1, 2))[seeds]
    return Curve(np.sqrt(np.maximum(kl, 0.0)), (gold - gold[0]) / spread, score - score[0])


def tune(
    config: Config, folder: RunFolder, setup: Setup, pool: Pool, models: rm.RewardModel
) -> tuple[float, Any]:
    """Return the smallest rate whose score, the gold reward unseen, is within `MARGIN` of the best one's.

    It is chosen on the tuning members, without a penalty and for the fewest comparisons. The second is the
    table of the rates tried.
    """
    seeds, rates = range(config.seeds, config.seeds + config.tuning_seeds), config.policy_rates
    fewest = int(np.argmin(config.comparisons))
    runs = [Run(fewest, 0.0, rate, seed) for rate in rates for seed in seeds]
    last = optimise(config, folder.sub("tuning policy"), setup, pool, models, runs).proxy[-1]
    tried = last.reshape(len(rates), -1).mean(1)
    rate = rates[int(np.flatnonzero(tried >= tried.max() - MARGIN)[0])]
    return rate, rates_table({"PPO": dict(zip(rates, tried, strict=True))}, {"PPO": rate})


def main(config: Config) -> None:
    """Write answers, learn rewards, optimise them by choice and by PPO, fit, report."""
    use_cpu_devices()
    setup = make_setup(config)
    folder = config.open_folder()
    pool = make_pool(config, folder, setup)
    models, accuracy, learnt = learn_rewards(config, folder, pool)
    rate, tuned = tune(config, folder, setup, pool, models)
    sizes, seeds = range(len(config.comparisons)), range(config.seeds)
    runs = [Run(*run) for run in itertools.product(sizes, config.kl_coefs, (rate,), seeds)]
    curves = optimise(config, folder.sub("policy"), setup, pool, models, runs)
    shape = (len(sizes), len(config.kl_coefs), len(seeds))
    curves = Curve(*(x.reshape(len(x), *shape) for x in curves))
    found = {}
    for i, (count, best) in enumerate(
        zip(config.comparisons, choose_best(config, pool, models), strict=True)
    ):
        by_coef = {coef: Curve(*(x[:, i, k] for x in curves)) for k, coef in enumerate(config.kl_coefs)}
        found[count] = Found(accuracy[i, : config.seeds], best, by_coef)
    draw(folder.path / "overoptimisation.png", found)
    tried = {
        "accuracy of reward models on tuning members [%], by learning rate": learnt,
        "score gained by PPO on tuning members [deviations], by learning rate": tuned,
    }
    report(folder, config, CLAIM, found, agreement(config, pool)[: config.seeds], tried)


if __name__ == "__main__":
    cli.main(Config, main)
