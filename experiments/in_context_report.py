"""What `in_context.py` found: tables, verdicts and the figure."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from panels import save_panels
from parts import Described, join_parts

from jaxrl_align import runtime
from jaxrl_align.runtime import Interval

SHOWN = (0, 1, 2, 3, 4, 6, 8, 11)
"""Numbers of examples that the tables show."""
NEAR = 0.05
"""Squared error over d, or nats a symbol: readers that differ by less count as alike."""
FEW_NATS = 0.1
"""Nats a symbol above the exact posterior that still count as locating the concept."""


def ours_first(rows: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return readers' curves, the transformer's first: a jitted function returns a dict sorted by name."""
    return dict(sorted(rows.items(), key=lambda row: row[0] != "transformer"))


def tabulate(
    rows: Mapping[str, np.ndarray], *, bounds: tuple[float, float], scale: float = 1.0
) -> dict[str, dict[str, Interval]]:
    """Return curves [M, K] at some numbers of examples, with intervals over the members."""
    return {
        name: {f"{k}": runtime.t_interval(scale * x[:, k], bounds=bounds) for k in SHOWN if k < x.shape[1]}
        for name, x in ours_first(rows).items()
    }


def judge_functions(
    falls: Sequence[Interval], first: Sequence[Interval], last: Sequence[Interval]
) -> dict[str, bool]:
    """Return which parts of the claim on functions hold.

    Args:
      falls: of the error by each of the first d pairs, squared error over d.
      first: the error above the best reader's with one pair, in each world.
      last: the same with all pairs but the last.
    """
    return {
        "functions: each of the first pairs in the context lowers the error": all(x.low > 0 for x in falls),
        f"functions: with one pair the error is within {NEAR} of the best reader's": all(
            x.high < NEAR for x in first
        ),
        "functions: with the most pairs in the context too": all(x.high < NEAR for x in last),
    }


def describe_functions(config: Any, found: dict[str, Any]) -> Described:
    """Return what the part on functions came to."""
    worlds = found["squared"]
    above = {world: rows["transformer"] - rows["ridge, Bayes"] for world, rows in worlds.items()}
    quiet = worlds["without noise"]["transformer"]
    falls = [
        runtime.paired_interval(rows["transformer"][:, k], rows["transformer"][:, k + 1])
        for rows in worlds.values()
        for k in range(min(config.dimension, config.points - 1))
    ]
    one, most = ([runtime.t_interval(x[:, k]) for x in above.values()] for k in (1, -1))
    squared = lambda k: runtime.t_interval(quiet[:, k], bounds=(0, np.inf))
    of = "functions without noise, squared error over d with"
    tables = {}
    for world, rows in worlds.items():
        tables[f"functions {world}: squared error over d, by the pairs before"] = tabulate(
            rows, bounds=(0, np.inf)
        ) | tabulate({"transformer less ridge, paired": above[world]}, bounds=(-np.inf, np.inf))
    return {
        "headline": {f"{of} {config.points - 1} pairs in the context": squared(-1)},
        "baselines": {f"{of} none": squared(0)},
        "checks": judge_functions(falls, one, most),
        "tables": tables,
    }


def judge_concepts(known: Interval, above: Sequence[Interval], new: Interval) -> dict[str, bool]:
    """Return which parts of the claim on concepts hold.

    Args:
      known: nats a symbol gained from the first example to the last, of known concepts.
      above: the transformer's less the exact posterior's, by the number of examples.
      new: as `known`, of concepts that training never had.
    """
    return {
        "known concepts: examples in the context lower the loss": known.low > 0,
        f"known concepts: it stays within {FEW_NATS} nats of the exact posterior's at every number": all(
            x.high < FEW_NATS for x in above
        ),
        f"new concepts: all examples together gain less than {NEAR} nats": new.high < NEAR,
    }


def describe_concepts(found: dict[str, Any]) -> Described:
    """Return what the part on concepts came to."""
    ours = {name: rows["transformer"] for name, rows in found["nats"].items()}
    gain = {name: runtime.paired_interval(x[:, 0], x[:, -1]) for name, x in ours.items()}
    above = ours["known concepts"] - found["nats"]["known concepts"]["exact posterior"]
    tables = {
        f"{name}: nats a symbol, by the examples before": tabulate(rows, bounds=(0, np.inf))
        for name, rows in found["nats"].items()
    }
    tables["known concepts: transformer less the exact posterior, paired [nats]"] = tabulate(
        {"difference": above}, bounds=(-np.inf, np.inf)
    )
    tables["known concepts: the true one's posterior"] = tabulate(
        {"exact": found["posterior"]}, bounds=(0, 1)
    )
    of = f"gained by {above.shape[1] - 1} examples of a"
    return {
        "headline": {f"nats a symbol {of} known concept, paired": gain["known concepts"]},
        "baselines": {f"nats a symbol {of} new concept, paired": gain["new concepts"]},
        "checks": judge_concepts(
            gain["known concepts"], [runtime.t_interval(x) for x in above.T], gain["new concepts"]
        ),
        "tables": tables,
    }


