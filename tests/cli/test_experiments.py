"""Experiments are found, described, run and continued; scripts of a few lines stand in for them."""

import dataclasses
import gc
import inspect
import json
import runpy
import sys
import types
from pathlib import Path
from typing import Literal

import pytest

from jaxrl_align.cli import run_command
from jaxrl_align.cli.experiments import catalogue, launching
from jaxrl_align.runtime import cli
from jaxrl_align.runtime.cli import minutes_text

SCRIPTS = {
    "tiny_claim": '''"""A run of nothing."""

from dataclasses import dataclass, field
from typing import NamedTuple

from jaxrl_align.runtime import cli
from jaxrl_align.runtime.folder import RunConfig


class Claim(NamedTuple):
    text: str
    rows: tuple = ()
    minutes: float = 1


CLAIM = Claim("What is written "
    "stays. It is read again.", minutes=0.5)


@dataclass(frozen=True)
class Inner:
    """Of the model."""

    width: int = 3
    """Columns."""


@dataclass(frozen=True)
class Config(RunConfig):
    """The settings."""

    out: str = "runs/tiny"
    rates: tuple[float, ...] = (0.1, 0.2)
    """A second."""
    inner: Inner = field(default_factory=Inner)
    """More of them."""


def main(config):
    """Fail at first."""
    folder = config.open_folder()
    done = folder.path / "done.txt"
    if not config.resume:
        raise KeyboardInterrupt(2)
    done.write_text(f"{config.rates} {config.inner.width}")


if __name__ == "__main__":
    cli.main(Config, main)
''',
    "ppo_cartpole": '''"""Words."""
CLAIMS = {
    "pole": Claim("It does balance the pole.", ("B16",), 2),
    "cart": Claim(text="And the cart.", minutes=3),
    "rail": Claim(text="Not as it comes.", minutes=50),
}
class Config:
    parts: tuple[str, ...] = ("pole", "cart")
def main(config): pass
''',
    "some_tool": '"""Makes a thing of another."""\ndef main(config): pass\n',
    "tiny_part": '"""A part of `tiny_claim.py`."""\n'
    'from jaxrl_align.runtime import cli\nif __name__ == "__main__":\n    cli.point_to("tiny_claim")\n',
}


@pytest.fixture
def scripts(tmp_path, monkeypatch):
    """A folder of experiments, and a working directory."""
    folder = tmp_path / "scripts"
    folder.mkdir()
    for name, text in SCRIPTS.items():
        (folder / f"{name}.py").write_text(text, encoding="utf-8")
    monkeypatch.setattr(catalogue, "find_scripts", lambda: folder)
    monkeypatch.setattr(launching, "find_scripts", lambda: folder)
    monkeypatch.delenv("JAXRL_ALIGN_DEBUG", raising=False)
    monkeypatch.chdir(tmp_path)
    yield folder
    for name in SCRIPTS:
        sys.modules.pop(name, None)


def fails(*argv):
    with pytest.raises(SystemExit) as stop:
        run_command(list(argv))
    code = stop.value.code
    del stop
    gc.collect()  # the traceback held the run's folder, and so its lock
    return code


