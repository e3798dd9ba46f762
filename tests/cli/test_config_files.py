"""Configuration files beside flags, and the command line as a whole."""

import json

import pytest

from jaxrl_align.cli.commands import COMMANDS, overview
from jaxrl_align.cli.config_files import field_names, with_config
from jaxrl_align.cli.options import flags_of, record
from jaxrl_align.cli.runs.direct_losses import DPO
from jaxrl_align.runtime.cli import parse

NEEDED = ["--model", "m", "--data", "d", "--out", "o"]


def read(path, *argv):
    return flags_of(parse(DPO, with_config("dpo", DPO, ["--config", str(path), *argv])))


def test_yaml_and_json_are_read_and_flags_win(tmp_path):
    (tmp_path / "c.yaml").write_text(
        "# a comment\nrank: 3\nlearning-rate: 1e-4\nheld_out: null\nchat: true\ntargets: ['*up', '*down']\n"
        "writers: []\n"
    )
    found = read(tmp_path / "c.yaml", *NEEDED, "--rank", "5", "--no-chat")
    assert (found["rank"], found["learning_rate"], found["held_out"], found["chat"]) == (5, 1e-4, None, False)
    assert found["targets"] == ("*up", "*down") and found["writers"] == () and found["model"] == "m"
    (tmp_path / "c.json").write_text(json.dumps({"model": "x", "data": "d", "out": "o", "beta": 0.3}))
    found = read(tmp_path / "c.json", "--model=y")
    assert (found["model"], found["data"], found["beta"], found["rank"]) == ("y", "d", 0.3, 8)


def test_the_config_of_a_run_makes_the_same_run(tmp_path):
    argv = [*NEEDED, "--targets", "*up", "--passes", "2", "--seed", "3", "--remat", "--held-out", "None"]
    first = parse(DPO, [*argv, "--writers", "tensorboard"])
    (tmp_path / "config.json").write_text(json.dumps(record("dpo", first, data_sha256="ab")))
    again = parse(DPO, with_config("dpo", DPO, [f"--config={tmp_path / 'config.json'}", "--out", "new"]))
    was, now = record("dpo", first), record("dpo", again)
    assert now == was | {"out": "new"} and flags_of(again)["config"] == str(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("c.yaml", "rnak: 3", "c.yaml: rnak is no setting of dpo; did you mean rank?"),
        ("c.yaml", "zzz: 3", "c.yaml: zzz is no setting of dpo; there are alpha, base, batch_size"),
        ("c.yaml", "config: other.yaml", "config is no setting of dpo"),
        ("c.yaml", "- a\n- b", "must hold a mapping from settings to values; got list"),
        ("c.yaml", "a: [", "cannot be read"),
        ("c.yaml", "rank: !!python/object/apply:os.getcwd []", "cannot be read: could not determine"),
        (
            "c.yaml",
            "tuning: {rank: 3}",
            "tuning must be a number, a text, or a list of them; got {'rank': 3}",
        ),
        ("c.json", "{", "cannot be read"),
        ("c.json", "[" * 9_000, "cannot be read: more than 64 lists or objects are inside each other"),
        ("c.json", '{"command": "s\\nt\\u2028"}', "is of the command s t; got dpo"),
        (
            "c.json",
            '{"rank": 1, "alpha": 2, "rank": 1}',
            "cannot be read: 'rank' stands twice; leave one out",
        ),
        ("c.yaml", "rank: 1\nalpha: 2\nrank: 1", "cannot be read: 'rank' stands twice; leave one out"),
        (
            "c.yaml",
            "a: &a [1]\nb: *a",
            "cannot be read: references (*name) are not read; write the value itself",
        ),
        ("c.yaml", "a: " + "[" * 2_000, "cannot be read: too many lists or mappings are inside each other"),
        ("c.yaml", "a: " + "x" * 100_000, "c.yaml cannot be read: a file of settings has at most 100,000"),
        (
            "c.yaml",
            "rank: 2026-11-12",
            "rank must be a number, a text, or a list of them; got datetime.date(2026",
        ),
        ("c.yaml", "rank: [!!binary aGk=]", "rank must be a number, a text, or a list of them; got [b'hi']"),
        ("c.json", '{"command": "sft"}', "is of the command sft; got dpo; run jaxrl-align sft"),
        ("c.toml", "", "must end in .yaml, .yml or .json"),
        ("absent/c.json", None, "is missing; check the path"),
    ],
)
def test_a_bad_file_is_refused(tmp_path, name, text, line):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError) as error:
        read(tmp_path / name)
    assert line in str(error.value)


def test_a_value_that_a_flag_cannot_take_is_refused(tmp_path, capsys):
    (tmp_path / "c.yaml").write_text("rank: many")
    with pytest.raises(SystemExit) as stop:
        read(tmp_path / "c.yaml", *NEEDED)
    assert stop.value.code == 2 and "--rank" in capsys.readouterr().err


def test_every_command_is_listed_and_has_help(road, capsys):
    road("--help")
    assert capsys.readouterr().out == overview() + "\n"
    for name, command in COMMANDS.items():
        assert f"  {name} " in overview()
        names = field_names(command.options)
        assert len(names) == len(set(names))
        with pytest.raises(SystemExit) as stop:
            road(f"{name} --help")
        said = capsys.readouterr().out
        assert stop.value.code == 0 and f"usage: jaxrl-align {name}" in said and "--model" in said + "--model"
    road("--version")
    assert capsys.readouterr().out.strip()


def test_unknown_commands_and_flags_are_refused(fails, road, capsys):
    assert fails("dop --model x") == (2, "error: dop is no command; did you mean dpo?")
    with pytest.raises(SystemExit) as stop:
        road("dpo --model m --data d --out o --rnak 3")
    assert stop.value.code == 2 and "--rank" in capsys.readouterr().err
