"""What the reference model thinks of a data set of answers, computed once and kept beside its rows.

DPO, IPO and KTO compare the policy with the model that training starts from. That model does not change, so
its log-probabilities are columns of the data: training holds no second model.

    rows = with_reference(lm, base, comparisons)          # N rows in, N rows out
    learner = make_direct_learner(lm, sample_rows(rows, batch_size=32))
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxrl_align.align.reward_learner import check_text_tokens
from jaxrl_align.align.reward_model import stack_pair
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.text.shared_prompt import completion_log_probs
from jaxrl_align.types import Comparisons, PaddedTokens, Params, Ratings


class Referenced(NamedTuple):
    """Rows of feedback with the log-probabilities of their answers under the reference model.

    Every leaf has the rows' leading axis: it is sampled, sharded and vmapped as the rows alone are.
    """

    rows: Comparisons | Ratings
    log_prob: jax.Array
    """[B, 2] nats, each the sum over an answer's tokens: of the chosen and the rejected one, or of a rating's
    completion and of `other`."""
    other: PaddedTokens | None = None
    """[B, C] of ratings: the completion of another row, which KTO reads under this row's prompt."""


def stack_answers(data: Referenced) -> PaddedTokens:
    """Return the two answers of each row [..., 2, C] that `Referenced.log_prob` is of."""
    if isinstance(data.rows, Comparisons):
        return stack_pair(data.rows)
    return jax.tree.map(lambda *pair: jnp.stack(pair, -2), data.rows.completion, data.other)


def with_reference(
    lm: LanguageModel,
    params: Params,
    rows: Comparisons | Ratings,
    *,
    batch_size: int = 32,
    others: ArrayLike | None = None,
) -> Referenced:
    """Return rows with the reference's log-probabilities of their answers, computed batch by batch.

    KTO measures how far the policy is from the reference by answers that do not belong to their prompts. Each
    rating gets the completion of one other row for that, once for the whole data set, so that its
    log-probability under the reference is known beforehand.

    Args:
      lm: the language model.
      params: the reference's, all of them: where training starts, without the part that is trained.
      rows: N.
      batch_size: rows at a time.
      others: [N] of ratings, the row that each takes the other completion from. None goes once round all
        rows in a random order, always the same one, so that answers to one prompt seldom meet.

    Raises:
      ValueError: for rows of another kind, fewer than two ratings, rows that `check_answers` refuses, or a
        prompt that does not fit the context with the other row's completion.
    """
    if not isinstance(rows, Comparisons | Ratings):
        raise ValueError(
            f"rows must be Comparisons or Ratings; got {type(rows).__name__}; "
            "make pairs of rankings, or encode another kind of feedback"
        )
    check_answers(lm, rows)
    count = len(rows.prompt.tokens)
    other = None
    if isinstance(rows, Ratings):
        places = _go_round(count) if others is None else np.asarray(others)
        other = jax.tree.map(lambda x: x[places], rows.completion)
        _check_others(lm, rows, places)
    data = Referenced(rows, jnp.zeros((count, 2)), other)

    @jax.jit
    def read_all(params: Params, answered: Any) -> jax.Array:
        read = lambda row: jnp.sum(completion_log_probs(lm, params, *row), -1)
        return jax.lax.map(read, answered, batch_size=batch_size)

    return data._replace(log_prob=read_all(params, (rows.prompt, stack_answers(data))))


def _go_round(count: int) -> np.ndarray:
    """Return for each of N >= 2 rows another one: its neighbour in a random order of all."""
    if count < 2:
        raise ValueError(
            f"ratings must be at least two, for each is read with another's completion; got {count}"
        )
    order = np.random.default_rng(0).permutation(count)
    other = np.empty(count, np.int32)
    other[order] = np.roll(order, 1)
    return other


def _check_others(lm: LanguageModel, rows: Ratings, places: np.ndarray) -> None:
    """Raise ValueError for a prompt that the other row's completion does not fit behind."""
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(rows)):
        return
    prompt, completion = ((np.asarray(text.real) > 0).sum(-1) for text in (rows.prompt, rows.completion))
    longest = prompt + completion[places]
    if (longest > lm.config.context).any():
        row = longest.argmax()
        raise ValueError(
            f"a prompt and another row's answer, by which KTO measures the KL, must fit the context of "
            f"{lm.config.context} tokens; got {longest.max()}, the prompt of row {row} and the answer of row "
            f"{places[row]}; shorten them, leave one out, or pass others="
        )


def check_answers(lm: LanguageModel, rows: Any) -> None:
    """Raise ValueError for rows of which nothing can be learnt; rows that are traced have no values yet.

    These are tokens outside the vocabulary, prompts or answers without a token, rows beyond the context,
    pairs of one and the same answer, and labels outside [0, 1].
    """
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(rows)):
        return
    check_text_tokens(lm, rows)
    answers = {
        name: getattr(rows, name) for name in ("chosen", "rejected", "completion") if hasattr(rows, name)
    }
    lengths = {
        name: (np.asarray(text.real) > 0).sum(-1)
        for name, text in ({"prompt": rows.prompt} | answers).items()
    }
    for name, length in lengths.items():
        if (empty := np.flatnonzero(length == 0)).size:
            raise ValueError(f"{name} must hold at least one token; got none in rows {_some(empty)}")
    longest = lengths.pop("prompt") + np.max(list(lengths.values()), axis=0)
    if (longest > lm.config.context).any():
        raise ValueError(
            f"prompt and answer must fit the context of {lm.config.context} tokens; got {longest.max()} in "
            f"row {longest.argmax()}; shorten the prompt or leave the row out"
        )
    if "chosen" in answers:
        chosen, rejected = map(_flush_left, answers.values())
        if (same := np.flatnonzero((chosen == rejected).all(-1))).size:
            raise ValueError(
                f"chosen and rejected must differ; got one and the same answer in rows {_some(same)}; leave "
                "them out, they prefer nothing"
            )
    elif not ((np.asarray(rows.value) >= 0) & (np.asarray(rows.value) <= 1)).all():
        raise ValueError(
            f"labels must lie from 0, bad, to 1, good; got {np.min(rows.value):g} to {np.max(rows.value):g}; "
            "choose from which score on an answer is good"
        )


def _flush_left(text: PaddedTokens) -> np.ndarray:
    """Return tokens [N, C] with the real ones first and -1 behind them."""
    real = np.asarray(text.real) > 0
    order = np.argsort(~real, axis=-1, kind="stable")
    return np.take_along_axis(np.where(real, np.asarray(text.tokens), -1), order, -1)


def _some(rows: np.ndarray) -> str:
    return f"{rows[:5].tolist()}{'' if len(rows) <= 5 else f' and {len(rows) - 5} more'}"
