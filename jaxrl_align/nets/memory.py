"""Memory for a policy: a gated recurrent unit in front of any policy and critic."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_align.nets.mlp import Net, orthogonal
from jaxrl_align.nets.q_networks import one_array
from jaxrl_align.types import Params


class RecurrentNet(NamedTuple):
    """A policy and a critic that remember, for ONE observation; the caller vmaps and scans."""

    init: Callable[[chex.PRNGKey, jax.Array], Params]
    """`(key, obs) -> params`; `obs` gives the shape only."""
    apply: Callable[[Params, jax.Array, jax.Array], tuple[jax.Array, Any, jax.Array]]
    """`(params, memory[H], obs[...]) -> (memory[H], policy, value)`."""
    initial: jax.Array
    """[H] the memory at an episode's start."""


class _GRU(nn.Module):
    width: int

    @nn.compact
    def __call__(self, memory: jax.Array, x: jax.Array) -> jax.Array:
        # The three gates in one product each: six small ones take twice the time on a CPU.
        seen = nn.Dense(3 * self.width, kernel_init=orthogonal(1.0), name="input")(x)
        kept = nn.Dense(3 * self.width, kernel_init=orthogonal(1.0), name="memory")(memory)
        (r_x, z_x, n_x), (r_h, z_h, n_h) = jnp.split(seen, 3), jnp.split(kept, 3)
        reset, keep = jax.nn.sigmoid(r_x + r_h), jax.nn.sigmoid(z_x + z_h)
        return (1.0 - keep) * jnp.tanh(n_x + reset * n_h) + keep * memory


def with_memory(net: Net, width: int = 64) -> RecurrentNet:
    """Put a gated recurrent unit in front of a net, which then reads the observation and the new memory.

        r, z = sigma(W x + U h + b),   n = tanh(W_n x + b_n + r (U_n h + c_n)),   h' = (1 - z) n + z h

    Args:
      net: of `nets.mlp`, for any kind of action; policy and critic share the memory.
      width: H.

    Returns:
      A `RecurrentNet` with parameters `{"gru": ..., "net": ...}`.

    Raises:
      ValueError: if the width is below 1.

    Source: Cho et al. 2014, arXiv:1406.1078; the reset gate after the product.
    """
    if width < 1:
        raise ValueError(f"width must be at least 1; got width={width}")
    gru: Any = _GRU(width)
    initial = jnp.zeros(width, jnp.float32)
    flatten = lambda obs: jnp.ravel(one_array(obs))

    def init(key: chex.PRNGKey, obs: jax.Array) -> Params:
        key_gru, key_net = jax.random.split(key)
        x = flatten(obs)
        both = jnp.concatenate([x, initial])
        return {"gru": gru.init(key_gru, initial, x)["params"], "net": net.init(key_net, both)}

    def apply(params: Params, memory: jax.Array, obs: jax.Array) -> tuple[jax.Array, Any, jax.Array]:
        x = flatten(obs)
        memory = gru.apply({"params": params["gru"]}, memory, x)
        return memory, *net.apply(params["net"], jnp.concatenate([x, memory]))

    return RecurrentNet(init, apply, initial)
