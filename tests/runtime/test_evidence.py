"""Results as files: verdicts, numbers as JSON has them, the command and the source they came from."""

import dataclasses
import json
import math
import shlex
import subprocess
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.runtime import Claim, Interval, MembersConfig, mesh, open_run, write_result
from jaxrl_align.runtime.cli import parse
from jaxrl_align.runtime.evidence import command_of, describe_machine, result_text, verdict_of
from jaxrl_align.runtime.source import source_commit

CLAIM = Claim("Ice floats.", ("A1", "B2"), 3)
GAIN = Interval(1.5, 1.25, 1.75, "t")


class Rates(NamedTuple):
    learning_rate: float = 1e-3
    clip: float = 0.2


@dataclasses.dataclass(frozen=True)
class Config(MembersConfig):
    """Of an experiment."""

    out: str = "runs/x"
    widths: tuple[int, ...] = (8, 16)
    modern: bool = False
    quick: bool = True
    text: str = "a"
    hparams: Rates = Rates()
    few: list[float] = dataclasses.field(default_factory=list)


@pytest.mark.parametrize(("cores", "text"), [({0, 1, 5}, "3 cores"), ({7}, "1 core")])
def test_a_machine_has_the_cores_that_the_process_may_use(cores, text, monkeypatch):
    """A run that is pinned to one core of many is one of one core: its sums are rounded so."""
    monkeypatch.setattr(mesh.os, "cpu_count", lambda: 64)
    monkeypatch.setattr(mesh.os, "sched_getaffinity", lambda pid: cores if pid == 0 else {0}, raising=False)
    assert f", {text}, " in describe_machine()["machine"]
    monkeypatch.delattr(mesh.os, "sched_getaffinity")
    assert ", 64 cores, " in describe_machine()["machine"]


def written(tmp_path, **changed):
    folder = open_run(tmp_path / "run", {})
    folder.write_json("a.png", 0)
    given = {
        "headline": {"gain [m]": GAIN},
        "checks": {"it floats": True},
        "tables": {},
        "figures": ["a.png"],
    }
    return write_result(folder, Config(seeds=3), CLAIM, **given | changed)


def test_a_result_is_what_was_found_and_how(tmp_path, capsys):
    cells = {
        "depth [m]": GAIN,
        "count": np.int64(3),
        "loss": jnp.float32(0.25),
        "gone": math.nan,
        "kind": "ice",
    }
    tables = {"seas": {"north": cells, "south": {"count": 2, "all": np.array([1.0, math.inf])}}}
    result = written(
        tmp_path, tables=tables, checks={"it floats": True, "it sinks": np.bool_(False)}, notes=["n"]
    )
    assert result == json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    interval = {"value": 1.5, "low": 1.25, "high": 1.75, "kind": "t"}
    north = {"depth [m]": interval, "count": 3, "loss": 0.25, "gone": None, "kind": "ice"}
    assert result["tables"] == {"seas": {"north": north, "south": {"count": 2, "all": [1.0, None]}}}
    assert result["headline"] == {"gain [m]": interval} and result["baselines"] == {}
    assert (result["claim"], result["rows"]) == ("Ice floats.", ["A1", "B2"])
    assert result["verdict"] == "holds in part" and result["checks"] == {"it floats": True, "it sinks": False}
    run = result["run"]
    assert (
        run["seeds"] == 3 and run["command"].endswith("test_evidence.py --seeds 3") and not run["continued"]
    )
    assert 0 <= run["seconds"] < 60 and run["versions"]["jax"]
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "verdict: it holds in part" in lines and "no it sinks" in lines and "note: n" in lines
    assert "depth [m] count loss gone kind all" in lines
    assert "north 1.5 [1.2, 1.8] 3 0.25 undefined ice" in lines and "south 2 1, undefined" in lines


def test_the_text_of_a_file_is_that_of_the_run(tmp_path, capsys):
    result = written(tmp_path, tables={"t": {"row": {"x": GAIN}}})
    again = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result_text(again) == result_text(result) and result_text(result) in capsys.readouterr().out


def test_seeds_may_have_another_name(tmp_path):
    assert written(tmp_path, seeds=12)["run"]["seeds"] == 12


def test_verdicts():
    assert verdict_of({"a": True, "b": True}) == "holds"
    assert verdict_of({"a": True, "b": False}) == "holds in part"
    assert verdict_of({"a": False}) == "does not hold"


def test_what_is_no_result_is_refused(tmp_path):
    for wrong in ({"checks": {}}, {"headline": {}}):
        with pytest.raises(ValueError, match="at least one check of its claim, and a headline"):
            written(tmp_path / str(wrong), **wrong)
    with pytest.raises(ValueError, match=r"has no figure b.png; draw it before"):
        written(tmp_path / "c", figures=["a.png", "b.png"])
    assert not (tmp_path / "c" / "run" / "result.json").exists()


def test_a_continued_run_says_so(tmp_path):
    open_run(tmp_path, {})
    assert open_run(tmp_path, {}, resume=True).continued


def test_the_command_is_read_back_as_the_configuration():
    hparams = Rates(learning_rate=3e-4)
    few = dict(widths=(4,), modern=True, quick=False, text="-a b", few=[0.5, 1234567.0, 0.00012345678])
    config = Config(out="elsewhere", seed=7, resume=True, hparams=hparams, **few)
    python, script, *flags = shlex.split(command_of(config))
    assert (python, script) == ("python", "runtime/test_evidence.py")
    assert parse(Config, flags) == dataclasses.replace(config, out="runs/x", resume=False)
    assert command_of(Config()) == "python runtime/test_evidence.py"


def test_the_commit_is_that_of_the_beginning(tmp_path, monkeypatch):
    """A run may last while its source goes on."""
    monkeypatch.setattr("jaxrl_align.runtime.folder.source_commit", lambda: "first")
    folder = open_run(tmp_path / "run", {})
    monkeypatch.setattr("jaxrl_align.runtime.folder.source_commit", lambda: "later")
    result = write_result(folder, Config(), CLAIM, headline={"a": GAIN}, checks={"b": True}, tables={})
    assert result["run"]["commit"] == "first"
    assert open_run(tmp_path / "other", {}).began.commit == "later"


def test_the_commit_is_that_of_a_checkout_which_tracks_the_file(tmp_path):
    def git(*words):
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        subprocess.run(("git", *author, "-C", str(tmp_path), *words), check=True, capture_output=True)

    def commit():
        source_commit.cache_clear()
        return source_commit(file)

    file = tmp_path / "a.py"
    file.write_text("1", encoding="utf-8")
    assert commit() is None
    git("init")
    assert commit() is None
    git("add", "a.py")
    git("commit", "-m", "a")
    found = commit()
    assert len(found) == 40
    (tmp_path / "b.py").write_text("untracked", encoding="utf-8")
    assert commit() == found
    file.write_text("2", encoding="utf-8")
    assert commit() == found + "+"
