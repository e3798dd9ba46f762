import functools
import types

import gymnax
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import envs
from jaxrl_align.actors.value import make_value_actor
from jaxrl_align.envs.tabular import TabularEnv, TabularParams, make_mdp, make_tabular_environment
from jaxrl_align.learner import train
from jaxrl_align.losses import double_q_error, huber, q_learning_error, squared
from jaxrl_align.nets.q_networks import make_q_net, make_table, support_between
from jaxrl_align.rl.dqn import (
    DQNHParams,
    Exploration,
    _first_bad,
    c51_loss,
    check_rewards,
    make_dqn,
    make_online_q,
    memory_bytes,
    quantile_loss,
    td_loss,
    transition_loss,
)
from jaxrl_align.rl.dynamic_programming import value_iteration
from jaxrl_align.rl.replay import Sample, make_replay
from jaxrl_align.runtime.folder import open_run
from jaxrl_align.runtime.loop import run
from jaxrl_align.types import Actor, Transition
from tests.tiny import bits

STATES = 11


def problem(transition, reward, terminal=None, max_steps=100):
    """A process and its time limit, with states that nothing reaches and a twin of a lone action.

    So all problems have one shape, and one program of each option solves them side by side.
    """
    transition = np.asarray(transition, float)
    states, actions, _ = transition.shape
    reward = np.asarray(reward, float)
    reward = reward if reward.ndim == 3 else np.repeat(reward[:, :, None], states, 2)
    more, twice = STATES - states, 2 // actions
    grow = lambda x: np.pad(np.repeat(x, twice, 1), ((0, more), (0, 0), (0, more)))
    transition = grow(transition)
    transition[range(states, STATES), :, range(states, STATES)] = 1.0
    terminal = np.pad(np.zeros(states, bool) if terminal is None else terminal, (0, more))
    mdp = make_mdp(transition, grow(reward), 0.9, terminal=terminal)
    seen = (np.arange(STATES) < states) & ~terminal
    return types.SimpleNamespace(mdp=mdp, max_steps=max_steps, seen=seen, choice=actions > 1)


LINE = np.eye(11, k=1)[:, None]
LINE[10, 0, 10] = 1.0
PROBLEMS = {
    "one state": problem([[[1.0]]], [[1.0]]),
    "one step": problem([[[0, 1]], [[0, 1]]], [[1.0], [0.0]], [False, True]),
    "delayed reward": problem(
        [[[0, 1, 0, 0]], [[0, 0, 1, 0]], [[0, 0, 0, 1]], [[0, 0, 0, 1]]],
        [[0.0], [0.0], [1.0], [0.0]],
        [False, False, False, True],
    ),
    "policy-dependent": problem(
        [[[0, 1, 0], [0, 0, 1]], [[0, 0, 1], [0, 0, 1]], [[0, 0, 1], [0, 0, 1]]],
        [[0.0, 1.0], [2.0, -1.0], [0.0, 0.0]],
        [False, False, True],
    ),
    "stochastic reward": problem([[[0, 0.25, 0.75]]] * 3, [[[0.0, 4.0, 0.0]]] * 3, [False, True, True]),
    # Action 0 ends with 2, action 1 pays 0.5 and stays: worth 5 if the time limit of 1 step does not end the
    # return, and 0.5 if it did.
    "truncation decides": problem([[[0, 1], [1, 0]]] * 2, [[2.0, 0.5]] * 2, [False, True], max_steps=1),
    "a loop cut": problem([[[1.0]]], [[1.0]], max_steps=10),
    "a line that ends": problem(LINE, np.ones((11, 1)), np.arange(11) == 10),
}
LOOP = make_mdp([[[1.0]]], [[1.0]], 0.9)
CHAIN = make_mdp(
    [[[0, 1, 0], [0, 0, 1]], [[0, 0, 1], [0, 0, 1]], [[0, 0, 1], [0, 0, 1]]],
    [[0.0, 1.0], [2.0, -1.0], [0.0, 0.0]],
    0.9,
    terminal=[False, False, True],
)
SUPPORT = support_between(-2.0, 12.0, 57)
HPARAMS = DQNHParams(
    learning_rate=0.05, gamma=0.9, epsilon_end=0.5, epsilon_steps=2000, target_period=20, beta_steps=2000
)


