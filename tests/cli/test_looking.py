"""Runs are drawn, compared and reported: from folders of a few lines, and one that its users made hostile."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from jaxrl_align.cli import run_command
from jaxrl_align.cli.experiments import pages
from jaxrl_align.cli.experiments.run_folders import by_member
from jaxrl_align.runtime import Claim, write_result
from jaxrl_align.runtime.folder import RunConfig, open_run
from jaxrl_align.runtime.metrics import append_metrics
from jaxrl_align.runtime.statistics import Interval

EVIL = "<script>alert('x')</script>\" onload='&"

ODD = "<i>\" onerror='x"
"""Part of a file's name."""


def write_run(path, config, **history):
    folder = open_run(path, config)
    append_metrics(path / "metrics.jsonl", 0, {name: np.asarray(x) for name, x in history.items()})
    return folder


@pytest.fixture(autouse=True)
def runs(tmp_path, monkeypatch):
    """Three runs; the first two share their seeds."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("JAXRL_ALIGN_DEBUG", raising=False)
    how = {"seed": 1, "seeds": 3, "resume": False}
    rows = np.array([[5.0, 5.0, 5.0], [1.0, 2.0, 6.0], [3.0, 4.0, 8.0]])
    write_run(tmp_path / "a", {**how, "rate": 0.1, "net": {"width": 8}}, loss=rows, kl=np.zeros(3))
    write_run(tmp_path / "b", {**how, "rate": 0.2, "net": {"width": 8}, "resume": True}, loss=rows + 1)
    write_run(tmp_path / "c", {**how, "seed": 2, "rate": 0.1, "deep": 1}, loss=rows[:, 0] * 2)
    return tmp_path


def fails(capsys, *argv):
    with pytest.raises(SystemExit) as stop:
        run_command(list(argv))
    assert stop.value.code == 2
    return capsys.readouterr().err


def test_compare_shows_final_values_paired_differences_and_settings(capsys):
    run_command(["compare", "a", "b", "c"])
    lines = [re.split(r"  +", line.strip()) for line in capsys.readouterr().out.splitlines() if line]
    assert lines[0] == ["loss", "final value", "members", "steps", "less the first, paired"]
    assert lines[1] == ["a", "5 [-2, 12]", "3", "3"]  # 3, 4, 8: 5 +- 4.303 x sqrt(7 / 3)
    assert lines[2] == ["b", "6 [-1, 13]", "3", "3", "1 [1, 1]"]
    assert lines[3] == ["c", "6", "1", "3"]
    assert lines[4] == ["settings that differ", "a", "b", "c"]
    assert lines[5:] == [
        ["seed", "1", "1", "2"],
        ["rate", "0.1", "0.2", "0.1"],
        ["net.width", "8", "8"],
        ["deep", "1"],
    ]


def test_compare_takes_metrics_and_the_mean_of_the_last_steps(capsys):
    run_command(["compare", "c", "--metrics", "loss", "--last", "2"])
    out = capsys.readouterr().out
    assert re.search(r"c +4 +1 +3", out) and "differ" not in out
    write_run(Path("d"), {"seed": 2, "seeds": 3}, loss=np.ones((3, 3)))
    run_command(["compare", "a", "d"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split() for line in lines if line.startswith("  d")] == [["d", "1", "3", "3"]]
    run_command(["compare", "a", "a/"])
    assert "no setting differs" in capsys.readouterr().out
    said = fails(capsys, "compare", "a", "b", "--metrics", "kl")
    assert said == "error: kl is no metric of b; there are loss\n"
    assert "did you mean loss?" in fails(capsys, "compare", "b", "--metrics", "los")
    assert "--last must be at least 1; got 0" in fails(capsys, "compare", "a", "--last", "0")
    assert "nowhere is no folder" in fails(capsys, "compare", "a", "nowhere")


def test_plot_draws_every_run_and_stage(runs, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr("jaxrl_align.cli.experiments.comparing.save_curves", lambda *a, **k: seen.append(a))
    write_run(runs / "staged" / "one", {}, loss=np.arange(3.0))
    write_run(runs / "staged" / "two", {}, loss=np.arange(4.0))
    run_command(["plot", "a", "staged", "--first", "1", "--out", "new/p.png"])
    ((path, x, y, curves),) = seen
    assert (path.as_posix(), x, y) == ("new/p.png", "step", "loss")
    assert list(curves) == ["a", "staged/one", "staged/two"]
    assert curves["a"][0].tolist() == [2, 3] and curves["a"][1].shape == (2, 3)
    assert curves["staged/two"][1].tolist() == [1, 2, 3]
    assert capsys.readouterr().out == "new/p.png shows loss of 3 runs\n"
    assert "must be a .png" in fails(capsys, "plot", "a", "--out", "a.pdf")
    assert "--first must be below the 3 steps of a; got 3" in fails(capsys, "plot", "a", "--first", "3")
    (runs / "empty").mkdir()
    assert "empty holds no run (metrics.jsonl is missing)" in fails(capsys, "plot", "empty")
    write_run(runs / "odd", {}, mine=np.zeros(2))
    assert "say which metric; odd share mine" in fails(capsys, "plot", "odd")


def test_a_run_without_a_whole_row_is_said_to_have_none(runs, capsys):
    (runs / "begun").mkdir()
    (runs / "begun" / "metrics.jsonl").write_text('{"step": 0, "lo')
    for command in ("plot", "compare"):
        said = fails(capsys, command, "begun")
        assert said == (
            "error: no run has a whole row of metrics yet (metrics.jsonl is empty); let it take a step\n"
        )


def test_plot_shows_every_name_as_it_is(runs, monkeypatch):
    figures = []
    save = lambda figure, path: figures.append(figure) or figure.draw_without_rendering()
    monkeypatch.setattr("jaxrl_align.runtime.plots.save_figure", save)
    for name in ("_first", "x$^$", "1$", "$a_1$"):
        write_run(runs / name, {}, **{"$mine$": np.arange(3.0)})
    run_command(["plot", "_first", "x$^$", "1$", "$a_1$", "--metric", "$mine$"])
    (legend,) = figures[0].legends
    names = {text.get_text().replace(r"\$", "$") for text in legend.get_texts()}
    assert names == {"./_first", "x$^$", "1$", "$a_1$"}


def test_a_metric_of_several_numbers_a_member_is_their_mean():
    values = np.arange(12.0).reshape(2, 3, 2)
    np.testing.assert_array_equal(by_member(values), values.mean(2))
    assert by_member(np.arange(2)).shape == (2,)


class Reader(HTMLParser):
    """The tags of a page, and its text."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "href")]
        assert not any(name.startswith("on") for name, _ in attributes)

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("form", ["ours", "own", "none"])
def test_a_report_is_one_page_without_scripts(runs, capsys, form):
    from dataclasses import dataclass

    @dataclass(frozen=True)
    class Config(RunConfig):
        out: str = "evil"
        words: str = EVIL

    folder = Config(out=f"evil{ODD}").open_folder()
    history = {EVIL: np.ones((5, 3)), "loss": np.arange(5.0), "never": np.full(5, np.nan)}
    append_metrics(folder.path / "metrics.jsonl", 0, history)
    (folder.path / f"figure & <b>{ODD}.png").write_bytes(b"\x89PNG")
    samples = [{"step": 1, "prompt": EVIL, "completion": f"{EVIL} then"}]
    (folder.path / "samples.jsonl").write_text("\n".join(map(json.dumps, samples)))
    folder.write_json("held_out.json", {"0": {EVIL: 2.0}, EVIL: {"loss": EVIL}})
    if form == "ours":
        write_result(
            folder,
            Config(),
            Claim(EVIL),
            headline={EVIL: Interval(1.0, 0.5, 1.5, "t")},
            checks={EVIL: True, "also": False},
            tables={EVIL: {EVIL: {EVIL: EVIL}}},
            notes=[EVIL],
        )
    elif form == "own":
        folder.write_json("result.json", {EVIL: [EVIL], "claim": {"deep": EVIL}})
    capsys.readouterr()
    run_command(["report", str(folder.path)])
    assert capsys.readouterr().out.startswith(f"{folder.path}/report.html: ")
    text = (folder.path / "report.html").read_text(encoding="utf-8")
    page = Reader(text)
    assert not {"script", "b", "i"} & set(page.tags) and "<script" not in text
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    assert (
        "script-src" not in text
        and "default-src 'none'" in text
        and "http" not in text.replace("http-equiv", "")
    )
    assert page.tags.count("svg") == 2 and "never: never finite" in page.text
    assert page.text.count(f"{EVIL} then") == 1 and f"words{EVIL}" in page.text.replace("\n", "")
    assert f"figure & <b>{ODD}.png" in page.text and "test_looking" in page.text
    if form == "ours":
        assert "The claim holds in part." in page.text and "1.0 [0.5, 1.5]" in page.text
        assert "Environment" in page.text and "versions.jax" in page.text
    assert ("Result" in page.text) == (form != "none")


