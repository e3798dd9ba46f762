"""What `probes.py` found: tables, verdicts and figures."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxrl_align import runtime
from jaxrl_align.data.blimp import HUMAN_AGREEMENT, PUBLISHED_ACCURACY
from jaxrl_align.data.probes import CLOZE_PROBES
from jaxrl_align.runtime import plots

MODEL, SHORTER = "the model", "fewer tokens"
CHANCE = 1 / len(CLOZE_PROBES[0].candidates)
"""Of a gap's expected word to come first."""


class Answers(NamedTuple):
    """What all readers answered."""

    names: Sequence[str]
    """Of the paradigms."""
    terms: Sequence[str]
    """Their phenomena."""
    right: dict[str, np.ndarray]
    """[members, paradigms] share of right pairs by reader; models in the order of their size."""
    places: dict[str, np.ndarray]
    """[members, probes] of the expected word among a gap's candidates, from 1."""
    last: str
    """The largest model."""
    continued: Sequence[str]
    """What it writes in each gap."""


def arm(width: int, epochs: float) -> str:
    """Return the name of a width's models after so many epochs."""
    return f"width {width}, " + (f"{epochs:g} epoch{'s' * (epochs != 1)}" if epochs else "untrained")


def difference(answers: Answers, first: str, second: str) -> runtime.Interval:
    """Return how much more often one reader is right than another, in points, bootstrapped over paradigms."""
    return runtime.bootstrap_mean(100 * (answers.right[first].mean(0) - answers.right[second].mean(0)))


def share_first(places: np.ndarray) -> runtime.Interval:
    """Return the share of gaps [members, probes] whose expected word comes first; members share the gaps."""
    members, probes = places.shape
    groups = None if members == 1 else np.tile(np.arange(probes), members)
    return runtime.share_interval((places == 1).ravel(), groups)


