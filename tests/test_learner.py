import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_align.align import DirectHParams, RewardHParams, RLHFHParams, RoundsHParams
from jaxrl_align.checks import check_hparams
from jaxrl_align.learner import (
    cosine_decay,
    descend,
    epochs,
    linear_decay,
    make_gradient_learner,
    make_optimizer,
    offload,
    permutations,
    train,
)
from tests.tiny import bits


class HParams(NamedTuple):
    learning_rate: float = 0.1


def square(params, frozen, batch, key, hparams):
    """Pull the parameters to the batch's mean."""
    error = params - jnp.mean(batch, 0)
    return 0.5 * jnp.sum(error**2), {"largest": jnp.max(jnp.abs(error))}


def sample(key):
    return 3.0 + jax.random.normal(key, (4, 2))


def make(**options):
    return make_gradient_learner(lambda key: jax.random.normal(key, (2,)), square, sample, **options)


@pytest.mark.parametrize(
    ("step", "total", "warmup", "expected"),
    [
        (0, 10, 0, 1.0),
        (1, 10, 0, 0.9),
        (9, 10, 0, 0.1),
        (10, 10, 0, 0.0),
        (25, 10, 0, 0.0),
        (0, None, 0, 1.0),
        (10**6, None, 0, 1.0),
        (0, 10, 4, 0.2),
        (3, 10, 4, 0.8),
        (4, 10, 4, 1.0),
        (7, 10, 4, 0.5),
        (10, 10, 4, 0.0),
        (2, None, 3, 0.75),
        (9, None, 3, 1.0),
        (0, 1, 0, 1.0),
        (1, 1, 0, 0.0),
    ],
)
def test_the_learning_rates_factor(step, total, warmup, expected):
    """Linear, to 0."""
    for call in (linear_decay, jax.jit(linear_decay, static_argnums=(1, 2))):
        got = call(jnp.int32(step), total, warmup)
        assert got.dtype == jnp.float32 and got.shape == ()
        np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize(
    ("step", "total", "warmup", "final", "expected"),
    [
        (0, 10, 0, 0.1, 1.0),
        (5, 10, 0, 0.1, 0.55),  # halfway: the mean of 1 and a tenth
        (10, 10, 0, 0.1, 0.1),
        (25, 10, 0, 0.1, 0.1),
        (10, 10, 0, 0.0, 0.0),
        (0, 10, 4, 0.1, 0.2),
        (4, 10, 4, 0.1, 1.0),
        (6, 10, 4, 0.0, 0.75),  # a third of the way: (1 + cos 60) / 2
        (8, 10, 4, 0.0, 0.25),
        (9, None, 3, 0.1, 1.0),
    ],
)
def test_the_cosines_factor(step, total, warmup, final, expected):
    got = cosine_decay(jnp.int32(step), total, warmup, final=final)
    assert got.dtype == jnp.float32 and got.shape == ()
    np.testing.assert_allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize(("decay", "half", "last"), [(linear_decay, 0.5, 0.0), (cosine_decay, 0.55, 0.1)])
