"""Reconstructions of inputs, and the noise that denoising autoencoders take away."""

from typing import Literal

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.losses._arrays import as_floats, same_shape
from jaxrl_align.types import Array, Numeric


def reconstruction_error(
    x: Array, x_hat: Array, *, kind: Literal["norm", "squared", "bernoulli"] = "norm"
) -> jax.Array:
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

    Source: docs/lectures.md (C6); Vincent et al. 2008 (Bernoulli).
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


def masking_noise(key: chex.PRNGKey, x: Array, *, rate: Numeric) -> jax.Array:
    """Set a random share of the inputs to 0: the corruption of a denoising autoencoder.

        x * m,   m ~ Bernoulli(1 - rate)

    Args:
      key: [] random key.
      x: [...] inputs.
      rate: [] share that is lost, in [0, 1].

    Returns:
      [...] corrupted inputs, of x's type.

    Source: Vincent et al. 2008.
    """
    return jnp.where(jax.random.bernoulli(key, rate, x.shape), jnp.zeros_like(x), x)


def gaussian_noise(key: chex.PRNGKey, x: Array, *, std: Numeric) -> jax.Array:
    """Add Gaussian noise: the other corruption of a denoising autoencoder.

        x + std e,   e ~ N(0, 1)

    Args:
      key: [] random key.
      x: [...] inputs.
      std: [] standard deviation, >= 0.

    Returns:
      [...] corrupted inputs, float32 or wider.

    Source: Vincent et al. 2010.
    """
    (x,) = as_floats(x)
    return x + std * jax.random.normal(key, x.shape, x.dtype)
