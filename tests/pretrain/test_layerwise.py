import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_align.losses import reconstruction_error
from jaxrl_align.nets.layered import make_autoencoder, make_layered_net
from jaxrl_align.pretrain import layerwise as lw
from jaxrl_align.types import Learner

NET = make_layered_net(4, (6, 5), 3, activation=jnp.tanh)
CODERS = lw.make_layer_autoencoders(NET)
HOW = {"epochs": 2, "batch_size": 8}
H, HA = lw.ClassifierHParams(0.2), lw.AutoencoderHParams(0.05, 0.25)


def same(a, b):
    """Bit for bit."""
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b))
    )


def differ(a, b):
    """In every leaf."""
    return not any(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


@pytest.fixture(scope="module")
def data():
    """Three classes, told apart by which of the first three values is the largest."""
    x = jax.random.uniform(jax.random.key(7), (48, 4))
    return x, jnp.argmax(x[:, :3], 1)


@pytest.fixture(scope="module")
def start():
    return NET.init(jax.random.key(0))


@pytest.fixture(scope="module")
def pretrained(data, start):
    """Return both pre-trainings of all layers, and of the first layer alone, from the same keys."""
    key_1, key_2 = jax.random.split(jax.random.key(1))
    supervised = jax.jit(lw.pretrain_supervised(NET, **HOW))(key_1, start["layers"], data, H)
    unsupervised = jax.jit(lw.pretrain_unsupervised(NET, CODERS, **HOW))(key_2, start["layers"], data[0], HA)
    return supervised, unsupervised


def test_one_step_is_the_lectures_sgd(data, start):
    """theta <- theta - learning_rate * gradient of the batch's mean loss."""

    def loss(params):
        hidden = data[0]
        for layer in params["layers"]:
            hidden = jnp.tanh(hidden @ layer["kernel"] + layer["bias"][None])
        logits = hidden @ params["head"]["kernel"] + params["head"]["bias"][None]
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(48), data[1]])

    learner = lw.make_classifier_learner(NET)
    state, metrics = jax.jit(learner.step)(learner.init(jax.random.key(0), H, start), data)
    expected = jax.tree.map(lambda p, g: p - 0.2 * g, start, jax.grad(loss)(start))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), state.params, expected)
    np.testing.assert_allclose(metrics["loss"], loss(start), rtol=1e-6)


@pytest.mark.slow
def test_an_epochs_batches_average_to_the_full_gradient(data, start):
    """Without moving, the mean over an epoch equals the full batch: E[batch grad] = full grad."""
    still = lw.ClassifierHParams(0.0)
    keep = optax.GradientTransformation(lambda _: jax.tree.map(jnp.zeros_like, start), _add)
    learner = lw.make_classifier_learner(NET, optimizer=keep)
    init = learner.init(jax.random.key(0), still, start)
    one_epoch, _ = jax.jit(lw.fit(learner, epochs=1, batch_size=12))(init, data)
    full, _ = learner.step(init, data)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a / 4, b, rtol=1e-4, atol=1e-7),
        one_epoch.opt_state,
        full.opt_state,
    )


def _add(grads, total, params=None):
    return grads, jax.tree.map(jnp.add, total, grads)


