"""Ordinary Gymnasium environments under the interface of gymnax, stepped on the host.

Slower than an environment written in JAX: every step leaves the compiled program and comes back. Use it for
what exists only there. The environments live in Python, so a state is only a handle to them: a run
that ends cannot be resumed from a checkpoint, and a state can be stepped only once more.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.envs.actions import MultiDiscrete
from jaxrl_align.envs.registry import spaces

KEPT = 4
"""Number of sets of environments kept, say a training's and an evaluation's; older ones are closed."""


class HostState(NamedTuple):
    """A handle to environments held in Python: their id and their step count."""

    number: jax.Array
    time: jax.Array


class _Running:
    """Environments between two steps, and what the last step returned."""

    def __init__(self, environments: Any) -> None:
        self.environments, self.time = environments, 0
        self.last: tuple = ()


class HostEnvironment:
    """The interface of gymnax >= 1.0 around Gymnasium vector environments.

    Vmapped over B copies it makes one vector environment of B and steps it once; it must not be vmapped over
    anything else that is not also vmapped in its `reset`.
    """

    def __init__(self, make: Callable[[int], Any]) -> None:
        """Take `make(num_envs)`, which returns a vector environment that resets in the step that ends."""
        self._make, self._count = make, 0
        self._running: dict[int, _Running] = {}
        probe = make(1)
        self._action_space = _convert(probe.single_action_space)
        space = probe.single_observation_space
        if getattr(space, "shape", None) is None or space.dtype is None:
            raise ValueError(f"expected observations that are one array, got {space}; flatten them first")
        dtype = np.float32 if np.issubdtype(space.dtype, np.floating) else space.dtype
        self._obs = jax.ShapeDtypeStruct(space.shape, jax.dtypes.canonicalize_dtype(dtype))
        probe.close()

    def reset(self, key: chex.PRNGKey, params: None = None) -> tuple[jax.Array, HostState]:
        """Start an environment; return (observation, state)."""
        number = jax.ShapeDtypeStruct((), jnp.int32)
        seed = jax.random.bits(key, (), jnp.uint32)
        obs, number = jax.pure_callback(self._start, (self._obs, number), seed, vmap_method="broadcast_all")
        return obs, HostState(number, jnp.zeros((), jnp.int32))

    def step(
        self, key: chex.PRNGKey, state: HostState, action: jax.Array, params: None = None
    ) -> tuple[jax.Array, HostState, jax.Array, jax.Array, jax.Array, dict[str, Any]]:
        """Return (observation, state, reward, terminated, truncated, info), reset where the episode ended."""
        scalar = lambda dtype: jax.ShapeDtypeStruct((), dtype)
        kinds = (self._obs, scalar(jnp.float32), scalar(jnp.bool_), scalar(jnp.bool_), self._obs)
        obs, reward, terminated, truncated, final = jax.pure_callback(
            self._step, kinds, state.number, state.time, action, vmap_method="broadcast_all"
        )
        return (
            obs,
            HostState(state.number, state.time + 1),
            reward,
            terminated,
            truncated,
            {"final_observation": final},
        )

    def action_space(self, params: None = None) -> Any:
        """Return the space of one environment's actions."""
        return self._action_space

    def _start(self, seed: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        seed = np.asarray(seed)
        environments = self._make(seed.size)
        obs, _ = environments.reset(seed=[int(s) for s in seed.ravel()])
        number = self._count = self._count + 1
        self._running[number] = _Running(environments)
        for old in [n for n in self._running if n <= number - KEPT]:
            self._running.pop(old).environments.close()
        return self._shaped(obs, seed.shape), np.full(seed.shape, number, np.int32)

    def _step(self, number: np.ndarray, time: np.ndarray, action: np.ndarray) -> tuple[np.ndarray, ...]:
        number, time, action = np.asarray(number), np.asarray(time), np.asarray(action)
        batch = number.shape
        running = self._running.get(int(number.flat[0]))
        if running is None or running.environments.num_envs != number.size or np.ptp(number) or np.ptp(time):
            raise ValueError(
                "these environments are not on this host any more, or not all of them were passed; "
                "environments of Gymnasium cannot be resumed or split: start them anew with reset"
            )
        now = int(time.flat[0])
        # A pure callback may be made twice; the second time nothing may move.
        if now == running.time - 1:
            return running.last
        if now != running.time:
            raise ValueError(f"the environments are at step {running.time}, got a state of step {now}")
        flat = action.reshape(number.size, *action.shape[len(batch) :])
        obs, reward, terminated, truncated, info = running.environments.step(flat)
        final = np.array(obs)
        for i in np.flatnonzero(info.get("_final_obs", np.zeros(number.size, bool))):
            final[i] = info["final_obs"][i]
        running.time += 1
        running.last = (
            self._shaped(obs, batch),
            np.asarray(reward, np.float32).reshape(batch),
            np.asarray(terminated, bool).reshape(batch),
            np.asarray(truncated, bool).reshape(batch),
            self._shaped(final, batch),
        )
        return running.last

    def _shaped(self, obs: np.ndarray, batch: tuple[int, ...]) -> np.ndarray:
        if not np.isfinite(obs).all():
            raise ValueError("an environment returned an observation that is NaN or infinite")
        return np.asarray(obs, self._obs.dtype).reshape(*batch, *self._obs.shape)


def _convert(space: Any) -> Any:
    """Return a Gymnasium space as the space class of this library."""
    if hasattr(space, "nvec"):
        return MultiDiscrete(tuple(int(n) for n in np.ravel(space.nvec)))
    if hasattr(space, "n") and getattr(space, "start", 0) == 0:
        return spaces.Discrete(int(space.n))
    if hasattr(space, "low"):
        return spaces.Box(jnp.asarray(space.low), jnp.asarray(space.high), space.shape, jnp.float32)
    raise ValueError(f"expected a Discrete (from 0), MultiDiscrete or Box of actions, got {space}")


def make_host_environment(name: str, **settings: Any) -> tuple[HostEnvironment, None]:
    """Return an environment of Gymnasium as the pair that every actor takes.

    Args:
      name: registered with Gymnasium, for example "LunarLander-v3".
      **settings: passed to its constructor.

    Returns:
      (environment, None), for `gym.make_actor` and `envs.evaluate_policy`. Steps run in this process, one
      environment after another.

    Raises:
      ImportError: Gymnasium is not installed.
      ValueError: for actions or observations of another kind than one array.
    """
    try:
        import gymnasium
        from gymnasium.vector import AutoresetMode
    except ImportError as error:
        raise ImportError(
            "environments of Gymnasium need it (version 1.1 or later): pip install jaxrl-align[gymnasium]"
        ) from error
    same_step = {"autoreset_mode": AutoresetMode.SAME_STEP}

    def make(num_envs: int) -> Any:
        return gymnasium.make_vec(
            name, num_envs=num_envs, vectorization_mode="sync", vector_kwargs=same_step, **settings
        )

    return HostEnvironment(make), None
