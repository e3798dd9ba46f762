"""The best of n answers: chosen when answering, or imitated (rejection sampling, expert iteration).

Choosing moves the policy by at most `losses.best_of_n_kl(n)` nats, without training. Imitating what was
chosen is a group method like the others:

    learner = make_group_learner(lm, score, config, group_size=8, method=REJECTION_SAMPLING)
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.actors.queries import join
from jaxrl_align.actors.scores import Score, as_paid, as_scored
from jaxrl_align.align.group_learner import GroupHParams, GroupMethod, by_answer
from jaxrl_align.checks import check_counts
from jaxrl_align.losses import masked_mean
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.text.generation import WHOLE, Filters, Response, TextConfig, generate
from jaxrl_align.types import Numeric, PaddedTokens, Params


class Best(NamedTuple):
    """The best of n answers to one prompt."""

    response: Response
    """Of the best one, leaves [T]."""
    score: jax.Array
    """[] of the best one."""
    scores: jax.Array
    """[n] of all, the best one's among them."""


def best_of_n(
    lm: LanguageModel,
    score: Score,
    config: TextConfig,
    params: Params,
    reward_model: Any,
    prompt: PaddedTokens,
    key: chex.PRNGKey,
    *,
    n: int,
    temperature: Numeric = 1.0,
    stop_penalty: Numeric = 1.0,
    filters: Filters = WHOLE,
) -> Best:
    """Answer ONE prompt n times and keep the answer of the highest score; the caller vmaps.

    Args:
      lm: the language model.
      score: `(reward_model, tokens[L], mask[L]) -> []`.
      config: lengths and special tokens.
      params: the policy's language model.
      reward_model: whatever the score reads.
      prompt: [P] left-padded; it is read once for all answers.
      key: the draws.
      n: answers, at least 1.
      temperature: of sampling.
      stop_penalty: of an answer without a stop token; see `TextConfig.missing_stop`.
      filters: what of the distribution is sampled.

    Returns:
      The best answer; the first of equal ones.

    Source: Nakano et al. 2021, arXiv:2112.09332; docs/lectures.md (F12).
    """
    check_counts(n=n)

    def write(key: chex.PRNGKey) -> Response:
        return generate(lm, params, prompt, key, config, temperature=temperature, filters=filters)

    responses = jax.vmap(write)(jax.random.split(key, n))

    def pay(response: Response) -> jax.Array:
        text = join(prompt, response.tokens, response.mask)
        raw = as_scored(score(reward_model, text.tokens, text.real)).total
        return as_paid(config, jnp.asarray(raw), response.tokens, response.mask, stop_penalty)[0]

    scores = jax.vmap(pay)(responses)
    best = jnp.argmax(scores)
    return Best(jax.tree.map(lambda x: x[best], responses), scores[best], scores)


def expected_best(scores: jax.Array, values: jax.Array, n: int) -> jax.Array:
    """Return the mean value of the answer that is chosen among n, over all choices of n out of N.

    Of the answers in rising order of score, the i-th (from 1) is the best of n with probability
    `C(i - 1, n - 1) / C(N, n)`: one pool of N answers tells of every n up to N, without bias and with less
    noise than drawing n anew.

    Args:
      scores: [N] what is chosen by; of equal ones, the last counts as higher.
      values: [N] what is asked for, for example the gold reward, or the scores themselves.
      n: from 1 to N.

    Returns:
      [] the expected value.

    Raises:
      ValueError: for another n.

    Source: Nakano et al. 2021, arXiv:2112.09332, appendix I.
    """
    count = scores.shape[0]
    if not 1 <= n <= count:
        raise ValueError(f"n must lie from 1 to the {count} answers; got {n}; draw more")
    places = jnp.arange(1, count + 1, dtype=jnp.float32)
    choose = lambda a, b: jax.lax.lgamma(a + 1.0) - jax.lax.lgamma(b + 1.0) - jax.lax.lgamma(a - b + 1.0)
    # Below n - 1 there is nothing to choose; lgamma of a negative number is not used.
    log_ways = choose(jnp.maximum(places - 1.0, n - 1.0), jnp.full(places.shape, n - 1.0))
    weights = jnp.where(places >= n, jax.nn.softmax(jnp.where(places >= n, log_ways, -jnp.inf)), 0.0)
    return jnp.sum(weights * values[jnp.argsort(scores)])


def follow_the_best(scores: jax.Array) -> jax.Array:
    """Return the weights [G] with which answers are imitated: all on the best one, equal ones share.

    They sum to G, so that a mean over answers is one over groups; 0 where all scores are equal, since
    nothing is better there.

    Raises:
      ValueError: if G < 2.
    """
    if scores.shape[0] < 2:
        raise ValueError(
            f"a group needs at least 2 answers to be judged by each other; got {scores.shape[0]}; raise "
            "group_size"
        )
    best = scores == jnp.max(scores)
    weights = best * (scores.shape[0] / jnp.sum(best))
    return jnp.where(jnp.all(best), 0.0, weights)


def imitation(
    log_prob: jax.Array, behaviour_log_prob: jax.Array, advantage: jax.Array, mask: jax.Array, **clips: Any
) -> jax.Array:
    """Return the weighted next-token loss of ONE answer, nats a token; no ratio, so that nothing is clipped.

    Args:
      log_prob: [T] under the parameters being trained.
      behaviour_log_prob: [T] not read.
      advantage: [T] the answer's weight.
      mask: [T].
      **clips: not read.
    """
    return masked_mean(-log_prob * jax.lax.stop_gradient(advantage), mask)


REJECTION_SAMPLING = GroupMethod(
    by_answer(follow_the_best), imitation, kl="none", hparams=GroupHParams(kl_coef=0.0)
)
"""Fine-tuning on the best of each group, the policy's own newest answers (Dong et al. 2023, RAFT,
arXiv:2304.06767). With several epochs over large batches it is expert iteration (Anthony et al. 2017,
arXiv:1705.08439; Gulcehre et al. 2023, ReST, arXiv:2308.08998). Give `kl="loss"` and a `kl_coef` to hold it
near the reference."""
