import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_align.nets import init_lora, overlay, select
from jaxrl_align.pretrain.lm import (
    LMHParams,
    TokenBatch,
    is_likeliest,
    make_lm_learner,
    next_token_objective,
    sample_rows,
    sample_windows,
)
from tests.tiny import BIGRAM, LM, PARAMS, VOCAB, bits, encode_all

LENGTH = 10
RNG = np.random.default_rng(0)
TOKENS = jnp.asarray(RNG.integers(2, VOCAB, (4, LENGTH)), jnp.int32)
REAL = jnp.asarray(np.arange(LENGTH) >= np.array([[3], [0], [1], [2]]), jnp.float32)
"""Left padding of unequal lengths."""
PREDICT = jnp.asarray(np.arange(LENGTH) >= np.array([[5], [8], [3], [4]]), jnp.float32)
"""Completions of 5, 2, 7 and 6 tokens."""
BATCH = TokenBatch(TOKENS, REAL, PREDICT)
KEY = jax.random.key(0)

objective = next_token_objective(LM)
gradient = jax.jit(jax.value_and_grad(lambda p, batch: objective(p, None, batch, KEY, None), has_aux=True))


def test_the_loss_is_the_mean_over_completion_tokens():
    (loss, metrics), _ = gradient(PARAMS, BATCH)
    nats, hits = [], []
    hidden = encode_all(PARAMS, TOKENS, REAL)[0]
    logits_of_rows = np.asarray(LM.logits(PARAMS, hidden), np.float64)
    for tokens, logits, predict in zip(np.asarray(TOKENS), logits_of_rows, PREDICT, strict=True):
        log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        # The last token of the prompt predicts the first of the completion.
        for t in np.flatnonzero(predict):
            nats.append(-log_p[t - 1, tokens[t]])
            hits.append(log_p[t - 1].argmax() == tokens[t])
    assert metrics["num_tokens"] == len(nats) == 20
    np.testing.assert_allclose(loss, np.mean(nats), rtol=1e-5)
    np.testing.assert_allclose(metrics["mean_token_accuracy"], np.mean(hits), rtol=1e-6)


def test_the_likeliest_token_is_the_first_of_equal_ones_as_argmax_has_it():
    rng = np.random.default_rng(3)
    logits = rng.integers(0, 3, (200, 4)).astype(np.float32)  # most rows have ties
    targets = rng.integers(0, 4, 200)
    got = is_likeliest(jnp.asarray(logits), jnp.asarray(targets))
    np.testing.assert_array_equal(got, logits.argmax(1) == targets)
    assert 20 < got.sum() < 180
    assert not is_likeliest(jnp.full((1, 4), jnp.nan), jnp.zeros(1, int))[0]


def test_prompt_labels_change_nothing():
    """Under a bigram model only the last token of a prompt is an input that the completion reads."""
    params = BIGRAM.init(jax.random.key(0))
    bigram = next_token_objective(BIGRAM)
    loss = jax.jit(jax.value_and_grad(lambda batch, p: bigram(p, None, batch, KEY, None)[0], 1))
    before = PREDICT[:, 1:] + PREDICT[:, :-1] == 0
    other = jnp.where(jnp.pad(before, ((0, 0), (0, 1))), 2 + (TOKENS + 7) % (VOCAB - 2), TOKENS)
    assert (other != TOKENS).sum() >= 10
    changed = loss(BATCH._replace(tokens=other), params)
    plain = loss(BATCH, params)
    np.testing.assert_allclose(changed[0], plain[0], rtol=1e-6)
    np.testing.assert_allclose(changed[1], plain[1], atol=1e-7)
    # While a label of the completion counts.
    assert loss(BATCH._replace(tokens=TOKENS.at[:, -1].set(2)), params)[0] != plain[0]


