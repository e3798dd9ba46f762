import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from gymnax.environments.misc.frozen_lake import FrozenLake

from jaxrl_align import envs
from jaxrl_align.envs.tabular import frozen_lake, make_mdp, make_tabular_environment, random_mdp

CHAIN = make_mdp(
    [[[0, 1, 0], [1, 0, 0]], [[0, 0, 1], [1, 0, 0]], [[0.5, 0.5, 0], [0, 0, 1]]],
    [[1.0, 2.0], [3.0, 4.0], [9.0, 9.0]],
    0.5,
    terminal=[False, False, True],
)


def play(mdp, actions, max_steps=100):
    environment, params = make_tabular_environment(mdp, max_steps)
    start = envs.reset(environment, params, jax.random.key(0))
    clock = iter(actions)
    outcomes, state = [], start.state
    for action in clock:
        outcome = environment.step(jax.random.key(len(outcomes)), state, jnp.int32(action), params)
        obs, state, reward, terminated, truncated, info = outcome
        outcomes.append(
            (int(info["final_observation"]), float(reward), bool(terminated), bool(truncated), int(obs))
        )
    return outcomes


def test_a_chain_by_hand_and_its_reset():
    # final observation, reward, terminated, truncated, observation after any reset
    assert play(CHAIN, [1, 0, 1, 0, 0]) == [
        (0, 2.0, False, False, 0),
        (1, 1.0, False, False, 1),
        (0, 4.0, False, False, 0),
        (1, 1.0, False, False, 1),
        (2, 3.0, True, False, 0),
    ]


def test_a_time_limit_truncates_and_does_not_terminate():
    assert play(CHAIN, [0, 1, 1, 0], max_steps=2) == [
        (1, 1.0, False, False, 1),
        (0, 4.0, False, True, 0),
        (0, 2.0, False, False, 0),
        (1, 1.0, False, True, 0),
    ]


def test_terminal_states_absorb_and_pay_nothing():
    np.testing.assert_array_equal(CHAIN.transition[2], [[0, 0, 1], [0, 0, 1]])
    np.testing.assert_array_equal(CHAIN.reward[2], 0.0)


def test_rows_are_distributions_and_moves_follow_them():
    mdp = random_mdp(jax.random.key(1), 5, 3)
    np.testing.assert_allclose(mdp.transition.sum(-1), 1.0, rtol=1e-6)
    environment, params = make_tabular_environment(mdp)
    state = envs.reset(environment, params, jax.random.key(0)).state._replace(position=jnp.int32(2))
    keys = jax.random.split(jax.random.key(2), 20_000)
    step = lambda k: environment.step(k, state, jnp.int32(1), params)[5]["final_observation"]
    frequency = np.bincount(np.asarray(jax.vmap(step)(keys)), minlength=5) / 20_000
    np.testing.assert_allclose(frequency, mdp.transition[2, 1], atol=5 * 0.5 / 20_000**0.5)


def test_the_lake_is_gymnaxs_lake():
    mdp = frozen_lake()
    environment = FrozenLake()
    params = environment.default_params
    _, start = environment.reset(jax.random.key(0), params)
    keys = jax.random.split(jax.random.key(1), 2000)

    def after(position, action):
        state = start.replace(position=position)
        one = lambda k: environment.step_env(k, state, action, params)[1:4]
        moved, reward, terminated = jax.vmap(one)(keys)
        return moved.position, reward, terminated

    cells = jnp.arange(64)
    position, reward, terminated = jax.jit(jax.vmap(after))(cells // 4, cells % 4)
    for s in range(16):
        if mdp.terminal[s]:
            continue
        for a in range(4):
            frequency = np.bincount(position[s * 4 + a], minlength=16) / 2000
            np.testing.assert_allclose(frequency, mdp.transition[s, a], atol=5 * 0.5 / 2000**0.5)
            reached = position[s * 4 + a]
            np.testing.assert_array_equal(reward[s * 4 + a], mdp.reward[s, a][reached])
            np.testing.assert_array_equal(terminated[s * 4 + a], mdp.terminal[reached])


def test_it_has_gymnaxs_interface():
    environment, params = envs.make_environment(make_tabular_environment(CHAIN))
    assert envs.num_actions((environment, params)) == 2
    theirs, theirs_params = gymnax.make("FrozenLake-misc")
    _, state = theirs.reset(jax.random.key(0), theirs_params)
    wanted = theirs.step(jax.random.key(0), state, 0, theirs_params)
    env_state = environment.reset(jax.random.key(0), params)[1]
    got = environment.step(jax.random.key(0), env_state, jnp.int32(0), params)
    assert len(got) == len(wanted)
    assert {"final_observation", "terminated", "truncated"} <= got[5].keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(transition=np.ones((2, 2)), reward=np.ones((2, 2)), gamma=0.9), r"must be \[S, A, S\]"),
        (dict(transition=np.ones((1, 1, 1)), reward=np.ones((2, 1)), gamma=0.9), "reward must be"),
        (
            dict(transition=np.full((2, 1, 2), 0.6), reward=np.ones((2, 1)), gamma=0.9),
            "must be prob",
        ),
        (dict(transition=np.array([[[2.0, -1.0]]] * 2), reward=np.ones((2, 1)), gamma=0.9), "sum to 1"),
        (dict(transition=np.ones((1, 1, 1)), reward=np.full((1, 1), np.nan), gamma=0.9), "must be finite"),
        (
            dict(transition=np.ones((1, 1, 1)), reward=np.ones((1, 1)), gamma=1.0),
            "gamma must be in",
        ),
        (dict(transition=np.ones((1, 1, 1)), reward=np.ones((1, 1)), gamma=0.9, start=[2.0]), "start"),
        (dict(transition=np.ones((1, 1, 1)), reward=np.ones((1, 1)), gamma=0.9, terminal=[0, 1]), "terminal"),
    ],
)
def test_what_is_no_process_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_mdp(**arguments)


@pytest.mark.parametrize("rows", [("SX", "FG"), ("SF", "G"), ("FF", "FG"), ("SS", "FG"), ("sf", "fg"), ()])
def test_what_is_no_map_of_a_lake_is_refused(rows):
    with pytest.raises(ValueError, match="must be rows of one length, .* one of them S; got"):
        frozen_lake(rows)


def test_a_limit_below_one_is_refused():
    with pytest.raises(ValueError, match="max_steps must be at least 1"):
        make_tabular_environment(CHAIN, 0)
