"""Gymnasium's environments through the same actor: what they did is what Gymnasium does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import envs
from jaxrl_align.actors import gym
from jaxrl_align.envs.host import HostEnvironment, make_host_environment
from jaxrl_align.nets.mlp import make_actor_critic_net
from jaxrl_align.rl.actor_critic import PPOHParams

gymnasium = pytest.importorskip("gymnasium", minversion="1.1")
B, T = 3, 60
NET = make_actor_critic_net(2, hidden=(4,))
HPARAMS = PPOHParams(gamma=0.9)


@pytest.fixture(scope="module")
def rollout():
    env = make_host_environment("CartPole-v1", max_episode_steps=20)
    actor = gym.make_actor(env, NET, num_envs=B, num_steps=T)
    params = actor.init_params(jax.random.key(0))
    state = jax.jit(actor.init_env)(jax.random.key(1), HPARAMS)
    after, trajectory, metrics = jax.jit(actor.rollout)(params, None, state, jax.random.key(2), HPARAMS)
    return env, actor, params, state, after, trajectory, metrics


def test_a_rollout_is_what_gymnasium_does_with_the_same_actions(rollout):
    _, _, _, state, after, trajectory, metrics = rollout
    ended = cut = 0
    for b in range(B):
        plain = gymnasium.make("CartPole-v1", max_episode_steps=20)
        plain.reset()
        obs = np.asarray(trajectory.obs[b])
        plain.unwrapped.state = obs[0].astype(np.float64)
        for t in range(T):
            new, reward, terminated, truncated, _ = plain.step(int(trajectory.action[b, t]))
            assert reward == trajectory.reward[b, t]
            assert (trajectory.discount[b, t] == 0) == terminated
            assert (trajectory.lambda_[b, t] == 0) == (terminated or truncated)
            if terminated or truncated:
                ended, cut = ended + 1, cut + (truncated and not terminated)
                plain.reset()
                new = obs[t + 1] if t + 1 < T else np.asarray(after.envs.obs[b])
                plain.unwrapped.state = new.astype(np.float64)
            else:
                np.testing.assert_allclose(
                    obs[t + 1] if t + 1 < T else after.envs.obs[b], new, rtol=1e-4, atol=1e-5
                )
    assert metrics["episodes"] == ended > cut > 0
    assert len({row.tobytes() for row in np.asarray(state.envs.obs)}) == B


def test_the_value_of_a_cut_episode_is_that_of_its_last_observation(rollout):
    _, actor, params, _, _, trajectory, _ = rollout
    cut = np.asarray((trajectory.lambda_ == 0) & (trajectory.discount > 0))
    values = jax.vmap(jax.vmap(lambda obs: NET.apply(params, obs)[1]))(trajectory.obs)
    following = np.roll(values, -1, axis=1)
    assert np.abs(trajectory.next_value - following)[cut].min() > 1e-4  # not the reset's
    goes_on = np.array(trajectory.lambda_ > 0)
    goes_on[:, -1] = False
    np.testing.assert_allclose(np.asarray(trajectory.next_value)[goes_on], following[goes_on], atol=1e-5)


def test_a_state_is_stepped_once_and_a_repeated_call_moves_nothing(rollout):
    (environment, _), *_ = rollout
    _, state = environment.reset(jax.random.key(0))
    first = environment.step(None, state, jnp.int32(1))
    again = environment.step(None, state, jnp.int32(1))
    np.testing.assert_array_equal(first[0], again[0])
    second = environment.step(None, first[1], jnp.int32(1))
    assert np.abs(second[0] - first[0]).max() > 1e-3
    with pytest.raises(Exception, match="are at step 2, got a state of step 0"):
        jax.block_until_ready(environment.step(None, state, jnp.int32(1)))
    lost = first[1]._replace(number=jnp.int32(99))
    with pytest.raises(Exception, match="not on this host any more"):
        jax.block_until_ready(environment.step(None, lost, jnp.int32(1)))


def test_a_policy_is_evaluated_and_members_have_their_own():
    env = make_host_environment("CartPole-v1")
    policy = lambda key, obs: (obs[2] + obs[3] > 0).astype(jnp.int32)  # towards where the pole falls
    evaluate = lambda key: envs.evaluate_policy(env, policy, key, num_episodes=2, max_steps=100)
    assert (jax.jit(evaluate)(jax.random.key(0)).episode_return > 90).all()
    policy = lambda key, obs: jax.random.bernoulli(key).astype(jnp.int32)

    def two_members(key):
        begin = jax.vmap(lambda k: envs.reset(*env, k))(jax.random.split(key, 2))
        return jax.vmap(lambda e, k: envs.unroll(*env, policy, e, k, 3))(begin, jax.random.split(key, 2))

    after, steps = jax.jit(jax.vmap(two_members))(jax.random.split(jax.random.key(0), 2))
    np.testing.assert_array_equal(after.state.time, np.full((2, 2), 3))
    assert len({obs.tobytes() for obs in np.asarray(steps.obs).reshape(4, 3, 4)}) == 4


def test_boxes_are_taken_and_other_spaces_refused():
    environment, _ = make_host_environment("Pendulum-v1")
    space = environment.action_space()
    np.testing.assert_array_equal([space.low, space.high], [[-2.0], [2.0]])
    assert environment.reset(jax.random.key(0))[0].shape == (3,)
    spaces = gymnasium.spaces

    class Odd:
        single_action_space = spaces.Text(3)
        single_observation_space = spaces.Box(0.0, 1.0, (1,))

    with pytest.raises(ValueError, match="expected a Discrete .* got Text"):
        HostEnvironment(lambda num_envs: Odd())
    Odd.single_action_space = spaces.MultiDiscrete([2, 3])
    Odd.single_observation_space = spaces.Dict({"a": spaces.Discrete(2)})
    with pytest.raises(ValueError, match="expected observations that are one array"):
        HostEnvironment(lambda num_envs: Odd())


def test_an_observation_that_is_not_finite_is_refused():
    class Broken:
        num_envs = 1
        single_action_space = gymnasium.spaces.Discrete(2)
        single_observation_space = gymnasium.spaces.Box(0.0, 1.0, (1,))

        def reset(self, seed):
            return np.full((1, 1), np.nan), {}

        def close(self):
            pass

    environment = HostEnvironment(lambda num_envs: Broken())
    with pytest.raises(Exception, match="returned an observation that is NaN"):
        jax.block_until_ready(environment.reset(jax.random.key(0)))
