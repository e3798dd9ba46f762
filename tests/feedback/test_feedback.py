import gzip
import json
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers

from jaxrl_align import data, feedback, losses
from jaxrl_align.data.files import DATA_VARIABLE
from jaxrl_align.feedback import Comment, Comparison, Correction, Label, Ranking, Rating
from tests.messages.feedback import BAD_ROWS

HARMLESS = Path(os.environ.get(DATA_VARIABLE, "")) / "preference" / "hh_rlhf_harmless-base_test.jsonl.gz"
ASK, YES, NO = (
    {"role": role, "content": text} for role, text in (("user", "u"), ("assistant", "y"), ("assistant", "n"))
)
CALL = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}
POST = {
    "info": {"id": "t3", "post": "Long.", "title": "Car", "subreddit": "law"},
    "worker": "w1",
    "batch": "b",
}
SUMMARIES = {
    "summaries": [{"text": " a", "policy": "p"}, {"text": " b", "policy": "ref", "note": None}],
    "choice": 1,
}
TLDR = "SUBREDDIT: r/law\n\nTITLE: Car\n\nPOST: Long.\n\nTL;DR:"
HUMAN, BOT = "\n\nHuman: ", "\n\nAssistant:"


@pytest.fixture
def write(tmp_path):
    """Write rows into a file, one a line."""

    def to_file(*rows, name="rows.jsonl"):
        path = tmp_path / name
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path.write_bytes(b"".join(line + b"\n" for line in lines))
        return path

    return to_file


@pytest.mark.parametrize(
    ("fields", "row"),
    [
        ({"prompt": "p", "chosen": "c", "rejected": "r"}, Comparison("p", "c", "r")),
        (
            {"prompt": "p", "chosen": "c", "rejected": "r", "margin": 2, "worker": 7, "score": None},
            Comparison("p", "c", "r", 2.0, "7"),
        ),
        (POST | SUMMARIES, Comparison(TLDR, " b", " a", 0.0, "w1")),
        (
            {"info": {"article": "News."}} | SUMMARIES | {"choice": 0},
            Comparison("ARTICLE: News.\n\nTL;DR:", " a", " b"),
        ),
        (
            {"prompt": "p", "completions": ["a", "b", "c"], "ranking": [2, 1, 2], "annotator": "x"},
            Ranking("p", ["a", "b", "c"], [2, 1, 2], "x"),
        ),
        ({"prompt": "p", "completions": ["a", "b"], "ranking": [1, 1]}, Ranking("p", ["a", "b"], [1, 1])),
        (
            {"prompt": "p", "completions": ["a", "b", "c"], "ranking": [1, 3, 1]},
            Ranking("p", ["a", "b", "c"], [1, 3, 1]),
        ),
        (
            {"prompt": "p", "completions": ["a", "b", "c"], "ranking": [1, 2, 1]},
            Ranking("p", ["a", "b", "c"], [1, 2, 1]),
        ),
        ({"prompt": "p", "completion": "c", "score": 1}, Rating("p", "c", 1.0)),
        ({"prompt": "p", "completion": "c", "score": 9.5}, Rating("p", "c", 9.5)),
        (
            POST | {"summary": {"text": " s", "axes": {"overall": 3, "accuracy": 5}}},
            Rating(TLDR, " s", 3.0, "w1"),
        ),
        ({"prompt": "p", "completion": "c", "text": "Too long."}, Comment("p", "c", "Too long.")),
        ({"prompt": "", "completion": "c", "correction": "d"}, Correction("", "c", "d")),
        ({"prompt": "p", "completion": "c", "label": True}, Label("p", "c", True)),
        ({"prompt": "p", "completion": "c", "label": 0, "worker": "w"}, Label("p", "c", False, "w")),
        ({"prompt": [ASK], "completion": [YES], "label": False}, Label([ASK], [YES], False)),
        ({"prompt": [ASK], "chosen": [YES], "rejected": [NO]}, Comparison([ASK], [YES], [NO])),
        (
            {"prompt": [ASK], "completion": [CALL, YES | {"content": ""}], "label": True},
            Label([ASK], [CALL, YES | {"content": ""}], True),
        ),
        (
            {"chosen": [ASK, YES, NO], "rejected": [ASK, YES, ASK]},
            Comparison([ASK], [YES, NO], [YES, ASK]),
        ),
        ({"prompt": "u", "chosen": [YES], "rejected": [NO]}, Comparison("u", [YES], [NO])),
        ({"prompt": "u", "chosen": [ASK, YES], "rejected": [ASK, NO]}, Comparison([ASK], [YES], [NO])),
        (
            {"chosen": [ASK, YES, ASK, NO], "rejected": [ASK, YES, ASK, YES]},
            Comparison([ASK, YES, ASK], [NO], [YES]),
        ),
        (
            {"chosen": [ASK, YES, ASK, NO], "rejected": [ASK, YES]},
            Comparison([ASK], [YES, ASK, NO], [YES]),
        ),
    ],
)
def test_rows_of_every_format(fields, row, write):
    path = write(fields)
    (got,), skipped = feedback.read_feedback(path)
    assert got == row._replace(source=f"{path}:1") and type(got) is type(row) and not skipped
    if hasattr(got, "label"):
        assert isinstance(got.label, bool)


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        (" The cat.", " The dog.", f"{HUMAN}Who?{BOT}"),  # the answers begin alike
        (f" Me.{HUMAN}Why?{BOT} So.", f" Me.{HUMAN}Why?{BOT} No.", f"{HUMAN}Who?{BOT} Me.{HUMAN}Why?{BOT}"),
        (f" Me.{HUMAN}Why?{BOT} So.", f" Me.{HUMAN}When?{BOT} No.", f"{HUMAN}Who?{BOT}"),
        (f" Me.{HUMAN}Why?{BOT} So.", " Me.", f"{HUMAN}Who?{BOT}"),
        (" An\n\nAssistant is\n\none.", " An\n\nAssistant is\n\nnone.", f"{HUMAN}Who?{BOT}"),
    ],
)
def test_the_prompt_of_a_dialogue_is_what_its_turns_have_in_common(chosen, rejected, prompt, write):
    chosen, rejected = (f"{HUMAN}Who?{BOT}{side}" for side in (chosen, rejected))
    (row,), _ = feedback.read_feedback(write({"chosen": chosen, "rejected": rejected}))
    assert row.prompt == prompt
    assert (row.prompt + row.chosen, row.prompt + row.rejected) == (chosen, rejected)


