import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_align import envs
from jaxrl_align.actors import gym
from jaxrl_align.envs.actions import MultiDiscrete, output_shape
from jaxrl_align.envs.tabular import make_tabular_environment, random_mdp
from jaxrl_align.learner import train
from jaxrl_align.losses import Categorical, DiagonalGaussian, MultiCategorical, TanhGaussian
from jaxrl_align.nets.mlp import Net, make_actor_critic_net, make_gaussian_net, make_multi_discrete_net
from jaxrl_align.rl.actor_critic import PPOHParams, make_actor_critic
from jaxrl_align.rl.dynamic_programming import action_values, solve_policy, value_iteration
from jaxrl_align.rl.policy_gradients import (
    PolicyGradientHParams,
    PPOKLHParams,
    make_a2c,
    make_ppo_kl,
    make_q_actor_critic,
    make_reinforce,
    monte_carlo,
)
from jaxrl_align.types import Trajectory
from tests.environments import PROBES, Lock, Target

MDP = PROBES["policy-dependent"]
HPARAMS = PolicyGradientHParams(learning_rate=0.05, gamma=0.9)


def table_net(mdp, actions=None):
    """A number for every state and, with `actions`, for every action."""
    states, choices = mdp.transition.shape[:2]
    value_shape = (states,) if actions is None else (states, actions)
    init = lambda key, obs: {"logits": jnp.zeros((states, choices)), "value": jnp.zeros(value_shape)}
    return Net(init, lambda params, state: (params["logits"][state], params["value"][state]))


def table_actor(mdp=MDP, net=None, max_steps=100, num_envs=16, num_steps=4, **settings):
    net = net or table_net(mdp)
    environment = make_tabular_environment(mdp, max_steps)
    return gym.make_actor(environment, net, num_envs=num_envs, num_steps=num_steps, **settings)


def test_monte_carlo_weights_by_hand():
    """Two episodes, the second of two steps; gamma = 0.5."""
    zeros = jnp.zeros((2, 3))
    mask = jnp.array([[1.0, 1, 1], [1, 1, 0]])
    trajectory = Trajectory(
        None,
        None,
        zeros,
        jnp.array([[1.0, 2, 4], [3, 5, 0]]),
        jnp.array([[0.5, 0.5, 0], [0.5, 0, 0]]),
        zeros,
        jnp.array([[1.0, 1, 1], [2, 2, 0]]),
        zeros,
        mask,
    )
    weigh = functools.partial(monte_carlo, trajectory, constant=10.0)
    whole, to_go, discounted = [[7, 7, 7], [8, 8, 0]], [[7, 6, 4], [8, 5, 0]], [[3, 4, 4], [5.5, 5, 0]]
    for name, expected in (("whole", whole), ("to_go", to_go), ("discounted", discounted)):
        for weights in weigh(returns=name, baseline="none"):
            np.testing.assert_allclose(weights, expected)
    weight, target = weigh(returns="to_go", baseline="constant")
    np.testing.assert_allclose(weight, [[-3, -4, -6], [-2, -5, 0]])
    np.testing.assert_allclose(target, to_go)
    np.testing.assert_allclose(weigh(returns="to_go", baseline="average")[0], [[-1, 1, 4], [1, -1, 0]])
    np.testing.assert_allclose(weigh(returns="to_go", baseline="learned")[0], [[6, 5, 3], [6, 3, 0]])


@pytest.mark.slow
def test_reinforce_steps_along_the_lectures_gradient():
    """One step at rate 1 without an optimiser: (1 / N T) sum_n sum_t grad log pi G, from the trajectory."""
    actor = table_actor(whole_episodes=True)
    learner = make_reinforce(actor, returns="to_go", optimizer=optax.identity())
    state = learner.init(jax.random.key(0), HPARAMS._replace(learning_rate=1.0))
    _, key_rollout, _ = jax.random.split(state.key, 3)
    _, trajectory, _ = actor.rollout(state.params, None, state.env_state, key_rollout, state.hparams)
    expected = np.zeros((3, 2))
    for n in range(16):
        for t in range(4):
            s, a, real = trajectory.obs[n, t], trajectory.action[n, t], trajectory.mask[n, t]
            expected[s] += real * (np.eye(2)[a] - 0.5) * trajectory.reward[n, t:].sum() / (16 * 4)
    after, _ = learner.step(state)
    np.testing.assert_allclose(after.params["logits"], expected, atol=1e-5)
    np.testing.assert_array_equal(after.params["value"], 0.0)
    assert trajectory.mask.sum() < 16 * 4  # some episodes end after one step


@pytest.mark.parametrize(
    "returns, baseline",
    [
        pytest.param("whole", "none", marks=pytest.mark.slow),
        ("to_go", "constant"),
        ("discounted", "average"),
        ("discounted", "learned"),
    ],
)
def test_reinforce_finds_the_best_actions(returns, baseline):
    learner = make_reinforce(table_actor(whole_episodes=True), returns=returns, baseline=baseline)
    state, metrics = jax.jit(train(learner, 300))(jax.random.key(0), HPARAMS)
    np.testing.assert_array_equal(jnp.argmax(state.params["logits"], -1)[:2], [0, 0])
    # Worth 0 + 2 undiscounted, against 1 and 0 + (-1).
    assert metrics["episode_return_last100"][-1] > 1.9
    if baseline == "learned":
        np.testing.assert_allclose(state.params["value"][:2], [1.8, 2.0], atol=0.1)


