"""Environments of brax, jumanji and navix under the interface of gymnax, in JAX from end to end.

Each is a few lines around `AdaptedEnv`. The packages are the user's (`pip install brax`, `jumanji` or
`navix`) and are not imported here: what is passed in is one of their environments.

    env = envs.from_jumanji(jumanji.make("Snake-v1"))
    net = nets.make_actor_critic_net(envs.num_actions(env))
    actor = actors.make_actor(env, net, num_envs=64, num_steps=32)
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.flatten_util import ravel_pytree

from jaxrl_align.envs.actions import MultiDiscrete
from jaxrl_align.envs.registry import spaces

Adapted = tuple["AdaptedEnv", None]
Observe = Callable[[Any], Any]
"""Maps a foreign observation to the array, or tree of arrays, that the policy reads."""


class View(NamedTuple):
    """The observable part of a foreign state."""

    obs: Any
    reward: jax.Array
    terminated: jax.Array
    truncated: jax.Array


class AdaptedState(NamedTuple):
    """A foreign state and its age in steps."""

    inner: Any
    time: jax.Array


class AdaptedEnv(NamedTuple):
    """A foreign environment behind gymnax's (>= 1.0) interface, with automatic reset."""

    start: Callable[[chex.PRNGKey], Any]
    """`key -> state`."""
    advance: Callable[[Any, jax.Array], Any]
    """`(state, action) -> state`; never called on a state whose episode is over."""
    view: Callable[[Any], View]
    space: Any
    """The action space."""
    max_steps: int | None = None
    """Longer episodes are truncated; None leaves that to the environment."""

    def reset(self, key: chex.PRNGKey, params: None = None) -> tuple[Any, AdaptedState]:
        """Start an episode; return (observation, state)."""
        inner = self.start(key)
        return self.view(inner).obs, AdaptedState(inner, jnp.zeros((), jnp.int32))

    def step(
        self, key: chex.PRNGKey, state: AdaptedState, action: jax.Array, params: None = None
    ) -> tuple[Any, AdaptedState, jax.Array, jax.Array, jax.Array, dict[str, Any]]:
        """Return (obs, state, reward, terminated, truncated, info), reset where the episode ended."""
        inner = self.advance(state.inner, action)
        seen, time = self.view(inner), state.time + 1
        terminated, truncated = jnp.asarray(seen.terminated, bool), jnp.asarray(seen.truncated, bool)
        if self.max_steps is not None:
            truncated = truncated | (time >= self.max_steps)
        truncated = truncated & ~terminated
        done = terminated | truncated
        begin, fresh = self.reset(key)
        fresh = AdaptedState(fresh.inner, jnp.zeros_like(time))
        both = ((begin, fresh), (seen.obs, AdaptedState(inner, time)))
        obs, state = jax.tree.map(lambda new, old: _select(done, new, old), *both)
        reward = jnp.asarray(seen.reward, jnp.float32).reshape(())
        info = {"final_observation": seen.obs}
        return obs, state, reward, terminated, truncated, info

    def action_space(self, params: None = None) -> Any:
        """Return the action space."""
        return self.space


def _select(done: jax.Array, new: jax.Array, old: jax.Array) -> jax.Array:
    if jnp.issubdtype(jnp.asarray(old).dtype, jax.dtypes.prng_key):
        return jax.lax.select(jnp.broadcast_to(done, old.shape), new, old)
    return jnp.where(done, new, old).astype(jnp.asarray(old).dtype)


def flatten(obs: Any) -> jax.Array:
    """Return every number of an observation in one float32 vector: the default `observe`."""
    return ravel_pytree(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), obs))[0]


def from_brax(env: Any, *, max_steps: int | None = 1000) -> Adapted:
    """Adapt a brax environment, `brax.envs.get_environment(name)`, not wrapped.

    A fall terminates; the time limit, which brax leaves to its wrappers, truncates. Every step also computes
    a reset, because what is vmapped cannot branch.

    Args:
      env: has `reset(key)` and `step(state, action)`, and actions in [-1, 1].
      max_steps: length of an episode; None for no limit.
    """

    def view(state: Any) -> View:
        return View(state.obs, state.reward, state.done > 0, jnp.zeros((), bool))

    space = spaces.Box(-1.0, 1.0, (env.action_size,))
    return AdaptedEnv(env.reset, env.step, view, space, max_steps), None


def from_jumanji(env: Any, *, observe: Observe = flatten) -> Adapted:
    """Adapt a jumanji environment, `jumanji.make(name)`, not wrapped.

    A last step with a discount of 0 is a termination, with any other a truncation.

    Args:
      env: has `reset(key)` and `step(state, action)`, which return (state, time step).
      observe: what the policy sees of an observation.

    Raises:
      ValueError: if its actions are neither discrete, several discrete ones, nor bounded numbers.
    """

    def view(state: tuple[Any, Any]) -> View:
        seen = state[1]
        last, over = seen.last(), jnp.all(jnp.asarray(seen.discount) == 0)
        return View(observe(seen.observation), jnp.sum(seen.reward), last & over, last & ~over)

    advance = lambda state, action: env.step(state[0], action)
    return AdaptedEnv(env.reset, advance, view, _space_of(env.action_spec)), None


def _space_of(spec: Any) -> Any:
    """Return jumanji's action spec as a space."""
    values = getattr(spec, "num_values", None)
    if values is not None and np.ndim(values) == 0:
        return spaces.Discrete(int(values))
    if values is not None and np.ndim(values) == 1:
        return MultiDiscrete(tuple(int(n) for n in values))
    if hasattr(spec, "minimum") and np.issubdtype(spec.dtype, np.floating):
        low, high = (np.broadcast_to(bound, spec.shape) for bound in (spec.minimum, spec.maximum))
        return spaces.Box(jnp.asarray(low), jnp.asarray(high), spec.shape)
    raise ValueError(
        f"expected one discrete action, a vector of them or bounded numbers; got the action spec {spec}"
    )


def from_navix(env: Any, *, observe: Observe = flatten) -> Adapted:
    """Adapt a navix environment, `navix.make(name)`.

    Args:
      env: has `reset(key)` and `step(timestep, action)`, and discrete actions.
      observe: what the policy sees of an observation.
    """

    def view(timestep: Any) -> View:
        return View(
            observe(timestep.observation),
            timestep.reward,
            timestep.is_termination(),
            timestep.is_truncation(),
        )

    return AdaptedEnv(env.reset, env.step, view, spaces.Discrete(len(env.action_set))), None
