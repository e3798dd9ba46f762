"""Nets of growing width on few labels and on many: does a massive one over-fit a tiny labelled set?

Digits, one hidden layer, equally many gradient steps for every width and number of labels; every member draws
its own training, validation and labelled images, and members beside those reported choose each width's rate
by their validation images. The gap is the error on the test set less that on the labels. Intervals cover
members and test images.

The widest net has thousands of weights a label, makes no error on the labels and many on new images, far
fewer with more labels: in this sense it over-fits. But it does not over-fit because it is massive. Once a net
is wide enough to fit the labels, more width lowers the test error or leaves it, as others found for nets
beyond that point (Belkin et al. 2019, arXiv:1812.11118); what makes the gap is the number of labels.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import layerwise_report as reports
import layerwise_starts as starts
import numpy as np

from jaxrl_align import runtime
from jaxrl_align.pretrain import layerwise as lw
from jaxrl_align.runtime import RunFolder, cli, plots, use_cpu_devices

CLAIM = runtime.Claim(
    "A massive model over-fits a tiny labelled set: it makes no error there and many on new images, fewer "
    "with more labels, and more than a smaller model would.",
    rows=("C4",),
    minutes=5,
)


@dataclass(frozen=True)
class Config(starts.StartsConfig):
    """Error against the width of one hidden layer."""

    out: str = "runs/overfitting"
    era: starts.EraName = "modern"
    data: str = "digits"
    """digits, mnist, or a folder of four IDX files."""
    labels: tuple[int, ...] = (50, 200, 1000)
    """Numbers of labelled images, in rising order; the first is the tiny set."""
    widths: tuple[int, ...] = (2, 8, 32, 128, 512, 2048)
    """Units of the hidden layer, in rising order."""
    steps: int = 2_000
    """Gradient steps."""


def compare(config: Config, data: starts.Data, num: int, width: int) -> reports.Kept:
    """Return what is kept of one width with `num` labels, and `loss` [M] of held-out images."""
    era = starts.ERAS[config.era]
    net = starts.make_net(era, data.x.shape[-1], 1, width)
    epochs = max(1, round(config.steps / max(1, num // config.batch_size)))
    train = lw.finetune(net, epochs=epochs, batch_size=config.batch_size, optimizer=era.optimizer)

    def member(key: jax.Array, data: starts.Data) -> starts.Judged:
        key_init, key = jax.random.split(key)
        params = net.init(key_init)

        def at(rate: jax.Array) -> starts.Judged:
            tuned, _ = train(key, params, data.labelled, lw.ClassifierHParams(rate))
            return starts.judge_net(net, tuned, data)

        return jax.tree.map(lambda leaf: leaf[None], jax.vmap(at)(jnp.array(config.rates())))

    run = jax.jit(jax.vmap(member, (0, starts.DATA_AXES)))
    judged, seconds = starts.timed(run, config.member_keys(), data)
    print(f"{num} labels, width {width}: {seconds:.0f} s", flush=True)
    kept = reports.keep(config, judged)
    best = config.rates().index(kept["rate"][0])
    return kept | {"loss": judged.validation_loss[: config.seeds, 0, best]}


def gap(kept: reports.Kept) -> np.ndarray:
    """Return the test error less the error on the labels, [M, N], in per cent."""
    return reports.wrong_images(kept)[0] - np.array(kept["train"][0])[:, None]


def best_narrower(kept: dict[int, reports.Kept]) -> int:
    """Return the width below the largest that the choosing members err least with."""
    *narrower, _ = kept
    return min(narrower, key=lambda width: np.min(kept[width]["validation"]))


def beyond(kept: dict[int, reports.Kept]) -> runtime.Interval:
    """Return the test error of the widest net less that of the best narrower one."""
    return reports.difference(*(reports.wrong_images(kept[w])[0] for w in (max(kept), best_narrower(kept))))


def judge(found: dict[int, dict[int, reports.Kept]]) -> dict[str, bool]:
    """Return which parts of the claim hold, of each number of labels and each width."""
    few, many = min(found), max(found)
    widest = {num: kept[max(kept)] for num, kept in found.items()}
    shrinks = reports.difference(gap(widest[few]), gap(widest[many]))
    limits = reports.PER_CENT
    return {
        f"on {few} labels the widest net errs on fewer than 1%, and on 5% more of new images at least": (
            np.mean(widest[few]["train"]) < 1
            and runtime.crossed_interval(gap(widest[few]), bounds=limits).low > 5
        ),
        f"with {many} labels that gap is smaller": shrinks.low > 0,
        f"on {few} labels the gap is larger than the narrowest net's": (
            reports.difference(gap(widest[few]), gap(found[few][min(found[few])])).low > 0
        ),
        f"on {few} labels the widest net errs more on new images than the best narrower one": (
            beyond(found[few]).low > 0
        ),
    }


def tabulate(config: Config, kept: dict[int, reports.Kept], input_dim: int) -> dict[str, dict[str, Any]]:
    """Return a row for each width."""
    table, widest = {}, reports.wrong_images(kept[max(kept)])[0]
    for width, one in kept.items():
        wrong = reports.wrong_images(one)[0]
        table[f"{width} units"] = {
            "weights": (input_dim + 1) * width + 10 * (width + 1),
            "error on the labels": runtime.t_interval(one["train"][0], bounds=(0, 100)),
            "on the test set": runtime.crossed_interval(wrong, bounds=(0, 100)),
            "gap": runtime.crossed_interval(gap(one), bounds=reports.PER_CENT),
            "test less the widest's": "" if width == max(kept) else reports.difference(wrong, widest),
            "held-out loss [nats]": runtime.t_interval(one["loss"]),
            "rate": f"{one['rate'][0]:g}",
        }
    return table


def report(
    folder: RunFolder, config: Config, found: dict[int, dict[int, reports.Kept]], input_dim: int
) -> None:
    """Draw the errors against the width and write the result."""
    curves, tables = {}, {}
    for num, kept in found.items():
        errors = [reports.wrong_images(one)[0].mean(1) for one in kept.values()]
        curves[f"{num} labels: test set"] = (config.widths, errors)
        curves[f"{num} labels: the labels"] = (config.widths, [one["train"][0] for one in kept.values()])
        tables[f"{num} labels: error [%], differences paired"] = tabulate(config, kept, input_dim)
    for num, kept in found.items():
        tables[f"{num} labels, every rate: test error, and that which chose [%]"] = {
            name: row
            for width, one in kept.items()
            for name, row in reports.every_rate(config, one, (f"{width} units",)).items()
        }
    path, labels = folder.path / "error_against_width.png", ("hidden units", "error [%]")
    title = f"{config.data}, {config.era}, {config.seeds} seeds, 95%"
    dashed = [name for name in curves if name.endswith("the labels")]
    ticks = {"xscale": "log", "ylim": (-1, None)}
    plots.save_curves(path, *labels, curves, title=title, dashed=dashed, bounds=(0, 100), **ticks)
    few = found[min(found)]
    widest = few[max(few)]
    runtime.write_result(
        folder,
        config,
        CLAIM,
        headline={
            f"{min(found)} labels, {max(few)} units: test error less that on the labels [%]": (
                runtime.crossed_interval(gap(widest), bounds=reports.PER_CENT)
            ),
            f"{min(found)} labels: test error, {max(few)} units less {best_narrower(few)} [%]": beyond(few),
        },
        baselines={
            f"{num} labels, {max(few)} units: test error less that on the labels [%]": (
                runtime.crossed_interval(gap(kept[max(kept)]), bounds=reports.PER_CENT)
            )
            for num, kept in found.items()
            if num > min(found)
        },
        checks=judge(found),
        tables=tables,
        figures=[path.name],
    )


def main(config: Config) -> None:
    """Train every width on every number of labels; save, draw and report."""
    config.require(seeds=1, tuning_seeds=1, steps=1, widths=1)
    for name in ("labels", "widths"):
        values = getattr(config, name)
        if len(values) < 2 or list(values) != sorted(set(values)):
            raise ValueError(f"{name} must be two or more in rising order; got {values}")
    use_cpu_devices()
    split = starts.load(config.data)
    data = {num: starts.draw_members(config, split, num) for num in config.labels}
    folder = config.open_folder()
    found = {
        num: {
            width: folder.once(f"labels_{num}_width_{width}.json", compare, config, data[num], num, width)
            for width in config.widths
        }
        for num in config.labels
    }
    report(folder, config, found, split.train.x.shape[1])


if __name__ == "__main__":
    cli.main(Config, main)
