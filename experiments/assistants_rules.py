"""Rules that say of a text behind an instruction whether it answers it or continues it.

They read the form alone: a wrong answer is an answer. In their order, the first that holds decides:

| rule | holds where | verdict |
|---|---|---|
| empty | there is no letter and no digit | neither |
| copy | the first five words are the prompt's (all of a shorter prompt's) | continues |
| instruction | a verb of `VERBS`, a label ("Task:") or a question ("Who ...?") begins it | continues |
| next | a later line does so | continues |
| mid-sentence | it begins with a comma or the like, or with a small word of `JOINTS` | continues |
| loop | some four words stand there in a row more than three times | neither |
| unfinished | it did not end by itself, and no sentence or line of it ends | continues |
| no poem | the prompt asks for a poem, and the text has fewer than two line breaks | neither |
| off topic | it has more than five words, and none of content is one of the prompt's | neither |
| answer, cut | none of these, but the most tokens were written before it ended | answers |
| answer | none of these | answers |

Only lines without a number or a dash can be a "next" one: steps are imperatives too. List marks, quotes and
spaces before the first word are passed over. Words of content have a digit, or four letters and
are none of `COMMON`; they are the same where their first five characters are.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

ANSWERS, CONTINUES, NEITHER = "answers", "continues", "neither"
VERDICTS = (ANSWERS, CONTINUES, NEITHER)


def _set_of(words: str) -> frozenset[str]:
    return frozenset(words.split())


VERBS = _set_of(
    """add alter analyze answer arrange calculate categorize change choose classify combine compare complete
    compose compute construct convert correct create define delete describe design determine discuss draw edit
    evaluate explain fill find fix generate give identify illustrate imagine insert label list look make name
    outline paraphrase perform pick predict propose provide put rank rearrange recommend rephrase replace
    reverse reword rewrite select simplify solve sort split state suggest summarise summarize tell transform
    translate use write"""
)
"""Verbs that instructions begin with, written down before any model had said anything."""
QUESTIONS = _set_of("what who whom whose which when where why how")
JOINTS = _set_of("and or but nor of in on at to by for from with about as that than which who into")
COMMON = _set_of(
    """about also answer been correct example following from given have into instruction like make more most
    need only please provide rewrite sentence some such than that their them then there these they this those
    using very what when where which will with word words write would your"""
)
"""Words that say nothing of what a text is about."""

_WORD = re.compile(r"[^\W_]+(?:['\u2019-][^\W_]+)*")
_MARK = re.compile(r"\s*(?:\d+[.)]\s|[-*\u2022]\s)?\s*")
_LABEL = re.compile(r"(?:instruction|question|prompt|task|user|human|input|q)\s*\d*\s*:\s*", re.IGNORECASE)
_END = re.compile(r"[.!?\u3002](?=\s|$|[\"')\u201d])")
_POEM = re.compile(
    r"\b(?:write|compose|create|generate|make)\b[^.?!]*\b(?:poem|haiku|limerick|sonnet)s?\b", re.IGNORECASE
)
LEAST_LOOP, LEAST_TOPIC = 4, 6
"""Times that four words repeat in a loop; words of a text that must be about its prompt."""


class Written(NamedTuple):
    """A text behind a prompt."""

    text: str
    stopped: bool
    """It ended by itself, by a stop token, before the most tokens were written."""


class Judged(NamedTuple):
    """What the rules say of one text."""

    verdict: str
    """One of `VERDICTS`."""
    rule: str
    """The rule that decided."""


def words_of(text: str) -> list[str]:
    """Return a text's words in small letters, without punctuation."""
    return _WORD.findall(text.lower())


def opens_instruction(text: str) -> bool:
    """Return whether a text begins as an instruction or a question does, or with a label of one."""
    body = text[_MARK.match(text).end() :].lstrip("\"'\u201c\u2018 ")  # type: ignore[union-attr]
    first = _WORD.match(body.lower())
    if _LABEL.match(body):
        return True
    if first is None:
        return False
    if first[0] in VERBS:
        return not body[first.end() :].startswith(":")
    end = _END.search(body.split("\n", 1)[0])
    return first[0] in QUESTIONS and end is not None and end[0] == "?"


