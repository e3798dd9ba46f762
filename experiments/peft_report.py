"""What `peft.py` found: the choice of rates, tables, verdict and figure."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from parts import join_parts
from peft_ways import kind_of

from jaxrl_align import runtime
from jaxrl_align.runtime import plots, statistics

UNTUNED = "untuned"
SHOWN = "LoRA 4"
"""The way of the headline."""
KINDS = ("full", "selective", "reparameterised", "additive")
FORGOTTEN = (-0.1, 0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
"""Nats a token that an axis names."""


def choose(result: dict[str, Any], rows: int) -> int:
    """Return the index of the smallest rate within a standard error of the best on the validation rows.

    Rates that agree within the error of so few rows can forget very differently; what did not stay finite is
    out.

    Args:
      result: of `run_way`, with rates in rising order.
      rows: of the validation.
    """
    mean = np.where(np.isfinite(result["nats"]), result["validation"], -1.0).mean(1)
    best = mean.max()
    return int(np.flatnonzero(mean >= best - (best * (1 - best) / rows) ** 0.5)[0])


def chosen(results: dict[str, Any], rows: int) -> dict[str, dict[str, Any]]:
    """Return each way's accuracy [%] and forgetting [M] at its rate, the smallest way first."""
    before = results[UNTUNED]["nats"]
    found = {}
    for way, result in results.items():
        if way != UNTUNED:
            index = choose(result, rows)
            test, nats = (np.array(result[name][index], float) for name in ("test", "nats"))
            sizes = {name: result[name] for name in ("parameters", "bytes")}
            found[way] = sizes | {"rate": index, "accuracy": 100 * test, "forgetting": nats - before}
    return dict(sorted(found.items(), key=lambda item: item[1]["parameters"]))


def rank_correlation(x: ArrayLike, y: ArrayLike) -> float:
    """Return Spearman's correlation; ties share the mean of their ranks."""

    def rank(values: ArrayLike) -> np.ndarray:
        v = np.asarray(values)
        return (v[:, None] > v[None]).sum(1) + 0.5 * (v[:, None] == v[None]).sum(1)

    return float(np.corrcoef(rank(x), rank(y))[0, 1])


