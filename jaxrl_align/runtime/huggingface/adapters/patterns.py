"""Regular expressions that somebody else wrote, matched in a time that grows with their length alone.

Python's own matcher tries one way after the other, and needs 2^40 of them for `(.+)+x` on a name of forty
letters. This one follows all ways at once: from each node of the expression and each position of the text it
computes, once, the set of positions where the node can end, a bit for each.
"""

import functools
import re
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

LONGEST = 4_000
"""Characters of an expression."""
_CATEGORIES = {
    ops.CATEGORY_DIGIT: str.isdecimal,
    ops.CATEGORY_SPACE: str.isspace,
    ops.CATEGORY_WORD: lambda char: char.isalnum() or char == "_",
    ops.CATEGORY_NOT_DIGIT: lambda char: not char.isdecimal(),
    ops.CATEGORY_NOT_SPACE: lambda char: not char.isspace(),
    ops.CATEGORY_NOT_WORD: lambda char: not (char.isalnum() or char == "_"),
}


def is_whole_match(pattern: str, text: str) -> bool:
    """Return whether an expression matches the whole of a text, as `re.fullmatch` finds.

    Raises:
      ValueError: for what is no expression, or has back references, flags, or more than `LONGEST` characters.
    """
    try:
        nodes = _parse(pattern)
        return bool(_Matcher(text).ends_of(nodes, 0) >> len(text) & 1)
    except (re.error, OverflowError) as error:
        raise ValueError(str(error)) from error
    except RecursionError as error:
        raise ValueError("it is nested too deep") from error


@functools.lru_cache(64)
def _parse(pattern: str) -> Any:
    if len(pattern) > LONGEST:
        raise ValueError(f"it has {len(pattern)} characters, more than {LONGEST}")
    nodes = parser.parse(pattern)
    if nodes.state.flags & ~re.UNICODE:
        raise ValueError("flags are not supported")
    return nodes


class _Matcher:
    """Where the nodes of one expression can end in a text."""

    def __init__(self, text: str) -> None:
        self.text, self.known = text, dict[tuple[int, int], int]()

    def ends_of(self, nodes: Any, start: int) -> int:
        """Return the ends of a sequence of nodes, as bits, from one position."""
        key = (id(nodes), start)
        if key not in self.known:
            ends = 1 << start
            for op, value in nodes:
                ends = functools.reduce(int.__or__, (self._step(op, value, i) for i in _bits(ends)), 0)
            self.known[key] = ends
        return self.known[key]

    def _step(self, op: Any, value: Any, start: int) -> int:
        """Return the ends of one node from one position."""
        if op in (ops.LITERAL, ops.NOT_LITERAL, ops.ANY, ops.IN):
            fits = start < len(self.text) and _fits(op, value, self.text[start])
            return 1 << start + 1 if fits else 0
        if op is ops.BRANCH:
            return functools.reduce(int.__or__, (self.ends_of(nodes, start) for nodes in value[1]))
        if op is ops.SUBPATTERN and not value[1] and not value[2]:
            return self.ends_of(value[3], start)
        if op in (ops.MAX_REPEAT, ops.MIN_REPEAT):
            least, most, nodes = value
            return self._repeat(least, most, nodes, start)
        if op is ops.AT:
            return 1 << start if self._is_at(value, start) else 0
        if op in (ops.ASSERT, ops.ASSERT_NOT):
            direction, nodes = value
            begin = start if direction > 0 else start - nodes.getwidth()[0]
            found = begin >= 0 and self.ends_of(nodes, begin)
            found = bool(found) if direction > 0 else bool(found >> start & 1)
            return 1 << start if found == (op is ops.ASSERT) else 0
        raise ValueError(f"{str(op).lower()} is not supported")

    def _repeat(self, least: int, most: int, nodes: Any, start: int) -> int:
        ends, past, count = 1 << start, 0, 0
        while ends and count < least:
            after = functools.reduce(int.__or__, (self.ends_of(nodes, i) for i in _bits(ends)), 0)
            if after == ends:
                break
            ends, count = after, count + 1
        fresh, count = ends, least
        while fresh and count < most:
            past |= fresh
            after = functools.reduce(int.__or__, (self.ends_of(nodes, i) for i in _bits(fresh)), 0)
            fresh, count = after & ~past, count + 1
        return past | fresh | ends

    def _is_at(self, place: Any, start: int) -> bool:
        if place in (ops.AT_BEGINNING, ops.AT_BEGINNING_STRING):
            return start == 0
        if place in (ops.AT_END, ops.AT_END_STRING):
            return start == len(self.text)
        word = _CATEGORIES[ops.CATEGORY_WORD]
        sides = self.text[start - 1 : start] if start else "", self.text[start : start + 1]
        return (place is ops.AT_BOUNDARY) == (word(sides[0]) != word(sides[1]))


def _bits(mask: int) -> list[int]:
    """Return the positions of the bits that are set."""
    return [i for i, bit in enumerate(reversed(bin(mask)[2:])) if bit == "1"]


def _fits(op: Any, value: Any, char: str) -> bool:
    """Return whether a node of one character takes this one."""
    code = ord(char)
    if op is ops.ANY:
        return char != "\n"
    if op is not ops.IN:
        return (code == value) == (op is ops.LITERAL)
    negated = value[0][0] is ops.NEGATE
    return negated != any(_is_of(kind, item, code, char) for kind, item in value[negated:])


def _is_of(kind: Any, item: Any, code: int, char: str) -> bool:
    if kind is ops.RANGE:
        return item[0] <= code <= item[1]
    return code == item if kind is ops.LITERAL else _CATEGORIES[item](char)
