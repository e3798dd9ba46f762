import os
from pathlib import Path

import numpy as np
import pytest

from jaxrl_align.data.files import DATA_VARIABLE
from jaxrl_align.feedback import Comparison, load_convincing_arguments, read_arguments

FOLDER = Path(os.environ.get(DATA_VARIABLE, "")) / "preference" / "ukpconvarg1"


def test_the_better_argument_is_chosen(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('#id\tlabel\ta1\ta2\nx_y\ta1\tYes "so.\tNo.\ny_z\ta2\tNo.\tMaybe\n', encoding="utf-8")
    assert read_arguments(path, "p") == [
        Comparison("p", ' Yes "so.', " No.", source=f"{path}:2"),
        Comparison("p", " Maybe", " No.", source=f"{path}:3"),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "x_y\ta3\tYes\tNo\n",
            "a.csv:1: a row must be name, a1 or a2, and two arguments, tabs between; got",
        ),
        ("x_y\ta1\tYes\n", "a.csv:1: a row must be"),
        ("x_y\ta1\tYes\t \n", "a.csv:1: a row must be"),
        ("x_y\ta1\tYes\tNo\n#x\ta1\tYes\n", "a.csv:2: a row must be"),
        ("\n\n", "must hold pairs of arguments; it is empty"),
        ("x_y\ta1\tYes\t" + "No" * 100_000, "a.csv:1: the row is no row of a table"),
        ("x_y\ta1\tYes\t\n", "a.csv:1: a row must be"),
        ("#id\tlabel\ta1\ta2\n", "a.csv must hold pairs of arguments; it is empty"),
    ],
)
def test_a_row_of_another_form_is_named(text, message, tmp_path):
    path = tmp_path / "a.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        read_arguments(path, "p")


@pytest.mark.skipif(not FOLDER.is_dir(), reason="needs UKPConvArg1")
def test_the_judgements_of_ukpconvarg1():
    """The published numbers of pairs and debates, and the baseline of the longer argument, in words."""
    debates = load_convincing_arguments()
    rows = [row for rows in debates.values() for row in rows]
    assert (len(debates), len(rows)) == (16, 11_650)
    assert len({(row.prompt, text) for row in rows for text in (row.chosen, row.rejected)}) == 1038
    assert len({row.prompt for row in rows}) == 32 and rows[0].prompt.endswith("\nArgument:")
    words = np.array([[len(text.split()) for text in (row.chosen, row.rejected)] for row in rows])
    assert np.mean(0.5 + 0.5 * np.sign(words[:, 0] - words[:, 1])) == pytest.approx(0.759, abs=5e-4)
