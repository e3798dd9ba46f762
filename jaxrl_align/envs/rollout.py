"""Policies acting in environments: resets, rollouts, episodes and their record.

An environment is any object with the interface of gymnax >= 1.0, as `envs.make_environment` returns it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.checks import check_counts
from jaxrl_align.envs.actions import Distribution, check_action, to_environment
from jaxrl_align.envs.registry import (
    Environment,
    leave,
    make_environment,
    observation_like,
)
from jaxrl_align.losses import Categorical
from jaxrl_align.placement import place_rows
from jaxrl_align.types import Metrics

WINDOW = 100
"""Number of the last finished episodes that `episode_return_last100` averages."""

Policy = Callable[[chex.PRNGKey, Any], jax.Array]
"""`(key, obs) -> action` for one observation, an array or a tree of arrays."""


class EnvState(NamedTuple):
    """One environment between two steps."""

    obs: Any
    """An array, or any tree of arrays, such as a dict."""
    state: Any
    episode_return: jax.Array
    """[] sum of the running episode's rewards so far, undiscounted."""
    episode_length: jax.Array
    """[] int32 steps of the running episode so far."""


class Steps(NamedTuple):
    """T steps of one environment."""

    obs: Any
    """[T, ...] before the action; a tree of arrays where the environment gives one."""
    action: jax.Array
    reward: jax.Array
    terminated: jax.Array
    """[T] bool: the episode ended by its own rules, and nothing follows."""
    truncated: jax.Array
    """[T] bool: the episode was cut, for example by a time limit, and its value goes on."""
    final_obs: Any
    """[T, ...] after the action and before any reset."""
    episode_return: jax.Array
    """[T] sum of the episode's rewards up to and including this step."""
    episode_length: jax.Array
    """[T] int32 steps of the episode up to and including this one."""


class GymState(NamedTuple):
    """The actor's state between two rollouts."""

    envs: Any
    """`EnvState` with leaves [B, ...]; with memory a pair of it and the memories [B, H]."""
    recent_returns: jax.Array
    """[100] ring of the last finished episodes' returns, 0 where still empty."""
    finished: jax.Array
    """[] int32 episodes finished since the start, n; from 100 on 100 + n % 100, all that the ring needs."""
    normaliser: Any = None
    """Running moments of observations and returns, of `actors.normalisation`; None if they are left alone."""


def reset(environment: Any, env_params: Any, key: chex.PRNGKey) -> EnvState:
    """Start one episode in one environment."""
    obs, state = environment.reset(key, env_params)
    # Environments start from Python numbers; a weak type here would make the second call compile again.
    obs, state = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), (obs, state))
    return EnvState(obs, state, jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))


def advance(
    environment: Any,
    env_params: Any,
    env_state: EnvState,
    action: jax.Array,
    key: chex.PRNGKey,
    to_env: Callable[[jax.Array], jax.Array],
) -> tuple[EnvState, Steps]:
    """Take one step in one environment; see `unroll`."""
    obs, state, reward, terminated, truncated, info = environment.step(
        key, env_state.state, to_env(action), env_params
    )
    reward = jnp.asarray(reward, jnp.float32)
    terminated, truncated = jnp.asarray(terminated, bool), jnp.asarray(truncated, bool)
    total, length = env_state.episode_return + reward, env_state.episode_length + 1
    step = Steps(
        env_state.obs, action, reward, terminated, truncated, info["final_observation"], total, length
    )
    running = ~(terminated | truncated)
    return EnvState(obs, state, total * running, length * running), step


def unroll(
    environment: Any,
    env_params: Any,
    policy: Policy,
    env_state: EnvState,
    key: chex.PRNGKey,
    num_steps: int,
    to_env: Callable[[jax.Array], jax.Array] = lambda action: action,
) -> tuple[EnvState, Steps]:
    """Let a policy act for `num_steps` steps in ONE environment, which resets by itself; the caller vmaps.

    Args:
      environment: with the gymnax >= 1.0 interface, as `make_environment` returns it.
      env_params: its parameters.
      policy: `(key, obs) -> action`.
      env_state: from `reset` or from an earlier unroll.
      key: the steps' randomness.
      num_steps: T.
      to_env: what the environment takes for an action; `Steps` keeps the action itself.

    Returns:
      The environment's state after the last step, and `Steps` with leaves [T, ...].
    """

    def one_step(env_state: EnvState, words: jax.Array) -> tuple[EnvState, Steps]:
        key_action, key_step = jax.random.wrap_key_data(words, impl=jax.random.key_impl(key))
        action = policy(key_action, env_state.obs)
        return advance(environment, env_params, env_state, action, key_step, to_env)

    return jax.lax.scan(one_step, env_state, step_keys(key, num_steps))


def step_keys(key: chex.PRNGKey, num_steps: int) -> jax.Array:
    """Return the words of two keys a step, [T, 2, ...]: for the policy and for the environment.

    They are made at once, because a split inside a scan costs as much as a small network does. They pass into
    the scan as words: jax's check for reused keys takes a vmapped scan over split keys for a reuse.
    """
    return jax.random.key_data(jax.random.split(key, (num_steps, 2)))


