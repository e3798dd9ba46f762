"""Tables, verdicts and figures of `instruction_tuning.py`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from instruction_tuning_ask import ROUGE
from instruction_tuning_shares import (
    CALLED,
    MEASURES,
    PARTS,
    WORLD,
    call,
    chance,
    gains,
    names_of,
    right_given_format,
    set_shares,
    unseen_shares,
)
from panels import save_panels
from parts import Described, join_parts

from jaxrl_align import runtime
from jaxrl_align.runtime import Interval

GUESS = 20.0
"""Per cent of the world's answers that are right by a guess in the format."""
MET = ", where the fewer had taught both words"


def over_seeds(x: np.ndarray, bounds: tuple[float, float] = (0, 100)) -> Interval:
    """Return the mean of values in per cent and its t interval; seeds that have none (nan) are left out."""
    x = x[np.isfinite(x)]
    return runtime.t_interval(x, bounds=bounds) if len(x) else Interval(np.nan, np.nan, np.nan, "none")


def per_cent(hits: Sequence[int]) -> Interval:
    """Return a share of items in per cent, with Wilson's interval."""
    value, low, high, kind = runtime.share_interval(hits)
    return Interval(100 * value, 100 * low, 100 * high, kind)


def judge_world(most: Interval, steps: Sequence[Interval], gain: Interval, met: Interval) -> dict[str, bool]:
    """Return which parts of the claim hold in the world of exact tasks.

    Args:
      most: unseen tasks right after learning the most tasks, per cent.
      steps: gains of each number of tasks over the one before, points.
      gain: of the most over the fewest.
      met: of the most over the number before, in tasks whose two words that number had taught.
    """
    return {
        "world: after the most tasks unseen ones are right more often than after one": gain.low > 0,
        "world: and more often than by a guess in the format": most.low > GUESS,
        "world: every larger number of tasks gets more of them right": all(x.low > 0 for x in steps),
        "world: it is more than having met the instructions' words": met.low > 0,
    }


def gains_of_world(found: Mapping[str, Any], first: str, last: str) -> dict[str, Interval]:
    """Return what one number of tasks gains over another in unseen ones, paired by seed, in points."""
    before, after = (unseen_shares(found[n], found[first]["known"]) for n in (first, last))
    return {
        f"{measure}{where}": over_seeds(100 * (after[known + measure] - before[known + measure]), (-100, 100))
        for measure in ("format", "right")
        for known, where in (("", ""), ("known ", MET))
    }


def describe_world(found: Mapping[str, Any]) -> Described:
    """Return what became of the world's tasks, by the number of tasks learnt."""
    rows = {}
    for n, row in found.items():
        shares = {name: 100 * x for name, x in unseen_shares(row).items()}
        learnt = 100 * np.array(row["learnt"]["right"])[:, : int(n)].mean(1)
        rows[n] = (
            {"learnt, right": over_seeds(learnt)}
            | {f"unseen, {name}": over_seeds(shares[m]) for m, name in WORLD.items()}
            | {"unseen of known words": over_seeds(shares["known"])}
            | {f"these, {name}": over_seeds(shares[f"known {m}"]) for m, name in WORLD.items()}
        )
    few, most = list(found)[0], list(found)[-1]
    steps = {n: gains_of_world(found, before, n) for before, n in zip(found, list(found)[1:], strict=False)}
    whole = gains_of_world(found, few, most)
    met = steps[most][f"right{MET}"] if steps else whole[f"right{MET}"]
    right = rows[most]["unseen, right"]
    before = dict(zip(list(found)[1:], found, strict=False))
    return {
        "headline": {f"world: unseen tasks right, {most} less {few} tasks, paired [points]": whole["right"]},
        "baselines": {f"world: unseen tasks right after {few} [%]": rows[few]["unseen, right"]},
        "checks": judge_world(right, [step["right"] for step in steps.values()], whole["right"], met),
        "tables": {
            "world, by the number of tasks learnt [%]": {f"{n} tasks": row for n, row in rows.items()},
            "world: gains in unseen tasks, paired by seed [points]": {
                f"{n} less {before[n]} tasks": step for n, step in steps.items()
            }
            | {f"{most} less {few} tasks": whole},
        },
    }