def test_a_correction_is_a_comparison_too():
    row = Correction("p", "was", "is", "ann", "f:3")
    assert feedback.compare_correction(row) == Comparison("p", "is", "was", 0.0, "ann", "f:3")


GOOD = {"prompt": "p", "chosen": "c", "rejected": "r"}


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_bad_rows_are_counted_and_named_by_line(suffix, write):
    """A blank line is none but counts as a line; U+2028 ends no line; a byte order mark is no text."""
    lines = (
        b"\xef\xbb\xbf" + json.dumps(GOOD).encode(),
        b" ",
        b"{",
        b"\xff",
        GOOD | {"chosen": "a\u2028b"},
        GOOD | {"rejected": " "},
    )
    path = write(*lines)
    if suffix:
        packed = path.with_name("rows.jsonl.gz")
        packed.write_bytes(gzip.compress(path.read_bytes()))
        path = packed
    rows, skipped = feedback.read_feedback(path, skip_bad_rows=True)
    assert [row.source for row in rows] == [f"{path}:1", f"{path}:5"]
    assert rows[0] == Comparison("p", "c", "r", source=f"{path}:1")
    assert [message.split(": ")[0] for message in skipped] == [f"{path}:{line}" for line in (3, 4, 6)]
    assert "rejected is empty" in skipped[2]
    with pytest.raises(ValueError, match=":3: the row must be JSON, one object a line"):
        feedback.read_feedback(path)


@pytest.mark.parametrize("name", BAD_ROWS)
def test_every_bad_row_may_be_skipped(name, write):
    good, bad, kind, says = BAD_ROWS[name]
    path = write(good, bad, good)
    rows, (message,) = feedback.read_feedback(path, kind, skip_bad_rows=True)
    assert [row.source for row in rows] == [f"{path}:1", f"{path}:3"]
    assert message.startswith(f"{path}:2: ")


