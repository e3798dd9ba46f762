"""Human feedback in the six kinds of lecture 002 (F8), read from JSON lines.

feedback = read_feedback("comparisons.jsonl.gz", skip_bad_rows=True)
print(len(feedback.rows), len(feedback.skipped))

Every row has a `prompt` and the fields of its kind; `encoding` makes arrays of the rows.

| kind | fields |
|---|---|
| comparison | `chosen`, `rejected`, mostly `margin`; `prompt` may be left out where both begin with it |
| ranking | `completions`, `ranking`: the place of each completion, 1 is the best, equal places are ties |
| rating | `completion`, `score` |
| text | `completion`, `text`: a remark in words |
| correction | `completion`, `correction` |
| label | `completion`, `label` |

A text may be a list of messages `{"role", "content"}`, for whose chat template `tools` is a list of JSON
schemas, or its JSON text. `worker` or `annotator` says who judged. OpenAI's summaries of 2020 (`info`,
`summaries` and `choice`, or `summary` with `axes`) are comparisons and ratings.
"""

from bisect import bisect_left
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jaxrl_align.feedback.fields import (
    Text,
    parse_completion,
    parse_number,
    parse_rows,
    parse_text,
    parse_tools,
    refuse_equal,
    split_dialogues,
    write_post,
)


class Comparison(NamedTuple):
    """Two completions of a prompt, of which the annotator preferred one."""

    prompt: Text
    chosen: Text
    rejected: Text
    margin: float = 0.0
    """By how much the chosen one is better, >= 0."""
    annotator: str | None = None
    source: str = ""
    """`file:line` of the row."""
    tools: list[Any] | None = None
    """JSON schemas that the chat template offers to the assistant."""


class Ranking(NamedTuple):
    """Two or more completions of a prompt, with the place of each."""

    prompt: Text
    completions: Sequence[Text]
    ranks: Sequence[int]
    """Place of each completion: 1 is the best, equal places are ties."""
    annotator: str | None = None
    source: str = ""
    tools: list[Any] | None = None


class Rating(NamedTuple):
    """A completion with a score on the annotators' scale."""

    prompt: Text
    completion: Text
    score: float
    annotator: str | None = None
    source: str = ""
    tools: list[Any] | None = None


class Comment(NamedTuple):
    """A completion with a remark in words."""

    prompt: Text
    completion: Text
    text: str
    annotator: str | None = None
    source: str = ""
    tools: list[Any] | None = None


class Correction(NamedTuple):
    """A completion, and how the annotator would have written it."""

    prompt: Text
    completion: Text
    correction: Text
    annotator: str | None = None
    source: str = ""
    tools: list[Any] | None = None


class Label(NamedTuple):
    """A completion with a thumb up or down."""

    prompt: Text
    completion: Text
    label: bool
    annotator: str | None = None
    source: str = ""
    tools: list[Any] | None = None


Row = Comparison | Ranking | Rating | Comment | Correction | Label


class Feedback(NamedTuple):
    """The rows of a file, and what was left out of it."""

    rows: Sequence[Any]
    """All of one kind."""
    skipped: Sequence[str]
    """One message for each row left out, with file, line and reason."""


def compare_correction(row: Correction) -> Comparison:
    """Return a correction as a comparison: the annotator prefers their own text to the one they corrected."""
    pair = Comparison(row.prompt, row.correction, row.completion)
    return pair._replace(annotator=row.annotator, source=row.source, tools=row.tools)


def read_feedback(
    path: str | Path,
    kind: str | None = None,
    *,
    scale: tuple[float, float] = (1, 10),
    skip_bad_rows: bool = False,
) -> Feedback:
    """Read a file of feedback, one JSON object a line; blank lines are none.

    Args:
      path: a JSONL file, compressed if its name ends in `.gz`.
      kind: "comparison", "ranking", "rating", "text", "correction" or "label"; None recognises it by the
        fields of the first row.
      scale: the lowest and the highest score of ratings.
      skip_bad_rows: leave bad rows out and list them, instead of raising an error for the first one.

    Returns:
      The rows, all of one kind and in the file's order, each with its `source`; and the skipped ones.

    Raises:
      ValueError: with file and line, for a row that is no JSON object in UTF-8 or lacks a field of its kind,
        an empty completion, two identical ones, places that are no ranking, a score outside the scale, a
        label that is not true or false; and always for a file that is missing, truncated, grows to far more
        than its packed size, or is without a good row or mostly of bad ones.

    Source: docs/lectures.md (F8).
    """
    if kind is not None and kind not in READERS:
        raise ValueError(f"kind must be one of {', '.join(READERS)}; got {kind!r}; None recognises it")
    low, high = scale
    if not low < high:
        raise ValueError(f"scale must be (lowest, highest); got {scale}; (1, 10) is lecture 002's")

    def parse(fields: dict[str, Any], source: str) -> Row:
        nonlocal kind
        kind = kind or _recognise(fields)
        row = READERS[kind](_demand(fields, kind), (low, high))
        return row._replace(annotator=_name_annotator(fields), source=source, tools=parse_tools(fields))

    rows, skipped = parse_rows(Path(path), parse, skip_bad_rows)
    if not rows:
        first = f"; first {skipped[0][:200]}" if skipped else "; the file is empty"
        raise ValueError(f"{path} must hold a row of feedback; all {len(skipped)} rows are bad{first}")
    return Feedback(rows, skipped)


