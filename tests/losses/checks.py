"""One check that every loss passes: the same value eager, jitted and vmapped."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def check(f: Callable, expected, *args, rtol: float = 1e-5, atol: float = 1e-6, **static) -> None:
    """Assert that `f(*args, **static)` equals `expected` eager, under jit, and in each member of a vmap.

    Keyword arguments that are floats are traced, as hyperparameters are; others are static.
    """
    args = tuple(jnp.asarray(a) for a in args)
    traced = {k: jnp.float32(v) for k, v in static.items() if isinstance(v, float)}
    static = {k: v for k, v in static.items() if k not in traced}
    call = lambda args, traced: f(*args, **traced, **static)
    stack = lambda x: jnp.stack([x, x])
    same = lambda got, want: jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, rtol=rtol, atol=atol), got, want
    )
    expected = jax.tree.map(np.asarray, expected, is_leaf=lambda x: isinstance(x, list))
    same(call(args, traced), expected)
    one_and_two = lambda args, traced: (
        call(args, traced),
        jax.vmap(call)(*jax.tree.map(stack, (args, traced))),
    )
    jitted, vmapped = jax.jit(one_and_two)(args, traced)
    same(jitted, expected)
    same(vmapped, jax.tree.map(lambda x: np.stack([x, x]), expected))
