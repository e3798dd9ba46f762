"""Three starts of one descent, shared by the layer-wise experiments: data, networks, training; see also
`layerwise_report`."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_align.data.images import Split, choose_labelled, load_digits, load_idx_folder, load_mnist
from jaxrl_align.learner import make_optimizer
from jaxrl_align.nets.layered import GLOROT, LayeredNet, fan_in_uniform, make_layered_net
from jaxrl_align.pretrain import layerwise as lw
from jaxrl_align.runtime.members import MembersConfig
from jaxrl_align.runtime.mesh import shard_members

STARTS = ("random", "supervised", "unsupervised")


class Era(NamedTuple):
    """The units, initial kernels, optimizer and learning rates that were, or are, usual."""

    activation: Callable[[jax.Array], jax.Array]
    kernel_init: Callable[..., jax.Array]
    optimizer: optax.GradientTransformation | None
    reconstruction: lw.ReconstructionKind
    supervised_rate: float
    """Learning rate of pre-training by labels."""
    unsupervised_rate: float
    """Learning rate of pre-training by reconstruction."""
    finetune_rates: tuple[float, ...]


_SIGMOID, _RELU, _ADAM = jax.nn.sigmoid, jax.nn.relu, make_optimizer(max_grad_norm=None, eps=1e-8)
_SGD_RATES, _ADAM_RATES = (0.1, 0.3, 1.0, 3.0), (3e-4, 1e-3, 3e-3, 1e-2)

ERAS = {
    "2006": Era(_SIGMOID, fan_in_uniform, None, "bernoulli", 0.5, 0.1, _SGD_RATES),
    "2006+glorot": Era(_SIGMOID, GLOROT, None, "bernoulli", 0.5, 0.1, _SGD_RATES),
    "2006+adam": Era(_SIGMOID, fan_in_uniform, _ADAM, "bernoulli", 1e-3, 1e-3, _ADAM_RATES),
    "modern": Era(_RELU, jax.nn.initializers.he_normal(), _ADAM, "squared", 1e-3, 1e-3, _ADAM_RATES),
}
"""2006: sigmoid units, kernels from U(-1/sqrt(in), 1/sqrt(in)), plain SGD; the same with Glorot's kernels, or
with Adam; and what is usual now: ReLU, He's kernels and Adam."""


EraName = Literal["2006", "2006+glorot", "2006+adam", "modern"]


@dataclass(frozen=True)
class StartsConfig(MembersConfig):
    """The fields of all layer-wise experiments."""

    era: EraName = "2006"
    """Sigmoid units, their old kernels and plain SGD; with better kernels, with Adam; or ReLU and Adam."""
    tuning_seeds: int = 4
    """Members beside those reported, whose validation images choose each start's rate."""
    width: int = 100
    """Units of each hidden layer."""
    batch_size: int = 20
    """Images of an update."""
    pretrain_epochs: int = 20
    """Of each layer."""
    finetune_rates: tuple[float, ...] | None = None
    """To choose from; none means the era's four."""
    corruption: float = 0.25
    """Share of the inputs that the autoencoders must fill in."""
    validation_share: float = 0.2
    """Of the training images: each member's own draw, held out to choose the rate."""

    def member_keys(self) -> jax.Array:
        """Return the keys of all members, those that are reported first."""
        return shard_members(jax.random.split(jax.random.key(self.seed), self.seeds + self.tuning_seeds))

    def rates(self) -> tuple[float, ...]:
        """Return the learning rates of fine-tuning that are tried."""
        return self.finetune_rates or ERAS[self.era].finetune_rates


class Data(NamedTuple):
    """Arrays on the device; one member's, or with an axis of members before."""

    x: jax.Array
    """[N, D] all training images, whose labels only `labelled` reveals."""
    labelled: tuple[jax.Array, jax.Array]
    """x [n, D] and y [n]."""
    validation: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]
    """The same images for every member."""


DATA_AXES = Data(0, 0, 0, None)
"""Of the members."""


class Judged(NamedTuple):
    """Fine-tuned nets of one member, [starts, rates]; with an axis of members before, of all."""

    validation_error: jax.Array
    """In per cent."""
    validation_loss: jax.Array
    """Cross-entropy, nats an image."""
    train_error: jax.Array
    """Of the labelled images, in per cent."""
    wrong: jax.Array
    """[..., N] bool, by test image."""


class Result(NamedTuple):
    """Of one member."""

    judged: Judged
    reconstruction_loss: jax.Array
    """[layers, 2] each autoencoder's mean loss in its first and in its last epoch."""
    autoencoders: Any
    """The autoencoders' parameters."""


