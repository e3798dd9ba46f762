"""Observations of several parts: what is done on them is what is done on one array of the same numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import actors, envs, rl
from jaxrl_align.nets import flatten_observations, make_actor_critic_net, make_q_net, with_memory
from jaxrl_align.rl.replay import make_replay

WHOLE, PARAMS = envs.make_environment("CartPole-v1")
LIMITED = PARAMS.replace(max_steps_in_episode=5)  # so that episodes are cut
NET, Q_NET = make_actor_critic_net(2, hidden=(4,)), make_q_net(2, (4,))
SIZES = {"num_envs": 2, "num_steps": 8}
SCALED = SIZES | {"normalise_obs": True, "normalise_reward": True}


class Split:
    """CartPole whose four numbers come in a dict of an array and a pair."""

    def split(self, obs):
        return {"a": obs[:1], "b": (obs[1:3].reshape(2, 1), obs[3])}

    def reset(self, key, params):
        obs, state = WHOLE.reset(key, params)
        return self.split(obs), state

    def step(self, key, state, action, params):
        obs, *rest, info = WHOLE.step(key, state, action, params)
        return self.split(obs), *rest, {"final_observation": self.split(info["final_observation"])}

    def action_space(self, params):
        return WHOLE.action_space(params)


ENVS = ((WHOLE, LIMITED), lambda net: net), ((Split(), LIMITED), flatten_observations)
join = lambda obs: jnp.concatenate([obs["a"], obs["b"][0][..., 0], obs["b"][1][..., None]], -1)
close = functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6)
POLICIES = {
    "alone": lambda env, read: actors.make_actor(env, read(NET), **SCALED),
    "with memory": lambda env, read: actors.make_recurrent_actor(
        env, read(with_memory(NET, width=3)), **SCALED
    ),
}


def trace(learner, hparams):
    """Return the shapes after one step, which is traced only."""
    return jax.eval_shape(lambda key: learner.step(learner.init(key, hparams))[0], jax.random.key(0))


@pytest.mark.slow
@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_acts_on_parts_as_on_one_array(name):
    hparams, ends = rl.PPOHParams(), []
    for env, read in ENVS:
        actor = POLICIES[name](env, read)
        params, roll = actor.init_params(jax.random.key(0)), jax.jit(actor.rollout)
        state = actor.init_env(jax.random.key(1), hparams)
        for key in jax.random.split(jax.random.key(2), 2):
            state, trajectory, _ = roll(params, None, state, key, hparams)
        ends.append((state.normaliser.obs, trajectory))
    (moments, whole), (theirs, parts) = ends
    assert (whole.lambda_ == 0).sum() >= 4
    seen = [t.obs.obs if name == "with memory" else t.obs for t in (whole, parts)]
    close(seen[0], join(seen[1]))
    close([moments.mean, moments.variance], [join(theirs.mean), join(theirs.variance)])
    jax.tree.map(close, whole._replace(obs=0), parts._replace(obs=0))
    trace(rl.make_actor_critic(actor, minibatches=2), hparams)


@pytest.mark.slow
def test_action_values_are_learnt_from_parts_as_from_one_array():
    replay, samples = make_replay(32, 6, lanes=2, n_step=2), []
    for env, read in ENVS:
        actor = actors.make_value_actor(env, read(Q_NET), **SIZES)
        params, begun = actor.init_params(jax.random.key(0)), actor.init_env(jax.random.key(1), None)
        _, played, _ = jax.jit(actor.rollout)(params, None, begun, jax.random.key(2), rl.Exploration(0.5))
        memory = replay.add(replay.init(jax.tree.map(lambda x: x[0, 0], played)), played)
        samples.append(replay.sample(memory, jax.random.key(3), 0.9, 1.0))
    whole, parts = samples
    close(whole.obs, join(parts.obs))
    close(whole.next_obs, join(parts.next_obs))
    close(whole.reward, parts.reward)
    after = trace(rl.make_dqn(actor, capacity=64, batch_size=8, warmup_steps=32), rl.DQNHParams())
    assert after.env_state.replay.data.obs["b"][0].shape == (64, 2, 1)


def test_a_policy_of_parts_is_evaluated():
    net = flatten_observations(NET)
    params = net.init(jax.random.key(0), Split().split(jnp.zeros(4)))
    play = lambda env, net: envs.evaluate_policy(
        (env, PARAMS), actors.greedy(net, params), jax.random.key(1), num_episodes=3, max_steps=30
    )
    np.testing.assert_array_equal(play(Split(), net), play(WHOLE, NET))


def test_a_space_makes_what_is_discrete_one_hot_in_its_own_order():
    spaces = envs.spaces
    inner = spaces.Tuple((spaces.Discrete(3), envs.MultiDiscrete((2, 4))))
    space = spaces.Dict({"z": inner, "a": spaces.Box(0.0, 1.0, (1, 2))})
    obs = {"a": jnp.array([[0.5, 0.25]]), "z": (jnp.int32(2), jnp.array([1, 3]))}
    first = lambda net: net.init(jax.random.key(0), obs)
    seen = flatten_observations(NET._replace(init=lambda key, obs: obs), space)
    np.testing.assert_array_equal(first(seen), [0, 0, 1, 0, 1, 0, 0, 0, 1, 0.5, 0.25])
    plain = first(flatten_observations(NET._replace(init=lambda key, obs: obs)))
    np.testing.assert_array_equal(plain, [0.5, 0.25, 2, 1, 3])
    assert plain.dtype == jnp.float32


def test_a_noisy_net_keeps_its_key_behind_the_reader():
    net, obs, key = make_q_net(2, (), noisy=True), {"a": jnp.ones(2), "b": jnp.ones(())}, jax.random.key(1)
    read = flatten_observations(net)
    params = read.init(jax.random.key(0), obs)
    np.testing.assert_array_equal(read.apply(params, obs, key), net.apply(params, jnp.ones(3), key))
    assert np.abs(read.apply(params, obs, key) - read.apply(params, obs)).min() > 1e-3
    np.testing.assert_array_equal(read.apply(params, obs), read.apply(params, obs, key=None))
