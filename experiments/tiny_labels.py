"""Few labels, a large model: what the three starts make of them.

Claim (lecture 000, C4-C6): with few labels a large model over-fits, and pre-training on unlabelled images
helps most there.

Measured (`python experiments/tiny_labels.py`, digits, 3 layers of 100 units, 28,000 weights: 8 seeds with
labels of their own, mean test error in per cent with its 95% t interval; two shared CPU cores, 6 min):

    labels                10            20            50           100           200          1150, all
    random          55.95 +- 3.12  47.18 +- 4.47  33.84 +- 3.97  27.19 +- 1.94  16.02 +- 3.63  3.69 +- 0.37
    supervised      56.13 +- 2.51  48.29 +- 3.18  30.99 +- 4.41  17.31 +- 2.14   9.12 +- 1.84  3.13 +- 0.21
    unsupervised    40.04 +- 3.58  27.99 +- 4.06  15.42 +- 1.37  11.80 +- 1.17   6.82 +- 1.81  3.17 +- 0.30

Up to 100 labels all of them make next to no error on those, so that the whole error is over-fitting. Images
without labels halve it at 50 and 100 labels, with intervals apart from 10 to 200; labels can pre-train
nothing that they do not know (10 to 50). With ReLU units, He's kernels and Adam (`--era modern`) the three
starts are level from 10 (47.46 +- 4.01, 46.31 +- 3.72, 43.38 +- 5.74) to 200 labels (6.06 +- 1.18, 5.88 +-
1.01, 6.41 +- 1.28) and on: the modern random start is as good as the unsupervised one of 2006.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import layerwise_starts as starts
import numpy as np

from jaxrl_align.data.images import choose_labelled
from jaxrl_align.runtime import cli, plots
from jaxrl_align.runtime.mesh import shard_members, use_cpu_devices


@dataclass(frozen=True)
class Config(starts.StartsConfig):
    """Test error against the number of labels."""

    out: str = "runs/tiny_labels"
    seeds: int = 8
    """Each draws its own labelled images."""
    data: str = "digits"
    """digits, mnist, or a folder of four IDX files."""
    labels: tuple[int, ...] = (10, 20, 50, 100, 200, 500, 1000)
    """Numbers of images that keep theirs; all of them are always the last point."""
    depth: int = 3
    """Hidden layers."""
    finetune_steps: int = 3_000
    """Gradient steps, whatever the number of labels."""
    tied: bool = False
    validation_share: float = 0.2
    """Of the training images. It chooses the rate alone, yet is more than a poor man's labels would allow."""


def compare(config: Config, parts: tuple, num: int) -> starts.Result:
    """Return the members' results with `num` labels each; every member has all the images."""
    train, validation, test = parts
    net = starts.make_net(starts.ERAS[config.era], train.x.shape[1], config.depth, config.width)
    epochs = max(1, round(config.finetune_steps / max(1, num // config.batch_size)))
    member = starts.make_member(config, net, epochs)
    seeds = range(config.seed, config.seed + config.seeds)
    rows = np.stack([choose_labelled(train.y, num, seed=seed) for seed in seeds])
    shared = starts.Data(
        jnp.asarray(train.x), (), *(tuple(map(jnp.asarray, part)) for part in (validation, test))
    )
    train = jax.tree.map(jnp.asarray, train)

    def run(key: jax.Array, rows: jax.Array, shared: starts.Data, train: Any) -> starts.Result:
        return member(key, shared._replace(labelled=(train.x[rows], train.y[rows])))

    keys, rows = shard_members((config.keys(), jnp.asarray(rows)))
    return jax.jit(jax.vmap(run, (0, 0, None, None)))(keys, rows, shared, train)


def main(config: Config) -> None:
    """Train the three starts on every number of labels; print, save and draw."""
    use_cpu_devices()
    split = starts.load(config.data)
    train, validation = starts.hold_out(split.train, config.validation_share, config.seed)
    for num in config.labels:
        choose_labelled(train.y, num, seed=0)  # refuses before any work
    folder = config.open_folder()
    numbers, parts = sorted({*config.labels, len(train.y)}), (train, validation, split.test)
    run = lambda num: starts.report(f"{num} labels", config, *starts.timed(compare, config, parts, num))
    results = [folder.once(f"labels_{num}.json", run, num) for num in numbers]
    title = f"{config.data}, {config.era}, {config.depth} layers, {config.seeds} seeds, 95%"
    for which in ("test", "train"):
        curves = {name: (numbers, [r[which][i] for r in results]) for i, name in enumerate(starts.STARTS)}
        path, labels = folder.path / f"{which}_error.png", ("labelled images", f"{which} error [%]")
        plots.save_curves(path, *labels, curves, title=title, xscale="log", ylim=(0, None))
    print(f"figures and results are in {folder.path}")


if __name__ == "__main__":
    cli.main(Config, main)
