"""Tables, verdict and figure of `assistants.py`."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from assistants_model import BARE, LINE, TEMPLATE
from assistants_rules import (
    ANSWERS,
    CONTINUES,
    HUMAN,
    INSTRUCTION,
    VERDICTS,
    Written,
    judge_all,
    judge_text,
)
from assistants_stages import STAGES
from parts import Described, join_parts

from jaxrl_align import runtime
from jaxrl_align.data.probes import ASSISTANCE_PROMPTS
from jaxrl_align.runtime import Interval, plots

SHOWN = 3
"""Held-out prompts whose texts are printed."""
LECTURE = len(ASSISTANCE_PROMPTS)

Table = Mapping[str, Sequence[Mapping[str, Any]]]
"""Who -> `judge_all` of each member's texts."""
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


def share_of(judged: Sequence[Mapping[str, Any]], read: Any) -> Interval:
    """Return a share in per cent: with a t interval over members, of one member with Wilson's over items."""
    totals = [sum(one["verdicts"].values()) for one in judged]
    if len(judged) > 1:
        parts = [100 * read(one) / total for one, total in zip(judged, totals, strict=True)]
        return runtime.t_interval(parts, bounds=(0, 100))
    value, low, high, kind = runtime.wilson_interval(read(judged[0]), totals[0])
    return Interval(100 * value, 100 * low, 100 * high, kind)


def verdict_share(judged: Sequence[Mapping[str, Any]], verdict: str) -> Interval:
    """Return the share in per cent of one verdict."""
    return share_of(judged, lambda one: one["verdicts"][verdict])


def gain(judged: Table, first: str, second: str, verdict: str) -> Interval:
    """Return how many points more of one's texts than of another's have a verdict, paired by seed."""
    of = lambda name: 100 * shares(judged[name], "verdicts")[verdict]
    return runtime.paired_interval(of(first), of(second), bounds=(-100, 100))


def tabulate(rows: Table) -> dict[str, Any]:
    """Return the verdicts of all, and which rules decided."""
    verdicts = {
        name: {verdict: verdict_share(judged, verdict) for verdict in VERDICTS}
        | {"ended by itself": share_of(judged, lambda one: one["ended"])}
        for name, judged in rows.items()
    }
    decided = {
        name: {rule: float(100 * x.mean()) for rule, x in shares(judged, "rules").items()}
        for name, judged in rows.items()
    }
    return {"texts by verdict [%]": verdicts, "texts by the rule that decided [%]": decided}


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


def judge_rules(human: Interval, instruction: Interval) -> dict[str, bool]:
    """Return whether the rules are right on texts that they did not make: shares called so, per cent."""
    return {
        "the rules are right on more than 95% of human answers and of further instructions": (
            human.low > 95 and instruction.low > 95
        )
    }


def judge_scratch(
    continues: Interval, cloned: Interval, stopped: Interval, aligned: Interval
) -> dict[str, bool]:
    """Return which parts of the claim the models from scratch show.

    Args:
      continues: share of instructions that the pre-trained model continues, per cent.
      cloned: points of answers that SFT adds.
      stopped: points of continuations that SFT adds.
      aligned: points of answers that RLHF adds to SFT.
    """
    return {
        "a pre-trained model continues most instructions": continues.low > 50,
        "fine-tuning on human answers makes it answer more often": cloned.low > 0,
        "and continue less often": stopped.high < 0,
        "RLHF makes it answer more often still": aligned.low > 0,
    }


