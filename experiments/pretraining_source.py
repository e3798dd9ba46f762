"""Pre-training on another data set, related to the task or not, or on the task's own unlabelled images.

The task is scikit-learn's digits; every source gives as many images of 8 x 8. Two sources are controls:
white noise, and photographs whose pixels are shuffled, image by image, so that only the histogram is left.
Every member draws its own images of every source, and its own training, validation and labelled digits;
members beside those reported choose each source's rate by their validation images. MNIST must be cut to the
digits' frame: with its margins left on it is no better than the photographs. Intervals cover members and
test images.

That photographs help is no matter of any pre-training: noise and shuffled pixels do not, or less. With ReLU
units, He's kernels and Adam, which stand beside, no source gains much, unless the layers stay as they were
pre-trained (`--era modern --unfreeze head`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import layerwise_report as reports
import numpy as np
from layerwise_starts import (
    DATA_AXES,
    ERAS,
    Data,
    EraName,
    Judged,
    StartsConfig,
    draw_members,
    judge_net,
    make_net,
    timed,
)

from jaxrl_align import runtime
from jaxrl_align.data.images import Images, load_digits, load_mnist, load_photo_patches, shrink_mnist
from jaxrl_align.pretrain import layerwise as lw
from jaxrl_align.runtime import RunFolder, cli, plots, shard_members, use_cpu_devices

CLAIM = runtime.Claim(
    "Pre-training on related data is better than on unrelated data, and that is better than none; the data "
    "need neither labels nor be the task's own.",
    rows=("C8",),
    minutes=9,
)
SOURCES = (
    "none",
    "white noise",
    "shuffled pixels",
    "photographs",
    "MNIST",
    "the digits themselves",
    "MNIST with labels",
)
"""Nothing, two controls, unrelated, related, the task's own images, and related by its labels."""
NONE, NOISE, SHUFFLED, PHOTOGRAPHS, MNIST, OWN, LABELLED = range(len(SOURCES))


@dataclass(frozen=True)
class Config(StartsConfig):
    """Test error on scikit-learn's digits."""

    out: str = "runs/pretraining_source"
    beside: EraName | None = "modern"
    """An era whose numbers stand beside; none leaves it out."""
    labels: tuple[int, ...] = (10, 50, 200)
    """Numbers of labelled images."""
    depth: int = 3
    """Hidden layers."""
    finetune_steps: int = 3_000
    """Updates on the labelled images, whatever their number."""
    unfreeze: Literal["all", "head", "gradual"] = "all"
    """Which layers learn from the labels."""


class Sources(NamedTuple):
    """What is pre-trained on, [M, ...]."""

    images: jax.Array
    """[5, N, 64] of the sources without labels, in the order of `SOURCES`."""
    labels: jax.Array
    """[N] of MNIST's images."""


def shuffle_pixels(images: np.ndarray, seed: int) -> np.ndarray:
    """Return images [N, D] with the pixels of each in a random order of its own."""
    return np.random.default_rng(seed).permuted(images, axis=1)


def draw_sources(own: np.ndarray, mnist: Images, seeds: range) -> Sources:
    """Return every member's own draw of every source, as many images as the digits `own` [M, N, 64] have."""
    num = own.shape[1]
    images, labels = [], []
    for digits, seed in zip(own, seeds, strict=True):
        random = np.random.default_rng(seed)
        rows = random.permutation(len(mnist.y))[:num]
        photographs = load_photo_patches(num, 8, seed=seed)
        noise = random.uniform(size=photographs.shape).astype(np.float32)
        related = shrink_mnist(mnist.x[rows])
        images.append(np.stack([noise, shuffle_pixels(photographs, seed), photographs, related, digits]))
        labels.append(mnist.y[rows])
    return shard_members(Sources(jnp.asarray(np.stack(images)), jnp.asarray(np.stack(labels))))


def make_pretrain(config: Config) -> tuple[Any, Callable[[jax.Array, Sources], Any]]:
    """Return the net and `(key, one member's sources) -> params` with SOURCES' axis."""
    era = ERAS[config.era]
    net = make_net(era, 64, config.depth, config.width)
    how = {"epochs": config.pretrain_epochs, "batch_size": config.batch_size, "optimizer": era.optimizer}
    by_images = lw.pretrain_unsupervised(net, lw.make_layer_autoencoders(net), kind=era.reconstruction, **how)
    by_labels = lw.pretrain_supervised(net, **how)
    coder = lw.AutoencoderHParams(era.unsupervised_rate, config.corruption)
    classifier = lw.ClassifierHParams(era.supervised_rate)

    def pretrain(key: jax.Array, sources: Sources) -> Any:
        key_init, key, key_labels = jax.random.split(key, 3)
        params = net.init(key_init)
        train = lambda x: by_images(key, params["layers"], x, coder)[0]
        related = (sources.images[MNIST - 1], sources.labels)
        labelled, _ = by_labels(key_labels, params["layers"], related, classifier)
        stack = lambda none, others, label: jnp.concatenate([none[None], others, label[None]])
        layers = jax.tree.map(stack, params["layers"], jax.vmap(train)(sources.images), labelled)
        return {
            "layers": layers,
            "head": jax.tree.map(lambda p: jnp.stack([p] * len(SOURCES)), params["head"]),
        }

    return net, pretrain