def goes_to_next(text: str) -> bool:
    """Return whether a line after the first opens another instruction; steps of a list do not."""
    later = (line.strip() for line in text.strip().split("\n")[1:])
    return any(opens_instruction(line) for line in later if not re.match(r"\d|[-*\u2022]", line))


def repeats(words: Sequence[str]) -> bool:
    """Return whether some four words in a row occur `LEAST_LOOP` times."""
    runs = Counter(zip(*(words[i:] for i in range(4)), strict=False))
    return max(runs.values(), default=0) >= LEAST_LOOP


def content_of(text: str) -> set[str]:
    """Return the first five characters of a text's words of content."""
    return {w[:5] for w in words_of(text) if (len(w) >= 4 and w not in COMMON) or re.search(r"\d", w)}


def judge_text(prompt: str, text: str, stopped: bool) -> Judged:
    """Judge one text by the first rule of the table that holds.

    Args:
      prompt: the instruction, with its input.
      text: what the model wrote behind it.
      stopped: it ended by itself, by a stop token, before the most tokens were written.
    """
    words, asked = words_of(text), words_of(prompt)
    body = text.strip()
    first = _WORD.search(body)
    if first is None:
        return Judged(NEITHER, "empty")
    if words[: len(asked[:5])] == asked[:5]:
        return Judged(CONTINUES, "copy")
    if opens_instruction(body):
        return Judged(CONTINUES, "instruction")
    if goes_to_next(body):
        return Judged(CONTINUES, "next")
    if body[0] in ",;:.)?" or first[0] in JOINTS:
        return Judged(CONTINUES, "mid-sentence")
    if repeats(words):
        return Judged(NEITHER, "loop")
    if not stopped and not _END.search(body) and "\n" not in body:
        return Judged(CONTINUES, "unfinished")
    poem = _POEM.search(prompt) is not None
    if poem and body.count("\n") < 2:
        return Judged(NEITHER, "no poem")
    if not poem and len(words) >= LEAST_TOPIC and not content_of(text) & content_of(prompt):
        return Judged(NEITHER, "off topic")
    return Judged(ANSWERS, "answer" if stopped else "answer, cut")


RULES = (
    "empty",
    "copy",
    "instruction",
    "next",
    "mid-sentence",
    "loop",
    "unfinished",
    "no poem",
    "off topic",
    "answer, cut",
    "answer",
)
"""In their order."""


def judge_all(prompts: Sequence[str], written: Sequence[Written]) -> dict[str, Any]:
    """Return how many texts got each verdict, were decided by each rule, and ended by themselves.

    Args:
      prompts: [N].
      written: [N], texts behind them.
    """
    judged = [judge_text(prompt, *text) for prompt, text in zip(prompts, written, strict=True)]
    verdicts, rules = Counter(j.verdict for j in judged), Counter(j.rule for j in judged)
    return {
        "verdicts": {name: verdicts[name] for name in VERDICTS},
        "rules": {name: rules[name] for name in RULES},
        "ended": sum(text.stopped for text in written),
    }


def check_rules(pairs: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """Judge texts whose verdict is known without the rules, put behind each prompt; all end by themselves.

    Args:
      pairs: N, each with its `prompt` and a human's `answer`; another's is that of the next pair.

    Returns:
      `judge_all` of the humans' answers, of another instruction, which continues, and of another
      instruction's answer, which is beside the point.
    """
    prompts, answers = [p.prompt for p in pairs], [p.answer for p in pairs]
    roll = lambda texts: [*texts[1:], *texts[:1]]
    known = {
        "the human answer": answers,
        "another instruction": roll(prompts),
        "another's human answer": roll(answers),
    }
    judge = lambda texts: judge_all(prompts, [Written(text, True) for text in texts])
    return {name: judge(texts) for name, texts in known.items()}


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("assistants")
