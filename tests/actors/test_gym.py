import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import envs
from jaxrl_align.actors import gym
from jaxrl_align.envs.rollout import WINDOW
from jaxrl_align.envs.tabular import make_mdp, make_tabular_environment
from jaxrl_align.losses import DiagonalGaussian, TanhGaussian
from jaxrl_align.nets.mlp import Net, make_actor_critic_net, make_gaussian_net
from jaxrl_align.rl.actor_critic import PPOHParams
from tests.environments import Target
from tests.tiny import bits

B, T = 3, 60
NET = make_actor_critic_net(2, hidden=(4,))
CARTPOLE = gym.make_actor("CartPole-v1", NET, num_envs=B, num_steps=T)
HPARAMS = PPOHParams(gamma=0.9, gae_lambda=0.8)
LOOP = make_mdp([[[1.0]]], [[1.0]], 0.9)
LINE = make_mdp(
    [[[0, 1, 0, 0]], [[0, 0, 1, 0]], [[0, 0, 0, 1]], [[0, 0, 0, 1]]],
    [[0.0], [2.0], [5.0], [0.0]],
    0.9,
    terminal=[False, False, False, True],
)
"""Three steps that pay 0, 2 and 5."""


def position_net(states):
    """A net whose value is the state's number plus a half, over one action."""
    apply = lambda params, obs: (jnp.zeros(1), obs.astype(jnp.float32) + 0.5)
    return Net(lambda key, obs: jnp.zeros(states), apply)


def roll(actor, key=0):
    """Return the environments after one rollout, its trajectory and its metrics."""
    key_params, key_env, key_rollout = jax.random.split(jax.random.key(key), 3)
    params = actor.init_params(key_params)
    env_state = actor.init_env(key_env, HPARAMS)
    return params, *jax.jit(actor.rollout)(params, None, env_state, key_rollout, HPARAMS)


@pytest.fixture(scope="module")
def cartpole():
    with jax.debug_key_reuse(True):
        return roll(CARTPOLE)


def test_episodes_follow_each_other_in_every_environment():
    environment, params = envs.make_environment("CartPole-v1")
    begin = envs.reset(environment, params, jax.random.key(1))
    policy = lambda key, obs: jax.random.bernoulli(key).astype(jnp.int32)
    end, steps = envs.unroll(environment, params, policy, begin, jax.random.key(2), T)
    done = np.asarray(steps.terminated | steps.truncated)
    assert 1 < done.sum() < T / 5
    np.testing.assert_array_equal(steps.obs[1:][~done[:-1]], steps.final_obs[:-1][~done[:-1]])
    np.testing.assert_array_equal(np.abs(steps.obs[1:][done[:-1]]) <= 0.05, True)
    assert (np.abs(steps.final_obs[done][:, 2]) > 0.2).all()  # 12 degrees, where the pole has fallen
    length = 0
    for t in range(T):
        length += 1
        assert steps.episode_length[t] == steps.episode_return[t] == length
        length = 0 if done[t] else length
    assert end.episode_length == length


def test_a_trajectory_judges_what_was_done_with_the_parameters_that_acted(cartpole):
    params, _, trajectory, _ = cartpole
    assert trajectory.obs.shape == (B, T, 4) and trajectory.reward.shape == (B, T)
    both = jnp.vectorize(lambda obs: NET.apply(params, obs), signature="(o)->(a),()")
    logits, value = both(trajectory.obs)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(logits), trajectory.action[..., None], -1)[..., 0]
    np.testing.assert_allclose(trajectory.log_prob, chosen, atol=1e-6)
    np.testing.assert_allclose(trajectory.value, value, atol=1e-6)
    going_on = np.asarray(trajectory.lambda_)[:, :-1] > 0
    np.testing.assert_allclose(
        trajectory.next_value[:, :-1][going_on], trajectory.value[:, 1:][going_on], atol=1e-6
    )
    np.testing.assert_array_equal(trajectory.mask, 1.0)
    again = jax.vmap(CARTPOLE.evaluate, (None, None, 0))(params, None, trajectory)
    np.testing.assert_allclose(again.log_prob, trajectory.log_prob, atol=1e-6)
    entropy = -jnp.sum(jax.nn.softmax(logits) * jax.nn.log_softmax(logits), -1)
    np.testing.assert_allclose(again.entropy, entropy, atol=1e-6)


