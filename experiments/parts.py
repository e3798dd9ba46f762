"""An experiment of several parts: one claim and one result out of those of the parts that were run."""

from collections.abc import Iterable, Mapping
from typing import Any

from jaxrl_align import runtime

Described = Mapping[str, Mapping[str, Any]]
"""Some of `headline`, `baselines`, `checks` and `tables`, as `runtime.write_result` takes them."""


def join_claims(claims: Iterable[runtime.Claim]) -> runtime.Claim:
    """Return the claim of several parts together: their texts, all their rows, the sum of their minutes."""
    claims = list(claims)
    rows = sorted({row for claim in claims for row in claim.rows})
    text = " ".join(claim.text for claim in claims)
    return runtime.Claim(text, tuple(rows), sum(claim.minutes for claim in claims))


def join_parts(parts: Iterable[Described]) -> dict[str, dict[str, Any]]:
    """Return the headlines, baselines, checks and tables of all parts, in their order."""
    joined: dict[str, dict[str, Any]] = {"headline": {}, "baselines": {}, "checks": {}, "tables": {}}
    for part in parts:
        for name, entries in part.items():
            joined[name] |= entries
    return joined


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("peft")
