import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.learner import train
from jaxrl_align.pretrain.lm import sample_rows
from jaxrl_align.pretrain.text_classification import (
    ClassifierHParams,
    LabelledText,
    attach_head,
    classification_objective,
    classify,
    make_text_classifier,
    mean_accuracy,
    mean_hidden,
)
from tests.tiny import BIGRAM, LM, PARAMS, VOCAB, encode_all

BIGRAM_CLASSIFIER = {
    "lm": jnp.zeros(()),
    "head": {"kernel": jnp.eye(VOCAB)[:, :3] * 2.0, "bias": jnp.array([0.0, 0.0, 0.5])},
}
"""On a model whose hidden state is its token's one-hot: token i votes for class i, below 3."""


def text(*rows):
    length = max(map(len, rows))
    tokens = np.array([list(row) + [7] * (length - len(row)) for row in rows], np.int32)
    real = np.array([[1.0] * len(row) + [0.0] * (length - len(row)) for row in rows], np.float32)
    return jnp.asarray(tokens), jnp.asarray(real)


def test_logits_are_the_head_of_the_mean_over_real_tokens():
    tokens, real = text([0, 0, 1, 5], [2, 1])
    got = jax.vmap(lambda t, r: classify(BIGRAM, BIGRAM_CLASSIFIER, t, r))(tokens, real)
    np.testing.assert_allclose(got, [[1.0, 0.5, 0.5], [0.0, 1.0, 1.5]], atol=1e-6)
    empty = classify(BIGRAM, BIGRAM_CLASSIFIER, tokens[0], jnp.zeros(4))
    np.testing.assert_allclose(empty, [0.0, 0.0, 0.5])


def test_objective_is_the_mean_cross_entropy_and_the_accuracy():
    tokens, real = text([0, 0, 1, 5], [2, 1], [2, 2])
    batch = LabelledText(tokens, real, jnp.array([0, 1, 0]))
    loss, metrics = classification_objective(BIGRAM)(BIGRAM_CLASSIFIER, None, batch, jax.random.key(0), None)
    logits = np.array([[1.0, 0.5, 0.5], [0.0, 1.0, 1.5], [0.0, 0.0, 2.5]])
    wanted = np.log(np.exp(logits).sum(1)) - logits[np.arange(3), [0, 1, 0]]
    np.testing.assert_allclose(loss, wanted.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["accuracy"], 1 / 3, rtol=1e-6)
    for batch_size in (1, 2, 3, 8):
        found = mean_accuracy(BIGRAM, BIGRAM_CLASSIFIER, batch, batch_size=batch_size)
        np.testing.assert_allclose(found, 1 / 3, rtol=1e-6)


def test_padding_changes_nothing_in_a_transformer():
    tokens, real = text([3, 4, 5], [3, 4, 5, 6, 8])
    hidden = jax.jit(jax.vmap(lambda t, r: mean_hidden(LM, PARAMS, t, r)))
    short = hidden(tokens, real)
    other = hidden(jnp.where(real > 0, tokens, 11), real)
    np.testing.assert_allclose(short, other, atol=1e-6)
    np.testing.assert_allclose(short[1], encode_all(PARAMS, tokens, real)[0][1].mean(0), atol=1e-5)


def test_a_new_head_gives_every_class_the_same_chance_and_keeps_the_model():
    assert attach_head(LM, PARAMS, 4)["lm"] is PARAMS
    tokens, real = text([3, 4, 5])
    logits = classify(BIGRAM, attach_head(BIGRAM, jnp.zeros(()), 4), tokens[0], real[0])
    np.testing.assert_array_equal(logits, np.zeros(4))
    with pytest.raises(ValueError, match="num_classes must be at least 2; got 1"):
        attach_head(LM, PARAMS, 1)


def test_the_learner_tells_texts_apart_by_a_token_and_moves_every_weight():
    """The class is which of two tokens occurs, among tokens that say nothing."""
    rng = np.random.default_rng(0)
    label = np.arange(32) % 2
    tokens = rng.integers(5, VOCAB, (32, 6))
    tokens[np.arange(32), rng.integers(0, 6, 32)] = 2 + label
    data = LabelledText(jnp.asarray(tokens, jnp.int32), jnp.ones((32, 6)), jnp.asarray(label, jnp.int32))
    learner = make_text_classifier(LM, 2, sample_rows(data, batch_size=32), total_steps=60, warmup_steps=3)

    def learn(key, hparams):
        start = learner.init(key, hparams).params
        state, metrics = train(learner, 60)(key, hparams)
        return start, state.params, metrics, mean_accuracy(LM, state.params, data)

    start, end, metrics, accuracy = jax.jit(learn)(jax.random.key(0), ClassifierHParams(1e-2))
    np.testing.assert_allclose(metrics["loss"][0], np.log(2), rtol=1e-5)
    assert metrics["loss"][-1] < 0.2 and accuracy > 0.9
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), start, end)
    # A key's bias shifts all scores of a query alike, which the softmax forgets.
    moved["lm"]["layers"].pop("key")
    assert min(jax.tree.leaves(moved)) > 1e-5
