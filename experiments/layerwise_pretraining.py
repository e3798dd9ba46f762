"""Three starts of one descent: random, or layers pre-trained one by one with labels or without.

Claim (lecture 000, C3-C7; Bengio et al. 2006, Larochelle et al. 2009): deep networks that start from layers
pre-trained greedily, with labels or better without, end at a lower test error than from a random start.

Measured (8 seeds, mean test error in per cent with its 95% t interval, two shared CPU cores). On
scikit-learn's digits (`python experiments/layerwise_pretraining.py`, 2 min: sigmoid units, plain SGD, four
learning rates of which each start has the one that validation chose):

    hidden layers         1              2              3              4               5
    random          2.51 +- 0.35   2.86 +- 0.30   3.52 +- 0.75   64.07 +- 15.75  90.70 +- 1.08
    supervised      2.44 +- 0.35   2.68 +- 0.25   2.89 +- 0.25    4.07 +- 0.37    4.07 +- 0.35
    unsupervised    1.81 +- 0.28   2.33 +- 0.43   2.58 +- 0.39    2.65 +- 0.28    2.65 +- 0.85

so the claim holds: without labels beats random with intervals apart at 1, 4 and 5 layers, and with labels
at 4 and 5. On all of MNIST (`--data mnist --batch-size 100 --pretrain-epochs 3 --finetune-epochs 8
--finetune-rates 1.0`, 2 to 8 min a depth on a loaded machine; the published 1.65 and 1.3 are of nets ten
times as wide, trained many times as long):

    random          2.89 +- 0.06   3.22 +- 0.25   4.20 +- 0.36   33.78 +- 16.34  88.94 +- 0.45
    supervised      2.98 +- 0.07   2.98 +- 0.16   3.04 +- 0.25    3.14 +- 0.23    3.17 +- 0.22
    unsupervised    3.35 +- 0.15   3.19 +- 0.13   3.22 +- 0.27    3.19 +- 0.23    3.34 +- 0.22

Why, at 5 layers of the digits: the random start cannot leave its plateau (90% error in training too), and
three and a half times the epochs (`--depths 5 --finetune-epochs 140`, more than pre-training took) leave it
at 91.43 +- 0.82. Better kernels alone do not help (`--era 2006+glorot`: 90.70 +- 1.08), Adam does (`--era
2006+adam`: 6.09 +- 1.07 random, 2.65 +- 0.35 without labels). ReLU units, He's kernels and Adam close the
gap (`--era modern`): 1.50 +- 0.17, 1.60 +- 0.27, 1.53 +- 0.25 at one layer and, at five, 2.12 +- 0.37, 1.74
+- 0.49, 1.57 +- 0.30 for the three. Pre-training repaired the descent more than it informed it; where
labels are few it does inform: see tiny_labels.
"""

import functools
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import layerwise_starts as starts
import numpy as np

from jaxrl_align import pretrain
from jaxrl_align.nets import LayeredNet
from jaxrl_align.runtime import RunFolder, cli, plots, shard_members, use_cpu_devices


@dataclass(frozen=True)
class Config(starts.StartsConfig):
    """Test error against depth."""

    out: str = "runs/layerwise_pretraining"
    data: str = "digits"
    """digits, mnist, or a folder of four IDX files (Fashion-MNIST's, for example)."""
    depths: tuple[int, ...] = (1, 2, 3, 4, 5)
    """Hidden layers."""
    finetune_epochs: int = 40
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


def main(config: Config) -> None:
    """Train the three starts at every depth; print, save and draw."""
    use_cpu_devices()
    split = starts.load(config.data)
    train, validation = starts.hold_out(split.train, config.validation_share, config.seed)
    arrays = [tuple(map(jnp.asarray, part)) for part in (train, validation, split.test)]
    data = starts.Data(arrays[0][0], *arrays)
    folder = config.open_folder()
    keys = shard_members(config.keys())

    def run(depth: int) -> dict[str, Any]:
        net = starts.make_net(starts.ERAS[config.era], train.x.shape[1], depth, config.width)
        member = jax.jit(jax.vmap(starts.make_member(config, net, config.finetune_epochs), (0, None)))
        result, seconds = starts.timed(member, keys, data)
        if depth == max(config.depths):
            first = jax.tree.map(lambda leaf: leaf[0], result.autoencoders)
            draw_reconstructions(folder, config, net, first, split.test.x[:10])
        return starts.report(f"{depth} hidden layers", config, result, seconds)

    results = [folder.once(f"depth_{depth}.json", run, depth) for depth in config.depths]
    curves = {name: (config.depths, [r["test"][i] for r in results]) for i, name in enumerate(starts.STARTS)}
    title = f"{config.data}, {config.era}, {config.seeds} seeds, 95%"
    path, ticks = folder.path / "test_error.png", {"yscale": "log", "xticks": config.depths}
    plots.save_curves(path, "hidden layers", "test error [%]", curves, title=title, **ticks)
    print(f"figures and results are in {folder.path}")


if __name__ == "__main__":
    cli.main(Config, main)