def probe_actor(mdp, max_steps=100, num_envs=4, num_steps=2, **net):
    states, actions = mdp.transition.shape[:2]
    return make_value_actor(
        (TabularEnv(actions), TabularParams(mdp, max_steps)),
        make_q_net(actions, (), **net),
        num_envs=num_envs,
        num_steps=num_steps,
        preprocess=lambda s: jax.nn.one_hot(s, states),
    )


@functools.partial(jax.jit, static_argnums=(0, 2))
def q_table(actor, params, states):
    one = lambda s: actor.expected_values(actor.action_values(params, None, jax.nn.one_hot(s, states)))
    return jax.vmap(one)(jnp.arange(states))


OPTIONS = {
    "plain": (dict(), dict(), dict()),
    "huber, Polyak": (dict(), dict(loss=td_loss(huber)), dict(target_rate=0.1, target_period=1)),
    "double": (dict(), dict(double=True), dict()),
    "duelling": (dict(duelling=True), dict(), dict()),
    "prioritised": (dict(), dict(prioritised=True), dict()),
    "noisy": (dict(noisy=True), dict(), dict()),
    "categorical": (dict(support=SUPPORT), dict(loss=c51_loss(SUPPORT)), dict()),
    "quantiles": (dict(quantiles=8), dict(loss=quantile_loss), dict()),
    "Rainbow": (
        dict(duelling=True, noisy=True, support=SUPPORT),
        dict(double=True, prioritised=True, n_step=3, loss=c51_loss(SUPPORT)),
        dict(),
    ),
}


optimum = jax.jit(value_iteration)


@functools.cache
def solved(option, steps=2000):
    """Return what an option learns of every problem: name -> Q [STATES, 2]."""
    net, learner, hparams = OPTIONS[option]

    def solve(mdp, max_steps):
        actor = probe_actor(mdp, max_steps, **net)
        dqn = make_dqn(actor, capacity=8000, batch_size=32, warmup_steps=80, total_steps=steps, **learner)
        state, _ = train(dqn, steps)(jax.random.key(0), HPARAMS._replace(**hparams))
        return q_table(actor, state.params, STATES)

    mdps = jax.tree.map(lambda *x: jnp.stack(x), *(p.mdp for p in PROBLEMS.values()))
    limits = jnp.asarray([p.max_steps for p in PROBLEMS.values()])
    return dict(zip(PROBLEMS, np.asarray(jax.jit(jax.vmap(solve))(mdps, limits)), strict=True))


FAST = ("plain",)


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize(
    "option", [o if o in FAST else pytest.param(o, marks=pytest.mark.slow) for o in OPTIONS]
)
def test_every_option_finds_the_known_values(option, name):
    probe, q = PROBLEMS[name], solved(option)[name]
    exact = optimum(probe.mdp).q
    if option == "Rainbow" and probe.choice:
        exact = jnp.minimum(exact, q)  # n-step returns value what was played: never more than the best
    if "huber" in option and name == "stochastic reward":
        # Huber's loss asks for the q with 0.75 q = 0.25: neither the mean, 1, nor the median, 0.
        exact = jnp.full_like(exact, 1.0 / 3.0)
    tolerance = 0.2 if name == "stochastic reward" else 0.05
    np.testing.assert_allclose(q[probe.seen], exact[probe.seen], atol=tolerance)


def test_the_probes_values_are_the_known_ones():
    value = lambda name: optimum(PROBLEMS[name].mdp).q[0]
    known = {"one state": [10, 10], "one step": [1, 1], "delayed reward": [0.81, 0.81]}
    known |= {"policy-dependent": [1.8, 1.0], "stochastic reward": [1.0, 1.0], "a loop cut": [10, 10]}
    known |= {"truncation decides": [2.0, 5.0], "a line that ends": [6.513, 6.513]}
    for name, q in known.items():
        np.testing.assert_allclose(value(name), q, rtol=1e-3)


def transition(**changes):
    fields = dict(obs=0, action=1, reward=0.5, discount=0.9, next_obs=1, index=0, weight=1.0)
    return Sample(**{k: jnp.asarray(v) for k, v in (fields | changes).items()})