def test_an_ambiguous_file_is_read_when_its_kind_is_named(write):
    fields = {"prompt": "p", "completion": "c", "score": 2, "label": False}
    path = write(fields)
    assert feedback.read_feedback(path, "rating").rows == [Rating("p", "c", 2.0, source=f"{path}:1")]
    assert feedback.read_feedback(path, "label").rows == [Label("p", "c", False, source=f"{path}:1")]
    narrow = feedback.read_feedback(path, "rating", scale=(-2.5, 2)).rows
    assert narrow[0].score == 2.0, "both ends of the scale are on it"


def test_the_first_row_sets_the_kind_even_if_it_is_bad(write):
    path = write(
        {"prompt": "p", "completion": "c", "score": 11}, GOOD, {"prompt": "p", "completion": "c", "score": 10}
    )
    rows, skipped = feedback.read_feedback(path, skip_bad_rows=True)
    assert [row.source for row in rows] == [f"{path}:3"] and len(skipped) == 2
    assert "a rating must have the fields completion and score" in skipped[1]


@pytest.fixture(scope="module")
def greedy():
    """A tokenizer with the merge `ab`, which would reach over the border of "xa" and "bx"."""
    vocab = {"<pad>": 0, "<stop>": 1, "a": 2, "b": 3, "x": 4, "ab": 5}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("a", "b")]))
    tokenizer = data.Tokenizer(backend)
    assert tokenizer.encode("xabx") == [4, 5, 4]
    return tokenizer


def lists(answers):
    return [[int(x) for x in row] for row in answers]


def test_nothing_merges_over_the_border_and_each_side_has_its_mask(greedy):
    rows = [Comparison("xa", "bx", "b"), Comparison("a", "ab", "x")]
    chosen, rejected = feedback.encode_comparisons(greedy, rows, length=6)
    assert lists(chosen.tokens) == [[4, 2, 3, 4, 1, 0], [2, 5, 1, 0, 0, 0]]
    assert lists(chosen.real) == [[1, 1, 1, 1, 1, 0], [1, 1, 1, 0, 0, 0]]
    assert lists(chosen.response) == [[0, 0, 1, 1, 1, 0], [0, 1, 1, 0, 0, 0]]
    assert lists(rejected.tokens) == [[4, 2, 3, 1, 0, 0], [2, 4, 1, 0, 0, 0]]
    assert lists(rejected.response) == [[0, 0, 1, 1, 0, 0], [0, 1, 1, 0, 0, 0]]
    kinds = chosen.tokens.dtype, chosen.real.dtype, chosen.response.dtype
    assert kinds == (np.int32, np.float32, np.float32)


def test_a_long_prompt_keeps_its_end_and_both_sides_see_the_same(greedy):
    """Five of the prompt's tokens would fit before the shorter answer; four fit before the longer one."""
    chosen, rejected = feedback.encode_comparisons(greedy, [Comparison("xxaxaxa", "b", "bx")], length=7)
    assert lists(chosen.tokens) == [[4, 2, 4, 2, 3, 1, 0]]
    assert lists(rejected.tokens) == [[4, 2, 4, 2, 3, 4, 1]]
    assert lists(chosen.response) == [[0, 0, 0, 0, 1, 1, 0]]
    assert lists(rejected.response) == [[0, 0, 0, 0, 1, 1, 1]]
    whole = feedback.encode_answers(greedy, [Rating("xa", "bx", 3.0)], length=5)
    assert lists(whole.tokens) == [[4, 2, 3, 4, 1]] and whole.real.all()


def test_the_longest_completion_that_fits_leaves_one_token_of_its_prompt(greedy):
    rows = [Label("xxa", "xxx", True, source="f:1"), Label("xxa", "xxxx", True, source="f:2")]
    assert lists(feedback.encode_answers(greedy, rows[:1], length=5).tokens) == [[2, 4, 4, 4, 1]]
    kept, skipped = feedback.choose_fitting(greedy, rows, length=5)
    assert kept == rows[:1]
    (message,) = skipped
    assert message.startswith("f:2: a completion of 5 tokens and one of its prompt must fit length=5; allow")
    with pytest.raises(ValueError, match="f:2: a completion of 5"):
        feedback.encode_answers(greedy, rows, length=5)
    correction = Correction("x", "a", "xxxx")
    kept, skipped = feedback.choose_fitting(greedy, [correction, *rows], length=5)
    assert kept == rows[:1] and skipped[0].startswith("row 0: a completion of 5")
    assert not feedback.choose_fitting(greedy, [correction], length=6).skipped


