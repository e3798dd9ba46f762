import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from jaxrl_align.rl import replay as module
from jaxrl_align.rl.replay import make_replay, replay_bytes
from jaxrl_align.types import Transition

EXAMPLE = Transition(*map(jnp.asarray, (0.0, 0, 0.0, False, False, 0.0)))


def steps(first, count, lanes=1, terminated=(), truncated=()):
    """Steps number first, first + 1, ...; step s of lane b has obs s + b / 10, reward 2^(s mod 7)."""
    number = np.arange(first, first + count)[None] + np.zeros(lanes)[:, None]
    obs = jnp.asarray(number + np.arange(lanes)[:, None] / 10, jnp.float32)
    return Transition(
        obs,
        jnp.asarray(number, jnp.int32),
        jnp.asarray(2.0 ** (number % 7), jnp.float32),
        jnp.asarray(np.isin(number, terminated)),
        jnp.asarray(np.isin(number, truncated)),
        obs + 0.5,
    )


def fill(replay, rounds, count=1, lanes=1, **ends):
    state = replay.init(EXAMPLE)
    add = jax.jit(replay.add)
    for i in range(rounds):
        state = add(state, steps(i * count, count, lanes, **ends))
    return state


@functools.partial(jax.jit, static_argnums=(0, 2))
def many_samples(replay, state, num):
    return jax.vmap(lambda k: replay.sample(state, k, 0.9, 1.0))(jax.random.split(jax.random.key(0), num))


def draws(replay, state, num):
    sample = many_samples(replay, state, num)
    return jax.tree.map(lambda x: np.asarray(x).reshape(-1, *x.shape[2:]), sample)


tree_set = jax.jit(module._tree_set)


def leaves(state):
    return np.asarray(state.sums[0]).ravel()


@settings(max_examples=15, deadline=None)
@given(rounds=st.integers(1, 12), count=st.sampled_from([1, 2, 3]), lanes=st.sampled_from([1, 2]))
def test_the_ring_holds_the_most_recent_first_in_first_out(rounds, count, lanes):
    rows = 6
    state = fill(make_replay(rows * lanes, 2, lanes=lanes), rounds, count, lanes)
    newest = rounds * count
    kept = {i + b / 10 for i in range(max(0, newest - rows), newest) for b in range(lanes)}
    held = np.asarray(state.data.obs)[: min(newest, rows) * lanes]
    np.testing.assert_allclose(sorted(held.tolist()), sorted(kept), rtol=1e-6)
    assert int(state.filled) == min(newest, rows)


@pytest.mark.parametrize("rounds", [3, 7])
def test_uniform_draws_are_uniform_before_and_after_the_wrap(rounds):
    replay = make_replay(40, 40, lanes=4)
    state = fill(replay, rounds, 2, 4)
    count = np.bincount(draws(replay, state, 2000).index, minlength=40)
    valid = min(rounds * 2, 10) * 4
    assert (count > 0).sum() == valid
    assert chisquare(count[count > 0]).pvalue > 1e-4


def test_randint_is_the_high_half_of_the_product():
    bound = jnp.asarray([1, 7, 65_537, 1_000_003, 2**31 - 1], jnp.int32)
    key = jax.random.key(3)
    bits = np.asarray(jax.random.bits(key, (1000,), jnp.uint32)).astype(np.uint64)
    for b in bound:
        expected = (bits * np.uint64(int(b))) >> np.uint64(32)
        np.testing.assert_array_equal(module._randint(key, 1000, b), expected)


def expected_window(start, n, gamma, terminated, truncated):
    reward, length, discount = 0.0, 0, 1.0
    for k in range(n):
        reward += discount * 2.0 ** ((start + k) % 7)
        discount *= gamma
        length += 1
        if start + k in terminated:
            return reward, 0.0, start + k + 0.5
        if start + k in truncated:
            break
    return reward, discount, start + length - 1 + 0.5


