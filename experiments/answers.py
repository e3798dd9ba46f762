"""A pool of answers with a hidden gold reward, and reward models trained on what a crowd says of them.

`feedback_types.py` and `poisoned_rewards.py` share it. The language models, their fine-tuning and the gold
reward, `PlainProse`, are those of `rlhf.py`, smaller; every member writes its own answers at temperature 1.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rlhf
from rates import rates_table
from rlhf_setup import Setup

from jaxrl_align.actors.text import join
from jaxrl_align.align import reward_model as rm
from jaxrl_align.align.reward_learner import RewardHParams, make_reward_learner
from jaxrl_align.align.rlhf import init_policy
from jaxrl_align.learner import LossFn
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.pretrain.lm import sample_rows
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.members import MembersConfig, train_members, with_data
from jaxrl_align.types import PaddedTokens, Params


@dataclass(frozen=True)
class AnswersConfig(MembersConfig):
    """The members' models, their answers, and how reward models train."""

    out: str = "runs/answers"
    seeds: int = 6
    """Members whose results are reported."""
    tuning_seeds: int = 2
    """Further members, on whom alone the learning rates are chosen."""
    corpus: str | None = None
    """A UTF-8 text file; none means CPython's language reference."""
    vocab_size: int = 1024
    """Tokens of the vocabulary, at most."""
    width: int = 64
    """Numbers in a token's hidden state."""
    layers: int = 1
    """Of the transformer."""
    heads: int = 4
    """Attention heads of a layer."""
    pretrain_steps: int = 300
    """Updates of the pre-training."""
    sft_steps: int = 100
    """Updates of the fine-tuning on demonstrations."""
    prompts: int = 512
    """Of each member; as many as the crowd is asked queries."""
    answers: int = 4
    """Of each prompt."""
    test_prompts: int = 64
    """Prompts of sentences that no training has seen."""
    test_answers: int = 8
    """Answers to each test prompt."""
    reward_steps: int = 100
    """Updates of the reward model."""
    batch_size: int = 16
    """Rows a step."""
    learning_rates: tuple[float, ...] = (5e-5, 1.5e-4, 5e-4, 1.5e-3, 5e-3)
    """Of the reward model; the best on other seeds is taken."""

    def __post_init__(self) -> None:
        """Refuse what would fail after minutes of training."""
        counts = {name: 1 for name, value in vars(self).items() if type(value) is int and name != "seed"}
        self.require(**counts | {"seeds": 2, "answers": 2, "test_answers": 2, "learning_rates": 0})


class Answers(NamedTuple):
    """Answers to each of N prompts: G of every prompt, M members."""

    prompts: PaddedTokens
    """[M, N, P]."""
    completions: PaddedTokens
    """[M, N, G, C]."""
    gold: np.ndarray
    """[M, N, G] the hidden reward."""
    texts: list[list[str]]
    """[M][N G], a prompt's answers one after the other."""

    def lengths(self) -> np.ndarray:
        """Return the answers' lengths [M, N, G] in tokens."""
        return np.asarray(self.completions.real.sum(-1))


class Pool(NamedTuple):
    """What all settings of an experiment share; the last `tuning_seeds` members choose the rates."""

    lm: LanguageModel
    params: Params
    """The fine-tuned policies, leaves [M, ...]."""
    train: Answers
    test: Answers


def make_setup(config: AnswersConfig) -> Setup:
    """Return the text, models and prompts of all members, reported ones and others."""
    names = ("out", "seed", "resume", "corpus", "vocab_size", "width", "layers", "heads", "pretrain_steps")
    fields = {name: getattr(config, name) for name in (*names, "sft_steps")}
    return Setup(rlhf.Config(**fields, seeds=config.seeds + config.tuning_seeds))


def make_pool(config: AnswersConfig, folder: RunFolder, setup: Setup | None = None) -> Pool:
    """Pre-train and fine-tune all members, and let them answer prompts of training and of held-out text.

    Args:
      config: of the run.
      folder: of the run.
      setup: what `make_setup` returned, for experiments that go on with it; None makes it.
    """
    setup = make_setup(config) if setup is None else setup
    params, _ = rlhf.pretrain(setup, folder)
    params, _ = rlhf.fine_tune(setup, folder, params)
    policy = jax.vmap(functools.partial(init_policy, setup.lm))(params)

    def write(source: PaddedTokens, prompts: int, answers: int, purpose: int) -> Answers:
        drawn = setup.draw_prompts(prompts, source, purpose)
        each = jax.tree.map(lambda x: np.repeat(x, answers, axis=1), drawn)
        samples = setup.write(policy, params, each, setup.keys(purpose + 1))
        fold = lambda x: np.asarray(x).reshape(len(x), prompts, answers, *x.shape[2:])
        return Answers(drawn, jax.tree.map(fold, samples.completions), fold(samples.gold), samples.texts)

    train = write(setup.prompts, config.prompts, config.answers, 20)
    test = write(setup.test_prompts, config.test_prompts, config.test_answers, 30)
    return Pool(setup.lm, params, train, test)


