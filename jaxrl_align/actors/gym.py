"""Environments with the gymnax interface as actors: a rollout is `num_envs` scans of `num_steps` steps.

This is the only file that imports gymnax. An environment is a gymnax name or a pair of an environment and
its parameters, whose `step` returns (obs, state, reward, terminated, truncated, info), resets by itself and
leaves the observation before the reset in `info["final_observation"]` (gymnax >= 1.0).
"""

import difflib
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import gymnax
import jax
import jax.numpy as jnp
from gymnax.environments import spaces

from jaxrl_align.losses import entropy, token_log_prob
from jaxrl_align.nets.mlp import Net
from jaxrl_align.types import Actor, Evaluation, Metrics, Params, Trajectory

__all__ = [
    "EnvState",
    "Episodes",
    "GymState",
    "Policy",
    "Steps",
    "evaluate_policy",
    "greedy",
    "make_actor",
    "make_environment",
    "num_actions",
    "record_episodes",
    "reset",
    "sampled",
    "start",
    "unroll",
]

WINDOW = 100
"""How many of the last finished episodes `episode_return_last100` averages."""

Environment = str | tuple[Any, Any]
"""A gymnax name, or (environment, parameters)."""

Policy = Callable[[chex.PRNGKey, chex.Array], chex.Array]
"""`(key, obs) -> action` for one observation."""


class EnvState(NamedTuple):
    """One environment between two steps."""

    obs: chex.Array
    state: Any
    episode_return: chex.Array
    """[] sum of the running episode's rewards so far, undiscounted."""
    episode_length: chex.Array
    """[] int32 steps of the running episode so far."""


class Steps(NamedTuple):
    """What one environment did in T steps."""

    obs: chex.Array
    """[T, ...] before the action."""
    action: chex.Array
    reward: chex.Array
    terminated: chex.Array
    """[T] bool: the episode ended by its own rules, and nothing follows."""
    truncated: chex.Array
    """[T] bool: the episode was cut, for example by a time limit, and its value goes on."""
    final_obs: chex.Array
    """[T, ...] after the action and before any reset."""
    episode_return: chex.Array
    """[T] sum of the episode's rewards up to and including this step."""
    episode_length: chex.Array
    """[T] int32 steps of the episode up to and including this one."""


class GymState(NamedTuple):
    """What the actor carries from rollout to rollout."""

    envs: EnvState
    """Leaves [B, ...]."""
    recent_returns: chex.Array
    """[100] ring of the last finished episodes' returns, 0 where still empty."""
    finished: chex.Array
    """[] int32 episodes finished since the start."""


class Episodes(NamedTuple):
    """The first episode of each of N environments."""

    episode_return: chex.Array
    """[N] undiscounted; of the steps seen where the episode did not end."""
    episode_length: chex.Array
    """[N] int32."""
    finished: chex.Array
    """[N] bool: whether it ended within the steps allowed."""


@functools.cache
def _make_registered(name: str) -> tuple[Any, Any]:
    # gymnax jits `step` per instance, so one instance per name spares a retrace.
    return gymnax.make(name)


