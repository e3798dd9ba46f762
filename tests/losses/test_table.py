"""The page of all losses says what their docstrings say."""

from pathlib import Path

import pytest

from jaxrl_align import losses
from jaxrl_align.losses.__main__ import describe, make_table

PAGE = Path(__file__).parents[2] / "docs" / "losses.md"


def test_the_page_is_what_the_docstrings_make():
    hint = "run: python -m jaxrl_align.losses > docs/losses.md"
    assert PAGE.read_text(encoding="utf-8") == make_table(), hint


def test_every_public_name_has_a_row_with_an_equation_and_a_source():
    page = PAGE.read_text(encoding="utf-8")
    for name in set(losses.__all__) - {"VTrace"}:
        summary, equation, source = describe(getattr(losses, name))
        assert f"| `{name}` | " in page
        assert summary.endswith((".", ":")) and equation.startswith("`") and source


def test_a_docstring_without_an_equation_is_refused():
    def loss(x):
        """Return x."""

    with pytest.raises(ValueError, match="the docstring of loss needs an indented equation and a Source"):
        describe(loss)
