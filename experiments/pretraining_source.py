"""Pre-training on another data set, related to the task or not, or on the task's own unlabelled images.

Claim (lecture 000, C8): pre-training on related data is better than on unrelated data, and that is better
than none; the data need neither labels nor be the task's own.

Measured (`python experiments/pretraining_source.py`, needs MNIST: test error on the digits in per cent;
every source gives 1150 images of 8 x 8; 8 seeds, 95% t intervals, of paired differences below; two shared
CPU cores, 7 min):

    labels                          10             20             50            100            200
    none                      56.41 +- 4.45  46.27 +- 4.02  30.19 +- 3.60  22.04 +- 2.56  11.46 +- 1.71
    photographs               54.04 +- 3.08  41.61 +- 5.53  23.61 +- 3.76  16.57 +- 1.57   9.85 +- 1.52
    MNIST                     45.23 +- 3.17  33.64 +- 3.28  19.53 +- 2.82  14.07 +- 2.15   8.08 +- 1.15
    MNIST with labels         45.58 +- 8.09  30.78 +- 3.58  16.85 +- 2.17  12.74 +- 1.25   8.18 +- 1.10
    the digits themselves     40.15 +- 3.12  27.86 +- 4.11  14.80 +- 0.96  11.35 +- 1.48   6.93 +- 1.25

    photographs - none        -2.4 +- 2.0    -4.7 +- 3.5    -6.6 +- 5.0    -5.5 +- 2.4    -1.6 +- 1.7
    MNIST - photographs       -8.8 +- 5.3    -8.0 +- 5.3    -4.1 +- 3.6    -2.5 +- 2.3    -1.8 +- 1.1

so it holds from 10 to 100 labels with every paired interval below 0 (at 200 photographs are level with
none). MNIST must be cut to the digits' frame: with its margins left on it was no better than the
photographs. It does not hold for ReLU units, He's kernels and Adam (`--era modern`), where no source helps
by more than its interval at 50 to 200 labels, unless the layers stay as they were pre-trained (`--era
modern --unfreeze head`): then MNIST differs from none by -4.6 +- 3.0 at 50 labels and -2.7 +- 1.0 at 100,
photographs by +2.1 +- 2.6 and +1.9 +- 2.9.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from layerwise_starts import ERAS, StartsConfig, hold_out, make_net

from jaxrl_align.data.images import choose_labelled, load_digits, load_mnist, load_photo_patches, shrink_mnist
from jaxrl_align.pretrain import layerwise as lw
from jaxrl_align.runtime import cli, plots, statistics
from jaxrl_align.runtime.mesh import shard_members, use_cpu_devices

SOURCES = ("none", "photographs", "MNIST", "MNIST with labels", "the digits themselves")
"""Nothing, unrelated, related, related by its labels, and the task's own images."""


@dataclass(frozen=True)
class Config(StartsConfig):
    """Test error on scikit-learn's digits."""

    out: str = "runs/pretraining_source"
    labels: tuple[int, ...] = (10, 20, 50, 100, 200)
    depth: int = 3
    finetune_steps: int = 3_000
    unfreeze: Literal["all", "head", "gradual"] = "all"
    """Which layers learn from the labels."""


def make_pretrain(config: Config) -> tuple[Any, Callable[[jax.Array, jax.Array], Any]]:
    """Return the net and `(key, sources [3, N, 64], MNIST's labels [N]) -> params` with SOURCES' axis."""
    era = ERAS[config.era]
    net = make_net(era, 64, config.depth, config.width)
    how = {"epochs": config.pretrain_epochs, "batch_size": config.batch_size, "optimizer": era.optimizer}
    by_images = lw.pretrain_unsupervised(net, lw.make_layer_autoencoders(net), kind=era.reconstruction, **how)
    by_labels = lw.pretrain_supervised(net, **how)
    coder = lw.AutoencoderHParams(era.unsupervised_rate, config.corruption)
    classifier = lw.ClassifierHParams(era.supervised_rate)

    def pretrain(key: jax.Array, sources: jax.Array, labels: jax.Array) -> Any:
        key_init, key, key_labels = jax.random.split(key, 3)
        params = net.init(key_init)
        train = lambda x: by_images(key, params["layers"], x, coder)[0]
        labelled, _ = by_labels(key_labels, params["layers"], (sources[1], labels), classifier)
        stack = lambda none, label, others: jnp.stack([none, others[0], others[1], label, others[2]])
        layers = jax.tree.map(stack, params["layers"], labelled, jax.vmap(train)(sources))
        return {"layers": layers, "head": jax.tree.map(lambda p: jnp.stack([p] * 5), params["head"])}

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
    """Print each source's error [sources, M], and how it differs from none and photographs, pair by pair."""
    print(f"{num} labels:{'':38}paired differences")
    for i, source in enumerate(SOURCES):
        line = f"  {source:22} test error {statistics.mean_text(errors[i], '5.2f')}%"
        for other in range(min(i, 2)):
            line += f"   from {SOURCES[other]} {statistics.mean_text(errors[i] - errors[other], '+.2f')}"
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
    folder = config.open_folder()
    start = time.perf_counter()
    net, pretrain = make_pretrain(config)
    keys = jax.random.split(jax.random.key(config.seed), (config.seeds, 2))
    pretrain_keys, tune_keys = (shard_members(keys[:, i]) for i in (0, 1))
    pretrain = jax.jit(jax.vmap(pretrain, (0, None, None)))
    params = pretrain(pretrain_keys, jnp.asarray(np.stack(sources)), jnp.asarray(related.y))
    sets = jax.tree.map(jnp.asarray, (tuple(validation), tuple(split.test)))

    def run(num: int, rows: np.ndarray) -> np.ndarray:
        labelled = shard_members((jnp.asarray(train.x[rows]), jnp.asarray(train.y[rows])))
        over_sources = jax.vmap(make_tune(config, net, num), (None, 0, None, None))
        tune = jax.jit(jax.vmap(over_sources, (0, 0, 0, None)))
        found = np.asarray(tune(tune_keys, params, labelled, sets))
        best = found[..., 0].mean(0).argmin(1)
        return np.stack([found[:, i, rate, 1] for i, rate in enumerate(best)])

    errors = {}
    for num, rows in zip(config.labels, chosen, strict=True):
        errors[num] = np.array(folder.once(f"labels_{num}.json", run, num, rows))
        report(num, errors[num])
    folder.write_json("result.json", {"sources": SOURCES, "test_error": errors})
    curves = {name: (config.labels, [x[i] for x in errors.values()]) for i, name in enumerate(SOURCES)}
    title = f"{config.era}, {config.seeds} seeds, 95%"
    path, labels = folder.path / "test_error.png", ("labelled digits", "test error [%]")
    plots.save_curves(path, *labels, curves, title=title, xscale="log", ylim=(0, None))
    print(f"figure and result.json are in {folder.path}; {time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    cli.main(Config, main)
