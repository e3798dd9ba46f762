"""Multilayer perceptrons, each as a pair of pure functions over a plain dict of parameters."""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.nets.products import dense_product
from jaxrl_align.nets.q_networks import one_array, patches
from jaxrl_align.nets.recipes import Recipe, write_recipe
from jaxrl_align.types import Params

Activation = Callable[[jax.Array], jax.Array]


@dataclass(frozen=True)
class RowsApply:
    """The `apply` of a net that also reads N observations at once, faster to differentiate than by `vmap`."""

    one: Callable[..., tuple[Any, jax.Array]]
    """`(params, obs[...])`."""
    rows: Callable[..., tuple[Any, jax.Array]]
    """`(params, obs[N, ...])`, with outputs [N, ...]."""

    def __call__(self, params: Params, obs: Any) -> tuple[Any, jax.Array]:
        """Read one observation."""
        return self.one(params, obs)


class Net(NamedTuple):
    """A policy and a critic for ONE observation; the caller vmaps."""

    init: Callable[[chex.PRNGKey, jax.Array], Params]
    """`(key, obs) -> params`; `obs` gives the shape only."""
    apply: Callable[[Params, jax.Array], tuple[Any, jax.Array]]
    """`(params, obs[...]) -> (policy, value)`: logits [A] or [K, A] or (mean, log_std), and
    V [] or Q [A]."""
    split_params: Any = None
    """`params -> (policy's, critic's)`, or None where the two share layers."""
    recipe: Recipe | None = None
    """How to build it again, where a function of `nets` built it."""


def _split_by_name(params: Params) -> tuple[Params, Params]:
    critic = {name: leaf for name, leaf in params.items() if name.startswith("value")}
    return {name: leaf for name, leaf in params.items() if name not in critic}, critic


def apply_rows(net: Net, params: Params, obs: Any) -> tuple[Any, jax.Array]:
    """Return a net's outputs [N, ...] for N observations; of one without a way of its own, by `vmap`.

    Args:
      net: any; one whose `apply` was replaced is read through what replaced it.
      params: its parameters.
      obs: [N, ...], an array or a tree of arrays.
    """
    if isinstance(net.apply, RowsApply):
        return net.apply.rows(params, obs)
    return jax.vmap(net.apply, (None, 0))(params, obs)


@jax.custom_batching.sequential_vmap
def _orthonormal_columns(gaussian: jax.Array) -> jax.Array:
    # Members one after another: batched QR waits inside XLA's CPU thread pool for that same pool, so as many
    # layers at once as there are cores lock up for good (jaxlib 0.10.2).
    q, r = jnp.linalg.qr(gaussian)
    return q * jnp.sign(jnp.diag(r))[None]


def orthogonal(scale: float) -> Callable[..., jax.Array]:
    """Return an initialiser of Haar-distributed matrices with orthonormal columns or rows, times `scale`."""

    def init(key: chex.PRNGKey, shape: tuple[int, int], dtype: chex.ArrayDType = jnp.float32) -> jax.Array:
        q = _orthonormal_columns(jax.random.normal(key, (max(shape), min(shape)), dtype))
        return scale * (q if shape[0] >= shape[1] else q.T)

    return init


class _ActorCritic(nn.Module):
    policy_outputs: int
    value_outputs: int
    hidden: tuple[int, ...]
    activation: Activation
    shared: bool
    channels: int = 0

    @nn.compact
    def __call__(self, obs: jax.Array, *, rows: bool = False) -> tuple[jax.Array, jax.Array]:
        x = one_array(obs)
        if self.shared:
            below = above = self.trunk("trunk", x, rows)
        else:
            below, above = self.trunk("policy", x, rows), self.trunk("value", x, rows)
        policy = self.dense("policy_head", self.policy_outputs, rows, 0.01)(below)
        return policy, self.dense("value_head", self.value_outputs, rows, 1.0)(above)

    def trunk(self, name: str, x: jax.Array, rows: bool) -> jax.Array:
        if self.channels:
            x = jax.vmap(patches)(x) if rows else patches(x)
            x = nn.relu(self.dense(f"{name}_conv", self.channels, rows)(x))
        x = x.reshape(len(x), -1) if rows else jnp.ravel(x)
        for i, width in enumerate(self.hidden):
            x = self.activation(self.dense(f"{name}_{i}", width, rows)(x))
        return x

    def dense(self, name: str, width: int, rows: bool, scale: float = 2**0.5) -> nn.Dense:
        product = dense_product if rows else None
        return nn.Dense(width, kernel_init=orthogonal(scale), dot_general=product, name=name)