def tabulate(answers: Answers) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the tables of any run."""
    readers = {
        who: {
            "right": runtime.bootstrap_mean(100 * x.mean(0)),
            f"less {SHORTER}": difference(answers, who, SHORTER),
            "each seed": [float(seed) for seed in 100 * x.mean(1)],
        }
        for who, x in answers.right.items()
    }
    published = {f"{who}, published": {"right": 100 * x} for who, x in PUBLISHED_ACCURACY.items()}
    published["most of 20 people"] = {"right": 100 * HUMAN_AGREEMENT}
    by_term = by_phenomenon(answers)
    mean = 100 * answers.right[answers.last].mean(0)
    order = np.argsort(-mean, kind="stable")
    return {
        "BLiMP, right pairs [%]; intervals over the paradigms": readers | published,
        "right pairs by phenomenon [%]": {
            term: {who: float(100 * x[i]) for who, x in by_term.items()}
            for i, term in enumerate(sorted(set(answers.terms)))
        },
        f"paradigms that {answers.last} knows best and worst [%]": {
            answers.names[i]: {"right": float(mean[i])} for i in (*order[:5], *order[-5:])
        },
    } | tabulate_gaps(answers)


def tabulate_gaps(answers: Answers) -> dict[str, dict[str, dict[str, Any]]]:
    """Return the tables of the lecture's gaps: the expected word's places, and what the model writes."""
    places = {
        who: {"expected word first": share_first(x)}
        | {probe.skill: x[:, i].tolist() for i, probe in enumerate(CLOZE_PROBES)}
        for who, x in answers.places.items()
    }
    gaps = {
        probe.skill: {
            "text": probe.text,
            "expected": probe.candidates[0],
            "written": " ".join(text.split()) or "(nothing)",
        }
        for probe, text in zip(CLOZE_PROBES, answers.continued, strict=True)
    }
    return {
        "the lecture's gaps: the expected word's place among the candidates, by seed": places,
        f"the lecture's gaps: what {answers.last} writes behind the text before": gaps,
    }


def by_phenomenon(answers: Answers) -> dict[str, np.ndarray]:
    """Return by reader the share of right pairs of each phenomenon, in the order of their names."""
    names = sorted(set(answers.terms))
    groups = np.stack([np.array(answers.terms) == name for name in names]).astype(float)
    return {who: groups @ x.mean(0) / groups.sum(1) for who, x in answers.right.items()}


def judge_trained(
    length: runtime.Interval,
    counts: runtime.Interval,
    longer: Sequence[runtime.Interval],
    wider: runtime.Interval,
    first: runtime.Interval,
) -> dict[str, bool]:
    """Return which parts of the claim hold of the models trained here.

    Args:
      length: what the largest gains over the length bias.
      counts: over counts of tokens.
      longer: what the widest gain by each further reading.
      wider: the widest over the narrowest, after the longest reading.
      first: share of the gaps whose expected word the largest puts first.
    """
    return {
        "the widest models, after the longest reading, are right more often than the length bias": length.low
        > 0,
        "and than counts of the same text": counts.low > 0,
        "each longer reading makes the widest better": all(gain.low > 0 for gain in longer),
        "the wider are better than the narrower": wider.low > 0,
        "they put the expected words of the gaps first more often than chance": first.low > CHANCE,
    }


def judge_published(
    length: runtime.Interval, right: runtime.Interval, first: runtime.Interval
) -> dict[str, bool]:
    """Return which parts of the claim hold of a published model."""
    counts = 100 * PUBLISHED_ACCURACY["5-gram"]
    return {
        "it is right more often than the length bias": length.low > 0,
        f"and than the published 5-gram, {counts:.1f}%": right.low > counts,
        "it puts the expected words of the gaps first more often than chance": first.low > CHANCE,
    }


def report_trained(config: Any, folder: runtime.RunFolder, claim: runtime.Claim, answers: Answers) -> None:
    """Write the result and the figures of models trained here."""
    wide, most = max(config.widths), max(config.epochs)
    last, counts = arm(wide, most), f"{config.ngram}-gram"
    rising = sorted(config.epochs)
    longer = [
        difference(answers, arm(wide, after), arm(wide, before))
        for before, after in zip(rising, rising[1:], strict=False)
    ]
    wider = difference(answers, last, arm(min(config.widths), most))
    length, over = difference(answers, last, SHORTER), difference(answers, last, counts)
    draw_gains(folder.path / "gain_by_epochs.png", config, answers, counts)
    shown = {arm(wide, 0): "untrained", last: last, counts: counts, SHORTER: SHORTER}
    draw_phenomena(folder.path / "blimp.png", answers, shown)
    steps = zip(rising, rising[1:], longer, strict=False)
    pairs = {f"{arm(wide, after)} less {before:g}": gain for before, after, gain in steps}
    pairs |= {f"{last} less width {min(config.widths)}": wider}
    pairs |= {f"{last} less {counts}": over}
    runtime.write_result(
        folder,
        config,
        claim,
        headline={f"right pairs of BLiMP, {last}, less {SHORTER} [points]": length},
        baselines={f"{counts} of the same text, less {SHORTER}": difference(answers, counts, SHORTER)},
        checks=judge_trained(length, over, longer, wider, share_first(answers.places[last])),
        tables=tabulate(answers)
        | {"gains [points], paired by paradigm": {name: {"gain": x} for name, x in pairs.items()}},
        figures=["gain_by_epochs.png", "blimp.png"],
    )


def report_published(config: Any, folder: runtime.RunFolder, claim: runtime.Claim, answers: Answers) -> None:
    """Write the result and the figure of a published model."""
    length = difference(answers, MODEL, SHORTER)
    right = runtime.bootstrap_mean(100 * answers.right[MODEL].mean(0))
    draw_phenomena(folder.path / "blimp.png", answers, {who: who for who in answers.right})
    runtime.write_result(
        folder,
        config,
        claim,
        headline={f"right pairs of BLiMP, less {SHORTER} [points]": length},
        baselines={
            f"{SHORTER}, right pairs [%]": runtime.bootstrap_mean(100 * answers.right[SHORTER].mean(0))
        },
        checks=judge_published(length, right, share_first(answers.places[MODEL])),
        tables=tabulate(answers),
        figures=["blimp.png"],
        seeds=1,
    )


def draw_gains(path: Any, config: Any, answers: Answers, counts: str) -> None:
    """Draw each width's gain over the length bias against the epochs, and that of the counts."""
    fig, ax = plots.figure(
        "times that the text is read",
        f"right pairs less {SHORTER} [points]",
        title="BLiMP, 95% over paradigms",
    )
    for width in config.widths:
        gains = [difference(answers, arm(width, epochs), SHORTER) for epochs in config.epochs]
        middle = np.array([gain.value for gain in gains])
        ends = np.abs(np.array([(gain.low, gain.high) for gain in gains]).T - middle)
        ax.errorbar(config.epochs, middle, ends, marker="o", capsize=3, label=f"width {width}")
    ax.axhline(difference(answers, counts, SHORTER).value, color="#777777", linestyle="--", label=counts)
    ax.axhline(0, color="#777777", linestyle=":")
    ax.set(xscale="log", xticks=config.epochs, xticklabels=[f"{x:g}" for x in config.epochs])
    ax.minorticks_off()
    fig.legend(loc="outside right upper", fontsize=8, frameon=False)
    plots.save_figure(fig, path)


def draw_phenomena(path: Any, answers: Answers, shown: dict[str, str]) -> None:
    """Draw each phenomenon's right pairs, the readers' side by side, under the names that `shown` gives."""
    fig, ax = plots.figure("right pairs [%]", "", title="BLiMP")
    fig.set_size_inches(6.4, 5.2)
    names, by_term = sorted(set(answers.terms)), by_phenomenon(answers)
    height = 0.8 / len(shown)
    for i, (who, label) in enumerate(shown.items()):
        where = np.arange(len(names)) + (i - (len(shown) - 1) / 2) * height
        ax.barh(where, 100 * by_term[who], height, label=label, **plots.bar_look(i))
    ax.axvline(50, color="#777777", linestyle=":", label="chance")
    ax.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
    ax.invert_yaxis()
    fig.legend(loc="outside right upper", fontsize=8, frameon=False)
    plots.save_figure(fig, path)


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("probes")