def test_a2c_finds_the_best_actions_and_their_values():
    state, _ = jax.jit(train(make_a2c(table_actor()), 400))(jax.random.key(0), HPARAMS)
    np.testing.assert_array_equal(jnp.argmax(state.params["logits"], -1)[:2], [0, 0])
    np.testing.assert_allclose(state.params["value"][:2], [1.8, 2.0], atol=0.1)


@pytest.mark.optimised
@pytest.mark.slow
@pytest.mark.parametrize("critic", ["sarsa", "max"])
def test_the_critic_of_actions_learns_the_policys_q_or_the_optimal_one(critic):
    """A policy that stays uniform: the next action's value leads to Q^pi, the greatest to Q* (erratum H5)."""
    mdp = random_mdp(jax.random.key(3), 4, 2, gamma=0.5)
    net = table_net(mdp, actions=2)
    uniform = net._replace(apply=lambda params, s: (jnp.zeros(2), params["value"][s]))
    actor = table_actor(mdp, uniform, max_steps=5, num_envs=64, critic=critic)
    learner = make_q_actor_critic(actor, total_steps=600)
    state, _ = jax.jit(train(learner, 600))(jax.random.key(0), HPARAMS._replace(gamma=0.5))
    of_uniform = action_values(mdp, solve_policy(mdp, jnp.full((4, 2), 0.5)))
    exact = {"sarsa": of_uniform, "max": value_iteration(mdp).q}
    np.testing.assert_allclose(state.params["value"], exact[critic], atol=0.1)
    other = exact["max" if critic == "sarsa" else "sarsa"]
    assert np.abs(exact[critic] - other).max() > 0.3


def test_q_actor_critic_finds_the_best_actions():
    actor = table_actor(net=table_net(MDP, actions=2), critic="sarsa")
    state, _ = jax.jit(train(make_q_actor_critic(actor), 500))(jax.random.key(0), HPARAMS)
    np.testing.assert_array_equal(jnp.argmax(state.params["logits"], -1)[:2], [0, 0])


@pytest.mark.slow
def test_the_next_value_is_that_of_the_action_taken_next():
    net = table_net(MDP, actions=2)
    actor = table_actor(net=net, max_steps=1, critic="sarsa", num_steps=6)
    params = {"logits": jnp.zeros((3, 2)), "value": jnp.arange(6.0).reshape(3, 2)}
    env_state = actor.init_env(jax.random.key(0), HPARAMS)
    _, cut, _ = actor.rollout(params, None, env_state, jax.random.key(1), HPARAMS)
    # Every step is an episode's last: the next action is not known, its expectation is.
    reached = np.where(np.asarray(cut.action) == 0, 1, 2)
    np.testing.assert_allclose(cut.next_value, 2 * reached + 0.5)
    actor = table_actor(net=net, critic="sarsa", num_steps=6)
    _, steps, _ = actor.rollout(params, None, env_state, jax.random.key(1), HPARAMS)
    goes_on = np.asarray(steps.discount)[:, :-1] > 0
    assert goes_on.any()
    np.testing.assert_allclose(steps.next_value[:, :-1][goes_on], steps.value[:, 1:][goes_on])


def kl_learner(**settings):
    actor = gym.make_actor("CartPole-v1", make_actor_critic_net(2, (16,)), num_envs=8, num_steps=32)
    return make_ppo_kl(actor, segment_length=1, minibatches=2, **settings)


@pytest.mark.optimised
@pytest.mark.slow
def test_the_adaptive_coefficient_holds_the_kl_near_its_target():
    hparams = PPOKLHParams(learning_rate=3e-3, kl_coef=0.1, kl_target=0.01)
    keys = jax.random.split(jax.random.key(0), 16)  # one run's mean is anywhere between 0.004 and 0.012
    _, metrics = jax.jit(jax.vmap(train(kl_learner(), 80), (0, None)))(keys, hparams)
    kl, coef = np.asarray(metrics["policy/kl"]), np.asarray(metrics["policy/kl_coef"])
    assert 0.01 / 1.5 < kl[:, 30:].mean() < 0.01 * 1.5
    steps, kl = coef[:, 1:] / coef[:, :-1], kl[:, :-1]
    np.testing.assert_allclose(steps, np.where(kl > 0.015, 2.0, np.where(kl < 0.01 / 1.5, 0.5, 1.0)))


@pytest.mark.optimised
@pytest.mark.slow
def test_a_large_coefficient_holds_the_policy_where_it_was():
    learner = kl_learner(adaptive=False)
    run = jax.jit(train(learner, 5))
    free, held = (
        run(jax.random.key(0), PPOKLHParams(learning_rate=3e-3, kl_coef=c))[1] for c in (0.0, 300.0)
    )
    assert (held["policy/kl"] < 0.1 * free["policy/kl"]).all()
    np.testing.assert_allclose(held["policy/kl_coef"], 300.0)


