"""Lines of a feedback file and the fields of a line: texts, conversations and numbers, each checked."""

import contextlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxrl_align.data.files import GZIP_DAMAGE, parse_row, unpack_lines
from jaxrl_align.typed import one_line

Messages = list[dict[str, Any]]
"""A conversation, or a part of one: each message has its `role`, and mostly `content`."""
Text = str | Messages

TURN = re.compile(r"\n\n(?=Human:|Assistant:)")
REPLY = "Assistant:"
SKIP = "remove the row, or skip_bad_rows=True (--skip-bad-rows)"
MOST_BAD = 10_000
"""Bad rows that may be left out of a file although they are more than the good ones."""


def read_lines(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield `file:line` and each line that is not blank, of a file that is compressed if it ends in `.gz`.

    Raises:
      ValueError: if it is missing, truncated, no gzip, or unpacks to far more than its size.
    """
    if not path.is_file():
        raise ValueError(f"feedback must be a JSONL file; found none at {path}; check the path")
    number = 0
    try:
        for number, line in unpack_lines(path):
            yield f"{path}:{number}", line
    except GZIP_DAMAGE as error:
        raise ValueError(
            f"{path}:{number + 1}: the file is truncated or not compressed by gzip ({error}); copy it again"
        ) from error


def parse_text(fields: Mapping[str, Any], name: str) -> Text:
    """Return a field that is a text or a list of messages.

    Raises:
      ValueError: if it is missing or neither, or holds half a surrogate pair, which no tokenizer can encode.
    """
    value = fields.get(name)
    if value is None:
        raise ValueError(f"{name} is missing; got the fields {', '.join(sorted(fields))[:80]}")
    if isinstance(value, str):
        _check_unicode(value, name)
        return value
    if not isinstance(value, list) or not value:
        raise ValueError(f"{name} must be a text or a list of messages; got {_describe(value)}")
    for i, message in enumerate(value):
        if not (isinstance(message, dict) and isinstance(message.get("role"), str)):
            raise ValueError(f"{name}[{i}] must be a message with a role; got {_describe(message)}")
        if not isinstance(content := message.get("content"), str | list | None):
            raise ValueError(f"content of {name}[{i}] must be a text; got {_describe(content)}")
        # A chat template may write whatever is in a message.
        more = [json.dumps(message, ensure_ascii=False)] if len(message) > 2 else []
        for written in (str(content), message["role"], *more):
            _check_unicode(written, f"{name}[{i}]")
    return value


def parse_completion(fields: Mapping[str, Any], name: str) -> Text:
    """Return a field that answers a prompt: a text, or messages of which the first is the assistant's.

    Raises:
      ValueError: as `parse_text`, for one without words, or one that begins with somebody else's message.
    """
    return check_completion(parse_text(fields, name), name)


def check_completion(value: Text, name: str) -> Text:
    """Return a completion; see `parse_completion`."""
    if isinstance(value, str):
        if not value.strip():
            raise ValueError(f"{name} is empty; {SKIP}")
        return value
    if value[0]["role"] != "assistant":
        raise ValueError(
            f"{name} must begin with the assistant's message; got {value[0]['role'][:40]!r}; the messages "
            "before it belong to prompt"
        )
    if not any(m.get("tool_calls") or str(m.get("content") or "").strip() for m in value):
        raise ValueError(f"{name} is empty: no message has content; {SKIP}")
    return value


def parse_number(fields: Mapping[str, Any], name: str, limits: tuple[float, float]) -> float:
    """Return a number between two limits, both included.

    Raises:
      ValueError: if it is missing, no number, or outside.
    """
    value, (low, high) = fields.get(name), limits
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise ValueError(f"{name} must be a number from {low:g} to {high:g}; got {_describe(value)}")
    return float(value)


def parse_tools(fields: Mapping[str, Any]) -> list[Any] | None:
    """Return what a row offers to the assistant, JSON schemas; None without any.

    Raises:
      ValueError: if its `tools` are neither a list nor the JSON text of one.
    """
    tools = fields.get("tools")
    if isinstance(tools, str):
        with contextlib.suppress(ValueError, RecursionError):
            tools = json.loads(tools.strip() or "null")
    if not tools:  # an empty text, list or object: none
        return None
    if not isinstance(tools, list):
        raise ValueError(
            f"tools must be a list of JSON schemas, or its JSON text; got {str(tools)[:40]!r}; rename a "
            "field that means something else"
        )
    return tools


def refuse_equal(completions: Mapping[str, Text]) -> None:
    """Raise ValueError for two completions that differ in nothing but the space around them."""
    first, seen = next(iter(completions)), dict[str, str]()
    for name, text in completions.items():
        if type(text) is not type(completions[first]):
            raise ValueError(
                f"{first} and {name} must both be texts or both lists of messages; got one of each"
            )
        words = json.dumps(_strip(text), sort_keys=True)
        if words in seen:
            raise ValueError(f"{seen[words]} and {name} are identical; {SKIP}")
        seen[words] = name


def parse_rows(
    path: Path, parse: Callable[[dict[str, Any], str], Any], skip_bad_rows: bool
) -> tuple[list[Any], list[str]]:
    """Return what `parse(fields, source)` makes of each row, and a message for each row that was left out.

    Raises:
      ValueError: with file and line, for the first row that `parse` or `parse_row` refuses, unless it is
        skipped; where more than `MOST_BAD` rows are bad, and most are: their messages are longer than they.
    """
    rows: list[Any] = []
    skipped: list[str] = []
    for source, line in read_lines(path):
        try:
            rows.append(parse(parse_row(line), source))
        except ValueError as error:
            message = f"{source}: {one_line(str(error))}"
            if not skip_bad_rows:
                raise ValueError(message) from error
            skipped.append(message)
            if len(skipped) > max(MOST_BAD, len(rows)):
                raise ValueError(
                    f"{path} must hold more good rows than bad ones; got {len(rows)} and {len(skipped)}; is "
                    f"it the right file? first {skipped[0][:200]}"
                ) from error
    return rows, skipped


def split_dialogues(fields: Mapping[str, Any]) -> tuple[Text, Text, Text]:
    """Return prompt, chosen and rejected of a comparison.

    Without a prompt of its own, or where a text repeats what two conversations begin with, the two part at
    the last turn of the assistant's up to which they are equal, as in Anthropic's HH (Bai et al. 2022,
    arXiv:2204.05862). Turns are compared, not characters: two answers may begin alike.

    Raises:
      ValueError: for fields that are no texts, an empty completion, or no prompt in common.
    """
    chosen, rejected = parse_text(fields, "chosen"), parse_text(fields, "rejected")
    if "prompt" in fields:
        prompt = parse_text(fields, "prompt")
        whole = isinstance(prompt, str) and all(
            isinstance(side, list) and side[0]["role"] != "assistant" for side in (chosen, rejected)
        )
        if not whole:
            return prompt, check_completion(chosen, "chosen"), check_completion(rejected, "rejected")
    if isinstance(chosen, str) and isinstance(rejected, str):
        turns = TURN.split(chosen), TURN.split(rejected)
        place = _find_reply(*turns, lambda turn: turn.startswith(REPLY))
        prompt = "\n\n".join([*turns[0][:place], REPLY])
        sides: list[Text] = ["\n\n".join(side[place:])[len(REPLY) :] for side in turns]
    elif isinstance(chosen, list) and isinstance(rejected, list):
        place = _find_reply(chosen, rejected, lambda message: message["role"] == "assistant")
        prompt, sides = chosen[:place], [chosen[place:], rejected[place:]]
    else:
        raise ValueError("chosen and rejected must both be texts or both lists of messages; got one of each")
    return prompt, check_completion(sides[0], "chosen"), check_completion(sides[1], "rejected")


def _find_reply(chosen: Sequence[Any], rejected: Sequence[Any], replies: Callable[[Any], bool]) -> int:
    """Return the index of the last reply before which two dialogues are equal."""
    place = 0
    for i, (a, b) in enumerate(zip(chosen, rejected, strict=False)):
        if replies(a) and replies(b):
            place = i
        if a != b:
            break
    if not place:
        raise ValueError(
            "chosen and rejected must begin with the same turns, up to one of the assistant's; got none in "
            "common; give prompt a field of its own"
        )
    return place


def write_post(info: Any) -> str:
    """Return the prompt of a post or an article to be summarised, in the form of Stiennon et al. 2020.

    Args:
      info: `post` or `article`, and mostly `subreddit` and `title`.

    Raises:
      ValueError: if there is neither.

    Source: arXiv:2009.01325, appendix B.
    """
    if not isinstance(info, dict) or not (info.get("post") or info.get("article")):
        raise ValueError("info must be an object with a post or an article; got neither")
    names = {"subreddit": "SUBREDDIT: r/", "title": "TITLE: ", "post": "POST: ", "article": "ARTICLE: "}
    parts = [f"{mark}{parse_text(info, name)}" for name, mark in names.items() if info.get(name)]
    return "\n\n".join([*parts, "TL;DR:"])


def _check_unicode(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{name} must be Unicode; got half a surrogate pair at character {error.start}; remove it"
        ) from error


def _describe(value: Any) -> str:
    return "none" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


def _strip(value: Text) -> Any:
    if isinstance(value, str):
        return value.strip()
    return [m | {"content": m["content"].strip()} if isinstance(m.get("content"), str) else m for m in value]
