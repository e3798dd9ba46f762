"""Products of many rows with one kernel, whose gradient takes the fast path of XLA's CPU backend too."""

from typing import Any

import jax


def dense_product(
    x: jax.Array, kernel: jax.Array, dimensions: Any = None, precision: Any = None
) -> jax.Array:
    """Return `x @ kernel`, with a gradient towards the kernel that is fast on a CPU.

    It serves flax's `Dense` as `dot_general`. It has a reverse derivative of its own, so `jax.jvp` of it is
    refused, while `jax.jvp` of a gradient works. Under a `vmap` that does not map the kernel, the kernel's
    gradient would be formed for each element before the sum: give it all rows at once.

    Args:
      x: [..., K].
      kernel: [K, M].
      dimensions: not read; x's last axis meets the kernel's first.
      precision: not read; the backend's default.

    Returns:
      [..., M].
    """
    del dimensions, precision
    return _multiply(x.reshape(-1, x.shape[-1]), kernel).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def _multiply(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel


def _multiply_back(saved: tuple[jax.Array, jax.Array], grad: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    at_kernel = jax.lax.platform_dependent(x, grad, cpu=_sum_outer_on_cpu, default=_sum_outer)
    return grad @ kernel.T, at_kernel


_multiply.defvjp(lambda x, kernel: (x @ kernel, (x, kernel)), _multiply_back)


def _sum_outer(x: jax.Array, y: jax.Array) -> jax.Array:
    return x.T @ y


def _sum_outer_on_cpu(x: jax.Array, y: jax.Array) -> jax.Array:
    # XLA's fast products on a CPU sum over the first operand's last axis. A transpose in sight is folded into
    # the product, which then takes the slow path: 1.1 to 17 times the time (jaxlib 0.10.2). The barrier hides
    # it. The narrower operand is transposed: it is less to move, 3% of a step of PPO.
    if x.shape[1] > y.shape[1]:
        return _sum_outer_on_cpu(y, x).T
    return jax.lax.optimization_barrier(x.T) @ y
