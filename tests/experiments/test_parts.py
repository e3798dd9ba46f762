"""Claims and results of parts, joined."""

from jaxrl_align.runtime import Claim
from tests.experiments.loading import load

parts = load("parts")


def test_claims_are_joined():
    joined = parts.join_claims([Claim("Ice floats.", ("B2", "A1"), 3), Claim("Iron sinks.", ("A1",), 4)])
    assert joined == Claim("Ice floats. Iron sinks.", ("A1", "B2"), 7)


def test_results_are_joined_in_their_order():
    first = {"headline": {"a": 1}, "checks": {"x": True}, "tables": {"t": {}}}
    second = {"headline": {"b": 2}, "checks": {"y": False}, "baselines": {"c": 3}}
    joined = parts.join_parts([first, second])
    assert joined == {
        "headline": {"a": 1, "b": 2},
        "baselines": {"c": 3},
        "checks": {"x": True, "y": False},
        "tables": {"t": {}},
    }
    assert list(joined["headline"]) == ["a", "b"] and first["headline"] == {"a": 1}