def start(environment: Any, env_params: Any, key: chex.PRNGKey, num_envs: int) -> GymState:
    """Start `num_envs` environments with an empty record of episodes."""
    envs = jax.vmap(lambda k: reset(environment, env_params, k))(jax.random.split(key, num_envs))
    return GymState(place_rows(envs), jnp.zeros(WINDOW, jnp.float32), jnp.zeros((), jnp.int32))


def record_episodes(gym_state: GymState, envs: EnvState, steps: Steps) -> tuple[GymState, Metrics]:
    """Count the episodes that ended in `steps` [B, T] and average the last ones; see `make_actor`."""
    # Time first, so that the ring keeps the episodes that ended last.
    # XLA aborts on a running sum of constants (jaxlib 0.10.2), which an environment that always ends has.
    done = jax.lax.optimization_barrier((steps.terminated | steps.truncated).T.ravel())
    returns = steps.episode_return.T.ravel()
    order = jnp.cumsum(done) - 1
    episodes = jnp.sum(done, dtype=jnp.int32)
    # A slot is written once: of more than WINDOW endings the earlier ones are dropped (index out of range).
    kept = done & (order >= episodes - WINDOW)
    slot = jnp.where(kept, (gym_state.finished + order) % WINDOW, WINDOW)
    recent = gym_state.recent_returns.at[slot].set(returns, mode="drop")
    finished = gym_state.finished + episodes
    finished = jnp.where(finished < WINDOW, finished, WINDOW + finished % WINDOW)  # a count would overflow
    held = jnp.minimum(finished, WINDOW)
    metrics = {
        "episodes": episodes,
        "episode_return_sum": jnp.sum(jnp.where(done, returns, 0.0)),
        "episode_length_sum": jnp.sum(jnp.where(done, steps.episode_length.T.ravel(), 0), dtype=jnp.int32),
        "episode_return_last100": jnp.where(held > 0, jnp.sum(recent) / jnp.maximum(held, 1), jnp.nan),
    }
    return gym_state._replace(envs=envs, recent_returns=recent, finished=finished), metrics


def first_episodes(steps: Steps) -> jax.Array:
    """Return 1 for every step of each environment's first episode, 0 for what follows: [B, T] float32."""
    done = jax.lax.optimization_barrier(steps.terminated | steps.truncated).astype(jnp.float32)
    before = jnp.cumsum(done, axis=1) - done
    return (before == 0).astype(jnp.float32)


class Episodes(NamedTuple):
    """The first episode of each of N environments."""

    episode_return: jax.Array
    """[N] undiscounted; of the steps seen where the episode did not end."""
    episode_length: jax.Array
    """[N] int32."""
    finished: jax.Array
    """[N] bool: whether it ended within the steps allowed."""


def evaluate_policy(
    env: Environment,
    policy: Policy,
    key: chex.PRNGKey,
    *,
    num_episodes: int,
    max_steps: int,
    distribution: Distribution = Categorical,
) -> Episodes:
    """Play one episode in each of `num_episodes` fresh environments, apart from any training; jittable.

    Args:
      env: a gymnax name or (environment, params).
      policy: `greedy(net, params)`, `sampled(net, params)` or any `(key, obs) -> action`.
      key: seeds the starts, the policy and the dynamics.
      num_episodes: N.
      max_steps: at most this many steps are played of each.
      distribution: what the policy's actions are drawn from, which says how they become the environment's.

    Returns:
      `Episodes` with leaves [N].

    Raises:
      ValueError: for a count below 1, actions of another shape than the space's or fractional where it is
        discrete, or for what `make_environment` refuses. An environment in JAX is not asked whether an action
        is in range: out of it, what happens is the environment's own affair.
    """
    check_counts(num_episodes=num_episodes, max_steps=max_steps)
    environment, env_params = make_environment(env)
    space = environment.action_space(env_params)
    to_env = to_environment(distribution, space)
    act = lambda key, obs: to_env(policy(key, obs))
    check_action(space, jax.eval_shape(act, key, observation_like(environment, env_params)))

    def play(key: chex.PRNGKey) -> Episodes:
        key_reset, key_unroll = jax.random.split(key)
        begin = reset(environment, env_params, key_reset)
        end, steps = unroll(environment, env_params, policy, begin, key_unroll, max_steps, to_env)
        return leave(environment, end.state, first_episode(steps))

    return jax.vmap(play)(jax.random.split(key, num_episodes))


def first_episode(steps: Steps) -> Episodes:
    """Return how the first episode of one environment's steps [T] went."""
    done = steps.terminated | steps.truncated
    finished = jnp.any(done)
    last = jnp.where(finished, jnp.argmax(done), done.shape[0] - 1)
    return Episodes(steps.episode_return[last], steps.episode_length[last], finished)
