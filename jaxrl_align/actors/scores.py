"""What a score function returns: a number, or a number and the parts that it is made of."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_align.text.generation import TextConfig
from jaxrl_align.types import Numeric


class Scored(NamedTuple):
    """A score and the parts that it is made of, which are logged apart."""

    total: Numeric
    """[] what is paid."""
    parts: Mapping[str, Numeric] | None = None
    """Name -> []; the mean and deviation over a batch are logged as `rewards/<name>/mean` and `.../std`."""


Score = Callable[[Any, jax.Array, jax.Array], Numeric | Scored]
"""`(reward_model, tokens[L], mask[L]) -> [] or Scored`: how good a query and its response are, any pure
function; `align.combine_rewards` makes one of several."""


def as_scored(given: Numeric | Scored) -> Scored:
    """Return what a score function returned as a `Scored` of float32 numbers.

    Raises:
      ValueError: if it is no number, or one of its parts is none.
    """
    scored = given if isinstance(given, Scored) else Scored(given)
    parts = {name: _as_number(x, f"part {name!r} of score") for name, x in (scored.parts or {}).items()}
    return Scored(_as_number(scored.total, "score"), parts)


def as_paid(
    config: TextConfig, score: Numeric, tokens: jax.Array, mask: jax.Array, stop_penalty: Numeric
) -> tuple[jax.Array, jax.Array]:
    """Return what ONE response is paid, by the rule for those that did not stop, and whether it stopped.

    Args:
      config: says which tokens stop, and what a response without one is paid.
      score: [] of the response.
      tokens: [T] of the response.
      mask: [T] 1 for a real token.
      stop_penalty: see `TextConfig.missing_stop`.

    Returns:
      `(paid [], stopped [] float)`.
    """
    unstopped = {"replace": -stop_penalty, "subtract": score - stop_penalty, "keep": score}
    stopped = jnp.any(jnp.isin(tokens, jnp.array(config.stop_tokens)) & (mask > 0))
    return jnp.where(stopped, score, unstopped[config.missing_stop]), stopped.astype(jnp.float32)


def _as_number(given: Any, what: str) -> jax.Array:
    try:
        number = jnp.asarray(given, jnp.float32)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{what} must return one number for a text, or Scored(total, parts); got {type(given).__name__}"
        ) from error
    if number.shape:
        raise ValueError(
            f"{what} must return one number for a text, shape []; got {list(number.shape)}; take its sum, or "
            "its value at the last real token"
        )
    return number
