"""Gymnasium's environments through the same actor: what they did is what Gymnasium does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import envs
from jaxrl_align.actors import gym
from jaxrl_align.actors.recurrent import evaluate_recurrent_policy
from jaxrl_align.envs.host import KEPT, HostEnvironment, make_host_environment
from jaxrl_align.nets.memory import with_memory
from jaxrl_align.nets.mlp import make_actor_critic_net
from jaxrl_align.nets.observations import flatten_observations
from jaxrl_align.rl.actor_critic import PPOHParams

gymnasium = pytest.importorskip("gymnasium", minversion="1.1")
spaces = gymnasium.spaces
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
    with pytest.raises(Exception, match="stepped together, while they are open; these were released"):
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


class Counter(gymnasium.Env):
    """Shows `observe(time)`, is cut after two steps, and logs the actions that it got and its closings."""

    def __init__(self, observation_space=None, action_space=None, **more):
        self.observation_space = observation_space or spaces.Box(-9.0, 9.0, (1,))
        self.action_space = action_space or spaces.Discrete(2)
        self.observe = more.get("observe", lambda time: np.full(1, time, np.float32))
        self.log = more.get("log", [])

    def reset(self, *, seed=None, options=None):
        self.time = 0
        return self.observe(0), {}

    def step(self, action):
        self.time += 1
        self.log.append(action)
        return self.observe(self.time), float(self.time), False, self.time == 2, {}

    def close(self):
        self.log.append("closed")


def host(*space, **more):
    """Return the host environment of such counters, after its probe was closed."""
    log = []
    same_step = gymnasium.vector.AutoresetMode.SAME_STEP
    make = lambda n: gymnasium.vector.SyncVectorEnv(
        [lambda: Counter(*space, log=log, **more)] * n, autoreset_mode=same_step
    )
    environment = HostEnvironment(make)
    assert log == ["closed"]
    log.clear()
    return environment, log


NEVER = lambda key, obs: jnp.zeros((), jnp.int32)
COUNTER_NET = make_actor_critic_net(2, hidden=())


@pytest.mark.slow
@pytest.mark.parametrize("whole_episodes", [False, True])
def test_evaluations_close_their_own_environments_and_leave_the_trainings(whole_episodes):
    environment, log = host()
    env = environment, None
    actor = gym.make_actor(env, COUNTER_NET, num_envs=2, num_steps=3, whole_episodes=whole_episodes)
    remembering = with_memory(COUNTER_NET, width=2)
    params = remembering.init(jax.random.key(0), jnp.zeros(1))
    assert log == ["closed"]  # the first observation was looked at
    state, roll = actor.init_env(jax.random.key(0), HPARAMS), jax.jit(actor.rollout)
    limits = {"num_episodes": 2, "max_steps": 3}
    evaluate = jax.jit(lambda key: envs.evaluate_policy(env, NEVER, key, **limits))
    recall = jax.jit(lambda key: evaluate_recurrent_policy(env, remembering, params, key, **limits))
    for time in range(2):
        for key in jax.random.split(jax.random.key(time), KEPT):
            np.testing.assert_array_equal(evaluate(key).episode_return, [3.0, 3.0])
        assert recall(key).finished.all()
        state, trajectory, _ = roll(actor.init_params(key), None, state, jax.random.key(2), HPARAMS)
        went_on = time == 1 and not whole_episodes
        np.testing.assert_array_equal(trajectory.obs[0, :, 0], [1, 0, 1] if went_on else [0, 1, 0])
        assert len(environment._running) == 1
    made = 2 * KEPT + 2 + (2 if whole_episodes else 0)
    assert log.count("closed") == 1 + 2 * made


def test_what_nobody_closes_stays_open_until_others_were_used(monkeypatch):
    monkeypatch.setattr("jaxrl_align.envs.host.KEPT", 3)
    environment, log = host()
    start = lambda: environment.reset(jax.random.key(0))[1]
    go = lambda state: environment.step(None, state, jnp.int32(0))[1]
    first, second = start(), start()
    for _ in range(9):
        first = go(first)
        start()
        assert len(environment._running) <= 3
    assert log.count("closed") == 8
    with pytest.raises(Exception, match="the longest unused of more than 3 sets.*start anew with reset"):
        jax.block_until_ready(go(second))
    again, _ = host()
    assert not set(again._running) & set(environment._running)
    with pytest.raises(Exception, match="belong to another process"):
        jax.block_until_ready(again.step(None, first, jnp.int32(0)))
    np.testing.assert_array_equal(environment.release(go(first), jnp.arange(2.0)), [0.0, 1.0])
    assert int(first.number) not in environment._running


BOUNDS = np.array([0.1, 0.3])  # of float64: in float32 both are larger


@pytest.mark.parametrize(
    "space, action, received",
    [
        (spaces.Discrete(3, start=5), 2, np.int64(7)),
        (spaces.MultiDiscrete([2, 3]), [1, 2], np.array([1, 2])),
        (
            spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [2, -3]]),
            [1, 2, 3, 4],
            np.array([[1, 3], [5, 1]]),
        ),
        (spaces.MultiDiscrete([2, 3], dtype=np.int32), [1, 2], np.array([1, 2], np.int32)),
        (spaces.MultiBinary(3), [1, 0, 1], np.array([1, 0, 1], np.int8)),
        (spaces.MultiBinary((2, 2)), [1, 0, 0, 1], np.array([[1, 0], [0, 1]], np.int8)),
        (spaces.Box(0, 1, (2,), bool), [1, 0], np.array([True, False])),
        (spaces.Box(-2.0, 2.0, (1, 2)), [[0.5, -2.0]], np.array([[0.5, -2.0]], np.float32)),
        (spaces.Box(-np.inf, np.inf, (1,)), [1e9], np.array([1e9], np.float32)),
        (spaces.Box(-BOUNDS, BOUNDS, dtype=np.float64), np.float32(BOUNDS), BOUNDS),
        (spaces.Box(-7, 250, (2,), np.int16), [-7, 250], np.array([-7, 250], np.int16)),
        (spaces.Box(-np.inf, np.inf, (1,), np.int64), [2**31 - 1], np.array([2**31 - 1])),
    ],
)
def test_an_action_reaches_gymnasium_as_its_own(space, action, received):
    environment, log = host(spaces.Box(-9.0, 9.0, (1,)), space)
    mapped, action = environment.action_space(), jnp.asarray(action)
    drawn = jax.eval_shape(mapped.sample, jax.random.key(0))
    assert (drawn.shape, drawn.dtype.kind) == (action.shape, action.dtype.kind)
    assert mapped.shape == action.shape
    environment.step(None, environment.reset(jax.random.key(0))[1], action)[2].block_until_ready()
    assert log[-1].dtype == received.dtype and space.contains(log[-1])
    np.testing.assert_array_equal(log[-1], received)
    if hasattr(mapped, "low"):
        np.testing.assert_array_equal(mapped.low, space.low.astype(np.float32))
        np.testing.assert_array_equal(mapped.high, space.high.astype(np.float32))
    elif hasattr(mapped, "nvec"):
        assert mapped.nvec == tuple(np.ravel(getattr(space, "nvec", [2] * action.size)))


@pytest.mark.parametrize(
    "space, action, got",
    [
        (spaces.Discrete(3, start=5), 3, "between 0 and 2.*got 3"),
        (spaces.Discrete(3), -1, "got -1"),
        (spaces.Discrete(3), 0.5, "got 0.5"),
        (spaces.MultiDiscrete([2, 3]), [2, 2], "got 2"),
        (spaces.MultiBinary(2), [0, 2], "got 2"),
        (spaces.Box(-1.0, 1.0, (1,)), [1.5], "between .* and .*got 1.5"),
        (spaces.Box(-1.0, 1.0, (1,)), [jnp.nan], "got nan"),
    ],
)
def test_an_action_outside_its_space_is_refused(space, action, got):
    environment, log = host(spaces.Box(-9.0, 9.0, (1,)), space)
    with pytest.raises(Exception, match=f"actions must lie {got}|actions must lie between .*{got}"):
        environment.step(None, environment.reset(jax.random.key(0))[1], jnp.asarray(action))[2].item()
    assert log == []


def test_observations_of_several_parts_are_trees_of_arrays():
    """What is discrete counts from 0; the last observation of a cut episode is that before the reset."""
    seen = spaces.Dict(
        {
            "z": spaces.Tuple((spaces.Discrete(4, start=2), spaces.MultiBinary((2, 2)))),
            "a": spaces.Box(0, 255, (2, 1), np.uint8),
            "m": spaces.MultiDiscrete([3, 5], start=[-1, 4]),
        }
    )
    observe = lambda time: {
        "z": (np.int64(2 + time), np.full((2, 2), time % 2, np.int8)),
        "a": np.full((2, 1), 200 + time, np.uint8),
        "m": np.array([time - 1, 4 + time]),
    }
    environment, _ = host(seen, observe=observe)
    policy = NEVER
    begin = jax.vmap(lambda key: envs.reset(environment, None, key))(jax.random.split(jax.random.key(0), 3))
    _, steps = jax.vmap(lambda e: envs.unroll(environment, None, policy, e, jax.random.key(0), 3))(begin)
    for obs, times in ((steps.obs, [0, 1, 0]), (steps.final_obs, [1, 2, 1])):
        times = np.tile(times, (3, 1))
        np.testing.assert_array_equal(obs["z"][0], times)
        np.testing.assert_array_equal(obs["z"][1], np.tile(times[..., None, None] % 2, (2, 2)))
        np.testing.assert_array_equal(obs["a"], np.tile(200 + times[..., None, None], (2, 1)))
        np.testing.assert_array_equal(obs["m"], np.tile(times[..., None], 2))
    kinds = [str(leaf.dtype) for leaf in jax.tree.leaves(steps.obs)]
    assert kinds == ["uint8", "int32", "int32", "int8"]
    net = flatten_observations(COUNTER_NET, environment.observation_space())
    params = net.init(jax.random.key(0), jax.tree.map(lambda x: x[0, 0], steps.obs))
    assert params["policy_head"]["kernel"].shape == (2 + (3 + 5) + (4 + 4 * 2), 2)


def test_an_observation_that_is_one_number_needs_no_batch():
    """An actor looks at the first observation of one environment: Taxi's and FrozenLake's is a number."""
    environment, _ = host(spaces.Discrete(4, start=2), observe=lambda time: np.int64(2 + time))
    gym.make_actor((environment, None), COUNTER_NET, num_envs=2, num_steps=3)
    obs, state = environment.reset(jax.random.key(0))
    step = environment.step(None, state, jnp.int32(0))
    assert obs == 0 and step[0] == step[5]["final_observation"] == 1


@pytest.mark.parametrize("of", ["actions", "observations"])
@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(3),
        spaces.Sequence(spaces.Discrete(2)),
        spaces.Graph(spaces.Box(0.0, 1.0, (1,)), None),
        spaces.OneOf((spaces.Discrete(2), spaces.Discrete(3))),
        spaces.Dict({"a": spaces.Discrete(2)}),
        spaces.Tuple((spaces.Discrete(2),)),
    ],
)
def test_other_spaces_are_refused_by_their_name(space, of):
    make, name = lambda *pair: host(*pair), type(space).__name__
    if of == "actions":
        with pytest.raises(ValueError, match=f"actions must be of .* got {name}; wrap .*TransformAction"):
            make(spaces.Box(-9.0, 9.0, (1,)), space)
    elif name not in ("Dict", "Tuple"):
        for seen in (space, spaces.Dict({"a": space})):
            with pytest.raises(ValueError, match=f"observations must .* got {name}; .*TransformObservation"):
                make(seen)


def test_an_observation_beyond_its_type_is_refused():
    far = lambda time: np.array([2**40 * time])
    environment, _ = host(spaces.Box(-np.inf, np.inf, (1,), np.int64), observe=far)
    state = environment.reset(jax.random.key(0))[1]
    with pytest.raises(Exception, match="an observation beyond int32"):
        environment.step(None, state, jnp.int32(0))[2].block_until_ready()


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
