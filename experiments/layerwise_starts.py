"""Three starts of one descent, shared by the layer-wise experiments: data, networks, training, report."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_align.data.images import Images, Split, load_digits, load_idx_folder, load_mnist
from jaxrl_align.learner import make_optimizer
from jaxrl_align.nets.layered import GLOROT, LayeredNet, fan_in_uniform, make_layered_net
from jaxrl_align.pretrain import layerwise as lw
from jaxrl_align.runtime.members import MembersConfig
from jaxrl_align.runtime.statistics import mean_text

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


@dataclass(frozen=True)
class StartsConfig(MembersConfig):
    """The fields of all layer-wise experiments."""

    era: Literal["2006", "2006+glorot", "2006+adam", "modern"] = "2006"
    """Sigmoid units, their old kernels and plain SGD; with better kernels, with Adam; or ReLU and Adam."""
    width: int = 100
    """Units of each hidden layer."""
    batch_size: int = 20
    pretrain_epochs: int = 20
    """Of each layer."""
    finetune_rates: tuple[float, ...] | None = None
    """Each start takes the one with the lowest validation error; none means the era's four."""
    corruption: float = 0.25
    """Share of the inputs that the autoencoders must fill in."""
    validation_share: float = 0.2
    """Of the training images, held out to choose the rate."""


class Data(NamedTuple):
    """Arrays on the device."""

    x: jax.Array
    """[N, D] all training images, whose labels only `labelled` reveals."""
    labelled: tuple[jax.Array, jax.Array]
    """x [n, D] and y [n]."""
    validation: tuple[jax.Array, jax.Array]
    test: tuple[jax.Array, jax.Array]


class Result(NamedTuple):
    """Of one member; errors in per cent, [starts, rates]."""

    validation: jax.Array
    test: jax.Array
    train: jax.Array
    reconstruction_loss: jax.Array
    """[layers, 2] each autoencoder's mean loss in its first and in its last epoch."""
    autoencoders: Any
    """The autoencoders' parameters."""


def load(name: str) -> Split:
    """Return the data set of that name or folder."""
    return {"digits": load_digits, "mnist": load_mnist}.get(name, functools.partial(load_idx_folder, name))()


def hold_out(images: Images, share: float, seed: int) -> tuple[Images, Images]:
    """Return the images without a random share of them, and that share."""
    num = round(share * len(images.y))
    if not 0 < num < len(images.y):
        raise ValueError(f"the share held out must leave both parts some of {len(images.y)}; got {share}")
    order = np.random.default_rng(seed).permutation(len(images.y))
    return tuple(Images(images.x[rows], images.y[rows]) for rows in (order[num:], order[:num]))


def make_net(era: Era, input_dim: int, depth: int, width: int) -> LayeredNet:
    """Return the era's net."""
    return make_layered_net(
        input_dim, (width,) * depth, 10, activation=era.activation, kernel_init=era.kernel_init
    )


def make_member(config: Any, net: LayeredNet, finetune_epochs: int) -> Callable[..., Result]:
    """Return `(key, Data) -> Result`: three starts from one random draw, fine-tuned on the same batches."""
    era = ERAS[config.era]
    rates = jnp.array(config.finetune_rates or era.finetune_rates)
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

        def tune(params: Any, rate: jax.Array) -> tuple[jax.Array, ...]:
            params, _ = finetune(key_finetune, params, data.labelled, lw.ClassifierHParams(rate))
            sets = data.validation, data.test, data.labelled
            return tuple(100 * lw.error_rate(net, params, part) for part in sets)

        tune_all = jax.vmap(jax.vmap(tune, (None, 0)), (0, None))
        errors = tune_all(jax.tree.map(lambda *leaves: jnp.stack(leaves), *starts), rates)
        losses = jnp.stack([h["loss"][jnp.array([0, -1])] for h in history])
        return Result(*errors, losses, encoders)

    return member


def choose_rates(result: Result) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each start's rate, the one that validation chose [starts], and its errors [starts, M]."""
    best = np.asarray(result.validation).mean(0).argmin(1)
    pick = lambda errors: np.stack([np.asarray(errors)[:, i, rate] for i, rate in enumerate(best)])
    return best, pick(result.test), pick(result.train)


def timed(run: Callable[..., Result], *args: Any) -> tuple[Result, float]:
    """Return what `run(*args)` computes and the seconds that it took, compilation included."""
    start = time.perf_counter()
    return jax.block_until_ready(run(*args)), time.perf_counter() - start


def report(label: str, config: Any, result: Result, seconds: float) -> dict[str, Any]:
    """Print one line per start and return what JSON keeps."""
    rates = config.finetune_rates or ERAS[config.era].finetune_rates
    best, test, train = choose_rates(result)
    print(f"{label} ({seconds:.0f} s):")
    for start, rate, on_test, on_train in zip(STARTS, best, test, train, strict=True):
        at = f"at learning rate {rates[rate]:g}, {np.mean(on_train, dtype=np.float64):.2f}% in training"
        print(f"  {start:13} test error {mean_text(on_test, '6.2f')}%  {at}", flush=True)
    losses = np.asarray(result.reconstruction_loss).mean(0)
    found = {"test": test, "train": train, "rate": [rates[i] for i in best]}
    return found | {"seconds": seconds, "reconstruction_loss": losses}
