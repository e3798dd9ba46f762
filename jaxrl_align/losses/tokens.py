"""Likelihoods of tokens."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.losses._arrays import as_floats, check_coefficients, pick
from jaxrl_align.types import Array, Numeric


def token_log_prob(logits: Array, tokens: Array) -> jax.Array:
    """Compute the log-probability of each token.

        logits[t, token_t] - logsumexp_v logits[t, v]

    Args:
      logits: [T, V], already divided by the sampling temperature if there is one.
      tokens: [T] integers in [0, V).

    Returns:
      [T] nats, float32 or wider.

    Raises:
      AssertionError: if a rank or type differs.

    Source: docs/lectures.md (F1).
    """
    (logits,) = as_floats(logits)
    chex.assert_rank(logits, 2)
    return pick(logits, tokens) - jax.nn.logsumexp(logits, axis=-1)


def token_log_prob_chunked(
    hidden: Array,
    tokens: Array,
    unembed: Callable[[Array], Array],
    *,
    chunk_size: int,
) -> jax.Array:
    """Compute `token_log_prob` of `unembed(hidden)` without ever forming the logits of all positions.

        log softmax(unembed(hidden[t]))[token_t],   C positions at a time, recomputed for the gradient

    Args:
      hidden: [T, D] last hidden states.
      tokens: [T] integers in [0, V).
      unembed: `[C, D] -> [C, V]`; gradients reach the arrays that it closes over.
      chunk_size: C, static; must divide T.

    Returns:
      [T] nats, float32 or wider.

    Raises:
      AssertionError: if a rank or type differs.
      ValueError: if `chunk_size` does not divide T.

    Source: this library; the memory it saves is measured in `tests/losses/test_likelihood.py`.
    """
    chex.assert_rank([hidden, tokens], [2, 1])
    length = hidden.shape[0]
    if chunk_size < 1 or length % chunk_size:
        raise ValueError(
            f"chunk_size must divide the length; got chunk_size={chunk_size}, length={length}; "
            "pad the sequence or choose a divisor"
        )

    @jax.checkpoint
    def one_chunk(chunk: tuple[jax.Array, jax.Array]) -> jax.Array:
        return token_log_prob(unembed(chunk[0]), chunk[1])

    chunks = jax.tree.map(lambda x: x.reshape(-1, chunk_size, *x.shape[1:]), (hidden, tokens))
    return jax.lax.map(one_chunk, chunks).reshape(length)


def next_token_loss(
    logits: Array,
    targets: Array,
    *,
    label_smoothing: Numeric = 0.0,
    z_loss: Numeric = 0.0,
) -> jax.Array:
    """Compute the cross-entropy of each next token.

        -(1 - eps) log p(target) - eps mean_v log p(v) + z (log Z)^2,   Z = sum_v exp(logits_v)

    Args:
      logits: [T, V]; position t predicts `targets[t]`.
      targets: [T] integers in [0, V); mask padded positions with `masked_mean`.
      label_smoothing: [] or [T] eps in [0, 1], mass spread evenly over the vocabulary.
      z_loss: [] or [T] weight z >= 0 of the penalty that keeps log Z near 0.

    Returns:
      [T] nats.

    Raises:
      AssertionError: if a rank, shape or type differs.

    Source: Szegedy et al. 2016 (smoothing); Chowdhery et al. 2022 (z-loss).
    """
    (logits,) = as_floats(logits)
    chex.assert_rank(logits, 2)
    check_coefficients(logits.shape[:1], label_smoothing=label_smoothing, z_loss=z_loss)
    log_z = jax.nn.logsumexp(logits, axis=-1)
    expected_logit = (1.0 - label_smoothing) * pick(logits, targets)
    if not (isinstance(label_smoothing, float) and label_smoothing == 0.0):  # one more pass over the logits
        expected_logit += label_smoothing * jnp.mean(logits, axis=-1)
    return log_z - expected_logit + z_loss * jnp.square(log_z)
