"""Action spaces: which distributions fit one, and how a draw becomes what the environment takes."""

from collections.abc import Callable
from typing import Any

import chex
import jax.numpy as jnp
import numpy as np

from jaxrl_align.losses import Categorical, DiagonalGaussian, TanhGaussian

__all__ = ["Distribution", "make_distribution", "output_shape", "to_environment"]

Distribution = type[Categorical] | type[DiagonalGaussian] | type[TanhGaussian]
"""What a net's policy output parametrises: logits [A], or a pair (mean [D], log_std [D])."""


def make_distribution(kind: Distribution, output: Any) -> Any:
    """Return the distribution that a net's policy output parametrises."""
    return kind(*output) if isinstance(output, tuple) else kind(output)


def output_shape(kind: Distribution, space: Any) -> Any:
    """Return the shape of the policy output that a space needs: `(A,)`, or a pair of its action's shape.

    Raises:
      ValueError: if the distribution does not fit the space.
    """
    discrete = hasattr(space, "n")
    if discrete != (kind is Categorical) or not (discrete or hasattr(space, "low")):
        raise ValueError(
            f"{kind.__name__} does not fit the action space {type(space).__name__}; take Categorical for a "
            f"discrete space (a single choice), DiagonalGaussian or TanhGaussian for a Box"
        )
    if discrete:
        return (int(space.n),)
    if kind is TanhGaussian and not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError("TanhGaussian needs a Box with finite bounds; take DiagonalGaussian")
    return (tuple(space.shape),) * 2


def to_environment(kind: Distribution, space: Any) -> Callable[[chex.Array], chex.Array]:
    """Return the map from a draw to the environment's action.

    A `TanhGaussian`'s (-1, 1) is stretched over the Box, a `DiagonalGaussian`'s draw is clipped to it, and a
    choice is left as it is. Learners keep the draw itself, whose log-probability they know.
    """
    if kind is TanhGaussian:
        return lambda x: jnp.asarray(space.low + 0.5 * (x + 1.0) * (space.high - space.low), space.dtype)
    if kind is DiagonalGaussian:
        return lambda x: jnp.clip(x, space.low, space.high).astype(space.dtype)
    return lambda x: x
