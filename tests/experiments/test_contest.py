"""Contests of the benchmarks, their floors, the run of all of them, and the page that is made of it."""

import dataclasses
import importlib
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from jaxrl_align.nets.transformer import TransformerConfig
from tests.experiments.loading import load

BENCHMARKS = str(Path(__file__).parents[2] / "experiments" / "benchmarks")
RIVAL = {"name": "peer", "rate": 50.0, "times": 2.0, "low": 1.5, "high": 2.5}
ROW = {"what": "runs", "unit": "steps/s", "rate": 12345.0, "rivals": [RIVAL], "floor": 24690.0}
OWN = ROW | {"what": "alone", "rivals": [RIVAL | {"name": "ours, slower"}], "floor": None}
RUN = {
    "rounds": 3,
    "seconds": 120,
    "commit": "0123456789abcdef",
    "machine": "Linux",
    "versions": {"jax": "1"},
}
RECORD = {"replay": {"rows": [ROW, OWN], "run": RUN | {"peers": {"torch": "2"}}}}
HOST = {"gflop_s": 280, "read_gb_s": 17.5, "wake_us": 38.0}
DEVICE = {
    "part": "rlhf",
    "what": "32 runs by vmap",
    "value": 0.0745,
    "unit": "s a step",
    "ratio": 5.2,
    "note": "at once",
    "device": "NVIDIA H200",
    "versions": {"jax": "0.11"},
    "commit": "fedcba9876543210",
}


@pytest.fixture(scope="module")
def bench():
    sys.path.insert(0, BENCHMARKS)
    yield importlib.import_module
    sys.path.remove(BENCHMARKS)
    for name in ("peers", "contest", "floors", "host", "run_all"):  # names that others may want
        sys.modules.pop(name, None)


def side(rates, called=None, name=None):
    rates = iter(rates)

    def measure():
        if called is not None:
            called.append(name)
        return next(rates)

    return measure


def test_a_contest_takes_ratios_within_rounds_and_turns_the_order(bench, capsys):
    contest, called = bench("contest"), []
    ours, one, two = (
        side(rates, called, name)
        for name, rates in {"a": [4, 9, 8], "b1": [2, 1, 2], "b2": [1, 3, 4]}.items()
    )
    before = len(contest.ROWS)
    row = contest.contest("a run", "steps/s", {"ours": ours, "peer": [one, two]}, 3, floor=16.0)
    assert called == ["a", "b1", "b2", "b1", "b2", "a", "a", "b1", "b2"]
    assert row.rate == 8 and row.rivals == (contest.Rival("peer", 3.0, 2.0, 2.0, 3.0),)  # 4/2, 9/3, 8/4
    assert contest.ROWS[before:] == [row]
    assert (
        capsys.readouterr().out
        == "a run: 8 steps/s, 50% of the floor's 16; peer 3: 2.00 times [2.00, 3.00]\n"
    )


def test_a_peer_without_an_interpreter_is_left_out(bench, capsys):
    with bench("contest").rivals("", "trl_dpo", name="trl", flag="peers") as others:
        assert others == {}
    assert "trl_dpo is left out, give --peers PYTHON" in capsys.readouterr().out


def test_rows_are_written_where_they_are_asked_for(bench, tmp_path, monkeypatch):
    contest, replay = bench("contest"), bench("rollout")
    monkeypatch.setattr(contest, "ROWS", [])
    path = tmp_path / "rows.json"
    flags = ["--envs", "CartPole-v1", "--num-envs", "2", "--steps", "3", "--rounds", "2", "--rows", str(path)]
    monkeypatch.setattr(sys, "argv", ["rollout.py", *flags])
    contest.run(replay.Config, replay.main)
    (row,) = json.loads(path.read_text())
    assert row["unit"] == "env steps/s" and row["rivals"][0]["name"] == "a loop around gymnax's step"
    assert (
        row["rate"] > 0 and row["rivals"][0]["low"] <= row["rivals"][0]["times"] <= row["rivals"][0]["high"]
    )


