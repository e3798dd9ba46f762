import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_align.actors import gym
from jaxrl_align.envs.tabular import make_mdp, make_tabular_environment
from jaxrl_align.learner import train
from jaxrl_align.nets.mlp import Net, make_actor_critic_net
from jaxrl_align.rl.actor_critic import (
    Batch,
    PPOHParams,
    explained_variance,
    gae_advantages,
    make_actor_critic,
)
from jaxrl_align.rl.dynamic_programming import value_iteration
from jaxrl_align.types import Actor, Evaluation, Trajectory
from tests.environments import LOOP, PROBES, numbered_line
from tests.tiny import bits

HPARAMS = PPOHParams(learning_rate=0.05, gamma=0.9, value_clip=jnp.inf, entropy_coef=0.0)


def table_net(mdp):
    """Return a policy and a critic with a number for every state, exact where a network approximates."""
    states, actions = mdp.transition.shape[:2]
    init = lambda key, obs: {"logits": jnp.zeros((states, actions)), "value": jnp.zeros(states)}
    return Net(init, lambda params, state: (params["logits"][state], params["value"][state]))


@functools.cache
def solve(mdp_name, max_steps=100, updates=300):
    mdp = {"loop": LOOP, "line": numbered_line(10)}.get(mdp_name) or PROBES[mdp_name]
    actor = gym.make_actor(make_tabular_environment(mdp, max_steps), table_net(mdp), num_envs=8, num_steps=16)
    learner = make_actor_critic(actor, segment_length=1, total_steps=updates)
    state, _ = jax.jit(train(learner, updates))(jax.random.key(0), HPARAMS)
    return state.params, mdp


@pytest.mark.parametrize("name", PROBES)
def test_the_critic_and_the_policy_find_the_known_answers(name):
    params, mdp = solve(name)
    going_on, exact = ~mdp.terminal, value_iteration(mdp)
    np.testing.assert_allclose(
        params["value"][going_on], jnp.max(exact.q, -1)[going_on], rtol=0.02, atol=0.04
    )
    best = jnp.argmax(params["logits"], -1)
    if name == "policy-dependent":  # of the others every state has one action
        np.testing.assert_array_equal(best[going_on], jnp.argmax(exact.q, -1)[going_on])


@pytest.mark.slow
def test_a_cut_loop_is_worth_ten_and_an_ended_one_less():
    """r = 1, gamma = 0.9: cut at 10 steps 1 / (1 - 0.9) = 10, ended there (1 - 0.9^10) / 0.1 = 6.51."""
    np.testing.assert_allclose(solve("loop", max_steps=10)[0]["value"][0], 10.0, rtol=0.02)
    np.testing.assert_allclose(solve("line")[0]["value"][0], 6.513, rtol=0.02)


NET = make_actor_critic_net(2, hidden=(8,))
LEARNER = make_actor_critic(
    gym.make_actor("CartPole-v1", NET, num_envs=2, num_steps=8),
    epochs=2,
    minibatches=2,
    segment_length=1,
    total_steps=10,
)


def two_steps(key, hparams):
    state, metrics = jax.lax.scan(lambda s, _: LEARNER.step(s), LEARNER.init(key, hparams), None, 2)
    return state.params, metrics


@pytest.mark.slow
def test_eight_members_differ_and_are_the_eight_single_runs():
    keys = jax.random.split(jax.random.key(0), 8)
    with jax.debug_key_reuse(True):
        members, _ = jax.jit(jax.vmap(two_steps, (0, None)))(keys, PPOHParams())
        single = jax.jit(two_steps)
        for i, key in enumerate(keys):
            one = jax.tree.map(lambda x, i=i: x[i], members)
            jax.tree.map(
                functools.partial(np.testing.assert_allclose, atol=1e-5), one, single(key, PPOHParams())[0]
            )
    kernels = np.asarray(members["policy_0"]["kernel"])
    assert len({kernel.tobytes() for kernel in kernels}) == 8


@pytest.mark.slow
def test_a_grid_of_every_hyperparameter_compiles_once():
    grid = jax.tree.map(lambda x: jnp.full((7, 8), x), PPOHParams())
    rates, clips = jnp.logspace(-4, -2, 7), jnp.linspace(0.1, 0.3, 8)
    grid = grid._replace(
        learning_rate=jnp.broadcast_to(rates[:, None], (7, 8)), clip=jnp.broadcast_to(clips, (7, 8))
    )
    run = jax.jit(jax.vmap(jax.vmap(two_steps, (None, 0)), (None, 0)))
    params, metrics = run(jax.random.key(0), grid)
    other, _ = run(jax.random.key(1), jax.tree.map(lambda x: 0.9 * x, grid))
    assert run._cache_size() == 1
    kernels = np.asarray(params["policy_0"]["kernel"])
    assert all(len({k.tobytes() for k in row}) > 1 for row in np.moveaxis(kernels, 1, 0))  # the rate matters
    np.testing.assert_allclose(metrics["learning_rate"][:, 0, 1], rates * 0.9, rtol=1e-5)
    assert bits(other) != bits(params)


