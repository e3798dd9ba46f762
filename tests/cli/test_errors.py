"""What the user can mend ends in one line, before anything is compiled, and leaves no folder behind."""

import gzip
import json
import sys

import pytest

from jaxrl_align.cli.commands import COMMANDS
from jaxrl_align.cli.config_files import field_names
from jaxrl_align.cli.other_names import OTHER_NAMES, refuse_other_names
from jaxrl_align.cli.runs import driving
from tests.cli.conftest import write_rows

SFT = "sft --model tiny --data sft.jsonl --out {out}"
DPO = "dpo --model tiny --data pairs.jsonl --out {out}"
PPO = "ppo --model tiny --data prompts.jsonl --reward own_rewards:spaces --out {out}"
GRPO = PPO.replace("ppo", "grpo", 1)
BEST = f"{GRPO} --method best-of-group"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (f"{SFT} --model nowhere", "a model must be a folder; found none at nowhere; for a hub's name pass"),
        (f"{SFT} --data nowhere.jsonl", "must be a JSONL file; found none at nowhere.jsonl; check the path"),
        (f"{SFT} --data own_rewards.py", "own_rewards.py:1: the row must be JSON"),
        (f"{SFT} --data prompts.jsonl", "prompts.jsonl:1: a row must have text, messages, or prompt and"),
        (f"{SFT} --length 8", "a row must fit 8 tokens; 5 do not; allow more with --length"),
        (f"{SFT} --length 100", "--length must be from 2 to the context of 64 tokens; got 100"),
        (f"{SFT} --held-out 1.5", "--held-out must be a share between 0 and 1, or a file; got 1.5"),
        (f"{SFT} --held-out 0.99", "--held-out 0.99 must leave rows to train on; got 6 rows of 6 prompts"),
        (f"{SFT} --held-out nowhere.jsonl", "found none at nowhere.jsonl"),
        (f"{SFT} --lr 1e-3", "--lr is no flag of sft; it is called --learning-rate"),
        (f"{PPO} --tokens=8", "--tokens is no flag of ppo; it is called --response-length"),
        (f"{DPO} --learning-rate -1", "--learning-rate must be above 0; got -1.0"),
        (f"{PPO} --reward own_rewards.py:spaces", "must name a module, not its file; got own_rewards.py:sp"),
        (f"{SFT} --steps 0", "--steps must be at least 1; got 0"),
        (f"{SFT} --passes 0", "--passes must be above 0; got 0.0"),
        (f"{SFT} --rank 9", "rank must be from 1 to 8, the smaller side of layers/"),
        (f"{SFT} --targets *nothing", "targets must match linear layers; got ['*nothing']"),
        (f"{SFT} --tuning head", "--tuning head is of reward models"),
        (
            f"{SFT} --tuning full --dropout 0.1",
            "drops inputs of lora, dora, qlora; got 0.1 with --tuning full",
        ),
        (
            f"{DPO.replace('dpo', 'reward', 1)} --tuning head --dropout 0.1",
            "drops inputs of lora, dora, qlora; got 0.1 with --tuning head",
        ),
        (f"{SFT} --tuning prompt --merge", "--merge needs an adapter of linear layers; got --tuning prompt"),
        (
            f"{SFT} --microbatches 0",
            "--microbatches must divide --batch-size; got --batch-size=8, --microbatches=0",
        ),
        (f"{DPO} --microbatches 3", "--microbatches must divide --batch-size; got --batch-size=8"),
        (
            f"{DPO.replace('dpo', 'reward', 1)} --tuning prompt",
            "must be of weights; got prompt, whose virtual",
        ),
        (
            f"{DPO.replace('dpo', 'reward', 1)} --tuning prefix",
            "must be of weights; got prefix, whose virtual",
        ),
        (
            f"{DPO.replace('dpo', 'reward', 1)} --label-smoothing 0.5",
            "label_smoothing must be from 0 to below 0.5; got 0.5",
        ),
        (f"{DPO} --label-smoothing 0.7", "label_smoothing must be from 0 to below 0.5; got 0.7"),
        (f"{DPO} --beta -1", "beta must be at least 0; got -1.0"),
        (f"{DPO.replace('dpo', 'ipo', 1)} --beta 0", "--beta must be above 0; got 0.0; at 0 no answer is"),
        (
            f"{DPO.replace('dpo', 'kto', 1)} --desirable-weight -1",
            "desirable_weight must be at least 0; got -1",
        ),
        (f"{DPO.replace('dpo', 'simpo', 1)} --margin -3", "margin must be at least 0; got -3.0"),
        (f"{GRPO} --kl-coef -1", "kl_coef must be at least 0; got -1.0"),
        (f"{PPO} --target-kl -1", "target_kl must be above 0; got -1.0; None ends no update early"),
        (
            f"{PPO} --dropout 0.1",
            "--dropout is of training on given texts; got 0.1 for a model that learns from",
        ),
        (f"{GRPO} --dropout 0.1", "--dropout is of training on given texts; got 0.1"),
        (
            f"{BEST} --kl-coef 5 --clip 0.01",
            "neither a clip nor a KL penalty; got --clip 0.01, --kl-coef 5.0",
        ),
        (f"{BEST} --group-size 1", "a group needs at least 2 answers to be judged by each other; got 1"),
        (f"{DPO} --prompt-length 0", "--prompt-length must be at least 1; got 0; leave it out for what rows"),
        (f"{DPO} --completion-length 0", "--completion-length must be at least 1; got 0"),
        (f"{DPO} --completion-length 3", "must fit completion_length=3; allow more or leave the row out"),
        (
            f"{DPO} --prompt-length 60 --completion-length 16",
            "must fit the context of 64 tokens; got --prompt-length 60 and",
        ),
        (f"{DPO} --data sft.jsonl", "fields must be of one kind"),
        (f"{PPO} --batch-size 4 --minibatches 3", "--minibatches must divide --batch-size"),
        (f"{PPO} --response-length 64", "--prompt-length must be from 1 to 0, beside the response"),
        (f"{PPO} --reward own_rewards:nothing", "own_rewards has no such function; there are"),
        (f"{PPO} --critic reward-model", "needs a reward model; got --reward own_rewards:spaces, a function"),
        (
            f"{PPO} --pretraining prompts.jsonl",
            "prompts.jsonl:1: a row must have text, messages, or prompt and",
        ),
        (f"{PPO} --hub --model x/y", "needs huggingface_hub"),
    ],
)
def test_it_is_said_in_a_line(fails, tmp_path, monkeypatch, line, said):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.delattr(driving, "opened_folder")  # nothing comes so far
    out = tmp_path / "out"
    code, found = fails(line.format(out=out))
    assert code == 2 and found.startswith("error: ") and said in found, found
    assert not out.exists()