def test_rankings_are_ragged_best_first_and_keep_their_ties(greedy):
    rows = [
        Ranking("x", ["a", "b", "x"], [2, 1, 2]),
        Ranking("x", ["a", "x"], [2, 1]),
    ]
    answers, ranks, mask = feedback.encode_rankings(greedy, rows, length=4)
    assert answers.tokens.shape == answers.real.shape == answers.response.shape == (2, 3, 4)
    assert answers.tokens[:, :, 1].tolist() == [[3, 2, 4], [4, 2, 4]], "the padding repeats the best"
    assert answers.real.sum(-1).tolist() == [[3.0] * 3] * 2
    assert answers.response.tolist() == [[[0, 1, 1, 0]] * 3] * 2
    assert ranks.tolist() == [[1, 2, 2], [1, 2, 4]] and ranks.dtype == np.int32
    assert mask.tolist() == [[1, 1, 1], [1, 1, 0]] and mask.dtype == np.float32

    def loss(scores):
        return jax.vmap(losses.all_pairs)(scores, ranks, mask), jax.vmap(losses.plackett_luce)(scores, mask)

    pairs, whole = loss(jnp.array([[1.0, 0.0, 5.0], [1.0, 0.0, 9.0]]))
    sigma = lambda d: np.log1p(np.exp(-d))
    np.testing.assert_allclose(pairs, [(sigma(1) + sigma(-4)) / 2, sigma(1)], rtol=1e-6)
    np.testing.assert_allclose(whole[1], sigma(1), rtol=1e-6)


def test_what_a_tokenizer_puts_around_a_text_goes_around_the_prompt_alone(greedy):
    """A BOS, which goes first where the prompt is cut."""
    backend = tokenizers.Tokenizer.from_str(greedy._backend.to_str())
    backend.post_processor = tokenizers.processors.TemplateProcessing("<pad> $A", None, [("<pad>", 0)])
    row = Rating("xa", "b", 1.0)
    answers = feedback.encode_answers(data.Tokenizer(backend), [row], length=6)
    assert lists(answers.tokens) == [[0, 4, 2, 3, 1, 0]]
    assert lists(answers.real) == [[1, 1, 1, 1, 1, 0]], "the mask tells padding, not the token"
    assert lists(feedback.encode_answers(data.Tokenizer(backend), [row], length=4).tokens) == [[4, 2, 3, 1]]


TEMPLATE = (
    "{% for m in messages %}<turn>{{ m.role[0] }}{{ m.content }}<stop>{% endfor %}"
    "{% if add_generation_prompt %}<turn>a{{ opening }}{% endif %}"
)


@pytest.fixture(scope="module")
def chatty():
    pytest.importorskip("jinja2")
    backend = data.train_bpe(["uu yy nn"], 258)._backend
    backend.add_special_tokens(["<turn>"])
    return data.Tokenizer(backend, chat_template=data.ChatTemplate(TEMPLATE))


def test_conversations_are_written_by_the_chat_template(chatty):
    """Turns are marked by special tokens; a plain text in a conversation is one turn, its marks are text."""
    turn, stop, (user, bot) = chatty.vocab_size - 1, chatty.stop_token, chatty.encode("ua")
    answer = lambda text: [*chatty.encode(text), stop]
    rows = [
        Comparison([ASK, YES, ASK], [NO], [YES, ASK, NO]),
        Comparison("u", [YES], [NO]),
    ]
    chosen, rejected = feedback.encode_comparisons(chatty, rows, length=32)
    asked = [turn, user, *answer("u")]
    prompt = [*asked, turn, bot, *answer("y"), *asked, turn, bot]
    expected = [*prompt, *answer("n")]
    assert lists(chosen.tokens)[0] == expected + [0] * (32 - len(expected))
    assert chosen.response[0].sum() == 2 and chosen.real[0].sum() == len(expected)
    assert lists(rejected.response)[0][: len(prompt)] == [0] * len(prompt)
    assert rejected.response[0].sum() == 2 + 4 + 4
    short = [*asked, turn, bot, *answer("y")]
    assert lists(chosen.tokens)[1][: len(short)] == short
    label = feedback.encode_answers(chatty, [Label([ASK], "y", True)], length=32)
    assert lists(label.tokens)[0][: len(short)] == short
    plain = feedback.encode_answers(chatty, [Label("u", "<turn>", True)], length=32)
    assert turn not in plain.tokens and plain.response.sum() == 7