def compare(config: Any, found: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return the table of a task: what each way costs, learns and forgets, against the largest, paired."""
    largest = list(found)[-1]
    table = {}
    for way, row in found.items():
        less = lambda what, row=row, **how: runtime.paired_interval(row[what], found[largest][what], **how)
        table[way] = {
            "trained": row["parameters"],
            "kB a task": row["bytes"] / 1e3,
            "rate": config.rates[row["rate"]],
            "accuracy [%]": runtime.t_interval(row["accuracy"], bounds=(0, 100)),
            f"less {largest}": less("accuracy", bounds=(-100, 100)),
            "forgetting [nats a token]": runtime.t_interval(row["forgetting"]),
            f"forgetting less {largest}": less("forgetting"),
        }
    return table


def correlate(
    config: Any, results: dict[str, Any], found: dict[str, dict[str, Any]]
) -> dict[str, runtime.Interval]:
    """Return the rank correlations with the number of trained weights, over the ways, by what is ranked."""
    sizes = [row["parameters"] for row in found.values()]
    columns = {
        f"{what}, own rates": [row[what] for row in found.values()] for what in ("accuracy", "forgetting")
    } | {
        f"forgetting at {rate:g}": [results[way]["nats"][i] for way in found]
        for i, rate in enumerate(config.rates)
    }
    each = lambda values: [rank_correlation(sizes, seed) for seed in np.array(values).T]
    return {what: runtime.t_interval(each(values), bounds=(-1, 1)) for what, values in columns.items()}


def judge(
    sizes: dict[str, int],
    correlations: dict[str, runtime.Interval],
    behind: dict[str, runtime.Interval],
) -> dict[str, bool]:
    """Return which parts of the claim hold on a task.

    Args:
      sizes: bytes a task by way.
      correlations: of `correlate`.
      behind: accuracy of prompt tuning less each other way's, points; empty where it did not run.
    """
    kinds = {kind: [size for way, size in sizes.items() if kind_of(way) == kind] for kind in KINDS[1:]}
    most = max(sizes.values())
    same = [found for what, found in correlations.items() if what.startswith("forgetting at ")]
    own = correlations["forgetting, own rates"]
    checks = {
        "each kind has a way that costs a task less than a tenth of the largest's bytes": all(
            min(found) < 0.1 * most for found in kinds.values() if found
        ),
        "at every common rate fewer trained weights forget less": all(found.low > 0 for found in same),
        "at the rate that each needs fewer trained weights forget less": own.low > 0,
    }
    if behind:
        checks["prompt tuning is behind every other way"] = all(x.high < 0 for x in behind.values())
    return checks


def describe(config: Any, result: dict[str, Any], found: dict[str, Any]) -> dict[str, Any]:
    """Return a task's `headline`, `baselines`, `checks` and `tables`, as `write_result` takes them."""
    correlations, rows = correlate(config, result, found), compare(config, found)
    behind = {
        way: runtime.paired_interval(found["prompt"]["accuracy"], row["accuracy"], bounds=(-100, 100))
        for way, row in found.items()
        if "prompt" in found and "prompt" not in way
    }
    way, largest = SHOWN if SHOWN in found else list(found)[0], list(found)[-1]
    less = f"of {way} less {largest}, paired"
    untuned = {"accuracy [%]": 100 * result[UNTUNED]["test"]}
    return {
        "headline": {f"forgetting {less} [nats a token]": rows[way][f"forgetting less {largest}"]},
        "baselines": {f"accuracy {less} [points]": rows[way][f"less {largest}"]},
        "checks": judge({way: row["bytes"] for way, row in found.items()}, correlations, behind),
        "tables": {
            "at the rate of each": rows | {UNTUNED: untuned},
            "rank correlation with the trained weights": {
                what: {"correlation": x} for what, x in correlations.items()
            },
            "every rate, mean validation accuracy [%] and forgetting [nats a token]": (
                tabulate_rates(config, result)
            ),
        },
    }


def report(
    config: Any, folder: runtime.RunFolder, claim: runtime.Claim, results: dict[str, dict[str, Any]]
) -> None:
    """Write the result and the figure of all tasks, whose names stand before what is said of each."""
    found = {task: chosen(result, config.validation_rows) for task, result in results.items()}
    who = "a small model of our own" if config.model is None else "a published model"
    draw(folder.path / "peft.png", found, f"{who}, {config.seeds} seeds, 95% intervals")
    named = (
        {
            part: {f"{task}: {text}": value for text, value in entries.items()}
            for part, entries in describe(config, result, found[task]).items()
        }
        for task, result in results.items()
    )
    runtime.write_result(folder, config, claim, figures=["peft.png"], **join_parts(named))


def tabulate_rates(config: Any, result: dict[str, Any]) -> dict[str, dict[str, float]]:
    """Return each way's validation accuracy and forgetting at every rate, means over the seeds."""
    before = result[UNTUNED]["nats"]
    means = {
        way: (100 * np.mean(x["validation"], 1), np.mean(np.array(x["nats"], float), 1) - before)
        for way, x in result.items()
        if way != UNTUNED
    }
    return {
        way: {f"{rate:g}: accuracy": float(v) for rate, v in zip(config.rates, validation, strict=True)}
        | {f"{rate:g}: forgetting": float(d) for rate, d in zip(config.rates, drift, strict=True)}
        for way, (validation, drift) in means.items()
    }


def draw(path: Any, tables: dict[str, dict[str, Any]], title: str) -> None:
    """Draw accuracy and forgetting of each way in a row of its own, a pair of axes for each task.

    Args:
      path: of the PNG.
      tables: task -> way -> what `chosen` returns, fewest trained parameters first.
      title: what the figure shows.
    """
    most = max(len(table) for table in tables.values())
    fig, axes = plots.panels(len(tables), 2, size=(10, (0.26 * most + 0.9) * len(tables) + 0.8))
    looks = {kind: look | {"linestyle": ""} for kind, look in plots.looks(KINDS).items()}
    for i, (task, table) in enumerate(tables.items()):
        for ax, what, unit in zip(
            axes[2 * i :], ("accuracy", "forgetting"), ("%", "nats a token"), strict=False
        ):
            for y, (way, row) in enumerate(table.items()):
                mean, half = statistics.mean_interval(row[what])
                half = None if np.isnan(half) else half
                ax.errorbar(mean, y, xerr=half, markersize=5, capsize=2, **looks[kind_of(way)])
            ax.set_title(f"{task}: {what} [{unit}]", fontsize=10)
            ax.set_yticks(range(len(table)), [])
            ax.tick_params(labelsize=8)
        drifts = np.concatenate([np.ravel(row["forgetting"]) for row in table.values()])
        axes[2 * i + 1].set_xscale("symlog", linthresh=0.1, linscale=0.5)
        axes[2 * i + 1].set(xticks=FORGOTTEN, xticklabels=[f"{x:g}" for x in FORGOTTEN])
        axes[2 * i + 1].set_xlim(min(-0.01, 1.3 * np.min(drifts)), max(0.1, 1.3 * np.max(drifts)))
        sizes = [f"{way}: {row['parameters']:,}" for way, row in table.items()]
        axes[2 * i].set_yticks(range(len(table)), sizes)
    axes[0].set_ylabel("trained parameters", fontsize=9)
    for kind, look in looks.items():
        axes[0].plot([], [], label=kind, **look)
    fig.legend(loc="outside lower center", ncols=len(KINDS), fontsize=9, frameon=False)
    fig.suptitle(title, fontsize=12)
    plots.save_figure(fig, path)


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("peft")
