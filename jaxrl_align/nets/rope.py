"""Rotary positions (Su et al. 2021, arXiv:2104.09864) in the rotate-half layout, and their scaling."""

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.nets.transformer_config import RopeScaling, TransformerConfig


def rope_frequencies(depth: int, theta: float, scaling: RopeScaling | None = None) -> np.ndarray:
    """Return the angles by which one position turns each pair of a head, `theta^(-2i / depth)`, scaled.

    Args:
      depth: width of a head, even.
      theta: base of the frequencies.
      scaling: how they are stretched; None, not at all.

    Returns:
      [depth / 2] float32, radians.
    """
    frequency = theta ** -(np.arange(0, depth, 2, dtype=np.float64) / depth)
    if scaling is None:
        return frequency.astype(np.float32)
    stretched = frequency / scaling.factor
    if scaling.low is None or scaling.high is None or scaling.original_context is None:
        return stretched.astype(np.float32)
    turns = scaling.original_context * frequency / (2 * np.pi)  # within the original context
    keep = np.clip((turns - scaling.low) / (scaling.high - scaling.low), 0.0, 1.0)
    return ((1 - keep) * stretched + keep * frequency).astype(np.float32)


def layer_frequencies(config: TransformerConfig) -> np.ndarray:
    """Return the rotary frequencies that a configuration's layers have, one row where all have the same.

    Returns:
      [depth / 2] or [layers, depth / 2] float32, radians; 0, no rotation, in a layer without positions.
    """
    everywhere = rope_frequencies(config.depth, config.rope_theta, config.rope_scaling)
    if config.local_rope_theta is None and config.rotary_layers is None:
        return everywhere
    rows = np.tile(everywhere, (config.layers, 1))
    if config.local_rope_theta is not None:
        windowed = slice(None) if config.window_layers is None else list(config.window_layers)
        rows[windowed] = rope_frequencies(config.depth, config.local_rope_theta)
    if config.rotary_layers is not None:
        rows[[i for i in range(config.layers) if i not in config.rotary_layers]] = 0.0
    return rows


def rotate(x: jax.Array, angle: jax.Array) -> jax.Array:
    """Turn every pair `(x_i, x_{i + depth/2})` of a head by its angle, in float32.

    Args:
      x: [L, heads, depth].
      angle: [L, depth / 2] radians.

    Returns:
      [L, heads, depth] of x's dtype.
    """
    chex.assert_shape(angle, (x.shape[0], x.shape[2] // 2))
    cos, sin = jnp.cos(angle)[:, None], jnp.sin(angle)[:, None]
    first, second = jnp.split(x.astype(jnp.float32), 2, -1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1)
    return turned.astype(x.dtype)
