import json
import math

import numpy as np
import pytest

from jaxrl_align.evaluate.helm import Answers, report
from jaxrl_align.evaluate.measures.calibration import expected_calibration_error
from jaxrl_align.evaluate.tasks.task_items import Item
from jaxrl_align.runtime.statistics import wilson_interval

INPUTS = ["good THE", "bad the", "good Emily", "bad is not", "GOOD he", "bad her cat"]
ITEMS = [
    Item({}, text, ("bad", "good"), int(text.lower().startswith("good")), f"f:{i}", None)
    for i, text in enumerate(INPUTS)
]
SHOUT = {"shout": lambda text, random: text.upper(), "nothing": lambda text, random: text}
QUICK = {"draws": 40}


def read(items):
    """A model that knows "good" in lower case, and is sure by the input's length."""
    places = [int("good" in item.input) for item in items]
    sure = np.array([0.5 + len(item.input) / 100 for item in items])
    probs = np.stack([np.where(places, 1 - sure, sure), np.where(places, sure, 1 - sure)], 1)
    return Answers(places, probs, None, seconds=0.5, tokens=60)


def write(items):
    """A model that writes what it reads."""
    return Answers([item.input for item in items], None, [item.input for item in items])


def values(field):
    return {name: figure.measured.value for name, figure in field.items()}


def test_the_worst_case_of_an_item_by_hand():
    """Right are all but "GOOD he"; in capitals the model calls all bad, so of good ones none stays right."""
    asked = []

    def answer(items):
        asked.append([item.input for item in items])
        return read(items)

    found = report(ITEMS, answer, robustness=SHOUT, fairness={}, **QUICK)
    assert values(found.accuracy) == {"accuracy": pytest.approx(5 / 6)}
    assert found.accuracy["accuracy"].measured[:3] == wilson_interval(5, 6)[:3]
    assert values(found.robustness) == {
        "worst case": pytest.approx(3 / 6),
        "mean": pytest.approx((3 / 6 + 5 / 6) / 2),
        "shout": pytest.approx(3 / 6),
        "nothing": pytest.approx(5 / 6),
    }
    assert found.robustness["worst case"].measured[:3] == wilson_interval(3, 6)[:3]
    assert found.robustness["mean"].measured.kind == "bootstrap"
    assert found.robustness["shout"].note == "changes 6 of 6 items"
    assert found.robustness["nothing"].note == "changes 0 of 6 items"
    assert asked == [INPUTS, [text.upper() for text in INPUTS]], "what is not changed is not asked again"
    assert found.fairness["worst case"].measured.reason == "there is no perturbation"


def test_an_item_wrong_as_it_is_stays_wrong_at_worst():
    """ "GOOD he" is right in lower case alone."""
    found = report(ITEMS, read, robustness={"lower": lambda text, random: text.lower()}, fairness={}, **QUICK)
    assert values(found.robustness) == {
        "worst case": pytest.approx(5 / 6), "mean": 1.0, "lower": 1.0
    }  # fmt: skip


def test_an_item_is_perturbed_alike_in_any_company():
    seen = {}

    def answer(items):
        for item in items:
            seen.setdefault(item.place, set()).add(item.input)
        return read(items)._replace(probs=None)

    words = [item._replace(input=f"{item.input} because people receive their money") for item in ITEMS]
    whole = report(words, answer, **QUICK)
    before = {place: set(texts) for place, texts in seen.items()}
    report(words[::-1], answer, **QUICK)
    report(words[2:3], answer, **QUICK)
    assert seen == before and sum(len(texts) for texts in seen.values()) > 30
    assert whole == report(words, answer, **QUICK)
    report(words, answer, seed=1, **QUICK)
    assert seen != before


def test_items_are_perturbed_by_chances_of_their_own():
    asked = []

    def answer(items):
        asked.extend(item.input for item in items)
        return read(items)._replace(probs=None)

    number = lambda text, random: str(random.random())
    report(ITEMS, answer, robustness={"a": number, "b": number}, fairness={}, **QUICK)
    assert len(set(asked)) == 3 * len(ITEMS)


def test_calibration_is_of_the_given_answer():
    found = report(ITEMS, read, robustness={}, fairness={}, **QUICK)
    sure, right = [0.5 + len(text) / 100 for text in INPUTS], [1, 1, 1, 1, 0, 1]
    got = values(found.calibration)
    assert got["error, 10 bins of equal mass"] == pytest.approx(expected_calibration_error(sure, right))
    width = expected_calibration_error(sure, right, equal_mass=False)
    assert got["error, 10 bins of equal width"] == pytest.approx(width)
    assert got["error, 1 bin"] == pytest.approx(5 / 6 - np.mean(sure))
    assert got["Brier score of being right"] == pytest.approx(np.mean((np.array(sure) - right) ** 2))
    assert got["accuracy on the surest 10%"] == 1.0
    assert found.calibration["error, 10 bins of equal mass"].note == "fewer than 300 items"

    def length(items):
        return read(items)._replace(predictions=[1 - place for place in read(items).predictions])

    other = values(report(ITEMS, length, robustness={}, fairness={}, **QUICK).calibration)
    assert other["error, 1 bin"] == pytest.approx(abs(1 / 6 - np.mean(1 - np.array(sure))))


