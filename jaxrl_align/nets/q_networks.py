"""Networks of action values: perceptrons and a small convolution, duelling, noisy and distributional."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxrl_align.checks import check_support
from jaxrl_align.nets.recipes import Recipe, write_recipe
from jaxrl_align.types import Params


class QNet(NamedTuple):
    """Action values of ONE observation; the caller vmaps."""

    init: Callable[[chex.PRNGKey, jax.Array], Params]
    """`(key, obs) -> params`; `obs` gives the shape only."""
    apply: Callable[..., jax.Array]
    """`(params, obs, key=None) -> [A]`, or [A, K] for distributions; the key draws a noisy net's noise."""
    q_values: Callable[[jax.Array], jax.Array]
    """Maps the output of `apply` to action values [A]."""
    recipe: Recipe | None = None
    """How to build it again, where a function of `nets` built it."""


class _Dense(nn.Module):
    """A linear layer whose weights may carry learnt, factorised Gaussian noise (Fortunato et al. 2018)."""

    features: int
    noisy: bool

    @nn.compact
    def __call__(self, x: jax.Array, key: chex.PRNGKey | None) -> jax.Array:
        if not self.noisy:
            return nn.Dense(self.features)(x)
        fan_in = x.shape[-1]
        bound = fan_in**-0.5
        uniform = lambda k, shape: jax.random.uniform(k, shape, jnp.float32, -bound, bound)
        constant = nn.initializers.constant(0.5 * bound)
        kernel = self.param("kernel", uniform, (fan_in, self.features))
        bias = self.param("bias", uniform, (self.features,))
        kernel_scale = self.param("kernel_scale", constant, (fan_in, self.features))
        bias_scale = self.param("bias_scale", constant, (self.features,))
        if key is not None:
            key_in, key_out = jax.random.split(key)
            squash = lambda e: jnp.sign(e) * jnp.sqrt(jnp.abs(e))
            noise_in = squash(jax.random.normal(key_in, (fan_in,)))
            noise_out = squash(jax.random.normal(key_out, (self.features,)))
            kernel = kernel + kernel_scale * noise_in[:, None] * noise_out[None, :]
            bias = bias + bias_scale * noise_out
        return x @ kernel + bias


def one_array(obs: Any) -> jax.Array:
    """Return an observation in float32.

    Raises:
      ValueError: if it is a tree of arrays.
    """
    if not hasattr(obs, "astype"):
        raise ValueError(
            f"this net reads observations that are one array; got {type(obs).__name__} of "
            f"{len(jax.tree.leaves(obs))}; put nets.flatten_observations in front of it"
        )
    return obs.astype(jnp.float32)