@pytest.mark.parametrize("total", [2**24, 2**31 - 1])
def test_a_schedule_ends_where_it_says_however_long(decay, half, last, total):
    for step, expected in [(total // 2, half), (total, last), (2**31 - 1, last)]:
        np.testing.assert_allclose(decay(jnp.int32(step), total), expected, atol=1e-6)


def test_the_count_of_steps_stays_at_the_largest_int32():
    learner = make()
    state = learner.init(jax.random.key(0), HParams())._replace(step=jnp.int32(2**31 - 1))
    state, metrics = learner.step(state)
    assert state.step == 2**31 - 1 and metrics["learning_rate"] == jnp.float32(0.1)


def test_a_learner_follows_the_cosine():
    learner = make(total_steps=4, decay=functools.partial(cosine_decay, final=0.5))
    _, metrics = jax.jit(train(learner, 6))(jax.random.key(0), HParams(0.1))
    half = 0.75 + 0.25 * np.cos(np.pi * np.array([0, 0.25, 0.5, 0.75, 1.0, 1.0]))
    np.testing.assert_allclose(metrics["learning_rate"], 0.1 * half, rtol=1e-6)


def test_weights_decay_as_in_adamw_and_biases_and_scales_do_not():
    """Two steps against optax.adamw; layers that are stacked give biases two axes."""
    params = {
        "layers": {
            "up": {"kernel": jnp.ones((2, 3, 4)), "bias": jnp.ones((2, 4))},
            "norm": {"scale": jnp.ones((2, 3))},
        }
    }
    grads = jax.tree.map(lambda x: jnp.linspace(-1, 1, x.size).reshape(x.shape), params)
    got, want, plain = params, params, params
    ours = make_optimizer(max_grad_norm=None, eps=1e-8, weight_decay=0.1)
    theirs = optax.adamw(0.01, weight_decay=0.1)
    without = make_optimizer(max_grad_norm=None, eps=1e-8)
    states = [optimizer.init(params) for optimizer in (ours, theirs, without)]
    for _ in range(2):
        got, states[0] = descend(ours, grads, states[0], got, 0.01)
        updates, states[1] = theirs.update(grads, states[1], want)
        want = optax.apply_updates(want, updates)
        plain, states[2] = descend(without, grads, states[2], plain, 0.01)
    np.testing.assert_allclose(got["layers"]["up"]["kernel"], want["layers"]["up"]["kernel"], rtol=1e-6)
    assert bits(got["layers"]["up"]["bias"]) == bits(plain["layers"]["up"]["bias"])
    assert bits(got["layers"]["norm"]) == bits(plain["layers"]["norm"])
    assert bits(got["layers"]["up"]["kernel"]) != bits(plain["layers"]["up"]["kernel"])


def names_decay():
    """Return an update rule for parameters named "weight" alone."""
    return optax.add_decayed_weights(0.1, mask={"weight": True})


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.adam(3e-4),
        optax.sgd(1.0, momentum=0.9),
        optax.adamw(optax.linear_schedule(0.0, 1e-3, 10)),  # its first step is of length 0
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.1)),
    ],
)
def test_an_optimiser_with_its_own_rate_is_refused(optimizer):
    for build in (
        lambda: make(optimizer=optimizer),
        lambda: jax.eval_shape(lambda: make(optimizer=optimizer)),
    ):
        with pytest.raises(ValueError, match=r"optax.scale_by_adam\(\), not optax.adam\(rate\)"):
            build()


@pytest.mark.parametrize(
    "optimizer",
    [
        optax.identity(),
        optax.trace(0.9),
        optax.scale_by_schedule(lambda step: step),  # 0 at first
        optax.add_noise(10.0, 0.5, 3),
        make_optimizer(weight_decay=0.1),
        offload(make_optimizer()),
        names_decay(),
    ],
)
def test_an_optimiser_that_leaves_its_rate_out_is_taken(optimizer):
    make(optimizer=optimizer)


def test_an_optimiser_of_traced_numbers_is_taken():
    def run(b1):
        return train(make(optimizer=optax.scale_by_adam(b1=b1)), 2)(jax.random.key(0), HParams())[1]["loss"]

    assert jax.jit(jax.vmap(run))(jnp.array([0.5, 0.9])).shape == (2, 2)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_stays(dtype):
    start = lambda key: jnp.zeros(2, dtype)
    loss = lambda params, *given: (jnp.sum((params - 3.0) ** 2).astype(jnp.float32), {})
    state, metrics = train(make_gradient_learner(start, loss, sample), 3)(jax.random.key(0), HParams())
    assert state.params.dtype == dtype and metrics["loss"][-1] < metrics["loss"][0]


@pytest.mark.parametrize("length", [1, 2, 5, 512, 2**14, 2**14 + 1])
def test_permutations_hold_every_number_once_and_differ(length):
    orders = np.asarray(permutations(jax.random.key(0), 3, length))
    assert orders.shape == (3, length) and orders.dtype == np.int32
    np.testing.assert_array_equal(np.sort(orders, axis=1), np.tile(np.arange(length), (3, 1)))
    if length > 5:
        assert len({order.tobytes() for order in orders}) == 3


def test_all_orders_are_equally_likely():
    """24 orders of 4 numbers, 24,000 draws: chi-squared of 23 degrees below its 99.9% quantile, 49.7."""
    orders = np.asarray(permutations(jax.random.key(1), 24_000, 4))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24
    assert np.sum((counts - 1000.0) ** 2 / 1000.0) < 49.7


