"""Three starts of one descent: random, or layers pre-trained one by one with labels or without.

Sigmoid units, kernels drawn as in 2006 and plain SGD on scikit-learn's digits, at one to five hidden layers.
Every member draws its own training and validation images; members beside those reported choose each start's
rate by the errors on their validation images, ties by the loss there. Intervals cover members and test
images.

The random start cannot leave its plateau when the net is deep: most images are wrong in training too, and
neither more epochs nor better kernels (`--era 2006+glorot`) help, while Adam does (`--era 2006+adam`), and
with ReLU units and He's kernels besides the gap closes (`--era modern`). So here pre-training repaired the
descent more than it informed it; where labels are few it does inform: see `tiny_labels.py`. All of MNIST:
`--data mnist --batch-size 100 --pretrain-epochs 3 --finetune-epochs 8 --finetune-rates 1.0`, many minutes
and gigabytes a depth.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import layerwise_report as reports
import layerwise_starts as starts
import numpy as np

from jaxrl_align import pretrain, runtime
from jaxrl_align.nets import LayeredNet
from jaxrl_align.runtime import RunFolder, cli, plots, use_cpu_devices

CLAIM = runtime.Claim(
    "Deep networks whose layers were pre-trained greedily, with labels or better without (Bengio et al. "
    "2006), end at a lower test error than from a random start.",
    rows=("C3", "C5", "C6", "C7"),
    minutes=4,
)
RANDOM, SUPERVISED, UNSUPERVISED = starts.STARTS


@dataclass(frozen=True)
class Config(starts.StartsConfig):
    """Test error against depth."""

    out: str = "runs/layerwise_pretraining"
    data: str = "digits"
    """digits, mnist, or a folder of four IDX files (Fashion-MNIST's, for example)."""
    depths: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Hidden layers."""
    finetune_epochs: int = 40
    """Passes over the labelled images, all layers together."""
    tied: bool = False
    """The autoencoders decode by their encoder's transposed kernel."""


def draw_reconstructions(folder: RunFolder, config: Config, net: LayeredNet, params: Any, x: Any) -> None:
    """Write reconstructions.png, a row per depth below ten inputs, and filters.png, the first layer's."""
    era = starts.ERAS[config.era]
    side = round(net.input_dim**0.5)
    autoencoders = pretrain.make_layer_autoencoders(net, tied=config.tied)
    rows = [np.asarray(x)]
    for k in range(1, len(net.widths) + 1):
        decode = functools.partial(
            pretrain.reconstruct, autoencoders[:k], params[:k], kind=era.reconstruction
        )
        rows.append(np.asarray(jax.jit(jax.vmap(decode))(x)))
    tile = lambda grid: np.concatenate([np.concatenate([np.pad(i, 1) for i in row], 1) for row in grid])
    inputs = tile([row.clip(0, 1).reshape(-1, side, side) for row in rows])
    kernels = np.asarray(params[0]["encoder"]["kernel"]).T[:60]
    kernels = (kernels / np.abs(kernels).max(1, keepdims=True)).reshape(-1, side, side)
    filters = tile(np.split(kernels, range(12, len(kernels), 12)))
    back = f"{config.data}: inputs, and back from 1 to {len(net.widths)} layers"
    first = "first-layer filters of the autoencoder"
    for name, title, image in (("reconstructions", back, inputs), ("filters", first, filters)):
        fig, ax = plots.figure("", "", title=title)
        ax.imshow(image, cmap="gray")
        ax.set_axis_off()
        plots.save_figure(fig, folder.path / f"{name}.png")


def judge(errors: dict[int, np.ndarray]) -> dict[str, bool]:
    """Return which parts of the claim the errors [starts, M, N] of every depth show."""
    deep, shallow = max(errors), min(errors)
    less = lambda first, second, found: reports.difference(found[first], found[second]).high < 0
    mean = np.mean(list(errors.values()), 0)
    return {
        f"with {deep} hidden layers pre-training with labels ends below the random start": less(
            1, 0, errors[deep]
        ),
        f"with {deep}, pre-training without labels does": less(2, 0, errors[deep]),
        f"with {shallow} already, pre-training without labels does": less(2, 0, errors[shallow]),
        "without labels is better than with them, mean over the depths": less(2, 1, mean),
    }


def report(folder: RunFolder, config: Config, kept: dict[int, reports.Kept]) -> None:
    """Draw the errors against the depth and write the result."""
    errors = {depth: reports.wrong_images(one) for depth, one in kept.items()}
    curves = {
        name: (config.depths, [e[i].mean(1) for e in errors.values()]) for i, name in enumerate(starts.STARTS)
    }
    title = f"{config.data}, recipe: {config.era}, {config.seeds} seeds, 95%"
    path, ticks = folder.path / "test_error.png", {"yscale": "log", "xticks": config.depths}
    plots.save_curves(path, "hidden layers", "test error [%]", curves, title=title, bounds=(0, 100), **ticks)
    deep, mean = errors[max(config.depths)], np.mean(list(errors.values()), 0)
    tables = {}
    for depth, one in kept.items():
        found = reports.tabulate(one, starts.STARTS, (RANDOM, SUPERVISED))
        tables[f"depth {depth}: error [%], differences paired"] = found
    for depth, one in kept.items():
        found = reports.every_rate(config, one, starts.STARTS)
        tables[f"depth {depth}, every rate: test error, and that which chose [%]"] = found
    at = f"test error [%] with {max(config.depths)} hidden layers"
    runtime.write_result(
        folder,
        config,
        CLAIM,
        headline={
            f"{at}, pre-trained without labels less random": reports.difference(deep[2], deep[0]),
            "mean over the depths, without labels less with labels": reports.difference(mean[2], mean[1]),
        },
        baselines={f"{at}, random": runtime.crossed_interval(deep[0], bounds=(0, 100))},
        checks=judge(errors),
        tables=tables,
        figures=["test_error.png", "reconstructions.png", "filters.png"],
    )


def main(config: Config) -> None:
    """Train the three starts at every depth; save, draw and report."""
    config.require(seeds=1, tuning_seeds=1, depths=1)
    use_cpu_devices()
    split = starts.load(config.data)
    data = starts.draw_members(config, split)
    folder = config.open_folder()
    keys = config.member_keys()

    def run(depth: int) -> reports.Kept:
        net = starts.make_net(starts.ERAS[config.era], split.train.x.shape[1], depth, config.width)
        member = starts.make_member(config, net, config.finetune_epochs)
        result, seconds = starts.timed(jax.jit(jax.vmap(member, (0, starts.DATA_AXES))), keys, data)
        if depth == max(config.depths):
            first = jax.tree.map(lambda leaf: leaf[0], result.autoencoders)
            draw_reconstructions(folder, config, net, first, split.test.x[:10])
        print(f"depth {depth}: {seconds:.0f} s", flush=True)
        return reports.keep(config, result.judged) | {
            "reconstruction_loss": result.reconstruction_loss.mean(0)
        }

    kept = {depth: folder.once(f"depth_{depth}.json", run, depth) for depth in config.depths}
    report(folder, config, kept)


if __name__ == "__main__":
    cli.main(Config, main)
