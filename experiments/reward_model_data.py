"""Arguments of UKPConvArg1 as tables that batches are drawn from, and the folds of `reward_model_scaling.py`.

A batch is K arguments for one side of a debate, each scored once, and every judged pair among them: a dozen
times as many pairs a token as pairs read two by two.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.align import RewardModel, score
from jaxrl_align.data.tokens.padding import right_pad
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.feedback import load_convincing_arguments
from jaxrl_align.learner import LossFn
from jaxrl_align.losses import bradley_terry, masked_mean
from jaxrl_align.nets import overlay, with_dropout
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.types import Metrics, Params, Sampler


class Arguments(NamedTuple):
    """S sides of debates with up to A arguments each, and the N pairs that people judged."""

    texts: list[list[str]]
    """[S][<= A], each behind the prompt that names debate and side."""
    prompts: list[str]
    """[S]."""
    pairs: np.ndarray
    """[N, 3] side, the more convincing argument, the other."""
    debate: np.ndarray
    """[N] of each pair, from 0."""
    lengths: np.ndarray
    """[N, 2] words of the two."""


class Batch(NamedTuple):
    """K arguments for one side."""

    tokens: jax.Array
    """[K, L]."""
    real: jax.Array
    better: jax.Array
    """[K, K] 1 where the row's argument convinced more than the column's."""


def read_arguments() -> Arguments:
    """Return the judgements as tables."""
    texts: list[list[str]] = []
    sides: dict[str, int] = {}
    pairs, debate = [], []
    for number, rows in enumerate(load_convincing_arguments().values()):
        for row in rows:
            side = sides.setdefault(str(row.prompt), len(sides))
            if side == len(texts):
                texts.append([])
            pairs.append((side, *(_place(texts[side], text) for text in (row.chosen, row.rejected))))
            debate.append(number)
    table = np.array(pairs)
    lengths = np.array([[len(texts[s][i].split()) for i in (a, b)] for s, a, b in pairs])
    return Arguments(texts, list(sides), table, np.array(debate), lengths)


def _place(texts: list[str], text: Any) -> int:
    if text not in texts:
        texts.append(text)
    return texts.index(text)


def encode(
    arguments: Arguments, tokenizer: Tokenizer, length: int, *, drop: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    """Return prompts with arguments as tokens and mask [S, A, L]; a long one loses the prompt's beginning.

    Raises:
      ValueError: if an argument alone does not fit, unless `drop` leaves it out.
    """
    most = max(map(len, arguments.texts))
    tokens, real = np.zeros((2, len(arguments.texts), most, length))
    for s, (prompt, texts) in enumerate(zip(arguments.prompts, arguments.texts, strict=True)):
        begin, stop = tokenizer.encode(prompt), [tokenizer.stop_token]
        ends = [ids + stop for ids in tokenizer.encode_batch(texts, special=False)]
        if (longest := max(map(len, ends))) >= length and not drop:
            raise ValueError(f"length must hold the longest argument of {longest} tokens; got {length}")
        rows = [begin[-(length - len(end)) :] + end if len(end) < length else [] for end in ends]
        tokens[s, : len(rows)], real[s, : len(rows)] = right_pad(rows, length, 0)
    return tokens.astype(np.int32), real.astype(np.float32)


def make_folds(arguments: Arguments, folds: int) -> np.ndarray:
    """Return the fold of each pair [N]; whole debates, of about equally many pairs."""
    counts = np.bincount(arguments.debate)
    fold, filled = np.zeros(len(counts), int), np.zeros(folds)
    for debate in np.argsort(-counts, kind="stable"):
        fold[debate] = np.argmin(filled)
        filled[fold[debate]] += counts[debate]
    return fold[arguments.debate]


def pair_table(arguments: Arguments, chosen: np.ndarray) -> np.ndarray:
    """Return which arguments were judged better than which [S, A, A], of the chosen pairs [n] alone."""
    most = max(map(len, arguments.texts))
    table = np.zeros((len(arguments.texts), most, most), np.float32)
    side, better, worse = arguments.pairs[chosen].T
    table[side, better, worse] = 1.0
    return table


def sample_arguments(tokens: jax.Array, real: jax.Array, table: jax.Array, count: int) -> Sampler:
    """Return a sampler of K = `count` arguments of a side, sides by their judged pairs."""
    table = table * _there(real)[:, :, None] * _there(real)[:, None]
    judged = jnp.sum(table, (1, 2))
    used = (jnp.sum(table, 1) + jnp.sum(table, 2)) > 0

    def sample(key: jax.Array) -> Batch:
        key_side, key_arguments = jax.random.split(key)
        side = jax.random.categorical(key_side, jnp.log(judged))
        lot = jnp.where(used[side], jax.random.uniform(key_arguments, used[side].shape), -1.0)
        drawn = jax.lax.top_k(lot, count)[1]
        return Batch(tokens[side, drawn], real[side, drawn], table[side][drawn][:, drawn])

    return sample


def _there(real: jax.Array) -> jax.Array:
    return (jnp.sum(real, -1) > 0).astype(jnp.float32)


def judged_pairs_objective(lm: LanguageModel) -> LossFn:
    """Return Bradley-Terry's loss, mean over the judged pairs of a `Batch`."""

    def loss(
        params: Params, frozen: Any, batch: Batch, key: jax.Array, hparams: Any
    ) -> tuple[jax.Array, Metrics]:
        whole = overlay(frozen, params)
        read = lambda t, m, k: score(lm, RewardModel(with_dropout(whole, k)), t, m)
        scores = jax.vmap(read)(batch.tokens, batch.real, jax.random.split(key, len(batch.tokens)))
        first, second = (jnp.broadcast_to(s, batch.better.shape) for s in (scores[:, None], scores[None]))
        return masked_mean(bradley_terry(first, second), batch.better), {
            "accuracy": masked_mean((first > second).astype(jnp.float32), batch.better),
            "pairs": jnp.sum(batch.better),
        }

    return loss


def make_reader(lm: LanguageModel, batch_size: int = 16) -> Callable[..., jax.Array]:
    """Return `(tokens [S, A, L], real, params, frozen) -> [S, A]`: the score of every argument."""

    def read(tokens: jax.Array, real: jax.Array, params: Params, frozen: Any = None) -> jax.Array:
        model = RewardModel(overlay(frozen, params))
        flat = tokens.reshape(-1, tokens.shape[-1]), real.reshape(-1, real.shape[-1])
        scores = jax.lax.map(lambda row: score(lm, model, *row), flat, batch_size=batch_size)
        return scores.reshape(tokens.shape[:2])

    return read


def margins_of(arguments: Arguments, scores: np.ndarray) -> np.ndarray:
    """Return the margin of every pair [..., N] from the scores of arguments [..., S, A]."""
    side, better, worse = arguments.pairs.T
    return scores[..., side, better] - scores[..., side, worse]


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("reward_model_scaling")
