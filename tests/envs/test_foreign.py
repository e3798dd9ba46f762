"""Made environments with the three packages' interfaces; the packages themselves where they are installed."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import envs
from jaxrl_align.actors import gym
from jaxrl_align.envs import foreign
from jaxrl_align.envs.actions import MultiDiscrete
from jaxrl_align.learner import train
from jaxrl_align.nets.mlp import make_actor_critic_net
from jaxrl_align.rl.actor_critic import PPOHParams, make_actor_critic


class BraxState(NamedTuple):
    obs: Any
    reward: Any
    done: Any


class Countdown:
    """brax's interface: falls at the third step if the action was below 0, and is never cut by itself."""

    action_size = 1

    def reset(self, key):
        return BraxState(jnp.zeros(1), jnp.zeros(()), jnp.zeros(()))

    def step(self, state, action):
        time = state.obs[0] + 1
        return BraxState(time[None], time, ((time >= 3) & (action[0] < 0)).astype(jnp.float32))


class TimeStep(NamedTuple):
    step_type: Any
    reward: Any
    discount: Any
    observation: Any

    def last(self):
        return self.step_type == 2


class Spec(NamedTuple):
    num_values: Any = None


class Corridor:
    """jumanji's interface: ends at cell 2 (discount 0) or at the fourth step (discount 1)."""

    action_spec = Spec(np.array(2))

    def reset(self, key):
        return (jnp.zeros((), jnp.int32), jnp.zeros((), jnp.int32), key), self.seen(0, 0)

    def seen(self, cell, time):
        over, cut = cell == 2, time == 4
        step_type = jnp.where(over | cut, 2, jnp.where(time == 0, 0, 1))
        obs = {"cell": jnp.asarray(cell), "time": jnp.asarray(time, jnp.float32)[None]}
        return TimeStep(step_type, jnp.where(over, 1.0, 0.0), jnp.where(over, 0.0, 1.0), obs)

    def step(self, state, action):
        cell, time, key = state
        return (cell + action, time + 1, key), self.seen(cell + action, time + 1)


class Timestep(NamedTuple):
    t: Any
    observation: Any
    reward: Any
    kind: Any

    def is_termination(self):
        return self.kind == 2

    def is_truncation(self):
        return self.kind == 1


class Door:
    """navix's interface: action 1 opens the door and ends the episode, the fourth step cuts it."""

    action_set = (0, 1)

    def reset(self, key):
        zero = jnp.zeros((), jnp.int32)
        return Timestep(zero, jnp.zeros((2, 2), jnp.uint8), jnp.zeros(()), zero)

    def step(self, timestep, action):
        t = timestep.t + 1
        kind = jnp.where(action == 1, 2, jnp.where(t == 4, 1, 0))
        return Timestep(t, jnp.full((2, 2), t, jnp.uint8), jnp.where(action == 1, 1.0, 0.0), kind)


def play(env, actions):
    """Step through the actions; return the lists of what came back."""
    environment, params = envs.make_environment(env)
    key = jax.random.key(0)
    obs, state = environment.reset(key, params)
    step = jax.jit(environment.step)
    rows = []
    for action in actions:
        obs, state, reward, terminated, truncated, info = step(key, state, action, params)
        final = np.ravel(info["final_observation"])[0]
        rows.append((float(np.ravel(obs)[0]), float(final), float(reward), bool(terminated), bool(truncated)))
    return rows


def test_brax_falls_terminate_and_the_limit_truncates():
    """Rows: observation after any reset, before it, reward, terminated, truncated."""
    hold, fall = jnp.ones(1), -jnp.ones(1)
    env = foreign.from_brax(Countdown(), max_steps=4)
    assert play(env, [hold, hold, fall, hold]) == [
        (1, 1, 1, False, False),
        (2, 2, 2, False, False),
        (0, 3, 3, True, False),
        (1, 1, 1, False, False),
    ]
    assert play(env, [hold] * 4)[-1] == (0, 4, 4, False, True)
    assert play(env, [hold, hold, hold, fall])[-1] == (0, 4, 4, True, False), "a fall wins over the limit"


