"""What a compiled program exchanges between devices, read from its text."""

import math
import re
from collections import Counter
from typing import NamedTuple

_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
_COLLECTIVE = re.compile(rf"= (.*?) ({_KINDS})(?:-start)?\(")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(r"(body|condition|calls|to_apply)=%?([\w.-]+)|branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"\b([a-z]\w*?)(\d+)?(?:e\d\w*)?\[([\d,]*)\]")
_OPERATION = re.compile(r'op_name="([^"]*)"')


class Collective(NamedTuple):
    """Exchanges of one kind and shape, of each device in one call of the program."""

    kind: str
    """all-gather, all-reduce, reduce-scatter, all-to-all or collective-permute."""
    shape: str
    """Of its result, as XLA writes it: f32[256,128]."""
    times: int
    """How often; within a loop once for each of its turns, where the compiler knows them, or else once."""
    size: int
    """Bytes of one result."""
    operation: str
    """The operation that it comes from."""


def list_collectives(text: str) -> list[Collective]:
    """Return the exchanges of a compiled program, the largest in all first.

    Args:
      text: `jax.jit(f).lower(...).compile().as_text()`.
    """
    found, calls, entry = _read_computations(text)
    total: Counter[tuple[str, str, str]] = Counter()

    def add(name: str, times: int) -> None:
        for exchange in found.get(name, ()):
            total[exchange] += times
        for called, trips in calls.get(name, ()):
            add(called, times * trips)

    add(entry, 1)
    rows = [Collective(kind, shape, n, _bytes(shape), op) for (kind, shape, op), n in total.items()]
    return sorted(rows, key=lambda row: -row.times * row.size)


def _read_computations(text: str) -> tuple[dict[str, list], dict[str, list], str]:
    """Return each computation's exchanges, the computations that it calls with how often, and the first."""
    found: dict[str, list] = {}
    calls: dict[str, list] = {}
    name = entry = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name = header[2]
            entry = name if header[1] else entry
            continue
        if exchange := _COLLECTIVE.search(line):
            operation = _OPERATION.search(line)
            shape = re.sub(r"\{[^}]*\}", "", exchange[1])
            found.setdefault(name, []).append((exchange[2], shape, operation[1] if operation else ""))
            continue  # what it calls adds two numbers
        trips = _TRIPS.search(line)
        for way, one, branches in _CALLED.findall(line):
            for called in [one] if one else re.findall(r"[\w.-]+", branches):
                calls.setdefault(name, []).append((called, int(trips[1]) if way == "body" and trips else 1))
    return found, calls, entry


def _bytes(shape: str) -> int:
    """Return the size of a result, of a tuple's all parts."""
    sizes = {"pred": 1, "c": 8}
    total = 0
    for kind, bits, dimensions in _ARRAY.findall(shape):
        width = int(bits) / 8 if bits else sizes.get(kind, 4)
        total += int(math.prod(int(d) for d in dimensions.split(",") if d) * width)
    return total