def judge_part(part: str, untuned: Mapping[str, Interval], fewest: Mapping[str, Interval]) -> dict[str, bool]:
    """Return which parts of the claim a published model shows in one kind of unseen sets.

    Args:
      part: which sets.
      untuned: by measure, what the most sets gain over none, points.
      fewest: over the fewest.
    """
    return {
        f"{part}: tuning puts more answers into the format": untuned["format"].low > 0,
        f"{part}: tuning ranks the right one of the allowed answers first more often": untuned["ranked"].low
        > 0,
        f"{part}: many sets put more answers into the format than few": fewest["format"].low > 0,
        f"{part}: many sets rank the right answer first more often than few": fewest["ranked"].low > 0,
    }


def describe_part(part: str, found: Mapping[str, Any], names: Sequence[str]) -> Described:
    """Return what became of the closed questions of some sets; 95% t intervals over the sets."""
    questions, asked = found["questions"], found["asked"]
    rows: dict[str, Any] = {}
    for condition, draws in asked.items():
        x = {m: 100 * set_shares(questions, draws, m, names) for m in MEASURES}
        given = right_given_format(x["right"], x["format"])
        rows[call(condition)] = {
            MEASURES[m]: runtime.t_interval(x[m].mean(0), bounds=(0, 100)) for m in MEASURES
        }
        rows[call(condition)]["right if in format"] = [float(100 * share) for share in given]
    rows["a guess in the format"] = {"right": 100 * chance(questions, "uniform", names)}
    rows["each template's commonest answer"] = {"right": 100 * chance(questions, "constant", names)}
    tuned = [c for c in asked if c not in CALLED]
    compared = {first: gains_of(questions, asked, names, first, tuned[-1]) for first in ("0", tuned[0])}
    means = {
        first: {m: runtime.t_interval(x.mean(0), bounds=(-100, 100)) for m, x in of.items()}
        for first, of in compared.items()
    }
    table = {
        f"{call(tuned[-1])} less {call(first)}": {MEASURES[m]: x for m, x in means[first].items()}
        | {f"{MEASURES[m]}, by draw": x.mean(1).tolist() for m, x in compared[first].items()}
        for first in compared
    }
    of = f"{part}: {call(tuned[-1])} less untuned [points]"
    return {
        "headline": {f"right answer ranked first in {of}": means["0"]["ranked"]},
        "baselines": {f"answers in the format in {of}": means["0"]["format"]},
        "checks": judge_part(part, means["0"], means[tuned[0]]),
        "tables": {
            f"{part} ({len(names)} sets) [%], means over draws": rows,
            f"{part}: gains [points], t intervals over the sets": table,
        },
    }


def gains_of(
    questions: Any, asked: Mapping[str, Any], names: Sequence[str], first: str, last: str
) -> dict[str, np.ndarray]:
    """Return by measure what one condition gains over another [draws, sets], points."""
    return {m: gains(questions, asked, m, names, first, last) for m in MEASURES}