def test_list_shows_claims_minutes_and_tools(scripts, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    run_command(["list"])
    lines = capsys.readouterr().out.splitlines()
    assert "ppo_cartpole      5  It does balance the pole." in lines
    assert "tiny_claim      0.5  What is written stays." in lines
    assert lines.index("some_tool            Makes a thing of another.") > lines.index(
        "tool            min  what it does"
    )
    assert not any("tiny_part" in line for line in lines)
    run_command(["list", "BALANCE"])
    out = capsys.readouterr().out
    assert "ppo_cartpole" in out and "tiny_claim" not in out and "some_tool" not in out
    assert fails("list", "nowhere") == 2
    assert capsys.readouterr().err == "error: no experiment has nowhere in its name or claim\n"


def test_the_help_of_a_run_starts_with_its_claim_and_minutes(scripts, capsys):
    assert fails("run", "tiny_claim", "--help") == 0
    out = capsys.readouterr().out
    assert out.startswith("usage: jaxrl-align run tiny_claim")
    claim = "What is written stays. It is read again. Takes less than a minute on two CPU cores."
    assert out.split("\n\n")[1].replace("\n", " ") == claim and "The settings." in out


def test_the_help_of_several_parts_is_of_those_that_run_as_it_comes(monkeypatch, capsys):
    @dataclasses.dataclass(frozen=True)
    class Config:
        """The settings."""

        parts: tuple[str, ...] = ("pole",)

    claim = lambda text, minutes: types.SimpleNamespace(text=text, minutes=minutes)
    parted = types.ModuleType("parted")
    parted.__file__ = __file__
    parted.CLAIMS = {"pole": claim("It stands.", 3), "rail": claim("Not this.", 50)}
    monkeypatch.setitem(sys.modules, "parted", parted)
    Config.__module__ = "parted"
    with pytest.raises(SystemExit):
        cli.main(Config, print, ["--help"])
    assert "It stands. Takes about 3 minutes on two CPU cores." in " ".join(capsys.readouterr().out.split())


def test_what_is_mistyped_is_corrected(scripts, capsys):
    assert fails("run", "tiny_clam") == 2
    assert capsys.readouterr().err == "error: tiny_clam is no experiment; did you mean tiny_claim?\n"
    assert fails("rnu", "tiny_claim") == 2
    assert "rnu is no command; did you mean run?" in capsys.readouterr().err
    assert fails("run", "tiny_claim", "--rtes", "1") == 2
    assert "--rates" in capsys.readouterr().err
    assert fails("run") == 2 and "jaxrl-align list" in capsys.readouterr().err


def test_an_interrupted_run_is_continued_from_its_folder_alone(scripts, capsys):
    assert fails("run", "tiny_claim.py", "--rates", "0.5", "--inner.width", "7", "--out", "a") == 130
    assert json.loads(Path("a/made_by.json").read_text()) == {"experiment": "tiny_claim"}
    Path("a").rename("b")
    run_command(["resume", "b"])
    assert Path("b/done.txt").read_text() == "(0.5,) 7"
    Path("b/made_by.json").unlink()
    Path("b/done.txt").unlink()
    assert fails("resume", "b") == 2
    assert "b does not say which experiment it is of (made_by.json: " in capsys.readouterr().err
    run_command(["resume", "b", "--experiment", "tiny_claim"])
    assert Path("b/done.txt").exists() and Path("b/made_by.json").exists()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ('{"rates": [1.0], "depth": 3}', "depth is no setting of this version; run it anew"),
        ('{"inner": {"height": 3}}', "height is no setting of this version"),
        ('{"inner": 3}', "3 is no setting of this version"),
        ("[1", "is no JSON"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_a_line(scripts, capsys, config, says):
    Path("a").mkdir()
    Path("a/config.json").write_text(config)
    Path("a/made_by.json").write_text('{"experiment": "tiny_claim"}')
    assert fails("resume", "a") == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1 and "config.json" in err
    assert fails("resume", "nowhere") == 2
    assert "nowhere holds no run (config.json is missing)" in capsys.readouterr().err


def test_a_training_command_is_continued_with_its_own_flags(scripts):
    Path("a/run").mkdir(parents=True)
    Path("a/run/config.json").write_text('{"command": "dpo", "out": "elsewhere"}')
    called = []
    for folder, out in (("a", "a"), ("a/run", "a")):
        launching.run_resume(launching.Resume(folder), [], called.append)
        config = str(Path("a/run/config.json"))
        assert called.pop() == ["dpo", "--config", config, "--out", out, "--resume"]


def test_a_run_folder_is_known_by_whatever_name_it_is_reached(scripts, tmp_path, monkeypatch):
    inner = tmp_path / "a" / "run"
    (inner / "best").mkdir(parents=True)
    (inner / "config.json").write_text('{"command": "dpo"}')
    (tmp_path / "latest").symlink_to(inner)
    called = []
    for place, folder in ((tmp_path, "latest"), (inner, "."), (inner / "best", ".."), (inner.parent, "run")):
        monkeypatch.chdir(place)
        launching.run_resume(launching.Resume(folder), [], called.append)
        assert Path(called.pop()[4]).resolve() == inner.parent, folder
    inner.rename(inner.with_name("old"))
    with pytest.raises(ValueError, match="must lie in a folder called run; got .*old; rename it"):
        launching.run_resume(launching.Resume(str(inner.with_name("old"))), [], called.append)
    assert not called


def test_a_part_says_which_experiment_it_is_of(scripts, monkeypatch, capsys):
    said = "tiny_part.py is a part of tiny_claim.py, and no program; run: jaxrl-align run tiny_claim --help\n"
    for flags, code in ((["-h"], 0), ([], 2)):
        monkeypatch.setattr(sys, "argv", [str(scripts / "tiny_part.py"), *flags])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(sys.argv[0], run_name="__main__")
        assert stop.value.code == code and tuple(capsys.readouterr()) == ((said, "") if flags else ("", said))


def test_a_script_that_is_no_python_or_another_module_is_refused(scripts):
    (scripts / "tiny_claim.py").write_text("def main(:\n")
    with pytest.raises(ValueError, match="tiny_claim.py is no Python script"):
        catalogue.read_experiments(scripts)
    (scripts / "json.py").write_text("def main(config): pass\n")
    with pytest.raises(ValueError, match="json is imported from .*; run it as python"):
        catalogue.import_script(scripts / "json.py")


@dataclasses.dataclass(frozen=True)
class Odd:
    pair: tuple[int, tuple[str, ...]] = (1, ("a",))
    maybe: tuple[int, ...] | None = None
    word: Literal["a", "b"] | None = "a"
    plain: tuple = ()
    table: dict[str, int] = dataclasses.field(default_factory=dict)


def test_settings_come_back_as_they_were():
    for odd in (Odd(), Odd((2, ()), (3, 4), None, (1, "x"), {"a": 1})):
        values = json.loads(json.dumps(dataclasses.asdict(odd)))
        assert launching.rebuild(Odd, values) == odd


def test_claims_in_words():
    assert catalogue.first_sentence("A of 3.5 e.g. b (J. of X). Then") == "A of 3.5 e.g. b (J. of X)."
    times = {0.5: "less than a minute", 1: "about 1 minute", 90: "about 1.5 hours", 60: "about 60 minutes"}
    assert {minutes: minutes_text(minutes) for minutes in times} == times


def test_the_real_ones_are_found_and_all_claim_something():
    folder = catalogue.find_scripts()
    found = catalogue.read_experiments(folder)
    assert len(found) > 35 and (folder / catalogue.LANDMARK).is_file()
    assert found["ppo_cartpole"].claim.startswith("Proximal policy optimisation with a clip")
    assert found["in_context"].minutes > 20 and "fits a function" in found["in_context"].claim
    assert found["instruction_tuning"].minutes == 10  # of the part that it runs as it comes
    for experiment in found.values():
        assert len(first_line := catalogue.first_sentence(experiment.claim)) > 20, experiment
        assert not first_line[0].islower(), experiment
    assert {"complete", "import_gguf"} <= {x.name for x in found.values() if x.tool}


def test_a_wheel_holds_the_experiments_inside_the_package(tmp_path, monkeypatch):
    installed = tmp_path / "jaxrl_align"
    (installed / "experiments").mkdir(parents=True)
    monkeypatch.setattr(catalogue, "PACKAGE", installed)
    with pytest.raises(ValueError, match="no experiments lie in or beside"):
        catalogue.find_scripts()
    (installed / "experiments" / catalogue.LANDMARK).write_text("")
    assert catalogue.find_scripts() == installed / "experiments"
    root = Path(inspect.getfile(run_command)).parents[2]
    assert '"jaxrl_align.experiments": "experiments"' in (root / "setup.py").read_text()
