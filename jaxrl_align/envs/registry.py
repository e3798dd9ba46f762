"""Environments by name: the only file that imports gymnax.

An environment is a gymnax name or a pair of an environment and its parameters, whose `step` returns (obs,
state, reward, terminated, truncated, info), resets by itself and leaves the observation before the reset in
`info["final_observation"]` (gymnax >= 1.0).
"""

import difflib
import functools
import importlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.checks import check_counts


class _Later:
    """A module that is imported when it is first used.

    gymnax makes arrays when it is imported, and so starts JAX: after that neither the number of CPU devices
    can be chosen nor other processes joined.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        return getattr(importlib.import_module(self._name), attribute)


gymnax: Any = _Later("gymnax")
spaces: Any = _Later("gymnax.environments.spaces")

Environment = str | tuple[Any, Any]
"""A gymnax name, or (environment, parameters)."""
_TRIED, _AGAIN = 256, 8
"""Steps in which an environment of one's own may end, and steps after that which may not all end again."""


@functools.cache
def _make_registered(name: str) -> tuple[Any, Any]:
    # gymnax jits `step` per instance, so one instance per name spares a retrace.
    return gymnax.make(name)


def make_environment(env: Environment) -> tuple[Any, Any]:
    """Return (environment, parameters), built once per name, after checking its interface without running it.

    Raises:
      ValueError: for an unknown name, no action space, an empty observation, or a `step` that does not return
        the six values of gymnax >= 1.0, in reset's shapes and types.
    """
    if isinstance(env, str):
        if env not in gymnax.registered_envs:
            by_lower = {name.lower(): name for name in gymnax.registered_envs}
            close = difflib.get_close_matches(env.lower(), by_lower, n=3, cutoff=0.5)
            hint = f"did you mean {' or '.join(by_lower[name] for name in close)}? " if close else ""
            raise ValueError(f"unknown environment {env!r}; {hint}gymnax.registered_envs lists all of them")
        env = _make_registered(env)
    if not isinstance(env, tuple) or len(env) != 2:
        raise ValueError(f"env must be a name or a pair (environment, params); got {type(env).__name__}")
    environment, env_params = env
    if isinstance(environment, type):
        name = environment.__name__
        raise ValueError(f"an environment must be an object; got the class {name}; write ({name}(), params)")
    missing = [name for name in ("reset", "step", "action_space") if not hasattr(environment, name)]
    space: Any = None if missing else environment.action_space(env_params)
    if not hasattr(space, "sample"):
        raise ValueError(
            f"an environment must have reset, step and action_space(params), which returns a space; got "
            f"{type(environment).__name__} with {f'no {missing[0]}' if missing else f'the space {space}'}; "
            f"return for example envs.spaces.Discrete(2)"
        )
    key = jax.random.key(0)
    obs, state = jax.eval_shape(environment.reset, key, env_params)
    values = jax.eval_shape(environment.step, key, state, jax.eval_shape(space.sample, key), env_params)
    if len(values) != 6 or "final_observation" not in values[5]:
        got = f"{len(values)} values" if len(values) != 6 else f"an info of {sorted(values[5])}"
        raise ValueError(
            f"environment.step must return (obs, state, reward, terminated, truncated, info) with "
            f'info["final_observation"], as gymnax >= 1.0 does; {type(environment).__name__} returns '
            f"{got}; port it, keeping termination and truncation apart"
        )
    _check_values(type(environment).__name__, obs, state, values)
    return environment, env_params


def _check_values(name: str, obs: Any, state: Any, values: tuple) -> None:
    """Raise ValueError unless what a step returns fits what reset did; shapes and types only."""
    if not sum(leaf.size for leaf in jax.tree.leaves(obs)):
        raise ValueError(
            f"an observation must hold at least one number; {name}.reset returns none; "
            f"return jnp.zeros(1) where there is nothing to see"
        )
    after, state_after, reward, terminated, truncated, info = values
    for what, value in {"reward": reward, "terminated": terminated, "truncated": truncated}.items():
        if value.shape != ():
            raise ValueError(
                f"{what} must be one number, of shape (); {name}.step returns shape {value.shape}; "
                f"index or sum it"
            )
    pairs = {"observation": (obs, after), "final_observation": (obs, info["final_observation"])}
    for what, (first, then) in (pairs | {"state": (state, state_after)}).items():
        kinds = [_kinds(first), _kinds(then)]
        for place in kinds[0] | kinds[1]:
            expected, got = (kind.get(place, "nothing") for kind in kinds)
            if expected != got:
                raise ValueError(
                    f"a step's {what}{place} must be what reset returns, {expected}; {name}.step returns "
                    f"{got}; give both the same shape and type"
                )


