"""The table, the samples and the figure of `align.py`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.align import expected_best
from jaxrl_align.losses import best_of_n_kl
from jaxrl_align.runtime import plots
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.statistics import mean_interval

JUDGES = {"vader": "VADER", "happy": "the start, asked", "score": "the reward model"}
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


def print_reward(start: dict[str, Any]) -> None:
    """Say how the reward model judges what the start writes on held-out topics."""
    score, vader, happy = (np.array(start[name]) for name in ("score", "vader", "happy"))
    for name, said in (("the reward model", score), ("the start, asked,", happy)):
        mean, half = mean_interval(agreement(said, vader))
        r = np.corrcoef(said.ravel(), vader.ravel())[0, 1]
        print(
            f"on held-out topics {name} orders {mean:.2f} +- {half:.2f} of the pairs as VADER does; "
            f"correlation {r:.2f}",
            flush=True,
        )


def gains(row: dict[str, Any], start: dict[str, Any]) -> dict[str, tuple[float, float]]:
    """Return each judge's gain over the start and the KL, mean and 95% half-width over topics."""
    columns = {name: np.array(row[name]) - np.array(start[name]) for name in JUDGES}
    columns["kl"] = np.array(row["kl"])
    found = {name: mean_interval(values.mean(1)) for name, values in columns.items()}
    return {name: (float(mean), float(half)) for name, (mean, half) in found.items()}


def best_of(start: dict[str, Any]) -> dict[str, list[float]]:
    """Return VADER's gain of the best of n by the reward model, among what the start itself wrote."""
    score, vader = (jnp.asarray(start[name]) for name in ("score", "vader"))
    pick = jax.vmap(expected_best, (0, 0, None))
    ns = [n for n in (1, 2, 4, 8, 16) if n <= score.shape[1]]
    gain = [float(jnp.mean(pick(score, vader, n)) - jnp.mean(vader)) for n in ns]
    return {"n": ns, "kl": [float(best_of_n_kl(n)) for n in ns], "vader": gain}


def report(folder: RunFolder, paths: dict[str, dict[int, Any]]) -> None:
    """Print gains and samples; write result.json and align.png.

    Args:
      folder: where to.
      paths: what the judges said, by method and by step; step 0 is the start.
    """
    start = next(iter(paths.values()))[0]
    means = {name: float(np.mean(start[name])) for name in JUDGES}
    results = {name: {s: gains(row, start) for s, row in path.items()} for name, path in paths.items()}
    best = best_of(start)
    print(f"\nstart: VADER {means['vader']:.2f}, the start, asked: {means['happy']:.2f}")
    print("gain on held-out topics, paired by topic, 95% t intervals over them:")
    print(f"{'':8}" + "".join(f"{name:26}" for name in (*JUDGES.values(), "KL [nats]")))
    for name, path in results.items():
        cells = (f"{mean:+.2f} +- {half:.2f}" for mean, half in path[max(path)].values())
        print(f"{name:8}" + "".join(f"{cell:26}" for cell in cells))
    print(f"best of {best['n'][-1]:<2} {best['vader'][-1]:+.2f}{'':65}at most {best['kl'][-1]:.2f}")
    for topic in SAMPLES:
        print(f"\n  start  {start['texts'][topic][0]!r}")
        for name, path in paths.items():
            print(f"  {name:5}  {path[max(path)]['texts'][topic][0]!r}")
    folder.write_json("result.json", {"start": means, "methods": results, "best of n": best})
    draw_paths(folder, results, best)


def draw_paths(folder: RunFolder, results: dict[str, Any], best: dict[str, list[float]]) -> None:
    """Write align.png: VADER's gain over sqrt KL, one line for each method and for the best of n."""
    fig, ax = plots.figure("square root of KL(policy, start) [sqrt nats]", "VADER, gain over the start")
    for (name, path), style, marker in zip(results.items(), ("-", "--", ":"), "osD", strict=True):
        points = [path[step] for step in sorted(path)]
        x = np.sqrt(np.maximum([p["kl"][0] for p in points], 0.0))
        y, half = np.array([p["vader"] for p in points]).T
        ax.errorbar(x, y, half, linestyle=style, marker=marker, markersize=5, capsize=3, label=name)
    ax.plot(np.sqrt(best["kl"]), best["vader"], "k-.", marker="x", label="best of n")
    ax.legend()
    plots.save_figure(fig, folder.path / "align.png")