def test_a_row_of_prompt_alone_has_no_gradient():
    prompt_only = BATCH._replace(predict=jnp.zeros_like(PREDICT))
    (loss, metrics), grads = gradient(PARAMS, prompt_only)
    assert loss == 0.0 and metrics["num_tokens"] == 0
    assert not any(g.any() for g in jax.tree.leaves(grads))
    # Beside completions it changes nothing, whatever it says.
    mixed = BATCH._replace(predict=PREDICT.at[2:].set(0.0))
    other = mixed._replace(tokens=TOKENS.at[2:].set(2 + (TOKENS[2:] + 7) % (VOCAB - 2)))
    grads = [gradient(PARAMS, batch)[1] for batch in (mixed, other)]
    assert max(jnp.abs(g).max() for g in jax.tree.leaves(grads[0])) > 1e-2
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *grads)


def test_a_token_marked_predict_on_padding_does_not_count():
    careless = BATCH._replace(predict=jnp.ones_like(PREDICT))
    (_, metrics), _ = gradient(PARAMS, careless)
    # The first real token is predicted from the padding before it; one row has none.
    assert metrics["num_tokens"] == REAL.sum() - 1


@pytest.mark.parametrize("side", [(50, 0), (0, 50)])
def test_padding_changes_neither_loss_nor_gradient(side):
    """Left or right, 50 more pads."""
    padded = TokenBatch(*(jnp.pad(x, ((0, 0), side)) for x in BATCH[:3]))
    (loss, metrics), grads = gradient(PARAMS, padded)
    (expected, expected_metrics), expected_grads = gradient(PARAMS, BATCH)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], expected_metrics[name], rtol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, expected_grads)


def test_microbatches_weighted_by_their_tokens_give_the_batchs_gradient():
    """Unequal lengths; the unweighted mean of the microbatches is another gradient."""
    _, expected = gradient(PARAMS, BATCH)
    parts = [gradient(PARAMS, jax.tree.map(lambda x, i=i: x[i : i + 1], BATCH)) for i in range(4)]
    counts = np.array([metrics["num_tokens"] for (_, metrics), _ in parts])
    mean = lambda weights: jax.tree.map(
        lambda *g: sum(w * x for w, x in zip(weights, g, strict=True)), *(grads for _, grads in parts)
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), mean(counts / counts.sum()), expected
    )
    careless = jax.tree.leaves(
        jax.tree.map(lambda a, b: jnp.abs(a - b).max(), mean(np.ones(4) / 4), expected)
    )
    assert max(careless) > 1e-2


def test_windows_are_whole_pieces_of_the_text():
    text = jnp.arange(30)
    sample = jax.jit(sample_windows(text, batch_size=500, length=4))
    batch = sample(jax.random.key(0))
    assert batch.tokens.shape == (500, 5)
    np.testing.assert_array_equal(batch.tokens - batch.tokens[:, :1], np.broadcast_to(np.arange(5), (500, 5)))
    assert set(np.asarray(batch.tokens[:, 0]).tolist()) == set(range(26)), "each start, the last one too"
    assert batch.real is None and batch.predict.all()
    np.testing.assert_array_equal(
        sample_windows(text[:5], batch_size=1, length=4)(jax.random.key(0)).tokens[0], text[:5]
    )


def test_a_batch_without_padding_needs_no_marks():
    marked = BATCH._replace(real=jnp.ones(TOKENS.shape))
    grads = (gradient(PARAMS, batch) for batch in (BATCH._replace(real=None), marked))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *grads)


def test_rows_stay_together():
    data = (jnp.arange(5), jnp.arange(5)[:, None] * jnp.ones((1, 3)))
    a, b = sample_rows(data, batch_size=200)(jax.random.key(0))
    assert set(a.tolist()) == set(range(5))
    np.testing.assert_array_equal(b, np.tile(np.asarray(a, np.float32)[:, None], 3))


def test_samplers_draw_by_their_key_alone():
    """The key is the data cursor: the same one draws the same batch."""
    for sample in (sample_windows(jnp.arange(99), batch_size=8, length=4), sample_rows(TOKENS, batch_size=8)):
        assert bits(sample(jax.random.key(1))) == bits(sample(jax.random.key(1)))
        assert bits(sample(jax.random.key(1))) != bits(sample(jax.random.key(2)))


