"""Policies with memory: judged as they acted, cut at episode ends, and able to recall."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.actors import gym
from jaxrl_align.actors.normalisation import Moments, Normaliser
from jaxrl_align.actors.recurrent import evaluate_recurrent_policy, make_recurrent_actor
from jaxrl_align.learner import train
from jaxrl_align.losses import DiagonalGaussian
from jaxrl_align.nets.memory import RecurrentNet, with_memory
from jaxrl_align.nets.mlp import make_actor_critic_net, make_gaussian_net
from jaxrl_align.rl.actor_critic import PPOHParams, make_actor_critic, segments
from tests.environments import Recall, Target, Ticks
from tests.tiny import disturb

ENV = (Recall(), None)
B, T = 4, 12
NET = with_memory(make_actor_critic_net(2, hidden=(8,)), width=6)
ACTOR = make_recurrent_actor(ENV, NET, num_envs=B, num_steps=T, normalise_obs=True, normalise_reward=True)
judge = jax.jit(jax.vmap(ACTOR.evaluate, (None, None, 0)))
HPARAMS = PPOHParams(gamma=0.9, gae_lambda=0.8)


@pytest.fixture(scope="module")
def rollouts():
    """Two rollouts after each other: the second begins in the middle of episodes."""
    params = disturb(ACTOR.init_params(jax.random.key(0)), jax.random.key(9), 0.5)
    with jax.debug_key_reuse(True):
        roll = jax.jit(ACTOR.rollout)
        state, first, _ = roll(
            params, None, ACTOR.init_env(jax.random.key(1), HPARAMS), jax.random.key(2), HPARAMS
        )
        state, second, metrics = roll(params, None, state, jax.random.key(3), HPARAMS)
    return params, first, second, state, metrics


def test_judging_again_gives_what_was_acted_by(rollouts):
    params, first, second, *_ = rollouts
    for trajectory in (first, second):
        judged = judge(params, None, trajectory)
        np.testing.assert_allclose(judged.log_prob, trajectory.log_prob, rtol=1e-6, atol=1e-7)
        np.testing.assert_allclose(judged.value, trajectory.value, rtol=1e-6, atol=1e-7)
    assert np.std(first.log_prob) > 1e-3
    pieces = segments(second, 3)
    np.testing.assert_allclose(judge(params, None, pieces).log_prob, pieces.log_prob, rtol=1e-6, atol=1e-7)


def test_an_episode_that_goes_on_takes_its_memory_along(rollouts):
    _, first, second, *_ = rollouts
    np.testing.assert_array_equal(first.obs.first, np.tile(np.arange(T) % 5 == 0, (B, 1)))
    assert not second.obs.first[:, 0].any()  # 12 steps are two episodes and two steps
    assert np.abs(second.obs.memory[:, 0]).min() > 0
    np.testing.assert_array_equal(second.obs.memory[second.obs.first], 0.0)


@pytest.mark.slow
def test_a_learner_of_single_steps_gives_each_its_own_memory():
    """Before the first gradient step the policy is the one that acted, so no ratio may differ from 1."""
    learner = make_actor_critic(ACTOR, epochs=1, minibatches=1, segment_length=1)
    state = learner.init(jax.random.key(0), HPARAMS)
    state = state._replace(params=disturb(state.params, jax.random.key(9), 0.5))
    _, metrics = jax.jit(learner.step)(state)
    np.testing.assert_allclose(metrics["policy/approxkl_avg"], 0.0, atol=1e-9)
    np.testing.assert_allclose(metrics["val/ratio_var"], 0.0, atol=1e-9)


def test_nothing_passes_an_episodes_end(rollouts):
    params, first, *_ = rollouts
    sequence = first.obs
    for t, reaches in ((6, slice(6, 10)), (3, slice(3, 5))):
        other = first._replace(obs=sequence._replace(obs=sequence.obs.at[:, t].add(1.0)))
        moved = np.abs(judge(params, None, other).log_prob - judge(params, None, first).log_prob)
        assert (moved[:, reaches] > 1e-6).all()
        assert moved.sum() == pytest.approx(moved[:, reaches].sum())
    other = first._replace(obs=sequence._replace(memory=sequence.memory + 1.0))
    np.testing.assert_array_equal(
        judge(params, None, other).log_prob, judge(params, None, first).log_prob
    )  # the first step is an episode's first


def test_the_value_of_what_follows_is_read_with_the_memory_after_the_step(rollouts):
    _, _, second, *_ = rollouts
    goes_on = np.asarray(second.lambda_)[:, :-1] > 0
    assert 0.5 < goes_on.mean() < 1
    np.testing.assert_allclose(
        second.next_value[:, :-1][goes_on], second.value[:, 1:][goes_on], rtol=1e-5, atol=1e-6
    )


def test_the_normaliser_and_the_record_of_episodes_are_the_plain_actors(rollouts):
    _, _, _, state, metrics = rollouts
    assert state.normaliser.obs.count == state.normaliser.reward.count == 2 * B * T
    assert metrics["episodes"] == 2 * B
    np.testing.assert_allclose(state.normaliser.obs.mean[1], 4 / 24, rtol=1e-5)


DOUBLING = RecurrentNet(
    lambda key, obs: jnp.float32(2.0),
    lambda w, memory, obs: (w * memory + obs, jnp.append(w * memory + obs, 0.0), jnp.sum(w * memory + obs)),
    jnp.array([0.5]),
)
"""Remembers w times the memory plus the observation, from 0.5 on; that is its value and its first logit."""


def test_a_truncation_starts_the_memory_anew_and_its_value_goes_on_with_the_old_one():
    """By hand, for w = 2: 1 is seen with memory 0.5 (2 after it), 2 with 2 (6), then 3 would be (15)."""
    actor = make_recurrent_actor((Ticks(), None), DOUBLING, num_envs=1, num_steps=5)
    w, state, roll = jnp.float32(2.0), actor.init_env(jax.random.key(0), HPARAMS), jax.jit(actor.rollout)
    for second in (False, True):  # which begins in the middle of an episode
        state, trajectory, _ = roll(w, None, state, jax.random.key(1), HPARAMS)
        odd = np.arange(second, 5 + second) % 2 == 1
        either = lambda on, off: np.where(odd, on, off)  # noqa: B023
        one = jax.tree.map(lambda x: x[0], trajectory)
        np.testing.assert_array_equal(one.obs.obs[:, 0], either(2, 1))
        np.testing.assert_array_equal(one.obs.first, ~odd)
        np.testing.assert_array_equal(one.obs.memory[:, 0], either(2.0, 0.5))
        np.testing.assert_array_equal(one.value, either(6.0, 2.0))
        np.testing.assert_array_equal(one.next_value, either(15.0, 6.0))
        np.testing.assert_allclose(one.discount, 0.9)
        np.testing.assert_allclose(one.lambda_, either(0.0, 0.8))
        sign = 1 - 2 * np.asarray(one.action)
        np.testing.assert_allclose(one.log_prob, -np.log1p(np.exp(-sign * either(6.0, 2.0))), atol=1e-6)
        # Judged under w = 3 the memory before the first step alone is that of w = 2.
        later = one._replace(obs=one.obs._replace(memory=one.obs.memory.at[1:].set(99.0)))
        values = jax.jit(lambda w, t: actor.evaluate(w, None, t).value)
        expected = either(3 * 2.5 + 2, 2.5) if not second else either([8, 0, 9.5, 0, 9.5], 2.5)
        np.testing.assert_allclose(values(3.0, later), expected, rtol=1e-6)
        # d(w (0.5 w + 1) + 2) = w + 1, and nothing comes from beyond the cut.
        slope = either(3.0, 0.5) if not second else either([2, 0, 3, 0, 3], 0.5)
        np.testing.assert_allclose(jax.jacfwd(values)(2.0, later), slope, rtol=1e-6)


def test_evaluation_takes_the_likeliest_action_and_reads_the_moments():
    """Around 2.6 the memories are 2 * 0.5 - 1.6 and then 2 * -0.6 - 0.6, and action 1 is the likelier."""
    around = Moments(jnp.float32(1.0), jnp.array([2.6]), jnp.array([1.0]))
    for normaliser, earned in ((None, 2.0), (Normaliser(around, None, None), 0.0)):
        episodes = evaluate_recurrent_policy(
            (Ticks(), None),
            DOUBLING,
            jnp.float32(2.0),
            jax.random.key(0),
            num_episodes=30,
            max_steps=3,
            normaliser=normaliser,
        )
        np.testing.assert_array_equal(episodes.episode_return, np.full(30, earned))
        np.testing.assert_array_equal(episodes.episode_length, np.full(30, 2))


def test_continuous_actions_remember_too():
    net = with_memory(make_gaussian_net((1,), hidden=(4,)), width=3)
    settings = {"num_envs": 2, "num_steps": 3, "distribution": DiagonalGaussian}
    actor = make_recurrent_actor((Target(), None), net, **settings)

    def roll(key):
        params, state = actor.init_params(key), actor.init_env(key, HPARAMS)
        return actor.rollout(params, None, state, key, HPARAMS)[1]

    trajectory = jax.eval_shape(roll, jax.random.key(0))
    assert trajectory.action.shape == (2, 3, 1) and trajectory.log_prob.shape == (2, 3)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: with_memory(make_actor_critic_net(2), width=0), "width must be at least 1; got width=0"),
        (
            lambda: make_recurrent_actor(ENV, with_memory(make_actor_critic_net(3)), num_envs=1, num_steps=1),
            r"policy of shape \(2,\) and a value of shape \(\) for Recall; got \(\(3,\), \(\)\)",
        ),
        (
            lambda: make_recurrent_actor(ENV, NET, num_envs=1, num_steps=0),
            "num_steps must be a whole number of at least 1; got 0",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@jax.enable_x64(True)
def test_double_precision_changes_no_type():
    def two(key):
        params, state = ACTOR.init_params(key), ACTOR.init_env(key, HPARAMS)
        after, trajectory, _ = ACTOR.rollout(params, None, state, key, HPARAMS)
        return state, after, trajectory

    state, after, trajectory = jax.eval_shape(two, jax.random.key(0))
    types = lambda tree: jax.tree.map(lambda x: x.dtype, tree)
    assert types(state) == types(after)
    assert trajectory.log_prob.dtype == trajectory.obs.memory.dtype == after.normaliser.obs.mean.dtype == "f4"


@pytest.mark.slow
def test_the_cue_is_recalled_with_a_memory_and_not_without():
    """One of two cues, gone after the first step: 1 with memory, 0.5 without. 4 seeds each."""
    hparams = PPOHParams(learning_rate=3e-3, gamma=0.99, entropy_coef=0.01)
    keys = jax.random.split(jax.random.key(0), 4)
    size = {"num_envs": 16, "num_steps": 20}
    plain = make_actor_critic_net(2, hidden=(32,))
    net = with_memory(plain, width=16)

    def run(actor, **settings):
        learner = make_actor_critic(actor, minibatches=4, total_steps=150, **settings)
        return jax.jit(jax.vmap(train(learner, 150), (0, None)))(keys, hparams)

    state, metrics = run(make_recurrent_actor(ENV, net, **size))
    assert (metrics["episode_return_last100"][:, -1] > 0.97).all()
    # Gradients through two steps alone still learn, for the memory at a segment's start is kept.
    _, short = run(make_recurrent_actor(ENV, net, **size), segment_length=10)
    assert (short["episode_return_last100"][:, -1] > 0.97).all()
    _, without = run(gym.make_actor(ENV, plain, **size), segment_length=1)
    assert (without["episode_return_last100"][:, -1] < 0.7).all()
    one = jax.tree.map(lambda x: x[0], state.params)
    episodes = evaluate_recurrent_policy(ENV, net, one, jax.random.key(1), num_episodes=64, max_steps=5)
    assert episodes.finished.all() and episodes.episode_return.mean() == 1.0