def test_adam_by_hand():
    """Adam's eps is 1e-5; the learning rate is `descend`'s."""
    optimizer = make_optimizer(max_grad_norm=None)
    params, grads = jnp.array([1.0, 2.0, 3.0]), jnp.array([1e-5, -0.3, 0.0])
    moved, opt_state = descend(optimizer, grads, optimizer.init(params), params, 0.1)
    # The first step's moments, bias-corrected, are g and g^2.
    np.testing.assert_allclose(moved, [1 - 0.1 * 0.5, 2 + 0.1 * 0.3 / (0.3 + 1e-5), 3.0], rtol=1e-5)
    again, _ = descend(optimizer, 2 * grads, opt_state, moved, 0.1)
    first = (0.9 * 0.1 + 0.1 * 2) / (1 - 0.9**2) * -0.3
    second = (0.999 * 0.001 + 0.001 * 4) / (1 - 0.999**2) * 0.09
    np.testing.assert_allclose(again[1], moved[1] - 0.1 * first / (second**0.5 + 1e-5), rtol=1e-5)


def test_gradients_are_clipped_by_their_global_norm():
    clip = make_optimizer(max_grad_norm=1.0, eps=1e3)  # a huge eps makes Adam linear in the gradient
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    updates, _ = clip.update(grads, clip.init(grads))
    np.testing.assert_allclose(updates["b"] / updates["a"], 4 / 3, rtol=1e-3)
    np.testing.assert_allclose(updates["a"], 0.6 / 1e3, rtol=1e-2)
    small = jax.tree.map(lambda g: g / 100, grads)
    np.testing.assert_allclose(clip.update(small, clip.init(small))[0]["a"], 0.03 / 1e3, rtol=1e-2)


def test_one_step_by_hand():
    learner = make(optimizer=optax.identity())
    state = learner.init(jax.random.key(0), HParams(0.1), jnp.array([1.0, 2.0]))
    assert state.step == 0 and state.env_state is None
    batch = jnp.array([[2.0, 2.0], [4.0, -2.0]])
    for step in (learner.step, jax.jit(learner.step)):
        after, metrics = step(state, batch)
        np.testing.assert_allclose(after.params, [1.2, 1.8], rtol=1e-6)
        assert after.step == 1
        assert metrics.keys() == {"loss", "grad_norm", "learning_rate", "largest"}
        np.testing.assert_allclose(metrics["loss"], 4.0)
        np.testing.assert_allclose(metrics["grad_norm"], 8**0.5, rtol=1e-6)
        np.testing.assert_allclose(metrics["learning_rate"], 0.1)
        np.testing.assert_allclose(metrics["largest"], 2.0)


def test_the_rate_of_every_step_reaches_the_update_and_the_metrics():
    learner = make(optimizer=optax.sgd(-1.0), total_steps=4, warmup_steps=1)
    state = learner.init(jax.random.key(0), HParams(0.2), jnp.zeros(2))
    batch, step = jnp.ones((1, 2)), jax.jit(learner.step)
    for factor in (0.5, 1.0, 2 / 3, 1 / 3, 0.0):
        before = state.params
        state, metrics = step(state, batch)
        np.testing.assert_allclose(metrics["learning_rate"], 0.2 * factor, atol=1e-7)
        np.testing.assert_allclose(state.params, before + 0.2 * factor * (1 - before), rtol=1e-5)


def test_frozen_trees_reach_the_loss_and_stay_out_of_the_state():
    def loss(params, frozen, batch, key, hparams):
        return jnp.sum((params - frozen["goal"]) ** 2), {}

    learner = make_gradient_learner(lambda key: jnp.zeros(2), loss)
    frozen = {"goal": jnp.array([1.0, -1.0])}
    state = learner.init(jax.random.key(0), HParams(0.1))
    step = jax.jit(learner.step)
    for _ in range(100):
        state, _ = step(state, jnp.zeros(1), frozen)
    np.testing.assert_allclose(state.params, [1.0, -1.0], atol=0.05)
    assert "goal" not in str(jax.tree.structure(state))
    trained, _ = train(learner._replace(step=lambda s, b, f: learner.step(s, jnp.zeros(1), f)), 100)(
        jax.random.key(0), HParams(0.1), None, frozen
    )
    np.testing.assert_allclose(trained.params, state.params, rtol=1e-5)


