"""Action spaces: which distributions fit one, and how a draw becomes what the environment takes."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.losses import Categorical, DiagonalGaussian, MultiCategorical, TanhGaussian

Distribution = type[Categorical] | type[MultiCategorical] | type[DiagonalGaussian] | type[TanhGaussian]
"""The kind that a net's policy output parametrises: logits [A] or [K, A], or (mean [D], log_std [D])."""


class MultiDiscrete(NamedTuple):
    """The space of K choices made at once, which gymnax lacks; any space with `nvec` is taken for one."""

    nvec: tuple[int, ...]
    """Number of actions of each choice."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one action: (K,)."""
        return (len(self.nvec),)

    def sample(self, key: chex.PRNGKey) -> jax.Array:
        """Draw an action [K], every choice uniformly."""
        return jax.random.randint(key, self.shape, 0, jnp.array(self.nvec))


def make_distribution(kind: Any, output: Any) -> Any:
    """Return the distribution that a net's policy output parametrises."""
    return kind(*output) if isinstance(output, tuple) else kind(output)


def output_shape(kind: Distribution, space: Any) -> Any:
    """Return the shape of the policy output that a space needs.

    It is `(A,)` for one choice, `(K, A)` for K of at most A actions each, and for a Box of vectors a pair of
    its action's shape, `(D,)`.

    Raises:
      ValueError: if the distribution does not fit the space, or a Box's actions are no vectors.
    """
    fitting = _fitting(space)
    if kind not in fitting:
        raise ValueError(
            f"{kind.__name__} does not fit the action space {type(space).__name__}; take Categorical for a "
            f"discrete space (a single choice), MultiCategorical for several choices at once (a space with "
            f"nvec), DiagonalGaussian or TanhGaussian for a Box"
        )
    if kind is Categorical:
        return (int(space.n),)
    if kind is MultiCategorical:
        return (len(space.nvec), int(max(space.nvec)))
    if len(space.shape) != 1:
        raise ValueError(
            f"a Box's actions must be a vector [D]; got shape {tuple(space.shape)}; give the environment "
            f"a Box of shape {(int(np.prod(space.shape)),)}, and reshape the action in its step"
        )
    if kind is TanhGaussian and not (np.isfinite(space.low).all() and np.isfinite(space.high).all()):
        raise ValueError("TanhGaussian needs a Box with finite bounds; take DiagonalGaussian")
    return (tuple(space.shape),) * 2


def _fitting(space: Any) -> tuple[Distribution, ...]:
    if hasattr(space, "nvec"):
        return (MultiCategorical,)
    if hasattr(space, "n"):
        return (Categorical,)
    return (DiagonalGaussian, TanhGaussian) if hasattr(space, "low") else ()


def to_environment(kind: Distribution, space: Any) -> Callable[[jax.Array], jax.Array]:
    """Return the map from a draw to the environment's action.

    A `TanhGaussian`'s tanh is stretched over the Box, a `DiagonalGaussian`'s draw is clipped to it, either is
    rounded where the Box holds whole numbers, and a choice is left as it is. Learners keep the draw
    itself, whose log-probability they know.
    """
    if kind not in (DiagonalGaussian, TanhGaussian):
        return lambda x: x
    whole = jnp.issubdtype(space.dtype, jnp.integer)
    stretch = lambda x: space.low + 0.5 * (jnp.tanh(x) + 1.0) * (space.high - space.low)

    def fit(x: jax.Array) -> jax.Array:
        # Clipped even if stretched: low + (high - low) may round to a number beyond high.
        x = jnp.clip(stretch(x) if kind is TanhGaussian else x, space.low, space.high)
        return jnp.asarray(jnp.round(x) if whole else x, space.dtype)

    return fit


def check_action(space: Any, action: Any) -> None:
    """Raise ValueError unless an action, or its shape and type, is of a space's shape, and whole where it is.

    What only a value shows, a number out of range, cannot be seen before the environment steps.
    """
    expected = jax.eval_shape(space.sample, jax.random.key(0))
    if not hasattr(expected, "shape"):
        return
    whole = jnp.issubdtype(expected.dtype, jnp.integer) and not jnp.issubdtype(action.dtype, jnp.integer)
    if action.shape != expected.shape or whole:
        raise ValueError(
            f"a policy's action must be {expected.dtype} of shape {expected.shape} in this "
            f"{type(space).__name__}; got {action.dtype} of shape {action.shape}; return one action for the "
            f"one observation given{', for example an argmax' if whole else ''}"
        )
