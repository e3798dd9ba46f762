"""Observations of several parts, such as a dictionary of arrays, as one vector for any net."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.nets.memory import RecurrentNet
from jaxrl_align.nets.mlp import Net
from jaxrl_align.nets.q_networks import QNet

AnyNet = TypeVar("AnyNet", Net, QNet, RecurrentNet)


def flatten_observations(net: AnyNet, space: Any = None) -> AnyNet:
    """Put a reader of whole trees of arrays in front of a net: it sees all their numbers in one vector.

        actor = make_actor(env, flatten_observations(make_actor_critic_net(2)), num_envs=8, num_steps=32)

    A net that remembers is wrapped as a whole: `flatten_observations(with_memory(net))`.

    Args:
      net: of `nets`, or any of your own with these functions.
      space: `environment.observation_space(params)`: what is discrete in it becomes one-hot, counted from 0.
        None casts every number to float32.

    Returns:
      The same kind of net; the vector [D] is float32, its parts in the order of the space, or without one in
      that of `jax.tree.leaves`.
    """

    def read(obs: Any) -> jax.Array:
        parts = _parts(obs, space) if space is not None else jax.tree.leaves(obs)
        return jnp.concatenate([jnp.ravel(part).astype(jnp.float32) for part in parts])

    init = lambda key, obs: net.init(key, read(obs))
    if isinstance(net, RecurrentNet):
        apply: Any = lambda params, memory, obs: net.apply(params, memory, read(obs))
    else:
        apply = lambda params, obs, *key, **named: net.apply(params, read(obs), *key, **named)
    if isinstance(net, RecurrentNet):
        return net._replace(init=init, apply=apply)
    return net._replace(init=init, apply=apply, recipe=None)  # it is no longer the net of that recipe


def _parts(obs: Any, space: Any) -> list[jax.Array]:
    children = getattr(space, "spaces", None)
    if children is not None:
        names = children if isinstance(children, dict) else range(len(children))
        return [part for name in names for part in _parts(obs[name], children[name])]
    if not hasattr(space, "n") and not hasattr(space, "nvec"):
        return [obs]
    counts = np.ravel(space.nvec if hasattr(space, "nvec") else space.n)
    return [jax.nn.one_hot(x, n) for x, n in zip(jnp.ravel(obs), counts, strict=True)]
