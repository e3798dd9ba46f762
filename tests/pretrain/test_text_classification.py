import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.learner import train
from jaxrl_align.nets.transformer import TransformerConfig
from jaxrl_align.pretrain.lm import sample_rows
from jaxrl_align.pretrain.text_classification import (
    LabelledText,
    TextClassifierHParams,
    attach_head,
    classification_objective,
    classify,
    fit_head,
    make_text_classifier,
    mean_accuracy,
    mean_features,
)
from tests.tiny import BIGRAM, LM, PARAMS, VOCAB, encode_all

BIGRAM_CLASSIFIER = {
    "lm": {"tokens": jnp.eye(VOCAB)[::-1]},
    "head": {"kernel": jnp.eye(2 * VOCAB)[:, :3] * 2.0, "bias": jnp.array([0.0, 0.0, 0.5])},
}
"""On a model whose hidden state is its token's one-hot, and whose embedding is that of 19 minus the token:
the hidden state's token i votes for class i, below 3, and the embedding says nothing."""


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


@pytest.mark.slow
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
    features = jax.jit(jax.vmap(lambda t, r: mean_features(LM, PARAMS, t, r)))
    short = features(tokens, real)
    other = features(jnp.where(real > 0, tokens, 11), real)
    np.testing.assert_allclose(short, other, atol=1e-6)
    np.testing.assert_allclose(short[1, :16], encode_all(PARAMS, tokens, real)[0][1].mean(0), atol=1e-5)
    np.testing.assert_allclose(short[0, 16:], PARAMS["tokens"][3:6].mean(0), atol=1e-6)


def test_a_new_head_gives_every_class_the_same_chance_and_keeps_the_model():
    assert attach_head(LM, PARAMS, 4)["lm"] is PARAMS
    tokens, real = text([3, 4, 5])
    logits = classify(BIGRAM, attach_head(BIGRAM, BIGRAM_CLASSIFIER["lm"], 4), tokens[0], real[0])
    np.testing.assert_array_equal(logits, np.zeros(4))
    with pytest.raises(ValueError, match="num_classes must be at least 2; got 1"):
        attach_head(LM, PARAMS, 1)


def test_the_fitted_head_is_penalised_logistic_regression():
    """At the minimum the gradient vanishes; the head reads features of any scale and offset alike."""
    rng = np.random.default_rng(0)
    label = jnp.asarray(np.arange(30) % 3, jnp.int32)
    x = jnp.asarray(rng.normal(size=(30, 4)) + np.eye(3, 4)[np.arange(30) % 3], jnp.float32)
    x = (x - x.mean(0, keepdims=True)) / x.std(0, keepdims=True)
    fit = jax.jit(lambda x: fit_head(x, label, 3, penalty=3.0))

    def loss(head):
        log_prob = jax.nn.log_softmax(x @ head["kernel"] + head["bias"][None])
        return 3.0 / 60 * jnp.sum(head["kernel"] ** 2) - jnp.mean(log_prob[jnp.arange(30), label])

    head = fit(x)
    assert loss(head) < 1.0 < loss({"kernel": jnp.zeros((4, 3)), "bias": jnp.zeros(3)})
    assert max(float(jnp.max(jnp.abs(g))) for g in jax.tree.leaves(jax.grad(loss)(head))) < 2e-3
    scale, offset = jnp.array([[10.0, 0.1, 1.0, 3.0]]), jnp.array([[5.0, -2.0, 0.0, 1.0]])
    moved = fit(x * scale + offset)
    logits = (x * scale + offset) @ moved["kernel"] + moved["bias"][None]
    np.testing.assert_allclose(logits, x @ head["kernel"] + head["bias"][None], atol=1e-3)


def test_the_learner_tells_texts_apart_by_a_token_and_moves_the_models_weights_too():
    """The class is which of two tokens occurs, among tokens that say nothing; the model is its embedding."""
    rng = np.random.default_rng(0)
    label = np.arange(32) % 2
    tokens = rng.integers(5, VOCAB, (32, 6))
    tokens[np.arange(32), rng.integers(0, 6, 32)] = 2 + label
    data = LabelledText(jnp.asarray(tokens, jnp.int32), jnp.ones((32, 6)), jnp.asarray(label, jnp.int32))
    bag = BIGRAM._replace(
        config=TransformerConfig(VOCAB, width=4, heads=1),
        init=lambda key: {"tokens": jax.random.normal(key, (VOCAB, 4))},
        encode=lambda params, tokens, *_, **__: (params["tokens"][tokens], None),
    )
    learner = make_text_classifier(bag, 2, sample_rows(data, batch_size=32), total_steps=60, warmup_steps=3)

    def learn(key, hparams):
        start = learner.init(key, hparams).params
        state, metrics = train(learner, 60)(key, hparams)
        return start, state.params, metrics, mean_accuracy(bag, state.params, data)

    start, end, metrics, accuracy = jax.jit(learn)(jax.random.key(0), TextClassifierHParams(5e-2))
    np.testing.assert_allclose(metrics["loss"][0], np.log(2), rtol=1e-5)
    assert metrics["loss"][-1] < 0.2 and accuracy > 0.9
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), start, end)
    assert min(jax.tree.leaves(moved)) > 1e-3
