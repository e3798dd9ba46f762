"""Few labels, a large model: what the three starts make of them.

Digits, three layers of 100 units, 28,000 weights; each number of labels has equally many gradient steps.
Every member draws its own training, validation and labelled images; members beside those reported choose each
start's rate by their validation images. Intervals cover members and test images.

With sigmoid units and plain SGD, up to 100 labels all starts make next to no error on those, so that the
error on the test set is over-fitting, and images without labels take away half of it; labels can pre-train
nothing that they do not know. At 500 and 1000 labels the random start does not fit the labels themselves in
these steps: what pre-training gains there is descent, not over-fitting. With ReLU units, He's
kernels and Adam, which stand beside, it gains next to nothing.
"""

from dataclasses import dataclass, replace
from typing import Any

import jax
import layerwise_report as reports
import layerwise_starts as starts
import numpy as np

from jaxrl_align import runtime
from jaxrl_align.data.images import Split
from jaxrl_align.runtime import RunFolder, cli, plots, use_cpu_devices

CLAIM = runtime.Claim(
    "With few labels a large model over-fits, and layers pre-trained on images without labels help most "
    "there.",
    rows=("C4", "C5", "C6"),
    minutes=9,
)
RANDOM, SUPERVISED, UNSUPERVISED = starts.STARTS
FEW = 100
"""Labels, at most, of what counts as few."""


@dataclass(frozen=True)
class Config(starts.StartsConfig):
    """Test error against the number of labels."""

    out: str = "runs/tiny_labels"
    beside: starts.EraName | None = "modern"
    """An era whose numbers stand beside; none leaves it out."""
    data: str = "digits"
    """digits, mnist, or a folder of four IDX files."""
    labels: tuple[int, ...] = (10, 20, 50, 100, 200, 500, 1000)
    """Numbers of images that keep theirs, in rising order."""
    depth: int = 3
    """Hidden layers."""
    finetune_steps: int = 3_000
    """Gradient steps, whatever the number of labels."""
    tied: bool = False
    """Let a layer's decoder be its encoder transposed."""
    validation_share: float = 0.2
    """Of the training images. It chooses the rate alone, yet is more than a poor man's labels would allow."""


