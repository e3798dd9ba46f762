"""Tables, verdict and figure of `feedback_types.py`."""

from typing import Any, NamedTuple

import numpy as np

from jaxrl_align.runtime import (
    Claim,
    Interval,
    RunFolder,
    paired_interval,
    plots,
    t_interval,
    write_result,
)

CURVES = {
    "comparisons": ("comparison", 1.0),
    "ratings": ("rating", 1.0),
    "ratings, standardised": ("rating, standardised", 1.0),
    "ratings on one scale": ("rating", 0.0),
}
"""What is measured for each noise: name -> kind and spread; comparisons know of no scale."""
LEVEL = 3.0
"""Points of accuracy by which two ways may differ and be level."""


class Job(NamedTuple):
    """One setting: which rows, of which crowd, at which rate."""

    kind: str
    noise: float
    spread: float = 1.0
    """Factor of the annotators' deviations: 1, or 0 where they share one scale."""
    rate: float = 0.0


def percent(x: np.ndarray) -> Interval:
    """Return the mean accuracy [%] of shares [M]."""
    return t_interval(100 * x, bounds=(0, 100))


def points(x: np.ndarray, y: np.ndarray) -> Interval:
    """Return how much larger shares [M] are than others, in points, paired by member."""
    return paired_interval(100 * x, 100 * y, bounds=(-100, 100))


def kinds_of(config: Any, found: dict[Job, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the accuracy [M] of each kind at the noise of the crowd that gives all six."""
    return {job.kind: x for job, x in found.items() if (job.noise, job.spread) == (config.noise, 1.0)}


def nearest(config: Any) -> float:
    """Return the noise, of those that are compared, that is nearest to that crowd's."""
    return min(config.noises, key=lambda x: abs(x - config.noise))


class Decided(NamedTuple):
    """The numbers that decide [points]."""

    over_short: dict[str, Interval]
    """Accuracy of each kind less that of the shorter answer."""
    raw: dict[float, Interval]
    """Accuracy of raw ratings less that of comparisons, by noise."""
    level: Interval
    """The same of standardised ratings."""
    scale: Interval
    """Raw ratings by raters of one scale less those of different scales."""


def decide(config: Any, found: dict[Job, np.ndarray], short: np.ndarray) -> Decided:
    """Return the numbers that decide, from accuracies [M] of jobs and of the shorter answer."""
    own, noise = kinds_of(config, found), nearest(config)
    at = {job[:3]: x for job, x in found.items()}
    return Decided(
        {kind: points(x, short) for kind, x in own.items()},
        {x: points(at["rating", x, 1.0], at["comparison", x, 1.0]) for x in config.noises},
        points(own["rating, standardised"], own["comparison"]),
        points(at["rating", noise, 0.0], at["rating", noise, 1.0]),
    )


def judge(decided: Decided) -> dict[str, bool]:
    """Return which parts of the claim hold."""
    over_short, raw, level, scale = decided
    checks = {
        "every kind of feedback teaches a reward model more than length alone knows": all(
            x.low > 0 for x in over_short.values()
        )
    }
    checks |= {
        f"comparisons beat raw ratings at a noise of {noise:g}": x.high < 0 for noise, x in raw.items()
    }
    return checks | {
        f"standardised ratings differ from comparisons by less than {LEVEL:g} points": (
            max(-level.low, level.high) < LEVEL
        ),
        "ratings by raters of one scale beat raw ratings": scale.low > 0,
    }


def tabulate(config: Any, found: dict[Job, np.ndarray], short: np.ndarray) -> dict[str, Any]:
    """Return the tables of kinds and of noises, from accuracies [M] of jobs and of the shorter answer."""
    six = kinds_of(config, found)
    by_setting = {job[:3]: x for job, x in found.items()}
    noises: dict[str, dict[str, Interval]] = {}
    for name, (kind, spread) in CURVES.items():
        own = {noise: by_setting[kind, noise, spread] for noise in config.noises}
        noises[name] = {f"{noise:g}": percent(x) for noise, x in own.items()}
        if name != "comparisons":
            noises[f"{name}, less comparisons"] = {
                f"{noise:g}": points(x, by_setting["comparison", noise, 1.0]) for noise, x in own.items()
            }
    return {
        f"accuracy on held-out pairs by the gold reward [%], at a noise of {config.noise:g}": {
            name: {"accuracy": percent(x)}
            | ({"less comparisons": points(x, six["comparison"])} if name != "comparison" else {})
            for name, x in {**six, "the shorter answer": short}.items()
        },
        "the same by noise": noises,
    }


def draw(folder: RunFolder, config: Any, found: dict[Job, np.ndarray]) -> None:
    """Write feedback_types.png: accuracy [M] against the noise."""
    by_setting = {job[:3]: x for job, x in found.items()}
    curves = {
        name: (np.array(config.noises), np.array([100 * by_setting[kind, x, spread] for x in config.noises]))
        for name, (kind, spread) in CURVES.items()
    }
    labels = ("noise [units of the gold reward]", "accuracy on held-out pairs [%]")
    title = "Comparisons and ratings by raters of different scales"
    how = {"title": title, "bars": True, "bounds": (0, 100)}
    plots.save_curves(folder.path / "feedback_types.png", *labels, curves, **how)


def report(
    folder: RunFolder,
    config: Any,
    claim: Claim,
    found: dict[Job, np.ndarray],
    short: np.ndarray,
    tried: Any,
) -> None:
    """Draw and write the result.

    Args:
      folder: of the run.
      config: of the run.
      claim: the experiment's.
      found: accuracy [M] of each job.
      short: [M] that of preferring the shorter answer.
      tried: the table of the rates tried.
    """
    draw(folder, config, found)
    decided, own = decide(config, found, short), kinds_of(config, found)
    noise = nearest(config)
    write_result(
        folder,
        config,
        claim,
        headline={
            f"accuracy of raw ratings less comparisons', noise {noise:g}, paired [points]": decided.raw[noise]
        },
        baselines={
            "accuracy of comparisons [%]": percent(own["comparison"]),
            "accuracy of the shorter answer [%]": percent(short),
        },
        checks=judge(decided),
        tables=tabulate(config, found, short)
        | {f"accuracy on {config.tuning_seeds} tuning members [%], by learning rate": tried},
        figures=["feedback_types.png"],
    )


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("feedback_types")