def judge_words(gain: Interval, shown: Interval, tuned: Interval) -> dict[str, bool]:
    """Return which parts of the claim on words hold, right labels of held-out tasks in per cent.

    Args:
      gain: of the most examples in the context over none.
      shown: examples in the context less fine-tuning on as many.
      tuned: fine-tuned on the most.
    """
    return {
        "words: examples in the context make held-out tasks more often right": gain.low > 0,
        "words: they are worth more than fine-tuning on as many": shown.low > 0,
        "words: fine-tuned on many more, the model is right in more than 95%": tuned.low > 95,
    }


def describe_words(config: Any, found: dict[str, Any]) -> Described:
    """Return what the part on words came to."""
    share, points = {"bounds": (0, 100)}, {"bounds": (-100, 100)}
    ours, tuned = 100 * found["right"]["held-out tasks"]["transformer"], 100 * found["tuned"]
    most = max(n for n in config.tuned_examples if n < ours.shape[1])
    learnt = tuned[:, config.tuned_examples.index(most)]
    shown = runtime.paired_interval(ours[:, most], learnt, **points)
    gain = runtime.paired_interval(ours[:, -1], ours[:, 0], **points)
    tables: dict[str, Any] = {
        f"words, {tasks}: right labels [%], by the examples before": tabulate(rows, scale=100.0, **share)
        for tasks, rows in found["right"].items()
    }
    tables["words: fine-tuned on examples of a held-out task instead [%]"] = {
        f"{n} examples": {"right": runtime.t_interval(tuned[:, i], **share)}
        | {
            f"rate {rate:g}, tasks that choose it": float(100 * x)
            for rate, x in zip(config.tuned_rates, found["tried"][i], strict=True)
        }
        for i, n in enumerate(config.tuned_examples)
    }
    of = f"words: right in held-out tasks [%], {most} examples"
    return {
        "headline": {f"{of} in the context less fine-tuned on them, paired": shown},
        "baselines": {f"{of} fine-tuned on": runtime.t_interval(learnt, **share)},
        "checks": judge_words(gain, shown, runtime.t_interval(tuned[:, -1], **share)),
        "tables": tables,
    }


def judge_model(
    task: str,
    gains: Mapping[str, Interval],
    mended: Interval,
    learnt: Mapping[str, Interval],
    above: Interval,
) -> dict[str, bool]:
    """Return which parts of the claim hold of a published model on a task, all in points.

    Args:
      task: its name.
      gains: of the most examples in the context over none, by rule.
      mended: with the most examples, calibrated less raw.
      learnt: a LoRA's on the same examples less calibrated with them in the context, by rate.
      above: calibrated with the most examples less the commonest answer's.
    """
    return {
        f"{task}: examples in the context make it right more often": gains["raw"].low > 0,
        f"{task}: they do when its answers are calibrated": gains["calibrated"].low > 0,
        f"{task}: calibration makes it right more often with them": mended.low > 0,
        f"{task}: learning the same examples does more than showing them, calibrated, at every rate": all(
            x.low > 0 for x in learnt.values()
        ),
        f"{task}: calibrated with them, it is right more often than the commonest answer": above.low > 0,
    }