def test_generated_text_is_counted_and_scored():
    texts = ["he is a nurse", "he is an idiot", "she sat", "he"]
    items = [Item({}, text, (), ("she sat", "x"), f"f:{i}", None) for i, text in enumerate(texts)]
    found = report(items, write, metrics=("exact_match", "rouge1"), robustness={}, fairness={}, **QUICK)
    assert values(found.accuracy)["exact_match"] == 0.25
    assert found.bias["gender"].measured.value == pytest.approx(0.25)
    assert found.bias["gender"].note == "female 1, male 3"
    assert found.bias["gender beside occupations"].measured.value == 0.5
    assert found.bias["gender beside occupations"].note == "1 of 37 occur"
    assert found.bias["surnames"].measured.reason == "no word of any group occurs"
    assert found.toxicity["share of toxic texts"].measured[:3] == wilson_interval(1, 4)[:3]
    assert found.toxicity["share of toxic texts"].note.startswith("by list of ")
    scored = report(items, write, metrics=("exact_match",), robustness={}, fairness={}, draws=9,
                    scorer=lambda texts: np.ones(len(texts)), scorer_name="alarmist")  # fmt: skip
    assert scored.toxicity["share of toxic texts"].measured.value == 1.0
    assert scored.toxicity["share of toxic texts"].note == "by alarmist above 0.5"


def test_a_value_that_no_draw_of_items_changes_has_no_interval():
    """Every text that has a word of gender has one of the same, and all answers are wrong."""
    texts = ["he ran", "he sat", "it ran", "it sat"]
    items = [Item({}, text, (), "she", f"f:{i}", None) for i, text in enumerate(texts)]
    found = report(items, write, metrics=("exact_match",), robustness={"lower": lambda t, _: t.lower()},
                   fairness={}, **QUICK)  # fmt: skip
    gender, mean = found.bias["gender"].measured, found.robustness["mean"].measured
    assert (gender.value, gender.kind, mean.value, mean.kind) == (0.5, "none", 0.0, "none")
    assert np.isnan([gender.low, gender.high, mean.low]).all() and "0.5 (no interval)" in str(found)
    assert found.accuracy["exact_match"].measured.kind == "wilson", "which is no point"
    items[1] = items[1]._replace(input="she sat")
    mixed = report(items, write, metrics=("exact_match",), robustness={}, fairness={}, **QUICK)
    assert mixed.bias["gender"].measured.kind == "bootstrap"


def test_graded_metrics_are_lowered_by_their_score():
    items = [Item({}, text, (), "she sat", f"f:{i}", None) for i, text in enumerate(["she sat", "SHE ran"])]
    cut = {"cut": lambda text, random: text.split()[0]}
    found = report(items, write, metrics=("rouge1",), robustness=cut, fairness={}, **QUICK)
    assert values(found.robustness)["worst case"] == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert found.robustness["worst case"].measured.kind == "range"


def test_items_of_a_group_are_drawn_together():
    groups = [item._replace(group=str(i // 3)) for i, item in enumerate(ITEMS)]
    found = report(groups, read, robustness=SHOUT, fairness={}, **QUICK)
    kinds = {field[name].measured.kind for field in (found.accuracy, found.robustness, found.calibration)
             for name in field}  # fmt: skip
    assert kinds == {"range"}
    assert found.accuracy["accuracy"].measured[:3] == (pytest.approx(5 / 6), pytest.approx(2 / 3), 1.0)


def test_efficiency_states_its_conditions():
    found = report(
        ITEMS, read, robustness={}, fairness={}, conditions="one core, batch 6", **QUICK
    ).efficiency
    assert values(found)["seconds an item"] == pytest.approx(0.5 / 6)
    assert values(found)["tokens a second"] == pytest.approx(120)
    assert found["tokens a second"].note == "one core, batch 6"
    assert found["joules an item"].measured.reason == "not measured"
    powered = lambda items: read(items)._replace(joules=12.0)
    assert (
        values(report(ITEMS, powered, robustness={}, fairness={}, **QUICK).efficiency)["joules an item"]
        == 2.0
    )
    assert report(ITEMS, write, robustness={}, fairness={}, **QUICK).efficiency[
        "seconds an item"
    ].measured.reason == "not measured"  # fmt: skip


def test_the_report_is_json_and_a_table():
    found = report(ITEMS, read, robustness=SHOUT, fairness={}, conditions="one core", **QUICK)
    again = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert list(again) == [
        "items",
        "accuracy",
        "calibration",
        "robustness",
        "fairness",
        "bias",
        "toxicity",
        "efficiency",
    ]
    line = again["accuracy"]["accuracy"]
    assert line["value"] == pytest.approx(5 / 6) and line["kind"] == "wilson" and line["low"] < line["high"]
    gender = again["bias"]["gender"]
    assert (gender["value"], gender["reason"], gender["low"]) == (None, "no text was generated", None)
    table = str(found).split("\n")
    assert table[0] == "6 items, 95% intervals" and table[1].startswith("accuracy     accuracy")
    assert "0.8 [0.4, 1.0]" in table[1]
    assert any(row.endswith("changes 6 of 6 items") for row in table)
    assert any("undefined: no text was generated" in row for row in table)
    assert not any(math.isnan(len(row)) or row != row.rstrip() for row in table)


@pytest.mark.parametrize(
    "items, answer, options, message",
    [
        ([], read, {}, "needs items and metrics; got 0 and 1"),
        (ITEMS, read, {"metrics": ()}, "got 6 and 0"),
        (ITEMS, lambda items: read(items[1:]), {}, "one entry an item; got 5 predictions for 6"),
        (ITEMS, lambda items: read(items)._replace(texts=["x"]), {}, "got 1 texts for 6"),
        (ITEMS, read, {"metrics": ("speed",)}, "a metric must be one of"),
    ],
)
def test_what_cannot_be_reported_is_refused(items, answer, options, message):
    with pytest.raises(ValueError, match=message):
        report(items, answer, **options)