def test_floors_count_what_a_transformer_does(bench):
    floors = bench("floors")
    gpt2 = TransformerConfig(10, width=4, layers=2, heads=2, context=8)
    assert floors.count_weights(gpt2) == 2 * 12 * 4 * 4 + 10 * 4  # 12 width^2 a layer, and the logits
    grouped = TransformerConfig(
        10,
        width=4,
        layers=1,
        heads=2,
        context=8,
        key_value_heads=1,
        feed_forward="swiglu",
        feed_forward_width=6,
    )
    # Queries and output 4 x 4, key and value 4 x 2, three matrices of 4 x 6.
    assert floors.count_weights(grouped) == 2 * 16 + 2 * 8 + 3 * 24 + 40
    assert floors.token_flops(gpt2, 3) == 2 * (384 + 40) + 4 * 4 * 3 * 2
    assert floors.count_cached(grouped, 5) == 2 * 2 * 5
    work = floors.generation_work(gpt2, batch=3, prompt=2, new=4)
    reading = 2 * (2 * (384 + 40) + 4 * 4 * 1.5 * 2) - 2 * 1 * 40  # logits of the last token alone
    assert work.flops == (3 * reading, 3 * 3 * (2 * 424 + 4 * 4 * 4 * 2)) and work.rows == (6, 3)
    assert work.moved == (1696, 3 * (1696 + 3 * 4 * 2 * 4 * 2 * 4))
    assert floors.floor(gpt2, floors.Work((1e6,), (2,), (1e3,)), 4096) > 0  # by rates that this machine has
    training = floors.training_work(gpt2, batch=2, length=3)
    assert training.flops == (3 * 4 * (848 + 32 * 1.5),) and training.moved == (16960.0,)


def test_all_benchmarks_get_the_peers_that_they_name(bench):
    run_all = bench("run_all")
    config = run_all.Config(text="T", ppo="P", rejax="R", rounds=2)
    told = run_all.command_of("alignment", config)
    assert told[1:] == ["--rounds", "2", "--peers", "T", "--ppo-peers", "P"]
    assert run_all.command_of("rl", config)[3:] == ["--rejax", "R"]  # purejaxrl needs its folder too
    config = run_all.Config(rejax="R", purejaxrl_folder="F")
    assert run_all.command_of("rl", config)[3:] == [
        "--rejax", "R", "--purejaxrl", "R", "--purejaxrl-folder", "F"
    ]  # fmt: skip
    assert run_all.peer_versions("rl", run_all.Config(rejax=sys.executable))["jax"]
    for name, options in run_all.PEERS.items():
        fields = bench(name).Config.__dataclass_fields__
        assert {"rounds", "rows", *options} <= set(fields), name


def test_a_benchmark_that_fails_keeps_the_rows_of_the_others(bench, tmp_path, monkeypatch):
    run_all = bench("run_all")
    path = tmp_path / "benchmarks.json"
    path.write_text(json.dumps({"dqn": RECORD["replay"]}))

    really = run_all.subprocess.run

    def execute(words, **options):
        if words[0] != sys.executable:
            return really(words, **options)
        if words[1].endswith("dqn.py"):
            return SimpleNamespace(returncode=1)
        Path(words[words.index("--rows") + 1]).write_text(json.dumps([ROW]))
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(run_all.subprocess, "run", execute)
    monkeypatch.setattr(run_all, "describe_host", lambda: HOST)
    with pytest.raises(SystemExit, match="dqn ended with 1; the rows of these are as they were"):
        run_all.main(run_all.Config(only=("dqn", "replay"), rounds=3, record=str(path)))
    record = json.loads(path.read_text())
    assert list(record) == ["dqn", "replay"] and record["dqn"] == RECORD["replay"]
    assert record["replay"]["rows"] == [ROW] and record["replay"]["run"]["rounds"] == 3
    assert path.with_suffix(".png").exists()
    assert record["replay"]["run"]["host"] == HOST
    with pytest.raises(ValueError, match="only must name .*; got nothing"):
        run_all.main(run_all.Config(only=("nothing",), record=str(path)))


