"""The best of n: chosen, expected from a pool, imitated."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_align import losses
from jaxrl_align.actors import Frozen
from jaxrl_align.actors.answer_groups import make_group_actor
from jaxrl_align.align import REJECTION_SAMPLING, best_of_n, expected_best, make_group_learner
from jaxrl_align.align.best_of_n import follow_the_best
from jaxrl_align.text.generation import TextConfig
from jaxrl_align.types import PaddedTokens
from tests.tiny import BIGRAM, VOCAB, favour

P, T, STOP, LIKED = 3, 5, 1, 7
CONFIG = TextConfig(P, T)
LM = favour(STOP, 1.0, BIGRAM)
TABLE = BIGRAM.init(jax.random.key(0))
PROMPT = PaddedTokens(jnp.array([3, 4, 5]), jnp.ones(P))
COUNT = lambda weight, tokens, mask: weight * jnp.sum((tokens[P:] == LIKED) * mask[P:])


def test_the_best_answer_is_kept_whole():
    """Of 6, with what all of them earned; those without a stop token earn the penalty."""
    lm = favour(LIKED, 1.0, LM)
    choose = jax.jit(
        jax.vmap(lambda k: best_of_n(lm, COUNT, CONFIG, TABLE, 2.0, PROMPT, k, n=6, stop_penalty=0.5))
    )
    best = choose(jax.random.split(jax.random.key(0), 40))
    tokens, mask = np.asarray(best.response.tokens), np.asarray(best.response.mask)
    stopped = ((tokens == STOP) & (mask > 0)).any(1)
    earned = np.where(stopped, 2.0 * ((tokens == LIKED) & (mask > 0)).sum(1), -0.5)
    np.testing.assert_allclose(best.score, earned)
    np.testing.assert_allclose(best.score, best.scores.max(1))
    assert best.scores.shape == (40, 6) and len(set(earned.tolist())) > 2
    assert (np.asarray(best.scores) == -0.5).any()


def test_the_expected_best_by_all_choices():
    """Of 7 answers: the mean over all C(7, n) choices of the value whose score is highest."""
    rng = np.random.default_rng(0)
    scores, values = rng.normal(size=7), rng.normal(size=7)
    for n in range(1, 8):
        picks = [max(chosen, key=lambda i: scores[i]) for chosen in itertools.combinations(range(7), n)]
        got = jax.jit(expected_best, static_argnums=2)(jnp.asarray(scores), jnp.asarray(values), n)
        np.testing.assert_allclose(got, values[picks].mean(), rtol=1e-4, atol=1e-6)
    many = expected_best(jnp.arange(2000.0), jnp.arange(2000.0), 1000)
    np.testing.assert_allclose(many, 1000 * 2001 / 1001 - 1, rtol=1e-4)  # the mean of a maximum
    for n in (0, 8):
        with pytest.raises(ValueError, match=f"from 1 to the 7 answers; got {n}"):
            expected_best(jnp.asarray(scores), jnp.asarray(values), n)


def test_the_kl_of_the_best_of_n():
    """log n - (n - 1) / n; by its definition for distinct scores: n F^(n - 1) is the density's ratio."""
    np.testing.assert_allclose(
        losses.best_of_n_kl(jnp.array([1, 2, 4])), [0.0, math.log(2) - 0.5, math.log(4) - 0.75], rtol=1e-6
    )
    grid = (np.arange(200_000) + 0.5) / 200_000
    ratio = 4 * grid**3
    np.testing.assert_allclose(losses.best_of_n_kl(4), np.mean(ratio * np.log(ratio)), rtol=1e-4)


def test_weights_of_imitation():
    """All on the best, shared by equals, nothing where all are equal."""
    np.testing.assert_allclose(follow_the_best(jnp.array([0.0, 2.0, 1.0])), [0.0, 3.0, 0.0])
    np.testing.assert_allclose(follow_the_best(jnp.array([2.0, 2.0, 1.0, 0.0])), [2.0, 2.0, 0.0, 0.0])
    np.testing.assert_allclose(follow_the_best(jnp.array([2.0, 2.0])), [0.0, 0.0])
    with pytest.raises(ValueError, match="a group needs at least 2 answers"):
        follow_the_best(jnp.array([2.0]))


def test_a_step_of_rejection_sampling_by_hand():
    """The gradient is that of the best answers' mean next-token loss, one for each prompt."""
    groups, size = 4, 5
    prompts = PaddedTokens(jnp.arange(2, 2 + 3 * groups).reshape(groups, P), jnp.ones((groups, P)))
    params, frozen = {"lm": TABLE}, Frozen(TABLE, 1.0)
    plain = {"group_size": size, "method": REJECTION_SAMPLING, "optimizer": optax.identity()}
    learner = make_group_learner(LM, COUNT, CONFIG, **plain)
    hparams = REJECTION_SAMPLING.hparams._replace(learning_rate=1.0)
    state = learner.init(jax.random.key(1), hparams, params)
    after, metrics = jax.jit(learner.step)(state, prompts, frozen)
    actor = make_group_actor(LM, COUNT, CONFIG, group_size=size, penalty="none")
    key = jax.random.split(state.key, 3)[1]
    got = jax.jit(lambda key: actor.rollout(params, frozen, None, key, hparams, prompts)[1])(key)
    tokens, mask, reward = (
        np.asarray(x).reshape(groups, size, T) for x in (got.action, got.mask, got.reward)
    )
    score = reward.sum(2)
    best = [g for g in range(groups) if np.ptp(score[g])]
    assert len(best) > 1, "answers of some prompts must differ"
    last = np.asarray(prompts.tokens)[:, -1]

    @jax.jit
    @jax.grad
    def by_hand(table):
        total = 0.0
        for g in best:
            picks = np.flatnonzero(score[g] == score[g].max())
            for i in picks:
                count = int(mask[g, i].sum())
                before = np.append(last[g], tokens[g, i, : count - 1])
                logits = LM.logits(table, jax.nn.one_hot(before, VOCAB)).at[:, 0].set(-1e9)
                log_p = jax.nn.log_softmax(logits)[np.arange(count), tokens[g, i, :count]]
                total -= jnp.mean(log_p) / len(picks) / groups
        return total

    np.testing.assert_allclose(TABLE - after.params["lm"], by_hand(TABLE), atol=1e-5)
    assert "kl" not in metrics and metrics["frac_reward_zero_std"] == 1 - len(best) / groups
