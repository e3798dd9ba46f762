"""Policies at play: how good a kept one is, and which of several is kept."""

from pathlib import Path
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align import actors
from jaxrl_align.envs.actions import Distribution
from jaxrl_align.envs.registry import Environment, make_environment, observation_like
from jaxrl_align.envs.rollout import Episodes, evaluate_policy
from jaxrl_align.evaluate.policies.described import describe_space
from jaxrl_align.evaluate.policies.policy_folder import INNER, KeptPolicy, save_policy
from jaxrl_align.losses import Categorical
from jaxrl_align.nets import Net, QNet
from jaxrl_align.runtime import checkpoint
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.keeper import read_best
from jaxrl_align.types import State


def find_environment(policy: KeptPolicy, env: Environment | None = None) -> tuple[Any, Any]:
    """Return the environment that a policy plays in.

    Args:
      policy: as `load_policy` gives it.
      env: a gymnax name or (environment, params); None takes the one that it was trained in.

    Raises:
      ValueError: the policy names none, there is no such one, or its observations or actions are others.
    """
    named = policy.env if env is None else env
    if named is None:
        raise ValueError("the policy was trained in an environment without a name; say which by env")
    environment, env_params = make_environment(named)
    seen = observation_like(environment, env_params)
    shape, wanted = getattr(seen, "shape", None), policy.observation.shape
    actions, known = describe_space(environment.action_space(env_params)), describe_space(policy.action)
    if shape != wanted or actions != known:
        raise ValueError(
            f"the policy sees observations of shape {wanted} and acts in {known['kind']}; "
            f"{type(environment).__name__} shows shape {shape} and takes {actions['kind']}: it is another "
            "environment, or has other bounds"
        )
    return environment, env_params


def longest_episode(env: Environment, max_steps: int | None = None) -> int:
    """Return how many steps end every episode: as given, or what the environment's parameters say.

    Raises:
      ValueError: neither says it.
    """
    if max_steps is not None:
        return max_steps
    _, env_params = make_environment(env)
    limit = getattr(env_params, "max_steps_in_episode", None)
    if limit is None:
        raise ValueError("the environment has no max_steps_in_episode; say the longest episode by max_steps")
    return int(limit) + 1


def play_policy(
    policy: KeptPolicy,
    key: chex.PRNGKey,
    *,
    env: Environment | None = None,
    episodes: int = 100,
    max_steps: int | None = None,
    sample: bool = False,
) -> Episodes:
    """Play whole episodes by a kept policy.

    Args:
      policy: as `load_policy` gives it.
      key: seeds the starts, the policy and the dynamics.
      env: a gymnax name or (environment, params); None takes the one that it was trained in.
      episodes: N.
      max_steps: of an episode; None takes what ends every one.
      sample: draw the actions, as in training, where it is otherwise greedy.

    Returns:
      `Episodes` with leaves [N].

    Raises:
      ValueError: as `find_environment`, or for a count below 1.
    """
    place = find_environment(policy, env)
    steps, act = longest_episode(place, max_steps), policy.sampled if sample else policy.greedy

    @jax.jit
    def play(key: chex.PRNGKey) -> Episodes:
        return evaluate_policy(place, act, key, num_episodes=episodes, max_steps=steps)

    return play(key)


class Chosen(NamedTuple):
    """Which policy of a run was kept."""

    member: int
    step: int
    """Of the learner."""
    value: float
    """Its mean return in the episodes by which it was chosen, which flatter it."""


def keep_policy(
    folder: RunFolder,
    net: Net | QNet,
    state: State,
    *,
    env: Environment,
    distribution: Distribution = Categorical,
    episodes: int = 32,
    max_steps: int | None = None,
) -> Chosen:
    """Write a run's best policy into `policy/` of its folder, and print which it is.

    Every member plays the same episodes greedily, at the run's end and at the checkpoint that `--keep-best`
    has kept, if any; the largest mean return is kept.

    Args:
      folder: of the run.
      net: that the members share.
      state: at the end, leaves [M, ...].
      env: a gymnax name or (environment, params).
      distribution: that a `Net`'s output parametrises.
      episodes: that each member plays, apart from training.
      max_steps: of an episode; None takes what ends every one.

    Raises:
      ImportError, OSError, ValueError: as `save_policy` and `longest_episode`.
      TypeError: the folder is a path.
    """
    if not isinstance(folder, RunFolder):
        raise TypeError(
            f"folder must be a RunFolder, as runtime.open_run gives it; got {type(folder).__name__}; "
            "save_policy writes one policy to a path"
        )
    steps = longest_episode(env, max_steps)
    drawn_from = distribution if isinstance(net, Net) else Categorical

    def value(params: Any, normaliser: Any, key: chex.PRNGKey) -> jax.Array:
        if isinstance(net, QNet):
            act = actors.epsilon_greedy(net, params)
        else:
            act = actors.greedy(net, params, distribution)
        act = actors.normalised(act, normaliser)
        how: Any = {"num_episodes": episodes, "max_steps": steps, "distribution": drawn_from}
        return jnp.mean(evaluate_policy(env, act, key, **how).episode_return)

    judge, key = jax.jit(jax.vmap(value, (0, 0, None))), jax.random.fold_in(jax.random.key(0), 1)
    states = [state]
    best = read_best(folder)
    if best is not None and best["step"] != np.ravel(state.step)[0]:
        states.insert(0, checkpoint.restore(folder.path, state, step=best["step"])[0])
    values = np.array([judge(*_policy_of(one), key) for one in states])
    values = np.where(np.isfinite(values), values, -np.inf)
    which, member = np.unravel_index(np.argmax(values), values.shape)
    params, normaliser = jax.tree.map(lambda x: np.asarray(x[member]), _policy_of(states[which]))
    chosen = Chosen(int(member), int(np.ravel(states[which].step)[0]), float(values[which, member]))
    judged = f"mean return of {episodes} greedy episodes"
    trained = {"config": folder.config, **chosen._asdict(), "judged_by": judged}
    how = {"distribution": distribution, "normaliser": normaliser, "trained": trained}
    save_policy(Path(folder.path) / INNER, net, params, env=env, **how)
    print(
        f"{folder.path / INNER} keeps the policy of member {member} at step {chosen.step}, the best of "
        f"{values.size} by the {judged}, {chosen.value:.1f}; jaxrl-align play {folder.path} plays it"
    )
    return chosen


def _policy_of(state: State) -> tuple[Any, Any]:
    return state.params, getattr(state.env_state, "normaliser", None)
