"""Packed documents, mixtures, microbatches and whole texts judged."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.data.tokens.packing import pack
from jaxrl_align.pretrain.lm import (
    LMHParams,
    TokenBatch,
    bits_per_byte,
    make_lm_learner,
    make_text_loss,
    next_token_objective,
    packed_batch,
    perplexity,
    predict_row,
    sample_mixture,
    stream_windows,
)
from jaxrl_align.runtime.loop import run
from tests.tiny import BIGRAM, LM, PARAMS, VOCAB

LENGTH = 10
RNG = np.random.default_rng(3)
DOCUMENTS = [RNG.integers(2, VOCAB, n).tolist() for n in (4, 6, 3, 7, 2, 8)]
one_row = jax.jit(lambda p, row: predict_row(LM, p, row))


def nats_alone(document):
    """Return the document's negative log-probabilities when nothing stands beside it."""
    tokens = np.zeros(LENGTH, np.int32)
    tokens[: len(document)] = document
    real = (np.arange(LENGTH) < len(document)).astype(np.float32)
    nats, _, counts = one_row(PARAMS, TokenBatch(jnp.asarray(tokens), jnp.asarray(real), jnp.asarray(real)))
    return np.asarray(nats)[np.asarray(counts) > 0]


def test_packed_documents_are_predicted_as_if_alone():
    """To 1e-5, and no document's first token counts."""
    packed = pack(DOCUMENTS, LENGTH)
    batch = packed_batch(packed)
    nats, _, counts = jax.jit(jax.vmap(lambda row: predict_row(LM, PARAMS, row)))(batch)
    assert counts.sum() == sum(len(document) - 1 for document in DOCUMENTS)
    found = []
    for row in range(len(packed.tokens)):
        for s in range(1, packed.segments[row].max() + 1):
            here = (packed.segments[row, 1:] == s) & (np.asarray(counts[row]) > 0)
            document = packed.tokens[row][packed.segments[row] == s].tolist()
            np.testing.assert_allclose(nats[row][here], nats_alone(document), atol=1e-5)
            found.append(document)
    assert sorted(found) == sorted(DOCUMENTS)


@pytest.mark.slow
def test_microbatches_give_the_whole_batchs_loss_and_gradient():
    """Parts with unequally many counted tokens weigh by them."""
    batch = packed_batch(pack(DOCUMENTS * 4, LENGTH))
    batch = jax.tree.map(lambda x: x[:12], batch)
    batch = batch._replace(predict=batch.predict * (jnp.arange(12)[:, None] % 5 > 0))
    grads = []
    for microbatches in (1, 3):
        objective = next_token_objective(LM, microbatches=microbatches)
        f = jax.jit(
            jax.value_and_grad(
                lambda p, o=objective: o(p, None, batch, jax.random.key(0), None), has_aux=True
            )
        )
        grads.append(f(PARAMS))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), *grads)
    with pytest.raises(ValueError, match="12 rows and microbatches=5"):
        next_token_objective(LM, microbatches=5)(PARAMS, None, batch, jax.random.key(0), None)


def test_a_mixture_draws_by_weight_and_stays_within_its_source():
    """Sources of their own tokens; the shares of 20,000 windows within 4 standard errors."""
    sources = [jnp.full(30, 2), jnp.full(500, 3), jnp.full(12, 4)]
    sample = jax.jit(sample_mixture(sources, [3.0, 1.0, 6.0], batch_size=20_000, length=LENGTH))
    rows = np.asarray(sample(jax.random.key(0)).tokens)
    assert rows.shape == (20_000, LENGTH + 1)
    assert (rows == rows[:, :1]).all(), "a window crossed into another source"
    for token, share in ((2, 0.3), (3, 0.1), (4, 0.6)):
        error = (share * (1 - share) / 20_000) ** 0.5
        assert abs((rows[:, 0] == token).mean() - share) < 4 * error


def test_a_mixture_starts_its_windows_everywhere():
    """A source of 12 tokens has two windows of 11."""
    sample = sample_mixture([jnp.arange(12)], [1.0], batch_size=200, length=LENGTH)
    batch = sample(jax.random.key(1))
    assert batch.real is None and batch.predict.all()
    starts, counts = np.unique(np.asarray(batch.tokens)[:, 0], return_counts=True)
    np.testing.assert_array_equal(starts, [0, 1])
    assert counts.min() > 70


def test_mixtures_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="2 sources, 1 weights"):
        sample_mixture([jnp.arange(20)] * 2, [1.0], batch_size=2, length=LENGTH)
    with pytest.raises(ValueError, match="at least one window of 11 tokens; got 5"):
        sample_mixture([jnp.arange(20), jnp.arange(5)], [0.5, 0.5], batch_size=2, length=LENGTH)


@pytest.mark.parametrize("num", [2, 9, 10, 23])
def test_every_token_of_a_text_is_predicted_once(num):
    """Windows of 4 by hand: nats of each token from the at most 4 tokens before it in its window."""
    text = RNG.integers(2, VOCAB, num)
    nats, count = jax.jit(make_text_loss(LM, text, length=4, batch_size=2))(PARAMS)
    expected = 0.0
    for start in range(0, num - 1, 4):
        expected += nats_alone(text[start : start + 5].tolist()).sum()
    assert count == num - 1
    np.testing.assert_allclose(nats, expected, rtol=1e-5)


def test_perplexity_and_bits_per_byte_by_hand():
    """8 equally likely tokens of 2 bytes each: perplexity 8, 3 bits a token, 1.5 bits a byte."""
    nats = 10 * np.log(8.0)
    np.testing.assert_allclose(perplexity(nats, 10), 8.0, rtol=1e-6)
    np.testing.assert_allclose(bits_per_byte(nats, 20), 1.5, rtol=1e-6)


def test_a_text_of_one_token_is_refused():
    with pytest.raises(ValueError, match="at least two tokens"):
        make_text_loss(LM, [3], length=4)


def test_streamed_windows_train_as_the_same_batches_by_hand():
    text = RNG.integers(2, VOCAB, 300).astype(np.uint16)
    batches = stream_windows(text, batch_size=4, length=LENGTH - 1, seed=5)
    learner = make_lm_learner(BIGRAM)
    start = learner.init(jax.random.key(0), LMHParams(0.1))
    state, history = run(learner.step, start, 5, chunk=2, progress=False, batches=batches)
    expected = start
    step = jax.jit(learner.step)
    for i in range(5):
        row = jax.tree.map(lambda x: jnp.asarray(x[0]), batches(i, 1))
        assert row.tokens.shape == (4, LENGTH) and row.tokens.dtype == jnp.int32 and row.real is None
        expected, metrics = step(expected, row)
        np.testing.assert_allclose(history["loss"][i], metrics["loss"], rtol=1e-5)
    np.testing.assert_allclose(state.params, expected.params, rtol=1e-4, atol=1e-6)