@pytest.mark.parametrize("double", [False, True])
def test_the_loss_of_a_transition_is_the_lectures(double):
    # A8, A9: y = r + gamma max Q; grad = -(y - Q) grad Q; nothing flows through y.
    actor = make_value_actor(make_tabular_environment(CHAIN), make_table(3, 2), num_envs=1, num_steps=1)
    online = jnp.array([[1.0, 2.0], [5.0, 3.0], [0.0, 0.0]])
    target = jnp.array([[1.0, 1.0], [2.0, 4.0], [0.0, 0.0]])
    one = transition_loss(actor, td_loss(squared), double=double)
    key = jax.random.key(0)
    error = 0.5 + 0.9 * (2.0 if double else 4.0) - 2.0
    loss, reported = one(online, target, None, transition(), key)
    np.testing.assert_allclose([loss, reported], [0.5 * error**2, error], rtol=1e-6)
    theirs = (
        double_q_error(online[0], 1, 0.5, 0.9, target[1], online[1])
        if double
        else q_learning_error(online[0], 1, 0.5, 0.9, target[1])
    )
    np.testing.assert_allclose(reported, theirs, rtol=1e-6)
    gradient = jax.grad(lambda *a: one(*a)[0], (0, 1))(online, target, None, transition(), key)
    np.testing.assert_allclose(gradient[0], jnp.zeros((3, 2)).at[0, 1].set(-error), rtol=1e-6)
    np.testing.assert_array_equal(gradient[1], 0.0)
    ended = one(online, target, None, transition(discount=0.0), key)[1]
    np.testing.assert_allclose(ended, 0.5 - 2.0)


@pytest.mark.parametrize("double", [False, True])
def test_every_forward_pass_of_a_noisy_net_draws_its_own_noise(double):
    """The online net's, the target's and, if it selects, the online net's on the next observation."""
    passes = []

    def action_values(params, frozen, obs, key=None):
        passes.append((params, int(obs), None if key is None else bits(key)[0]))
        return jnp.zeros(2)

    actor = Actor(None, None, None, action_values=action_values)
    one = transition_loss(actor, td_loss(squared), double=double)
    one("online", "target", None, transition(), jax.random.key(0))
    selects = [("online", 1)] if double else []
    assert [p[:2] for p in passes] == [("online", 0), ("target", 1), *selects]
    keys = [key for *_, key in passes]
    assert None not in keys and len(set(keys)) == len(keys)


def test_the_lectures_online_algorithm_learns_and_its_printed_sign_does_not():
    actor = make_value_actor(make_tabular_environment(CHAIN), make_table(3, 2), num_envs=1, num_steps=1)
    learner = jax.jit(train(make_online_q(actor), 3000))
    hparams = DQNHParams(learning_rate=0.1, gamma=0.9, epsilon_end=1.0)
    exact = optimum(CHAIN).q[:2]
    np.testing.assert_allclose(learner(jax.random.key(0), hparams)[0].params[:2], exact, atol=0.01)
    wrong = learner(jax.random.key(0), hparams._replace(learning_rate=-0.1))[0].params
    assert not np.all(np.abs(wrong[:2] - exact) < 10.0)


def test_one_online_step_by_hand():
    actor = make_value_actor(make_tabular_environment(LOOP), make_table(1, 1), num_envs=1, num_steps=3)
    learner = make_online_q(actor)
    hparams = DQNHParams(learning_rate=0.5, gamma=0.9)
    state, metrics = jax.jit(lambda key: learner.step(learner.init(key, hparams)))(jax.random.key(0))
    q = 0.0
    for _ in range(3):
        q += 0.5 * (1.0 + 0.9 * q - q)
    np.testing.assert_allclose(state.params, [[q]], rtol=1e-6)


PLAIN = make_dqn(probe_actor(CHAIN), capacity=80, batch_size=8, warmup_steps=20, updates=2)
plain_init, plain_step = jax.jit(PLAIN.init), jax.jit(PLAIN.step)


@pytest.mark.slow
def test_the_true_loss_falls_as_dqn_trains():
    # A7: sum over s, a of (Q* - Q)^2, computable because the process is known.
    actor, exact = probe_actor(CHAIN), optimum(CHAIN).q
    state, true_loss = plain_init(jax.random.key(0), HPARAMS), []
    for _ in range(5):
        true_loss.append(float(jnp.sum((q_table(actor, state.params, 3)[:2] - exact[:2]) ** 2)))
        for _ in range(100):
            state, _ = plain_step(state)
    assert true_loss[-1] < 0.01 * true_loss[0]