@pytest.mark.parametrize("prioritised", [False, True])
@pytest.mark.parametrize(("n", "count"), [(1, 1), (3, 4), (8, 2)])
def test_windows_end_with_the_episode_and_cross_no_write_head(prioritised, n, count):
    terminated, truncated, rows, total = (5, 14, 21), (9, 18), 8, 24
    replay = make_replay(rows * 2, 16, lanes=2, n_step=n, prioritised=prioritised)
    for rounds in range(-(-n // count), total // count + 1):
        state = fill(replay, rounds, count, 2, terminated=terminated, truncated=truncated)
        sample = draws(replay, state, 20)
        newest = rounds * count
        starts = {(s, b) for s in range(max(0, newest - rows), newest - n + 1) for b in range(2)}
        lane = np.round((sample.obs - sample.action) * 10).astype(int)
        assert set(zip(sample.action.tolist(), lane.tolist(), strict=True)) <= starts
        wanted = np.array([expected_window(s, n, 0.9, terminated, truncated) for s in sample.action])
        got = np.stack([sample.reward, sample.discount, sample.next_obs - lane / 10], 1)
        np.testing.assert_allclose(got, wanted, rtol=1e-5)
        if prioritised:
            assert (leaves(state) > 0).sum() == len(starts)


def test_a_rollout_as_long_as_the_replay_leaves_only_its_own_windows():
    replay = make_replay(4, 2, n_step=3, prioritised=True)
    state = fill(replay, 3, 4)
    np.testing.assert_array_equal(leaves(state)[:4] > 0, [True, True, False, False])


@pytest.mark.parametrize("capacity", [10, 5000])
def test_the_tree_holds_the_sums_of_its_leaves_exactly_as_a_loop(capacity):
    replay = make_replay(capacity, 8, prioritised=True)
    state = fill(replay, 1, capacity)
    rng = np.random.default_rng(0)
    reference = np.where(np.arange(leaves(state).size) < capacity, 1.0, 0.0)
    for _ in range(5):
        index, error = rng.integers(capacity, size=8), rng.exponential(size=8)
        index, first = np.unique(index, return_index=True)
        index, error = np.resize(index, 8), np.resize(error[first], 8)  # repeats are allowed
        state = jax.jit(replay.update)(state, jnp.asarray(index), jnp.asarray(error), 0.6)
        reference[index] = (np.abs(error) + 1e-6) ** 0.6
    np.testing.assert_allclose(leaves(state), reference, rtol=1e-5)
    for below, above in zip(state.sums, state.sums[1:], strict=False):
        np.testing.assert_allclose(np.asarray(above).ravel()[: below.shape[0]], below.sum(1), rtol=1e-6)
    assert state.sums[-1].shape == (1, 16)


@functools.cache
def prioritised_after_wrap():
    """A replay of 3000 after one and a third turns, priorities over six orders of magnitude, zeros too."""
    replay = make_replay(3000, 500, prioritised=True)
    state = fill(replay, 4, 1000)
    error = 10.0 ** np.random.default_rng(1).uniform(-3, 3, size=3000)
    state = replay.update(state, jnp.arange(3000), jnp.asarray(error, jnp.float32), 0.6)
    zero = jnp.arange(0, 3000, 7)
    sums = tree_set(state.sums, zero, jnp.zeros(zero.shape))
    return replay, state._replace(sums=sums), np.where(np.arange(3000) % 7 == 0, 0.0, (error + 1e-6) ** 0.6)


@pytest.mark.parametrize("batches", [400, pytest.param(2000, marks=pytest.mark.slow)])
def test_a_million_prioritised_draws_follow_p_to_the_alpha(batches):
    replay, state, weight = prioritised_after_wrap()
    count = np.bincount(draws(replay, state, batches).index, minlength=3000)
    assert count.sum() == batches * 500
    expected = weight / weight.sum() * count.sum()
    assert count[weight == 0].sum() == 0
    # Rare items are pooled, so that the statistic has its distribution.
    rare = expected < 20
    observed = np.append(count[~rare], count[rare].sum())
    assert chisquare(observed, np.append(expected[~rare], expected[rare].sum())).pvalue > 1e-4


def test_importance_weights_give_back_the_uniform_gradient():
    # E_P[w g] is proportional to the uniform mean of g at beta = 1 (Schaul 2016, 3.4): w = (N P)^-1.
    replay, state, weight = prioritised_after_wrap()
    uniform = state._replace(sums=tree_set(state.sums, jnp.arange(3000), jnp.asarray(weight + 1.0)))
    sample = draws(replay, uniform, 400)
    probability = (weight + 1.0) / (weight + 1.0).sum()
    value = np.sin(np.arange(3000))
    raw = (3000 * probability[sample.index]) ** -1.0
    batches = raw.reshape(400, 500)
    np.testing.assert_allclose(sample.weight, (batches / batches.max(1, keepdims=True)).ravel(), rtol=1e-3)
    estimate = raw * value[sample.index]
    error = abs(estimate.mean() - value.mean()) / (estimate.std() / np.sqrt(estimate.size))
    assert error < 4
    unweighted = value[sample.index]
    bias = abs(unweighted.mean() - value.mean()) / (unweighted.std() / np.sqrt(unweighted.size))
    assert bias > 4 or abs(probability @ value - value.mean()) < 1e-3


def test_beta_zero_leaves_the_gradient_unweighted_and_alpha_zero_draws_uniformly():
    replay = make_replay(30, 30, prioritised=True)
    state = fill(replay, 1, 30)
    state = replay.update(state, jnp.arange(30), jnp.linspace(0.0, 9.0, 30), 0.0)
    np.testing.assert_allclose(leaves(state)[:30], 1.0)
    state = replay.update(state, jnp.arange(30), jnp.linspace(0.1, 9.0, 30), 0.6)
    np.testing.assert_array_equal(replay.sample(state, jax.random.key(0), 0.9, 0.0).weight, 1.0)


def test_zero_priorities_beside_large_ones_are_never_drawn():
    # A million in one leaf makes float32 sums blind to what lies beside it; the walk must still not stray.
    replay = make_replay(4096, 256, prioritised=True)
    state = fill(replay, 1, 4096)
    weight = jnp.where(jnp.arange(4096) % 5 == 0, 10.0 ** (jnp.arange(4096) % 11 - 5.0), 0.0)
    state = state._replace(sums=tree_set(state.sums, jnp.arange(4096), weight))
    drawn = draws(replay, state, 400).index
    assert np.all(drawn % 5 == 0)


def test_new_transitions_enter_with_the_largest_priority():
    replay = make_replay(8, 2, prioritised=True)
    state = fill(replay, 1, 4)
    state = replay.update(state, jnp.array([1]), jnp.array([9.0]), 0.5)
    state = replay.add(state, steps(4, 1))
    np.testing.assert_allclose(leaves(state)[:5], [1, 3, 1, 1, 3], rtol=1e-5)


@pytest.mark.parametrize("wild", [jnp.nan, jnp.inf, -jnp.inf, 3e38])
def test_an_error_that_is_not_finite_spoils_no_draw(wild):
    replay = make_replay(64, 32, prioritised=True)
    state = replay.update(fill(replay, 1, 64), jnp.array([5]), jnp.array([9.0]), 1.0)
    state = replay.update(state, jnp.array([3, 7]), jnp.array([wild, 2.0]), 1.0)
    np.testing.assert_allclose(leaves(state)[[3, 5, 7, 8]], [9.0, 9.0, 2.0, 1.0], rtol=1e-5)
    assert state.largest == pytest.approx(9.0)
    drawn = draws(replay, state, 50)
    assert len(set(drawn.index)) == 64 and np.isfinite(drawn.weight).all()
    assert 0.1 < np.mean(drawn.index == 3) < 0.14  # 9 of 80


@pytest.mark.parametrize("prioritised", [False, True])
def test_a_draws_work_does_not_grow_with_the_memory(prioritised):
    def sizes(jaxpr):
        for equation in jaxpr.eqns:
            yield from (x.aval.size for x in equation.outvars)
            for inner in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns")):
                if hasattr(inner, "eqns"):
                    yield from sizes(getattr(inner, "jaxpr", inner))

    def work(capacity):
        replay = make_replay(capacity, 32, n_step=3, prioritised=prioritised)
        state = jax.eval_shape(replay.init, EXAMPLE)
        draw = jax.make_jaxpr(lambda s, key: replay.sample(s, key, 0.9, 0.5))
        return list(sizes(draw(state, jax.random.key(0)).jaxpr))

    assert work(10_000) == work(1_000_000)
    assert max(work(10_000)) <= 32 * 16


@pytest.mark.parametrize("prioritised", [pytest.param(False, marks=pytest.mark.slow), True])
def test_members_of_a_vmap_equal_single_runs(prioritised):
    replay = make_replay(32, 4, lanes=2, n_step=2, prioritised=prioritised)

    def life(key):
        state = replay.init(EXAMPLE)

        def body(state, key):
            key_draw, key_error = jax.random.split(key)
            state = replay.add(state, steps(0, 2, 2))
            sample = replay.sample(state, key_draw, 0.9, 0.5)
            error = jax.random.exponential(key_error, (4,))
            return replay.update(state, sample.index, error, 0.6), sample

        return jax.lax.scan(body, state, jax.random.split(key, 20))[1]

    keys = jax.random.split(jax.random.key(0), 3)
    together = jax.jit(jax.vmap(life))(keys)
    for i in range(3):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6),
            jax.tree.map(lambda x: x[i], together),  # noqa: B023
            jax.jit(life)(keys[i]),
        )


