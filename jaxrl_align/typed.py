"""Values of the type and in the range that is written beside their names, in dataclasses and in JSON files.

The types are those of the standard library: `Annotated[int, Within(1, 10)]`, `Literal`, `X | None`,
`tuple[int, ...]`, `list[X]`, `dict[str, X]`, and `TypedDict`, which may hold other entries too, and whose own
may be missing or null if it is not total. A float is a number that float32 holds, a bool is never a number.
"""

import contextlib
import dataclasses
import json
import math
import numbers
import os
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple


class Within(NamedTuple):
    """A range of numbers; NaN lies in none."""

    least: float = -math.inf
    most: float = math.inf
    above: float = -math.inf
    """What the number must exceed."""

    def fault(self, value: float) -> str | None:
        """Say what is wrong with a number."""
        if not value > self.above:
            return "must be positive" if self.above == 0 else f"must be above {self.above:g}"
        if not value >= self.least:
            return f"must be at least {self.least:g}"
        return None if value <= self.most else f"must be at most {self.most:.10g}"


Count = Annotated[int, Within(1, 2**31 - 1)]
Index = Annotated[int, Within(0, 2**31 - 1)]
Positive = Annotated[float, Within(above=0)]
NotNegative = Annotated[float, Within(0)]
_LONGEST = 2_000
"""Characters of a message, which may quote whatever stands in a file."""
_LARGEST = 3.4e38
_INFINITE = f"must be finite and at most {_LARGEST:g}, as float32 is"


def fault_of(value: Any, kind: Any) -> str | None:
    """Say how a value must be to be of a type; None if it is."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return None
    if origin is Annotated:
        fault = fault_of(value, args[0])
        return fault if fault and fault != _INFINITE else args[1].fault(value) or fault
    if origin in (typing.Union, types.UnionType):
        faults = [fault_of(value, part) for part in args if part is not types.NoneType]
        if None in faults or (value is None and types.NoneType in args):
            return None
        return faults[0] if len(faults) == 1 else "must be " + " or ".join(str(f)[8:] for f in faults)
    if origin is Literal:
        return None if value in args else f"must be one of {', '.join(map(str, args))}"
    if typing.is_typeddict(kind) or origin is dict:
        return _mapping_fault(value, kind, args)
    if origin in (list, tuple):
        return _sequence_fault(value, origin, args[0])
    if kind is int:
        fits = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    elif kind is float:
        fits = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if fits and not _is_finite(value):
            return _INFINITE
    else:
        fits = isinstance(value, kind)
    return None if fits else f"must be of type {kind.__name__}"


def _is_finite(value: Any) -> bool:
    try:
        return math.isfinite(value) and abs(value) <= _LARGEST
    except OverflowError:  # a whole number beyond what a float holds
        return False


def _sequence_fault(value: Any, origin: type, kind: Any) -> str | None:
    if not isinstance(value, (list,) if origin is list else (list, tuple, range)):
        return f"must be a list of {_words(kind)}"
    wrong = [x for x in value if fault_of(x, kind)]
    return f"must be a list of {_words(kind)}, and not {short(wrong[0])}" if wrong else None


def _words(kind: Any) -> str:
    plain = typing.get_args(kind)[0] if typing.get_origin(kind) is Annotated else kind
    return "objects" if typing.is_typeddict(plain) else getattr(plain, "__name__", str(plain))


def _mapping_fault(value: Any, kind: Any, args: tuple[Any, ...]) -> str | None:
    if not isinstance(value, Mapping):
        return "must be an object"
    for name in getattr(kind, "__required_keys__", ()):
        if value.get(name) is None:
            return f"must be an object with {name}"
    entries = typing.get_type_hints(kind, include_extras=True) if not args else dict.fromkeys(value, args[1])
    for name, own in entries.items():
        stated = value.get(name)
        if (args or stated is not None) and (fault := fault_of(stated, own)):
            return f"must be an object whose {short(name)} {fault}"
    return None


def check_entries(values: Mapping[str, Any], kind: Any) -> None:
    """Raise ValueError for an entry that is not of its type in a `TypedDict`; missing and null ones pass."""
    for name, own in typing.get_type_hints(kind, include_extras=True).items():
        if values.get(name) is not None and (fault := fault_of(values[name], own)):
            raise ValueError(f"{name} {fault}; got {short(values[name])}")


def check_fields(record: Any) -> None:
    """Raise ValueError for a field of a dataclass that is not of its type."""
    for field in dataclasses.fields(record):
        if fault := fault_of(value := getattr(record, field.name), field.type):
            raise ValueError(f"{field.name} {fault}; got {short(value)}")


def short(value: Any, longest: int = 80) -> str:
    """Return a value as Python writes it, on one line, cut where it is long."""
    if isinstance(value, int) and value.bit_length() > 10_000:  # Python writes no number of so many digits
        return f"a whole number of {value.bit_length()} bits"
    text = repr(value[: longest + 1] if isinstance(value, str | list | tuple) else value)
    return text if len(text) <= longest else f"{text[:longest]}..."


def one_line(text: str, limit: int = 500) -> str:
    """Return what a message quotes without its line breaks, and not all of it where it is long."""
    words = " ".join(text[: 2 * limit].split())
    return words if len(words) <= limit else f"{words[: limit - 3]}..."


def brief(error: BaseException) -> str:
    """Return what an error says as one line of at most 300 characters."""
    return one_line(str(error), 300) or type(error).__name__


@contextlib.contextmanager
def naming(place: str | os.PathLike) -> Iterator[None]:
    """Make the message of a ValueError raised within one line that names the file or folder it is about."""
    try:
        yield
    except ValueError as error:
        text = " ".join(str(error).splitlines())[:_LONGEST]
        raise ValueError(text if str(place) in text else f"{place}: {text}") from error


def is_dense(data: bytes) -> bool:
    """Return whether the lists and objects of a large JSON text would take far more memory than the text."""
    return len(data) > 2**22 and 64 * data.count(b"[") + 200 * data.count(b"{") > 8 * len(data)


def read_object(path: Path, kind: Any = None, advice: str = "") -> dict[str, Any]:
    """Return the object in a JSON file.

    Args:
      path: of the file.
      kind: a `TypedDict` of entries; those that are missing or null, and others beside them, pass.
      advice: what to do if the file is missing.

    Raises:
      ValueError: if it is missing, holds anything else, or an entry is of another type; it names the file.
      OSError: if the file cannot be read.
    """
    try:
        data = path.read_bytes()
        if is_dense(data):
            raise ValueError("it holds more lists and objects than any file of a model has")
        values = json.loads(data.decode("utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing{advice and '; '}{advice}") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({brief(error)}); download it again") from error
    if not isinstance(values, dict):
        raise ValueError(f"{path} must hold an object; got {type(values).__name__}")
    if kind is not None:
        with naming(path):
            check_entries(values, kind)
    return values
