import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from jaxrl_align import envs
from jaxrl_align.actors.value import epsilon_greedy, make_value_actor
from jaxrl_align.envs.tabular import TabularParams, make_mdp, make_tabular_environment
from jaxrl_align.nets.q_networks import make_q_net, make_table
from jaxrl_align.rl.dqn import Exploration

TABLE = make_table(1, 4)
VALUES = jnp.array([[0.0, 3.0, 1.0, 2.0]])


@pytest.mark.parametrize("epsilon", [0.0, 0.1, 0.6, 1.0])
def test_the_greedy_action_has_one_minus_epsilon_and_its_share_of_the_rest(epsilon):
    # A12: P(argmax) = 1 - epsilon + epsilon / A, every other action epsilon / A.
    policy = jax.vmap(epsilon_greedy(TABLE, VALUES, epsilon), (0, None))
    actions = policy(jax.random.split(jax.random.key(0), 20_000), jnp.int32(0))
    count = np.bincount(actions, minlength=4)
    expected = 20_000 * (np.full(4, epsilon / 4) + (1 - epsilon) * np.eye(4)[1])
    likely = expected > 0
    assert count[~likely].sum() == 0
    assert likely.sum() == 1 or chisquare(count[likely], expected[likely]).pvalue > 1e-4


def test_the_first_of_equals_is_greedy():
    equal = epsilon_greedy(TABLE, jnp.zeros((1, 4)))(jax.random.key(0), jnp.int32(0))
    assert int(equal) == 0 and equal.dtype == jnp.int32


def test_noise_explores_in_training_and_is_off_in_greedy_evaluation():
    net = make_q_net(4, (), noisy=True)
    params = net.init(jax.random.key(0), jnp.ones(3))
    keys = jax.random.split(jax.random.key(1), 200)
    act = lambda epsilon: jax.jit(jax.vmap(epsilon_greedy(net, params, epsilon), (0, None)))(
        keys, jnp.ones(3)
    )
    assert len(np.unique(act(0.0))) == len(np.unique(act(0))) == 1
    assert len(np.unique(act(jnp.zeros(())))) > 1


def test_a_learners_action_values_have_the_noise_of_their_key():
    net = make_q_net(2, (), noisy=True)
    actor = make_value_actor("CartPole-v1", net, num_envs=1, num_steps=1)
    params, obs = actor.init_params(jax.random.key(0)), jnp.ones(4)
    keys = jax.random.split(jax.random.key(1))
    quiet, *loud = (actor.action_values(params, None, obs, key) for key in (None, *keys))
    np.testing.assert_array_equal(quiet, net.apply(params, obs, None))
    np.testing.assert_array_equal(loud[0], net.apply(params, obs, keys[0]))
    assert np.abs(loud[0] - loud[1]).min() > 1e-3 and np.abs(loud[0] - quiet).min() > 1e-3


def test_a_noisy_net_explores_in_its_rollouts():
    still = make_tabular_environment(make_mdp(np.ones((1, 4, 1)), np.ones((1, 4)), 0.9))
    actor = make_value_actor(
        still,
        make_q_net(4, (), noisy=True),
        num_envs=2,
        num_steps=50,
        preprocess=lambda s: jax.nn.one_hot(s, 1),
    )
    params, begun = actor.init_params(jax.random.key(0)), actor.init_env(jax.random.key(1), None)
    _, played, _ = actor.rollout(params, None, begun, jax.random.key(2), Exploration(jnp.zeros(())))
    assert len(np.unique(played.action)) > 1


