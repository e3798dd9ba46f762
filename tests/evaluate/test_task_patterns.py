"""Which regular expressions of a task file are refused, because they may take hours."""

import pytest

from jaxrl_align.evaluate.tasks.task_format import Thoughts, load_task, shipped_tasks
from jaxrl_align.evaluate.tasks.task_patterns import check_pattern


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            r"(a+)+$",
            r"(\w+\w)+",
            "(a|a)*",
            "(a|ab)*",
            "(a*)*",
            "(a*?)*?",
            "(a?){30}",
            "(?:x|(a+)+)",
            "(ab|[ac]d)+",
        ),
        *(
            "(ab|[ac]d)+",
            "(?=(a+)+b)",
            "(?<!x)(a+)+b",
            "(.)(?(1)(a+)+|b)",
            "(?i:(a+)+)",
            "((a|b)*|c)+",
            "(|a)+",
        ),
    ],
)
def test_what_backtracks_is_refused(pattern):
    with pytest.raises(ValueError, match="must not itself repeat"):
        check_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            r"(?:,\d{3})*(?:\.\d+)?",
            "(foo|bar)+",
            "((a|b)c)+",
            "(?:a|(?:b|c)+)",
            "(x(?>a+))+",
            "(a+){4}",
            "[ab]+",
        ),
        *("[ab]+", Thoughts.extractor, r"\d+|\w+", "(a|a)", "(?=a+)b"),
    ],
)
def test_what_does_not_is_read(pattern):
    check_pattern(pattern)


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("(", "unterminated"), ("(" * 5_000, "too many parts"), ("a{99999999999}", "too large")],
)
def test_what_is_no_expression_is_refused(pattern, message):
    with pytest.raises(ValueError, match=message):
        check_pattern(pattern)


def test_the_tasks_of_the_package_pass():
    assert all(load_task(name) for name in shipped_tasks())


@pytest.mark.parametrize(
    "pattern",
    [
        "(?:(?:(?:(?:a?){4}){4}){4}){4}b",
        "(?:(?:(?:a{0,4}){0,4}){0,4}){0,4}b",
        "(?i)(?:ab|AB)+c",
    ],
)
def test_few_times_few_are_many_and_a_flag_may_ignore_the_case(pattern):
    with pytest.raises(ValueError, match="may take hours"):
        check_pattern(pattern)


@pytest.mark.parametrize(
    "pattern",
    [".*.*.*.*.*.*x", "(?s)(.*)a(.*)b(.*)c(.*)d(.*)e(.*)f", "a*(b*|c+d*e+)f*g{0,200}", "(?:a*b*c*d*e*f*)?g"],
)
def test_many_parts_of_any_length_are_refused(pattern):
    with pytest.raises(ValueError, match="at most 5 parts of any length"):
        check_pattern(pattern)


@pytest.mark.parametrize("pattern", ["^.*?(-?[0-9.,]+)\\s*$", "(a*b|c*d)e*f*g*h*", "x{3,90}" * 9])
def test_a_few_parts_of_any_length_are_read(pattern):
    check_pattern(pattern)
