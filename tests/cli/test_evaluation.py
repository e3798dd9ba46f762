"""`jaxrl-align evaluate`: a table, files of results, and errors in one line."""

import functools
import json

import jax
import numpy as np
import pytest

from jaxrl_align import nets
from jaxrl_align.cli import evaluation
from jaxrl_align.evaluate import OptionScores, ask_items, load_task, option_probs, run_task
from jaxrl_align.runtime.huggingface import load_model, save_adapter

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


@pytest.fixture(scope="module", autouse=True)
def one_base():
    """Read every model once, so that all commands share its programs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "load_base", functools.cache(evaluation.load_base))
        yield


@pytest.fixture
def equal_scores(monkeypatch):
    """Every option is as likely as the others, and no model is asked."""
    equal = lambda count: OptionScores(-np.ones(count), np.zeros(count, bool))
    score = lambda params, items, prefix=(): [equal(len(item.options)) for item in items]
    monkeypatch.setattr(ask_items, "_make_scorer", lambda *_: score)


def test_every_task_count_of_examples_and_rule_is_a_row_and_a_file(
    road, task, tmp_path, capsys, equal_scores
):
    tasks = f"{task},{task.parent / 'order.toml'}"
    flags = ["--tasks", tasks, "--shots", "0,1", "--rule", "raw,characters", "--limit", "3"]
    road("evaluate --model tiny", *flags, "--out", tmp_path / "one")
    shown = capsys.readouterr().out
    files = {path.name for path in (tmp_path / "one").iterdir()}
    assert files == {
        "results.json",
        *(f"colours_{k}_{rule}.json" for k in (0, 1) for rule in ("raw", "characters")),
        "order_0_raw.json",
        "order_0_characters.json",
    }
    summary = json.loads((tmp_path / "one" / "results.json").read_text())
    assert len(summary) == 6 and summary[0]["metrics"]["accuracy"]["kind"] == "wilson"
    assert "test items kept out of the examples" in shown and shown.count("value [95%]") == 1
    first = json.loads((tmp_path / "one" / "colours_1_raw.json").read_text())
    assert len(first["items"]) == 3 and {"parameters", "metrics", "excluded"} < set(first)


def test_a_report_stands_beside_its_result(road, task, tmp_path, capsys, monkeypatch):
    quick = functools.partial(evaluation.report_task, draws=20)
    monkeypatch.setattr(evaluation, "report_task", quick)
    for folder in ("one", "two"):
        road("evaluate --model tiny --report --limit 3 --shots 1 --tasks", task, "--out", tmp_path / folder)
    shown = capsys.readouterr().out
    one, two = tmp_path / "one", tmp_path / "two"
    names = {path.name for path in one.iterdir()}
    assert names == {
        "results.json",
        *(f"colours_1_raw{kind}.json" for kind in ("", "_report", "_efficiency")),
    }
    for name in names - {"colours_1_raw_efficiency.json"}:
        assert (one / name).read_bytes() == (two / name).read_bytes()
    read = {name: json.loads((one / name).read_text()) for name in names}
    found, (result,) = read["colours_1_raw_report.json"], read["results.json"]
    fields = ["items", "accuracy", "calibration", "robustness", "fairness", "bias", "toxicity"]
    assert list(found.pop("report")) == fields and found == result
    report = json.loads((one / "colours_1_raw_report.json").read_text())["report"]
    assert report["accuracy"]["accuracy"] == {**result["metrics"]["accuracy"], "note": ""}
    assert report["robustness"]["worst case"]["value"] <= report["accuracy"]["accuracy"]["value"]
    items = read["colours_1_raw.json"]["items"]
    sure = [max(option_probs(item["log_probs"])) for item in items]
    distance = abs(np.mean([item["right"] for item in items]) - np.mean(sure))
    assert report["calibration"]["error, 1 bin"]["value"] == pytest.approx(distance, abs=1e-5)
    assert report["bias"]["gender"]["reason"] == "no text was generated"
    assert read["colours_1_raw_efficiency.json"]["tokens a second"]["value"] > 0
    assert shown.count("colours_1_raw: 3 items, 95% intervals") == 2 and "\nrobustness   worst case" in shown


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


@pytest.mark.slow
def test_an_adapter_is_laid_over_its_base(road, task, workshop, tmp_path):
    model = load_model(workshop / "tiny")
    part, constants = nets.init_lora(jax.random.key(0), model.params, rank=2, alpha=4)
    part = jax.tree.map(lambda leaf: leaf + 0.5, part)
    base = nets.overlay(model.params, constants)
    save_adapter(tmp_path / "adapter", model.config, base, part, base_name=str(workshop / "tiny"))
    scores = {}
    for name in (str(tmp_path / "adapter"), "tiny"):
        road("evaluate --model", name, "--tasks", task, "--out", tmp_path / "out")
        scores[name] = [
            i["log_probs"] for i in json.loads((tmp_path / "out/colours_0_raw.json").read_text())["items"]
        ]
    lm = nets.make_transformer(model.config)
    ours = run_task(load_task(task), lm, nets.merge(nets.overlay(base, part)), model.tokenizer)
    np.testing.assert_allclose(
        scores[str(tmp_path / "adapter")], [i.log_probs for i in ours.items], atol=1e-4
    )
    assert not np.allclose(*scores.values(), atol=1e-2)