def _kinds(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}" for path, leaf in leaves}


def num_actions(env: Environment) -> int:
    """Return the number of discrete actions.

    Raises:
      ValueError: if the action space is not discrete, or for what `make_environment` refuses.
    """
    environment, env_params = make_environment(env)
    space = environment.action_space(env_params)
    if hasattr(space, "nvec") or not hasattr(space, "n"):  # a space of one's own serves, as it does an actor
        raise ValueError(
            f"expected a discrete action space, got {type(space).__name__} of {type(environment).__name__}; "
            f"this net chooses among discrete actions: take another environment, or discretise this one"
        )
    return int(space.n)


def open_environment(env: Environment, **counts: int) -> tuple[Any, Any]:
    """Return `make_environment(env)` for an actor, after checking its counts and trying out one of your own.

    Raises:
      ValueError: for a count below 1, an environment of your own that starts with NaN or infinity or does not
        reset itself, or for what `make_environment` refuses.
    """
    check_counts(**counts)
    environment, env_params = make_environment(env)
    # Parameters that are traced cannot be played with, and are passed over.
    traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(env_params))
    if not isinstance(env, str) and not traced:
        with jax.ensure_compile_time_eval():
            _check_first_observation(environment, env_params)
            if not type(environment).__module__.startswith(__package__):  # what this package wraps does
                _check_resets(environment, env_params)
    return environment, env_params


def observation_like(environment: Any, env_params: Any) -> Any:
    """Return zeros of an observation's shapes and types, without running the environment."""
    obs, _ = jax.eval_shape(environment.reset, jax.random.key(0), env_params)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), obs)


def leave(environment: Any, state: Any, value: Any) -> Any:
    """Return a value computed from an environment that nobody steps again: one on the host is closed then."""
    release = getattr(environment, "release", None)
    return value if release is None else release(state, value)


def _check_first_observation(environment: Any, env_params: Any) -> None:
    """Raise ValueError if an environment starts with an observation that is not finite."""
    obs, state = environment.reset(jax.random.key(0), env_params)
    obs = leave(environment, state, obs)
    leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(obs)]
    bad = sum(int(np.sum(~np.isfinite(leaf))) for leaf in leaves)
    if bad:
        raise ValueError(
            f"observations must be finite; the first one of {type(environment).__name__} has {bad} of "
            f"{sum(leaf.size for leaf in leaves)} entries that are NaN or infinite: correct its reset, or "
            f"replace them there"
        )


def _check_resets(environment: Any, env_params: Any) -> None:
    """Raise ValueError if after an episode's end every step ends again, at the observation it ended with.

    Random actions are taken until the first end and `_AGAIN` steps beyond, `_TRIED` at most. An episode of
    one step tells nothing: a bandit ends every step by right. An object that holds traced numbers cannot be
    played with either.
    """
    space = environment.action_space(env_params)

    def step(carry: Any) -> Any:
        key, state, count, first, stuck = carry
        key, key_action, key_step = jax.random.split(key, 3)
        obs, state, _, terminated, truncated, info = environment.step(
            key_step, state, space.sample(key_action), env_params
        )
        same = jax.tree.map(lambda a, b: jnp.array_equal(a, b, True), obs, info["final_observation"])
        ended = terminated | truncated
        still = ended & jnp.all(jnp.stack(jax.tree.leaves(same)))
        first = jnp.where((first < 0) & ended, count, first)
        return key, state, count + 1, first, stuck + ((first >= 0) & still)

    def goes_on(carry: Any) -> jax.Array:
        _, _, count, first, _ = carry
        return (count < _TRIED) & ((first < 0) | (count <= first + _AGAIN))

    _, state = environment.reset(jax.random.key(0), env_params)
    start = (jax.random.key(1), state, jnp.zeros((), jnp.int32), jnp.full((), -1, jnp.int32), 0)
    _, _, _, first, stuck = jax.jit(lambda start: jax.lax.while_loop(goes_on, step, start))(start)
    if not isinstance(first, jax.core.Tracer) and first > 0 and stuck == _AGAIN + 1:
        raise ValueError(
            f"an environment must reset itself when an episode ends; after its first end "
            f"{type(environment).__name__}.step ended {_AGAIN} times more, where it stood: return reset's "
            f'observation and state there, and the last observation in info["final_observation"]'
        )