def test_environments_of_a_rollout_differ(cartpole):
    obs = np.asarray(cartpole[2].obs)
    assert len({row.tobytes() for row in obs}) == B


@pytest.mark.parametrize("max_steps, ends", [(10, [0, 0, 1]), (2, [0, 2, 0]), (3, [0, 0, 1])])
def test_truncation_keeps_the_discount_and_a_termination_wins_over_it(max_steps, ends):
    """0 the episode goes on, 1 it terminates (with both flags set too), 2 it is cut."""
    actor = gym.make_actor(
        make_tabular_environment(LINE, max_steps), position_net(4), num_envs=1, num_steps=3
    )
    _, _, trajectory, _ = roll(actor)
    ends = np.array(ends)
    np.testing.assert_allclose(trajectory.discount[0], 0.9 * (ends != 1))
    np.testing.assert_allclose(trajectory.lambda_[0], 0.8 * (ends == 0))
    # Of the state that was reached, not of the one after the reset.
    reached = [1, 2, 3] if max_steps > 2 else [1, 2, 1]
    np.testing.assert_allclose(trajectory.next_value[0], np.array(reached) + 0.5)


def test_the_record_of_episodes_against_a_loop():
    rng = np.random.default_rng(0)
    state = envs.GymState(None, jnp.zeros(WINDOW), jnp.zeros((), jnp.int32))
    record = jax.jit(lambda state, steps: envs.record_episodes(state, None, steps))
    ended = []
    for share in (0.0, 0.01, 0.5, 0.9, 0.1):
        done, returns = rng.random((4, 70)) < share, rng.normal(size=(4, 70)).astype(np.float32)
        lengths = rng.integers(1, 9, (4, 70))
        zeros = np.zeros_like(returns)
        cut = done & (rng.random((4, 70)) < 0.5)
        steps = envs.Steps(zeros, zeros, zeros, done & ~cut, cut, zeros, returns, lengths)
        state, metrics = record(state, steps)
        now = [(returns[b, t], lengths[b, t]) for t in range(70) for b in range(4) if done[b, t]]
        ended += [r for r, _ in now]
        count = len(ended)
        assert metrics["episodes"] == len(now)
        assert state.finished == (count if count < 100 else 100 + count % 100)  # never beyond an int32
        np.testing.assert_allclose(metrics["episode_return_sum"], sum(r for r, _ in now), atol=1e-4)
        assert metrics["episode_length_sum"] == sum(n for _, n in now)
        last = np.mean(ended[-100:]) if ended else np.nan
        np.testing.assert_allclose(metrics["episode_return_last100"], last, atol=1e-5)


@pytest.mark.slow
def test_evaluation_plays_one_whole_episode_in_each_environment():
    play = lambda max_steps: envs.evaluate_policy(
        make_tabular_environment(LINE),
        lambda key, obs: 0,
        jax.random.key(0),
        num_episodes=2,
        max_steps=max_steps,
    )
    np.testing.assert_array_equal(play(8), [[7.0, 7.0], [3, 3], [True, True]])
    np.testing.assert_array_equal(play(2), [[2.0, 2.0], [2, 2], [False, False]])
    two = make_mdp([[[0, 1], [0, 1]]] * 2, [[1.0, 3.0]] * 2, 0.9, terminal=[False, True])
    net = Net(lambda key, obs: None, lambda params, obs: (jnp.array([2.0, 2.1]), jnp.float32(0)))
    score = lambda policy: (
        envs.evaluate_policy(
            make_tabular_environment(two), policy, jax.random.key(0), num_episodes=400, max_steps=1
        ).episode_return
    )
    assert (score(gym.greedy(net, None)) == 3.0).all()
    # sigmoid(0.1) = 0.525 of the draws, +- 4 standard errors
    assert abs((score(gym.sampled(net, None)) == 3.0).mean() - 0.525) < 0.1


@pytest.mark.slow
def test_members_are_the_single_runs():
    keys = jax.random.split(jax.random.key(3), 2)

    def run(key):
        key_params, key_env, key = jax.random.split(key, 3)
        params = CARTPOLE.init_params(key_params)
        env_state = CARTPOLE.init_env(key_env, HPARAMS)
        return CARTPOLE.rollout(params, None, env_state, key, HPARAMS)[1]

    members = jax.jit(jax.vmap(run))(keys)
    np.testing.assert_allclose(members.obs[1], jax.jit(run)(keys[1]).obs, atol=1e-5)
    assert bits(members.obs[0]) != bits(members.obs[1])


