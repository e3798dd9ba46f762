"""Running moments against NumPy; what a rollout reads of them and what it leaves behind."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import envs
from jaxrl_align.actors import gym
from jaxrl_align.actors.normalisation import (
    Moments,
    Normaliser,
    merge_moments,
    normalise_steps,
    normalised,
    standardise,
    start_normaliser,
)
from jaxrl_align.nets.mlp import make_actor_critic_net
from jaxrl_align.rl.actor_critic import PPOHParams
from jaxrl_align.runtime import checkpoint
from tests.tiny import bits

B, T = 3, 40
NET = make_actor_critic_net(2, hidden=(4,))
ACTOR = gym.make_actor("CartPole-v1", NET, num_envs=B, num_steps=T, normalise_obs=True, normalise_reward=True)
HPARAMS = PPOHParams(gamma=0.9)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_merged_moments_are_those_of_everything(offset):
    rng = np.random.default_rng(0)
    x = (offset + rng.normal(size=(900, 2)) * [1.0, 5.0]).astype(np.float32)
    moments = start_normaliser(jnp.zeros((1, 2)), of_obs=True, of_reward=False).obs
    for part in np.split(x, [1, 3, 400]):
        moments = jax.jit(merge_moments)(moments, part)
    assert moments.count == 900 and moments.mean.dtype == jnp.float32
    np.testing.assert_allclose(moments.mean, x.astype(np.float64).mean(0), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(moments.variance, x.astype(np.float64).var(0), rtol=2e-3)


def test_a_long_run_does_not_lose_its_variance():
    """1e9 numbers of variance 4 around 100: their sum of squares, 1e13, is beyond float32's 24 bits."""
    batch = 100.0 + 2.0 * jnp.tile(jnp.array([-1.0, 1.0]), 500)
    moments = merge_moments(Moments(jnp.float32(1e9), jnp.float32(100.0), jnp.float32(4.0)), batch)
    np.testing.assert_allclose([moments.mean, moments.variance], [100.0, 4.0], rtol=1e-6)


def test_standardised_before_anything_was_seen_is_clipped_alone():
    nothing = start_normaliser(jnp.zeros((1, 2)), of_obs=True, of_reward=False)
    assert nothing.reward is None and nothing.running_return is None
    np.testing.assert_allclose(standardise(nothing.obs, jnp.array([3, -40])), [3.0, -10.0])
    constant = merge_moments(nothing.obs, jnp.full((5, 2), 7.0))
    np.testing.assert_allclose(standardise(constant, jnp.array([7.0, 7.0])), 0.0)
    assert start_normaliser(jnp.zeros((1, 2)), of_obs=False, of_reward=False) is None


def test_rewards_are_divided_by_the_deviation_of_the_discounted_return():
    rng = np.random.default_rng(1)
    normaliser = start_normaliser(jnp.zeros((2, 1)), of_obs=False, of_reward=True)
    running, length, everything = np.zeros(2), np.zeros(2, int), []
    for _ in range(3):
        reward, done = rng.normal(size=(2, 30)).astype(np.float32), rng.random((2, 30)) < 0.2
        lengths = np.zeros((2, 30), int)
        for b in range(2):
            for t in range(30):
                length[b] += 1
                lengths[b, t] = length[b]
                running[b] = reward[b, t] + 0.9 * running[b]
                everything.append(running[b])
                if done[b, t]:
                    running[b], length[b] = 0.0, 0
        zeros = np.zeros((2, 30, 1), np.float32)
        steps = envs.Steps(zeros, zeros, reward, done, ~done & False, zeros, reward, lengths)
        normaliser, scaled = normalise_steps(normaliser, jax.tree.map(jnp.asarray, steps), 0.9)
        np.testing.assert_allclose(scaled.reward, reward / np.std(everything), rtol=1e-5)
        np.testing.assert_array_equal(scaled.obs, steps.obs)
    assert normaliser.reward.count == 180