def patches(image: jax.Array) -> jax.Array:
    """Return the 3 x 3 neighbourhoods of an image: [H, W, C] -> [H - 2, W - 2, 9 C].

    Raises:
      ValueError: if it is no image of at least 3 x 3 places.
    """
    if image.ndim != 3 or min(image.shape[:2]) < 3:
        raise ValueError(
            f"a convolution needs an image [H >= 3, W >= 3, C]; got shape {image.shape}; take channels=0"
        )
    height, width = image.shape[0] - 2, image.shape[1] - 2
    shifts = [image[i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return jnp.concatenate(shifts, axis=-1)


class _QModule(nn.Module):
    num_actions: int
    hidden: tuple[int, ...]
    channels: int
    outputs: int
    duelling: bool
    noisy: bool

    @nn.compact
    def __call__(self, obs: jax.Array, key: chex.PRNGKey | None) -> jax.Array:
        layers = 2 * (len(self.hidden) + 2)
        keys = iter([None] * layers if key is None else jax.random.split(key, layers))
        x = one_array(obs)
        if self.channels:
            # A convolution as a product with patches: vmapping a convolution over members makes it a grouped
            # one, which XLA's CPU backend runs many times slower than a batched product.
            x = nn.relu(nn.Dense(self.channels, name="conv")(patches(x)))
        x = jnp.ravel(x)
        for i, width in enumerate(self.hidden):
            x = nn.relu(_Dense(width, self.noisy, name=f"hidden_{i}")(x, next(keys)))
        advantage = _Dense(self.num_actions * self.outputs, self.noisy, name="advantage")(x, next(keys))
        advantage = advantage.reshape(self.num_actions, self.outputs)
        if not self.duelling:
            return advantage
        value = _Dense(self.outputs, self.noisy, name="value")(x, next(keys))
        return value[None] + advantage - jnp.mean(advantage, axis=0, keepdims=True)


def support_between(low: float, high: float, atoms: int = 51) -> jax.Array:
    """Return C51's support: `atoms` evenly spaced returns from `low` to `high` (Bellemare et al. 2017).

    Raises:
      ValueError: if low is not below high, or there are fewer than two atoms.
    """
    if not low < high or atoms < 2:
        raise ValueError(f"expected low < high and atoms >= 2; got low={low}, high={high}, atoms={atoms}")
    return jnp.linspace(low, high, atoms)


def make_q_net(
    num_actions: int,
    hidden: Sequence[int] = (120, 84),
    *,
    channels: int = 0,
    duelling: bool = False,
    noisy: bool = False,
    support: jax.Array | None = None,
    quantiles: int | None = None,
) -> QNet:
    """Build a network from an observation to the value of every action.

    Args:
      num_actions: A.
      hidden: widths of the hidden layers, each followed by a ReLU.
      channels: a 3 x 3 convolution of this many channels before the hidden layers, for images [H, W, C]
        (16 for MinAtar, Young & Tian 2019); 0 flattens the observation instead.
      duelling: `Q = V + A - mean A`, one head each (Wang et al. 2016); the mean makes the split unique.
      noisy: exploration by learnt noise on every linear layer (Fortunato et al. 2018).
      support: [K] returns, rising in even steps; the outputs are logits over them (C51).
      quantiles: the outputs are this many quantiles of the return (QR-DQN, Dabney et al. 2018).

    Returns:
      A `QNet`; its outputs are [A], or [A, K] with a support or quantiles.

    Raises:
      ValueError: if a count is below 1, a support is uneven, or both `support` and `quantiles` are given.
    """
    outputs = 1 if quantiles is None else quantiles
    if min(num_actions, outputs, *hidden) < 1 or channels < 0:
        raise ValueError(
            f"num_actions, quantiles and every hidden width must be at least 1, channels at least 0; got "
            f"num_actions={num_actions}, quantiles={quantiles}, hidden={tuple(hidden)}, channels={channels}"
        )
    if support is not None and quantiles is not None:
        raise ValueError("got both support (C51) and quantiles (QR-DQN); choose one")
    if support is not None:
        check_support(support)
        outputs = support.shape[0]
    module = _QModule(num_actions, tuple(hidden), channels, outputs, duelling, noisy)
    distributional = support is not None or quantiles is not None

    def init(key: chex.PRNGKey, obs: jax.Array) -> Params:
        return module.init(key, obs, None)["params"]

    def apply(params: Params, obs: jax.Array, key: chex.PRNGKey | None = None) -> jax.Array:
        out: Any = module.apply({"params": params}, obs, key if noisy else None)
        return out if distributional else out[:, 0]

    def q_values(out: jax.Array) -> jax.Array:
        if support is not None:
            return jnp.sum(jax.nn.softmax(out) * support[None, :], axis=-1)
        return jnp.mean(out, axis=-1) if distributional else out

    recipe = write_recipe(
        "make_q_net",
        num_actions=num_actions,
        hidden=tuple(hidden),
        channels=channels,
        duelling=duelling,
        noisy=noisy,
        support=support,
        quantiles=quantiles,
    )
    return QNet(init, apply, q_values, recipe)


def make_state_action_net(num_actions: int, hidden: Sequence[int] = (120, 84)) -> QNet:
    """Build a scalar network Q(s, a) that reads the action as an input, evaluated once per action.

    Args:
      num_actions: A; the action is appended to the flattened observation, one-hot.
      hidden: widths of the hidden layers, each followed by a ReLU.

    Returns:
      A `QNet` with outputs [A].

    Source: docs/lectures.md (A6).
    """
    scalar = _QModule(1, tuple(hidden), 0, 1, False, False)
    join = lambda obs, action: jnp.append(jnp.ravel(one_array(obs)), action)

    def init(key: chex.PRNGKey, obs: jax.Array) -> Params:
        return scalar.init(key, join(obs, jnp.zeros(num_actions)), None)["params"]

    def apply(params: Params, obs: jax.Array, key: chex.PRNGKey | None = None) -> jax.Array:
        apply: Any = scalar.apply
        value = lambda action: apply({"params": params}, join(obs, action), None)[0, 0]
        return jax.vmap(value)(jnp.eye(num_actions))

    recipe = write_recipe("make_state_action_net", num_actions=num_actions, hidden=tuple(hidden))
    return QNet(init, apply, lambda out: out, recipe)


def make_table(num_states: int, num_actions: int) -> QNet:
    """Build the table as a network: `params` is Q itself, [S, A], 0 at first; the observation is the state.

    With it every learner of this library is a tabular one. A state past the table reads nan.
    """
    return QNet(
        init=lambda key, obs: jnp.zeros((num_states, num_actions)),
        # Clamped, as a plain index is, all states past the table would share its last row.
        apply=lambda params, obs, key=None: params.at[obs].get(mode="fill", fill_value=jnp.nan),
        q_values=lambda out: out,
    )
