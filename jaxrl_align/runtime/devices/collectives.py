"""What a compiled program exchanges between devices, read from its text."""

import math
import re
from collections import Counter
from typing import NamedTuple

_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
_COLLECTIVE = re.compile(rf"= (.*?) ({_KINDS})(-start)?\(")
_HEADER = re.compile(r"^(ENTRY )?%?([\w.-]+) \(.*\{$")
_CALLED = re.compile(r"(body|condition|calls|to_apply)=%?([\w.-]+)|branch_computations=\{([^}]*)\}")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_ARRAY = re.compile(r"\b([a-z]\w*?)(\d+)?(?:e\d\w*)?\[([\d,]*)\]")
_GROUPS = re.compile(r"replica_groups=(?:mesh\[(.*?)\] \{(.*?)\}|\[\d+,(\d+)\]<=|\{\{([\d,]*)\})")
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
    devices: int
    """How many exchange with each other; 0 where the program does not say."""


def list_collectives(text: str, *, turns: int = 1) -> list[Collective]:
    """Return the exchanges of a compiled program, the largest in all first.

    Args:
      text: `jax.jit(f).lower(...).compile().as_text()`.
      turns: of each loop whose turns the compiler does not know, such as that over written tokens.
    """
    total: Counter[tuple[str, str, str, int]] = Counter()
    for line, times in count_lines(text, turns=turns):
        if exchange := _COLLECTIVE.search(line):
            operation = _OPERATION.search(line)
            shape = re.sub(r"\{[^}]*\}", "", exchange[1])
            if exchange[3] and exchange[2] != "all-reduce":
                shape = _second_half(shape)  # an asynchronous one lists its operands, then its results
            total[exchange[2], shape, operation[1] if operation else "", _group_size(line)] += times
    rows = [
        Collective(kind, shape, times, size_of(shape), operation, devices)
        for (kind, shape, operation, devices), times in total.items()
    ]
    return sorted(rows, key=lambda row: -row.times * row.size)


def count_lines(text: str, *, turns: int = 1) -> list[tuple[str, int]]:
    """Return each instruction of a compiled program and how often one call of the program runs it.

    Of a condition's branches all count.

    Args:
      text: as in `list_collectives`.
      turns: likewise.
    """
    lines, calls, entry = _read_computations(text)
    total: Counter[str] = Counter()

    def add(name: str, times: int) -> None:
        total[name] += times
        for called, trips in calls.get(name, ()):
            add(called, times * (turns if trips is None else trips))

    add(entry, 1)
    return [(line, times) for name, times in total.items() for line in lines.get(name, ())]


def _read_computations(text: str) -> tuple[dict[str, list], dict[str, list], str]:
    """Return each computation's lines, the computations that it calls with how often, and the first.

    How often is None for the body of a loop whose turns are not known.
    """
    lines: dict[str, list] = {}
    calls: dict[str, list] = {}
    name = entry = ""
    for line in text.splitlines():
        if header := _HEADER.match(line):
            name = header[2]
            entry = name if header[1] else entry
            continue
        lines.setdefault(name, []).append(line)
        if _COLLECTIVE.search(line):
            continue  # what it calls adds two numbers
        trips = _TRIPS.search(line)
        for way, one, branches in _CALLED.findall(line):
            often = 1 if way != "body" else int(trips[1]) if trips else None
            for called in [one] if one else re.findall(r"[\w.-]+", branches):
                calls.setdefault(name, []).append((called, often))
    return lines, calls, entry


def _group_size(line: str) -> int:
    """Return the number of devices in a group: of named axes, of rows of an array, or listed."""
    groups = _GROUPS.search(line)
    if groups is None:
        return 0
    if groups[1] is not None:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", groups[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", groups[2]))
    return int(groups[3]) if groups[3] else len(groups[4].split(","))


def _second_half(shape: str) -> str:
    arrays = [array for array in re.findall(r"\w+\[[\d,]*\]", shape) if array != "u32[]"]  # a TPU's contexts
    return ", ".join(arrays[len(arrays) // 2 :])


def size_of(shape: str) -> int:
    """Return the bytes of a result as XLA writes its shape, of a tuple's all parts."""
    sizes = {"pred": 1, "c": 8}
    total = 0
    for kind, bits, dimensions in _ARRAY.findall(shape):
        width = int(bits) / 8 if bits else sizes.get(kind, 4)
        total += int(math.prod(int(d) for d in dimensions.split(",") if d) * width)
    return total