def make_environment(env: Environment) -> tuple[Any, Any]:
    """Return (environment, parameters), built once per name, after checking its interface without running it.

    Raises:
      ValueError: for an unknown name, or a `step` that does not return the six values of gymnax >= 1.0.
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
    key = jax.random.key(0)
    _, state = jax.eval_shape(environment.reset, key, env_params)
    action = jax.eval_shape(environment.action_space(env_params).sample, key)
    values = jax.eval_shape(environment.step, key, state, action, env_params)
    if len(values) != 6 or "final_observation" not in values[5]:
        raise ValueError(
            f"environment.step must return (obs, state, reward, terminated, truncated, info) with "
            f'info["final_observation"], as gymnax >= 1.0 does; {type(environment).__name__} returns '
            f"{len(values)} values; port it, keeping termination and truncation apart"
        )
    return environment, env_params


def num_actions(env: Environment) -> int:
    """Return the number of discrete actions.

    Raises:
      ValueError: if the action space is not discrete, or for what `make_environment` refuses.
    """
    environment, env_params = make_environment(env)
    space = environment.action_space(env_params)
    if not isinstance(space, spaces.Discrete):
        raise ValueError(
            f"expected a discrete action space, got {type(space).__name__} of {type(environment).__name__}; "
            f"this net chooses among discrete actions: take another environment, or discretise this one"
        )
    return int(space.n)


def reset(environment: Any, env_params: Any, key: chex.PRNGKey) -> EnvState:
    """Start one episode in one environment."""
    obs, state = environment.reset(key, env_params)
    # Environments start from Python numbers; a weak type here would make the second call compile again.
    obs, state = jax.tree.map(lambda x: jnp.asarray(x, jnp.result_type(x)), (obs, state))
    return EnvState(obs, state, jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32))


def unroll(
    environment: Any,
    env_params: Any,
    policy: Policy,
    env_state: EnvState,
    key: chex.PRNGKey,
    num_steps: int,
) -> tuple[EnvState, Steps]:
    """Let a policy act for `num_steps` steps in ONE environment, which resets by itself; the caller vmaps.

    Args:
      environment: with the gymnax >= 1.0 interface, as `make_environment` returns it.
      env_params: its parameters.
      policy: `(key, obs) -> action`.
      env_state: from `reset` or from an earlier unroll.
      key: the steps' randomness.
      num_steps: T.

    Returns:
      The environment's state after the last step, and `Steps` with leaves [T, ...].
    """

    def one_step(
        carry: tuple[EnvState, chex.PRNGKey], _: None
    ) -> tuple[tuple[EnvState, chex.PRNGKey], Steps]:
        env_state, key = carry
        key, key_action, key_step = jax.random.split(key, 3)
        action = policy(key_action, env_state.obs)
        obs, state, reward, terminated, truncated, info = environment.step(
            key_step, env_state.state, action, env_params
        )
        reward = jnp.asarray(reward, jnp.float32)
        terminated, truncated = jnp.asarray(terminated, bool), jnp.asarray(truncated, bool)
        total, length = env_state.episode_return + reward, env_state.episode_length + 1
        steps = Steps(
            env_state.obs, action, reward, terminated, truncated, info["final_observation"], total, length
        )
        running = ~(terminated | truncated)
        return (EnvState(obs, state, total * running, length * running), key), steps

    # The key is carried: jax's check for reused keys takes a vmapped scan over split keys for a reuse.
    (env_state, _), steps = jax.lax.scan(one_step, (env_state, key), None, num_steps)
    return env_state, steps


def sampled(net: Net, params: Params) -> Policy:
    """Return the policy that draws its action from softmax(logits)."""
    return lambda key, obs: jax.random.categorical(key, net.apply(params, obs)[0])


def greedy(net: Net, params: Params) -> Policy:
    """Return the policy that takes the likeliest action, the first of equals."""
    return lambda key, obs: jnp.argmax(net.apply(params, obs)[0])


def evaluate_policy(
    env: Environment, policy: Policy, key: chex.PRNGKey, *, num_episodes: int, max_steps: int
) -> Episodes:
    """Play one episode in each of `num_episodes` fresh environments, apart from any training; jittable.

    Args:
      env: a gymnax name or (environment, params).
      policy: `greedy(net, params)`, `sampled(net, params)` or any `(key, obs) -> action`.
      key: seeds the starts, the policy and the dynamics.
      num_episodes: N.
      max_steps: at most this many steps are played of each.

    Returns:
      `Episodes` with leaves [N].

    Raises:
      ValueError: for a count below 1, or for what `make_environment` refuses.
    """
    _check_at_least_one(num_episodes=num_episodes, max_steps=max_steps)
    environment, env_params = make_environment(env)

    def play(key: chex.PRNGKey) -> Episodes:
        key_reset, key_unroll = jax.random.split(key)
        begin = reset(environment, env_params, key_reset)
        _, steps = unroll(environment, env_params, policy, begin, key_unroll, max_steps)
        done = steps.terminated | steps.truncated
        finished = jnp.any(done)
        last = jnp.where(finished, jnp.argmax(done), max_steps - 1)
        return Episodes(steps.episode_return[last], steps.episode_length[last], finished)

    return jax.vmap(play)(jax.random.split(key, num_episodes))


def _check_at_least_one(**counts: int) -> None:
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1; got {name}={count}")


def _to_trajectory(
    steps: Steps, log_prob: chex.Array, value: chex.Array, next_value: chex.Array, hparams: Any
) -> Trajectory:
    terminated, truncated = steps.terminated.astype(jnp.float32), steps.truncated.astype(jnp.float32)
    return Trajectory(
        obs=steps.obs,
        action=steps.action,
        log_prob=log_prob,
        reward=steps.reward,
        discount=hparams.gamma * (1.0 - terminated),
        lambda_=hparams.gae_lambda * (1.0 - terminated) * (1.0 - truncated),
        value=value,
        next_value=next_value,
        mask=jnp.ones_like(steps.reward),
    )


def start(environment: Any, env_params: Any, key: chex.PRNGKey, num_envs: int) -> GymState:
    """Start `num_envs` environments with an empty record of episodes."""
    envs = jax.vmap(lambda k: reset(environment, env_params, k))(jax.random.split(key, num_envs))
    return GymState(envs, jnp.zeros(WINDOW, jnp.float32), jnp.zeros((), jnp.int32))


def record_episodes(gym_state: GymState, envs: EnvState, steps: Steps) -> tuple[GymState, Metrics]:
    """Count the episodes that ended in `steps` [B, T] and average the last ones; see `make_actor`."""
    # Time first, so that the ring keeps the episodes that ended last.
    done = (steps.terminated | steps.truncated).T.ravel()
    returns = steps.episode_return.T.ravel()
    order = jnp.cumsum(done) - 1
    episodes = jnp.sum(done, dtype=jnp.int32)
    # A slot is written once: of more than WINDOW endings the earlier ones are dropped (index out of range).
    kept = done & (order >= episodes - WINDOW)
    slot = jnp.where(kept, (gym_state.finished + order) % WINDOW, WINDOW)
    recent = gym_state.recent_returns.at[slot].set(returns, mode="drop")
    finished = gym_state.finished + episodes
    held = jnp.minimum(finished, WINDOW)
    metrics = {
        "episodes": episodes,
        "episode_return_sum": jnp.sum(jnp.where(done, returns, 0.0)),
        "episode_length_sum": jnp.sum(jnp.where(done, steps.episode_length.T.ravel(), 0), dtype=jnp.int32),
        "episode_return_last100": jnp.where(held > 0, jnp.sum(recent) / jnp.maximum(held, 1), jnp.nan),
    }
    return GymState(envs, recent, finished), metrics


def make_actor(env: Environment, net: Net, *, num_envs: int, num_steps: int) -> Actor:
    """Build the actor that runs a softmax policy in `num_envs` copies of an environment.

    Truncation is not termination: `next_value` is the critic's estimate of the observation before the reset,
    and only a termination (which wins where both flags are set) sets the discount to 0.

    Args:
      env: a gymnax name such as "CartPole-v1", or (environment, params).
      net: `(params, obs) -> (logits [A], value [])`, with A the environment's number of actions.
      num_envs: B, environments side by side.
      num_steps: T, steps of each per rollout.

    Returns:
      An `Actor`; `hparams` must have `gamma` and `gae_lambda`, `batch` and `frozen` are not read. A rollout's
      metrics are `episodes` (how many ended in it), `episode_return_sum` and `episode_length_sum` over these,
      so that means over any window can be formed, and `episode_return_last100`, the mean return of the last
      100 episodes or of as many as have ended: NaN before the first, for 0 would be a lie.

    Raises:
      ValueError: before any compilation, for a count below 1, an action space that is not discrete, a net
        with another number of actions, or for what `make_environment` refuses.
    """
    _check_at_least_one(num_envs=num_envs, num_steps=num_steps)
    environment, env_params = make_environment(env)
    _check_net(net, num_actions((environment, env_params)), environment, env_params)
    evaluate_all = jax.vmap(lambda params, trajectory: evaluate(params, None, trajectory), (None, 0))
    values = jax.vmap(jax.vmap(lambda params, obs: net.apply(params, obs)[1], (None, 0)), (None, 0))

    def init_params(key: chex.PRNGKey) -> Params:
        obs, _ = jax.eval_shape(environment.reset, key, env_params)
        return net.init(key, jnp.zeros(obs.shape, obs.dtype))

    def init_env(key: chex.PRNGKey, hparams: Any) -> GymState:
        return start(environment, env_params, key, num_envs)

    def rollout(
        params: Params, frozen: Any, env_state: GymState, key: chex.PRNGKey, hparams: Any, batch: Any = None
    ) -> tuple[GymState, Trajectory, Metrics]:
        policy = sampled(net, params)
        envs, steps = jax.vmap(lambda e, k: unroll(environment, env_params, policy, e, k, num_steps))(
            env_state.envs, jax.random.split(key, num_envs)
        )
        # The critic is not needed to act: both its passes run once over all steps, outside the scan.
        judged = evaluate_all(params, steps)
        next_value = values(params, steps.final_obs)
        env_state, metrics = record_episodes(env_state, envs, steps)
        return env_state, _to_trajectory(steps, judged.log_prob, judged.value, next_value, hparams), metrics

    def evaluate(params: Params, frozen: Any, trajectory: Trajectory | Steps) -> Evaluation:
        logits, value = jax.vmap(net.apply, (None, 0))(params, trajectory.obs)
        return Evaluation(token_log_prob(logits, trajectory.action), entropy(logits), value, logits)

    return Actor(init_params, init_env, rollout, evaluate)


def _check_net(net: Net, actions: int, environment: Any, env_params: Any) -> None:
    key = jax.random.key(0)
    obs, _ = jax.eval_shape(environment.reset, key, env_params)
    logits, value = jax.eval_shape(lambda k, x: net.apply(net.init(k, x), x), key, obs)
    if logits.shape != (actions,) or value.shape != ():
        raise ValueError(
            f"the net must return logits of shape ({actions},) and a value of shape () for "
            f"{type(environment).__name__}; got {logits.shape} and {value.shape}"
        )