def make_tune(config: Config, net: Any, num: int) -> Callable[..., Judged]:
    """Return `(key, params, one member's data) -> what is judged [sources, rates]`."""
    train = lw.finetune(
        net,
        epochs=max(1, round(config.finetune_steps / max(1, num // config.batch_size))),
        batch_size=config.batch_size,
        unfreeze=config.unfreeze,
        optimizer=ERAS[config.era].optimizer,
    )

    def tune(key: jax.Array, params: Any, data: Data) -> Judged:
        def at(params: Any, rate: jax.Array) -> Judged:
            tuned, _ = train(key, params, data.labelled, lw.ClassifierHParams(rate))
            return judge_net(net, tuned, data)

        return jax.vmap(jax.vmap(at, (None, 0)), (0, None))(params, jnp.array(config.rates()))

    return tune


def run_era(
    config: Config, folder: RunFolder, data: dict[int, Data], sources: Sources
) -> dict[int, reports.Kept]:
    """Pre-train once on every source, fine-tune on every number of labels; return what is kept of each."""
    net, pretrain = make_pretrain(config)
    keys = jax.vmap(jax.random.split)(config.member_keys())
    params: Any = None

    def run(num: int) -> reports.Kept:
        nonlocal params
        if params is None:
            params, seconds = timed(jax.jit(jax.vmap(pretrain)), keys[:, 0], sources)
            print(f"{config.era}, pre-training: {seconds:.0f} s", flush=True)
        tune = jax.jit(jax.vmap(make_tune(config, net, num), (0, 0, DATA_AXES)))
        judged, seconds = timed(tune, keys[:, 1], params, data[num])
        print(f"{config.era}, {num} labels: {seconds:.0f} s", flush=True)
        return reports.keep(config, judged)

    return {num: folder.once(f"{config.era}_{num}.json", run, num) for num in config.labels}


def judge(eras: dict[str, np.ndarray]) -> dict[str, bool]:
    """Return which parts of the claim hold, of errors [sources, M, N] that are means over the labels."""
    (era, wrong), *others = eras.items()
    below = lambda first, second, of=wrong: reports.difference(of[first], of[second]).high < 0
    found = {
        f"{era}: photographs, which are unrelated, end below none": below(PHOTOGRAPHS, NONE),
        "MNIST, which is related, ends below photographs": below(MNIST, PHOTOGRAPHS),
        "MNIST without its labels ends no higher than with them": not below(LABELLED, MNIST),
        "photographs end below white noise": below(PHOTOGRAPHS, NOISE),
        "and below photographs whose pixels are shuffled": below(PHOTOGRAPHS, SHUFFLED),
    }
    for name, other in others:
        found[f"{name}: photographs end below none"] = below(PHOTOGRAPHS, NONE, other)
        found[f"{name}: MNIST ends below photographs"] = below(MNIST, PHOTOGRAPHS, other)
    return found


def report(folder: RunFolder, configs: dict[str, Config], eras: dict[str, dict[int, reports.Kept]]) -> None:
    """Draw every era and write the result."""
    config, figures = next(iter(configs.values())), []
    means, tables = {}, {}
    for era, kept in eras.items():
        errors = {num: reports.wrong_images(one) for num, one in kept.items()}
        means[era] = np.mean(list(errors.values()), 0)
        tables[f"{era}, mean over the labels: error [%], differences paired"] = {
            name: reports.compare_row(means[era], SOURCES, i, AGAINST) for i, name in enumerate(SOURCES)
        }
        for num, one in kept.items():
            found = reports.tabulate(one, SOURCES, AGAINST)
            tables[f"{era}, {num} labels: error [%], differences paired"] = found
        for num, one in kept.items():
            found = reports.every_rate(configs[era], one, SOURCES)
            tables[f"{era}, {num} labels, every rate: test error, and that which chose [%]"] = found
        curves = {
            name: (config.labels, [e[i].mean(1) for e in errors.values()]) for i, name in enumerate(SOURCES)
        }
        figures.append(f"test_error_{era}.png")
        path, labels = folder.path / figures[-1], ("labelled digits", "test error [%]")
        title = f"recipe: {era}, {config.seeds} seeds, 95%"
        plots.save_curves(path, *labels, curves, title=title, xscale="log", bounds=(0, 100), ylim=(0, None))
    pairs = ((PHOTOGRAPHS, NONE), (MNIST, PHOTOGRAPHS))
    headline = {
        f"{era}: test error, mean over the labels, {SOURCES[a]} less {SOURCES[b]} [%]": reports.difference(
            w[a], w[b]
        )
        for era, w in means.items()
        for a, b in pairs
    }
    baselines = {
        f"{era}: test error, mean over the labels, {SOURCES[i]} [%]": runtime.crossed_interval(
            w[i], bounds=(0, 100)
        )
        for era, w in means.items()
        for i in (NONE, NOISE)
    }
    how = {"headline": headline, "baselines": baselines, "checks": judge(means)}
    runtime.write_result(folder, config, CLAIM, tables=tables, figures=figures, **how)


AGAINST = ("none", "photographs")
"""Sources that all others are held against."""


def main(config: Config) -> None:
    """Pre-train and fine-tune in both eras; save, draw and report."""
    config.require(seeds=1, tuning_seeds=1, labels=1)
    use_cpu_devices()
    split = load_digits()
    data = {num: draw_members(config, split, num) for num in config.labels}
    seeds = range(config.seed, config.seed + config.seeds + config.tuning_seeds)
    sources = draw_sources(np.asarray(data[config.labels[0]].x), load_mnist().train, seeds)
    folder = config.open_folder()
    configs = {
        era: replace(config, era=era) for era in dict.fromkeys((config.era, config.beside or config.era))
    }
    eras = {era: run_era(own, folder, data, sources) for era, own in configs.items()}
    report(folder, configs, eras)


if __name__ == "__main__":
    cli.main(Config, main)