def tabulate_sets(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return every measure by set, means over draws."""
    questions, asked = found["questions"], found["asked"]
    table: dict[str, Any] = {}
    for name in names_of(questions):
        table[name] = {"commonest answer": round(100 * chance(questions, "constant", [name]))}
        for condition, draws in asked.items():
            shares = [100 * set_shares(questions, draws, m, [name]).mean() for m in MEASURES]
            table[name][call(condition)] = " / ".join(f"{share:.0f}" for share in shares)
    return table


def describe_examples(found: Mapping[str, Any]) -> Described:
    """Return the questions about pronouns (E5) and the summaries (E8), before and after."""
    examples, dialogues = found["examples"], found["dialogues"]
    pronouns: dict[str, Any] = {}
    for condition, said in examples.items():
        for way in ("plain", "step by step"):
            heads = {"names": "names an option", "format": "one alone", "right": "right"}
            rows = said["pronouns"][way]
            pronouns[f"{call(condition)}, {way}"] = {head: per_cent(rows[m]) for m, head in heads.items()}
        pronouns[f"{call(condition)}, by likelihood"] = {"right": per_cent(said["pronouns"]["ranked"])}
    rouge = {"first line": dialogues["lead_rouge"]} | {call(c): x["rouge"] for c, x in examples.items()}
    rouge = {name: {m: 100 * np.array(x[m]) for m in ROUGE} for name, x in rouge.items()}
    last = call(list(examples)[-1])
    summaries: dict[str, Any] = {
        name: {m: runtime.t_interval(x, bounds=(0, 100)) for m, x in row.items()}
        for name, row in rouge.items()
    }
    less = {
        f"{last} less {base}": {m: runtime.paired_interval(rouge[last][m], rouge[base][m]) for m in ROUGE}
        for base in rouge
        if base != last
    }
    steps = {c: np.array(examples[c]["pronouns"]["step by step"]["right"], float) for c in examples}
    gain = runtime.bootstrap_mean(100 * (steps[list(examples)[-1]] - steps["0"]))
    one = {"the dialogue": dialogues["prompts"][0], "a human": dialogues["human"][0]}
    one |= {call(c): said["summaries"][0] for c, said in examples.items()}
    return {
        "checks": judge_examples(gain, less[f"{last} less untuned"]["ROUGE-L"]),
        "tables": {
            "pronouns [%], Wilson's intervals": pronouns,
            "summaries, F1 against the human ones [%]": summaries,
            "summaries, paired by dialogue [points]": less,
            "one dialogue": {name: {"text": " ".join(text.split())} for name, text in one.items()},
        },
    }


def judge_examples(pronouns: Interval, summaries: Interval) -> dict[str, bool]:
    """Return whether tuning helps with the lecture's two examples, by its gains over none in points."""
    return {
        "pronouns: after tuning the step by step answer is right more often": pronouns.low > 0,
        "dialogues: after tuning the summary is nearer to the human one": summaries.low > 0,
    }


def describe_model(found: Mapping[str, Any]) -> list[Described]:
    """Return what became of the published model."""
    named = {part: names_of(found["questions"], unseen) for part, unseen in PARTS.items()}
    described = [describe_part(part, found, names) for part, names in named.items() if names]
    ends = {n: [float(np.mean(x[-10:])) for x in losses] for n, losses in found["loss"].items()}
    orders = {f"draw {i}": {"sets": ", ".join(order)} for i, order in enumerate(found["sets"])}
    measures = " / ".join(MEASURES.values())
    last = {
        f"by set: {measures} [%]": tabulate_sets(found),
        "training: loss of the last 10 steps [nats a token of the completions]": {
            call(n): {"by draw": x} for n, x in ends.items()
        },
        "orders of the sets": orders,
    }
    return [*described, describe_examples(found), {"tables": last}]


def report(config: Any, folder: runtime.RunFolder, claim: runtime.Claim, found: Mapping[str, Any]) -> None:
    """Write the result of the parts that were run."""
    described = [describe_world(found["world"])] if "world" in found else []
    described += describe_model(found["model"]) if "model" in found else []
    figures = [f"instruction_tuning_{part}.png" for part in found]
    runtime.write_result(folder, config, claim, figures=figures, **join_parts(described))


def draw(folder: runtime.RunFolder, config: Any, found: Mapping[str, Any]) -> None:
    """Write a figure for each part, against the breadth of training: by seed of the world, by set of T0."""
    if "world" in found:
        at = np.array([int(n) for n in found["world"]])
        rows = [unseen_shares(row) for row in found["world"].values()]
        panels = {}
        for measure in ("format", "right"):
            own = [np.array(r["learnt"][measure])[:, : int(n)].mean(1) for n, r in found["world"].items()]
            unseen = [row[measure] for row in rows]
            panels[f"{measure} [%]"] = {
                "learnt tasks": (at, 100.0 * np.stack(own)),
                "unseen tasks": (at, 100.0 * np.stack(unseen)),
            }
        _save(folder, "world", "tasks learnt, at the same number of rows", panels)
    if "model" in found:
        questions, asked = found["model"]["questions"], found["model"]["asked"]
        conditions = [c for c in asked if c != "chat"]
        at = np.array([int(c) for c in conditions])
        panels = {}
        for measure, called in MEASURES.items():
            curves = {}
            for name, unseen in PARTS.items():
                if not (sets := names_of(questions, unseen)):
                    continue
                rows = [set_shares(questions, asked[c], measure, sets).mean(0) for c in conditions]
                curves[name] = (at, 100.0 * np.stack(rows))
            panels[f"{called} [%]"] = curves
        _save(folder, "model", "T0's sets learnt from, at the same number of rows", panels)


def _save(folder: runtime.RunFolder, part: str, x_label: str, panels: Mapping[str, Any]) -> None:
    save_panels(
        folder.path / f"instruction_tuning_{part}.png",
        x_label,
        panels,
        title="instruction tuning, asked unseen tasks; 95%",
        columns=2,
        bounds=dict.fromkeys(panels, (0.0, 100.0)),
    )


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("instruction_tuning")
