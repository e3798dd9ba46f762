"""The form of a task file: what may be in it, and how it is read and checked.

A task is data: a TOML file names the rows, the prompt, the options or the extractor, and the metrics.
"""

import dataclasses
import difflib
import re
import string
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from jaxrl_align.data.files import TOO_DEEP, decode_text, is_deep
from jaxrl_align.evaluate.measures.task_metrics import CORRELATIONS, GROUPED, METRICS, OF_PROBABILITIES
from jaxrl_align.evaluate.tasks.task_patterns import check_pattern
from jaxrl_align.evaluate.tasks.task_rows import FORMATS, RowFile

SHIPPED = Path(__file__).parent / "files"
"""The task files of the package; a folder in it is a suite."""

NUMBERS = {"first number": 0, "last number": -1}
LARGEST = 2**53
"""Whole numbers of a task file go to it and to its negative: a float holds each."""
EXTRACTORS = ("all", "first line", *NUMBERS)


@dataclass(frozen=True)
class Derived:
    """A field made of another one."""

    of: str
    """The field, dotted where it lies inside another."""
    pattern: str = ""
    """Regular expression: the field becomes its first group, or its whole match; no match is an error."""
    remove: str = ""
    """Regular expression: what matches is taken out, after `pattern`."""
    values: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """What each value becomes; another value is an error."""
    spans_of: str = ""
    """`of` is a list of `{start, end}`, the end included, which become these parts of another field."""


@dataclass(frozen=True)
class Options:
    """The answers that a model chooses from: one of `choices`, `numbers`, `fields`, `list` and `pattern`."""

    label: str = "label"
    """The field with the right one: a key of `choices`, the option itself, its place from 0, or a list of
    options that are all right. A whole number in JSON is a place, unless the row's options are numbers. A
    pair has none: the first option is the right one."""
    choices: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """From each label to the text of its option."""
    numbers: tuple[int, ...] = ()
    """The label is a number; the prediction is the mean of these numbers weighted by their probabilities."""
    fields: tuple[str, ...] = ()
    """Fields of the row that are options."""
    list: str = ""
    """A field of the row that lists the options."""
    pattern: str = ""
    """Regular expression: all its matches in the field `within` are the options."""
    within: str = "input"


@dataclass(frozen=True)
class Answer:
    """How a generated text is read."""

    field: str
    """The row's right answer, or a list of right ones."""
    extractor: str = "first line"
    """"all", "first line", "first number", "last number", or a regular expression whose last match (its first
    group, if it has one) is the answer."""


@dataclass(frozen=True)
class Thoughts:
    """Chain of thought (Wei et al. 2022): a solution is written before the answer."""

    field: str
    """The examples' field with a written-out solution, without the answer."""
    opening: str = "Let's think step by step."
    closing: str = "So the answer is {answer}."
    """Follows the solution in examples."""
    extractor: str = r"(?s).*answer is:?\s*(.*?)\.?\s*(?:\n|$)"
    """As `Answer.extractor`."""
    stop: tuple[str, ...] = ()
    """Texts that end a solution; none means those of the task, or else an empty line."""


@dataclass(frozen=True)
class Task:
    """A task, as its file states it: every field is a key of the TOML file, but `path`."""

    name: str
    kind: Literal["choice", "generate", "pair"]
    """Choose an option behind the input, write an answer, or prefer one of several whole texts."""
    source: str
    licence: str
    metrics: tuple[str, ...]
    """Names of `evaluate.METRICS`."""
    test: tuple[RowFile, ...]
    description: str = ""
    """The instruction that stands before the examples."""
    template: str = ""
    """The input of a row: `{field}`, dotted where one lies inside another, is replaced."""
    separator: str = " "
    """Between the input and the answer; it belongs to the answer."""
    examples: tuple[RowFile, ...] = ()
    """The rows that examples are drawn from; none means there are no examples to show."""
    options: Options | None = None
    answer: Answer | None = None
    thoughts: Thoughts | None = None
    derived: Mapping[str, Derived] = dataclasses.field(default_factory=dict)
    """From a new field's name to how it is made."""
    group: str = ""
    """A template that is equal for items which share a source; intervals are then by groups."""
    stop: tuple[str, ...] = ("\n",)
    """Texts that end a generated answer."""
    path: Path = Path()