@pytest.mark.parametrize(("rate", "period"), [(1.0, 6), (0.25, 2)])
def test_the_target_net_is_copied_or_averaged(rate, period):
    state = plain_init(jax.random.key(0), HPARAMS._replace(target_rate=rate, target_period=period))
    expected = state.env_state.target
    assert bits(expected) == bits(state.params)
    for i in range(1, 8):
        state, _ = plain_step(state)
        if 2 * i % period == 0:
            expected = jax.tree.map(lambda t, p: (1 - rate) * t + rate * p, expected, state.params)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
            state.env_state.target,
            expected,
        )


def test_updates_alternate_with_experience_as_often_as_asked():
    state = plain_init(jax.random.key(0), HPARAMS)
    assert int(state.env_state.replay.filled) * 4 == 24  # 20 steps of 4 environments, in rollouts of 8
    for i in range(1, 4):
        state, metrics = plain_step(state)
        assert int(state.env_state.since_target) == 2 * i
        assert int(state.env_state.replay.filled) == 6 + 2 * i
    assert {m.shape for m in metrics.values()} == {()}
    size = memory_bytes(probe_actor(CHAIN), 80)
    assert size == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state.env_state.replay))


@pytest.mark.parametrize("played", [2**24, 2**31, 2**40])
def test_schedules_last_beyond_what_an_int32_counts(played):
    state = plain_init(jax.random.key(0), HPARAMS._replace(epsilon_end=0.05, beta_steps=2.0 * 2**40))
    steps = jnp.int32(min(played // 8, 2**31 - 1))
    state, metrics = plain_step(state._replace(step=steps))
    np.testing.assert_allclose(metrics["epsilon"], 0.05, rtol=1e-6)
    np.testing.assert_allclose(metrics["beta"], 0.4 + 0.6 * float(steps) * 8 / 2**41, rtol=1e-6)
    assert state.step == min(int(steps) + 1, 2**31 - 1)


@pytest.mark.parametrize("rollouts", [2**24 + 1, 2**31 - 1])
def test_a_bad_reward_is_found_however_late(rollouts):
    reward = jnp.ones((4, 5)).at[2, 3].set(jnp.inf)
    none = jnp.full(3, -1, jnp.int32)
    np.testing.assert_array_equal(_first_bad(none, reward, jnp.int32(rollouts)), [2, rollouts, 3])


def test_epsilon_and_beta_follow_their_schedules():
    hparams = HPARAMS._replace(epsilon_end=0.1, epsilon_steps=32, beta_start=0.4, beta_steps=64)
    state = plain_init(jax.random.key(0), hparams)
    for k in range(0, 80, 8):
        state, metrics = plain_step(state)
        assert float(metrics["epsilon"]) == pytest.approx(max(1 - 0.9 * k / 32, 0.1), rel=1e-5)
        assert float(metrics["beta"]) == pytest.approx(min(0.4 + 0.6 * k / 64, 1.0), rel=1e-5)


def test_a_schedule_of_no_steps_is_at_its_end_at_once():
    state = plain_init(jax.random.key(0), HPARAMS._replace(epsilon_end=0.1, epsilon_steps=0, beta_steps=0))
    for _ in range(2):
        state, metrics = plain_step(state)
        np.testing.assert_allclose([metrics["epsilon"], metrics["beta"]], [0.1, 1.0], rtol=1e-6)


@pytest.mark.parametrize("updates", [1, 2])
def test_a_raw_key_serves(updates):
    learner = make_dqn(probe_actor(CHAIN), capacity=80, batch_size=8, warmup_steps=20, updates=updates)
    state, _ = jax.eval_shape(lambda key: train(learner, 2)(key, HPARAMS), jax.random.PRNGKey(0))
    assert state.key.shape == (2,) and state.key.dtype == jnp.uint32


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float64])
def test_parameters_of_another_precision_stay_it(dtype):
    """Traced: a scan refuses what changes its type."""
    with jax.enable_x64(dtype == jnp.float64):
        net = make_q_net(2, (4,))
        cast = lambda *given: jax.tree.map(lambda x: x.astype(dtype), net.init(*given))
        actor = make_value_actor("CartPole-v1", net._replace(init=cast), num_envs=4, num_steps=2)
        for learner in (make_dqn(actor, capacity=80, batch_size=8, warmup_steps=20), make_online_q(actor)):
            state, _ = jax.eval_shape(lambda: train(learner, 2)(jax.random.key(0), HPARAMS))  # noqa: B023
            assert {x.dtype for x in jax.tree.leaves(state.params)} == {jnp.dtype(dtype)}


