"""Environments as actors for learners of action values: epsilon-greedy experience, endings kept apart."""

from collections.abc import Callable
from typing import Any

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.envs.registry import Environment, num_actions, observation_like, open_environment
from jaxrl_align.envs.rollout import GymState, Policy, record_episodes, start, unroll
from jaxrl_align.nets.adapters import overlay
from jaxrl_align.nets.q_networks import QNet
from jaxrl_align.types import Actor, Metrics, Numeric, Params, Transition


def epsilon_greedy(net: QNet, params: Params, epsilon: Numeric = 0.0) -> Policy:
    """Return the policy that acts at random with probability `epsilon`, and else by the largest value.

        P(argmax_a Q(s, a)) = 1 - epsilon + epsilon / A

    Args:
      net: the action values; a noisy net draws its noise anew at each step, unless epsilon is the plain 0.
      params: its parameters.
      epsilon: in [0, 1]; 0 is the greedy policy, for evaluation apart from training.
    """
    deterministic = isinstance(epsilon, int | float) and epsilon == 0

    def policy(key: chex.PRNGKey, obs: Any) -> jax.Array:
        if deterministic:
            return jnp.argmax(net.q_values(net.apply(params, obs, None))).astype(jnp.int32)
        # One draw of bits makes the noise's key and the coin: on a CPU every draw is a loop of its own.
        words = jax.random.key_data(key).shape[-1]
        bits = jax.random.bits(key, (words + 1,), jnp.uint32)
        q = net.q_values(
            net.apply(params, obs, jax.random.wrap_key_data(bits[:-1], impl=jax.random.key_impl(key)))
        )
        coin = (bits[-1] >> 8).astype(jnp.float32) * 2.0**-24
        # Given coin < epsilon, coin / epsilon is uniform, so it also picks the random action.
        anything = jnp.minimum(coin / epsilon * q.shape[0], q.shape[0] - 1)
        return jnp.where(coin < epsilon, anything.astype(jnp.int32), jnp.argmax(q).astype(jnp.int32))

    return policy


def make_value_actor(
    env: Environment,
    net: QNet,
    *,
    num_envs: int,
    num_steps: int,
    preprocess: Callable[[Any], Any] = lambda obs: obs,
) -> Actor:
    """Build the actor that follows epsilon-greedy action values in `num_envs` copies of an environment.

    Args:
      env: a gymnax name such as "CartPole-v1", or (environment, params).
      net: `(params, phi(obs), key) -> [A] or [A, K]`.
      num_envs: B, environments side by side.
      num_steps: T, steps of each per rollout.
      preprocess: the lecture's phi, of one observation, applied before the net and before storing; for
        example a cast to bool, which keeps MinAtar's binary images in a quarter of the bytes.

    Returns:
      An `Actor` of action values; `hparams` must have `epsilon`, and `frozen` is the base that the parameters
      are laid over, or None. Its metrics are those of `gym.make_actor`, episodes counted when they end.

    Raises:
      ValueError: for a count below 1, actions that are not discrete, a net with another number of actions,
        a first observation of your own environment that is not finite, or for what `make_environment`
        refuses.
    """
    environment, env_params = open_environment(env, num_envs=num_envs, num_steps=num_steps)
    seen = net._replace(
        init=lambda key, obs: net.init(key, preprocess(obs)),
        apply=lambda params, obs, key=None: net.apply(params, preprocess(obs), key),
    )
    _check(seen, environment, env_params)
    over_rollout = jax.vmap(jax.vmap(preprocess))

    def init_params(key: chex.PRNGKey) -> Params:
        return seen.init(key, observation_like(environment, env_params))

    def init_env(key: chex.PRNGKey, hparams: Any) -> GymState:
        return start(environment, env_params, key, num_envs)

    def rollout(
        params: Params, frozen: Any, env_state: GymState, key: chex.PRNGKey, hparams: Any, batch: Any = None
    ) -> tuple[GymState, Transition, Metrics]:
        policy = epsilon_greedy(seen, overlay(frozen, params), hparams.epsilon)
        envs, steps = jax.vmap(lambda e, k: unroll(environment, env_params, policy, e, k, num_steps))(
            env_state.envs, jax.random.split(key, num_envs)
        )
        env_state, metrics = record_episodes(env_state, envs, steps)
        transition = Transition(
            over_rollout(steps.obs),
            steps.action,
            steps.reward,
            steps.terminated,
            steps.truncated,
            over_rollout(steps.final_obs),
        )
        return env_state, transition, metrics

    def action_values(params: Params, frozen: Any, obs: Any, key: chex.PRNGKey | None = None) -> jax.Array:
        return net.apply(overlay(frozen, params), obs, key)

    return Actor(init_params, init_env, rollout, action_values=action_values, expected_values=net.q_values)


def _check(net: QNet, environment: Any, env_params: Any) -> None:
    actions, obs = num_actions((environment, env_params)), observation_like(environment, env_params)
    q = jax.eval_shape(lambda k, x: net.q_values(net.apply(net.init(k, x), x)), jax.random.key(0), obs)
    if q.shape != (actions,):
        raise ValueError(
            f"the net must value the {actions} actions of {type(environment).__name__}; got values of shape "
            f"{q.shape}; build it with num_actions={actions}"
        )