def test_every_other_name_leads_to_a_flag_of_some_command_and_hides_none():
    known = {name: field_names(command.options) for name, command in COMMANDS.items()}
    flags = set().union(*known.values())
    assert all(own in flags for ours in OTHER_NAMES.values() for own in ours)
    for command, fields in known.items():
        refuse_other_names(command, fields, [f"--{name.replace('_', '-')}" for name in fields])


def test_an_out_that_holds_anything_else_is_left_alone(fails, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    code, line = fails(SFT.format(out=tmp_path))
    assert code == 2 and "exists and holds no run of ours; pass --out with a new folder" in line
    assert [file.name for file in tmp_path.iterdir()] == ["notes.txt"]


def test_an_out_that_holds_another_run_is_left_alone(fails, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.json").write_text(json.dumps({"command": "sft", "rank": 3}))
    (run / "metrics.jsonl").write_text("{}\n")
    line = fails(SFT.format(out=tmp_path))[1]
    assert "already holds a run; pass --resume to continue it, or --out with a new folder" in line
    line = fails(SFT.format(out=tmp_path) + " --resume")[1]
    assert "was made with" in line and "rank=3" in line and "rank=8" in line
    assert (run / "metrics.jsonl").read_text() == "{}\n"


def test_a_folder_without_weights_is_named(fails, workshop, tmp_path):
    model = tmp_path / "empty"
    model.mkdir()
    for file in (workshop / "tiny").iterdir():
        if file.suffix == ".json":
            (model / file.name).write_text(file.read_text())
    line = fails(f"sft --data sft.jsonl --out {tmp_path / 'out'} --model", model)[1]
    assert f"{model} holds neither model.safetensors nor" in line


def test_bad_rows_are_skipped_counted_and_listed(road, tmp_path, monkeypatch, capsys):
    rows = [{"prompt": f"say {i}", "chosen": "a", "rejected": "b"} for i in range(4)]
    rows += [
        {"prompt": "p", "chosen": "a", "rejected": "a"},
        {"prompt": "p", "chosen": "c" * 70, "rejected": "b"},
    ]
    write_rows(tmp_path / "rows.jsonl", rows)
    data = gzip.compress((tmp_path / "rows.jsonl").read_bytes())
    (tmp_path / "rows.jsonl.gz").write_bytes(data)

    def follow(*args):
        raise ValueError("nothing is compiled")

    monkeypatch.setattr(driving, "follow", follow)
    with pytest.raises(SystemExit):
        road(f"dpo --model tiny --skip-bad-rows --out {tmp_path / 'out'} --data", tmp_path / "rows.jsonl.gz")
    said = capsys.readouterr().out
    assert "3 train, 1 held out, 2 left out" in said and "2 rows are left out:" in said
    assert "rows.jsonl.gz:5: chosen and rejected are identical" in said
    assert "rows.jsonl.gz:6: a completion of 71 tokens must fit" in said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("raises", "reward 'own_rewards:raises' must not raise; got KeyError: 'blue' in row"),
        ("nan", "reward 'own_rewards:nan' must return finite numbers; got nan in row [0, 0] (prompt 'say"),
        ("short", "reward 'own_rewards:short' must return one number for each of 4 completions; got 1"),
    ],
)
def test_a_reward_function_that_fails_is_shown_with_its_row(fails, tmp_path, function, said):
    line = "rloo --model tiny --data prompts.jsonl --held-out None --samples 0 --response-length 4"
    settings = f"--steps 8 --batch-size 2 --group-size 2 --reward own_rewards:{function} --out"
    code, found = fails(f"{line} {settings}", tmp_path / "out")
    assert code == 2 and found.startswith("error: reward") and said in found, found


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_its_checkpoint(fails, tmp_path):
    line = "--tuning full --held-out None --samples 0 --batch-size 2 --every 1 --learning-rate 1e30"
    code, found = fails(f"{SFT.format(out=tmp_path / 'out')} {line}")
    assert code == 2 and "lower the learning rate; the checkpoint of step" in found
    assert not (tmp_path / "out" / "config.json").exists()
