import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_align.align.reward_model import (
    RewardHParams,
    RewardModel,
    init_reward_params,
    make_reward_learner,
    normalise_scores,
    pair_answers,
    score,
    score_margins,
)
from jaxrl_align.nets.transformer import init_scalar_head
from jaxrl_align.pretrain.lm import sample_rows
from jaxrl_align.runtime import checkpoint
from jaxrl_align.types import Answers, Comparisons
from tests.tiny import BIGRAM, LM, PARAMS, VOCAB, bits, disturb, encode_all

LENGTH = 9
HEAD = disturb(init_scalar_head(None, 16), jax.random.key(4), 1.0)
MODEL = RewardModel({"lm": PARAMS, "head": HEAD})
LEARNER = make_reward_learner(LM, total_steps=150)
step = jax.jit(LEARNER.step)
read = jax.jit(lambda model, tokens, mask: score(LM, model, tokens, mask))
read_all = jax.jit(jax.vmap(lambda tokens, mask: score(LM, MODEL, tokens, mask)))
margins_of = jax.jit(lambda params, data: score_margins(LM, RewardModel(params), data))
fit = jax.jit(lambda model, tokens, mask: normalise_scores(LM, model, tokens, mask))


def make_texts(count, seed):
    """Return tokens and masks [count, LENGTH]: left padding, then text, then right padding."""
    rng = np.random.default_rng(seed)
    first, last = rng.integers(0, 3, (count, 1)), rng.integers(5, LENGTH + 1, (count, 1))
    mask = (np.arange(LENGTH) >= first) & (np.arange(LENGTH) < last)
    tokens = np.where(mask, rng.integers(2, VOCAB, (count, LENGTH)), 0)
    return jnp.asarray(tokens, jnp.int32), jnp.asarray(mask, jnp.float32)


TOKENS, MASK = make_texts(64, 0)


def answers(tokens, mask):
    """Return whole sequences as answers: the scores do not ask which of their tokens are the response."""
    return Answers(tokens, mask, mask)


def test_the_score_is_read_at_the_last_real_token():
    """The reward model reads query and response, up to the last token that is no padding."""
    hidden, kernel = (np.asarray(x) for x in (encode_all(PARAMS, TOKENS, MASK)[0], HEAD["kernel"]))
    for row, mask, got in zip(hidden, np.asarray(MASK), read_all(TOKENS, MASK), strict=True):
        last = np.flatnonzero(mask)[-1]
        np.testing.assert_allclose(got, row[last] @ kernel + float(HEAD["bias"]), atol=1e-5)


@pytest.mark.parametrize("side", [(50, 0), (0, 50), (20, 30)])
def test_padding_left_or_right_changes_no_score(side):
    """50 more pads, on either side or on both."""
    padded = jnp.pad(TOKENS, ((0, 0), side)), jnp.pad(MASK, ((0, 0), side))
    plain = read_all(TOKENS, MASK)
    assert plain.std() > 0.5
    np.testing.assert_allclose(read_all(*padded), plain, atol=1e-4)


def test_what_stands_in_padding_changes_no_score():
    """A response counts up to its stop token; what lies behind it is never read."""
    rubbish = jnp.where(MASK > 0, TOKENS, 7)
    np.testing.assert_array_equal(read_all(rubbish, MASK), read_all(TOKENS, MASK))


def test_the_head_is_drawn_and_the_network_taken_over():
    """The head is N(0, 1 / sqrt(d + 1)) with bias 0, the network the language model's bit for bit."""
    params = init_reward_params(jax.random.key(0), LM, PARAMS)
    assert bits(params["lm"]) == bits(PARAMS)
    kernels = jax.vmap(lambda k: init_reward_params(k, LM, PARAMS)["head"]["kernel"])(
        jax.random.split(jax.random.key(1), 3000)
    )
    assert kernels.std() == pytest.approx(17**-0.5, rel=0.02) and params["head"]["bias"] == 0.0


def test_normalised_scores_have_mean_0_and_deviation_1():
    """On the samples it was fitted to, whatever the normalisation was before."""
    raw = read_all(TOKENS, MASK)
    for model in (MODEL, RewardModel(MODEL.params, 7.0, -3.0)):
        fitted = fit(model, TOKENS, MASK)
        scores = jax.vmap(lambda t, m, fitted=fitted: read(fitted, t, m))(TOKENS, MASK)
        assert scores.mean() == pytest.approx(0.0, abs=1e-5)
        assert scores.std() == pytest.approx(1.0, abs=1e-5)
        np.testing.assert_allclose(scores, (raw - raw.mean()) / raw.std(), atol=1e-4)
        assert bits(fitted.params) == bits(MODEL.params)


def test_a_reward_model_that_cannot_tell_samples_apart_stays_finite():
    params = {"lm": PARAMS, "head": init_scalar_head(None, 16)}
    fitted = fit(RewardModel(params), TOKENS, MASK)
    assert read(fitted, TOKENS[0], MASK[0]) == 0.0


