"""Input handling shared by all losses: promotion to at least float32, and exponentials kept finite."""

import inspect
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.types import Numeric

MAX_LOG_RATIO = 20.0
"""exp(20) = 4.9e8: above it a probability ratio is held, so that neither loss nor gradient overflows."""


def as_floats(*arrays: Numeric) -> Any:
    """Return the arrays as floats of one type, their widest, at least 32 bits: integers become floats too."""
    found = tuple(jnp.asarray(x) for x in arrays)
    for x in found:
        if jnp.iscomplexobj(x):
            raise ValueError(f"expected real numbers, got {x.dtype}; pass the real part")
    widest = jnp.result_type(*found, jnp.float32)
    return tuple(x.astype(widest) for x in found)


def same_shape(*arrays: Numeric, **coefficients: Numeric | None) -> Any:
    """Return `as_floats(*arrays)` after checking that nothing would broadcast.

    Args:
      *arrays: of one shape.
      **coefficients: by their names: each is [], of the arrays' shape, or None.
    """
    shape = jnp.shape(arrays[0])
    if any(jnp.shape(x) != shape for x in arrays):
        name, got = _caller(arrays)
        raise AssertionError(
            f"the arrays of {name} must have one shape; got {got}; squeeze or broadcast them first"
        )
    check_coefficients(shape, **coefficients)
    return as_floats(*arrays)


def check_coefficients(shape: tuple[int, ...], **coefficients: Numeric | None) -> None:
    """Raise AssertionError unless each is [], of the arrays' shape, or None."""
    for name, x in coefficients.items():
        if x is not None and jnp.shape(x) not in ((), shape):
            raise AssertionError(
                f"{name} must be one number or of shape {shape}; got shape {jnp.shape(x)}; broadcast it first"
            )


def series(*arrays: Numeric) -> Any:
    """Return `as_floats(*arrays)` after checking that each is [T] with one common T >= 1."""
    shape = jnp.shape(arrays[0])
    if len(shape) != 1 or any(jnp.shape(x) != shape for x in arrays):
        name, got = _caller(arrays)
        scalars = any(jnp.ndim(x) == 0 for x in arrays)
        remedy = "fill a number with jnp.full(T, number)" if scalars else f"for a batch use jax.vmap({name})"
        raise AssertionError(f"{name} takes one time series, each array [T]; got {got}; {remedy}")
    if shape[0] == 0:
        raise ValueError("expected at least one time step, got an array of shape (0,)")
    return as_floats(*arrays)


def _caller(arrays: tuple[Numeric, ...]) -> tuple[str, str]:
    """Return the name of the loss that called this module, and its arguments' names with their shapes.

    They are read from its frame, in an error's path alone, so that no loss must repeat its arguments' names.
    """
    frame: Any = inspect.currentframe()
    frame = frame.f_back.f_back
    local, shapes = dict(frame.f_locals), []
    for x in arrays:
        name = next((name for name, value in local.items() if value is x), "an argument")
        local.pop(name, None)  # one array may be passed under two names
        shapes.append(f"{name} {list(jnp.shape(x))}")
    return frame.f_code.co_name, ", ".join(shapes)


def bounded_exp(log_ratio: jax.Array) -> jax.Array:
    """Return exp(log_ratio), held at exp(20), where its gradient is 0."""
    return jnp.exp(jnp.where(log_ratio > MAX_LOG_RATIO, MAX_LOG_RATIO, log_ratio))


def pick(x: jax.Array, index: Numeric) -> jax.Array:
    """Return `x[..., index]` for an integer index of shape `x.shape[:-1]`; NaN where it is out of range."""
    index = jnp.asarray(index)
    chex.assert_type(index, int)
    chex.assert_shape(index, x.shape[:-1])
    return jnp.where((index >= 0) & (index < x.shape[-1]), _choose(x, index), jnp.nan)


@jax.custom_jvp
def _choose(x: jax.Array, index: jax.Array) -> jax.Array:
    return jnp.take_along_axis(x, index[..., None], axis=-1, mode="clip")[..., 0]


def _choose_by_comparing(x: jax.Array, index: jax.Array) -> jax.Array:
    places = jax.lax.broadcasted_iota(index.dtype, x.shape, x.ndim - 1)
    return jnp.sum(jnp.where(places == index[..., None], x, 0.0), -1)


@_choose.defjvp
def _push_choice(primals: tuple[jax.Array, ...], tangents: tuple[jax.Array, ...]) -> tuple[Any, Any]:
    # A gather's gradient is scattered into zeros and then added to what else reaches x. An accelerator writes
    # and reads both, each as large as a batch's logits; by comparing, the gradient is part of one expression.
    # A CPU scatters in place.
    x, index = primals
    moved = jax.lax.platform_dependent(tangents[0], index, cpu=_choose, default=_choose_by_comparing)
    return _choose(x, index), moved


def linear_recurrence(x: jax.Array, decay: jax.Array, last: Numeric = 0.0) -> jax.Array:
    """Return the [T] solution of y_t = x_t + decay_t y_{t+1} with y_{T+1} = last."""

    def backward(y: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        y = step[0] + step[1] * y
        return y, y

    last = jnp.asarray(last, x.dtype)
    return jax.lax.scan(backward, last, (x, decay), reverse=True)[1]
