"""The samples, the figure and the result of `align.py`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.align import expected_best
from jaxrl_align.losses import best_of_n_kl
from jaxrl_align.runtime import Claim, Interval, paired_interval, plots, t_interval, write_result
from jaxrl_align.runtime.folder import RunFolder

JUDGES = {"vader": "VADER", "happy": "the start, asked", "score": "the reward model [deviations]"}
RANGE = {"vader": (-2.0, 2.0), "happy": (-1.0, 1.0), "score": (-np.inf, np.inf)}
"""What a difference can be."""
SAMPLES = (0, 6, 14)
"""Topics of which a sentence is printed."""


def agreement(score: np.ndarray, vader: np.ndarray) -> np.ndarray:
    """Return the share of its pairs that a reward orders as VADER does, by topic; both are [N, G].

    Pairs that VADER calls equal do not count, nor do topics without others.
    """
    better = vader[:, :, None] > vader[:, None]
    alike = (score[:, :, None] > score[:, None]) & better
    some = better.any((1, 2))
    return alike.sum((1, 2))[some] / better.sum((1, 2))[some]


def read_orders(start: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return how rewards order what the start writes on held-out topics."""
    table = {}
    for name in ("score", "happy"):
        said, vader = np.array(start[name]), np.array(start["vader"])
        right = t_interval(agreement(said, vader), bounds=(0, 1))
        r = float(np.corrcoef(said.ravel(), vader.ravel())[0, 1])
        table[JUDGES[name]] = {"share of pairs": right, "correlation with VADER": r}
    return table


def gains(row: dict[str, Any], start: dict[str, Any]) -> dict[str, Interval]:
    """Return each judge's gain over another evaluation, paired by topic, and the row's own KL."""
    topics = lambda found, name: np.array(found[name]).mean(1)
    found = {
        name: paired_interval(topics(row, name), topics(start, name), bounds=bounds)
        for name, bounds in RANGE.items()
    }
    return found | {"kl": t_interval(topics(row, "kl"), bounds=(0, np.inf))}


def best_of(start: dict[str, Any]) -> dict[int, Interval]:
    """Return VADER's gain of the best of n by the reward model, among what the start itself wrote, by n."""
    score, vader = (jnp.asarray(start[name]) for name in ("score", "vader"))
    pick = jax.vmap(expected_best, (0, 0, None))
    mean = jnp.mean(vader, 1)
    ns = [n for n in (1, 2, 4, 8, 16) if n <= score.shape[1]]
    return {n: paired_interval(pick(score, vader, n), mean, bounds=RANGE["vader"]) for n in ns}


def judge(ends: dict[str, dict[str, Interval]], further: dict[str, dict[str, Interval]]) -> dict[str, bool]:
    """Return which parts of the claim hold.

    Args:
      ends: gains over the start, by method.
      further: gains over the evaluation before the last, by method; none where there was no other.
    """
    checks = {f"{name} gains on unseen topics, by VADER": row["vader"].low > 0 for name, row in ends.items()}
    checks |= {
        f"{name} gains by the start, asked, a judge that it never saw": row["happy"].low > 0
        for name, row in ends.items()
    }
    return checks | {
        f"{name} gains more at its end than at the evaluation before, by VADER": row["vader"].low > 0
        for name, row in further.items()
    }


def report(folder: RunFolder, config: Any, claim: Claim, paths: dict[str, dict[int, Any]]) -> None:
    """Print samples, draw align.png, write the result.

    Args:
      folder: where to.
      config: of the run.
      claim: the experiment's.
      paths: what the judges said, by method and by step; step 0 is the start.
    """
    start = next(iter(paths.values()))[0]
    last = {name: path[max(path)] for name, path in paths.items()}
    found = {name: {s: gains(row, start) for s, row in path.items()} for name, path in paths.items()}
    best, ends = best_of(start), {name: gains(row, start) for name, row in last.items()}
    before = {name: path[sorted(path)[-2]] for name, path in paths.items() if len(path) > 2}
    for topic in SAMPLES:
        print(f"\n  start  {start['texts'][topic][0]!r}")
        for name, row in last.items():
            print(f"  {name:5}  {row['texts'][topic][0]!r}")
    draw_paths(folder, found, best)
    titles = JUDGES | {"kl": "KL [nats]"}
    steps = {f"{name}, step {s}": row for name, path in found.items() for s, row in path.items() if s}
    independent = ("vader", "happy")
    write_result(
        folder,
        config,
        claim,
        headline={
            f"gain of PPO by {JUDGES[name]}, paired by topic": ends["PPO"][name] for name in independent
        },
        baselines={f"gain of the best of {max(best)} by VADER": best[max(best)]},
        checks=judge(ends, {name: gains(last[name], row) for name, row in before.items()}),
        tables={
            "gain over the start on held-out topics, paired by topic": {
                name: {titles[key]: cell for key, cell in row.items()} for name, row in steps.items()
            },
            "the best of n of the start's answers, by the reward model": {
                f"best of {n}": {"VADER, gain": cell, "KL at most [nats]": float(best_of_n_kl(n))}
                for n, cell in best.items()
            },
            "the start, on held-out topics": {
                JUDGES[name]: {"mean": t_interval(np.array(start[name]).mean(1))} for name in independent
            },
            "pairs of the start's sentences ordered as VADER does": read_orders(start),
        },
        notes=["one run: every interval is over the held-out topics, none over seeds"],
        figures=["align.png"],
    )


def draw_paths(
    folder: RunFolder, found: dict[str, dict[int, dict[str, Interval]]], best: dict[int, Interval]
) -> None:
    """Write align.png: VADER's gain over sqrt KL, one line for each method and for the best of n."""
    fig, ax = plots.figure("square root of KL(policy, start) [sqrt nats]", "VADER, gain over the start")
    for (name, path), style, marker in zip(found.items(), ("-", "--", ":"), "osD", strict=True):
        points = [path[step] for step in sorted(path)]
        x = np.sqrt(np.maximum([p["kl"].value for p in points], 0.0))
        y = np.array([p["vader"].value for p in points])
        half = np.abs(np.array([(p["vader"].low, p["vader"].high) for p in points]).T - y)
        ax.errorbar(x, y, half, linestyle=style, marker=marker, markersize=5, capsize=3, label=name)
    x = np.sqrt([float(best_of_n_kl(n)) for n in best])
    ax.plot(x, [cell.value for cell in best.values()], "k-.", marker="x", label="best of n")
    ax.legend()
    plots.save_figure(fig, folder.path / "align.png")


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("align")