@pytest.mark.parametrize(("special", "padding"), [({"pad_token": "x"}, 4), ({}, 0)])
def test_the_padding_is_the_tokenizers_own_if_it_has_one(special, padding, greedy):
    tokenizer = data.Tokenizer(greedy._backend, {"eos_token": "<stop>"} | special)
    answers = feedback.encode_answers(tokenizer, [Rating("a", "b", 1.0)], length=5)
    assert lists(answers.tokens) == [[2, 3, 1, padding, padding]]
    assert lists(answers.real) == [[1, 1, 1, 0, 0]]


def test_a_conversation_ends_where_a_policy_stops(chatty):
    """What the template writes behind the last stop token is no token of the answer; between turns it is."""
    lines = data.Tokenizer(
        chatty._backend, chat_template=data.ChatTemplate(TEMPLATE.replace("<stop>", "<stop>|"))
    )
    row = Comparison([ASK], [YES, ASK, NO], [NO])
    chosen, rejected = feedback.encode_comparisons(lines, [row], length=32)
    (bar,), stop = chatty.encode("|"), chatty.stop_token
    said = chosen.tokens[0][chosen.response[0] > 0].tolist()
    assert said[-2:] == [*chatty.encode("n"), stop] and said.count(stop) == 3 and said.count(bar) == 2
    assert rejected.tokens[0][rejected.response[0] > 0].tolist() == [*chatty.encode("n"), stop]
    endless = data.Tokenizer(chatty._backend, {}, lines.chat_template)
    whole = feedback.encode_answers(endless, [Label([ASK], [NO], True)], length=32)
    assert whole.tokens[0][whole.response[0] > 0].tolist() == [*chatty.encode("n"), stop, bar]


def test_a_template_that_leaves_the_answer_out_is_refused(chatty):
    silent = data.ChatTemplate("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    tokenizer = data.Tokenizer(chatty._backend, chat_template=silent)
    with pytest.raises(
        ValueError, match="f:9: prompt and completion must have a token each; got none of one"
    ):
        feedback.encode_answers(tokenizer, [Label([ASK], [YES], True, source="f:9")], length=32)


def test_a_template_that_writes_a_prompt_in_two_ways_is_refused(chatty):
    row = Label([ASK], [YES], True, source="f:9")
    with pytest.raises(ValueError, match=r"f:9: the chat template must write a conversation alike .*'<turn>"):
        feedback.encode_answers(chatty, [row], length=32, opening="<think>")
    with pytest.raises(ValueError, match="f:9: this tokenizer has no chat template"):
        feedback.encode_answers(data.byte_tokenizer(), [row], length=32)


@pytest.mark.skipif(not HARMLESS.is_file(), reason="needs Anthropic's HH")
def test_the_harmless_test_file():
    """Four of its 2,312 rows have an empty answer."""
    with pytest.raises(ValueError, match=r"gz:\d+: chosen is empty"):
        feedback.read_feedback(HARMLESS)
    rows, skipped = feedback.read_feedback(HARMLESS, skip_bad_rows=True)
    assert (len(rows), len(skipped)) == (2308, 4)
    with gzip.open(HARMLESS, "rt", encoding="utf-8") as file:
        lines = [json.loads(line) for line in file]
    for row in rows:
        line = lines[int(row.source.rsplit(":", 1)[1]) - 1]
        assert row.prompt.endswith(BOT) and row.prompt + row.chosen == line["chosen"]
        assert row.prompt + row.rejected == line["rejected"]
    tokenizer = data.byte_tokenizer()
    fitting, long = feedback.choose_fitting(tokenizer, rows[:200], length=512)
    assert len(fitting) + len(long) == 200 and len(long) > 10
    chosen, rejected = feedback.encode_comparisons(tokenizer, fitting, length=512)
    for row, tokens, response in zip(fitting, chosen.tokens, chosen.response, strict=True):
        assert tokenizer.decode(tokens[response > 0]) == row.chosen
