"""How a network was built, in values that JSON holds, so that a folder of its parameters can say it."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

ACTIVATIONS: dict[str, Callable[[jax.Array], jax.Array]] = {
    "tanh": jnp.tanh,
    "relu": jax.nn.relu,
    "gelu": jax.nn.gelu,
    "silu": jax.nn.silu,
    "elu": jax.nn.elu,
}
"""Activations that a recipe can name."""


class Recipe(NamedTuple):
    """The function that built a network, and its arguments."""

    function: str
    """Of `nets`."""
    arguments: tuple[tuple[str, Any], ...]
    """By name: whole numbers, floats, bools, texts, None, or tuples of them."""


def write_recipe(function: str, **arguments: Any) -> Recipe | None:
    """Return the recipe of a network; None where an argument has no name, as an activation of one's own.

    Args:
      function: that builds it.
      arguments: it was called with; activations are written by their names in `ACTIVATIONS`.
    """
    plain = {name: _plain(value) for name, value in arguments.items()}
    if any(callable(value) for value in plain.values()):
        return None
    return Recipe(function, tuple(plain.items()))


def _plain(value: Any) -> Any:
    if callable(value):
        return next((name for name, known in ACTIVATIONS.items() if known is value), value)
    if isinstance(value, jax.core.Tracer):
        return lambda: value  # known only when the program runs
    if isinstance(value, np.ndarray | jax.Array):
        value = value.tolist()
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value