def compare(config: Config, data: starts.Data, num: int) -> reports.Kept:
    """Return what is kept of the members with `num` labels each; every member has all its images."""
    net = starts.make_net(starts.ERAS[config.era], data.x.shape[-1], config.depth, config.width)
    epochs = max(1, round(config.finetune_steps / max(1, num // config.batch_size)))
    member = starts.make_member(config, net, epochs)
    run = jax.jit(jax.vmap(member, (0, starts.DATA_AXES)))
    result, seconds = starts.timed(run, config.member_keys(), data)
    print(f"{config.era}, {num} labels: {seconds:.0f} s", flush=True)
    return reports.keep(config, result.judged)


def few(kept: dict[int, reports.Kept]) -> np.ndarray:
    """Return the errors [starts, M, N], mean over the numbers of labels that are few."""
    return np.mean([reports.wrong_images(one) for num, one in kept.items() if num <= FEW], 0)


def fits(kept: reports.Kept) -> bool:
    """Return whether the random start errs on fewer than 1% of its labels."""
    return bool(np.mean(kept["train"][0]) < 1)


def judge(eras: dict[str, dict[int, reports.Kept]]) -> dict[str, bool]:
    """Return which parts of the claim hold, in the first era and in any that stands beside it."""
    (era, kept), *others = eras.items()
    wrong = {num: reports.wrong_images(one) for num, one in kept.items()}
    gain = {num: w[2] - w[0] for num, w in wrong.items()}
    most = max((num for num, one in kept.items() if num > FEW and fits(one)), default=max(kept))
    at_all = "the start without labels ends below the random one, mean over the numbers up to"
    more = np.mean([x for num, x in gain.items() if num <= FEW], 0) - gain[most]
    found = {
        f"up to {FEW} labels the random start errs on fewer than 1% of them: the rest is over-fitting": (
            all(fits(one) for num, one in kept.items() if num <= FEW)
        ),
        f"{era}: {at_all} {FEW}": reports.difference(few(kept)[2], few(kept)[0]).high < 0,
        f"it gains more there than at {most} labels, the most that the random start fits": (
            runtime.crossed_interval(more).high < 0
        ),
        f"{era}: without labels is better than with them, up to {FEW}": (
            reports.difference(few(kept)[2], few(kept)[1]).high < 0
        ),
    }
    for name, other in others:
        found[f"{name}: {at_all} {FEW}"] = reports.difference(few(other)[2], few(other)[0]).high < 0
    return found


def draw(folder: RunFolder, config: Config, kept: dict[int, reports.Kept]) -> list[str]:
    """Draw one era's errors on the test set and on the labels; return the files' names."""
    title = f"{config.data}, recipe: {config.era}, {config.depth} layers, {config.seeds} seeds, 95%"
    errors = {
        "test": [reports.wrong_images(one).mean(-1) for one in kept.values()],
        "train": [np.array(one["train"]) for one in kept.values()],
    }
    names = [f"{which}_error_{config.era}.png" for which in errors]
    for name, (which, found) in zip(names, errors.items(), strict=True):
        curves = {start: (list(kept), [e[i] for e in found]) for i, start in enumerate(starts.STARTS)}
        labels = ("labelled images", f"{which} error [%]")
        plots.save_curves(
            folder.path / name, *labels, curves, title=title, xscale="log", bounds=(0, 100), ylim=(0, None)
        )
    return names


def report(folder: RunFolder, configs: dict[str, Config], eras: dict[str, dict[int, reports.Kept]]) -> None:
    """Draw every era and write the result."""
    config, figures = next(iter(configs.values())), []
    tables: dict[str, Any] = {}
    headline = {}
    for era, kept in eras.items():
        figures += draw(folder, configs[era], kept)
        errors = few(kept)
        headline[f"{era}: test error up to {FEW} labels, pre-trained without labels less random [%]"] = (
            reports.difference(errors[2], errors[0])
        )
        for num, one in kept.items():
            found = reports.tabulate(one, starts.STARTS, (RANDOM, SUPERVISED))
            tables[f"{era}, {num} labels: error [%], differences paired"] = found
        for num, one in kept.items():
            found = reports.every_rate(configs[era], one, starts.STARTS)
            tables[f"{era}, {num} labels, every rate: test error, and that which chose [%]"] = found
    baselines = {
        f"{era}: test error up to {FEW} labels, random [%]": runtime.crossed_interval(
            few(kept)[0], bounds=(0, 100)
        )
        for era, kept in eras.items()
    }
    notes = [
        f"{era}, {num} labels: the random start under-fits, wrong on {np.mean(one['train'][0]):.1f}% of them"
        for era, kept in eras.items()
        for num, one in kept.items()
        if not fits(one)
    ]
    how = {"headline": headline, "baselines": baselines, "checks": judge(eras), "notes": notes}
    runtime.write_result(folder, config, CLAIM, tables=tables, figures=figures, **how)


def main(config: Config) -> None:
    """Train the three starts on every number of labels, in both eras; save, draw and report."""
    config.require(seeds=1, tuning_seeds=1)
    if min(config.labels) > FEW or list(config.labels) != sorted(set(config.labels)):
        raise ValueError(f"labels must be in rising order, the first at most {FEW}; got {config.labels}")
    use_cpu_devices()
    split: Split = starts.load(config.data)
    data = {num: starts.draw_members(config, split, num) for num in config.labels}
    folder = config.open_folder()
    configs = {
        era: replace(config, era=era) for era in dict.fromkeys((config.era, config.beside or config.era))
    }
    eras = {
        era: {num: folder.once(f"{era}_{num}.json", compare, own, data[num], num) for num in config.labels}
        for era, own in configs.items()
    }
    report(folder, configs, eras)


if __name__ == "__main__":
    cli.main(Config, main)