def repeat_rows(data: Any, count: int) -> Any:
    """Return `count` rows of a tree [n, ...], n <= count, in turn, so that all settings have equal shapes."""
    return jax.tree.map(lambda x: np.resize(np.asarray(x), (count, *x.shape[1:])), data)


def fit_and_score(
    pool: Pool,
    config: AnswersConfig,
    folder: RunFolder,
    members: Sequence[int],
    data: Sequence[Sequence[Any]],
    objective: Callable[[LanguageModel], LossFn],
    rates: Sequence[float],
) -> np.ndarray:
    """Train as `fit_rewards`, and return the scores [S, M, N, G] of the held-out answers."""
    params = fit_rewards(pool, config, folder, members, data, objective, rates)
    scores = score_answers(pool.lm, params, pool.test, np.tile(np.array(members), len(data)))
    return scores.reshape(len(data), len(members), *scores.shape[1:])


def fit_rewards(
    pool: Pool,
    config: AnswersConfig,
    folder: RunFolder,
    members: Sequence[int],
    data: Sequence[Sequence[Any]],
    objective: Callable[[LanguageModel], LossFn],
    rates: Sequence[float],
) -> Params:
    """Train a reward model for every setting and member.

    Args:
      pool: models and answers.
      config: of the run.
      folder: of this training; its checkpoints continue an interrupted run.
      members: M of the pool's.
      data: rows of S settings, [S][M], equal in shape.
      objective: of the rows' kind.
      rates: S learning rates.

    Returns:
      The reward models' parameters, leaves [S M, ...], the member varying fastest.
    """
    count, index = len(data), np.array(members)
    rows = jax.tree.map(lambda *x: np.stack(x), *(member for setting in data for member in setting))
    keys, head_keys = (jax.random.split(jax.random.key(config.seed + i), len(index)) for i in (41, 42))
    tile = lambda x: jnp.tile(x, (count, *[1] * (x.ndim - 1)))
    start = jax.vmap(lambda key, p: rm.init_reward_params(key, pool.lm, p))(
        head_keys, jax.tree.map(lambda x: x[index], pool.params)
    )
    learner = with_data(
        lambda frozen: make_reward_learner(
            pool.lm,
            sample_rows(frozen, batch_size=config.batch_size),
            objective=objective(pool.lm),
            total_steps=config.reward_steps,
        )
    )
    hparams = RewardHParams(jnp.repeat(jnp.asarray(rates), len(index)))
    how = {"keys": jnp.tile(keys, count), "params": jax.tree.map(tile, start), "frozen": rows}
    how |= {"folder": folder, "label": folder.path.name, "chunk": max(1, config.reward_steps // 4)}
    return train_members(learner, hparams, config, config.reward_steps, **how).state.params


def score_answers(lm: LanguageModel, params: Params, answers: Answers, members: np.ndarray) -> np.ndarray:
    """Return each reward model's scores [K, N, G] of the answers of its member, members [K]."""

    def one(params: Params, prompt: PaddedTokens, completions: PaddedTokens) -> jax.Array:
        row = lambda text: rm.score(lm, rm.RewardModel(params), *text)
        return jax.lax.map(row, jax.vmap(join, (None, 0, 0))(prompt, *completions), batch_size=64)

    read = jax.jit(jax.vmap(lambda p, *texts: jax.lax.map(lambda text: one(p, *text), texts)))
    texts = jax.tree.map(lambda x: np.asarray(x)[members], (answers.prompts, answers.completions))
    return np.asarray(read(params, *texts))


def pair_accuracy(scores: np.ndarray, gold: np.ndarray) -> np.ndarray:
    """Return the share [...] of a prompt's pairs that scores [..., N, G] order as the gold reward does.

    Pairs of equal gold reward do not count; an equal score is half right.
    """
    better = gold[..., :, None] > gold[..., None, :]
    gap = scores[..., :, None] - scores[..., None, :]
    right = np.where(gap == 0, 0.5, gap > 0)
    return (right * better).sum((-3, -2, -1)) / better.sum((-3, -2, -1))


def choose_rates(
    accuracy: Mapping[str, np.ndarray], rates: Sequence[float]
) -> tuple[dict[str, float], dict[str, dict[str, float | str]]]:
    """Return the best rate of each setting, and a table of the mean accuracy [%] at every rate.

    Args:
      accuracy: [R, M] by setting, of R rates and M members.
      rates: R learning rates.
    """
    mean = {name: 100 * values.mean(-1) for name, values in accuracy.items()}
    best = {name: rates[int(values.argmax())] for name, values in mean.items()}
    tried = {name: dict(zip(rates, values, strict=True)) for name, values in mean.items()}
    return best, rates_table(tried, best)


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("feedback_types")