def test_what_is_stored_is_preprocessed_and_endings_stay_apart():
    # Two steps to the end, and a time limit of two: both flags are set, and both are kept.
    chain = make_mdp([[[0, 1, 0]], [[0, 0, 1]], [[0, 0, 1]]], np.ones((3, 1)), 0.9, terminal=[0, 0, 1])
    phi = lambda s: jax.nn.one_hot(s, 3, dtype=bool)
    net = make_q_net(1, ())
    environment, _ = make_tabular_environment(chain)

    @jax.jit
    def play(limit):
        # The limit is a parameter of the environment, so that one program serves all three.
        actor = make_value_actor(
            (environment, TabularParams(chain, limit)), net, num_envs=2, num_steps=4, preprocess=phi
        )
        params, begun = actor.init_params(jax.random.key(0)), actor.init_env(jax.random.key(1), None)
        return actor.rollout(params, None, begun, jax.random.key(2), Exploration(0.0), None)[1:]

    for limit in (1, 2, 3):
        played, metrics = play(limit)
        assert played.obs.shape == played.next_obs.shape == (2, 4, 3) and played.obs.dtype == bool
        short = limit == 1
        np.testing.assert_array_equal(played.terminated[0], [False, not short] * 2)
        np.testing.assert_array_equal(played.truncated[0], [short, limit < 3] * 2)
        # Read before the reset: state 2 is the end, to which no episode is reset.
        np.testing.assert_array_equal(played.next_obs[0].argmax(-1), [1, 1 if short else 2] * 2)
        assert int(metrics["episodes"]) == (8 if short else 4)
        assert float(metrics["episode_return_last100"]) == min(limit, 2)


def test_one_observation_is_preprocessed_in_acting_and_in_storing():
    unit = lambda obs: obs[:2] / jnp.linalg.norm(obs[:2])
    actor = make_value_actor("CartPole-v1", make_q_net(2, ()), num_envs=2, num_steps=3, preprocess=unit)
    params, begun = actor.init_params(jax.random.key(0)), actor.init_env(jax.random.key(1), None)
    _, played, _ = actor.rollout(params, None, begun, jax.random.key(2), Exploration(1.0))
    for stored in (played.obs, played.next_obs):
        assert stored.shape == (2, 3, 2)
        np.testing.assert_allclose(np.linalg.norm(stored, axis=-1), 1.0, rtol=1e-6)


def test_no_return_is_told_before_an_episode_ended():
    endless = make_mdp([[[1.0]]], [[1.0]], 0.9)
    actor = make_value_actor(make_tabular_environment(endless), make_table(1, 1), num_envs=1, num_steps=5)
    play = jax.jit(
        lambda key: actor.rollout(
            jnp.zeros((1, 1)), None, actor.init_env(key, None), jax.random.key(1), Exploration(1.0), None
        )
    )
    metrics = play(jax.random.key(0))[2]
    assert np.isnan(metrics["episode_return_last100"]) and int(metrics["episodes"]) == 0


def test_evaluation_counts_whole_episodes_only():
    line = make_mdp(
        np.eye(4, k=1)[:, None] + np.diag([0, 0, 0, 1.0])[:, None],
        np.ones((4, 1)),
        0.9,
        terminal=[0, 0, 0, 1],
    )
    policy = epsilon_greedy(make_table(4, 1), jnp.zeros((4, 1)))
    play = jax.jit(
        lambda key, steps: envs.evaluate_policy(
            make_tabular_environment(line), policy, key, num_episodes=3, max_steps=steps
        ),
        static_argnums=1,
    )
    whole, cut = play(jax.random.key(0), 9), play(jax.random.key(0), 2)
    np.testing.assert_array_equal(whole.episode_return, [3.0] * 3)
    assert whole.finished.all() and not cut.finished.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(env="Pendulum-v1"), "expected a discrete action space, got Box of Pendulum"),
        (dict(env="CartPol-v1"), "unknown environment 'CartPol-v1'; did you mean CartPole-v1"),
        (dict(net=make_q_net(3)), "must value the 2 actions of CartPole; got values of shape \\(3,\\)"),
        (dict(num_envs=0), "num_envs must be a whole number of at least 1; got 0"),
        (dict(num_steps=0), "num_steps must be a whole number of at least 1; got 0"),
    ],
)
def test_what_cannot_act_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_value_actor(**(dict(env="CartPole-v1", net=make_q_net(2), num_envs=1, num_steps=1) | arguments))
