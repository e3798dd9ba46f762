"""Each objective by hand, and one step of the learner against the same step written out."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_align import losses
from jaxrl_align.align import (
    RewardHParams,
    RewardModel,
    comparison_objective,
    label_objective,
    make_reward_learner,
    ranking_objective,
    rating_objective,
    score,
)
from jaxrl_align.learner import linear_decay, make_optimizer
from jaxrl_align.nets.transformer import init_scalar_head
from jaxrl_align.pretrain.lm import sample_rows
from jaxrl_align.types import Comparisons, PaddedTokens, Rankings, Ratings
from tests.tiny import LM, PARAMS, VOCAB, bits, disturb

KEY = jax.random.key(0)
HEAD = disturb(init_scalar_head(None, 16), jax.random.key(4), 1.0)
WHOLE = {"lm": PARAMS, "head": HEAD}
HPARAMS = RewardHParams()
ROWS = 6


def make_texts(shape, seed):
    """Return texts [*shape, 5] of one to five tokens, padded on the right."""
    rng = np.random.default_rng(seed)
    mask = np.arange(5) < rng.integers(1, 6, (*shape, 1))
    tokens = np.where(mask, rng.integers(2, VOCAB, (*shape, 5)), 0)
    return PaddedTokens(jnp.asarray(tokens, jnp.int32), jnp.asarray(mask, jnp.float32))


PROMPT, A, B, MANY = (
    make_texts((ROWS,), 0),
    make_texts((ROWS,), 1),
    make_texts((ROWS,), 2),
    make_texts((ROWS, 4), 3),
)
MARGIN, FLIP = jnp.linspace(0.0, 1.0, ROWS), jnp.array([0.0, 0.1, 0.3, 0.5, 0.0, 0.2])
PAIRS = Comparisons(PROMPT, A, B, MARGIN, FLIP)
RANKS = jnp.array([[1, 2, 3, 4], [1, 1, 2, 3], [2, 1, 2, 3], [1, 2, 5, 5], [1, 1, 1, 2], [4, 3, 2, 1]])
MASK = jnp.array([[1.0, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 1, 1]])
RANKED = Rankings(PROMPT, MANY, RANKS, MASK)
SCORED = Ratings(PROMPT, A, jnp.linspace(-2.0, 3.0, ROWS))
LABELLED = Ratings(PROMPT, A, jnp.array([1.0, 0, 0.45, 1, 0.25, 1]))


@jax.jit
def alone(prompt, text):
    """Return the scores of rows, each read behind its prompt alone."""
    sequence = [jnp.concatenate([p, t], -1) for p, t in zip(prompt, text, strict=True)]
    return jax.vmap(lambda tokens, mask: score(LM, RewardModel(WHOLE), tokens, mask))(*sequence)


S_A, S_B = (np.asarray(alone(PROMPT, text), np.float64) for text in (A, B))
S_MANY = np.stack(
    [alone(PROMPT, jax.tree.map(lambda x, k=k: x[:, k], MANY)) for k in range(4)], 1, dtype=np.float64
)
nls = lambda d: np.log1p(np.exp(-np.asarray(d)))


def run(objective, batch, hparams=HPARAMS):
    """Return an objective's value and metrics."""
    value, metrics = jax.jit(lambda p, b: objective(LM)(p, None, b, KEY, hparams))(WHOLE, batch)
    return float(value), {name: float(x) for name, x in metrics.items()}


def close(got, expected):
    np.testing.assert_allclose(got, expected, rtol=2e-4, atol=1e-5)


def test_comparisons_by_hand():
    """The margin is subtracted; a row's chance of being flipped and the learner's are two flips in turn."""
    hparams = RewardHParams(label_smoothing=0.2, centring=0.01)
    value, metrics = run(comparison_objective, PAIRS, hparams)
    gap, flip = S_A - S_B, np.asarray(FLIP) * 0.8 + (1 - np.asarray(FLIP)) * 0.2
    d = gap - np.asarray(MARGIN)
    expected = ((1 - flip) * nls(d) + flip * nls(-d)).mean() + 0.01 * ((S_A + S_B) ** 2).mean()
    close(value, expected)
    close(metrics["accuracy"], (gap > 0).mean())
    close(metrics["margin"], gap.mean())
    both = np.concatenate([S_A, S_B])
    close([metrics[f"{n}_reward"] for n in ("mean", "min", "max")], [both.mean(), both.min(), both.max()])
    plain, _ = run(comparison_objective, Comparisons(PROMPT, A, B))
    close(plain, nls(gap).mean())