def small(option):
    net, learner, _ = OPTIONS[option]
    return make_dqn(
        probe_actor(CHAIN, 5, num_envs=2, **net), capacity=40, batch_size=8, warmup_steps=16, **learner
    )


ONE_AND_ALL = pytest.mark.parametrize("option", ["plain", pytest.param("Rainbow", marks=pytest.mark.slow)])


@pytest.mark.slow
@pytest.mark.parametrize("option", ["plain", "Rainbow"])
def test_a_grid_of_seeds_and_hyperparameters_compiles_once_and_equals_single_runs(option):
    learner = PLAIN if option == "plain" else small(option)
    init, step = (plain_init, plain_step) if option == "plain" else map(jax.jit, learner)
    grid = jax.jit(jax.vmap(jax.vmap(train(learner, 5), (0, None)), (None, 0)))
    keys = jax.random.split(jax.random.key(1), 8)
    for scale in (2.0, 1.0):
        hparams = jax.tree.map(lambda x: x * scale * jnp.linspace(0.5, 1.0, 7), HPARAMS)  # noqa: B023
        together, _ = grid(keys, hparams)
    assert grid._cache_size() == 1
    weights = lambda params, *shape: np.concatenate(
        [np.reshape(x, (*shape, -1)) for x in jax.tree.leaves(params)], -1
    )
    learnt = weights(together.params, 7, 8)
    actions = np.asarray(together.env_state.replay.data.action)
    assert len(np.unique(learnt[0], axis=0)) == len(np.unique(actions[0], axis=0)) == 8
    assert len(np.unique(learnt[:, 0], axis=0)) == 7
    alone = init(keys[5], jax.tree.map(lambda x: x[3], hparams))
    for _ in range(5):
        alone, _ = step(alone)
    np.testing.assert_array_equal(actions[3, 5], alone.env_state.replay.data.action)
    np.testing.assert_allclose(learnt[3, 5], weights(alone.params), rtol=1e-4, atol=1e-5)


def test_a_grid_of_the_online_algorithm_compiles_once():
    actor = make_value_actor(make_tabular_environment(CHAIN), make_table(3, 2), num_envs=2, num_steps=1)
    grid = jax.jit(jax.vmap(jax.vmap(train(make_online_q(actor), 9), (0, None)), (None, 0)))
    keys = jax.random.split(jax.random.key(1), 8)
    for scale in (0.5, 1.0):
        hparams = jax.tree.map(lambda x: x * scale * jnp.linspace(0.5, 1.0, 7), HPARAMS)  # noqa: B023
        learnt = np.asarray(grid(keys, hparams)[0].params)
    assert grid._cache_size() == 1
    assert len(np.unique(learnt[-1].reshape(8, -1), axis=0)) > 1
    assert len(np.unique(learnt[:, 0].reshape(7, -1), axis=0)) == 7


@pytest.mark.parametrize("x64", [False, True])
def test_either_precision_and_no_key_twice(x64):
    # Both checks read the traced program; nothing needs to run.
    with jax.enable_x64(x64), jax.debug_key_reuse(True):
        for learner in (small("Rainbow"), make_online_q(probe_actor(CHAIN))):
            jax.jit(train(learner, 2)).trace(jax.random.key(0), HPARAMS)


EMBEDDED = [name for name in gymnax.registered_envs if name != "MNISTBandit-bsuite"]  # it needs a download


@pytest.mark.slow
@pytest.mark.parametrize("name", EMBEDDED)
@jax.numpy_rank_promotion("allow")  # Swimmer relies on it
def test_every_environment_is_learnt_in_or_refused_for_its_actions(name):
    environment, env_params = envs.make_environment(name)
    space = environment.action_space(env_params)
    net = make_q_net(getattr(space, "n", 1), (8,))
    if not hasattr(space, "n"):
        with pytest.raises(ValueError, match="expected a discrete action space"):
            make_value_actor(name, net, num_envs=2, num_steps=2)
        return
    actor = make_value_actor(name, net, num_envs=2, num_steps=2)
    dqn = make_dqn(actor, capacity=16, batch_size=4, warmup_steps=8, n_step=2)
    state, metrics = jax.jit(train(dqn, 2))(jax.random.key(0), DQNHParams())
    check_rewards(state)
    assert np.isfinite(metrics["loss"]).all()


