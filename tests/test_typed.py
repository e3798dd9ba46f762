"""Types and ranges of fields and entries, and JSON files that are read against them."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict

import numpy as np
import pytest

from jaxrl_align.data.files import parse_json
from jaxrl_align.typed import (
    Count,
    NotNegative,
    Positive,
    Within,
    check_entries,
    check_fields,
    fault_of,
    naming,
    read_object,
    short,
)


class Inner(TypedDict):
    name: str


class Outer(TypedDict, total=False):
    count: Count
    inner: Inner | str
    many: list[Inner]
    by_name: dict[str, int]


FITS: tuple[tuple[Any, Any], ...] = (
    *((int, 3), (int, np.int64(3)), (float, 3), (float, 0.5), (float, np.float32(0.5)), (bool, False)),
    *((Any, object()), (Count, 2**31 - 1), (Positive, 1e-30), (NotNegative, 0), (int | None, None)),
    *((Literal["a", "b"], "b"), (tuple[int, ...], (1, 2)), (tuple[int, ...], range(2)), (list[int], [])),
    *((int | list[int], [1]), (dict[str, int], {}), (Inner, {"name": "a", "more": 1}), (Outer, {})),
    *((Outer, {"count": None, "inner": "a"}), (Outer, {"inner": {"name": ""}}), (float, 3.4e38)),
)
FAULTS: tuple[tuple[Any, Any, str], ...] = (
    (int, True, "must be of type int"),
    (int, 1.0, "must be of type int"),
    (float, True, "must be of type float"),
    (float, "1", "must be of type float"),
    (float, math.nan, "must be finite and at most 3.4e"),
    (float, 10**400, "must be finite"),
    (float, -1e39, "must be finite"),
    (bool, 0, "must be of type bool"),
    (str, None, "must be of type str"),
    (Count, 0, "must be at least 1"),
    (Count, 2**31, "must be at most 2147483647"),
    (Count, 1.5, "must be of type int"),
    (Positive, 0, "must be positive"),
    (Positive, math.nan, "must be positive"),
    (Positive, math.inf, "must be finite"),
    (NotNegative, -1, "must be at least 0"),
    (Annotated[float, Within(above=2)], 2, "must be above 2"),
    (int | None, "a", "must be of type int"),
    (int | str, 1.5, "must be of type int or of type str"),
    (Literal["a", "b"], ["a"], "must be one of a, b"),
    (list[int], (1,), "must be a list of int"),
    (list[int], "ab", "must be a list of int"),
    (list[int], [1, None], "must be a list of int, and not None"),
    (list[Inner], [{}], "must be a list of objects, and not {}"),
    (dict[str, int], {"a": None}, "must be an object whose 'a' must be of type int"),
    (Inner, {}, "must be an object with name"),
    (Inner, [], "must be an object"),
    (Outer, {"by_name": {"a": "b"}}, "must be an object whose 'by_name' must be an object whose 'a'"),
)


@pytest.mark.parametrize(("kind", "value"), FITS)
def test_what_fits(kind, value):
    assert fault_of(value, kind) is None


@pytest.mark.parametrize(("kind", "value", "fault"), FAULTS)
def test_what_does_not(kind, value, fault):
    assert fault_of(value, kind).startswith(fault)


def test_entries_and_fields_name_what_is_wrong():
    @dataclass(frozen=True)
    class Sizes:
        width: Count = 1
        rates: tuple[float, ...] = ()

    check_fields(Sizes())
    with pytest.raises(ValueError, match=r"width must be at least 1; got 0"):
        check_fields(Sizes(0))
    with pytest.raises(ValueError, match=r"rates must be a list of float, and not 'a'; got \(1, 'a'\)"):
        check_fields(Sizes(rates=(1, "a")))
    check_entries({"count": None, "more": 1}, Outer)
    with pytest.raises(ValueError, match=r"count must be of type int; got 'aaa"):
        check_entries({"count": "a" * 1_000_000}, Outer)


def test_values_are_shown_on_a_short_line():
    assert short("a\nb") == r"'a\nb'"
    assert len(short("a" * 10**6)) < 100 and len(short([1] * 10**6)) < 100
    assert short(10**4000).startswith("a whole number of 13288 bits")


def test_an_error_names_its_file_once_and_in_one_short_line():
    with pytest.raises(ValueError, match="^a.json: x y$"), naming(Path("a.json")):
        raise ValueError("x\ny")
    with pytest.raises(ValueError, match="^in a.json: x$"), naming("a.json"):
        raise ValueError("in a.json: x")
    with pytest.raises(ValueError, match=r"^a.json: x{2000}$"), naming("a.json"):
        raise ValueError("x" * 10_000)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "o.json is missing; look elsewhere"),
        (b"\xff", "o.json is no JSON .*codec can't decode.*; download it again"),
        (b"[" * 100_000, "o.json is no JSON .*recursion"),
        (b'{"count": ' + b"1" * 5_000 + b"}", "o.json is no JSON"),
        (b"[]", "o.json must hold an object; got list"),
        (b'{"count": 0}', "o.json: count must be at least 1; got 0"),
    ],
)
def test_objects_are_read_against_their_entries(text, message, tmp_path):
    path = tmp_path / "o.json"
    if text is not None:
        path.write_bytes(text)
    with pytest.raises(ValueError, match=message) as error:
        read_object(path, Outer, "look elsewhere")
    assert "\n" not in str(error.value)
    path.write_text('{"count": 2, "other": [1]}')
    assert read_object(path, Outer) == {"count": 2, "other": [1]}


def test_lists_that_would_take_far_more_memory_than_their_text_are_refused(tmp_path):
    path = tmp_path / "config.json"
    path.write_text('{"a": [' + "{}," * 2_000_000 + "{}]}")
    with pytest.raises(ValueError, match="config.json is no JSON .it holds more lists and objects"):
        read_object(path)
    with pytest.raises(ValueError, match="more lists and objects than text"):
        parse_json("[" + "[]," * 2_000_000 + "[]]")
    path.write_text('{"a": "' + "x{" * 100 + "y" * 6_000_000 + '"}')
    assert len(read_object(path)["a"]) == 6_000_200