@pytest.mark.optimised
@pytest.mark.slow
@pytest.mark.parametrize("distribution", [DiagonalGaussian, TanhGaussian])
def test_continuous_actions_find_their_target(distribution):
    """The best action is 0.6 of a space [-1, 2]: a Gaussian's mean, or a tanh of 1/15."""
    net = make_gaussian_net((1,), hidden=(8,), shared=True)
    actor = gym.make_actor((Target(), None), net, num_envs=32, num_steps=1, distribution=distribution)
    learner = make_actor_critic(actor, segment_length=1, minibatches=2, total_steps=200)
    hparams = PPOHParams(learning_rate=0.02, entropy_coef=0.0)
    state, metrics = jax.jit(train(learner, 200))(jax.random.key(0), hparams)
    episodes = envs.evaluate_policy(
        (Target(), None),
        gym.greedy(net, state.params, distribution),
        jax.random.key(1),
        num_episodes=1,
        max_steps=1,
        distribution=distribution,
    )
    assert episodes.episode_return > -0.01
    mean = net.apply(state.params, jnp.ones(1))[0][0]
    if distribution is TanhGaussian:
        np.testing.assert_allclose(jnp.tanh(mean), 1 / 15, atol=0.08)
    else:
        np.testing.assert_allclose(mean, 0.6, atol=0.1)


@pytest.mark.optimised
@pytest.mark.slow
def test_several_choices_at_once_open_the_lock():
    """Independent wheels: the best action is (2, 0, 3), and what a wheel lacks is never drawn."""
    net = make_multi_discrete_net((3, 2, 4), hidden=(8,), shared=True)
    actor = gym.make_actor((Lock(), None), net, num_envs=32, num_steps=1, distribution=MultiCategorical)
    learner = make_actor_critic(actor, segment_length=1, minibatches=2, measure_kl=True)
    hparams = PPOHParams(learning_rate=0.02, entropy_coef=0.0)
    state, metrics = jax.jit(train(learner, 100))(jax.random.key(0), hparams)
    np.testing.assert_array_equal(jnp.argmax(net.apply(state.params, jnp.ones(1))[0], -1), [2, 0, 3])
    assert metrics["episode_return_last100"][-1] > 2.9
    assert np.isfinite(metrics["policy/kl"]).all() and metrics["policy/kl"].max() > 1e-4
    assert metrics["policy/entropy_avg"][0] == pytest.approx(np.log(3 * 2 * 4), abs=0.1)
    _, trajectory, _ = actor.rollout(state.params, None, state.env_state, jax.random.key(1), hparams)
    assert (
        trajectory.action.shape == (32, 1, 3) and (np.asarray(trajectory.action) < np.array([3, 2, 4])).all()
    )
    assert (MultiDiscrete((3, 2, 4)).sample(jax.random.key(0)) < np.array([3, 2, 4])).all()


def test_a_gaussian_is_clipped_to_the_space_and_judged_as_drawn():
    net = make_gaussian_net((1,), hidden=(4,), log_std=2.0)
    actor = gym.make_actor((Target(), None), net, num_envs=64, num_steps=1, distribution=DiagonalGaussian)
    params = actor.init_params(jax.random.key(0))
    env_state = actor.init_env(jax.random.key(1), PPOHParams())
    _, trajectory, _ = actor.rollout(params, None, env_state, jax.random.key(2), PPOHParams())
    action = np.asarray(trajectory.action)[:, 0, 0]
    assert np.abs(action).max() > 3
    np.testing.assert_allclose(trajectory.reward[:, 0], -((np.clip(action, -1, 2) - 0.6) ** 2), atol=1e-5)
    mean = float(net.apply(params, jnp.ones(1))[0][0][0])
    log_prob = -0.5 * ((action - mean) / np.exp(2)) ** 2 - 2.0 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(trajectory.log_prob[:, 0], log_prob, atol=1e-5)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: make_reinforce(table_actor(), returns="some"), "returns must be whole, to_go or discounted"),
        (lambda: make_reinforce(table_actor(), baseline="best"), "baseline must be none, constant, average"),
        (lambda: table_actor(critic="q"), "critic must be state, sarsa or max; got 'q'"),
        (lambda: table_actor(critic="max"), r"a value of shape \(2,\) for TabularEnv; got \(\(2,\), \(\)\)"),
        (
            lambda: table_actor(distribution=TanhGaussian),
            "TanhGaussian does not fit the action space Discrete",
        ),
        (lambda: output_shape(Categorical, MultiDiscrete((2, 2))), "Categorical does not fit .* MultiDisc"),
        (lambda: output_shape(MultiCategorical, envs.spaces.Discrete(2)), "MultiCategorical does not fit"),
        (lambda: make_multi_discrete_net((3, 0)), r"choices and hidden must be at least 1; got .*\(3, 0\)"),
    ],
)
def test_what_does_not_fit_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