@pytest.mark.parametrize(("num_envs", "every"), [(8, 1), (4, 20)])
def test_an_infinite_run_keeps_a_fixed_memory_and_a_long_one_little(num_envs, every):
    """Output of ten million steps: at most 1 MB, one number a metric and update, or of several updates."""
    actor = gym.make_actor("CartPole-v1", NET, num_envs=num_envs, num_steps=128)
    learner = make_actor_critic(actor, segment_length=1)
    updates = 10**7 // (num_envs * 128) // every * every
    state, metrics = jax.eval_shape(train(learner, updates, every=every), jax.random.key(0), PPOHParams())
    assert {x.shape for x in jax.tree.leaves(metrics)} == {(updates // every,)}
    assert sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(metrics)) < 1e6
    assert sum(x.size for x in jax.tree.leaves(state._replace(key=None))) < 5000


def count_loss(evaluation, batch, hparams):
    return -jnp.sum(evaluation.log_prob), {"ids": jnp.sum(batch.trajectory.obs)}


def counting_learner(rows, steps, loss=count_loss, **settings):
    """Return a learner whose parameters count how often each step of each trajectory was used."""
    ids = jnp.arange(rows * steps).reshape(rows, steps)
    zeros = jnp.zeros((rows, steps))
    trajectory = Trajectory(ids, ids, *[zeros] * 6, jnp.ones((rows, steps)))
    actor = Actor(
        lambda key: jnp.zeros(rows * steps),
        lambda key, hparams: None,
        lambda *_: (None, trajectory, {}),
        lambda params, frozen, t: Evaluation(params[t.obs], zeros, zeros),
    )
    return make_actor_critic(actor, optimizer=optax.identity(), loss=loss, **settings)


@pytest.mark.parametrize("segment_length", [None, 1, 2])
def test_every_step_is_used_once_an_epoch(segment_length):
    learner = counting_learner(4, 6, epochs=3, minibatches=2, segment_length=segment_length)
    state, metrics = learner.step(learner.init(jax.random.key(0), PPOHParams(learning_rate=1.0)))
    np.testing.assert_array_equal(state.params, 3.0)
    np.testing.assert_allclose(metrics["ids"], sum(range(24)) / 2)


def test_segments_keep_neighbours_together_and_epochs_shuffle_anew():
    seen = []

    def spy(evaluation, batch, hparams):
        jax.debug.callback(lambda obs: seen.append(obs.tolist()), batch.trajectory.obs, ordered=True)
        return count_loss(evaluation, batch, hparams)

    learner = counting_learner(2, 4, spy, epochs=2, minibatches=4, segment_length=2)
    jax.block_until_ready(learner.step(learner.init(jax.random.key(1), PPOHParams())))
    jax.effects_barrier()
    first, second = seen[:4], seen[4:]
    assert sorted(first) == sorted(second) == [[[0, 1]], [[2, 3]], [[4, 5]], [[6, 7]]]
    assert first != second


def test_advantages_are_whitened_over_the_real_steps_alone():
    rng = np.random.default_rng(0)
    mask = (np.arange(6) < np.array([[6], [3], [1]])).astype(np.float32)
    fields = [jnp.asarray(rng.normal(size=(3, 6)) * mask, jnp.float32) for _ in range(4)]
    reward, value, next_value, log_prob = fields
    trajectory = Trajectory(None, None, log_prob, reward, 0.9 * mask, 0.5 * mask, value, next_value, mask)
    advantage, target = gae_advantages(trajectory)
    plain = np.zeros((3, 7))
    for t in reversed(range(6)):
        error = reward[:, t] + 0.9 * mask[:, t] * next_value[:, t] - value[:, t]
        plain[:, t] = error + 0.9 * 0.5 * mask[:, t] * plain[:, t + 1]
    np.testing.assert_allclose(target, plain[:, :6] + value, atol=1e-5)
    real = np.asarray(advantage)[mask > 0]
    np.testing.assert_allclose([real.mean(), real.std()], [0, 1], atol=0.06)  # n or n - 1 in the variance
    np.testing.assert_array_equal(np.asarray(advantage)[mask == 0], 0.0)
    np.testing.assert_allclose(np.corrcoef(real, plain[:, :6][mask > 0])[0, 1], 1.0, atol=1e-5)


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            {"minibatches": 5},
            "minibatches must divide segments per rollout; got segments per rollout=16, minibatches=5; "
            "try minibatches=2 or 4",
        ),
        ({"minibatches": 0}, "minibatches must divide"),
        (
            {"segment_length": 3},
            "segment_length must divide steps per rollout; got steps per rollout=8, segment_length=3",
        ),
        ({"segment_length": None, "minibatches": 4}, "trajectories per rollout=2, minibatches=4"),
    ],
)
def test_what_does_not_divide_is_refused_before_compilation(settings, message):
    actor = gym.make_actor("CartPole-v1", NET, num_envs=2, num_steps=8)
    learner = make_actor_critic(actor, **{"minibatches": 2, "segment_length": 1} | settings)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda key: learner.step(learner.init(key, PPOHParams())), jax.random.key(0))


