"""Tables and figure of `instruction_tuning.py`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from instruction_tuning_ask import ROUGE
from instruction_tuning_sets import FAMILIES, UNSEEN_FAMILIES
from panels import save_panels

from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.resampling import bootstrap_mean
from jaxrl_align.runtime.statistics import mean_text, paired_interval, share_text, wilson_interval

MEASURES = {"format": "format", "right": "right", "named": "named right", "ranked": "ranked right"}
"""What is printed, by its name in the results."""
UNSEEN = frozenset(name for family in UNSEEN_FAMILIES for name in FAMILIES[family])
PARTS = {"unseen families": True, "unseen sets of a learnt family": False}
CALLED = {"chat": "untuned, as a chat", "0": "untuned"}


def call(condition: str) -> str:
    """Return the name of a condition in the tables."""
    return CALLED.get(condition, f"{condition} sets" if condition != "1" else "1 set")


def names_of(questions: Sequence[Mapping[str, Any]], unseen_family: bool | None = None) -> list[str]:
    """Return the sets that are asked, all, or those of unseen or of learnt families."""
    names = list(dict.fromkeys(q["set"] for q in questions))
    return [name for name in names if unseen_family is None or (name in UNSEEN) == unseen_family]


def set_shares(
    questions: Sequence[Mapping[str, Any]],
    asked: Sequence[Mapping[str, Any]],
    measure: str,
    names: Sequence[str],
) -> np.ndarray:
    """Return shares [draws, sets] of one measure: a set counts as much as any, however often it is asked."""
    own = np.array([q["set"] for q in questions])
    hits = np.array([draw[measure] for draw in asked], float)
    return np.stack([hits[:, own == name].mean(1) for name in names], 1)


def chance(questions: Sequence[Mapping[str, Any]], which: str, names: Sequence[str]) -> float:
    """Return the share that a guess gets right, the mean over sets."""
    by_set = [np.mean([q[which] for q in questions if q["set"] == name]) for name in names]
    return float(np.mean(by_set))


def right_given_format(right: np.ndarray, form: np.ndarray) -> np.ndarray:
    """Return, for each draw, the share of right answers among those that have the format; nan without any."""
    total = form.sum(1)
    return np.where(total > 0, right.sum(1) / np.where(total > 0, total, 1.0), np.nan)


def cell(x: np.ndarray) -> str:
    """Return shares [draws] in per cent: their mean with a t interval, of two draws with both; nan is out."""
    x = x[np.isfinite(x)]
    if not len(x):
        return "none"
    if len(x) < 3:
        return f"{100.0 * x.mean():.1f}" + (
            f" ({', '.join(f'{100.0 * y:.1f}' for y in x)})" if len(x) > 1 else ""
        )
    return share_text(x)


def print_closed(title: str, found: Mapping[str, Any]) -> None:
    """Print what became of the closed questions, by condition, and by set."""
    questions, asked = found["questions"], found["asked"]
    for part, unseen in PARTS.items():
        names = names_of(questions, unseen)
        if not names:
            continue
        print(f"\n{title}, {part} ({len(names)} sets) [%], mean over draws")
        print(f"  {'':20}" + "".join(f"{c:>24}" for c in [*MEASURES.values(), "right if in format"]))
        for condition, draws in asked.items():
            x = {m: set_shares(questions, draws, m, names) for m in MEASURES}
            cells = [cell(x[m].mean(1)) for m in MEASURES]
            cells.append(cell(right_given_format(x["right"], x["format"])))
            print(f"  {call(condition):20}" + "".join(f"{text:>24}" for text in cells))
        uniform, constant = (100.0 * chance(questions, which, names) for which in ("uniform", "constant"))
        print(f"  a guess gets {uniform:.1f} right, each template's commonest answer {constant:.1f}")
        print_gains(questions, asked, names)
    print_sets(title, questions, asked)


def print_gains(questions: Any, asked: Mapping[str, Any], names: Sequence[str]) -> None:
    """Print the most sets less the fewest and less none, with intervals over draws and over sets."""
    tuned = [c for c in asked if c not in CALLED]
    last = tuned[-1]
    for first in [*(["0"] if "0" in asked else []), tuned[0]]:
        if first == last:
            continue
        for measure, called in MEASURES.items():
            gain = gains(questions, asked, measure, names, first, last)
            draws = ", ".join(f"{x:+.1f}" for x in gain.mean(1))
            mean = bootstrap_mean(gain.mean(0))
            print(
                f"  {called}, {call(last)} less {call(first)}: {mean.value:+.1f} [{mean.low:+.1f}, "
                f"{mean.high:+.1f}] bootstrapped over {len(names)} sets; by draw {draws}"
            )


def gains(
    questions: Any, asked: Mapping[str, Any], measure: str, names: Sequence[str], first: str, last: str
) -> np.ndarray:
    """Return one condition less another, paired [draws, sets], in points; one untuned model meets all."""
    before, after = (100.0 * set_shares(questions, asked[c], measure, names) for c in (first, last))
    return after - np.broadcast_to(before, after.shape) if len(before) == 1 else after - before


def print_sets(title: str, questions: Any, asked: Mapping[str, Any]) -> None:
    """Print every measure by set, the mean over draws."""
    print(f"\n{title}: format / right / named right / ranked right by set [%]")
    print(f"  {'':22}{'constant':>10}" + "".join(f"{call(c):>24}" for c in asked))
    for name in names_of(questions):
        cells = []
        for draws in asked.values():
            shares = [100.0 * set_shares(questions, draws, m, [name]).mean() for m in MEASURES]
            cells.append(" / ".join(f"{share:.0f}" for share in shares))
        constant = 100.0 * chance(questions, "constant", [name])
        print(f"  {name:22}{constant:10.0f}" + "".join(f"{text:>24}" for text in cells))


def print_examples(found: Mapping[str, Any]) -> None:
    """Print the questions about pronouns and the summaries, before and after."""
    examples = found["examples"]
    print(
        "\nthe question of disambiguation [%], Wilson's 95% intervals: says a letter; says one alone; right"
    )
    share = lambda hits: "{:.1f} [{:.1f}, {:.1f}]".format(
        *(100.0 * x for x in wilson_interval(sum(hits), len(hits))[:3])
    )
    for condition, said in examples.items():
        rows = said["pronouns"]
        for way in ("plain", "step by step"):
            cells = "".join(f"{share(rows[way][m]):>22}" for m in ("names", "format", "right"))
            print(f"  {call(condition):20}{way:14}{cells}")
        print(f"  {call(condition):20}{'by likelihood':14}{'':>44}{share(rows['ranked']):>22}")
    dialogues = found["dialogues"]
    print(f"\nsummaries of {len(dialogues['human'])} dialogues, F1 [%] against the human ones, t intervals")
    table = {"first line": dialogues["lead_rouge"]} | {call(c): x["rouge"] for c, x in examples.items()}
    for name, rouge in table.items():
        print(f"  {name:20}" + "".join(f"{m} {mean_text(100.0 * np.array(rouge[m])):>14}  " for m in ROUGE))
    last = list(examples)[-1]
    for base in [call(c) for c in examples if c != last] + ["first line"]:
        for m in ROUGE:
            gain = paired_interval(*(100.0 * np.array(table[name][m]) for name in (call(last), base)))
            print(f"  {m}, {call(last)} less {base}: {gain.value:+.1f} [{gain.low:+.1f}, {gain.high:+.1f}]")
    print(f"\n{dialogues['prompts'][0]}\n  human: {dialogues['human'][0]}")
    for condition, said in examples.items():
        print(f"  {call(condition)}: {said['summaries'][0]!r}")


WORLD = {"format": "format", "right": "right", "given": "right if in format"}


def unseen_shares(row: Mapping[str, Any], known: Any = None) -> dict[str, np.ndarray]:
    """Return shares [seeds] of the world's unseen tasks, all of them and those of two learnt words alone.

    Of a seed without such a task, and of no answer in the format, a share is nan.

    Args:
      row: one breadth's part of the results.
      known: [seeds, tasks] which tasks have two learnt words, if not by the row's own breadth.
    """
    known = np.array(row["known"] if known is None else known, float)
    found = {"known": known.mean(1)}
    for name, weight in {"": np.ones_like(known), "known ": known}.items():
        total = weight.sum(1)
        mean = lambda x, w=weight, n=total: np.where(
            n > 0, (np.array(x) * w).sum(1) / np.maximum(n, 1), np.nan
        )
        for measure in ("format", "right"):
            found[name + measure] = mean(row["unseen"][measure])
        form = found[name + "format"]
        found[name + "given"] = np.where(
            form > 0, found[name + "right"] / np.where(form > 0, form, 1), np.nan
        )
    return found


def print_world(found: Mapping[str, Any]) -> None:
    """Print what became of the world's tasks, by the number of tasks learnt."""
    print("\nworld of exact tasks [%], 95% t intervals over seeds; in the format a guess is right in 20")
    heads = ["learnt, right", *(f"unseen, {name}" for name in WORLD.values()), "both words learnt"]
    print(f"  {'tasks':6}" + "".join(f"{head:>28}" for head in heads))
    for n, row in found.items():
        shares = unseen_shares(row)
        learnt = np.array(row["learnt"]["right"])[:, : int(n)].mean(1)
        cells = [learnt, *(shares[m] for m in WORLD), shares["known"]]
        print(f"  {n:6}" + "".join(f"{cell(x):>28}" for x in cells))
        cells = [f"{name} {cell(shares['known ' + m])}" for m, name in WORLD.items()]
        print(f"  {'':6}of unseen tasks with both words learnt: " + ", ".join(cells))
    numbers = list(found)
    for first, last in zip(numbers, numbers[1:], strict=False):
        known = found[first]["known"]
        before, after = (unseen_shares(found[n], known) for n in (first, last))
        for measure in ("format", "right"):
            gain = 100.0 * (after[measure] - before[measure])
            line = f"  unseen, {measure}, {last} less {first} tasks: {mean_text(gain, '+.1f')}"
            gain = 100.0 * (after["known " + measure] - before["known " + measure])
            gain = gain[np.isfinite(gain)]
            few = f"; where {first} had taught both words: {mean_text(gain, '+.1f')}" if len(gain) > 1 else ""
            print(line + few)


def report(config: Any, found: Mapping[str, Any]) -> None:
    """Print what each part came to."""
    if "world" in found:
        print_world(found["world"])
    if "model" not in found:
        return
    result = found["model"]
    print_closed("the published model", result)
    for n, losses in result["loss"].items():
        ends = [float(np.mean(x[-10:])) for x in losses]
        print(f"  {call(n)}: loss of the last 10 steps {np.mean(ends):.2f} nats a token of the completions")
    for i, order in enumerate(result["sets"]):
        print(f"  draw {i}: {', '.join(order)}")
    print_examples(result)


def draw(folder: RunFolder, config: Any, found: Mapping[str, Any]) -> None:
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


def _save(folder: RunFolder, part: str, x_label: str, panels: Mapping[str, Any]) -> None:
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