def test_another_hosts_rows_go_beside_those_of_record(bench, tmp_path, monkeypatch):
    run_all = bench("run_all")
    path, there = tmp_path / "benchmarks.json", RECORD["replay"] | {"rows": [OWN]}
    path.write_text(json.dumps(RECORD))
    monkeypatch.setattr(run_all, "measure", lambda name, config: there)
    config = run_all.Config(only=("replay",), record=str(path), elsewhere=True)
    run_all.main(config)
    assert json.loads(path.read_text()) == {"replay": RECORD["replay"] | {"elsewhere": there}}
    run_all.main(config)  # a second time replaces the first
    assert json.loads(path.read_text())["replay"]["elsewhere"] == there
    run_all.main(dataclasses.replace(config, elsewhere=False))  # new rows of record are compared with nothing
    assert json.loads(path.read_text()) == {"replay": there}
    with pytest.raises(ValueError, match="has no rows of dqn to put others beside"):
        run_all.main(dataclasses.replace(config, only=("dqn", "replay")))


def test_a_host_is_described_by_rates_and_keeps_its_cores(bench, monkeypatch):
    host = bench("host")
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else None
    assert 0 < host.waking_seconds(words=20) < 1
    assert cores is None or os.sched_getaffinity(0) == cores
    monkeypatch.setattr(host, "matrix_rate", lambda shape, rows: 1234.4e9)
    monkeypatch.setattr(host, "memory_rate", lambda size: 5.67e9)
    monkeypatch.setattr(host, "waking_seconds", lambda: 3.84e-5)
    assert host.describe_host() == {"gflop_s": 1234, "read_gb_s": 5.7, "wake_us": 38.4}


def test_the_page_and_the_readme_show_every_number():
    made = load("benchmark_pages")
    page = made.benchmark_text(RECORD, [DEVICE])
    row = "| runs | 12,300 steps/s (50% of the floor) | peer 50: 2.00 times [1.50, 2.50] |"
    device = "| rlhf: 32 runs by vmap | 0.0745 s a step, 5.2 times | at once |"
    assert row in page and "| alone | 12,300 steps/s | ours, slower 50: 2.00 times [1.50, 2.50] |" in page
    assert "`experiments/benchmarks/replay.py`, 3 rounds, 120 s on Linux; commit `0123456789ab`" in page
    assert "; jax 1; beside torch 2." in page and "## One NVIDIA H200" in page and device in page
    slower = ROW | {"rivals": [RIVAL | {"times": 0.9, "low": 0.8, "high": 1.0}]}
    there = {"rows": [OWN, slower], "run": RUN | {"host": HOST, "seconds": 7, "peers": {}}}
    two = {"replay": RECORD["replay"] | {"elsewhere": there}}
    other = row.removesuffix(" |") + ", elsewhere 0.90 times [0.80, 1.00] |"
    assert other in made.benchmark_text(two, [DEVICE])
    assert (
        "Elsewhere: `experiments/benchmarks/replay.py`, 3 rounds, 7 s on Linux (products at 280 GFLOP/s, "
        "memory read at 17.5 GB/s, 38.0 us to wake the other core); commit"
    ) in made.benchmark_text(two, [DEVICE])
    assert other in made.with_speeds(f"{made.BEGIN}{made.END}", two, [DEVICE])
    unshown = DEVICE | {"what": "one run"}
    readme = made.with_speeds(f"before\n{made.BEGIN}\nold\n{made.END}\nafter", RECORD, [DEVICE, unshown])
    assert row in readme and device in readme
    assert not any(word in readme for word in ("alone", "old", "one run"))
    assert readme.startswith("before\n") and readme.endswith("\nafter")
    with pytest.raises(ValueError, match="the page must hold the lines"):
        made.with_speeds("nothing", RECORD, [DEVICE])