def test_data_that_hold_nothing_are_refused():
    with pytest.raises(
        ValueError, match="at least one window of 6 tokens; got 5; give more text or a shorter"
    ):
        sample_windows(jnp.arange(5), batch_size=1, length=5)
    with pytest.raises(ValueError, match="at least one window of 5 tokens; got 0"):
        sample_windows(jnp.zeros(0, jnp.int32), batch_size=1, length=4)
    with pytest.raises(ValueError, match="at least one row; got none"):
        sample_rows(jnp.zeros((0, 3)), batch_size=1)


TEXT = jnp.tile(jnp.array([5, 3, 9, 3, 17, 4]), 10)
"""Telling what follows a 3 takes two tokens of memory."""


@pytest.mark.slow
def test_pretraining_learns_a_text():
    learner = make_lm_learner(
        LM, sample_windows(TEXT, batch_size=8, length=12), total_steps=80, warmup_steps=10
    )
    state = learner.init(jax.random.key(0), LMHParams(2e-2))
    step = jax.jit(learner.step)
    with jax.debug_key_reuse(True):
        history = [None] * 80
        for i in range(80):
            state, history[i] = step(state)
    assert step._cache_size() == 1
    loss, rate = (np.array([metrics[name] for metrics in history]) for name in ("loss", "learning_rate"))
    assert loss[0] == pytest.approx(np.log(VOCAB), abs=0.2), "a fresh model knows nothing"
    # What remains is each window's first tokens, before which nothing stands.
    assert loss[-1] < 0.15 and history[-1]["mean_token_accuracy"] > 0.9
    assert history[-1]["num_tokens"] == 8 * 12
    np.testing.assert_allclose(rate[:11], 2e-2 * np.append(np.arange(1, 11) / 11, 1.0), rtol=1e-5)
    np.testing.assert_allclose(rate[10:], 2e-2 * np.arange(70, 0, -1) / 70, rtol=1e-5)


def test_lora_trains_the_adapter_and_not_a_bit_of_the_base():
    """Lecture D5: the base stays frozen."""
    learner = make_lm_learner(LM, sample_windows(TEXT, batch_size=8, length=12))
    adapter, constants = init_lora(jax.random.key(1), PARAMS, rank=4, alpha=8)
    base = overlay(PARAMS, constants)
    state = learner.init(jax.random.key(0), LMHParams(1e-2), adapter)
    before = bits(base)
    assert jax.tree.structure(state.params) == jax.tree.structure(adapter)
    adam = [x.shape for x in jax.tree.leaves(state.opt_state) if x.ndim]
    assert sorted(adam) == sorted(2 * [x.shape for x in jax.tree.leaves(adapter)])
    step = jax.jit(learner.step)
    losses = []
    for _ in range(40):
        state, metrics = step(state, None, base)
        losses.append(float(metrics["loss"]))
    assert bits(base) == before
    assert bits(state.params) != bits(adapter)
    assert losses[-1] < 0.6 * losses[0]


def test_any_part_trains_as_it_does_within_the_whole():
    """BitFit by plain descent: the biases move as in full training, and nothing else is in the state."""
    learner = make_lm_learner(LM, optimizer=optax.identity())
    begin = lambda params: learner.init(jax.random.key(0), LMHParams(0.1), params)
    step = jax.jit(learner.step)
    biases = select(PARAMS, "*bias")
    part, _ = step(begin(biases), BATCH, PARAMS)
    whole, _ = step(begin(PARAMS), BATCH)
    assert jax.tree.structure(part.params) == jax.tree.structure(biases)
    assert_close = lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6)
    jax.tree.map(assert_close, part.params, select(whole.params, "*bias"))
    assert bits(part.params) != bits(biases)


def test_fine_tuning_starts_from_the_given_parameters():
    learner = make_lm_learner(BIGRAM)
    params = BIGRAM.init(jax.random.key(7))
    state = learner.init(jax.random.key(0), LMHParams(0.0), params)
    assert bits(state.params) == bits(params)
    state, metrics = jax.jit(learner.step)(state, BATCH)
    assert bits(state.params) == bits(params), "at a rate of 0"
    expected, _ = next_token_objective(BIGRAM)(params, None, BATCH, KEY, None)
    np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-5)
