"""Fits, tables, verdict and figure of `overoptimisation.py`."""

import os
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from panels import save_panels

from jaxrl_align.runtime import Claim, Interval, RunFolder, paired_interval, t_interval, write_result

METHODS = ("best of n", "PPO")
"""Whose form of the law a fit takes."""
LAWS = dict(zip(METHODS, ("d (alpha - beta d)", "d (alpha - beta log d)"), strict=True))
GAP = "score less gold at end"
EXPLAINED = 0.9
"""Least R^2 on every seed of a law that holds."""


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


class Law(NamedTuple):
    """How well the two forms describe one method's gold reward."""

    rows: dict[str, dict[str, Any]]
    """By form."""
    lowest: float
    """R^2 of the method's own form, of the worst seed."""
    gap: Interval
    """R^2 with log d less that with d."""


def describe_law(curve: Curve, method: str) -> Law:
    """Fit both forms to every seed's curve."""
    fits = {form: fit_all(curve, form) for form in METHODS}
    rows = {}
    for form, members in fits.items():
        r2 = np.array([x.r2 for x in members])
        rows[LAWS[form]] = {
            "alpha": t_interval([x.alpha for x in members]),
            "beta": t_interval([x.beta for x in members]),
            "R^2": t_interval(r2, bounds=(-np.inf, 1)),
            "lowest R^2": float(r2.min()),
        }
    r2_of = {form: [x.r2 for x in members] for form, members in fits.items()}
    return Law(rows, float(min(r2_of[method])), paired_interval(r2_of["PPO"], r2_of["best of n"]))


class Decided(NamedTuple):
    """The numbers that decide."""

    few: Mapping[str, Interval]
    """Of PPO without a penalty on the fewest comparisons: `find_peak`'s, and `GAP`."""
    better: Mapping[str, Interval]
    """The most comparisons less the fewest, of `find_peak`'s."""
    kept: Mapping[int, Interval]
    """The gold reward with the smallest penalty at the end less that without, by comparisons."""
    laws: Mapping[str, Law]
    """By method, on the most comparisons."""


def decide(found: Mapping[int, Found]) -> tuple[Decided, float | None]:
    """Return the numbers that decide, and the smallest coefficient of a penalty, None without any."""
    fewest, most = found[min(found)], found[max(found)]
    few, many = (find_peak(row.policies[0.0]) for row in (fewest, most))
    end = fewest.policies[0.0]
    penalty = min((coef for coef in fewest.policies if coef), default=None)
    kept = {
        count: paired_interval(row.policies[penalty].gold[-1], row.policies[0.0].gold[-1])
        for count, row in found.items()
        if penalty is not None
    }
    decided = Decided(
        {key: t_interval(x) for key, x in few.items()} | {GAP: paired_interval(end.proxy[-1], end.gold[-1])},
        {key: paired_interval(many[key], few[key]) for key in many},
        kept,
        {method: describe_law(curve, method) for method, curve in most.free().items()},
    )
    return decided, penalty


def judge(decided: Decided) -> dict[str, bool]:
    """Return which parts of the claim, and of the laws, hold."""
    few, better = decided.few, decided.better
    checks = {
        "PPO's score goes on rising where the gold reward has peaked": few["score, end - peak"].low > 0,
        "the gold reward falls meanwhile": few["gold, end - peak"].high < 0,
        "at the end the score has gained more than the gold reward": few[GAP].low > 0,
        "with the better reward model the gold reward peaks farther away": better["peak at sqrt KL"].low > 0,
        "and is higher at the end": better["gold at end"].low > 0,
    }
    checks |= {
        f"with a penalty the gold reward ends higher than without, {count} comparisons": gain.low > 0
        for count, gain in decided.kept.items()
    }
    return checks | {
        f"best-of-n follows {LAWS['best of n']}: R^2 of {EXPLAINED:g} or more on every seed": (
            decided.laws["best of n"].lowest >= EXPLAINED
        ),
        f"PPO follows {LAWS['PPO']} more closely than the other form": decided.laws["PPO"].gap.low > 0,
    }


def tabulate(found: Mapping[int, Found]) -> dict[str, Any]:
    """Return the tables of peaks, of laws, and of PPO's ends by coefficient."""
    tables: dict[str, Any] = {"peaks": {}, "laws": {}, "ends": {}}
    for count, row in found.items():
        for method, curve in row.free().items():
            name = f"{count} comparisons, {method}"
            tables["peaks"][name] = {key: t_interval(x) for key, x in find_peak(curve).items()}
            law = describe_law(curve, method)
            tables["laws"] |= {f"{name}: {form}": cells for form, cells in law.rows.items()}
            tables["laws"][f"{name}: log d less d"] = {"R^2": law.gap}
        for coef, curve in row.policies.items():
            last = {"sqrt KL": curve.root_kl[-1], "gold": curve.gold[-1], "score": curve.proxy[-1]}
            last["gold less the free run's as far away"] = off_path(curve, row.policies[0.0])
            tables["ends"][f"{count} comparisons, coefficient {coef:g}"] = {
                key: t_interval(x) for key, x in last.items()
            }
    return {
        "where the gold reward peaks without a penalty [deviations; sqrt nats]": tables["peaks"],
        "laws of the gold reward": tables["laws"],
        "PPO's last step, by coefficient of the KL penalty": tables["ends"],
    }


def report(
    folder: RunFolder,
    config: Any,
    claim: Claim,
    found: Mapping[int, Found],
    labels: np.ndarray,
    tried: Mapping[str, Any],
) -> None:
    """Write the result.

    Args:
      folder: where to.
      config: of the run.
      claim: the experiment's.
      found: by number of comparisons.
      labels: [M] chance that a comparison prefers what the gold reward does.
      tried: tables of the rates tried.
    """
    curves = {
        count: {"best of n": row.best._asdict()}
        | {f"{coef:g}": curve._asdict() for coef, curve in row.policies.items()}
        for count, row in found.items()
    }
    folder.write_json("values.json", curves)
    decided, penalty = decide(found)
    right = {f"{count} comparisons": row.accuracy for count, row in found.items()} | {"annotators": labels}
    percent = lambda x: t_interval(100 * x, bounds=(0, 100))
    write_result(
        folder,
        config,
        claim,
        headline={
            f"score less gold reward gained by PPO, {min(found)} comparisons [deviations]": (
                decided.few[GAP]
            ),
            f"gold reward at PPO's end, {max(found)} less {min(found)} comparisons [deviations]": (
                decided.better["gold at end"]
            ),
        },
        baselines={
            f"gold reward gained by PPO, {count} comparisons": t_interval(row.policies[0.0].gold[-1])
            for count, row in found.items()
        },
        checks=judge(decided),
        tables=tabulate(found)
        | {
            f"gold reward at the end, coefficient {penalty or 0:g} less none": {
                f"{count} comparisons": {"difference": gain} for count, gain in decided.kept.items()
            },
            "pairs ordered rightly [%]": {name: {"share": percent(x)} for name, x in right.items()},
            **tried,
        },
        figures=["overoptimisation.png"],
    )


def draw(path: str | os.PathLike, found: Mapping[int, Found]) -> None:
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


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("overoptimisation")