def test_a_report_names_the_stages_of_a_run(runs):
    for stage in ("one", "two"):
        write_run(runs / "staged" / stage, {}, loss=np.arange(3.0))
    run_command(["report", "staged"])
    run_command(["report", "a", "--out", "pages/a.html"])
    staged, single = (Path(name).read_text() for name in ("staged/report.html", "pages/a.html"))
    assert "<h3>one</h3>" in staged and "<h3>two</h3>" in staged and "<h3>" not in single


def test_a_report_of_the_working_directory_has_its_name(runs, monkeypatch):
    monkeypatch.chdir(runs / "a")
    run_command(["report", "."])
    assert "<h1>a</h1>" in Path("report.html").read_text()


def test_damage_in_a_report_is_said_in_a_line(runs, capsys):
    for name, text in (("samples.jsonl", "[1]"), ("held_out.json", '{"a": 1}'), ("result.json", "{")):
        (runs / "a" / name).write_text(text)
        said = fails(capsys, "report", "a")
        assert f"a/{name} is damaged (" in said and said.count("\n") == 1
        (runs / "a" / name).unlink()


def test_curves_stay_in_their_frame():
    rng = np.random.default_rng(0)
    for values in (rng.normal(size=(1_000, 4)), np.zeros(3), np.array([1.0]), rng.normal(size=(7, 1))):
        text = pages.curve("x", values)
        points = [float(x) for part in re.findall(r'points="([^"]*)"', text) for x in re.split("[ ,]", part)]
        assert min(points) >= 0 and max(points[::2]) <= pages.WIDTH and max(points[1::2]) <= pages.HEIGHT
        assert len(points) < 3_000
    assert "3 after 3 steps; from 1 to 3" in pages.curve("x", np.array([1.0, 2.0, 3.0]))


def test_a_caption_is_of_all_steps_not_of_those_that_are_drawn():
    values = np.zeros(1_000)
    values[333], values[998:] = 50.0, (3.0, np.nan)
    assert "3 after 999 steps; from 0 to 50" in pages.curve("x", values)
    values[:] = np.nan
    values[7] = 2.0
    assert "2 after 8 steps; from 2 to 2" in pages.curve("x", values)
