"""Pre-training on another data set, related to the task or not, or on the task's own unlabelled images.

DOCSTRING
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from layerwise_pretraining import ERAS, hold_out, make_net

from jaxrl_align.data.images import (
    choose_labelled,
    load_digits,
    load_mnist,
    load_photo_patches,
    shrink_mnist,
)
from jaxrl_align.pretrain import layerwise as lw
from jaxrl_align.runtime import cli
from jaxrl_align.runtime.folder import open_run
from jaxrl_align.runtime.mesh import shard_members, use_cpu_devices
from jaxrl_align.runtime.metrics import mean_interval
from jaxrl_align.runtime.plots import curve_with_interval, figure, save_figure

SOURCES = ("none", "photographs", "MNIST", "the digits themselves")
"""Nothing, unrelated, related, and the task's own images."""


@dataclass(frozen=True)
class Config:
    """Test error on scikit-learn's digits."""

    era: Literal["2006", "modern"] = "2006"
    labels: tuple[int, ...] = (10, 20, 50, 100, 200)
    depth: int = 3
    width: int = 100
    seeds: int = 8
    seed: int = 0
    batch_size: int = 20
    pretrain_epochs: int = 20
    """Of each layer."""
    finetune_steps: int = 3_000
    finetune_rates: tuple[float, ...] | None = None
    """Each source takes the one with the lowest validation error; none means the era's four."""
    corruption: float = 0.25
    unfreeze: Literal["all", "head", "gradual"] = "all"
    """Which layers learn from the labels."""
    validation_share: float = 0.2
    """Of the training images, held out to choose the rate."""
    out: str = "runs/pretraining_source"
    resume: bool = False


def make_pretrain(config: Config) -> tuple[Any, Callable[[jax.Array, jax.Array], Any]]:
    """Return the net and `(key, sources [S, N, 64]) -> params`, a leading axis [1 + S], the first random."""
    era = ERAS[config.era]
    net = make_net(era, 64, config.depth, config.width)
    train = lw.pretrain_unsupervised(
        net,
        lw.make_layer_autoencoders(net),
        epochs=config.pretrain_epochs,
        batch_size=config.batch_size,
        kind=era.reconstruction,
        optimizer=era.optimizer,
    )
    hparams = lw.AutoencoderHParams(era.unsupervised_rate, config.corruption)

    def pretrain(key: jax.Array, sources: jax.Array) -> Any:
        key_init, key = jax.random.split(key)
        params = net.init(key_init)
        layers = jax.vmap(lambda x: train(key, params["layers"], x, hparams)[0])(sources)
        heads = jax.tree.map(lambda p: jnp.stack([p] * (1 + len(sources))), params["head"])
        stack = lambda first, others: jnp.concatenate([first[None], others])
        return {"layers": jax.tree.map(stack, params["layers"], layers), "head": heads}

    return net, pretrain


def make_tune(config: Config, net: Any, num: int) -> Callable[..., jax.Array]:
    """Return `(key, params, labelled, sets) -> errors [rates, sets]` in per cent."""
    era = ERAS[config.era]
    rates = jnp.array(config.finetune_rates or era.finetune_rates)
    train = lw.finetune(
        net,
        epochs=max(1, round(config.finetune_steps / max(1, num // config.batch_size))),
        batch_size=config.batch_size,
        unfreeze=config.unfreeze,
        optimizer=era.optimizer,
    )

    def tune(key: jax.Array, params: Any, labelled: Any, sets: tuple) -> jax.Array:
        def at(rate: jax.Array) -> jax.Array:
            tuned, _ = train(key, params, labelled, lw.ClassifierHParams(rate))
            return jnp.stack([100 * lw.error_rate(net, tuned, part) for part in sets])

        return jax.vmap(at)(rates)

    return tune


def report(num: int, errors: np.ndarray) -> None:
    """Print each source's error [sources, M], and its difference from the source before, member by member."""
    print(f"{num} labels:")
    for i, source in enumerate(SOURCES):
        mean, half = mean_interval(errors[i])
        line = f"  {source:22} test error {mean:5.2f} +- {half:.2f}%"
        if i:
            mean, half = mean_interval(errors[i] - errors[i - 1])
            line += f"  paired difference from {SOURCES[i - 1]}: {mean:+.2f} +- {half:.2f}"
        print(line, flush=True)


def main(config: Config) -> None:
    """Pre-train once on every source, fine-tune on every number of labels; print, save and draw."""
    use_cpu_devices()
    split = load_digits()
    train, validation = hold_out(split.train, config.validation_share, config.seed)
    seeds = range(config.seed, config.seed + config.seeds)
    chosen = [np.stack([choose_labelled(train.y, num, seed=seed) for seed in seeds]) for num in config.labels]
    related, _ = hold_out(load_mnist().train, 1 - len(train.x) / 60_000, config.seed)
    sources = [load_photo_patches(len(train.x), 8), shrink_mnist(related.x), train.x]
    folder = open_run(config.out, config, resume=config.resume)
    start = time.perf_counter()
    net, pretrain = make_pretrain(config)
    keys = jax.random.split(jax.random.key(config.seed), (config.seeds, 2))
    pretrain_keys, tune_keys = (shard_members(keys[:, i]) for i in (0, 1))
    params = jax.jit(jax.vmap(pretrain, (0, None)))(pretrain_keys, jnp.asarray(np.stack(sources)))
    sets = jax.tree.map(jnp.asarray, (tuple(validation), tuple(split.test)))
    errors = []
    for num, rows in zip(config.labels, chosen, strict=True):
        labelled = shard_members((jnp.asarray(train.x[rows]), jnp.asarray(train.y[rows])))
        over_sources = jax.vmap(make_tune(config, net, num), (None, 0, None, None))
        tune = jax.jit(jax.vmap(over_sources, (0, 0, 0, None)))
        found = np.asarray(tune(tune_keys, params, labelled, sets))
        best = found[..., 0].mean(0).argmin(1)
        errors.append(np.stack([found[:, i, rate, 1] for i, rate in enumerate(best)]))
        report(num, errors[-1])
    result = {str(num): error for num, error in zip(config.labels, errors, strict=True)}
    folder.write_json("result.json", {"sources": SOURCES, "test_error": result})
    fig, ax = figure("labelled digits", "test error [%]", title=f"{config.era}, {config.seeds} seeds, 95%")
    for i, source in enumerate(SOURCES):
        curve_with_interval(ax, config.labels, [error[i] for error in errors], source)
    ax.set(xscale="log", ylim=(0, None))
    ax.legend()
    save_figure(fig, folder.path / "test_error.png")
    print(f"figure and result.json are in {folder.path}; {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    cli.main(Config, main)
