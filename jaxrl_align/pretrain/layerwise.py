"""Greedy layer-wise pre-training, by labels or by reconstruction, and the fine-tuning that follows.

Two learners do all of it, each upon frozen layers below, which are the `frozen` argument of its steps:

    trained                          frozen        method
    one layer and a temporary head   those below   supervised pre-training (classifier)
    all layers and the head          none          fine-tuning (classifier)
    the head                         all layers    training the head (classifier)
    one layer and its decoder        those below   unsupervised pre-training (autoencoder)

    params = net.init(key)                                               # (a) random
    layers = pretrain_supervised(net, ...)(key, params["layers"], data, hparams)     # (b) supervised
    layers = pretrain_unsupervised(net, ...)(key, params["layers"], x, hparams)      # (c) unsupervised
    params = finetune(net, ...)(key, {"layers": layers, "head": head}, data, hparams)

Source: docs/lectures.md (C2-C6); Bengio, Lamblin, Popovici & Larochelle 2006, "Greedy layer-wise training of
deep networks"; Vincent et al. 2008 (denoising).
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxrl_align.learner import make_gradient_learner
from jaxrl_align.losses import masking_noise, reconstruction_error
from jaxrl_align.nets.layered import Autoencoder, LayeredNet, make_autoencoder
from jaxrl_align.types import Learner, Metrics, Numeric, Params, State

ReconstructionKind = Literal["norm", "squared", "bernoulli"]


class ClassifierHParams(NamedTuple):
    """Traced hyperparameters of training by labels."""

    learning_rate: Numeric = 0.1


class AutoencoderHParams(NamedTuple):
    """Traced hyperparameters of training by reconstruction."""

    learning_rate: Numeric = 0.1
    corruption: Numeric = 0.0
    """Share of the inputs that is set to 0 before encoding; the clean input is to be reconstructed."""


def make_classifier_learner(
    net: LayeredNet, *, optimizer: optax.GradientTransformation | None = None
) -> Learner:
    """Build the learner of labels: cross-entropy, mean over the batch.

    `State.params` is `{"layers": the trained layers, "head"}` and `frozen` the tuple of layers below, or
    None, so which layers train is decided by what `init` is given. A batch is `(x [B, D], y [B])`.

    Args:
      net: the classifier.
      optimizer: an update rule without its learning rate; None is the lecture's plain mini-batch SGD,
        `theta <- theta - learning_rate * grad`.
    """

    def loss(params: Params, frozen: Any, batch: Any, key: chex.PRNGKey, hparams: Any) -> Any:
        x, y = batch
        layers = (*(frozen or ()), *params["layers"])
        logits = jax.vmap(lambda x: net.classify(params["head"], net.encode(layers, x)))(x)
        cross_entropy = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return jnp.mean(cross_entropy), {"error_rate": jnp.mean(jnp.argmax(logits, -1) != y)}

    return make_gradient_learner(net.init, loss, optimizer=optimizer or optax.identity())


def make_autoencoder_learner(
    net: LayeredNet,
    autoencoder: Autoencoder,
    *,
    kind: ReconstructionKind = "squared",
    optimizer: optax.GradientTransformation | None = None,
) -> Learner:
    """Build the learner of one layer by reconstruction, mean over the batch.

        min  error(c, decode(encode(corrupt(c)))),   c = net.encode(frozen layers, x)

    A batch is `x [B, D]`, the net's input; the frozen layers below turn it into this layer's.

    Args:
      net: the net whose layer is trained; its `encode` runs the frozen layers.
      autoencoder: of that layer.
      kind: of `losses.reconstruction_error`; "bernoulli" needs codes in [0, 1].
      optimizer: an update rule without its learning rate; None is plain SGD.
    """

    def loss(params: Params, frozen: Any, batch: Any, key: chex.PRNGKey, hparams: Any) -> Any:
        code = jax.vmap(lambda x: net.encode(frozen or (), x))(batch)
        corrupted = masking_noise(key, code, rate=hparams.corruption)
        reconstruction = jax.vmap(autoencoder.apply, (None, 0))(params, corrupted)
        error = jax.vmap(lambda c, r: reconstruction_error(c, r, kind=kind))(code, reconstruction)
        return jnp.mean(error), {}

    return make_gradient_learner(autoencoder.init, loss, optimizer=optimizer or optax.identity())


def fit(learner: Learner, *, epochs: int, batch_size: int) -> Callable[..., tuple[State, Metrics]]:
    """Return mini-batch descent over data: every epoch shuffles, cuts into batches and steps once on each.

    Args:
      learner: one that steps on a batch.
      epochs: passes through the data.
      batch_size: of each step, or all examples where there are fewer; an epoch leaves its last, incomplete
        batch out.

    Returns:
      `(state, data, frozen=None) -> (state, metrics)`, pure: `data` is a pytree of arrays [N, ...], and the
      metrics are means over each epoch, [epochs]. The order of the data comes from `state.key`.

    Raises:
      ValueError: if `epochs` or `batch_size` is below 1.
    """
    if epochs < 1 or batch_size < 1:
        raise ValueError(f"epochs and batch_size must be at least 1; got {epochs} and {batch_size}")

    def run(state: State, data: Any, frozen: Any = None) -> tuple[State, Metrics]:
        num = jax.tree.leaves(data)[0].shape[0]
        size = min(batch_size, num)

        def epoch(state: State, _: None) -> tuple[State, Metrics]:
            key, key_order = jax.random.split(state.key)
            order = jax.random.permutation(key_order, num)[: num // size * size].reshape(-1, size)
            take = lambda rows: jax.tree.map(lambda leaf: leaf[rows], data)
            step = lambda state, rows: learner.step(state, take(rows), frozen)
            state, metrics = jax.lax.scan(step, state._replace(key=key), order)
            return state, jax.tree.map(lambda m: jnp.mean(m, axis=0), metrics)

        return jax.lax.scan(epoch, state, None, epochs)

    return run


def pretrain_supervised(
    net: LayeredNet,
    *,
    epochs: int,
    batch_size: int,
    optimizer: optax.GradientTransformation | None = None,
) -> Callable[[chex.PRNGKey, tuple, Any, ClassifierHParams], tuple[tuple, list[Metrics]]]:
    """Return greedy pre-training by labels: each layer learns under a head of its own, which is dropped.

    Args:
      net: the classifier.
      epochs: of each layer.
      batch_size: see `fit`.
      optimizer: see `make_classifier_learner`.

    Returns:
      `(key, layers, (x [N, D], y [N]), hparams) -> (layers, metrics of each layer)`.
    """
    learner = make_classifier_learner(net, optimizer=optimizer)
    train = fit(learner, epochs=epochs, batch_size=batch_size)

    def run(key: chex.PRNGKey, layers: tuple, data: Any, hparams: Any) -> tuple[tuple, list[Metrics]]:
        trained: tuple = ()
        history = []
        for layer, width, layer_key in zip(
            layers, net.widths, jax.random.split(key, len(layers)), strict=True
        ):
            key_head, key_init = jax.random.split(layer_key)
            params = {"layers": (layer,), "head": net.init_head(key_head, width)}
            state, metrics = train(learner.init(key_init, hparams, params), data, trained)
            trained += state.params["layers"]
            history.append(metrics)
        return trained, history

    return run


def make_layer_autoencoders(net: LayeredNet, *, tied: bool = False) -> tuple[Autoencoder, ...]:
    """Return one autoencoder per hidden layer of the net, its encoder being that layer.

    Args:
      net: the classifier.
      tied: decoders reuse their encoder's kernel.
    """
    sizes = (net.input_dim, *net.widths)
    return tuple(
        make_autoencoder(rows, columns, activation=net.activation, tied=tied)
        for rows, columns in zip(sizes[:-1], sizes[1:], strict=True)
    )


def pretrain_unsupervised(
    net: LayeredNet,
    autoencoders: tuple[Autoencoder, ...],
    *,
    epochs: int,
    batch_size: int,
    kind: ReconstructionKind = "squared",
    optimizer: optax.GradientTransformation | None = None,
) -> Callable[..., tuple[tuple, list[Params], list[Metrics]]]:
    """Return greedy pre-training by reconstruction: each layer learns to keep what the layers below pass on.

    Args:
      net: the classifier.
      autoencoders: one per layer, of `make_layer_autoencoders`.
      epochs: of each layer.
      batch_size: see `fit`.
      kind: see `make_autoencoder_learner`.
      optimizer: see `make_autoencoder_learner`.

    Returns:
      `(key, layers, x [N, D], hparams) -> (layers, the autoencoders' params, metrics of each layer)`.
    """
    learners = [
        make_autoencoder_learner(net, autoencoder, kind=kind, optimizer=optimizer)
        for autoencoder in autoencoders
    ]

    def run(key: chex.PRNGKey, layers: tuple, x: jax.Array, hparams: Any) -> Any:
        trained: tuple = ()
        every, history = [], []
        keys = jax.random.split(key, len(layers))
        for layer, autoencoder, learner, layer_key in zip(layers, autoencoders, learners, keys, strict=True):
            key_decoder, key_init = jax.random.split(layer_key)
            params = autoencoder.init(key_decoder) | {"encoder": layer}
            state = learner.init(key_init, hparams, params)
            state, metrics = fit(learner, epochs=epochs, batch_size=batch_size)(state, x, trained)
            trained += (state.params["encoder"],)
            every.append(state.params)
            history.append(metrics)
        return trained, every, history

    return run


def reconstruct(
    autoencoders: Sequence[Autoencoder],
    params: Sequence[Params],
    x: jax.Array,
    *,
    kind: ReconstructionKind = "squared",
) -> jax.Array:
    """Encode one example through the autoencoders, first to last, and decode it back, last to first.

    Args:
      autoencoders: of consecutive layers, the first one the net's first.
      params: theirs, of `pretrain_unsupervised`.
      x: [D] an input of the net.
      kind: what they were trained by; "bernoulli" decodes to logits, which become probabilities here.

    Returns:
      [D] the reconstruction.
    """
    for autoencoder, own in zip(autoencoders, params, strict=True):
        x = autoencoder.encode(own, x)
    for autoencoder, own in zip(reversed(autoencoders), reversed(params), strict=True):
        x = autoencoder.decode(own, x)
        x = jax.nn.sigmoid(x) if kind == "bernoulli" else x
    return x


def finetune(
    net: LayeredNet,
    *,
    epochs: int,
    batch_size: int,
    unfreeze: Literal["all", "head", "gradual"] = "all",
    optimizer: optax.GradientTransformation | None = None,
) -> Callable[[chex.PRNGKey, Params, Any, ClassifierHParams], tuple[Params, Metrics]]:
    """Return training by labels of a whole net, from wherever its parameters come.

    To fine-tune on another task, swap the last layer first: `params | {"head": net.init_head(key, width)}`.

    Args:
      net: the classifier.
      epochs: in all; "gradual" divides them into one phase per unfrozen part.
      batch_size: see `fit`.
      unfreeze: "all" trains every weight; "head" the last layer only; "gradual" first the head, then one
        more layer per phase, from the top down (Howard & Ruder 2018).
      optimizer: see `make_classifier_learner`; its state starts anew in each phase.

    Returns:
      `(key, params, (x [N, D], y [N]), hparams) -> (params, metrics [epochs])`.

    Raises:
      ValueError: if `unfreeze` is unknown, `epochs` is below 1 or a gradual phase would have no epoch.
    """
    depth = len(net.widths)
    phases = {"all": [0], "head": [depth], "gradual": list(range(depth, -1, -1))}
    if unfreeze not in phases:
        raise ValueError(f'unfreeze must be "all", "head" or "gradual"; got {unfreeze!r}')
    frozen_counts = phases[unfreeze]
    if epochs < len(frozen_counts):
        raise ValueError(
            f"epochs must be at least {len(frozen_counts)} with unfreeze={unfreeze!r} and {depth} hidden "
            f"layers; got {epochs}"
        )
    share, rest = divmod(epochs, len(frozen_counts))
    lengths = [share + (phase >= len(frozen_counts) - rest) for phase in range(len(frozen_counts))]
    learner = make_classifier_learner(net, optimizer=optimizer)

    def run(key: chex.PRNGKey, params: Params, data: Any, hparams: Any) -> tuple[Params, Metrics]:
        history = []
        keys = jax.random.split(key, len(frozen_counts))
        for phase_key, num_frozen, length in zip(keys, frozen_counts, lengths, strict=True):
            frozen, trained = params["layers"][:num_frozen], params["layers"][num_frozen:]
            state = learner.init(phase_key, hparams, params | {"layers": trained})
            state, metrics = fit(learner, epochs=length, batch_size=batch_size)(state, data, frozen)
            params = {"layers": (*frozen, *state.params["layers"]), "head": state.params["head"]}
            history.append(metrics)
        return params, jax.tree.map(lambda *m: jnp.concatenate(m), *history)

    return run


def error_rate(net: LayeredNet, params: Params, data: Any) -> jax.Array:
    """Return the share of the data `(x [N, D], y [N])` whose most likely class is wrong, [] in [0, 1]."""
    x, y = data
    logits = jax.vmap(lambda x: net.classify(params["head"], net.encode(params["layers"], x)))(x)
    return jnp.mean(jnp.argmax(logits, axis=-1) != y)
