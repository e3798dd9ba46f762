"""Regular expressions of a task file: those that may take hours on a line of text are refused.

Python's matcher tries one way after the other to divide a text among repeats inside repeats: `(a+)+b` has 2^n
of them for n letters. What is left takes at most a power of the text's length.
"""

import re
from re import _constants as ops  # type: ignore[attr-defined]
from re import _parser as parser  # type: ignore[attr-defined]
from typing import Any

FEW = 4
"""Times that something may be repeated which has several ways to match."""
WIDE = 5
"""Repeats without a narrow bound that one way through a pattern may have: each may try every length."""
NARROW = 100
"""Times up to which a bound is narrow."""
_REPEATS = (ops.MAX_REPEAT, ops.MIN_REPEAT)


def check_pattern(pattern: str) -> None:
    """Raise ValueError for a text that is no regular expression, or one that may take hours."""
    try:
        re.compile(pattern)
        nodes = parser.parse(pattern)
    except (re.error, OverflowError) as error:
        raise ValueError(str(error)) from error
    except (RecursionError, MemoryError) as error:
        raise ValueError("it has too many parts inside each other") from error
    if _count_wide(nodes) > WIDE:
        raise ValueError(f"it must have at most {WIDE} parts of any length, such as .*; more may take hours")
    if _backtracks(nodes, 1):
        raise ValueError(
            "what is repeated must not itself repeat, or begin alike in two ways: it may take hours; write "
            "[ab]+ for (a+|b+)+"
        )


def _count_wide(nodes: Any) -> int:
    """Return the most wide repeats that one way through nodes has."""
    count = 0
    for op, value in nodes:
        if op in _REPEATS:
            least, most, inner = value
            count += int(most - least > NARROW) + _count_wide(inner)
        elif op is ops.BRANCH:
            count += max(map(_count_wide, value[1]))
        else:
            count += sum(map(_count_wide, _parts(op, value)))
    return count


def _backtracks(nodes: Any, times: int) -> bool:
    """Return whether nodes, so many times repeated, have several ways to match the same text."""
    repeated = times > FEW
    for op, value in nodes:
        if op in _REPEATS:
            least, most, inner = value
            if repeated and most > least:
                return True
            if _backtracks(inner, times * min(int(most), FEW + 1)):
                return True
        elif op is ops.BRANCH:
            literal = [part[0][1] for part in value[1] if len(part) and part[0][0] is ops.LITERAL]
            starts = {chr(code).casefold() for code in literal}  # a flag may ignore the case
            if repeated and len(starts) < len(value[1]):
                return True
            if any(_backtracks(part, times) for part in value[1]):
                return True
        elif any(_backtracks(part, times) for part in _parts(op, value)):
            return True
    return False


def _parts(op: Any, value: Any) -> list[Any]:
    """Return the sequences of nodes inside another node."""
    if op is ops.SUBPATTERN:
        return [value[3]]
    if op in (ops.ASSERT, ops.ASSERT_NOT):
        return [value[1]]
    if op is ops.GROUPREF_EXISTS:
        return [part for part in value[1:] if part is not None]
    return []