def test_a_learner_without_data_is_refused():
    learner = make_gradient_learner(lambda key: jnp.zeros(2), square)
    with pytest.raises(ValueError, match=r"no sampler: pass step\(state, batch\)"):
        learner.step(learner.init(jax.random.key(0), HParams()))


def test_a_batch_of_no_arrays_is_refused():
    learner = make_gradient_learner(lambda key: jnp.zeros(2), square)
    with pytest.raises(ValueError, match="a batch must be a tree of arrays; got one of type str"):
        learner.step(learner.init(jax.random.key(0), HParams()), "nonsense")


def test_a_fresh_state_owns_its_buffers():
    """It may be donated, and what it was given stays."""
    learner = make()
    params, hparams = jnp.array([1.0, 2.0]), HParams(jnp.float32(0.1))
    state = learner.init(jax.random.key(0), hparams, params)
    jax.jit(learner.step, donate_argnums=0)(state)
    assert float(params.sum()) == 3.0 and float(hparams.learning_rate) == np.float32(0.1)


def test_epochs_visit_every_row_once_each_and_average_the_metrics():
    """By hand: plain descent on x - row, whose minibatch gradients are x minus the rows' means."""
    rows = jnp.arange(4.0)
    seen = []

    def loss(x, batch):
        return jnp.mean((x - batch) ** 2) / 2, {"mean": jnp.mean(batch), "x": x}

    key = jax.random.key(3)
    state = make(optimizer=optax.identity()).init(jax.random.key(0), HParams(), jnp.zeros(()))
    sizes = {"num_epochs": 2, "minibatches": 2}
    state, metrics = epochs(loss, optax.identity(), state, rows, key, learning_rate=0.5, **sizes)
    by_hand = 0.0
    for order in np.asarray(permutations(key, 2, 4)):
        for half in order.reshape(2, 2):
            seen.append(by_hand)
            by_hand -= 0.5 * (by_hand - half.mean())
    np.testing.assert_allclose(state.params, by_hand, rtol=1e-6)
    np.testing.assert_allclose(metrics["mean"], 1.5)
    np.testing.assert_allclose(metrics["x"], np.mean(seen), rtol=1e-6)


def test_each_minibatchs_rows_are_what_devices_share(monkeypatch):
    placed = []
    monkeypatch.setattr(
        "jaxrl_align.learner.place_rows", lambda x, *, axis: placed.append((x.shape, axis)) or x
    )
    loss = lambda params, batch: (jnp.sum(params) * jnp.mean(batch), {})
    state = make(optimizer=optax.identity()).init(jax.random.key(0), HParams())
    sizes = {"num_epochs": 2, "minibatches": 3}
    epochs(loss, optax.identity(), state, jnp.ones((12, 2)), jax.random.key(1), learning_rate=0.1, **sizes)
    assert placed == [((2, 3, 4), 2)]


def test_train_is_a_scan_of_steps_under_used_once_keys():
    """Under jax's check for reused keys."""
    learner = make()
    with jax.debug_key_reuse(True):
        state, history = jax.jit(train(learner, 5))(jax.random.key(0), HParams())
        expected = learner.init(jax.random.key(0), HParams())
        step = jax.jit(learner.step)
        for i in range(5):
            expected, metrics = step(expected)
            np.testing.assert_allclose(history["loss"][i], metrics["loss"], rtol=1e-5)
    assert history["loss"].shape == (5,) and state.step == 5
    np.testing.assert_allclose(state.params, expected.params, rtol=1e-5)
    assert bits(state.key) == bits(expected.key)
    assert step._cache_size() == 1
    assert len(set(np.asarray(history["loss"]).tolist())) == 5


def test_metrics_of_a_long_run_are_means_over_several_steps():
    key, hparams = jax.random.key(0), HParams()
    state, history = jax.jit(train(make(), 6))(key, hparams)
    thinned, means = jax.jit(train(make(), 6, every=3))(key, hparams)
    np.testing.assert_allclose(means["loss"], history["loss"].reshape(2, 3).mean(1), rtol=1e-6)
    np.testing.assert_allclose(thinned.params, state.params, rtol=1e-6)
    with pytest.raises(ValueError, match="every must divide num_steps; got num_steps=6, every=4"):
        train(make(), 6, every=4)