MARKS: dict[str, tuple[frozenset[str], ...]] = {
    "comparison": (frozenset({"chosen", "rejected"}), frozenset({"info", "summaries", "choice"})),
    "ranking": (frozenset({"completions", "ranking"}),),
    "rating": (frozenset({"completion", "score"}), frozenset({"info", "summary"})),
    "text": (frozenset({"completion", "text"}),),
    "correction": (frozenset({"completion", "correction"}),),
    "label": (frozenset({"completion", "label"}),),
}
"""Kind -> the fields that it is known by, ours and TRL's before OpenAI's."""


def _recognise(fields: dict[str, Any]) -> str:
    kinds = [kind for kind, ways in MARKS.items() if any(way <= fields.keys() for way in ways)]
    if len(kinds) == 1:
        return kinds[0]
    expected = "; ".join(f"{kind}: {' and '.join(sorted(ways[0]))}" for kind, ways in MARKS.items())
    remedy = f"they fit {' and '.join(kinds)}: name one, kind=" if kinds else "rename them"
    raise ValueError(f"fields must be of one kind ({expected}); got {_list_names(fields)}; {remedy}")


def _demand(fields: dict[str, Any], kind: str) -> dict[str, Any]:
    """Return the fields if those of the kind are there."""
    if any(way <= fields.keys() for way in MARKS[kind]):
        return fields
    raise ValueError(
        f"a {kind} must have the fields {' and '.join(sorted(MARKS[kind][0]))}; got {_list_names(fields)}; "
        "a file holds one kind of feedback"
    )


def _list_names(fields: dict[str, Any]) -> str:
    names = ", ".join(sorted(fields)) or "none"
    return names if len(names) <= 80 else f"{names[:77]}..."


def _name_annotator(fields: dict[str, Any]) -> str | None:
    name = fields.get("annotator", fields.get("worker"))
    return None if name is None else str(name)


def _read_comparison(fields: dict[str, Any], scale: tuple[float, float]) -> Row:
    if "chosen" not in fields:
        summaries, choice = fields["summaries"], fields["choice"]
        pair = isinstance(summaries, list) and len(summaries) == 2
        if not (pair and all(isinstance(summary, dict) for summary in summaries)):
            raise ValueError("summaries must be two objects with a text each; got others")
        if type(choice) is not int or choice not in (0, 1):
            raise ValueError(f"choice must be 0 or 1, the better summary; got {str(choice)[:40]!r}")
        prompt: Text = write_post(fields["info"])
        chosen, rejected = (parse_completion(summaries[i], "text") for i in (choice, 1 - choice))
    else:
        prompt, chosen, rejected = split_dialogues(fields)
    refuse_equal({"chosen": chosen, "rejected": rejected})
    margin = parse_number(fields, "margin", (0.0, 1e9)) if "margin" in fields else 0.0
    return Comparison(prompt, chosen, rejected, margin)


def _read_ranking(fields: dict[str, Any], scale: tuple[float, float]) -> Row:
    texts, ranks = fields["completions"], fields["ranking"]
    if not (isinstance(texts, list) and len(texts) >= 2):
        raise ValueError("completions must be a list of two or more; got fewer, or no list")
    named = {f"completions[{i}]": text for i, text in enumerate(texts)}
    completions = [parse_completion(named, name) for name in named]
    refuse_equal(dict(zip(named, completions, strict=True)))
    if not (_are_places(ranks) and len(ranks) == len(texts)):
        raise ValueError(
            f"ranking must give each of the {len(texts)} completions its place, 1 for the best, equal places "
            f"for ties; got {str(ranks)[:80]}"
        )
    return Ranking(parse_text(fields, "prompt"), completions, ranks)


def _are_places(ranks: Any) -> bool:
    """Return whether places begin at 1 and leave none out, but for those that ties may skip (1, 1, 3)."""
    if not (isinstance(ranks, list) and all(type(rank) is int for rank in ranks)):
        return False
    ordered, different = sorted(ranks), set(ranks)
    skipping = all(rank == 1 + bisect_left(ordered, rank) for rank in different)
    return skipping or different == set(range(1, 1 + len(different)))


def _read_rating(fields: dict[str, Any], scale: tuple[float, float]) -> Row:
    if "completion" in fields and "score" in fields:
        score = parse_number(fields, "score", scale)
        return Rating(parse_text(fields, "prompt"), parse_completion(fields, "completion"), score)
    summary = fields["summary"]
    axes = summary.get("axes") if isinstance(summary, dict) else None
    if not isinstance(axes, dict):
        raise ValueError("summary must be an object with text and axes; got another")
    score = parse_number(axes, "overall", scale)
    return Rating(write_post(fields["info"]), parse_completion(summary, "text"), score)


def _read_comment(fields: dict[str, Any], scale: tuple[float, float]) -> Row:
    text = parse_text(fields, "text")
    if not (isinstance(text, str) and text.strip()):
        raise ValueError("text must be a remark in words; got none")
    return Comment(parse_text(fields, "prompt"), parse_completion(fields, "completion"), text)


def _read_correction(fields: dict[str, Any], scale: tuple[float, float]) -> Row:
    sides = {name: parse_completion(fields, name) for name in ("completion", "correction")}
    refuse_equal(sides)
    return Correction(parse_text(fields, "prompt"), sides["completion"], sides["correction"])


def _read_label(fields: dict[str, Any], scale: tuple[float, float]) -> Row:
    label = fields["label"]
    if not (isinstance(label, bool) or type(label) is int and label in (0, 1)):
        raise ValueError(f"label must be true or false; got {str(label)[:40]!r}")
    return Label(parse_text(fields, "prompt"), parse_completion(fields, "completion"), bool(label))


READERS = {
    "comparison": _read_comparison,
    "ranking": _read_ranking,
    "rating": _read_rating,
    "text": _read_comment,
    "correction": _read_correction,
    "label": _read_label,
}
