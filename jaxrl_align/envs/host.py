"""Ordinary Gymnasium environments under the interface of gymnax, stepped on the host.

Slower than an environment written in JAX: every step leaves the compiled program and comes back. Use it for
what exists only there. The environments live in Python, so a state is only a handle to them: a run
that ends cannot be resumed from a checkpoint, and a state can be stepped only once more.

Every `reset` makes a set of environments. Who knows that nobody will step it again closes it: evaluations and
whole-episode rollouts close theirs, your own loops may call `HostEnvironment.release`. Of sets that nobody
closed the `KEPT` that were used last stay open.
"""

import itertools
import math
import secrets
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.envs.actions import MultiDiscrete
from jaxrl_align.envs.registry import spaces

KEPT = 64
"""Number of sets that stay open though nobody closed them; the one unused for longest is closed first."""

# From a number of this process's own, so that no restored or foreign handle is taken for one of these.
_NUMBERS = itertools.count(secrets.randbelow(2**30))


class HostState(NamedTuple):
    """A handle to environments held in Python: their set's number and its step count."""

    number: jax.Array
    time: jax.Array


class _Running:
    """A set of environments between two steps, and what the last step returned."""

    def __init__(self, environments: Any) -> None:
        self.environments, self.time = environments, 0
        self.last: tuple = ()


class HostEnvironment:
    """The interface of gymnax >= 1.0 around Gymnasium vector environments.

    Vmapped over B copies it makes one vector environment of B and steps it once; it must not be vmapped over
    anything else that is not also vmapped in its `reset`.

    Discrete actions and observations count from 0 here, whatever their `start`. Several choices at once
    (MultiDiscrete, MultiBinary) are a vector of actions, of any shape there. An observation of a Dict or
    Tuple space is a dict or tuple of arrays.
    """

    def __init__(self, make: Callable[[int], Any]) -> None:
        """Take `make(num_envs)`, which returns a vector environment that resets in the step that ends."""
        self._make = make
        self._running: OrderedDict[int, _Running] = OrderedDict()
        probe = make(1)
        try:
            self._actions, self._observations = probe.single_action_space, probe.single_observation_space
        finally:
            probe.close()
        self._action_space = _convert(self._actions, "actions")
        self._observation_space = _convert(self._observations, "observations")
        self._obs = _over(lambda space: jax.ShapeDtypeStruct(space.shape, _dtype(space)), self._observations)

    def reset(self, key: chex.PRNGKey, params: None = None) -> tuple[Any, HostState]:
        """Start an environment; return (observation, state)."""
        number = jax.ShapeDtypeStruct((), jnp.int32)
        seed = jax.random.bits(key, (), jnp.uint32)
        obs, number = jax.pure_callback(self._start, (self._obs, number), seed, vmap_method="broadcast_all")
        return obs, HostState(number, jnp.zeros((), jnp.int32))

    def step(
        self, key: chex.PRNGKey, state: HostState, action: jax.Array, params: None = None
    ) -> tuple[Any, HostState, jax.Array, jax.Array, jax.Array, dict[str, Any]]:
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

    def release(self, state: HostState, value: Any) -> Any:
        """Return `value`, arrays computed from the last step, and close the state's environments then."""
        kinds = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)), value)
        return jax.pure_callback(self._close, kinds, state.number, value, vmap_method="broadcast_all")

    def action_space(self, params: None = None) -> Any:
        """Return the space of one environment's actions."""
        return self._action_space

    def observation_space(self, params: None = None) -> Any:
        """Return the space of one environment's observations."""
        return self._observation_space

    def _start(self, seed: np.ndarray) -> tuple[Any, np.ndarray]:
        seed = np.asarray(seed)
        environments = self._make(seed.size)
        obs, _ = environments.reset(seed=[int(s) for s in seed.ravel()])
        number = next(_NUMBERS)
        self._running[number] = _Running(environments)
        while len(self._running) > KEPT:
            self._running.popitem(last=False)[1].environments.close()
        return self._shaped(obs, seed.shape), np.full(seed.shape, number, np.int32)

    def _step(self, number: np.ndarray, time: np.ndarray, action: np.ndarray) -> tuple:
        number, time, action = np.asarray(number), np.asarray(time), np.asarray(action)
        batch = number.shape
        running = self._running.get(int(number.flat[0]))
        if running is None or running.environments.num_envs != number.size or np.ptp(number) or np.ptp(time):
            raise ValueError(
                f"all environments of one reset must be stepped together, while they are open; these were "
                f"released, were the longest unused of more than {KEPT} sets, belong to another process, or "
                f"were split: start anew with reset, and end your own loops with environment.release"
            )
        self._running.move_to_end(int(number.flat[0]))
        now = int(time.flat[0])
        # A pure callback may be made twice; the second time nothing may move.
        if now == running.time - 1:
            return running.last
        if now != running.time:
            raise ValueError(f"the environments are at step {running.time}, got a state of step {now}")
        flat = _to_gymnasium(
            self._actions, self._action_space, action.reshape(number.size, *action.shape[len(batch) :])
        )
        obs, reward, terminated, truncated, info = running.environments.step(flat)
        final = _over(lambda _, x: np.array(x), self._observations, obs)
        for i in np.flatnonzero(info.get("_final_obs", np.zeros(number.size, bool))):
            put = lambda _, x, new, i=i: x.__setitem__(i, new)
            _over(put, self._observations, final, info["final_obs"][i])
        running.time += 1
        running.last = (
            self._shaped(obs, batch),
            np.asarray(reward, np.float32).reshape(batch),
            np.asarray(terminated, bool).reshape(batch),
            np.asarray(truncated, bool).reshape(batch),
            self._shaped(final, batch),
        )
        return running.last

    def _close(self, number: np.ndarray, value: Any) -> Any:
        for one in np.unique(np.asarray(number)):
            running = self._running.pop(int(one), None)
            if running is not None:
                running.environments.close()
        return value

    def _shaped(self, obs: Any, batch: tuple[int, ...]) -> Any:
        def one(space: Any, x: Any) -> np.ndarray:
            x = np.asarray(x) - space.start if hasattr(space, "start") else np.asarray(x)
            with np.errstate(over="ignore"):
                kept = x.astype(_dtype(space))
            if not np.isfinite(kept).all():
                raise ValueError("an environment returned an observation that is NaN or infinite")
            if kept.dtype.kind in "iu" and kept.dtype != x.dtype and (kept != x).any():
                raise ValueError(f"an environment returned an observation beyond {kept.dtype}")
            return kept.reshape((*batch, *space.shape))

        return _over(one, self._observations, obs)