EMBEDDED = [name for name in gymnax.registered_envs if name != "MNISTBandit-bsuite"]  # it needs a download


@pytest.mark.parametrize("name", EMBEDDED)
@jax.numpy_rank_promotion("allow")  # Swimmer relies on it
def test_every_environment_of_gymnax_is_taken_and_keeps_its_types(name):
    """A start whose types differ from the step's would compile the second rollout anew."""
    environment, params = envs.make_environment(name)
    assert envs.make_environment(name)[0] is environment  # another instance would be traced again
    policy = lambda key, obs: environment.action_space(params).sample(key)

    def unroll(key):
        begin = envs.reset(environment, params, key)
        return begin, envs.unroll(environment, params, policy, begin, key, 2)[0]

    begin, end = jax.eval_shape(unroll, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), begin) == jax.tree.map(
        lambda x: (x.shape, x.dtype), end
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", EMBEDDED)
@jax.numpy_rank_promotion("allow")
def test_every_environment_of_gymnax_runs(name):
    environment, params = envs.make_environment(name)
    policy = lambda key, obs: environment.action_space(params).sample(key)
    begin = envs.reset(environment, params, jax.random.key(0))
    _, steps = jax.jit(lambda b, k: envs.unroll(environment, params, policy, b, k, 50))(
        begin, jax.random.key(1)
    )
    assert np.isfinite(steps.reward).all() and steps.reward.shape == (50,)


class FiveValues:
    """The interface of gymnax before 1.0."""

    def reset(self, key, params):
        return jnp.zeros(1), jnp.zeros(())

    def step(self, key, state, action, params):
        return jnp.zeros(1), state, 0.0, False, {}

    def action_space(self, params):
        return envs.spaces.Discrete(2)


class Broken(Target):
    """A division by zero in the reset."""

    def reset(self, key, params):
        return jnp.array([1.0, jnp.nan]), jnp.zeros(())


class Stuck:
    """Ends after some steps and, without a reset of its own, again at every step from there."""

    def __init__(self, steps, resets=False):
        self.steps, self.resets = steps, resets

    def reset(self, key, params):
        return jnp.zeros(1), jnp.int32(0)

    def step(self, key, state, action, params):
        state = state + 1
        ended = state >= self.steps
        final = jnp.stack([state / 4.0])
        obs = jnp.where(ended & self.resets, 0.0, final)
        after = jnp.where(ended & self.resets, 0, state)
        return obs, after, jnp.float32(1.0), ended, jnp.bool_(False), {"final_observation": final}

    def action_space(self, params):
        return envs.spaces.Discrete(2)


class Infoless(Stuck):
    """Says nothing of the last observation."""

    def step(self, *args):
        return *super().step(*args)[:5], {"other": jnp.zeros(1)}


def test_of_environments_that_reset_themselves_or_end_at_every_step_none_is_refused():
    for env in (Stuck(4, resets=True), Stuck(1), Stuck(1000)):
        gym.make_actor((env, None), NET, num_envs=2, num_steps=2)


@jax.jit
def _count_steps(steps):
    """Build an actor over an environment that holds a traced number."""
    actor = gym.make_actor((Stuck(steps), None), NET, num_envs=1, num_steps=2)
    return actor.init_env(jax.random.key(0), HPARAMS).envs.obs


def test_an_environment_that_holds_a_traced_number_is_not_tried_out():
    assert _count_steps(4).shape == (1, 1)


@pytest.mark.parametrize(
    "env, net, sizes, message",
    [
        (
            (Stuck(4), None),
            NET,
            {},
            "must reset itself .*; after its first end Stuck.step ended 8",
        ),
        ((Infoless(4), None), NET, {}, r"Infoless returns an info of \['other'\]; port it"),
        ("cartpole-v1", NET, {}, "did you mean CartPole-v1"),
        ("Chess", NET, {}, "unknown environment 'Chess'"),
        ("Pendulum-v1", NET, {}, "Categorical does not fit the action space Box; .*DiagonalGaussian"),
        ((FiveValues(), None), NET, {}, "FiveValues returns 5 values"),
        (
            (Broken(), None),
            make_gaussian_net((1,)),
            {"distribution": DiagonalGaussian},
            "observations must be finite; the first one of Broken has 1 of 2 entries that are NaN",
        ),
        (FiveValues(), NET, {}, r"a pair \(environment, params\)"),
        (
            "CartPole-v1",
            make_actor_critic_net(3),
            {},
            r"policy of shape \(2,\) and a value of shape \(\).*got \(\(3,\), \(\)\)",
        ),
        ("CartPole-v1", NET, {"num_envs": 0}, "num_envs must be a whole number of at least 1; got 0"),
        ("CartPole-v1", NET, {"num_steps": 0}, "num_steps must be a whole number of at least 1; got 0"),
    ],
)
def test_what_cannot_work_is_refused_with_the_remedy(env, net, sizes, message):
    with pytest.raises(ValueError, match=message):
        gym.make_actor(env, net, **{"num_envs": 2, "num_steps": 2} | sizes)


def test_the_loop_environment_has_no_end_but_its_limit():
    actor = gym.make_actor(make_tabular_environment(LOOP, 2), position_net(1), num_envs=1, num_steps=4)
    _, _, trajectory, metrics = roll(actor)
    np.testing.assert_allclose(trajectory.lambda_[0], [0.8, 0, 0.8, 0], rtol=1e-6)
    np.testing.assert_allclose(trajectory.discount[0], 0.9)
    assert metrics["episodes"] == 2 and metrics["episode_return_last100"] == 2.0


@pytest.mark.parametrize("mean", [10.0])
def test_a_saturated_policy_is_judged_by_its_draws(mean):
    """The environment gets tanh(x) over its Box; the score of the stored x is 0 on average, not -12.4."""
    net = Net(
        lambda key, obs: jnp.full(1, mean), lambda mean, obs: ((mean, jnp.full(1, -1.0)), jnp.zeros(()))
    )
    size = {"num_envs": 64, "num_steps": 32, "distribution": TanhGaussian}
    actor = gym.make_actor((Target(), None), net, **size)
    params, env_state = actor.init_params(jax.random.key(0)), actor.init_env(jax.random.key(1), HPARAMS)
    _, trajectory, _ = actor.rollout(params, None, env_state, jax.random.key(2), HPARAMS)
    played = -1.0 + 1.5 * (jnp.tanh(trajectory.action) + 1.0)  # the Box is [-1, 2]
    np.testing.assert_allclose(trajectory.reward, -((played[..., 0] - 0.6) ** 2), atol=1e-5)
    evaluate = jax.vmap(actor.evaluate, (None, None, 0))
    score = jax.grad(lambda p: jnp.mean(evaluate(p, None, trajectory).log_prob))(params)
    assert abs(float(score[0])) < 4 * np.e / np.sqrt(64 * 32)


def test_of_whole_episodes_one_is_counted_in_each_environment_though_it_was_cut():
    actor = gym.make_actor(
        make_tabular_environment(LOOP, 2), position_net(1), num_envs=2, num_steps=5, whole_episodes=True
    )
    _, _, trajectory, metrics = roll(actor)
    np.testing.assert_array_equal(trajectory.mask, np.tile([1, 1, 0, 0, 0], (2, 1)))
    assert (metrics["episodes"], metrics["episode_return_sum"], metrics["episode_length_sum"]) == (2, 4.0, 4)


def test_the_last_step_of_a_rollout_has_no_action_after_it():
    """Its next value is the policy's expectation over Q(2, .) = (2.5, 12.5), not the first step's value."""
    logits = jnp.log(jnp.array([0.75, 0.25]))
    apply = lambda params, obs: (logits, obs + 0.5 + jnp.array([0.0, 10.0]))
    two = make_mdp(
        np.repeat(LINE.transition, 2, 1), np.repeat(LINE.reward, 2, 1), 0.9, terminal=LINE.terminal
    )
    settings = {"num_envs": 4, "num_steps": 2, "critic": "sarsa"}
    actor = gym.make_actor(make_tabular_environment(two), Net(lambda key, obs: 0.0, apply), **settings)
    _, _, trajectory, _ = roll(actor)
    np.testing.assert_allclose(trajectory.value, np.array([0.5, 1.5]) + 10.0 * np.asarray(trajectory.action))
    np.testing.assert_allclose(trajectory.next_value[:, 0], trajectory.value[:, 1])
    np.testing.assert_allclose(trajectory.next_value[:, 1], 5.0, rtol=1e-6)