def test_one_step_rollouts_that_all_end_stay_finite():
    mdp = make_mdp([[[0, 1], [0, 1]]] * 2, [[1.0, 0.0]] * 2, 0.9, terminal=[False, True])
    actor = gym.make_actor(make_tabular_environment(mdp), table_net(mdp), num_envs=4, num_steps=1)
    learner = make_actor_critic(actor, minibatches=1)
    state, metrics = jax.jit(train(learner, 20))(jax.random.key(0), HPARAMS)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.params, metrics)))
    assert (metrics["episodes"] == 4).all()
    assert state.params["logits"][0, 0] > state.params["logits"][0, 1]


def test_explained_variance_by_hand():
    """Targets 1, 2, 3, 6 have variance 3.5; what padding holds does not count."""
    target, mask = jnp.array([[1.0, 2.0, 99.0], [3.0, 6.0, -99.0]]), jnp.array([[1.0, 1.0, 0.0]] * 2)
    zeros = jnp.zeros((2, 3))

    def explained(value, target=target):
        trajectory = Trajectory(*[zeros] * 6, value, zeros, mask)
        return explained_variance(Batch(trajectory, zeros, target))

    for value, expected in [
        ([[1.0, 2.0, 0.0], [3.0, 6.0, 0.0]], 1.0),
        ([[8.0, 9.0, 0.0], [10.0, 13.0, 0.0]], 1.0),  # an offset is no variance
        ([[0.0, 0.0, 5.0], [0.0, 0.0, 7.0]], 0.0),
        ([[1.0, 2.0, 0.0], [3.0, 2.0, 0.0]], 1 - 3.0 / 3.5),  # left: 0, 0, 0, 4
        ([[-1.0, -2.0, 0.0], [-3.0, -6.0, 0.0]], -3.0),
    ]:
        np.testing.assert_allclose(explained(jnp.array(value)), expected, atol=1e-6)
    assert explained(target, jnp.ones((2, 3))) == 0.0


def test_the_rollouts_explained_variance_is_reported_before_the_update():
    """Of the acting critic and the whole rollout, whatever is cut and shuffled after."""
    state = LEARNER.init(jax.random.key(0), PPOHParams())
    _, key_rollout, _ = jax.random.split(state.key, 3)
    actor = gym.make_actor("CartPole-v1", NET, num_envs=2, num_steps=8)
    args = state.params, None, state.env_state, key_rollout, state.hparams, None
    trajectory = jax.jit(actor.rollout)(*args)[1]
    target = np.asarray(gae_advantages(trajectory)[1])
    expected = 1 - (target - np.asarray(trajectory.value)).var() / target.var()
    got = jax.jit(LEARNER.step)(state)[1]["val/explained_variance"]
    np.testing.assert_allclose(got, expected, atol=1e-4)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="reads a CPU's program")
@pytest.mark.parametrize("length", [1, 4])
def test_a_steps_products_take_the_cpus_fast_path(length):
    # It sums over the first operand's last axis. The heads' narrow gradients may be turned round; nor is any
    # gradient formed for each segment before its sum.
    actor = gym.make_actor("CartPole-v1", make_actor_critic_net(2, hidden=(8, 8)), num_envs=4, num_steps=8)
    learner = make_actor_critic(actor, segment_length=length, minibatches=2)
    state = jax.eval_shape(lambda key: learner.init(key, PPOHParams()), jax.random.key(0))
    program = jax.jit(learner.step).lower(state).compile().as_text()
    slow = re.findall(r"= f32\[(\d+),(\d+)\]\S* dot\(.*lhs_contracting_dims=\{0\}", program)
    assert "lhs_contracting_dims={1}" in program and "lhs_batch_dims" not in program
    assert all(min(int(rows), int(columns)) <= 2 for rows, columns in slow)