def test_the_normalisation_is_saved_with_the_model(tmp_path):
    """Gain and bias are leaves of the model, so a checkpoint holds them."""
    fitted = fit(MODEL, TOKENS, MASK)
    checkpoint.save(tmp_path, 1, fitted, {})
    restored, _ = checkpoint.restore(tmp_path, jax.eval_shape(lambda: fitted))
    assert bits(restored) == bits(fitted)
    assert read(restored, TOKENS[0], MASK[0]) == read(fitted, TOKENS[0], MASK[0])


def test_pair_puts_what_the_annotator_preferred_first():
    a, b = jnp.array([[2, 3], [4, 5]]), jnp.array([[6, 7], [8, 9]])
    ones, half = jnp.ones((2, 2)), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    answers = Answers(a, ones, half), Answers(b, half, 0 * half)
    data = pair_answers(*answers, np.array([True, False]))
    np.testing.assert_array_equal(data.chosen, [[[2, 3], [8, 9]], [[1, 1], [1, 0]], [[1, 0], [0, 0]]])
    np.testing.assert_array_equal(data.rejected, [[[6, 7], [4, 5]], [[1, 0], [1, 1]], [[0, 0], [1, 0]]])
    members = jax.tree.map(lambda x: x[None], (*answers, jnp.array([True, False])))
    np.testing.assert_array_equal(pair_answers(*members).chosen.tokens[0], data.chosen.tokens)


def test_margins_and_metrics_by_hand():
    data = Comparisons(answers(TOKENS[:32], MASK[:32]), answers(TOKENS[32:], MASK[32:]))
    scores = np.asarray(read_all(TOKENS, MASK), np.float64)
    gap = scores[:32] - scores[32:]
    np.testing.assert_allclose(margins_of(MODEL.params, data), gap, atol=1e-4)
    _, metrics = step(LEARNER.init(jax.random.key(0), RewardHParams(), MODEL.params), data)
    expected = {
        "loss": np.log1p(np.exp(-gap)).mean(),
        "accuracy": (gap > 0).mean(),
        "margin": gap.mean(),
        "mean_reward": scores.mean(),
        "min_reward": scores.min(),
        "max_reward": scores.max(),
    }
    assert expected.keys() <= metrics.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)


@pytest.mark.slow
def test_a_planted_rule_is_learned_and_holds_on_pairs_never_seen():
    """The annotators like the token 3; by noise they err on one pair in ten."""
    tokens, mask = make_texts(2000, 1)
    count = np.asarray(((tokens == 3) & (mask > 0)).sum(1)) + 0.1 * np.random.default_rng(2).random(2000)
    first = count[:1000] > count[1000:]
    noisy = first ^ (np.random.default_rng(3).random(1000) < 0.1)
    known = count[:1000].astype(int) != count[1000:].astype(int)
    both = answers(tokens[:1000], mask[:1000]), answers(tokens[1000:], mask[1000:])
    data = pair_answers(*both, noisy)
    train = jax.tree.map(lambda x: x[:700][known[:700]], data)
    truth = pair_answers(*both, first)
    test = jax.tree.map(lambda x: x[700:][known[700:]], truth)
    sample = jax.jit(sample_rows(train, batch_size=32))
    params = init_reward_params(jax.random.key(3), LM, PARAMS)
    state = LEARNER.init(jax.random.key(0), RewardHParams(5e-3), params)
    accuracy = lambda params: float((margins_of(params, test) > 0).mean())
    before = accuracy(state.params)
    for key in jax.random.split(jax.random.key(1), 150):
        state, _ = step(state, sample(key))
    assert test.chosen.tokens.shape[0] > 100
    assert before < 0.7 and accuracy(state.params) > 0.9, (before, accuracy(state.params))


def test_training_needs_no_language_model_to_start_from_and_uses_keys_once():
    data = Comparisons(answers(TOKENS, MASK), answers(TOKENS[::-1], MASK[::-1]))
    learner = make_reward_learner(BIGRAM, sample_rows(data, batch_size=4))
    with jax.debug_key_reuse(True):
        state = jax.jit(learner.init)(jax.random.key(0), RewardHParams())
        state, metrics = jax.jit(learner.step)(state)
    assert set(state.params) == {"lm", "head"} and np.isfinite(metrics["loss"])


def test_a_part_of_a_reward_model_trains_over_a_frozen_one():
    """The head alone: the same step as the head's in whole training, and not a bit of the rest."""
    data = Comparisons(answers(TOKENS[:8], MASK[:8]), answers(TOKENS[8:16], MASK[8:16]))
    learner = make_reward_learner(LM, optimizer=optax.identity())
    head = {"head": MODEL.params["head"]}
    begin = lambda params: learner.init(jax.random.key(0), RewardHParams(0.1), params)
    whole, _ = jax.jit(learner.step)(begin(MODEL.params), data)
    part, _ = jax.jit(learner.step)(begin(head), data, MODEL.params)
    assert set(part.params) == {"head"}
    np.testing.assert_allclose(part.params["head"]["kernel"], whole.params["head"]["kernel"], rtol=1e-6)
    assert bits(part.params) != bits(head)