@pytest.mark.slow
@ONE_AND_ALL
def test_a_resumed_run_ends_in_the_same_bits(option, tmp_path):
    learner = PLAIN if option == "plain" else small(option)
    start = (plain_init if option == "plain" else jax.jit(learner.init))(jax.random.key(0), HPARAMS)
    go = functools.partial(run, learner.step, start, 6, chunk=3, progress=False)
    whole, history = go(folder=open_run(tmp_path, {}), checkpoint_every=3)
    (tmp_path / "checkpoint_000000006.npz").unlink()  # as if interrupted after step 3
    resumed, again = go(folder=open_run(tmp_path, {}, resume=True))
    assert bits(whole) == bits(resumed)
    assert bits(history) == bits(again)


def cliffwalk(n):
    """Blind Cliffwalk (Schaul et al. 2016): one of two actions goes on; the last step pays 1."""
    transition = np.zeros((n + 1, 2, n + 1))
    for s in range(n):
        right = s % 2
        transition[s, right, s + 1] = 1.0
        transition[s, 1 - right, n] = 1.0
    transition[n, :, n] = 1.0
    reward = np.zeros((n + 1, 2, n + 1))
    reward[n - 1, (n - 1) % 2, n] = 1.0
    return make_mdp(transition, reward, 1.0 - 1.0 / n, terminal=np.arange(n + 1) == n)


def updates_to_solve(prioritised, n=8, limit=40_000):
    mdp = cliffwalk(n)
    actor = make_value_actor(make_tabular_environment(mdp), make_table(n + 1, 2), num_envs=1, num_steps=1)
    exact, one = optimum(mdp).q, transition_loss(actor, td_loss(squared))
    rows = 2 ** (n + 1)
    replay = make_replay(rows, 1, prioritised=prioritised)

    def member(key):
        key_play, key_learn = jax.random.split(key)
        walk = make_value_actor(
            make_tabular_environment(mdp), make_table(n + 1, 2), num_envs=1, num_steps=rows
        )
        _, played, _ = walk.rollout(
            exact * 0, None, walk.init_env(key_play, None), key_learn, Exploration(1.0), None
        )
        memory = replay.add(replay.init(jax.tree.map(lambda x: x[0, 0], played)), played)

        def body(carry):
            q, memory, key, count = carry
            key, key_draw = jax.random.split(key)
            batch = replay.sample(memory, key_draw, mdp.gamma, 1.0)
            row = jax.tree.map(lambda x: x[0], batch)
            (_, error), grads = jax.value_and_grad(one, has_aux=True)(q, q, None, row, key_draw)
            return q - 0.25 * grads, replay.update(memory, batch.index, error[None], 1.0), key, count + 1

        wrong = lambda c: (jnp.mean((c[0] - exact)[:n] ** 2) > 1e-3) & (c[3] < limit)
        return jax.lax.while_loop(wrong, body, (exact * 0, memory, key, 0))[3]

    return np.asarray(jax.jit(jax.vmap(member))(jax.random.split(jax.random.key(0), 8)))


@pytest.mark.optimised
@pytest.mark.slow
def test_prioritised_replay_needs_fewer_updates_on_the_blind_cliffwalk():
    uniform, prioritised = updates_to_solve(False), updates_to_solve(True)
    assert np.median(prioritised) < 0.6 * np.median(uniform)


class Poisoned:
    """An environment whose reward is NaN in the step from time 3, in the copies that start with obs 1."""

    def __init__(self, inner):
        self.inner = inner

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def step(self, key, state, action, params):
        obs, after, reward, *rest = self.inner.step(key, state, action, params)
        return obs, after, jnp.where((state.time == 3) & (state.position == 1), jnp.nan, reward), *rest


