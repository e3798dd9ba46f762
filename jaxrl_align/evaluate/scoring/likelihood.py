"""Log-probabilities of whole texts under a language model, and preferences between texts.

score = make_scorer(lm)
good, bad = (score(params, encode_texts(tokenizer, texts)) for texts in (good_texts, bad_texts))
print(share_preferred(good, bad))

Bits per byte of a long text are `pretrain.lm.make_text_loss` and `bits_per_byte`.
"""

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import ArrayLike

from jaxrl_align.data.tokens.padding import right_pad
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.pretrain.lm import TokenBatch, predict_row
from jaxrl_align.text.completion import bucket_length
from jaxrl_align.types import Params


def text_log_prob(lm: LanguageModel, params: Params, tokens: jax.Array, real: jax.Array) -> jax.Array:
    """Return the log-probability of one text, `sum_{t >= 2} log p(x_t | x_{<t})`.

    The first token is given, so it should be one that starts every text; see `encode_texts`.

    Args:
      lm: the language model.
      params: its parameters.
      tokens: [L] int32, padded at the end.
      real: [L] float, 1 for a token, 0 for padding, which changes nothing.

    Returns:
      [] nats, at most 0.
    """
    chex.assert_rank([tokens, real], 1)
    nats, _, counts = predict_row(lm, params, TokenBatch(tokens, real, real))
    return -jnp.sum(nats * counts)


def encode_texts(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of texts, each behind a token that starts a text.

    That is the stop token, which ends the text before it in training, unless the tokenizer itself puts a
    token around every text, as Llama's does.
    """
    stop = tokenizer.stop_token
    start = [] if stop is None or tokenizer.encode("") else [stop]
    return [start + row for row in tokenizer.encode_batch(texts)]


def make_scorer(
    lm: LanguageModel, *, batch_size: int = 128, members: bool = False
) -> Callable[[Params, Sequence[Sequence[int]]], np.ndarray]:
    """Return `(params, rows) -> log-probabilities [N]` of texts of any lengths, each as `text_log_prob`.

    Texts are sorted by length and padded to powers of two, so that as many programs are compiled as there are
    such lengths.

    Args:
      lm: the language model.
      batch_size: texts at a time.
      members: the leaves of `params` have a leading axis [M], and so has the result, [M, N].

    Returns:
      A function; it raises ValueError for a text beyond the context, or one of fewer than two tokens.
    """
    batched = jax.vmap(lambda params, t, r: text_log_prob(lm, params, t, r), (None, 0, 0))
    program = jax.jit(jax.vmap(batched, (0, None, None)) if members else batched)

    def score(params: Params, rows: Sequence[Sequence[int]]) -> np.ndarray:
        lengths = np.array([len(row) for row in rows])
        if lengths.min(initial=2) < 2:
            raise ValueError(
                "every text must have at least two tokens: one that starts it and one to predict"
            )
        if lengths.max(initial=0) > lm.config.context:
            raise ValueError(
                f"texts must fit the context of {lm.config.context} tokens; got one of {lengths.max()}; "
                "shorten it or take a model with a longer context"
            )
        buckets = np.array([min(bucket_length(len(row), 8), lm.config.context) for row in rows])
        shape = (jax.tree.leaves(params)[0].shape[0],) if members else ()
        found = np.zeros((*shape, len(rows)), np.float32)
        for length in np.unique(buckets):
            (index,) = np.nonzero(buckets == length)
            for part in np.split(index, range(batch_size, len(index), batch_size)):
                fill = batch_size - len(part)
                padded = right_pad([*(rows[i] for i in part), *[[]] * fill], length, 0)
                scores = program(params, *padded)
                found[..., part] = np.asarray(scores)[..., : len(part)]
        return found

    return score


def share_preferred(good: ArrayLike, bad: ArrayLike) -> np.ndarray:
    """Return the share of pairs whose good text scores higher; a tie counts half, as a coin would.

    Args:
      good: [..., N] log-probabilities.
      bad: [..., N] of the texts that they are compared with.

    Returns:
      [...] in [0, 1].

    Raises:
      ValueError: for shapes that differ, no text, or a score that is nan.
    """
    good, bad = np.asarray(good), np.asarray(bad)
    if good.shape != bad.shape or not good.size:
        raise ValueError(f"every good text needs a bad one; got shapes {good.shape} and {bad.shape}")
    _refuse_nan(good, bad)
    return ((good > bad) + 0.5 * (good == bad)).mean(-1)


def rank_of(scores: ArrayLike, index: int) -> np.ndarray:
    """Return the place of one candidate among all, 1 for the likeliest; ties share the worse place.

    Args:
      scores: [..., C] log-probabilities of the candidates.
      index: which one.

    Returns:
      [...] int, 1 to C.

    Raises:
      ValueError: for a score that is nan.
    """
    scores = np.asarray(scores)
    _refuse_nan(scores)
    return (scores >= scores[..., index, None]).sum(-1)


def _refuse_nan(*scores: np.ndarray) -> None:
    if count := sum(int(np.isnan(x).sum()) for x in scores):
        raise ValueError(f"scores must be numbers; got {count} nan; has the model diverged?")