def test_jumanji_tells_its_two_ends_apart_by_the_discount():
    env = foreign.from_jumanji(Corridor())
    go, stay = jnp.array(1), jnp.array(0)
    assert play(env, [go, go, go]) == [
        (1, 1, 0, False, False),
        (0, 2, 1, True, False),
        (1, 1, 0, False, False),
    ]
    assert play(env, [stay] * 4)[-1] == (0, 0, 0, False, True)
    assert envs.num_actions(env) == 2
    obs, _ = env[0].reset(jax.random.key(0))
    assert obs.shape == (2,) and obs.dtype == jnp.float32


def test_an_observation_may_stay_a_tree_of_arrays():
    environment, _ = envs.make_environment(foreign.from_jumanji(Corridor(), observe=lambda obs: obs))
    key, go = jax.random.key(0), jnp.array(1)
    _, state = environment.reset(key)
    seen, state, *_ = environment.step(key, state, go)
    assert (seen["cell"], seen["time"]) == (1, 1)
    seen, *_, info = environment.step(key, state, go)
    last = info["final_observation"]
    assert (seen["cell"], seen["time"], last["cell"], last["time"]) == (0, 0, 2, 2)


def test_navix_tells_its_two_ends_apart():
    env = foreign.from_navix(Door(), observe=lambda obs: obs)
    go, stay = jnp.array(1), jnp.array(0)
    assert play(env, [stay, go, stay]) == [
        (1, 1, 0, False, False),
        (0, 2, 1, True, False),
        (1, 1, 0, False, False),
    ]
    assert play(env, [stay] * 4)[-1] == (0, 4, 0, False, True)


def test_spaces_and_what_is_no_space():
    assert foreign._space_of(Spec(np.array([2, 3]))) == MultiDiscrete((2, 3))

    class Bounded(NamedTuple):
        shape: Any = (2,)
        dtype: Any = np.float32
        minimum: Any = -1.0
        maximum: Any = 2.0

    box = foreign._space_of(Bounded())
    np.testing.assert_array_equal(box.high, [2.0, 2.0])
    with pytest.raises(ValueError, match="expected one discrete action"):
        foreign._space_of(Spec())


@pytest.mark.slow
def test_ppo_learns_on_an_adapted_environment():
    """The door's best policy opens it at once: return 1 and length 1."""
    env = foreign.from_navix(Door())
    net = make_actor_critic_net(envs.num_actions(env), hidden=(8,))
    actor = gym.make_actor(env, net, num_envs=8, num_steps=16)
    run = jax.jit(train(make_actor_critic(actor), 30))
    state, metrics = run(jax.random.key(0), PPOHParams(learning_rate=3e-2))
    episodes = envs.evaluate_policy(
        env, gym.greedy(net, state.params), jax.random.key(1), num_episodes=2, max_steps=4
    )
    np.testing.assert_array_equal(episodes.episode_length, [1, 1])
    np.testing.assert_array_equal(episodes.episode_return, [1.0, 1.0])


@pytest.mark.slow
@pytest.mark.parametrize("package", ["brax", "jumanji", "navix"])
def test_the_packages_themselves(package):
    """A rollout of a small environment: episodes end, and what is seen is finite."""
    module = pytest.importorskip(package)
    env = {
        "brax": lambda: foreign.from_brax(__import__("brax.envs").envs.get_environment("fast"), max_steps=9),
        "jumanji": lambda: foreign.from_jumanji(module.make("Snake-v1")),
        "navix": lambda: foreign.from_navix(module.make("Navix-Empty-5x5-v0")),
    }[package]()
    environment, params = envs.make_environment(env)
    space = environment.action_space(params)
    begin = envs.reset(environment, params, jax.random.key(0))
    policy = lambda key, obs: space.sample(key)
    _, steps = jax.jit(lambda b, k: envs.unroll(environment, params, policy, b, k, 200))(
        begin, jax.random.key(1)
    )
    assert (steps.terminated | steps.truncated).any()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((steps.obs, steps.reward)))