def _over(function: Callable[..., Any], space: Any, *values: Any) -> Any:
    """Apply a function to every array of a Dict or Tuple space, and to such values of it."""
    children = getattr(space, "spaces", None)
    if children is None:
        return function(space, *values)
    if isinstance(children, tuple | list):
        return tuple(_over(function, child, *(v[i] for v in values)) for i, child in enumerate(children))
    return {name: _over(function, child, *(v[name] for v in values)) for name, child in children.items()}


def _dtype(space: Any) -> Any:
    floating = np.issubdtype(space.dtype, np.floating)
    return jax.dtypes.canonicalize_dtype(np.float32 if floating else space.dtype)


def _convert(space: Any, of: str) -> Any:
    """Return a Gymnasium space as the space class of this library."""
    from gymnasium import spaces as theirs

    if isinstance(space, theirs.Discrete):
        return spaces.Discrete(int(space.n))
    if isinstance(space, theirs.MultiDiscrete):
        return MultiDiscrete(tuple(int(n) for n in space.nvec.ravel()))
    if isinstance(space, theirs.MultiBinary) or (isinstance(space, theirs.Box) and space.dtype == bool):
        return MultiDiscrete((2,) * math.prod(space.shape))
    if isinstance(space, theirs.Box):
        low, high = (bound.astype(np.float32) for bound in (space.low, space.high))
        return spaces.Box(jnp.asarray(low), jnp.asarray(high), space.shape, _dtype(space))
    if of == "observations" and isinstance(space, theirs.Dict):
        return spaces.Dict({name: _convert(child, of) for name, child in space.spaces.items()})
    if of == "observations" and isinstance(space, theirs.Tuple):
        return spaces.Tuple(tuple(_convert(child, of) for child in space.spaces))
    more = ", or a Dict or Tuple of these" if of == "observations" else ""
    raise ValueError(
        f"{of} must be of a Discrete, MultiDiscrete, MultiBinary or Box space{more}; got "
        f"{type(space).__name__}; wrap the environment with gymnasium.wrappers.Transform{of[:-1].title()}"
    )


def _limits(space: Any, mapped: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return the least and the greatest action, of the space's shape; discrete ones count from 0."""
    if isinstance(mapped, spaces.Box):
        return space.low, space.high
    counts = mapped.nvec if isinstance(mapped, MultiDiscrete) else mapped.n
    return np.zeros(space.shape, np.int64), np.reshape(counts, space.shape) - 1


def _to_gymnasium(space: Any, mapped: Any, action: np.ndarray) -> np.ndarray:
    """Return actions [B, ...] of a mapped space as its own: of its shape, its type, and from its start on."""
    action = action.reshape(len(action), *space.shape)
    low, high = _limits(space, mapped)
    if action.dtype.kind == "f":
        low, high = low.astype(action.dtype), high.astype(action.dtype)
    inside = (action >= low) & (action <= high)
    if not np.issubdtype(space.dtype, np.floating):
        inside &= action == np.round(action)
    if not inside.all():
        raise ValueError(
            f"actions must lie between {low} and {high}, whole where these are; got {action[~inside][0]}"
        )
    own, start = action.astype(space.dtype), np.asarray(getattr(space, "start", 0), space.dtype)
    # Rounded to float32 an action may lie beyond bounds in float64.
    return np.clip(own, *_limits(space, mapped)) if isinstance(mapped, spaces.Box) else own + start


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
      ValueError: for spaces of another kind, for example Text, Graph, Sequence and OneOf, and Dict or Tuple
        actions.
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