@pytest.mark.parametrize(
    "make", [lambda a: make_dqn(a, capacity=80, batch_size=8, warmup_steps=8), make_online_q]
)
def test_a_nan_reward_is_named_and_nothing_is_learnt_from_it(make, tmp_path):
    still = make_mdp(np.eye(2)[:, None].repeat(1, 1), np.ones((2, 1)), 0.9, start=[0.5, 0.5])
    environment, params = make_tabular_environment(still)
    actor = make_value_actor(
        (Poisoned(environment), params),
        make_q_net(1, ()),
        num_envs=4,
        num_steps=1,
        preprocess=lambda s: jax.nn.one_hot(s, 2),
    )
    learner = make(actor)
    state, step = jax.jit(learner.init)(jax.random.key(0), HPARAMS), jax.jit(learner.step)
    position = np.asarray(state.env_state.envs.envs.state.position)
    before = healthy = state
    while int(state.env_state.first_bad[0]) < 0:
        check_rewards(state)
        before, (state, metrics) = state, step(state)
    first = f"environment {np.argmax(position == 1)}, rollout 3, step 0 of it"
    with pytest.raises(FloatingPointError, match=first):
        check_rewards(state)
    assert np.isnan(metrics["loss"])
    for _ in range(3):
        state, _ = step(state)
    assert bits((state.params, state.opt_state)) == bits((before.params, before.opt_state))
    with pytest.raises(FloatingPointError, match=first):
        check_rewards(state)
    members = jax.tree.map(lambda *x: jnp.stack(x), healthy, state)
    with pytest.raises(FloatingPointError, match=f"at member 1: {first}"):
        check_rewards(members)
    if make is make_online_q:
        with pytest.raises(FloatingPointError, match=first):
            run(learner.step, healthy, 9, progress=False, on_chunk=lambda _, s, m: check_rewards(s))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(capacity=8, batch_size=16), "capacity must be at least batch_size"),
        (dict(capacity=80, batch_size=8, n_step=21), "n_step must be at most the rows"),
        (dict(capacity=84, batch_size=8), "try capacity=88"),
        (dict(capacity=80, batch_size=8, updates=0), "updates must be a whole number of at least 1; got 0"),
        (dict(capacity=80, batch_size=8, warmup_steps=-1), "warmup_steps must be at least 0"),
    ],
)
def test_sizes_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_dqn(probe_actor(LOOP), **arguments)


@pytest.mark.slow
def test_the_largest_window_fits():
    dqn = make_dqn(probe_actor(LOOP), capacity=80, batch_size=8, n_step=20, warmup_steps=0)
    state, metrics = jax.jit(lambda key: dqn.step(dqn.init(key, HPARAMS)))(jax.random.key(0))
    assert np.isfinite(metrics["loss"])


def test_a_termination_not_masked_inflates_the_value():
    # A11's ablation: the same transition, with the discount that a missing mask would leave.
    actor = make_value_actor(make_tabular_environment(LOOP), make_table(1, 1), num_envs=1, num_steps=1)
    one = transition_loss(actor, td_loss(squared))
    gradient = jax.jit(jax.grad(lambda *a: one(*a)[0]))

    def learn(discount):
        q = jnp.zeros((1, 1))
        again = transition(action=0, reward=1.0, discount=discount, next_obs=0)
        for _ in range(60):
            q = q - 0.5 * gradient(q, q, None, again, jax.random.key(0))
        return float(q[0, 0])

    assert learn(0.0) == pytest.approx(1.0, abs=1e-3)
    assert learn(0.9) > 5.0


def test_transitions_are_what_was_played():
    line = make_mdp(
        np.eye(4, k=1)[:, None] + np.eye(4)[3][:, None, None] * np.eye(4)[3], np.ones((4, 1)), 0.9
    )
    actor = make_value_actor(make_tabular_environment(line, 2), make_table(4, 1), num_envs=2, num_steps=4)
    play = jax.jit(
        lambda a, b: actor.rollout(
            jnp.zeros((4, 1)), None, actor.init_env(a, None), b, Exploration(1.0), None
        )
    )
    _, played, metrics = play(jax.random.key(0), jax.random.key(1))
    assert isinstance(played, Transition)
    for lane in range(2):
        np.testing.assert_array_equal(played.obs[lane], [0, 1, 0, 1])
        np.testing.assert_array_equal(played.next_obs[lane], [1, 2, 1, 2])
        np.testing.assert_array_equal(played.truncated[lane], [False, True, False, True])
        assert not played.terminated.any()
    assert int(metrics["episodes"]) == 4


def test_a_support_is_even_as_far_as_its_precision_goes():
    for kind in (jnp.bfloat16, jnp.float16, jnp.float32):
        c51_loss(support_between(-10.0, 10.0, 51).astype(kind))
