"""Likelihoods of tokens, and reconstructions of inputs."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.losses._arrays import as_floats, pick, same_shape


def token_log_prob(logits: chex.Array, tokens: chex.Array) -> chex.Array:
    """Compute the log-probability of each token.

        logits[t, token_t] - logsumexp_v logits[t, v]

    Args:
      logits: [T, V], already divided by the sampling temperature if there is one.
      tokens: [T] integers in [0, V).

    Returns:
      [T] nats, float32 or wider.

    Raises:
      AssertionError: if a rank or type differs.

    Source: lecture 002 (F1).
    """
    (logits,) = as_floats(logits)
    chex.assert_rank(logits, 2)
    return pick(logits, tokens) - jax.nn.logsumexp(logits, axis=-1)


def next_token_loss(
    logits: chex.Array,
    targets: chex.Array,
    *,
    label_smoothing: chex.Numeric = 0.0,
    z_loss: chex.Numeric = 0.0,
) -> chex.Array:
    """Compute the cross-entropy of each next token.

        -(1 - eps) log p(target) - eps mean_v log p(v) + z (log Z)^2,   Z = sum_v exp(logits_v)

    Args:
      logits: [T, V]; position t predicts `targets[t]`.
      targets: [T] integers in [0, V); mask padded positions with `masked_mean`.
      label_smoothing: [] eps in [0, 1], mass spread evenly over the vocabulary.
      z_loss: [] weight z >= 0 of the penalty that keeps log Z near 0.

    Returns:
      [T] nats.

    Raises:
      AssertionError: if a rank or type differs.

    Source: Szegedy et al. 2016 (smoothing); Chowdhery et al. 2022 (z-loss).
    """
    (logits,) = as_floats(logits)
    chex.assert_rank(logits, 2)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    expected_logit = (1.0 - label_smoothing) * pick(logits, targets)
    expected_logit += label_smoothing * jnp.mean(logits, axis=-1)
    return log_z - expected_logit + z_loss * jnp.square(log_z)


def reconstruction_error(
    x: chex.Array, x_hat: chex.Array, *, kind: Literal["norm", "squared", "bernoulli"] = "norm"
) -> chex.Array:
    """Compute how far a reconstruction is from its input, for one example.

        norm: ||x - x_hat||_2;  squared: ||x - x_hat||^2;  bernoulli: -sum x log p + (1 - x) log(1 - p)

    Args:
      x: [D] the input; in [0, 1] for "bernoulli".
      x_hat: [D] the reconstruction; for "bernoulli" logits of p = sigmoid(x_hat).
      kind: "norm" (the lecture's, whose gradient at 0 is 0), "squared" or "bernoulli".

    Returns:
      [] error, >= 0.

    Raises:
      AssertionError: if the shapes differ or the rank is not 1.
      ValueError: if `kind` is unknown.

    Source: lecture 000 (C6); Vincent et al. 2008 (Bernoulli).
    """
    x, x_hat = same_shape(x, x_hat)
    chex.assert_rank(x, 1)
    if kind == "bernoulli":
        return jnp.sum(jax.nn.softplus(x_hat) - x * x_hat)
    squared = jnp.sum(jnp.square(x - x_hat))
    if kind == "squared":
        return squared
    if kind == "norm":
        # The root's slope at 0 is infinite: it is taken of 1 there and thrown away.
        return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)
    raise ValueError(f'kind must be "norm", "squared" or "bernoulli"; got {kind!r}')