@pytest.mark.parametrize("rare", [5.0, -5.0])
def test_a_rare_reward_is_clipped(rare):
    """One in 400: its deviation is 5 / 20, so that it is worth 20 of them, and -10 or 10 is passed on."""
    normaliser = start_normaliser(jnp.zeros((1, 1)), of_obs=False, of_reward=True)
    reward, never = jnp.zeros((1, 400)).at[0, 399].set(rare), jnp.zeros((1, 400), bool)
    steps = envs.Steps(reward, reward, reward, never, never, reward, reward, jnp.arange(1, 401)[None])
    _, scaled = normalise_steps(normaliser, steps, 0.0)
    np.testing.assert_array_equal(scaled.reward[0, 397:], [0.0, 0.0, 2.0 * rare])


@pytest.fixture(scope="module")
def two_rollouts():
    step = jax.jit(ACTOR.rollout)
    params = ACTOR.init_params(jax.random.key(0))
    first = ACTOR.init_env(jax.random.key(1), HPARAMS)
    second, early, _ = step(params, None, first, jax.random.key(2), HPARAMS)
    third, late, metrics = step(params, None, second, jax.random.key(3), HPARAMS)
    return step, params, second, early, third, late, metrics


def test_a_rollout_acts_by_the_moments_at_its_start_and_leaves_its_own(two_rollouts):
    _, params, second, early, third, late, _ = two_rollouts
    raw = np.asarray(early.obs, np.float64).reshape(-1, 4)  # nothing was known: as the environment gave it
    moments = second.normaliser.obs
    np.testing.assert_allclose(moments.mean, raw.mean(0), atol=1e-5)
    np.testing.assert_allclose(moments.variance, raw.var(0), rtol=1e-4)
    raw_late = np.asarray(late.obs) * np.sqrt(moments.variance) + np.asarray(moments.mean)
    both = np.concatenate([raw, raw_late.reshape(-1, 4)])
    np.testing.assert_allclose(third.normaliser.obs.variance, both.var(0), rtol=1e-3)
    assert third.normaliser.obs.count == 2 * B * T
    now = standardise(third.normaliser.obs, third.envs.obs[0])
    assert np.abs(now - standardise(moments, third.envs.obs[0])).max() > 1e-4  # they do move
    again = jax.vmap(ACTOR.evaluate, (None, None, 0))(params, None, late)
    np.testing.assert_allclose(again.log_prob, late.log_prob, atol=1e-6)
    # The end of a step that goes on is the next step's start, in the same unit.
    goes_on = np.asarray(late.lambda_)[:, :-1] > 0
    np.testing.assert_allclose(late.next_value[:, :-1][goes_on], late.value[:, 1:][goes_on], atol=1e-5)


def test_rewards_are_scaled_and_the_record_of_episodes_is_not(two_rollouts):
    *_, third, late, metrics = two_rollouts
    np.testing.assert_allclose(late.reward, 1.0 / np.sqrt(third.normaliser.reward.variance), rtol=1e-5)
    assert metrics["episode_return_sum"] == metrics["episode_length_sum"] > 0


def test_evaluation_reads_the_moments():
    moments = Moments(jnp.float32(9.0), jnp.array([1.0, 0.0]), jnp.array([4.0, 1.0]))
    policy = normalised(lambda key, obs: obs, Normaliser(moments, None, None))
    np.testing.assert_allclose(policy(jax.random.key(0), jnp.array([5.0, 3.0])), [2.0, 3.0], rtol=1e-6)
    assert normalised(lambda key, obs: obs, None)(None, 5.0) == 5.0


def test_a_resumed_run_goes_on_bit_for_bit(two_rollouts, tmp_path):
    step, params, second, _, third, *_ = two_rollouts
    checkpoint.save(tmp_path, 1, second, {})
    restored, _ = checkpoint.restore(tmp_path, ACTOR.init_env(jax.random.key(5), HPARAMS), {})
    assert bits(restored.normaliser) == bits(second.normaliser)
    assert bits(step(params, None, restored, jax.random.key(3), HPARAMS)[0]) == bits(third)


def test_moments_of_more_than_a_float32_counts_stay_where_they_are():
    """A count of 2^31 no longer grows by 8; a batch keeps its weight, 2^-28, and no number is lost."""
    moments = Moments(jnp.float32(2**31), jnp.full(2, 3.0), jnp.full(2, 4.0))
    after = merge_moments(moments, jnp.full((8, 2), 1e3))
    np.testing.assert_allclose(after.mean, 3.0, rtol=1e-5)
    assert float(after.count) == 2**31 and np.isfinite(after.variance).all() and (after.variance >= 4.0).all()