def test_seeds_and_rates_train_side_by_side():
    keys, rates = jax.random.split(jax.random.key(0), 3), jnp.array([0.0, 0.01, 0.1])
    run = train(make(), 200)
    states, history = jax.jit(jax.vmap(run))(keys, HParams(rates))
    assert history["loss"].shape == (3, 200)
    for i in range(3):
        alone, _ = jax.jit(run)(keys[i], HParams(rates[i]))
        np.testing.assert_allclose(states.params[i], alone.params, atol=1e-5)
    late = history["loss"][:, -50:].mean(1)
    assert late[0] > late[1] > late[2]
    np.testing.assert_allclose(states.params[2], [3.0, 3.0], atol=0.5)


class Odd(NamedTuple):
    """A user's own, whose names mean something else."""

    learning_rate: float = 0.1
    beta: float = -1.0
    margin: float = -0.5
    label_smoothing: float = 0.6


def test_names_that_a_user_gives_another_meaning_have_no_range():
    check_hparams(Odd())
    with pytest.raises(ValueError, match="learning_rate must be at least 0; got -1"):
        check_hparams(Odd(learning_rate=-1.0))
    with pytest.raises(ValueError, match="beta must be at least 0; got -1"):
        check_hparams(DirectHParams(beta=-1.0))


@pytest.mark.parametrize(
    ("hparams", "message"),
    [
        (RLHFHParams(kl_target=0.0), "kl_target must be above 0; got 0.0; at 0 no update"),
        (RoundsHParams(policy=RLHFHParams(temperature=0.0)), r"policy\.temperature must be above 0; got 0"),
        (RoundsHParams(policy=RLHFHParams(kl_coef=-1.0)), r"policy\.kl_coef must be at least 0; got -1"),
        (RoundsHParams(reward=RewardHParams(np.nan)), r"reward\.learning_rate must be a number; got nan"),
        (RoundsHParams(-1.0), "annotator_temperature must be at least 0; got -1"),
    ],
)
def test_hparams_within_hparams_are_checked(hparams, message):
    check_hparams(RoundsHParams(0.0))
    with pytest.raises(ValueError, match=message):
        check_hparams(hparams)


def test_hparams_become_arrays_so_that_another_value_compiles_nothing():
    learner = make()
    step = jax.jit(learner.step)
    for rate in (0.1, 1, np.float64(0.5), jnp.float32(0.2)):
        state, _ = step(learner.init(jax.random.key(0), HParams(rate)))
        step(state)
    assert step._cache_size() == 1


def test_once_stopped_no_later_minibatch_moves_anything():
    """Four minibatches of one row; the second stops, though the last two would not."""
    rows, key = jnp.array([[1.0], [2.0], [3.0], [4.0]]), jax.random.key(0)
    order = np.asarray(permutations(key, 1, 4)).ravel()
    second = rows[order[1], 0]
    loss = lambda params, batch: (jnp.sum(params * batch[0]), {"row": batch[0, 0]})
    state = make(optimizer=optax.identity()).init(key, HParams(), params=jnp.ones(1))
    sizes = {"num_epochs": 1, "minibatches": 4, "learning_rate": 0.5}
    stop = lambda metrics: metrics["row"] == second
    state, metrics = epochs(loss, optax.identity(), state, rows, key, stop=stop, **sizes)
    np.testing.assert_allclose(state.params, 1.0 - 0.5 * rows[order[0]])
    assert metrics["gradient_steps"] == 1
    np.testing.assert_allclose(metrics["row"], (rows[order[0], 0] + second) / 2)


def test_an_offloaded_optimiser_keeps_its_state_on_the_host_and_steps_alike():
    ended = []
    for optimizer, kind in ((make_optimizer(), "device"), (offload(make_optimizer()), "pinned_host")):
        learner = make(optimizer=optimizer)
        where = lambda state: {x.sharding.memory_kind for x in jax.tree.leaves(state.opt_state) if x.ndim}
        state = learner.init(jax.random.key(0), HParams())
        assert where(state) == {kind}
        state, _ = jax.jit(learner.step)(state)
        assert where(state) == {kind}
        state, _ = jax.jit(train(learner, 3))(jax.random.key(0), HParams())
        assert where(state) == {kind}
        ended.append(state.params)
    np.testing.assert_allclose(*ended, rtol=1e-6)
