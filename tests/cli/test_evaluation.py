"""`jaxrl-align evaluate`: a table, files of results, and errors in one line."""

import json

import pytest

TASK = """
name = "colours"
kind = "choice"
source = "ours"
licence = "CC0"
metrics = ["accuracy", "f1"]
template = "{text} is"
[options]
choices = { "0" = "dark", "1" = "light" }
[[test]]
format = "label text"
path = "test.txt"
[[examples]]
format = "label text"
path = "examples.txt"
"""
PAIR = """
name = "order"
kind = "pair"
source = "ours"
licence = "CC0"
metrics = ["accuracy"]
[options]
fields = ["good", "bad"]
[[test]]
format = "csv"
path = "pairs.csv"
"""


@pytest.fixture
def task(tmp_path):
    (tmp_path / "test.txt").write_text("0 black\n1 white\n0 navy\n1 cream\n")
    (tmp_path / "examples.txt").write_text("0 brown\n1 pink\n0 black\n")
    (tmp_path / "colours.toml").write_text(TASK)
    (tmp_path / "pairs.csv").write_text("good,bad\nit is,is it\n")
    (tmp_path / "order.toml").write_text(PAIR)
    return tmp_path / "colours.toml"


def test_every_task_count_of_examples_and_rule_is_a_row_and_a_file(road, task, tmp_path, capsys):
    for folder in ("one", "two"):
        flags = [
            "--tasks",
            f"{task},{task.parent / 'order.toml'}",
            "--shots",
            "0,2",
            "--rule",
            "raw,characters",
            "--limit",
            "3",
        ]
        road("evaluate --model tiny", *flags, "--out", tmp_path / folder)
    shown = capsys.readouterr().out
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert files == {
        "results.json",
        *(f"colours_{k}_{rule}.json" for k in (0, 2) for rule in ("raw", "characters")),
        "order_0_raw.json",
        "order_0_characters.json",
    }
    for name in files:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    summary = json.loads((tmp_path / "one" / "results.json").read_text())
    assert len(summary) == 6 and summary[0]["metrics"]["accuracy"]["kind"] == "wilson"
    assert "test items kept out of the examples" in shown and shown.count("value [95%]") == 2
    first = json.loads((tmp_path / "one" / "colours_2_raw.json").read_text())
    assert len(first["items"]) == 3 and {"parameters", "metrics", "excluded"} < set(first)


@pytest.mark.parametrize(
    "flags, message",
    [
        ("--tasks sst3", "sst3 is no task of the package; did you mean sst2"),
        ("--tasks ,", "--tasks must name at least one"),
        ("--tasks probes --shots 1,x", "--shots must be whole numbers such as 0,1,4; got '1,x'"),
        ("--tasks probes --rule raw,best", "--rule must be of raw, characters, bytes"),
        ("--tasks probes --limit 0", "limit must be a whole number of at least 1; got 0"),
        ("--tasks probes --chat", "task probes compares whole texts"),
    ],
)
def test_errors_take_one_line(fails, flags, message):
    code, line = fails(f"evaluate --model tiny {flags}")
    assert code == 2 and line.startswith("error: ") and message in line