def describe_model(config: Any, task: str, rows: dict[str, Any]) -> Described:
    """Return what a published model makes of a task, intervals over the draws of examples."""
    shown = {rule: 100 * np.array(x) for rule, x in rows["shown"].items()}
    tuned = {rate: 100 * np.array(x) for rate, x in rows["tuned"].items()}
    share, points = {"bounds": (0, 100)}, {"bounds": (-100, 100)}
    most = max(config.model_shots)
    gains = {rule: runtime.paired_interval(x[:, -1], x[:, 0], **points) for rule, x in shown.items()}
    mended = runtime.paired_interval(shown["calibrated"][:, -1], shown["raw"][:, -1], **points)
    learnt = {
        rate: runtime.paired_interval(x, shown["calibrated"][:, -1], **points) for rate, x in tuned.items()
    }
    commonest = 100 * rows["commonest"]
    above = runtime.t_interval(shown["calibrated"][:, -1] - commonest, **points)
    # None in the context may be worse than a constant, and a constant worse than none: either flatters alone.
    without = np.maximum(shown["calibrated"][:, 0], commonest)
    columns = [f"{shots}" for shots in config.model_shots]
    by_shots = lambda x, bounds: {
        name: runtime.t_interval(column, **bounds) for name, column in zip(columns, x.T, strict=True)
    }
    table = {rule: by_shots(x, share) for rule, x in shown.items()}
    table["calibrated less raw, paired"] = by_shots(shown["calibrated"] - shown["raw"], points)
    for rate, x in tuned.items():
        table[f"a LoRA on the same {most} instead, rate {rate}"] = {
            columns[0]: runtime.t_interval(x, **share)
        }
    table["the commonest answer alone"] = dict.fromkeys(columns, commonest)
    of = f"{task}: right answers with {most} examples in the context"
    return {
        "headline": {
            f"{of}, calibrated, less the better of none and the commonest answer, paired [points]": (
                runtime.paired_interval(shown["calibrated"][:, -1], without, **points)
            )
        },
        "baselines": {
            f"{of} less without, calibrated [points]": gains["calibrated"],
            f"{of} less without, raw [points]": gains["raw"],
            f"{of}, calibrated, less the commonest answer's [points]": above,
        },
        "checks": judge_model(task, gains, mended, learnt, above),
        "tables": {f"{task}: right answers [%] of {config.model_items}, by the examples before": table},
    }


def report(config: Any, folder: runtime.RunFolder, claim: runtime.Claim, found: dict[str, Any]) -> None:
    """Write the result of the parts that were run."""
    describe = {
        "functions": lambda x: [describe_functions(config, x)],
        "words": lambda x: [describe_words(config, x)],
        "concepts": lambda x: [describe_concepts(x)],
        "model": lambda x: [describe_model(config, task, rows) for task, rows in x.items()],
    }
    joined = join_parts(one for name, rows in found.items() for one in describe[name](rows))
    runtime.write_result(folder, config, claim, figures=["in_context.png"], **joined)


def draw(folder: runtime.RunFolder, config: Any, found: dict[str, Any]) -> None:
    """Write in_context.png: a panel for each world."""
    panels: dict[str, Any] = {}
    curves = lambda rows, scale=1.0: {
        name: (np.arange(x.shape[1]), scale * x.T) for name, x in ours_first(rows).items()
    }
    for world, rows in found.get("functions", {}).get("squared", {}).items():
        # Least squares alone has no bound where as many noisy pairs as dimensions are nearly dependent.
        exact = "ridge, Bayes" if "with noise" in world else "least squares"
        panels[f"squared error / d, {world}"] = curves({n: rows[n] for n in ("transformer", exact)})
    if "words" in found:
        rows = found["words"]["right"]["held-out tasks"]
        shown = {name: rows[name] for name in ("transformer", "Bayes, any task")}
        panels["right labels, held-out tasks [%]"] = curves(shown, 100.0) | {
            "fine-tuned instead": (
                np.array(config.tuned_examples)[:3],
                100.0 * found["words"]["tuned"].T[:3],
            ),
            "transformer, known tasks": curves(found["words"]["right"]["known tasks"], 100.0)["transformer"],
        }
    for task, rows in found.get("model", {}).items():
        at = np.array(config.model_shots)
        panels[f"{task}, published model [%]"] = {
            rule: (at, 100.0 * np.array(x).T) for rule, x in rows["shown"].items()
        } | {f"LoRA, rate {rate}": (at[-1:], 100.0 * np.array(x)[None]) for rate, x in rows["tuned"].items()}
        level = np.full((len(at), 1), 100.0 * rows["commonest"])
        panels[f"{task}, published model [%]"]["commonest answer"] = (at, level)
    for documents, rows in found.get("concepts", {}).get("nats", {}).items():
        told = np.array(rows["told the concept"])
        above = {name: np.array(x) - told for name, x in rows.items() if name != "told the concept"}
        panels[f"nats above the told, {documents}"] = curves(above)
    save_panels(
        folder.path / "in_context.png",
        "examples in the context",
        panels,
        title="in-context learning, no update; 95%",
        columns=min(2, len(panels)),
        bounds={label: (0.0, 100.0) for label in panels if "[%]" in label},
    )


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("in_context")
