"""Entropies and KL divergences: exact, and estimated from samples."""

from typing import Literal

import jax
import jax.numpy as jnp

from jaxrl_align.losses._arrays import as_floats, bounded_exp, same_shape
from jaxrl_align.types import Array, Numeric


def entropy(logits: Array) -> jax.Array:
    """Compute the entropy of a categorical distribution.

        H = -sum_a p_a log p_a,   p = softmax(logits)

    Args:
      logits: [..., A]; -inf forbids an action and leaves the gradient finite.

    Returns:
      [...] nats, in [0, log A].

    Source: Shannon 1948; docs/lectures.md (B26).
    """
    (logits,) = as_floats(logits)
    log_p = jax.nn.log_softmax(logits)
    return -jnp.sum(jnp.exp(log_p) * jnp.where(jnp.isneginf(log_p), 0.0, log_p), axis=-1)


def categorical_kl(logits_p: Array, logits_q: Array) -> jax.Array:
    """Compute the exact KL divergence between two categorical distributions.

        KL(p || q) = sum_a p_a (log p_a - log q_a)

    Args:
      logits_p: [..., A]; -inf forbids an action.
      logits_q: [..., A]; where q forbids what p allows the divergence is inf.

    Returns:
      [...] nats, >= 0.

    Raises:
      AssertionError: if the shapes differ.

    Source: Kullback & Leibler 1951; Schulman et al. 2015 (TRPO).
    """
    logits_p, logits_q = same_shape(logits_p, logits_q)
    log_p, log_q = jax.nn.log_softmax(logits_p), jax.nn.log_softmax(logits_q)
    allowed = ~jnp.isneginf(log_p)
    # However little p allows there, where exp rounds it to 0: 0 * inf would be NaN.
    p = jnp.where(allowed & jnp.isneginf(log_q), 1.0, jnp.exp(log_p))
    # Both branches are made finite first: 0 * (-inf - -inf) would be NaN, and so would its gradient.
    difference = jnp.where(allowed, log_p, 0.0) - jnp.where(allowed, log_q, 0.0)
    return jnp.sum(p * difference, axis=-1)


def kl_estimate(log_prob: Array, log_prob_ref: Array, *, kind: Literal["k1", "k2", "k3"] = "k3") -> jax.Array:
    """Estimate KL(pi || pi_ref) from actions drawn from pi.

        k1 = -log r,   k2 = (log r)^2 / 2,   k3 = r - 1 - log r,   r = pi_ref / pi

    k1 and k3 are unbiased, k2 and k3 are never negative. As a *loss* on samples held fixed only k2 has the
    gradient of the KL; k1's is 0 in expectation and k3's is that of the reversed KL.

    Args:
      log_prob: [...] nats, under pi.
      log_prob_ref: [...] nats, under pi_ref.
      kind: "k1", "k2" or "k3".

    Returns:
      [...] estimates in nats.

    Raises:
      AssertionError: if the shapes differ.
      ValueError: if `kind` is unknown.

    Source: Schulman 2020, "Approximating KL divergence".
    """
    log_prob, log_prob_ref = same_shape(log_prob, log_prob_ref)
    log_ratio = log_prob_ref - log_prob
    if kind == "k1":
        return -log_ratio
    if kind == "k2":
        return 0.5 * jnp.square(log_ratio)
    if kind == "k3":
        return bounded_exp(log_ratio) - 1.0 - log_ratio
    raise ValueError(f'kind must be "k1", "k2" or "k3"; got {kind!r}')


def best_of_n_kl(n: Numeric) -> jax.Array:
    """Compute how far choosing the best of n samples moves a policy.

        KL(best of n || pi) = log n - (n - 1) / n

    Args:
      n: [...] samples, >= 1.

    Returns:
      [...] nats; exact without ties among the scores, otherwise a bound from above.

    Source: Stiennon et al. 2020, appendix G.3; Beirami et al. 2024 (arXiv:2401.01879), on the bound.
    """
    (n,) = as_floats(n)
    return jnp.log(n) - (n - 1.0) / n


def gaussian_entropy(log_std: Array) -> jax.Array:
    """Compute the entropy of a diagonal Gaussian.

        H = sum_d log std_d + 0.5 log(2 pi e)

    Args:
      log_std: [..., D] logarithms of the standard deviations.

    Returns:
      [...] nats.

    Source: Shannon 1948.
    """
    (log_std,) = as_floats(log_std)
    return jnp.sum(log_std + 0.5 * jnp.log(2.0 * jnp.pi * jnp.e), axis=-1)


def gaussian_kl(mean_p: Array, log_std_p: Array, mean_q: Array, log_std_q: Array) -> jax.Array:
    """Compute the exact KL divergence between two diagonal Gaussians.

        KL(p || q) = sum_d log(s_q / s_p) + (s_p^2 + (m_p - m_q)^2) / (2 s_q^2) - 1/2

    Args:
      mean_p: [..., D] mean of p.
      log_std_p: [..., D] logarithm of its standard deviation.
      mean_q: [..., D] mean of q.
      log_std_q: [..., D] logarithm of its standard deviation.

    Returns:
      [...] nats, >= 0.

    Raises:
      AssertionError: if the shapes differ.

    Source: Kullback & Leibler 1951.
    """
    mean_p, log_std_p, mean_q, log_std_q = same_shape(mean_p, log_std_p, mean_q, log_std_q)
    log_ratio = log_std_p - log_std_q
    distance = jnp.square((mean_p - mean_q) * jnp.exp(-log_std_q))
    return jnp.sum(0.5 * (jnp.expm1(2.0 * log_ratio) + distance) - log_ratio, axis=-1)
