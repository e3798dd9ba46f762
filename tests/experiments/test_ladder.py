"""The ladder in miniature: what is read, learnt and compared, by hand, and a whole run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.data.tokens.vocabularies import train_bpe
from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from jaxrl_align.runtime import Interval
from tests.experiments.loading import load
from tests.tiny import draw_params

Published = load("published").Published
report = load("ladder_report")
setting = load("ladder_task")
experiment = load("ladder")

TEXT = "Thing: a sea Kind: blue; Thing: a rose Kind: red; the sky is blue, the fire is red. "
TASK = """
name = "colours"
kind = "choice"
source = "ours"
licence = "CC0"
metrics = ["accuracy"]
description = "Name the kind."
template = "Thing: {{text}}\\nKind:"
[options]
choices = {{ "0" = "{}", "1" = "{}" }}
[[test]]
format = "jsonl"
path = "test.jsonl"
[[examples]]
format = "jsonl"
path = "examples.jsonl"
"""
ROWS = {
    "test": [("a sea", 0), ("a rose", 1), ("the fire", 1)],
    "examples": [(f"{article} {thing}", i % 2) for article in "aet" for i, thing in enumerate("bcdfgh")],
}


@pytest.fixture(scope="module")
def model():
    lm = make_transformer(TransformerConfig(290, 16, 1, 2, 120))
    return Published(lm, draw_params(lm), train_bpe([TEXT] * 4, 290))


def write_task(folder, *options):
    for name, rows in ROWS.items():
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
        (folder / f"{name}.jsonl").write_text("\n".join(lines) + "\n")
    (folder / "colours.toml").write_text(TASK.format(*options))
    return str(folder / "colours.toml")


@pytest.fixture
def task(tmp_path, monkeypatch, model):
    monkeypatch.setattr(setting, "load_published", lambda folder: model)
    return setting.LadderTask("a folder", write_task(tmp_path, "blue", "red"), 3, 30)


def test_an_answer_is_the_first_token_behind_the_bare_question(task):
    assert [task.tokenizer.decode([int(token)]) for token in task.options] == [" blue", " red"]
    assert task.answers.tolist() == [0, 1, 1]
    said = task.ask(task.params)
    for i, item in enumerate(task.items):
        row = jnp.array(task.tokenizer.encode(f"Name the kind.\n\n{item.input}"))
        log_prob = jax.nn.log_softmax(
            task.lm.logits(task.params, task.lm.encode(task.params, row)[0][-1])
        )  # no padding
        np.testing.assert_allclose(said.options[i], log_prob[task.options], atol=1e-4)
        assert said.first[i] == log_prob.argmax()


def test_samples_are_drawn_at_temperature_1(task):
    rows = jax.tree.map(lambda x: jnp.repeat(x[:1], 400, 0), task.questions(task.items))
    likely = jnp.zeros(290).at[task.options].set(jnp.array([12.0, 12.0 + np.log(3.0)]))
    task.lm = task.lm._replace(logits=lambda params, hidden: likely)
    said = task.read(task.params, rows)
    assert set(said.sampled) == set(task.options)
    assert (said.sampled == task.options[1]).mean() == pytest.approx(0.75, abs=0.07)
    assert (said.first == task.options[1]).all()


def test_the_right_answers_alone_are_learnt(task):
    drawn = task.draw(0, 4, 2)
    assert len(drawn.labelled) == 4 and len(drawn.others) == 2
    assert sorted(item.answer for item in drawn.labelled) == [0, 0, 1, 1]
    rows = task.demonstrations(drawn.labelled)
    for tokens, real, said, item in zip(*map(np.asarray, rows[:3]), drawn.labelled, strict=True):
        text = task.tokenizer.decode(tokens[real > 0].tolist())
        assert text == f"Name the kind.\n\n{item.input} {['blue', 'red'][item.answer]}"
        assert tokens[said > 0].tolist() == [task.options[item.answer]]


def test_the_right_answer_is_preferred_to_what_was_written_or_to_another(task):
    blue, red = task.options
    found = task.comparisons(task.items, [red, 7, red])  # answers are blue, red, red
    assert found.chosen.tokens[:, 0].tolist() == [blue, red, red]
    assert found.rejected.tokens[:, 0].tolist() == [red, 7, blue]


def test_questions_that_are_too_long_are_no_training_rows(tmp_path, task):
    length = max(len(prompt.tokens.context) for prompt in task._prompts(task.pool, []))
    shorter = setting.LadderTask("a folder", str(tmp_path / "colours.toml"), 3, length - 1)
    assert 0 < len(shorter.pool) < len(task.pool)


def test_options_that_begin_alike_are_refused(tmp_path, monkeypatch, model):
    monkeypatch.setattr(setting, "load_published", lambda folder: model)
    path = write_task(tmp_path, "blue sea", "blue sky")
    with pytest.raises(ValueError, match="begin with different tokens"):
        setting.LadderTask("a folder", path, 3, 30)


def test_shares_by_hand():
    log_probs = np.log([[0.4, 0.3], [0.2, 0.3], [0.2, 0.1]])
    said = setting.Said(np.array([5, 6, 9]), np.array([0, 0, 0]), log_probs)
    found = setting.judge(said, np.array([0, 0, 1]), np.array([5, 6]))
    assert found == {
        "format": pytest.approx(2 / 3),
        "right": pytest.approx(1 / 3),
        "right of the options": pytest.approx(1 / 3),
    }


def test_rows_are_read_in_turn():
    index = experiment.in_turn(6, 4, 6, 0)
    assert index.shape == (6, 4)
    assert all(sorted(index.reshape(-1)[i : i + 6]) == list(range(6)) for i in (0, 6, 12, 18))


def small(tmp_path, **changes):
    how = {"labels": 8, "pairs": 4, "questions": 4, "shown": (2,), "batch": 4, "passes": 2, "steps": 2}
    how |= {"group": 2, "draws": 2, "length": 30, "rank": 2, "items": 3}
    return experiment.Config(out=str(tmp_path / "run"), **how | changes)


def test_costs_by_hand(task, tmp_path):
    costs = experiment.count_costs(experiment.Ladder(small(tmp_path), task))
    question = np.mean([len(prompt.tokens.context) for prompt in task._prompts(task.items, [])])
    assert costs["asked"] == report.Cost("none", 0, 0, question)
    assert costs["2 examples in the context"].question > question
    # 2 passes over 4 and 8 rows of 30 + 1 tokens; one over 4 pairs of 30 + 2; 2 steps of 4 prompts.
    shown = "2 examples in the context"
    assert costs[shown].below == "asked"
    assert costs["tuned on 4"] == report.Cost("4 right answers", 248, 248, question, shown)
    assert costs["tuned on 8"][1:3] == (496, 496)
    pairs, prompts, judged = 4 * 32, 2 * 4 * 30, 2 * 4 * 2 * 31
    told = costs["tuned on 4, then RL, judged"]
    labels, below = "4 right answers, 16 judgements", "tuned on 4"
    assert told == report.Cost(labels, 248 + 3 * prompts, 248 + prompts, question, below)
    rlhf = costs["tuned on 4, then RLHF"]
    assert rlhf.labels == "4 right answers, 4 comparisons" and rlhf.below == costs["tuned on 8"].below
    assert rlhf[1:3] == (248 + pairs + 3 * prompts + judged, 248 + pairs + prompts)
    assert rlhf.flops(10) == 20.0 * sum(rlhf[1:3])


def test_a_person_knows_the_right_answer_of_each_question():
    person = experiment.Person(jnp.array([[0, 5, 6], [4, 5, 6]]), jnp.array([8, 9]))
    ask = lambda *tokens: float(experiment.ask_person(person, jnp.array(tokens), jnp.ones(4)))
    assert [ask(0, 5, 6, 8), ask(0, 5, 6, 9), ask(4, 5, 6, 9), ask(4, 5, 6, 8)] == [1, 0, 1, 0]


def test_labels_must_hold_what_is_shown(tmp_path):
    with pytest.raises(ValueError, match="hold what is shown"):
        small(tmp_path, shown=(9,))
    with pytest.raises(ValueError, match="draws must be at least 2"):
        small(tmp_path, draws=1)
    with pytest.raises(ValueError, match="pairs must be at least a batch of 4; got 3"):
        small(tmp_path, pairs=3)


@pytest.mark.slow
@pytest.mark.parametrize("judge", ["a reward model", "a person"])
def test_the_policy_follows_its_judge(task, tmp_path, judge):
    """To the first option, which a reward model has learnt to prefer, or is right for every question."""
    rates = {"policy_rate": 3e-2, "judged_rate": 3e-2, "kl_coef": 0.0, "judged_kl_coef": 0.0}
    config = small(tmp_path, **rates, group=32, steps=30, passes=40, reward_rate=1e-2)
    ladder = experiment.Ladder(config, task)
    rows = [item for item in task.pool if item.answer == 0][:8]
    reward = ladder.fit_reward(0, ladder.part, rows) if judge == "a reward model" else None
    aligned = ladder.align(0, ladder.part, reward, rows[:4])
    overlaid = [experiment.overlay(ladder.base, part) for part in (ladder.part, aligned)]
    before, after = (task.ask(params).options[:, 0].mean() for params in overlaid)
    assert after > before + 0.2


@pytest.mark.slow
def test_a_run_in_miniature(tmp_path, monkeypatch, model, capsys):
    monkeypatch.setattr(setting, "load_published", lambda folder: model)
    config = small(tmp_path, task=write_task(tmp_path, "blue", "red"), model="a folder")
    experiment.main(config)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    answers, gains, costs = result["tables"].values()
    assert list(answers) == list(costs) == ["asked", *gains] and len(answers) == 6
    value = lambda rung, name="right": answers[rung][name]["value"]
    assert all(value(rung) <= value(rung, "format") <= 100 for rung in answers)
    drawn = [json.loads((tmp_path / "run" / f"draw_{i}.json").read_text()) for i in range(2)]
    for rung in answers:
        assert value(rung) == pytest.approx(100 * np.mean([draw[rung]["right"] for draw in drawn]))
    for rung, row in gains.items():
        assert row["points"]["value"] == pytest.approx(value(rung) - value(row["over"]))
    told, rlhf = "tuned on 4, then RL, judged", "tuned on 4, then RLHF"
    assert list(result["headline"].values()) == [gains[told]["points"], gains[rlhf]["points"]]
    starts = ("asked", "2 examples in the context", "tuned on 4")
    assert list(result["baselines"].values()) == [answers[rung]["right"] for rung in starts]
    assert costs[told]["people write"] == "4 right answers, 16 judgements"
    assert costs[rlhf]["training [1e12 FLOP]"] > costs["tuned on 4"]["training [1e12 FLOP]"] > 0
    assert len(result["checks"]) == 6 and result["rows"] == ["E1", "F21"]
    assert (tmp_path / "run" / "ladder.png").stat().st_size > 10_000
    assert "tuned on 4, then RLHF" in capsys.readouterr().out
    experiment.main(small(tmp_path, task=config.task, model="a folder", resume=True))
    again = json.loads((tmp_path / "run" / "result.json").read_text())
    assert again.pop("run")["continued"] and result.pop("run") and again == result


def make_costs():
    rung = lambda question, below=None: report.Cost("", 0, 0, question, below)
    costs = {"asked": rung(26), "8 examples in the context": rung(175, "asked")}
    costs |= {"24 examples in the context": rung(475, "8 examples in the context")}
    costs |= {"tuned on 24": rung(26, "24 examples in the context")}
    return costs | {f"tuned on 24, then {way}": rung(26, "tuned on 24") for way in ("RL, judged", "RLHF")}


def test_the_report_compares_each_rung_with_the_one_below(tmp_path):
    """Tuning gains over asking, and nothing over the examples; RL gains 20 points, RLHF none."""
    config, costs = small(tmp_path), make_costs()
    right = dict(zip(costs, (0.0, 0.4, 0.6, 0.5, 0.7, 0.5), strict=True))
    draw = {name: dict.fromkeys((*report.SHARES, "seconds"), x) for name, x in right.items()}
    report.report(config, config.open_folder(), experiment.CLAIM, [draw, draw], costs, 10)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert list(result["checks"].values()) == [True, True, True, True, True, False]
    assert [round(x["value"]) for x in result["headline"].values()] == [20, 0]
    assert [round(x["value"]) for x in result["baselines"].values()] == [0, 60, 50]


def test_the_verdict_is_that_of_the_rungs_over_those_below():
    near = lambda value: Interval(value, value - 5, value + 5, "t")
    costs = make_costs()
    gains = {name: near(10) for name in costs if name != "asked"}
    judged = lambda *x: list(report.judge_rungs(*x).values())
    assert judged(gains, near(50), costs) == [True] * 6
    less = gains | {"24 examples in the context": near(4), "tuned on 24, then RLHF": near(-10)}
    assert judged(less, near(50), costs) == [True, False, True, True, True, False]
    less = gains | {"8 examples in the context": near(4), "tuned on 24, then RL, judged": near(3)}
    longer = costs | {"tuned on 24": report.Cost("", 0, 0, 475, "24 examples in the context")}
    assert judged(less, near(4), longer) == [False, True, False, False, False, True]