def describe_scratch(found: Mapping[str, Any], judged: Table) -> Described:
    """Return the stages' differences paired by seed, the rates tried and the reward models' accuracy."""
    first = judged[f"from scratch, {STAGES[0]}"]
    added = {
        f"{later} less {before}": {
            verdict: gain(judged, f"from scratch, {later}", f"from scratch, {before}", verdict)
            for verdict in VERDICTS
        }
        for before, later in zip(STAGES, STAGES[1:], strict=False)
    }
    tried = {
        f"{stage}, {rate:g}": {what: float(value)}
        for stage, what in (("sft", "nats"), ("rlhf", "answers"))
        for rate, value in zip(found[stage]["rates"], np.mean(found[stage][what], 1), strict=True)
    } | {"before RLHF": {"answers": float(np.mean(found["rlhf"]["before"]))}}
    ordered = {
        name: {"comparisons ordered rightly": runtime.t_interval(100 * np.array(right), bounds=(0, 100))}
        for name, right in found["reward"].items()
    }
    sft, rlhf = (added[f"{later} less {before}"] for before, later in zip(STAGES, STAGES[1:], strict=False))
    return {
        "headline": {"answers, SFT less pre-trained, paired [points]": sft[ANSWERS]},
        "baselines": {
            "answers, pre-trained [%]": verdict_share(first, ANSWERS),
            "answers, RLHF less SFT, paired [points]": rlhf[ANSWERS],
        },
        "checks": judge_scratch(verdict_share(first, CONTINUES), sft[ANSWERS], sft[CONTINUES], rlhf[ANSWERS]),
        "tables": {
            "from scratch, paired by seed [points]": added,
            "rates tried on other seeds: nats of validation pairs, share of prompts answered": tried,
            "the reward model puts the human answer above another [%]": ordered,
        },
    }


def judge_published(more: Interval, continues: Interval) -> dict[str, bool]:
    """Return which parts of the claim a published model shows.

    Args:
      more: points of answers that its template adds to the bare prompt.
      continues: share of bare prompts that it continues, per cent.
    """
    return {
        "a published, tuned model answers more often in its template than behind the bare prompt": more.low
        > 0,
        "behind the bare prompt it continues most instructions": continues.low > 50,
    }


def describe_published(texts: Texts, judged: Table, prompts: Sequence[str]) -> Described:
    """Return the published model's differences between the ways of asking, paired by prompt."""
    right = {
        way: 100.0 * np.array(answered(texts[f"published, {way}"][0][LECTURE:], prompts))
        for way in (BARE, LINE, TEMPLATE)
    }
    less = lambda a, b: runtime.paired_interval(right[a], right[b], bounds=(-100, 100))
    pairs = ((LINE, BARE), (TEMPLATE, LINE), (TEMPLATE, BARE))
    more = less(TEMPLATE, BARE)
    bare = judged[f"published, {BARE}"]
    return {
        "headline": {f"answers, published, {TEMPLATE} less {BARE}, paired [points]": more},
        "baselines": {f"answers, published, {BARE} [%]": verdict_share(bare, ANSWERS)},
        "checks": judge_published(more, verdict_share(bare, CONTINUES)),
        "tables": {
            "published, answers paired by prompt [points]": {
                f"{a} less {b}": {"answers": less(a, b)} for a, b in pairs
            }
        },
    }


def report(
    config: Any,
    folder: runtime.RunFolder,
    claim: runtime.Claim,
    found: Mapping[str, Any],
    prompts: Sequence[str],
) -> None:
    """Print texts, draw the figure, and write texts.json and the result.

    Args:
      config: of the run.
      folder: of the run.
      claim: of the parts that were run.
      found: `rules`, the check of the rules; `scratch` and `published`, as `assistants.py` has them.
      prompts: the held-out instructions.
    """
    texts = gather_texts(found)
    judged = judge_texts(texts, prompts)
    print_texts(texts, prompts)
    folder.write_json("texts.json", {"prompts": [*ASSISTANCE_PROMPTS, *prompts], "texts": texts})
    rules = {name: [one] for name, one in found["rules"].items()}
    draw(folder, rules | judged)
    of = [verdict_share(rules[name], v) for name, v in ((HUMAN, ANSWERS), (INSTRUCTION, CONTINUES))]
    parts: list[Described] = [{"checks": judge_rules(*of), "tables": tabulate(rules | judged)}]
    if "scratch" in found:
        parts.append(describe_scratch(found["scratch"], judged))
    if "published" in found:
        parts.append(describe_published(texts, judged, prompts))
    runtime.write_result(folder, config, claim, figures=["assistants.png"], **join_parts(parts))


def answered(rows: Sequence[Written], prompts: Sequence[str]) -> list[bool]:
    """Return whether each text answers its prompt, by the rules."""
    return [judge_text(p, *text).verdict == ANSWERS for p, text in zip(prompts, rows, strict=False)]


def draw(folder: runtime.RunFolder, table: Table) -> None:
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
