"""Text classification by a language model whose last layer is exchanged for a linear head.

Pre-training and fine-tuning share all weights but the last layer's: what predicted the next token is
replaced by a head that reads the text's mean features, and every weight learns from the labels.

Source: docs/lectures.md (C6).
"""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxrl_align.learner import LossFn, make_gradient_learner, make_optimizer, train
from jaxrl_align.losses import token_log_prob
from jaxrl_align.nets.adapters import overlay, with_dropout
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.types import Learner, Metrics, Numeric, Params, Sampler


class TextClassifierHParams(NamedTuple):
    """The traced scalars of text classification."""

    learning_rate: Numeric = 1e-3


class LabelledText(NamedTuple):
    """Texts with their class, one per row."""

    tokens: jax.Array
    """[N, L] int32; padding anywhere."""
    real: jax.Array
    """[N, L] float, 1 for a token of the text, 0 for padding."""
    label: jax.Array
    """[N] int32."""


def mean_features(lm: LanguageModel, params: Params, tokens: jax.Array, real: jax.Array) -> jax.Array:
    """Return the mean over one text's real tokens of the last hidden state and of the token's embedding.

    The embeddings' mean is the text's bag of tokens; the hidden states add what the order says.

    Args:
      lm: the language model.
      params: its parameters.
      tokens: [L] int32.
      real: [L] 1 for a real token, 0 for padding.

    Returns:
      [2 width]; 0 for a text without tokens.
    """
    hidden, _ = lm.encode(params, tokens, real)
    states = jnp.concatenate([hidden, params["tokens"][tokens]], axis=-1)
    return real @ states / jnp.maximum(jnp.sum(real), 1.0)


def attach_head(lm: LanguageModel, params: Params, num_classes: int) -> Params:
    """Return a classifier's parameters: the language model's own and a head of zeros.

    Raises:
      ValueError: for fewer than two classes.
    """
    if num_classes < 2:
        raise ValueError(f"num_classes must be at least 2; got {num_classes}")
    head = {"kernel": jnp.zeros((2 * lm.config.width, num_classes)), "bias": jnp.zeros(num_classes)}
    return {"lm": params, "head": head}


def fit_head(
    features: jax.Array, label: jax.Array, num_classes: int, *, penalty: float = 30.0, steps: int = 200
) -> Params:
    """Return the head that classifies fixed features best: logistic regression on standardised features.

        min over K, b of   mean_n CE(x_n K + b, y_n) + penalty |K|^2 / (2 N)
        x = (features - mean) / deviation

    Fine-tuning that starts from it moves the pre-trained weights less than from a new head, whose errors
    would pass through them (Kumar et al. 2022, arXiv:2202.10054).

    Args:
      features: [N, F].
      label: [N] int32.
      num_classes: C.
      penalty: weight of the squared kernel, as against the sum of the N losses.
      steps: of Adam on all rows.

    Returns:
      `{"kernel": [F, C], "bias": [C]}`, which reads the features as they are.
    """
    chex.assert_equal_shape_prefix([features, label], 1)
    mean, deviation = jnp.mean(features, 0), jnp.std(features, 0) + 1e-6
    x = (features - mean[None]) / deviation[None]

    def loss(params: Params, frozen: Any, batch: Any, key: Any, hparams: Any) -> tuple[jax.Array, Metrics]:
        logits = x @ params["kernel"] + params["bias"][None]
        size = penalty / (2 * len(label)) * jnp.sum(params["kernel"] ** 2)
        return size - jnp.mean(token_log_prob(logits, label)), {}

    zeros = {"kernel": jnp.zeros((x.shape[1], num_classes)), "bias": jnp.zeros(num_classes)}
    learner = make_gradient_learner(lambda key: zeros, loss, lambda key: None, total_steps=steps)
    state, _ = train(learner, steps)(jax.random.key(0), TextClassifierHParams(0.03))
    kernel = state.params["kernel"] / deviation[:, None]
    return {"kernel": kernel, "bias": state.params["bias"] - mean @ kernel}


def classify(lm: LanguageModel, params: Params, tokens: jax.Array, real: jax.Array) -> jax.Array:
    """Map one text, tokens and real [L], to logits [C]; `params` is what `attach_head` returned."""
    head = params["head"]
    return mean_features(lm, params["lm"], tokens, real) @ head["kernel"] + head["bias"]


def classification_objective(lm: LanguageModel) -> LossFn:
    """Return the mean cross-entropy of the classes of a batch of `LabelledText`."""

    def loss(
        params: Params, frozen: Any, batch: LabelledText, key: chex.PRNGKey, hparams: Any
    ) -> tuple[jax.Array, Metrics]:
        chex.assert_equal_shape([batch.tokens, batch.real])
        chex.assert_equal_shape_prefix([batch.tokens, batch.label], 1)
        whole = overlay(frozen, params)
        read = lambda tokens, real, key: classify(lm, with_dropout(whole, key), tokens, real)
        logits = jax.vmap(read)(batch.tokens, batch.real, jax.random.split(key, len(batch.label)))
        hit = jnp.argmax(logits, -1) == batch.label
        return -jnp.mean(token_log_prob(logits, batch.label)), {"accuracy": jnp.mean(hit)}

    return loss


def make_text_classifier(
    lm: LanguageModel,
    num_classes: int,
    sample: Sampler | None = None,
    *,
    total_steps: int | None = None,
    warmup_steps: int = 0,
    optimizer: optax.GradientTransformation | None = None,
) -> Learner:
    """Build the learner that trains a language model and a new head to tell classes of texts.

    Start from a pre-trained model with `init(key, hparams, params=attach_head(lm, params, num_classes))`; a
    part of these parameters trains alone where each step is given the rest as `frozen`.

    Args:
      lm: the language model.
      num_classes: C.
      sample: `key -> LabelledText`.
      total_steps: the learning rate falls linearly to 0 over this many steps.
      warmup_steps: it first rises over this many.
      optimizer: an update rule without its learning rate; default Adam behind a global norm of 1.

    Returns:
      A `Learner` with metrics `loss` (nats), `accuracy`, `grad_norm`, `learning_rate`.
    """
    return make_gradient_learner(
        lambda key: attach_head(lm, lm.init(key), num_classes),
        classification_objective(lm),
        sample,
        optimizer=optimizer or make_optimizer(max_grad_norm=1.0, eps=1e-8),
        total_steps=total_steps,
        warmup_steps=warmup_steps,
    )


def mean_accuracy(
    lm: LanguageModel, params: Params, data: LabelledText, *, batch_size: int = 32
) -> jax.Array:
    """Return the share [] of texts whose likeliest class is theirs, `batch_size` at a time."""

    def hit(row: LabelledText) -> jax.Array:
        return jnp.argmax(classify(lm, params, row.tokens, row.real)) == row.label

    return jnp.mean(jax.lax.map(hit, data, batch_size=batch_size).astype(jnp.float32))
