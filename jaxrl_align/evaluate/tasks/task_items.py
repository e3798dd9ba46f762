"""The items of a task: the rows that its file names, each with its input, its options and the right answer.

task = load_task("sst2")  # or the path of your own file
for item in read_items(task, "test"): ...
"""

import contextlib
import math
import re
import string
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

from jaxrl_align.evaluate.tasks.task_format import NUMBERS, Derived, Options, Task
from jaxrl_align.evaluate.tasks.task_rows import Row, read_rows
from jaxrl_align.typed import one_line

_NUMBER = re.compile(r"-?\d+(?:,\d{3})+(?:\.\d+)?|-?\d+(?:\.\d+)?|-?\.\d+")


class Item(NamedTuple):
    """A row of a task, ready for a prompt."""

    fields: Mapping[str, Any]
    """The row's, with the derived ones."""
    input: str
    options: tuple[str, ...]
    """Of a choice or a pair, else empty."""
    answer: int | float | str | tuple[int, ...] | tuple[str, ...]
    """The right option's place from 0 (several, if all are right), a number, or the right text or texts."""
    place: str
    """`file:line`."""
    group: str | None
    """Of items that share a source."""
    own: tuple[tuple[int, int], ...] | None = None
    """Where the row's fields stand in the input, `[start, end)` each; the rest are the template's words. None
    where that is not known."""


def read_items(task: Task, split: Literal["test", "examples"] = "test") -> list[Item]:
    """Return the items of a split, in the files' order.

    Raises:
      FileNotFoundError, ImportError: a file is nowhere; see `task_rows.read_rows`.
      ValueError: with file and line, for a field that a row lacks, a label outside the options, and options
        that are empty or alike; for a split that the task lacks.
    """
    if split not in ("test", "examples"):
        raise ValueError(f'split must be "test" or "examples"; got {split!r}')
    files = task.test if split == "test" else task.examples
    if not files:
        raise ValueError(
            f"{task.path} must name rows to draw examples from, [[examples]]; it has none; take shots=0"
        )
    items: list[Item] = []
    for file in files:
        for row in read_rows(file, task.path.parent):
            try:
                items.append(_make_item(task, row, len(items)))
            except ValueError as error:
                raise ValueError(f"{row.place}: {one_line(str(error))}") from error
    return items


def extract_answer(extractor: str, text: str) -> str | None:
    """Return the answer in a generated text, or None where there is none.

    Args:
      extractor: see `Answer.extractor`.
      text: what the model wrote.
    """
    if extractor == "all":
        return text.strip() or None
    if extractor == "first line":
        return next((line.strip() for line in text.split("\n") if line.strip()), None)
    if extractor in NUMBERS:
        found = _NUMBER.findall(text)
        return _plain_number(found[NUMBERS[extractor]]) if found else None
    matches = list(re.finditer(extractor, text))
    return (matches[-1][1 if matches[-1].re.groups else 0] or "").strip() or None if matches else None


def _plain_number(text: str) -> str:
    """Return a number without commas, and without decimals that are 0."""
    value = float(text.replace(",", ""))
    if not math.isfinite(value) or value != int(value):
        return repr(value)
    # Beyond 2^53 a float is not the number that was written.
    return str(int(value) if "." in text else int(text.replace(",", "")))


def _make_item(task: Task, row: Row, number: int) -> Item:
    fields = dict(row.fields)
    for name, derived in task.derived.items():
        fields[name] = _derive(derived, fields)
    group = fill(task.group, fields) if task.group else None
    text, own = _fill_and_mark(task.template, fields)
    if task.answer is not None and task.kind == "generate":
        gold = look_up(fields, task.answer.field)
        texts = tuple(_as_text(g) for g in (gold if isinstance(gold, list) else [gold]))
        if task.answer.extractor in NUMBERS:
            texts = tuple(extract_answer(task.answer.extractor, t) or "" for t in texts)
        if not texts or not all(texts):
            raise ValueError(f"the answer {task.answer.field!r} must be a text, or a number; got {gold!r}")
        return Item(fields, text, (), texts if isinstance(gold, list) else texts[0], row.place, group, own)
    assert task.options is not None
    options = _options_of(task.options, fields)
    if task.kind == "pair":
        # The right text moves from place to place, so that a tie is no hit for always being first.
        right = number % len(options)
        options = (*options[1 : right + 1], options[0], *options[right + 1 :])
        return Item(fields, text, options, right, row.place, group, own)
    return Item(fields, text, options, _right_option(task.options, options, fields), row.place, group, own)


