"""Means and whitening that padding cannot change."""

import jax
import jax.numpy as jnp

from jaxrl_align.losses._arrays import as_floats, same_shape
from jaxrl_align.types import Array


def masked_mean(x: Array, mask: Array) -> jax.Array:
    """Average where the mask is set; an empty mask gives 0 with a zero gradient.

        sum(mask x) / sum(mask)

    Args:
      x: [...] anything, inf and NaN included, where the mask is 0.
      mask: [...] 1 for a real element, 0 for padding; booleans and weights >= 0 serve as well.

    Returns:
      [] mean, float32 or wider.

    Raises:
      AssertionError: if the shapes differ.

    Source: this library.
    """
    x, mask = same_shape(x, mask)
    total = jnp.sum(mask)
    return jnp.sum(jnp.where(mask > 0, x, 0.0) * mask) / jnp.where(total > 0, total, 1.0)


def whiten(x: Array, mask: Array | None = None, *, keep_mean: bool = False) -> jax.Array:
    """Scale to unit variance and, unless `keep_mean`, to zero mean.

        (x - mean) rsqrt(var + 1e-8) [+ mean],   var biased

    Args:
      x: [...] advantages (which lose their mean) or rewards (which keep it).
      mask: [...] 1 for a real element; None means all are.
      keep_mean: add the mean back.

    Returns:
      [...] float32 or wider; 0 where the mask is 0.

    Raises:
      AssertionError: if the shapes differ.

    Source: Ziegler et al. 2019 (released code).
    """
    (x,) = as_floats(x)
    mask = jnp.ones_like(x) if mask is None else same_shape(x, mask)[1]
    x = jnp.where(mask > 0, x, 0.0)
    mean = masked_mean(x, mask)
    whitened = (x - mean) * jax.lax.rsqrt(masked_mean(jnp.square(x - mean), mask) + 1e-8)
    return jnp.where(mask > 0, whitened + mean if keep_mean else whitened, 0.0)