@pytest.mark.parametrize("loss", [losses.all_pairs, losses.plackett_luce])
def test_rankings_by_hand(loss):
    value, metrics = run(lambda lm: ranking_objective(lm, loss), RANKED)
    expected, right, gaps, real = [], [], [], []
    for scores, ranks, mask in zip(S_MANY, np.asarray(RANKS), np.asarray(MASK), strict=True):
        there = np.flatnonzero(mask)
        pairs = [(i, j) for i in there for j in there if ranks[i] < ranks[j]]
        found = [scores[i] - scores[j] for i, j in pairs]
        left = [np.log(np.exp(scores[there][ranks[there] >= ranks[i]]).sum()) - scores[i] for i in there]
        expected.append(np.mean(nls(found)) if loss is losses.all_pairs else np.sum(left))
        right += [gap > 0 for gap in found]
        gaps += found
        real += list(scores[there])
    close(value, np.mean(expected))
    close([metrics["accuracy"], metrics["margin"]], [np.mean(right), np.mean(gaps)])
    close([metrics[f"{n}_reward"] for n in ("mean", "min", "max")], [np.mean(real), min(real), max(real)])


def test_rankings_of_two_are_comparisons():
    two = PaddedTokens(*(jnp.stack([a, b], 1) for a, b in zip(A, B, strict=True)))
    ranked = Rankings(PROMPT, two, jnp.tile(jnp.array([[1, 2]]), (ROWS, 1)), jnp.ones((ROWS, 2)))
    expected, of_pairs = run(comparison_objective, Comparisons(PROMPT, A, B))
    for loss in (losses.all_pairs, losses.plackett_luce):
        value, metrics = run(lambda lm, loss=loss: ranking_objective(lm, loss), ranked)
        np.testing.assert_allclose(value, expected, rtol=1e-6, atol=1e-6)
        assert metrics == pytest.approx(of_pairs, rel=1e-6)


def test_ratings_and_labels_by_hand():
    value, metrics = run(rating_objective, SCORED)
    error = S_A - np.asarray(SCORED.value)
    close([value, metrics["rmse"]], [0.5 * (error**2).mean(), np.sqrt((error**2).mean())])
    value, metrics = run(label_objective, LABELLED)
    y = np.asarray(LABELLED.value)
    close(value, (y * nls(S_A) + (1 - y) * nls(-S_A)).mean())
    close(metrics["accuracy"], ((S_A > 0) == (y > 0.5)).mean())


def test_a_step_is_the_clipped_adam_step_of_the_objective():
    """Rates, the rate's fall, and a part over a frozen base: the base's bits stay."""
    hparams = RewardHParams(0.01, centring=0.1)
    learner = make_reward_learner(LM, total_steps=10, warmup_steps=2)
    part = {"head": HEAD}
    state = learner.init(KEY, hparams, part)
    step = jax.jit(learner.step)
    optimizer = make_optimizer()
    params, opt_state = part, optimizer.init(part)
    gradient = jax.jit(jax.grad(lambda p: comparison_objective(LM)(p, WHOLE, PAIRS, KEY, hparams)[0]))
    for i in range(5):
        rate = 0.01 * float(linear_decay(jnp.int32(i), 10, 2))
        state, metrics = step(state, PAIRS, WHOLE)
        updates, opt_state = optimizer.update(gradient(params), opt_state, params)
        params = optax.apply_updates(params, jax.tree.map(lambda u, rate=rate: -rate * u, updates))
        np.testing.assert_allclose(metrics["learning_rate"], rate, rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), state.params, params)
    assert set(state.params) == {"head"} and bits(state.params) != bits(part)


def test_the_learner_descends_the_objective_it_is_given():
    learner = make_reward_learner(LM, objective=ranking_objective(LM))
    _, metrics = jax.jit(learner.step)(learner.init(KEY, HPARAMS, WHOLE), RANKED)
    close(metrics["loss"], run(ranking_objective, RANKED)[0])


def test_seeds_and_smoothing_vmap_in_one_program():
    learner = make_reward_learner(LM, sample_rows(PAIRS, batch_size=3))
    hparams = RewardHParams(jnp.full(2, 1e-3), jnp.array([0.0, 0.4]), jnp.zeros(2))
    states = jax.vmap(learner.init, (0, 0, None))(jnp.stack([KEY, KEY]), hparams, WHOLE)
    states, metrics = jax.jit(jax.vmap(learner.step))(states)
    assert metrics["accuracy"][0] == metrics["accuracy"][1]
    assert metrics["loss"][0] != metrics["loss"][1]


@pytest.mark.parametrize(
    ("objective", "batch", "message"),
    [
        (comparison_objective, RANKED, "must be Comparisons; got Rankings; each kind"),
        (ranking_objective, PAIRS, "must be Rankings; got Comparisons"),
        (rating_objective, PAIRS, "must be Ratings; got Comparisons"),
        (label_objective, RANKED, "must be Ratings; got Rankings"),
    ],
)
def test_rows_of_another_kind_are_refused(objective, batch, message):
    with pytest.raises(ValueError, match=message):
        objective(LM)(WHOLE, None, batch, KEY, HPARAMS)


def test_tokens_of_another_tokenizer_are_refused():
    foreign = PAIRS._replace(rejected=B._replace(tokens=B.tokens + VOCAB))
    with pytest.raises(ValueError, match=f"tokens must be from 0 to {VOCAB - 1}; got .*was another"):
        make_reward_learner(LM, sample_rows(foreign, batch_size=4))