def _options_of(options: Options, fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the texts of a row's options."""
    if options.choices:
        return tuple(options.choices.values())
    if options.numbers:
        return tuple(map(str, options.numbers))
    if options.pattern:
        within = _as_text(look_up(fields, options.within))
        texts = [match[0] for match in re.finditer(options.pattern, within, re.M)]
    else:
        texts = [_as_text(text) for text in _listed(options, fields)]
    # A name that a passage mentions twice is one option.
    found = tuple(dict.fromkeys(texts)) if options.list else tuple(texts)
    if len(found) < 2 or not all(text.strip() for text in found) or len(set(found)) < len(found):
        raise ValueError(
            f"options must be at least two, none empty and none alike; got {list(found)}; correct the row, "
            "or name it in `left_out`"
        )
    return found


def _listed(options: Options, fields: Mapping[str, Any]) -> list[Any]:
    """Return what a row lists as its options; nothing where they are not the row's."""
    listed = look_up(fields, options.list) if options.list else [look_up(fields, f) for f in options.fields]
    return listed if isinstance(listed, list) else [listed]


def _right_option(options: Options, texts: Sequence[str], fields: Mapping[str, Any]) -> Any:
    label = look_up(fields, options.label)
    if options.numbers:
        with contextlib.suppress(TypeError, ValueError, OverflowError):
            if math.isfinite(number := float(label)):
                return number
        raise ValueError(f"the label {options.label!r} must be a number; got {label!r:.60}")
    keys = {key: i for i, key in enumerate(options.choices)}
    listed = _listed(options, fields) or texts
    places = {str(i): texts.index(_as_text(text)) for i, text in enumerate(listed)} if not keys else {}
    named = {text: i for i, text in enumerate(texts)}
    # A whole number is a place, unless options are numbers themselves.
    numbers = any(isinstance(text, int | float) for text in listed)
    known = []
    for one in label if isinstance(label, list) else [label]:
        first, then = (places, named) if type(one) is int and not numbers else (named, places)
        text = _as_text(one)
        place = keys.get(text) if keys else first.get(text, then.get(text))
        if place is None:
            wanted = list(options.choices or texts)
            raise ValueError(
                f"the label {options.label!r} must be one of {wanted}; got {text!r}; correct the row, "
                "or name it in `left_out`"
            )
        known.append(place)
    if not known:
        raise ValueError(f"the label {options.label!r} must name a right option; got an empty list")
    return tuple(dict.fromkeys(known)) if isinstance(label, list) else known[0]


def _derive(derived: Derived, fields: Mapping[str, Any]) -> Any:
    value = look_up(fields, derived.of)
    if derived.spans_of:
        text = look_up(fields, derived.spans_of)
        if not (isinstance(value, list) and isinstance(text, str) and all(map(_is_span, value))):
            raise ValueError(
                f"the field {derived.of!r} must list spans with start and end of the text "
                f"{derived.spans_of!r}; got {value!r:.60}"
            )
        return [text[span["start"] : span["end"] + 1] for span in value]
    text = _as_text(value)
    if derived.values:
        if text not in derived.values:
            raise ValueError(f"the field {derived.of!r} must be one of {list(derived.values)}; got {text!r}")
        return derived.values[text]
    if derived.pattern:
        found = re.search(derived.pattern, text)
        if found is None:
            raise ValueError(f"the field {derived.of!r} must match {derived.pattern!r}; got {text[:60]!r}")
        text = found[1 if found.re.groups else 0]
    return re.sub(derived.remove, "", text) if derived.remove else text


def _is_span(value: Any) -> bool:
    return isinstance(value, dict) and all(
        type(value.get(side)) is int and value[side] >= 0 for side in ("start", "end")
    )


def fill(template: str, fields: Mapping[str, Any]) -> str:
    """Return a template with each `{field}` replaced; `{{` and `}}` are braces.

    Raises:
      ValueError: for a field that is not there.
    """
    return _fill_and_mark(template, fields)[0]


def _fill_and_mark(template: str, fields: Mapping[str, Any]) -> tuple[str, tuple[tuple[int, int], ...]]:
    """Return a filled template, and where in it the fields' values stand."""
    text, spans = "", []
    for before, name, _, _ in string.Formatter().parse(template):
        text += before
        if name is not None:
            value = _as_text(look_up(fields, name))
            spans.append((len(text), len(text) + len(value)))
            text += value
    return text, tuple(spans)


def look_up(fields: Mapping[str, Any], name: str) -> Any:
    """Return a field, dotted where it lies inside another; behind a list, that field of all entries.

    Raises:
      ValueError: for a field that is not there.
    """
    value: Any = fields
    for part in [name] if name in fields else name.split("."):
        inside = value if isinstance(value, list) else [value]
        if not all(isinstance(one, Mapping) and part in one for one in inside):
            there = ", ".join(map(str, value)) if isinstance(value, Mapping) else repr(value)[:60]
            raise ValueError(
                f"the task wants the field {name!r}; got {there}; correct the task file or the rows"
            )
        value = [one[part] for one in inside] if isinstance(value, list) else value[part]
    return value


def _as_text(value: Any) -> str:
    """Return a field as text; true and false as JSON writes them."""
    return str(value).lower() if isinstance(value, bool) else str(value)
