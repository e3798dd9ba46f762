"""A training command from its parts to the written folder: plan, run, model, card."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxrl_align.cli.bases import Base
from jaxrl_align.cli.datasets import Encoded
from jaxrl_align.cli.options import flags_of, record
from jaxrl_align.cli.runs.cards import Card, print_plan, write_card
from jaxrl_align.cli.runs.course import Course, Outcome, follow, opened_folder
from jaxrl_align.cli.runs.estimates import estimate_memory, memory_text
from jaxrl_align.cli.tuning import Tuned, count_weights, publish
from jaxrl_align.nets.transformer import make_transformer
from jaxrl_align.runtime.folder import UNCOMPARED
from jaxrl_align.runtime.guards.device_memory import peak_memory
from jaxrl_align.types import Params


class Journey(NamedTuple):
    """What a training command has put together before anything is compiled."""

    command: str
    options: Any
    """The command's dataclass."""
    shared: Any
    """What of it holds the groups `base`, `rows`, `tuning` and `run`."""
    base: Base
    tuned: Tuned
    encoded: Encoded
    counts: tuple[int, int]
    """Rows that train and rows that judge."""
    hashes: Mapping[str, str]
    """Of what is read, by name; of the data's file `data_sha256`."""
    steps: int
    rate: float
    method: str
    """In words, with its source."""
    course: Callable[[], Course]
    write: Callable[[Path, Params], str]
    """Writes the outcome into a new folder, and returns what it is in words."""
    at_once: int
    """Sequences in memory at once."""
    length: int
    """Of a sequence, tokens."""
    halve: Sequence[str]
    """Settings that halve the activations, as `halving_flags` finds them."""
    others: Any = None
    """Further arrays in memory."""
    facts: Mapping[str, str] = {}
    """Further lines of the plan."""
    conclude: Callable[[Outcome], str] = lambda outcome: ""
    """A last line about the outcome, for the card too."""


def drive(journey: Journey, argv: Sequence[str]) -> None:
    """Print the plan, take the steps, write model and card.

    Raises:
      ValueError: for an `out` that holds another run, and as `follow`.
    """
    begin, run, out = time.monotonic(), journey.shared.run, journey.shared.base.out
    config = record(journey.command, journey.options, **journey.hashes)
    print_plan(plan(journey), journey.encoded.skipped)
    with opened_folder(out, config, run) as folder:
        course = journey.course()
        outcome = follow(course, folder, run, journey.steps)
    words = ""

    def write(staged: Path) -> None:
        nonlocal words
        words = journey.write(staged, outcome.params)
        last = journey.conclude(outcome)
        data = dict(data_facts(journey)) | ({"conclusion": last} if last else {})
        settings = flags_of(journey.options) | {"learning_rate": journey.rate, "steps": journey.steps}
        settings = {name: value for name, value in settings.items() if name not in UNSAID}
        card = Card(journey.method, words, journey.base.name, data, settings, course.judged_by, argv)
        write_card(staged, card, outcome, time.monotonic() - begin)
        if last:
            print(last)

    publish(Path(out), write)
    best = f"step {outcome.step} of {journey.steps}"
    if outcome.held_out:
        name = course.judged_by
        found, first = outcome.held_out[outcome.step][name], outcome.held_out.get(0, {}).get(name)
        best += f", the best by held-out {name}: {found:.4g}"
        best += "" if first is None else f" (before training {first:.4g})"
        if first is not None and (first - found) * (-1 if course.higher else 1) < 0:
            best += "; the model was better before training: train longer, or at another learning rate"
    print(f"{out} holds {words}, of {best}; peak memory {peak_memory() / 1e9:.2f} GB")


UNSAID = ("model", "out", "base", "hub", "data", "held_out", "config", *UNCOMPARED)
"""Flags that a card says elsewhere, or that say nothing about the model."""


def data_facts(journey: Journey) -> dict[str, str]:
    """Return what is said of the rows."""
    options, (train, held_out) = journey.shared.rows, journey.counts
    skipped = f", {len(journey.encoded.skipped):,} left out" if journey.encoded.skipped else ""
    return {
        "file": f"{options.data}, sha256 {journey.hashes['data_sha256']}",
        "rows": f"{train:,} train, {held_out:,} held out{skipped}",
        "tokens": "; ".join(journey.encoded.report),
    }


def plan(journey: Journey) -> dict[str, str]:
    """Return the lines that are printed before anything is compiled."""
    base, options, run = journey.base, journey.shared, journey.shared.run
    config, tuned = base.config, journey.tuned
    whole = options.tuning.tuning == "full"
    trained, total = count_weights(tuned.part), count_weights(base.params)
    share = f"{trained:,} of {total:,} weights ({100 * trained / total:.3g}%)"
    facts = data_facts(journey)
    passes = journey.steps * run.batch_size / max(journey.counts[0], 1)
    return {
        "model": f"{base.name}: {total / 1e6:.1f} million weights, {config.layers} layers, context "
        f"{config.context:,}" + ("; an adapter, folded in" if base.adapted else ""),
        "data": facts["file"][: len(options.rows.data) + 20],
        "rows": facts["rows"] + hint_chat(base, options, journey.encoded),
        "tokens": facts["tokens"],
        "training": f"{journey.method}; {options.tuning.tuning}: {share}",
        "steps": f"{journey.steps:,} of {run.batch_size} rows, {passes:.2g} passes; learning rate "
        f"{journey.rate:g}",
        **journey.facts,
        "memory": describe_memory(journey, whole),
        "folder": f"{options.base.out}; run/ holds metrics, and checkpoints every {run.every} steps",
    }


def hint_chat(base: Base, options: Any, encoded: Encoded) -> str:
    """Return a hint where a chat model is shown plain texts."""
    template = base.tokenizer.chat_template
    if template is None or options.rows.chat or not encoded.prompts:
        return ""
    marks = [base.tokenizer.decode(ids) for ids in encoded.prompts[:1]]
    written = "\n" in marks[0] and "assistant" in marks[0]
    return "" if written else "; the model has a chat template, which plain texts do not use without --chat"


def describe_memory(journey: Journey, whole: bool) -> str:
    """Return the estimate, and what it would be under settings that halve it."""
    base, tuned = journey.base, journey.tuned
    frozen = None if whole else tuned.frozen
    how = {"length": journey.length, "others": journey.others}
    now = estimate_memory(base.lm, tuned.part, frozen, rows=journey.at_once, **how)
    text = memory_text(now)
    if journey.halve:
        half = estimate_memory(base.lm, tuned.part, frozen, rows=journey.at_once // 2, **how)
        text += f"; {' or '.join(journey.halve)}: {half.total / 1e9:.2f} GB"
    if not base.lm.config.remat:
        lm = make_transformer(dataclasses.replace(base.lm.config, remat=True))
        less = estimate_memory(lm, tuned.part, frozen, rows=journey.at_once, **how)
        text += f"; --remat: {less.total / 1e9:.2f} GB"
    return text + ("; --tuning lora trains with less" if whole else "")
