"""Print the table of all losses, made from docstrings: `python -m jaxrl_align.losses > docs/losses.md`."""

import inspect
import re
import textwrap
from typing import Any

from jaxrl_align import losses

HEAD = """# Losses

Every public name of `jaxrl_align.losses`: what it does, its equation and its source. This page is made from
the docstrings by `python -m jaxrl_align.losses > docs/losses.md`, and a test compares the two.

| name | what it does | equation | source |
|---|---|---|---|
"""


def describe(thing: Any) -> tuple[str, str, str]:
    """Return a docstring's summary, its equation lines and its source, each on one line.

    Raises:
      ValueError: if one of them is missing.
    """
    summary, *blocks = (inspect.getdoc(thing) or "").split("\n\n")
    equations = [block for block in blocks if block.startswith("    ")]
    sources = [block for block in blocks if block.startswith("Source:")]
    if not equations or not sources:
        raise ValueError(f"the docstring of {thing.__name__} needs an indented equation and a Source:")
    lines = [line.strip() for line in textwrap.dedent(equations[0]).splitlines()]
    source = " ".join(sources[0].removeprefix("Source:").split()).replace("docs/lectures.md", "lectures")
    source = re.sub(r"\b[A-H]\d+\b", lambda row: f"[{row[0]}](lectures.md#{row[0].lower()})", source)
    return " ".join(summary.split()), "<br>".join(f"`{line}`" for line in lines), source


def make_page() -> str:
    """Return the page, a row for every public function and distribution."""
    rows = []
    for name in losses.__all__:
        thing = getattr(losses, name)
        if thing is not losses.VTrace:  # the fields that `vtrace` returns
            cells = (f"`{name}`", *describe(thing))
            rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
    return HEAD + "".join(rows)


if __name__ == "__main__":
    print(make_page(), end="")
