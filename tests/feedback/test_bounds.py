"""Rows of others are read in bounded time and memory, whatever they hold."""

import itertools
import json
import time
import tracemalloc

import pytest

from jaxrl_align.feedback import fields, read_demonstrations, read_feedback, read_votes
from jaxrl_align.feedback.rows import _are_places

GOOD, BAD = b'{"prompt": "p", "completion": "c"}\n', b"x\n"


def test_a_file_of_mostly_bad_rows_is_refused_even_where_they_are_skipped(tmp_path, monkeypatch):
    monkeypatch.setattr(fields, "MOST_BAD", 3)
    path = tmp_path / "a.jsonl"
    path.write_bytes(BAD * 3 + GOOD)
    assert len(read_demonstrations(path, skip_bad_rows=True).skipped) == 3
    path.write_bytes(GOOD * 4 + BAD * 4)
    assert len(read_demonstrations(path, skip_bad_rows=True).skipped) == 4
    path.write_bytes(GOOD * 4 + BAD * 5)
    with pytest.raises(
        ValueError, match=r"a\.jsonl must hold more good rows than bad ones; got 4 and 5; .*:5"
    ):
        read_demonstrations(path, skip_bad_rows=True)


def test_places_are_those_that_counting_finds():
    def counted(ranks):
        different = set(ranks)
        skipping = all(rank == 1 + sum(other < rank for other in ranks) for rank in ranks)
        return skipping or different == set(range(1, 1 + len(different)))

    for length in range(1, 5):
        for ranks in itertools.product(range(-1, 6), repeat=length):
            assert _are_places(list(ranks)) == counted(ranks), ranks


def test_a_ranking_of_many_takes_no_square_of_time(tmp_path):
    many = 20_000
    row = {"prompt": "p", "completions": [f"c{i}" for i in range(many)], "ranking": list(range(1, many + 1))}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row))
    start = time.process_time()
    assert len(read_feedback(path).rows[0].completions) == many
    assert time.process_time() - start < 2.0


def test_two_alike_among_many_are_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(
        json.dumps({"prompt": "p", "completions": ["a", "b", "c", " b"], "ranking": [1, 2, 3, 4]})
    )
    with pytest.raises(ValueError, match=r"completions\[1\] and completions\[3\] are identical"):
        read_feedback(path)
    row = {"prompt": "p", "completions": ["a", [{"role": "assistant", "content": "a"}]], "ranking": [1, 2]}
    path.write_text(json.dumps(row))
    with pytest.raises(ValueError, match=r"completions\[0\] and completions\[1\] must both be texts"):
        read_feedback(path)


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        ({"role": "user", "content": 5}, r"content of prompt\[0\] must be a text; got int '5'"),
        ({"role": "user", "content": {"a": 1}}, r"content of prompt\[0\] must be a text"),
        ({"role": "\ud800", "content": "a"}, r"prompt\[0\] must be Unicode; got half a surrogate pair"),
        ({"role": "user", "content": "a", "name": "\udc00"}, r"prompt\[0\] must be Unicode"),
    ],
)
def test_messages_hold_text(tmp_path, message, fault):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"prompt": [message], "completion": [{"role": "assistant", "content": "b"}]}))
    with pytest.raises(ValueError, match=r"a\.jsonl:1: .*" + fault):
        read_demonstrations(path)


def test_a_message_quotes_names_in_one_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"a\u2028b\n" + "c" * 9_000: 1}))
    with pytest.raises(ValueError) as caught:
        read_demonstrations(path)
    assert len(str(caught.value).splitlines()) == 1 and len(str(caught.value)) < 700


def test_a_long_name_among_votes_costs_its_own_length(tmp_path):
    path = tmp_path / "votes.csv"
    path.write_text("x" * 100_000 + ",1,0,0\n" + "".join(f"a{i},{i},0,0\n" for i in range(2_000)))
    tracemalloc.start()
    votes, gold, names = read_votes(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(names) == 2_001 and len(votes.label) == 2_001 and len(gold) == 2_000
    assert peak < 10 * 2**20


@pytest.mark.parametrize(
    "row", [" ,1,0,0", "a,,0,0", "a,1,\u0661,0", "a,1,0," + "9" * 5_000, "a,1,0,9999999999"]
)
def test_votes_need_names_and_plain_numbers(tmp_path, row):
    path = tmp_path / "votes.csv"
    path.write_text(f"a,0,0,0\n\n{row}\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"votes\.csv:3: expected annotator, item, label, gold; got"):
        read_votes(path)


def test_a_second_gold_label_has_its_line(tmp_path):
    path = tmp_path / "votes.csv"
    path.write_text("a,0,0,0\n\nb,1,0,0\n\nb,0,0,1\n")
    with pytest.raises(ValueError, match=r"votes\.csv:5: item 0 has gold label 1, before it had 0"):
        read_votes(path)