def shipped_tasks() -> dict[str, Path]:
    """Return the package's task files by the tasks' names."""
    return {path.stem: path for path in sorted(SHIPPED.rglob("*.toml"))}


def find_tasks(names: Iterable[str]) -> list[str]:
    """Return the names with every suite (a folder of the package's, such as "glue") replaced by its tasks."""
    found: list[str] = []
    for name in names:
        suite = sorted((SHIPPED / name).glob("*.toml")) if name.isidentifier() else []
        found += [path.stem for path in suite] or [name]
    return found


def load_task(name_or_path: str | Path) -> Task:
    """Read a task file and check it.

    Args:
      name_or_path: the name of one of the package's tasks, or the path of a file that ends in `.toml`.

    Raises:
      FileNotFoundError: there is no such task or file.
      ValueError: with file and line, for a file that is no TOML, a key that is missing, unknown or of another
        type, keys that do not go together, and a regular expression that may take hours.
    """
    path, shipped = Path(name_or_path), shipped_tasks()
    if path.suffix != ".toml":
        if (name := str(name_or_path)) not in shipped:
            near = difflib.get_close_matches(name, shipped, n=2)
            remedy = f"did you mean {' or '.join(near)}" if near else "give the path of a .toml file"
            raise FileNotFoundError(f"{name} is no task of the package; {remedy}?")
        path = shipped[name]
    if not path.is_file():
        raise FileNotFoundError(f"a task must be a TOML file; found none at {path}")
    text = decode_text(path.read_bytes(), str(path)).replace("\r\n", "\n")
    try:
        table = tomllib.loads(text)
        if is_deep(table):
            raise ValueError(TOO_DEEP)
    except (ValueError, RecursionError) as error:
        said = TOO_DEEP if isinstance(error, RecursionError) else str(error)
        raise ValueError(f"{path}: expected TOML; {said}") from error
    task = _build(Task, table, _Source(path, text), "")
    return _checked(dataclasses.replace(task, path=path), _Source(path, text))


class _Source(NamedTuple):
    """A task file, to say where in it a fault is."""

    path: Path
    text: str

    def at(self, key: str, table: str = "") -> str:
        """Return `file:line` of a key, of its table's heading, or the file alone."""
        lines = [line.strip() for line in self.text.split("\n")]
        heads = [i for i, line in enumerate(lines) if re.match(rf"\[+\s*{re.escape(table)}\s*\]", line)]
        first = heads[0] + 1 if table and heads else 0
        for number, line in enumerate(lines[first:], first + 1):
            if re.match(rf"""\[*\s*(?:{re.escape(table)}\.)?["']?{re.escape(key)}["']?\s*[=\].]""", line):
                return f"{self.path}:{number}"
        if table and not heads:  # written in its parent's line
            above, _, last = table.rpartition(".")
            return self.at(last, above)
        return f"{self.path}:{first}" if first else str(self.path)


def _build(kind: Any, table: Any, source: _Source, name: str) -> Any:
    """Return a table of the file as its dataclass."""
    where = f" in [{name}]" if name else ""
    if not isinstance(table, dict):
        raise ValueError(f"{source.at(name)}: {name} must be a table; got {table!r:.80}")
    hints = typing.get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind) if field.name != "path" or name}
    for key in table:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(fields)}"
            raise ValueError(f"{source.at(key, name)}: unknown key {key!r:.80}{where}; {remedy}")
    for key, field in fields.items():
        free = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if free and key not in table:
            raise ValueError(f"{source.at(name) if name else source.path}: the key {key!r} is missing{where}")
    return kind(**{key: _value(hints[key], value, source, key, name) for key, value in table.items()})


def _value(hint: Any, value: Any, source: _Source, key: str, table: str) -> Any:
    """Return a value of the file as its field's type."""
    if isinstance(hint, types.UnionType):
        hint = typing.get_args(hint)[0]
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    whole = f"{table}.{key}" if table else key
    if dataclasses.is_dataclass(hint):
        return _build(hint, value, source, whole)
    if origin is tuple and isinstance(value, list):
        return tuple(_value(inner[0], one, source, key, table) for one in value)
    if origin is Mapping and isinstance(value, dict):
        return {name: _value(inner[1], one, source, name, whole) for name, one in value.items()}
    if origin is Literal and value in inner:
        return value
    whole_number = type(value) is int and abs(value) <= LARGEST
    if isinstance(hint, type) and isinstance(value, hint) and (hint is not int or whole_number):
        return value
    wanted = {tuple: "a list", Mapping: "a table", Literal: f"one of {', '.join(map(str, inner))}"}.get(
        origin,
        {str: "a text", int: f"a whole number from {-LARGEST} to {LARGEST}", bool: "true or false"}.get(
            hint, str(hint)
        ),
    )
    raise ValueError(f"{source.at(key, table)}: {whole} must be {wanted}; got {value!r:.80}")