@pytest.mark.parametrize("prioritised", [False, True])
def test_bytes_are_stated_before_they_are_taken(prioritised):
    shape = Transition(*(jax.ShapeDtypeStruct(x.shape, x.dtype) for x in EXAMPLE))
    wide = shape._replace(obs=jax.ShapeDtypeStruct((10, 10, 4), bool))
    stated = replay_bytes(wide, 1000, prioritised=prioritised)
    state = jax.eval_shape(make_replay(1000, 4, prioritised=prioritised).init, wide)
    assert stated == sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(state))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(capacity=8, batch_size=9), "capacity must be at least batch_size; got capacity=8"),
        (dict(capacity=10, batch_size=2, lanes=4), "try capacity=12"),
        (dict(capacity=8, batch_size=2, lanes=2, n_step=5), "n_step must be at most the rows"),
        (dict(capacity=8, batch_size=0), "batch_size must be at least 1"),
        (dict(capacity=8, batch_size=2, n_step=0), "n_step must be at least 1"),
    ],
)
def test_sizes_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_replay(**arguments)


def test_steps_that_do_not_divide_the_rows_are_refused():
    with pytest.raises(ValueError, match="try capacity=9"):
        fill(make_replay(7, 2), 1, 3)


def test_a_fresh_state_may_be_donated():
    replay = make_replay(8, 2)
    state = jax.jit(replay.add, donate_argnums=0)(replay.init(EXAMPLE), steps(0, 1))
    assert int(state.filled) == 1
