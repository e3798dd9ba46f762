"""Tables and figure of `assistants.py`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from assistants_rules import ANSWERS, RULES, VERDICTS, Written, judge_all, judge_text

from jaxrl_align.data.probes import ASSISTANCE_PROMPTS
from jaxrl_align.runtime import plots
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.statistics import mean_text, paired_interval, share_text, wilson_interval

SHOWN = 3
"""Held-out prompts whose texts are printed."""
LECTURE = len(ASSISTANCE_PROMPTS)

Texts = Mapping[str, Sequence[Sequence[Written]]]
"""Who -> of each member, what it wrote to each prompt, the lecture's first."""


def gather_texts(found: Mapping[str, Any]) -> dict[str, list[list[Written]]]:
    """Return who wrote what; the published model is one member."""
    texts = {
        f"from scratch, {name}": rows for name, rows in found.get("scratch", {}).get("written", {}).items()
    }
    texts |= {f"published, {name}": [rows] for name, rows in found.get("published", {}).items()}
    return {name: [[Written(*row) for row in rows] for rows in members] for name, members in texts.items()}


def shares(judged: Sequence[Mapping[str, Any]], kind: str) -> dict[str, np.ndarray]:
    """Return each verdict's or rule's share [M] of the texts of each member."""
    counts = [np.array(list(one[kind].values()), float) for one in judged]
    return dict(zip(judged[0][kind], np.array([x / x.sum() for x in counts]).T, strict=True))


def share_cell(judged: Sequence[Mapping[str, Any]], read: Any) -> str:
    """Return a share in percent: with its t interval over members, of one member with Wilson's over items."""
    totals = [sum(one["verdicts"].values()) for one in judged]
    if len(judged) > 1:
        return share_text([read(one) / total for one, total in zip(judged, totals, strict=True)])
    found = wilson_interval(read(judged[0]), totals[0])
    return f"{100 * found.value:.1f} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def print_table(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Print the verdicts of all, and beneath which rules decided."""
    heads = (*VERDICTS, "ended by itself")
    print(f"\n  {'[% of texts]':30}" + "".join(f"{head:>22}" for head in heads))
    for name, judged in rows.items():
        cells = [share_cell(judged, lambda one, v=v: one["verdicts"][v]) for v in VERDICTS]
        cells.append(share_cell(judged, lambda one: one["ended"]))
        print(f"  {name:30}" + "".join(f"{cell:>22}" for cell in cells))
    print(f"\n  {'decided by [% of texts]':30}" + "".join(f"{rule:>14}" for rule in RULES))
    for name, judged in rows.items():
        cells = shares(judged, "rules")
        print(f"  {name:30}" + "".join(f"{100 * cells[rule].mean():>14.1f}" for rule in RULES))


def print_texts(texts: Texts, prompts: Sequence[str]) -> None:
    """Print whole what each one's first member wrote to the lecture's prompts and to a few held-out ones."""
    for i, prompt in enumerate([*ASSISTANCE_PROMPTS, *prompts[:SHOWN]]):
        print(f"\n{prompt}")
        for name, members in texts.items():
            text, stopped = members[0][i]
            verdict, rule = judge_text(prompt, text, stopped)
            print(f"  {name}: {verdict} ({rule}){'' if stopped else ', cut'}\n    {text!r}")


def judge_texts(texts: Texts, prompts: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Return `judge_all` of each member's texts to the held-out prompts, of which the first may be asked."""
    judge = lambda rows: judge_all(prompts[: len(rows) - LECTURE], rows[LECTURE:])
    return {name: [judge(rows) for rows in members] for name, members in texts.items()}


def print_scratch(found: Mapping[str, Any], judged: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Print the rates tried, the reward models' accuracy, and the stages' differences paired by seed."""
    print("\nrates tried on other seeds")
    for stage, what in (("sft", "nats"), ("rlhf", "answers")):
        pairs = zip(found[stage]["rates"], np.mean(found[stage][what], 1), strict=True)
        print(f"  {stage:5} {what}: " + ", ".join(f"{rate:g} {value:.3f}" for rate, value in pairs))
    print(f"  before RLHF: {np.mean(found['rlhf']['before']):.3f}")
    for name, right in found["reward"].items():
        print(f"the reward model puts the human answer above {name}: {share_text(right)}%")
    answers = {name: shares(x, "verdicts")[ANSWERS] for name, x in judged.items() if "scratch" in name}
    names = list(answers)
    for a, b in zip(names, names[1:], strict=False):
        gain = 100 * (answers[b] - answers[a])
        print(f"answers, {b} less {a}: {mean_text(gain, '+.1f')} points, paired by seed")


def report(folder: RunFolder, found: Mapping[str, Any], prompts: Sequence[str]) -> dict[str, Any]:
    """Print texts and tables, and write texts.json and results.json.

    Args:
      folder: of the run.
      found: `rules`, the check of the rules; `scratch` and `published`, as `assistants.py` has them.
      prompts: the held-out instructions.

    Returns:
      The table: who -> `judge_all` of each member.
    """
    texts = gather_texts(found)
    judged = judge_texts(texts, prompts)
    print_texts(texts, prompts)
    table = {name: [one] for name, one in found["rules"].items()} | judged
    print_table(table)
    if "scratch" in found:
        print_scratch(found["scratch"], judged)
    for a, b in zip(found.get("published", {}), list(found.get("published", {}))[1:], strict=False):
        right = [answered(texts[f"published, {way}"][0][LECTURE:], prompts) for way in (b, a)]
        print(f"answers, {b} less {a}: {paired_interval(*right, bounds=(-1.0, 1.0))}, paired by prompt")
    folder.write_json("texts.json", {"prompts": [*ASSISTANCE_PROMPTS, *prompts], "texts": texts})
    kept = {k: v for k, v in found.get("scratch", {}).items() if k != "written"}
    folder.write_json("results.json", {"table": table, "scratch": kept})
    return table


def answered(rows: Sequence[Written], prompts: Sequence[str]) -> list[bool]:
    """Return whether each text answers its prompt, by the rules."""
    return [judge_text(p, *text).verdict == ANSWERS for p, text in zip(prompts, rows, strict=False)]


def draw(folder: RunFolder, table: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Write assistants.png: the three verdicts of all, side by side in one bar each."""
    fig, ax = plots.figure(
        "share of texts [%]", "", title="what is written behind an instruction, by the rules"
    )
    fig.set_size_inches(7.2, 0.42 * len(table) + 1.4)
    place, left = np.arange(len(table)), np.zeros(len(table))
    look = zip(VERDICTS, plots.COLORS, ("", "//", ".."), strict=False)
    for verdict, color, hatch in look:
        mean = np.array([100 * shares(judged, "verdicts")[verdict].mean() for judged in table.values()])
        ax.barh(place, mean, 0.7, left=left, label=verdict, color=color, hatch=hatch, edgecolor="white")
        left += mean
    ax.set_yticks(place, list(table))
    ax.set_xlim(0, 100)
    ax.invert_yaxis()
    fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=9)
    plots.save_figure(fig, folder.path / "assistants.png")


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("assistants")
