import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from jaxrl_align.evaluate.measures import task_metrics
from jaxrl_align.evaluate.measures.task_metrics import (
    GROUPED,
    METRICS,
    MetricValue,
    benchmark_score,
    binary_f1,
)
from jaxrl_align.runtime.resampling import bootstrap

FIXTURE = json.loads((Path(__file__).parent / "fixtures" / "metrics.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", FIXTURE["labels"], ids=lambda case: f"{len(case['answers'])} items")
@pytest.mark.parametrize("name", ["accuracy", "f1", "macro_f1", "matthews"])
def test_labels_against_scikit_learn(case, name):
    got = METRICS[name](case["predictions"], case["answers"])
    assert got.value == pytest.approx(case[name], abs=1e-9) and got.reason == ""
    if name != "f1":  # names of classes are as good as numbers
        as_text = METRICS[name]([f"c{p}" for p in case["predictions"]], [f"c{a}" for a in case["answers"]])
        assert as_text == got


@pytest.mark.parametrize("case", FIXTURE["numbers"], ids=lambda case: f"{case['spearman']:.3f}")
def test_correlations_against_scipy(case):
    for name in ("pearson", "spearman"):
        got = METRICS[name](case["predictions"], case["answers"])
        assert got.value == pytest.approx(case[name], abs=1e-9) and -1 <= got.value <= 1


def test_the_confusion_of_ten_by_hand():
    """TP 3, FP 1, FN 2, TN 4: F1 6 / 9, Matthews (12 - 2) / sqrt(4 * 5 * 5 * 6)."""
    predictions, answers = np.repeat([1, 1, 0, 0], [3, 1, 2, 4]), np.repeat([1, 0, 1, 0], [3, 1, 2, 4])
    assert METRICS["accuracy"](predictions, answers).value == 0.7
    assert METRICS["f1"](predictions, answers).value == pytest.approx(6 / 9)
    assert METRICS["macro_f1"](predictions, answers).value == pytest.approx((6 / 9 + 8 / 11) / 2)
    assert METRICS["matthews"](predictions, answers).value == pytest.approx(10 / math.sqrt(600))
    assert binary_f1(predictions, answers, positive=0).value == pytest.approx(8 / 11)


@pytest.mark.parametrize("predictions, answers", [([1, 1, 1], [1, 0, 1]), ([1, 0, 1], [0, 0, 0]), ([1], [1])])
def test_matthews_is_0_where_a_row_or_column_is_empty(predictions, answers):
    assert METRICS["matthews"](predictions, answers) == MetricValue(0.0)


@pytest.mark.parametrize(
    "name, predictions, answers, reason",
    [
        ("pearson", [0.1, 0.1, 0.1], [1, 2, 3], r"the predictions are constant \(0.1\)"),
        ("spearman", [1, 2, 3], [7, 7, 7], r"the answers are constant \(7\)"),
        ("spearman", [5.0], [2.0], "constant"),
        ("f1", [0, 0], [0, 0], "class 1 is neither answered nor predicted"),
        ("perplexity", [0.0], [0], "no tokens"),
        ("bits_per_byte", [0.0], [0], "no bytes"),
    ],
)
def test_what_is_undefined_says_so(name, predictions, answers, reason):
    got = METRICS[name](predictions, answers)
    assert np.isnan(got.value) and np.isnan(float(got))
    assert re.search(reason, got.reason)


def test_no_positive_found_is_0_and_defined():
    assert METRICS["f1"]([0, 0, 1], [1, 1, 0]) == MetricValue(0.0)


def test_one_of_several_right_answers_will_do_and_none_is_wrong():
    assert METRICS["accuracy"]([2, None, "b", 1], [(1, 2), 0, "b", (0, 2)]).value == 0.5
    assert METRICS["exact_match"]([" 24", None, "-24"], ["24", "24", ("24", "x")]).value == pytest.approx(
        1 / 3
    )


def test_signs_and_symbols_are_part_of_an_exact_match():
    """SQuAD's rules would take -5 for 5, and every bracket for every other."""
    assert METRICS["exact_match"](["-5", "] )", "5."], ["5", ") ]", "5"]).value == 0.0
    assert METRICS["normalised_exact_match"](["-5", "The cat."], ["5", ["dog", "a Cat"]]).value == 1.0


def test_the_means_of_texts():
    texts, golds = ["the cat sat", None], ["cat sat down", "dog"]
    assert METRICS["token_f1"](texts, golds).value == pytest.approx((2 * 2 / 5) / 2)
    assert METRICS["rouge1"](texts, golds).value == pytest.approx((2 * 2 / 6) / 2)
    assert METRICS["rouge2"](texts, golds).value == pytest.approx((2 * 1 / 4) / 2)
    assert METRICS["rougeL"](texts, golds).value == pytest.approx((2 * 2 / 6) / 2)


def test_a_question_is_right_if_all_of_its_options_are():
    """MultiRC: F1a over all options, EM over questions; passages share the numbers of their questions."""
    groups = ["0.0", "0.1", "0.0", "1.0", "1.0"]
    predictions, answers = [1, 1, 0, 1, 1], [1, 0, 0, 0, 1]
    assert METRICS["group_exact_match"](predictions, answers, groups).value == pytest.approx(1 / 3)
    assert METRICS["f1"](predictions, answers).value == pytest.approx(4 / 6)
    assert {"group_exact_match"} == GROUPED < set(METRICS)
    with pytest.raises(ValueError, match="got 1 and 5"):
        METRICS["group_exact_match"](predictions, answers, ["x"])


def test_perplexity_and_bits_per_byte_by_hand():
    """Two texts at 1/2 and 1/8 a token: 1 * 2 + 3 * 4 bits in 6 tokens and 20 bytes."""
    log_probs = [-2 * math.log(2), -4 * math.log(8)]
    assert METRICS["perplexity"](log_probs, [2, 4]).value == pytest.approx(2 ** (14 / 6))
    assert METRICS["bits_per_byte"](log_probs, [7, 13]).value == pytest.approx(14 / 20)
    with pytest.raises(ValueError, match="tokens must be at least 0; got -1"):
        METRICS["perplexity"](log_probs, [3, -1])


def test_metrics_can_be_bootstrapped_as_they_are():
    predictions, answers = np.arange(8.0), np.array([0.0, 2, 1, 3, 5, 4, 7, 6])
    got = bootstrap(METRICS["spearman"], predictions, answers, draws=200)
    assert got.value == METRICS["spearman"](predictions, answers).value and -1 <= got.low < got.high <= 1


def test_a_benchmarks_score_is_the_mean_over_tasks_of_the_mean_of_their_metrics():
    results = {"cola": {"matthews": 0.5}, "stsb": {"pearson": 0.8, "spearman": MetricValue(0.6)}}
    assert benchmark_score(results).value == pytest.approx((0.5 + 0.7) / 2)
    got = benchmark_score(results | {"mrpc": {"f1": math.nan}})
    assert np.isnan(got.value) and got.reason == "f1 of mrpc is undefined"
    assert "no task" in benchmark_score({}).reason and "without" in benchmark_score({"cola": {}}).reason
    assert task_metrics.HUMAN_SCORES == {"GLUE": 87.1, "SuperGLUE": 89.8}


@pytest.mark.parametrize("name", sorted(set(METRICS) - GROUPED))
def test_lengths_that_differ_are_refused_and_so_are_no_items(name):
    some = [[0.5, 0.5]] if name == "brier" else ["x"] if name in task_metrics.ITEM_SCORES else [1]
    for predictions, answers in ((some * 2, [1]), ([], [])):
        with pytest.raises(ValueError, match="got .*(2|0)"):
            METRICS[name](predictions, answers)


@pytest.mark.parametrize(
    "name, predictions, answers, message",
    [
        ("pearson", [1.0, np.nan], [1.0, 2.0], "predictions must be finite numbers; got nan"),
        ("spearman", [1.0, 2.0], [1.0, np.inf], "answers must be finite numbers; got inf"),
        ("f1", [1, None], [1, 0], "texts or numbers alike"),
        ("macro_f1", ["1", "0"], [1, 0], "texts or numbers alike, N >= 1; got <U1"),
    ],
)
def test_what_cannot_be_compared_is_refused(name, predictions, answers, message):
    with pytest.raises(ValueError, match=message):
        METRICS[name](predictions, answers)