def load(name: str) -> Split:
    """Return the data set of that name or folder."""
    return {"digits": load_digits, "mnist": load_mnist}.get(name, functools.partial(load_idx_folder, name))()


def hold_out(num: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which of `num` images are left without a random share of them, and which that share is."""
    held_out = round(share * num)
    if not 0 < held_out < num:
        raise ValueError(f"the share held out must leave both parts some of {num}; got {share}")
    order = np.random.default_rng(seed).permutation(num)
    return order[held_out:], order[:held_out]


def draw_members(config: StartsConfig, split: Split, num_labels: int | None = None) -> Data:
    """Return every member's own draw from the training images, with an axis of members but for the test set.

    Args:
      config: of the experiment; member i draws by `config.seed + i`.
      split: the data.
      num_labels: of the images that are not held out, so many keep their label; None, all.

    Raises:
      ValueError: for a share or a number that cannot be.
    """
    images, members = split.train, range(config.seed, config.seed + config.seeds + config.tuning_seeds)
    parts = [hold_out(len(images.y), config.validation_share, seed) for seed in members]
    train, validation = (np.stack(rows) for rows in zip(*parts, strict=True))
    labelled = train
    if num_labels is not None:
        labelled = np.stack(
            [
                rows[choose_labelled(images.y[rows], num_labels, seed=seed)]
                for rows, seed in zip(train, members, strict=True)
            ]
        )
    take = lambda rows: (jnp.asarray(images.x[rows]), jnp.asarray(images.y[rows]))
    own = shard_members((jnp.asarray(images.x[train]), take(labelled), take(validation)))
    return Data(*own, tuple(map(jnp.asarray, split.test)))


def make_net(era: Era, input_dim: int, depth: int, width: int) -> LayeredNet:
    """Return the era's net."""
    return make_layered_net(
        input_dim, (width,) * depth, 10, activation=era.activation, kernel_init=era.kernel_init
    )


def judge_net(net: LayeredNet, params: Any, data: Data) -> Judged:
    """Return what one net makes of the three sets."""

    def read(images: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        x, y = images
        logits = jax.vmap(lambda x: net.classify(params["head"], net.encode(params["layers"], x)))(x)
        loss = optax.softmax_cross_entropy_with_integer_labels(logits, y)
        return jnp.mean(loss), jnp.argmax(logits, -1) != y

    loss, wrong = read(data.validation)
    per_cent = lambda wrong: 100 * jnp.mean(wrong, dtype=jnp.float32)
    return Judged(per_cent(wrong), loss, per_cent(read(data.labelled)[1]), read(data.test)[1])


def make_member(config: Any, net: LayeredNet, finetune_epochs: int) -> Callable[..., Result]:
    """Return `(key, Data) -> Result`: three starts from one random draw, fine-tuned on the same batches."""
    era = ERAS[config.era]
    rates = jnp.array(config.rates())
    autoencoders = lw.make_layer_autoencoders(net, tied=config.tied)
    how = {"epochs": config.pretrain_epochs, "batch_size": config.batch_size, "optimizer": era.optimizer}
    supervised = lw.pretrain_supervised(net, **how)
    unsupervised = lw.pretrain_unsupervised(net, autoencoders, kind=era.reconstruction, **how)
    finetune = lw.finetune(net, **how | {"epochs": finetune_epochs})

    def member(key: jax.Array, data: Data) -> Result:
        key_init, key_supervised, key_unsupervised, key_finetune = jax.random.split(key, 4)
        params = net.init(key_init)
        with_labels, _ = supervised(
            key_supervised, params["layers"], data.labelled, lw.ClassifierHParams(era.supervised_rate)
        )
        without, encoders, history = unsupervised(
            key_unsupervised,
            params["layers"],
            data.x,
            lw.AutoencoderHParams(era.unsupervised_rate, config.corruption),
        )
        starts = [params, params | {"layers": with_labels}, params | {"layers": without}]

        def tune(params: Any, rate: jax.Array) -> Judged:
            params, _ = finetune(key_finetune, params, data.labelled, lw.ClassifierHParams(rate))
            return judge_net(net, params, data)

        tune_all = jax.vmap(jax.vmap(tune, (None, 0)), (0, None))
        judged = tune_all(jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts), rates)
        return Result(judged, jnp.stack([h["loss"][jnp.array([0, -1])] for h in history]), encoders)

    return member


def timed(run: Callable[..., Any], *args: Any) -> tuple[Any, float]:
    """Return what `run(*args)` computes and the seconds that it took, compilation included."""
    start = time.perf_counter()
    return jax.block_until_ready(run(*args)), time.perf_counter() - start


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("layerwise_pretraining")
