"""Write what other packages answer for drawn cases into a fixture: metrics, overlaps of texts, calibration.

In an environment of its own, from the repository's root:

    pip install numpy scipy scikit-learn rouge-score uncertainty-calibration "transformers==4.57.*"
    python -m tests.evaluate.make_metric_fixtures

The fixture holds the cases beside the answers, so that the tests need none of the packages.
"""

import json
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np

FIXTURE = Path(__file__).parent / "fixtures" / "metrics.json"
PACKAGES = ("numpy", "scipy", "scikit-learn", "rouge-score", "uncertainty-calibration", "transformers")
WORDS = (
    "The",
    "the",
    "a",
    "cat",
    "cats",
    "sat;",
    "on-mat.",
    "It's",
    "3.5",
    "-7",
    "naïve",
    "[b]",
    "don't",
    "U.S.",
)


def label_cases() -> list[dict]:
    """Return labels of two and of several classes: some rare, some never predicted, some never answered."""
    from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

    random, cases = np.random.default_rng(0), []
    for items, predicted, answered in (
        (40, [0.6, 0.4], [0.7, 0.3]),
        (25, [0.2, 0.5, 0.3], [0.5, 0.4, 0.1]),
        (25, [0.5, 0.5, 0.0], [0.3, 0.3, 0.4]),
        (25, [0.3, 0.4, 0.3], [0.5, 0.5, 0.0]),
        (12, [1.0, 0.0], [0.5, 0.5]),
        (12, [0.5, 0.5], [0.0, 1.0]),
        (6, [0.0, 1.0], [0.0, 1.0]),
        (6, [1.0, 0.0], [0.0, 1.0]),
        (30, [0.2] * 5, [0.2] * 5),
    ):
        p, a = (random.choice(len(share), items, p=share) for share in (predicted, answered))
        one = lambda x: (x == 1).astype(int)
        cases.append(
            {
                "predictions": p.tolist(),
                "answers": a.tolist(),
                "accuracy": accuracy_score(a, p),
                "f1": f1_score(one(a), one(p), zero_division=0),
                "macro_f1": f1_score(a, p, average="macro", zero_division=0),
                "matthews": matthews_corrcoef(a, p),
            }
        )
    return cases


def number_cases() -> list[dict]:
    """Return pairs of numbers: drawn, with many ties, far from 0, and exactly alike."""
    import scipy.stats

    random, cases = np.random.default_rng(1), []
    x, y = random.normal(size=(2, 30))
    for p, a in (
        (x, 0.6 * x + y),
        (random.integers(0, 5, 40), random.integers(0, 6, 40)),
        (1e6 + x, 1e6 + y),
        (x, -2 * x),
        ([1.0, 2.0], [3.0, 5.0]),
        (np.exp(5 * x), x),
    ):
        p, a = np.asarray(p, float), np.asarray(a, float)
        cases.append(
            {
                "predictions": p.tolist(),
                "answers": a.tolist(),
                "pearson": scipy.stats.pearsonr(p, a).statistic,
                "spearman": scipy.stats.spearmanr(p, a).statistic,
            }
        )
    return cases


def text_cases() -> list[dict]:
    """Return texts with punctuation, articles, repeated and foreign words, and empty ones."""
    from rouge_score import rouge_scorer
    from transformers.data.metrics.squad_metrics import compute_exact, compute_f1

    random, cases = np.random.default_rng(2), []
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"])
    draw = lambda longest: " ".join(random.choice(WORDS, random.integers(0, longest)))
    fixed = [
        ("", ["the"]),
        ("The Cat!", ["a cat", "dog"]),
        ("", [""]),
        ("...", ["cat"]),
        ("a b", ["b a", "a b c"]),
    ]
    drawn = [(draw(12), [draw(9) for _ in range(random.integers(1, 4))]) for _ in range(20)]
    for prediction, golds in fixed + drawn:
        rouge = scorer.score_multi(golds, prediction)
        cases.append(
            {
                "prediction": prediction,
                "answers": golds,
                "token_f1": max(compute_f1(gold, prediction) for gold in golds),
                "normalised_match": max(compute_exact(gold, prediction) for gold in golds),
                "rouge": {name: [x.precision, x.recall, x.fmeasure] for name, x in rouge.items()},
            }
        )
    return cases


def calibration_cases() -> list[dict]:
    """Return confidences, many of them equal in the second case, with what the packages measure."""
    import calibration
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import brier_score_loss

    random, cases = np.random.default_rng(3), []
    for items, digits, power in ((57, 8, 1.0), (60, 1, 1.0), (33, 8, 2.5), (7, 8, 1.0)):
        sure = np.round(random.uniform(0.06, 0.94, items), digits)
        right = (random.random(items) < sure**power).astype(int)
        x = np.log(sure / (1 - sure))[:, None]
        fit = LogisticRegression(C=1e10, solver="newton-cholesky", tol=1e-14, max_iter=1000).fit(x, right)
        area, top = calibration.get_selective_stats(sure, right)
        cases.append(
            {
                "confidence": sure.tolist(),
                "correct": right.tolist(),
                "ties": digits < 8,
                "equal_mass": {n: calibration.get_ece_em(sure, right, num_bins=n) for n in (1, 5, 10)},
                "equal_width": {n: calibration.get_ece(sure, right, num_bins=n) for n in (1, 5, 10)},
                "platt": [fit.coef_[0, 0], fit.intercept_[0]],
                "platt_equal_mass": calibration.get_ece_em(fit.predict_proba(x)[:, 1], right, num_bins=10),
                "brier": brier_score_loss(right, sure),
                "area": area,
                "top": top,
            }
        )
    return cases


def option_cases() -> list[dict]:
    """Return probabilities of several options."""
    from sklearn.metrics import brier_score_loss

    random = np.random.default_rng(4)
    probs, answers = random.dirichlet([0.5] * 4, 20), random.integers(0, 4, 20)
    brier = brier_score_loss(answers, probs, labels=[0, 1, 2, 3], scale_by_half=False)
    return [{"probs": probs.tolist(), "answers": answers.tolist(), "brier": brier}]


def main() -> None:
    """Draw the cases and write the fixture."""
    warnings.simplefilter("ignore")
    found = {
        "origin": "python -m tests.evaluate.make_metric_fixtures",
        "versions": {name: version(name) for name in PACKAGES},
        "labels": label_cases(),
        "numbers": number_cases(),
        "texts": text_cases(),
        "calibration": calibration_cases(),
        "options": option_cases(),
    }
    FIXTURE.parent.mkdir(exist_ok=True)
    plain = lambda x: x.item() if hasattr(x, "item") else float(x)
    lines = ",\n".join(
        f'"{name}": '
        + (json.dumps(part, default=plain) if isinstance(part, str | dict) else _rows(part, plain))
        for name, part in found.items()
    )
    FIXTURE.write_text("{\n" + lines + "\n}\n", encoding="utf-8")


def _rows(cases: list[dict], plain) -> str:
    return "[\n" + ",\n".join(json.dumps(case, default=plain) for case in cases) + "\n]"


if __name__ == "__main__":
    main()