@pytest.mark.parametrize("num, batch_size, steps", [(12, 4, 3), (13, 4, 3), (3, 8, 1)])
def test_an_epoch_visits_each_example_at_most_once_in_a_new_order(num, batch_size, steps):
    """A learner that writes down what it is given: complete batches only, reshuffled every epoch."""
    state = lw.make_classifier_learner(NET).init(jax.random.key(0), H)
    learner = Learner(lambda *_: state, lambda s, b, f: (s, {"rows": jnp.zeros(num).at[b].add(1.0)}))
    _, metrics = lw.fit(learner, epochs=3, batch_size=batch_size)(state, jnp.arange(num))
    counts = np.asarray(metrics["rows"]) * steps
    assert counts.shape == (3, num)
    size = min(num, batch_size)
    np.testing.assert_allclose(counts.sum(1), num // size * size, rtol=1e-5)
    assert set(counts.round().ravel()) <= {0.0, 1.0}
    if num == 13:
        assert len({tuple(row) for row in counts.round()}) > 1, "the example left out should change"


def test_layers_below_are_frozen_bit_for_bit(data, start, pretrained):
    """Training the second layer leaves the first as a run on the first alone left it."""
    (supervised, _), (unsupervised, _, _) = pretrained
    key_1, key_2 = jax.random.split(jax.random.key(1))
    net = make_layered_net(4, (6,), 3, activation=jnp.tanh)
    # Splitting a key into one or two gives other keys, so the first layer's own key is passed on.
    first = lw.make_classifier_learner(net)
    key_head, key_init = jax.random.split(jax.random.split(key_1, 2)[0])
    params = {"layers": start["layers"][:1], "head": net.init_head(key_head, 6)}
    state, _ = jax.jit(lw.fit(first, **HOW))(first.init(key_init, H, params), data, ())
    assert same(state.params["layers"][0], supervised[0])
    coder = lw.make_autoencoder_learner(net, CODERS[0])
    key_decoder, key_init = jax.random.split(jax.random.split(key_2, 2)[0])
    params = CODERS[0].init(key_decoder) | {"encoder": start["layers"][0]}
    state, _ = jax.jit(lw.fit(coder, **HOW))(coder.init(key_init, HA, params), data[0], ())
    assert same(state.params["encoder"], unsupervised[0])
    assert differ(supervised[1]["kernel"], start["layers"][1]["kernel"])


def test_frozen_layers_are_read_and_stay_beside_the_state(data, start):
    learner = lw.make_classifier_learner(NET, optimizer=optax.scale_by_adam())
    params = {"layers": start["layers"][1:], "head": start["head"]}
    init = learner.init(jax.random.key(0), H, params)
    state, _ = jax.jit(lw.fit(learner, **HOW))(init, data, start["layers"][:1])
    assert len(state.params["layers"]) == len(start["layers"]) - 1
    assert differ(state.params["layers"], start["layers"][1:])


def test_both_pretrainings_learn(data, pretrained):
    (_, supervised), (layers, coders, unsupervised) = pretrained
    for history in (*supervised, *unsupervised):
        assert history["loss"].shape == (2,) and history["loss"][1] < history["loss"][0]
    assert all(same(layer, coder["encoder"]) for layer, coder in zip(layers, coders, strict=True))


@pytest.mark.parametrize("unfreeze", ["all", "head", "gradual"])
def test_finetuning_starts_at_the_pretrained_layers_and_trains_what_it_should(
    data, start, pretrained, unfreeze
):
    layers = pretrained[1][0]
    params = start | {"layers": layers}
    still, history = jax.jit(lw.finetune(NET, epochs=3, batch_size=8, unfreeze=unfreeze))(
        jax.random.key(2), params, data, lw.ClassifierHParams(0.0)
    )
    assert same(still, params) and history["loss"].shape == (3,)
    tuned, _ = jax.jit(lw.finetune(NET, epochs=3, batch_size=8, unfreeze=unfreeze))(
        jax.random.key(2), params, data, H
    )
    assert differ(tuned["head"]["kernel"], params["head"]["kernel"])
    assert (same if unfreeze == "head" else differ)(tuned["layers"], layers)


def test_gradual_unfreezing_goes_from_the_top_down(data, start):
    """Three epochs, three phases: the head; with the second layer; with all. Cut off, they show the order."""
    train = lw.make_classifier_learner(NET)
    key_1, key_2, _ = jax.random.split(jax.random.key(2), 3)
    params = start
    for key, num_frozen in ((key_1, 2), (key_2, 1)):
        frozen, own = params["layers"][:num_frozen], params["layers"][num_frozen:]
        init = train.init(key, H, params | {"layers": own})
        state, metrics = jax.jit(lw.fit(train, epochs=1, batch_size=8))(init, data, frozen)
        params = {"layers": (*frozen, *state.params["layers"]), "head": state.params["head"]}
    assert same(params["layers"][0], start["layers"][0])
    assert differ(params["layers"][1], start["layers"][1])
    _, history = jax.jit(lw.finetune(NET, epochs=3, batch_size=8, unfreeze="gradual"))(
        jax.random.key(2), start, data, H
    )
    np.testing.assert_array_equal(history["loss"][1], metrics["loss"][0])


def test_swapping_the_last_layer_fits_another_task(data, pretrained):
    """Layers of a three-class net serve one of five classes."""
    net = make_layered_net(4, (6, 5), 5, activation=jnp.tanh)
    params = {"layers": pretrained[0][0], "head": net.init_head(jax.random.key(3), 5)}
    tuned, _ = lw.finetune(net, **HOW)(jax.random.key(4), params, (data[0], data[1] + 2), H)
    assert tuned["head"]["kernel"].shape == (5, 5)
    assert lw.error_rate(net, tuned, (data[0], data[1] + 2)) < 1.0


@pytest.mark.parametrize("kind", ["norm", "squared", "bernoulli"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_autoencoder_is_asked_for_the_clean_input(data, kind, tied):
    """All inputs lost: the loss is the error of decode(encode(0)) against the clean input."""
    coder = make_autoencoder(4, 6, tied=tied)
    learner = lw.make_autoencoder_learner(NET, coder, kind=kind)
    state = learner.init(jax.random.key(0), lw.AutoencoderHParams(0.1, 1.0))
    _, metrics = learner.step(state, data[0])
    blind = coder.apply(state.params, jnp.zeros(4))
    error = [reconstruction_error(x, blind, kind=kind) for x in data[0]]
    np.testing.assert_allclose(metrics["loss"], np.mean(error), rtol=1e-5)


@pytest.mark.parametrize("kind", ["squared", "bernoulli"])
def test_reconstruction_goes_up_and_back_down(data, pretrained, kind):
    _, (layers, coders, _) = pretrained
    x = data[0][0]
    code = NET.encode(layers, x)
    end = jax.nn.sigmoid if kind == "bernoulli" else lambda y: y
    expected = end(CODERS[0].decode(coders[0], end(CODERS[1].decode(coders[1], code))))
    np.testing.assert_allclose(lw.reconstruct(CODERS, coders, x, kind=kind), expected, rtol=1e-6)


@pytest.mark.slow
def test_members_train_side_by_side_as_alone(data):
    """Vmapped seeds equal single runs; the data are shared."""

    def member(key):
        key_init, key = jax.random.split(key)
        return lw.finetune(NET, **HOW)(key, NET.init(key_init), data, H)[0]

    keys = jax.random.split(jax.random.key(5), 3)
    together, single = jax.jit(jax.vmap(member))(keys), jax.jit(member)
    for i, key in enumerate(keys):
        jax.tree.map(
            lambda a, b, i=i: np.testing.assert_allclose(a[i], b, rtol=1e-4, atol=1e-6), together, single(key)
        )


def test_the_classifier_learns_its_task(data, start):
    finetune = functools.partial(lw.finetune, NET, epochs=200, batch_size=16)
    tuned, _ = jax.jit(finetune())(jax.random.key(0), start, data, H)
    assert lw.error_rate(NET, tuned, data) <= 0.05 < 0.4 < lw.error_rate(NET, start, data)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: lw.finetune(NET, epochs=3, batch_size=8, unfreeze="some"), '"all", "head" or "gradual"'),
        (lambda: lw.finetune(NET, epochs=2, batch_size=8, unfreeze="gradual"), "at least 3 with .*; got 2"),
        (
            lambda: lw.finetune(NET, epochs=0, batch_size=8),
            "at least 1 with unfreeze='all' .*; got 0",
        ),
        (lambda: lw.fit(lw.make_classifier_learner(NET), epochs=0, batch_size=8), "at least 1; got 0 and 8"),
    ],
)
def test_what_cannot_be_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