def make_actor_critic_net(
    num_actions: int,
    hidden: Sequence[int] = (64, 64),
    activation: Activation = jnp.tanh,
    *,
    shared: bool = False,
    action_values: bool = False,
    channels: int = 0,
) -> Net:
    """Build a softmax policy and a critic.

    Kernels start orthogonal: scale sqrt(2) in the hidden layers, 0.01 in the policy's head, so that the first
    policy is nearly uniform, and 1 in the critic's; biases start at 0 (Andrychowicz et al. 2021,
    arXiv:2006.05990, on which of these choices matter).

    Args:
      num_actions: A, the number of discrete actions.
      hidden: widths of the hidden layers, from the observation on; the same for policy and critic.
      activation: applied after every hidden layer.
      shared: policy and critic read the same hidden layers instead of their own.
      action_values: the critic estimates Q(s, .) [A] instead of V(s) [].
      channels: a 3 x 3 convolution of this many channels before the hidden layers, for images [H, W, C]
        (16 for MinAtar); 0 flattens the observation instead.

    Returns:
      A `Net`. An observation of any shape is flattened; parameters are `{"policy_0": {"kernel", "bias"}, ...,
      "policy_head", "value_0", ..., "value_head"}`, or with a shared trunk `{"trunk_0", ...}` and the heads.

    Raises:
      ValueError: if an action count or width is below 1.
    """
    _check_sizes(num_actions=num_actions, hidden=tuple(hidden))
    values = num_actions if action_values else 1
    module: Any = _ActorCritic(num_actions, values, tuple(hidden), activation, shared, channels)

    def init(key: chex.PRNGKey, obs: jax.Array) -> Params:
        return module.init(key, obs)["params"]

    def apply(params: Params, obs: jax.Array, *, rows: bool = False) -> tuple[jax.Array, jax.Array]:
        logits, value = module.apply({"params": params}, obs, rows=rows)
        return logits, value if action_values else value[..., 0]

    recipe = write_recipe(
        "make_actor_critic_net",
        num_actions=num_actions,
        hidden=tuple(hidden),
        activation=activation,
        shared=shared,
        action_values=action_values,
        channels=channels,
    )
    return Net(init, _both(apply), None if shared else _split_by_name, recipe)


def make_gaussian_net(
    action_shape: Sequence[int],
    hidden: Sequence[int] = (64, 64),
    activation: Activation = jnp.tanh,
    *,
    shared: bool = False,
    log_std: float = 0.0,
) -> Net:
    """Build a Gaussian policy of continuous actions and a critic; initialised as `make_actor_critic_net`.

    The standard deviation does not depend on the observation (Schulman et al. 2015, appendix D).

    Args:
      action_shape: of one action.
      hidden: widths of the hidden layers, from the observation on; the same for policy and critic.
      activation: applied after every hidden layer.
      shared: policy and critic read the same hidden layers instead of their own.
      log_std: where the logarithm of the standard deviation starts.

    Returns:
      A `Net` whose policy output is `(mean, log_std)`, each of `action_shape`; the parameters gain `log_std`.

    Raises:
      ValueError: if a dimension or width is below 1.
    """
    shape = tuple(action_shape)
    _check_sizes(action_shape=shape, hidden=tuple(hidden))
    module: Any = _ActorCritic(math.prod(shape), 1, tuple(hidden), activation, shared)

    def init(key: chex.PRNGKey, obs: jax.Array) -> Params:
        return module.init(key, obs)["params"] | {"log_std": jnp.full(shape, log_std, jnp.float32)}

    def apply(params: Params, obs: jax.Array, *, rows: bool = False) -> tuple[Any, jax.Array]:
        mean, value = module.apply({"params": params}, obs, rows=rows)
        mean = mean.reshape(*mean.shape[:-1], *shape)
        return (mean, jnp.broadcast_to(params["log_std"], mean.shape)), value[..., 0]

    recipe = write_recipe(
        "make_gaussian_net", action_shape=shape, hidden=tuple(hidden), activation=activation, shared=shared
    )
    return Net(init, _both(apply), None if shared else _split_by_name, recipe)


def make_multi_discrete_net(
    choices: Sequence[int],
    hidden: Sequence[int] = (64, 64),
    activation: Activation = jnp.tanh,
    *,
    shared: bool = False,
) -> Net:
    """Build a policy of several choices at once and a critic; initialised as `make_actor_critic_net`.

    Args:
      choices: how many actions each of the K choices is among; A is the largest of them.
      hidden: widths of the hidden layers, from the observation on; the same for policy and critic.
      activation: applied after every hidden layer.
      shared: policy and critic read the same hidden layers instead of their own.

    Returns:
      A `Net` whose policy output is logits [K, A], -inf where a choice has fewer than A actions.

    Raises:
      ValueError: if a count or width is below 1.
    """
    _check_sizes(choices=tuple(choices), hidden=tuple(hidden))
    shape = (len(choices), max(choices))
    allowed = np.arange(shape[1])[None] < np.array(choices)[:, None]
    module: Any = _ActorCritic(math.prod(shape), 1, tuple(hidden), activation, shared)

    def init(key: chex.PRNGKey, obs: jax.Array) -> Params:
        return module.init(key, obs)["params"]

    def apply(params: Params, obs: jax.Array, *, rows: bool = False) -> tuple[jax.Array, jax.Array]:
        logits, value = module.apply({"params": params}, obs, rows=rows)
        logits = logits.reshape(*logits.shape[:-1], *shape)
        return jnp.where(allowed, logits, -jnp.inf), value[..., 0]

    recipe = write_recipe(
        "make_multi_discrete_net",
        choices=tuple(choices),
        hidden=tuple(hidden),
        activation=activation,
        shared=shared,
    )
    return Net(init, _both(apply), None if shared else _split_by_name, recipe)


def _both(apply: Callable[..., tuple[Any, jax.Array]]) -> RowsApply:
    return RowsApply(apply, functools.partial(apply, rows=True))


def _check_sizes(**sizes: int | tuple[int, ...]) -> None:
    if any(size < 1 for group in sizes.values() for size in np.atleast_1d(group)):
        got = ", ".join(f"{name}={size}" for name, size in sizes.items())
        raise ValueError(f"{' and '.join(sizes)} must be at least 1; got {got}")
