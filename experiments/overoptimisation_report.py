"""Fits, tables and figure of `overoptimisation.py`."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from panels import save_panels

from jaxrl_align.runtime.statistics import mean_text

METHODS = ("best of n", "PPO")
"""Whose form of the law a fit takes: `d (alpha - beta d)` or `d (alpha - beta log d)`."""


class Curve(NamedTuple):
    """Gains of both rewards along an optimisation, in deviations of the fine-tuned policy's answers."""

    root_kl: np.ndarray
    """[steps, M] square root of the KL divergence from the fine-tuned policy [nats]."""
    gold: np.ndarray
    """[steps, M]."""
    proxy: np.ndarray
    """[steps, M] of the reward model's score."""


class Found(NamedTuple):
    """What was measured with the reward models of one number of comparisons."""

    accuracy: np.ndarray
    """[M] on held-out pairs."""
    best: Curve
    """Of best-of-n."""
    policies: dict[float, Curve]
    """Of PPO, by the coefficient of its KL penalty."""

    def free(self) -> dict[str, Curve]:
        """Return the curve of each method without a penalty."""
        return dict(zip(METHODS, (self.best, self.policies[0.0]), strict=True))


class Fit(NamedTuple):
    """A form of the law, fitted to one member's gold reward."""

    alpha: float
    beta: float
    r2: float
    """Share of the variance around the mean that is explained, at most 1; nan where nothing varies."""


def columns(d: np.ndarray, form: str) -> np.ndarray:
    """Return what alpha and beta multiply at distances above 0, [n, 2]."""
    return np.stack([d, -d * (d if form == "best of n" else np.log(d))], -1)


def fit(d: np.ndarray, reward: np.ndarray, form: str) -> Fit:
    """Fit a form by least squares to one member's points [n]; one at d = 0, where R = 0, says nothing."""
    d, reward = d[d > 0], reward[d > 0]
    coefs = np.linalg.lstsq(columns(d, form), reward, rcond=None)[0]
    rest, total = np.sum((reward - columns(d, form) @ coefs) ** 2), np.sum((reward - reward.mean()) ** 2)
    return Fit(float(coefs[0]), float(coefs[1]), float(1 - rest / total) if total else float("nan"))


def fit_all(curve: Curve, form: str) -> list[Fit]:
    """Return the fit of every member."""
    return [fit(d, reward, form) for d, reward in zip(curve.root_kl.T, curve.gold.T, strict=True)]


def find_peak(curve: Curve) -> dict[str, np.ndarray]:
    """Return where each member's gold reward peaks, and what is left of it at the end, [M] each.

    A member's place is the peak of the other members' mean, so that no member's noise chooses its own. The
    start, where nothing is gained yet, is none.
    """
    curve = Curve(*(x[curve.proxy.any(1)] for x in curve))
    others = curve.gold.sum(1, keepdims=True) - curve.gold
    place = others.argmax(0), np.arange(curve.gold.shape[1])
    root_kl, gold, proxy = (x[place] for x in curve)
    return {
        "peak at sqrt KL": root_kl,
        "gold there": gold,
        "share real": gold / proxy,
        "end at sqrt KL": curve.root_kl[-1],
        "gold at end": curve.gold[-1],
        "gold, end - peak": curve.gold[-1] - gold,
        "score, end - peak": curve.proxy[-1] - proxy,
    }


def off_path(curve: Curve, free: Curve) -> np.ndarray:
    """Return the gold reward [M] at a run's end less that of the free run where it is as far away."""
    away = []
    for last, d, gold in zip(curve.root_kl[-1], free.root_kl.T, free.gold.T, strict=True):
        order = np.argsort(d)
        away.append(np.interp(last, d[order], gold[order]))
    return curve.gold[-1] - np.array(away)


def range_text(x: Sequence[float]) -> str:
    """Return the mean and the range, for what an interval could carry beyond its bound."""
    return f"{np.mean(x):.2f} [{np.min(x):.2f}, {np.max(x):.2f}]"


def report_law(curve: Curve) -> dict[str, Any]:
    """Print one method's peak and fits; return them."""
    peak = find_peak(curve)
    fits = {form: fit_all(curve, form) for form in METHODS}
    print("    " + "".join(f"{name:18}" for name in peak))
    print("    " + "".join(f"{mean_text(x, '.2f'):18}" for x in peak.values()))
    for form, law in zip(METHODS, ("d (alpha - beta d)", "d (alpha - beta log d)"), strict=True):
        alpha, beta, r2 = (list(column) for column in zip(*fits[form], strict=True))
        cells = f"alpha {mean_text(alpha, '.2f')}, beta {mean_text(beta, '.3f')}, R^2 {range_text(r2)}"
        print(f"    {law:24}{cells}")
    gap = np.array([x.r2 for x in fits["PPO"]]) - np.array([x.r2 for x in fits["best of n"]])
    print(f"    R^2 with log d less that with d: {mean_text(gap, '+.3f')}")
    each = {form: [x._asdict() for x in members] for form, members in fits.items()}
    return {"curve": curve._asdict(), "peak": peak, "fits": each}


def report(found: dict[int, Found]) -> dict[str, Any]:
    """Print accuracy, peaks, fits and coefficients for each number of comparisons; return all of it."""
    results: dict[str, Any] = {}
    for count, row in found.items():
        print(f"\n{count} comparisons: held-out pairs ordered rightly {mean_text(100 * row.accuracy)}%")
        results[str(count)] = out = {"accuracy": row.accuracy, "coefficients": {}}
        for method, curve in row.free().items():
            print(f"  {method} [deviations; sqrt nats]")
            out[method] = report_law(curve)
        print("  PPO's last step, by coefficient: sqrt KL, gold, score; gold less the free run's as far away")
        for coef, curve in row.policies.items():
            last = {name: x[-1] for name, x in curve._asdict().items()}
            last["off path"] = off_path(curve, row.policies[0.0])
            out["coefficients"][coef] = last
            print(f"    {coef:<8g}" + "".join(f"{mean_text(x, '.2f'):18}" for x in last.values()))
    return results


def draw(path: str | os.PathLike, found: dict[int, Found]) -> None:
    """Draw both rewards and the fitted law of each method, and gold reward by coefficient.

    Every point lies at the members' mean distance.
    """
    panels: dict[str, Any] = {}
    for count, row in found.items():
        for method, curve in row.free().items():
            x = curve.root_kl.mean(1)
            grid = np.linspace(max(x[x > 0].min(), 0.05), x.max(), 40)
            law = [columns(grid, method) @ np.array(member[:2]) for member in fit_all(curve, method)]
            panels[f"gain, {method}, {count} pairs"] = {
                "score (proxy)": (x, curve.proxy),
                "gold": (x, curve.gold),
                "gold, fitted": (grid, np.stack(law, 1)),
            }
        panels[f"gold by coefficient, {count} pairs"] = {
            f"{coef:g}": (curve.root_kl.mean(1), curve.gold) for coef, curve in row.policies.items()
        }
    seeds = len(next(iter(found.values())).accuracy)
    title = f"Rewards gained [deviations of the fine-tuned policy's answers], {seeds} seeds, 95% intervals"
    save_panels(path, "sqrt KL from the fine-tuned policy [sqrt nats]", panels, title=title, columns=3)
