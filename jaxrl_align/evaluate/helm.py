"""HELM's seven fields of one model on one task, each figure with its interval, as JSON and as a table.

    found = report(read_items(task), answer, metrics=task.metrics, conditions="CPU, 2 cores, batch 32")
    print(found); json.dumps(found.to_dict())

Source: Liang et al. 2022, arXiv:2211.09110, section 4.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_align.evaluate.measures import wording
from jaxrl_align.evaluate.measures.calibration import (
    brier_score,
    expected_calibration_error,
    fit_platt,
    selective_accuracy,
)
from jaxrl_align.evaluate.measures.item_metrics import SHARES, Measured, measure, score_items
from jaxrl_align.evaluate.measures.perturbations import FAIRNESS, ROBUSTNESS, Perturbation
from jaxrl_align.evaluate.measures.task_metrics import CORRELATIONS, ITEM_SCORES, right_answers
from jaxrl_align.evaluate.tasks.task_items import Item
from jaxrl_align.runtime.resampling import bootstrap, bootstrap_mean, share_interval
from jaxrl_align.runtime.statistics import DRAWS, Interval

FEW = 300
"""Items below which ten bins of a calibration error say little."""


class Answers(NamedTuple):
    """What a model answers to items, and what that took."""

    predictions: Sequence[Any]
    """[N] places of options, numbers or texts; None where no answer could be read."""
    probs: np.ndarray | None = None
    """[N, K] of the options, 0 for those that an item lacks; None where there are none."""
    texts: Sequence[str] | None = None
    """[N] what was generated; None where options were scored."""
    seconds: float = 0.0
    """Of inference alone, after compilation."""
    tokens: int = 0
    """Read and written in that time."""
    joules: float | None = None
    """None where energy cannot be read."""


class Figure(NamedTuple):
    """One line of the report."""

    measured: Measured
    note: str = ""


class HelmReport(NamedTuple):
    """The seven fields; each maps names to figures, which say why where they are undefined."""

    items: int
    accuracy: Mapping[str, Figure]
    """The task's own metrics."""
    calibration: Mapping[str, Figure]
    """Of the given answers' probabilities."""
    robustness: Mapping[str, Figure]
    """An item's score at worst and on average over inputs with other spelling and form."""
    fairness: Mapping[str, Figure]
    """The same over dialect, gender terms and names."""
    bias: Mapping[str, Figure]
    """Total variation of groups' words in generated text from an even use; 0 is even."""
    toxicity: Mapping[str, Figure]
    efficiency: Mapping[str, Figure]

    def fields(self) -> dict[str, Mapping[str, Figure]]:
        """Return the seven fields by name."""
        return {name: value for name, value in self._asdict().items() if name != "items"}

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON holds it; undefined values are null."""
        line = lambda figure: figure.measured.to_dict() | {"note": figure.note}
        found = {
            name: {key: line(figure) for key, figure in field.items()}
            for name, field in self.fields().items()
        }
        return {"items": self.items} | found

    def __str__(self) -> str:
        """Return a table: field, figure, value with its 95% interval, note."""
        rows = [
            (name if not i else "", key, str(figure.measured), figure.note)
            for name, field in self.fields().items()
            for i, (key, figure) in enumerate(field.items())
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(3)]
        lines = (
            "  ".join([*(c.ljust(w) for c, w in zip(row, widths, strict=False)), row[3]]) for row in rows
        )
        return f"{self.items:,} items, 95% intervals\n" + "\n".join(line.rstrip() for line in lines)


def report(
    items: Sequence[Item],
    answer: Callable[[Sequence[Item]], Answers],
    *,
    metrics: Sequence[str] = ("accuracy",),
    robustness: Mapping[str, Perturbation] = ROBUSTNESS,
    fairness: Mapping[str, Perturbation] = FAIRNESS,
    scorer: wording.Scorer | None = None,
    scorer_name: str = "",
    conditions: str = "",
    draws: int = DRAWS,
    seed: int = 0,
) -> HelmReport:
    """Ask a model for its answers to a task's items, as they are and perturbed, and report HELM's fields.

    Intervals are by items, or by groups of items that share a source; never by perturbations. Those of
    calibration errors are percentiles of draws that repeat items, which raises the error: they lie too high.
    A value that no draw changes, such as the bias of two words, has no interval.

    Args:
      items: [N], their inputs as the task gives them; perturbations change `item.input` alone.
      answer: items -> `Answers`, which must depend on an item alone and not on its neighbours. It is asked
        once for the items, and once for each perturbation, for the items that it changes.
      metrics: names of `METRICS`; the first one's score of an item, or else whether it is right, is what
        perturbations lower. Of a correlation they lower nothing, since an item alone has none.
      robustness: perturbations by name.
      fairness: perturbations by name.
      scorer: of toxicity, see `wording.find_toxic`; None, a list of words.
      scorer_name: what the report calls it.
      conditions: device and batch, for the efficiency's note.
      draws: of the bootstraps.
      seed: of the perturbations and the bootstraps.

    Raises:
      ValueError: for no items or metrics, or answers that are not one an item.
    """
    if not items or not metrics:
        raise ValueError(f"a report needs items and metrics; got {len(items)} and {len(metrics)}")
    given = _ask(answer, items)
    named = [item.group for item in items if item.group is not None]
    groups = named if len(named) == len(items) else None
    sample = _Sample(items, groups, draws, seed)
    right = [item.answer for item in items]
    options = [item.options for item in items]
    return HelmReport(
        items=len(items),
        accuracy={
            name: Figure(measure(name, given.predictions, right, options=options, groups=groups))
            for name in metrics
        },
        calibration=_calibration(sample, given),
        robustness=_perturbed(sample, answer, given, metrics[0], robustness),
        fairness=_perturbed(sample, answer, given, metrics[0], fairness),
        bias=_bias(sample, given.texts),
        toxicity=_toxicity(sample, given.texts, scorer, scorer_name),
        efficiency=_efficiency(given, len(items), conditions),
    )


class _Sample(NamedTuple):
    """The items and how their intervals are drawn."""

    items: Sequence[Item]
    groups: Sequence[str] | None
    draws: int
    seed: int

    def of(self, statistic: Callable[..., Any], *arrays: np.ndarray) -> Measured:
        """Return a statistic of arrays [N, ...] with its bootstrap interval."""
        found = statistic(*arrays)
        if reason := getattr(found, "reason", ""):
            return _undefined(reason)
        found = bootstrap(statistic, *arrays, groups=self.groups, draws=self.draws, seed=self.seed)
        return _drawn(found)

    def share(self, hits: np.ndarray) -> Measured:
        return _drawn(share_interval(hits, self.groups, draws=self.draws, seed=self.seed))

    def mean(self, values: np.ndarray) -> Measured:
        return _drawn(bootstrap_mean(values, self.groups, draws=self.draws, seed=self.seed))


def _undefined(reason: str) -> Measured:
    return Measured(np.nan, np.nan, np.nan, "none", reason)


def _drawn(found: Interval) -> Measured:
    """Return an interval, or none where all draws agree: two words of one group say nothing certain."""
    agree = found.kind == "bootstrap" and found.low == found.high
    return _plain(found.value) if agree else Measured(*found)


def _plain(value: float) -> Measured:
    return Measured(value, np.nan, np.nan, "none")


def _ask(answer: Callable[[Sequence[Item]], Answers], items: Sequence[Item]) -> Answers:
    given = answer(items)
    for name, value in (("predictions", given.predictions), ("probs", given.probs), ("texts", given.texts)):
        if value is not None and len(value) != len(items):
            raise ValueError(f"answers must have one entry an item; got {len(value)} {name} for {len(items)}")
    return given


def _calibration(sample: _Sample, given: Answers) -> dict[str, Figure]:
    if given.probs is None:
        return {"error, 10 bins of equal mass": Figure(_undefined("answers have no probabilities"))}
    probs = np.asarray(given.probs, float)
    # How sure it is of what it answered, which need not be the likeliest; of a text, of the likeliest option.
    sure = np.array(
        [
            p[place] if isinstance(place, int) and 0 <= place < len(p) else p.max()
            for place, p in zip(given.predictions, probs, strict=True)
        ]
    )
    right = right_answers(given.predictions, [item.answer for item in sample.items]).astype(float)
    note = f"fewer than {FEW} items" if len(right) < FEW else ""
    error = lambda s, r, **options: expected_calibration_error(s, r, **options)
    scaled = lambda s, r: expected_calibration_error(fit_platt(s, r).scale(s), r)
    return {
        "error, 10 bins of equal mass": Figure(sample.of(error, sure, right), note),
        "error, 10 bins of equal width": Figure(
            sample.of(lambda s, r: error(s, r, equal_mass=False), sure, right), note
        ),
        "error, 1 bin": Figure(sample.of(lambda s, r: error(s, r, bins=1), sure, right)),
        "error after Platt's scaling": Figure(sample.of(scaled, sure, right), note),
        "Brier score of being right": Figure(sample.of(brier_score, sure, right)),
        "accuracy on the surest 10%": Figure(
            sample.of(lambda s, r: selective_accuracy(s, r).top, sure, right)
        ),
        "area under accuracy by coverage": Figure(
            sample.of(lambda s, r: selective_accuracy(s, r).area, sure, right)
        ),
    }


def _perturbed(
    sample: _Sample,
    answer: Callable[[Sequence[Item]], Answers],
    given: Answers,
    metric: str,
    perturbations: Mapping[str, Perturbation],
) -> dict[str, Figure]:
    """Return the score at worst, the original included as in HELM, on average, and of each perturbation."""
    if metric in CORRELATIONS:
        return {"worst case": Figure(_undefined(f"an item alone has no {metric} correlation"))}
    original = _score(metric, sample.items, given)
    rows, found = [original], {}
    for name, perturb in perturbations.items():
        texts = [perturb(item.input, _random(sample.seed, name, item.input)) for item in sample.items]
        changed = [i for i, item in enumerate(sample.items) if texts[i] != item.input]
        scores = original.copy()
        if changed:
            asked = [sample.items[i]._replace(input=texts[i], own=None) for i in changed]
            scores[changed] = _score(metric, asked, _ask(answer, asked))
        rows.append(scores)
        found[name] = Figure(_mean(sample, metric, scores), f"changes {len(changed)} of {len(texts)} items")
    if not perturbations:
        return {"worst case": Figure(_undefined("there is no perturbation"))}
    table = np.stack(rows)
    return {
        "worst case": Figure(_mean(sample, metric, table.min(0)), "of an item, the original included"),
        "mean": Figure(sample.mean(table[1:].mean(0)), f"over {len(perturbations)} perturbations"),
    } | found


def _random(seed: int, name: str, text: str) -> np.random.Generator:
    """Return a generator that an item keeps in whatever company it is asked."""
    return np.random.default_rng([seed, zlib.crc32(f"{name}\0{text}".encode())])


def _score(metric: str, items: Sequence[Item], given: Answers) -> np.ndarray:
    answers, options = [item.answer for item in items], [item.options for item in items]
    return score_items(metric, given.predictions, answers, options)


def _mean(sample: _Sample, metric: str, scores: np.ndarray) -> Measured:
    graded = metric in ITEM_SCORES and metric not in SHARES
    return sample.mean(scores) if graded else sample.share(scores)


def _bias(sample: _Sample, texts: Sequence[str] | None) -> dict[str, Figure]:
    found = {}
    for kind, groups in (("gender", wording.GENDER_WORDS), ("surnames", wording.SURNAMES)):
        if texts is None:
            found[kind] = Figure(_undefined("no text was generated"))
            continue
        sizes = [len(words) for words in groups.values()]
        counts = wording.count_words(texts, groups)
        totals = zip(groups, counts.sum(0), strict=True)
        even = lambda x, sizes=sizes: wording.unevenness(x.sum(0), sizes)
        found[kind] = Figure(sample.of(even, counts), ", ".join(f"{name} {total}" for name, total in totals))
        for beside, targets in (("occupations", wording.OCCUPATIONS), ("adjectives", wording.ADJECTIVES)):
            pairs = wording.count_together(texts, groups, targets)
            even = lambda x, sizes=sizes: wording.mean_unevenness(x.sum(0), sizes)
            note = f"{(pairs.sum((0, 2)) > 0).sum()} of {len(targets)} occur"
            found[f"{kind} beside {beside}"] = Figure(sample.of(even, pairs), note)
    return found


def _toxicity(
    sample: _Sample, texts: Sequence[str] | None, scorer: wording.Scorer | None, name: str
) -> dict[str, Figure]:
    if texts is None:
        return {"share of toxic texts": Figure(_undefined("no text was generated"))}
    found = wording.find_toxic(texts, scorer, name=name)
    return {"share of toxic texts": Figure(sample.share(found.toxic.astype(float)), f"by {found.judge}")}


def _efficiency(given: Answers, items: int, conditions: str) -> dict[str, Figure]:
    timed = given.seconds > 0
    rate = _plain(given.tokens / given.seconds) if timed and given.tokens else _undefined("not measured")
    each = _plain(given.seconds / items) if timed else _undefined("not measured")
    energy = _undefined("not measured") if given.joules is None else _plain(given.joules / items)
    return {
        "seconds an item": Figure(each, conditions),
        "tokens a second": Figure(rate, conditions),
        "joules an item": Figure(energy, conditions if given.joules is not None else ""),
    }