def _checked(task: Task, source: _Source) -> Task:
    """Raise ValueError for keys that do not go together."""
    if task.kind == "generate" and task.answer is None:
        raise ValueError(f'{source.at("kind")}: the table [answer] is missing for kind = "generate"')
    if task.kind != "generate" and task.options is None:
        raise ValueError(f'{source.at("kind")}: the table [options] is missing for kind = "{task.kind}"')
    if task.kind != "pair" and not task.template:
        raise ValueError(f"{source.path}: the key 'template' is missing")
    if not task.test or not task.metrics:
        raise ValueError(f"{source.path}: a task must have rows, [[test]], and metrics; got none of one")
    _check_metrics(task, source)
    if task.options is not None:
        given = [n for n in ("choices", "numbers", "fields", "list", "pattern") if getattr(task.options, n)]
        if len(given) != 1:
            raise ValueError(
                f"{source.at('options')}: options need one of choices, numbers, fields, list, pattern; "
                f"got {', '.join(given) or 'none'}"
            )
        texts = list(task.options.choices.values()) or list(map(str, task.options.numbers))
        if texts and (len(texts) < 2 or not all(t.strip() for t in texts) or len(set(texts)) < len(texts)):
            raise ValueError(
                f"{source.at(given[0], 'options')}: options must be at least two, none empty and none alike; "
                f"got {str(texts)[:200]}"
            )
    for file in (*task.test, *task.examples):
        if file.format not in FORMATS:
            raise ValueError(
                f"{source.at('format')}: format must be one of {', '.join(FORMATS)}; got {file.format!r:.80}"
            )
        if not file.path and file.format != "probes":
            raise ValueError(
                f"{source.at('format')}: the key 'path' is missing beside format = {file.format!r}"
            )
    _check_patterns(task, source)
    return task


def _check_metrics(task: Task, source: _Source) -> None:
    """Raise ValueError for a metric that there is not, or that what this task predicts does not have."""
    numbers = task.kind != "generate" or (task.answer is not None and task.answer.extractor in NUMBERS)
    for name in task.metrics:
        fault = ""
        if name not in METRICS:
            near = difflib.get_close_matches(name, METRICS, n=1)
            remedy = f"did you mean {near[0]}?" if near else f"there are {', '.join(METRICS)}"
            fault = f"{name!r:.80} is no metric; {remedy}"
        elif name in OF_PROBABILITIES:
            fault = f"{name} is of probabilities, and a task predicts options or texts; accuracy is of both"
        elif name in GROUPED and not task.group:
            fault = f"{name} needs the key 'group', a template that is equal for items which share a source"
        elif name in CORRELATIONS and not numbers:
            fault = f"{name} is of numbers; give [answer] the extractor {' or '.join(map(repr, NUMBERS))}"
        if fault:
            raise ValueError(f"{source.at('metrics')}: {fault}")


def _check_patterns(task: Task, source: _Source) -> None:
    """Raise ValueError for a template or a regular expression that is none."""
    try:
        [list(string.Formatter().parse(text)) for text in (task.template, task.group)]
    except ValueError as error:
        raise ValueError(f"{source.at('template')}: {error}; write a brace of the text twice") from error
    named = {"options.pattern": task.options.pattern if task.options else ""}
    for table in ("answer", "thoughts"):
        found = getattr(getattr(task, table), "extractor", "all")
        named[f"{table}.extractor"] = "" if found in EXTRACTORS else found
    for name, derived in task.derived.items():
        named |= {f"derived.{name}.pattern": derived.pattern, f"derived.{name}.remove": derived.remove}
    for name, pattern in named.items():
        try:
            check_pattern(pattern)
        except ValueError as error:
            table, _, key = name.rpartition(".")
            raise ValueError(
                f"{source.at(key, table)}: {name} must be a regular expression; got {pattern!r:.80} ({error})"
            ) from error
