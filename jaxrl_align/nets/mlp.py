"""Multilayer perceptrons, each as a pair of pure functions over a plain dict of parameters."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_align.types import Params

__all__ = ["Net", "make_actor_critic_net"]

Activation = Callable[[chex.Array], chex.Array]


class Net(NamedTuple):
    """A policy and a critic for ONE observation; the caller vmaps."""

    init: Callable[[chex.PRNGKey, chex.Array], Params]
    """`(key, obs) -> params`; `obs` gives the shape only."""
    apply: Callable[[Params, chex.Array], tuple[chex.Array, chex.Array]]
    """`(params, obs[...]) -> (logits [A], value [])`."""


@jax.custom_batching.sequential_vmap
def _orthonormal_columns(gaussian: chex.Array) -> chex.Array:
    # Members one after another: batched QR waits inside XLA's CPU thread pool for that same pool, so as many
    # layers at once as there are cores lock up for good (jaxlib 0.10.2).
    q, r = jnp.linalg.qr(gaussian)
    return q * jnp.sign(jnp.diag(r))[None]


def _orthogonal(scale: float) -> Callable[..., chex.Array]:
    """Return an initialiser of Haar-distributed matrices with orthonormal columns or rows, times `scale`."""

    def init(key: chex.PRNGKey, shape: tuple[int, int], dtype: chex.ArrayDType = jnp.float32) -> chex.Array:
        q = _orthonormal_columns(jax.random.normal(key, (max(shape), min(shape)), dtype))
        return scale * (q if shape[0] >= shape[1] else q.T)

    return init


class _ActorCritic(nn.Module):
    num_actions: int
    hidden: tuple[int, ...]
    activation: Activation

    @nn.compact
    def __call__(self, obs: chex.Array) -> tuple[chex.Array, chex.Array]:
        flat = jnp.ravel(obs).astype(jnp.float32)
        logits = self.trunk("policy", flat, self.num_actions, head_scale=0.01)
        value = self.trunk("value", flat, 1, head_scale=1.0)
        return logits, value[0]

    def trunk(self, name: str, x: chex.Array, outputs: int, head_scale: float) -> chex.Array:
        for i, width in enumerate(self.hidden):
            dense = nn.Dense(width, kernel_init=_orthogonal(2**0.5), name=f"{name}_{i}")
            x = self.activation(dense(x))
        head_init = _orthogonal(head_scale)
        return nn.Dense(outputs, kernel_init=head_init, name=f"{name}_head")(x)


def make_actor_critic_net(
    num_actions: int, hidden: Sequence[int] = (64, 64), activation: Activation = jnp.tanh
) -> Net:
    """Build a softmax policy and a critic that share no parameters.

    Kernels start orthogonal: scale sqrt(2) in the hidden layers, 0.01 in the policy's head, so that the first
    policy is nearly uniform, and 1 in the critic's; biases start at 0 (Andrychowicz et al. 2021,
    arXiv:2006.05990, on which of these choices matter).

    Args:
      num_actions: A, the number of discrete actions.
      hidden: widths of the hidden layers, from the observation on; the same for policy and critic.
      activation: applied after every hidden layer.

    Returns:
      A `Net`. An observation of any shape is flattened; parameters are `{"policy_0": {"kernel", "bias"}, ...,
      "policy_head", "value_0", ..., "value_head"}`.

    Raises:
      ValueError: if an action count or width is below 1.
    """
    if num_actions < 1 or any(width < 1 for width in hidden):
        raise ValueError(
            f"num_actions and every hidden width must be at least 1; "
            f"got num_actions={num_actions}, hidden={tuple(hidden)}"
        )
    module = _ActorCritic(num_actions, tuple(hidden), activation)

    def init(key: chex.PRNGKey, obs: chex.Array) -> Params:
        return module.init(key, obs)["params"]

    def apply(params: Params, obs: chex.Array) -> tuple[chex.Array, chex.Array]:
        return module.apply({"params": params}, obs)

    return Net(init, apply)
