"""Patterns of adapters: as Python's own matcher finds, in a time that no pattern makes long."""

import random
import re
import time

import pytest

from jaxrl_align.runtime.huggingface.adapters.patterns import is_whole_match

NAMES = (
    *(
        "",
        "a",
        "model.layers.0.self_attn.q_proj",
        "model.layers.11.mlp.down_proj",
        "transformer.h.1.attn.c_attn",
    ),
    *("lm_head", "model.norm", "aab", "a.b", "x1_y2", "layers.3.", "q_proj", "a\nb"),
)
PATTERNS = (
    *(
        "",
        "a",
        ".*",
        ".*?",
        r".*\.(q_proj|v_proj)$",
        r"^model\..*",
        r"model\.layers\.\d+\.mlp\..*",
        r"(?:a|ab)b?",
    ),
    *(
        r"^(?!.*self_attn).*proj$",
        r"(?=.*1).*",
        r".*(?<=q_)proj",
        r".*(?<!q_)proj",
        r"[^.]*",
        r"[a-z_]+",
        r"\w+",
    ),
    *(
        r"\D*",
        r"[\d.]*",
        r"a{2}b",
        r"a{1,}b?",
        r"(a|b|\.){3}",
        r".*\blayers\b.*",
        r".*\Bproj",
        r"\A.*\Z",
        r"\W*",
    ),
    *(
        r"(.+)+",
        r"(?:.*?\.)?layers\.\d+\..*",
        r"a*?b",
        r"[^\d]*\d+[^\d]*",
        r"(?P<name>a)b|.",
        r"\S*",
        r"a.b",
        r"[\s\w.]*",
    ),
    *(
        r".*\.(0|11)\..*(?:q|down)_proj",
        r"(a?){5}b",
        r"(?:(?:a*)*)*b",
        r"()*",
        r"(|a)+b",
        r".*$",
        r"[]a]b?",
        r"a|",
    ),
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_answer_is_pythons(pattern):
    for name in NAMES:
        assert is_whole_match(pattern, name) == (re.fullmatch(pattern, name) is not None), name


def test_the_answer_is_pythons_for_patterns_drawn_at_random():
    draw = random.Random(0)
    pieces = [
        "a",
        "b",
        ".",
        "(a|b)",
        "(?:ab)",
        "[ab]",
        "[^a]",
        "(?!b)",
        "(?=a)",
        "a|",
        "(?<=a)",
        r"\b",
        "^",
        "$",
    ]
    ends = ["", "", "", "*", "+", "?", "*?", "{2}", "{1,2}", "{0,}"]
    for _ in range(3000):
        pattern = "".join(draw.choice(pieces) + draw.choice(ends) for _ in range(draw.randint(1, 4)))
        pattern = draw.choice([pattern, f"({pattern})*", f"(?:{pattern})?a"])
        try:
            whole = re.compile(pattern)
        except re.error:
            continue
        name = "".join(draw.choice("ab.") for _ in range(draw.randint(0, 6)))
        assert is_whole_match(pattern, name) == (whole.fullmatch(name) is not None), (pattern, name)


@pytest.mark.parametrize(
    "pattern",
    [
        "(a+)+$",
        "(.+)+x",
        "(a?){99999999}b",
        "(?:.|.)*x",
        ".?" * 300 + "x",
        ".*" * 300 + "x",
        "(" * 40 + "a" + ")*" * 40,
    ],
)
def test_no_pattern_takes_long(pattern):
    begin = time.process_time()
    assert not is_whole_match(pattern, "a" * 60 + "!")
    assert time.process_time() - begin < 2


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("(", "missing"),
        (r"(a)\1", "groupref is not supported"),
        ("(?i)a", "flags are not supported"),
        ("(?i:a)", "subpattern is not supported"),
        ("a*+", "possessive_repeat is not supported"),
        ("a" * 4_001, "it has 4001 characters, more than 4000"),
        ("(" * 400 + "a" + ")" * 400, "nested too deep"),
        ("a{99999999999}", "too large"),
    ],
)
def test_what_is_not_supported_is_refused(pattern, message):
    with pytest.raises(ValueError, match=message):
        is_whole_match(pattern, "a")
