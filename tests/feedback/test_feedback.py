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


LONG = {"prompt_length": 32, "completion_length": 32}


def lists(answers):
    return [[int(x) for x in row] for row in answers]


def said(texts):
    return [row[real > 0].tolist() for row, real in zip(*texts, strict=True)]


def test_nothing_merges_over_the_border_and_each_side_has_its_mask(greedy):
    rows = [Comparison("xa", "bx", "b", 0.5), Comparison("a", "ab", "x")]
    got = feedback.encode_comparisons(greedy, rows, prompt_length=3, completion_length=4)
    assert lists(got.prompt.tokens) == [[0, 4, 2], [0, 0, 2]], "padded on the left"
    assert lists(got.prompt.real) == [[0, 1, 1], [0, 0, 1]]
    assert lists(got.chosen.tokens) == [[3, 4, 1, 0], [5, 1, 0, 0]], "and on the right, behind the stop"
    assert lists(got.chosen.real) == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert lists(got.rejected.tokens) == [[3, 1, 0, 0], [4, 1, 0, 0]]
    assert got.margin.tolist() == [0.5, 0.0] and got.flip_chance is None
    assert (got.chosen.tokens.dtype, got.chosen.real.dtype) == (np.int32, np.float32)


def test_a_long_prompt_keeps_its_end(greedy):
    got = feedback.encode_comparisons(
        greedy, [Comparison("xxaxaxa", "b", "bx")], prompt_length=4, completion_length=3
    )
    assert lists(got.prompt.tokens) == [greedy.encode("xxaxaxa")[-4:]]
    assert lists(got.rejected.tokens) == [[3, 4, 1]] and got.rejected.real.all()


def test_values_are_scores_and_labels(greedy):
    lengths = {"prompt_length": 1, "completion_length": 2}
    scores = feedback.encode_ratings(greedy, [Rating("x", "a", 7.5), Rating("x", "b", 3)], **lengths)
    assert scores.value.tolist() == [7.5, 3.0] and scores.value.dtype == np.float32
    assert lists(scores.completion.tokens) == [[2, 1], [3, 1]]
    labels = feedback.encode_ratings(greedy, [Label("x", "a", True), Label("x", "b", False)], **lengths)
    assert labels.value.tolist() == [1.0, 0.0]


def test_a_completion_is_never_cut(greedy):
    rows = [Label("xxa", "xxx", True, source="f:1"), Label("xxa", "xxxx", True, source="f:2")]
    lengths = {"prompt_length": 9, "completion_length": 4}
    whole = feedback.encode_ratings(greedy, rows[:1], **lengths)
    assert lists(whole.completion.tokens) == [[4, 4, 4, 1]]
    kept, skipped = feedback.choose_fitting(greedy, rows, **lengths)
    assert kept == rows[:1]
    (message,) = skipped
    assert message.startswith("f:2: a completion of 5 tokens must fit completion_length=4; allow")
    with pytest.raises(ValueError, match="f:2: a completion of 5"):
        feedback.encode_ratings(greedy, rows, **lengths)
    correction = Correction("x", "a", "xxxx")
    kept, skipped = feedback.choose_fitting(greedy, [correction, *rows], **lengths)
    assert kept == rows[:1] and skipped[0].startswith("row 0: a completion of 5")
    assert not feedback.choose_fitting(greedy, [correction], prompt_length=1, completion_length=5).skipped


def test_rankings_are_ragged_best_first_and_keep_their_ties(greedy):
    rows = [
        Ranking("xa", ["a", "b", "x"], [2, 1, 2]),
        Ranking("x", ["a", "x"], [2, 1]),
    ]
    got = feedback.encode_rankings(greedy, rows, prompt_length=2, completion_length=3)
    assert lists(got.prompt.tokens) == [[4, 2], [0, 4]] and lists(got.prompt.real) == [[1, 1], [0, 1]]
    assert got.completions.tokens.shape == got.completions.real.shape == (2, 3, 3)
    assert got.completions.tokens[:, :, 0].tolist() == [[3, 2, 4], [4, 2, 4]], "the padding repeats the best"
    assert got.completions.real.sum(-1).tolist() == [[2.0] * 3] * 2
    assert got.ranks.tolist() == [[1, 2, 2], [1, 2, 4]] and got.ranks.dtype == np.int32
    assert got.mask.tolist() == [[1, 1, 1], [1, 1, 0]] and got.mask.dtype == np.float32

    scores = jnp.array([[1.0, 0.0, 5.0], [1.0, 0.0, 9.0]])
    pairs, whole = (
        jax.vmap(loss)(scores, got.ranks, got.mask) for loss in (losses.all_pairs, losses.plackett_luce)
    )
    sigma = lambda d: np.log1p(np.exp(-d))
    np.testing.assert_allclose(pairs, [(sigma(1) + sigma(-4)) / 2, sigma(1)], rtol=1e-6)
    np.testing.assert_allclose(whole[1], sigma(1), rtol=1e-6)


def test_what_a_tokenizer_puts_around_a_text_goes_around_the_prompt_alone(greedy):
    """A BOS, which goes first where the prompt is cut."""
    backend = tokenizers.Tokenizer.from_str(greedy._backend.to_str())
    backend.post_processor = tokenizers.processors.TemplateProcessing("<pad> $A", None, [("<pad>", 0)])
    encode = lambda length: feedback.encode_ratings(
        data.Tokenizer(backend), [Rating("xa", "b", 1.0)], prompt_length=length, completion_length=3
    )
    assert lists(encode(4).prompt.tokens) == [[0, 0, 4, 2]]
    assert lists(encode(4).prompt.real) == [[0, 1, 1, 1]], "the mask tells padding, not the token"
    assert lists(encode(2).prompt.tokens) == [[4, 2]]
    assert lists(encode(4).completion.tokens) == [[3, 1, 0]]


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
    got = feedback.encode_comparisons(chatty, rows, **LONG)
    asked = [turn, user, *answer("u")]
    prompt = [*asked, turn, bot, *answer("y"), *asked, turn, bot]
    assert said(got.prompt)[0] == prompt and said(got.chosen)[0] == answer("n")
    assert got.rejected.real[0].sum() == 2 + 4 + 4
    assert said(got.prompt)[1] == [*asked, turn, bot] and said(got.chosen)[1] == answer("y")
    label = feedback.encode_ratings(chatty, [Label([ASK], "y", True)], **LONG)
    assert said(label.prompt) == [[*asked, turn, bot]] and said(label.completion) == [answer("y")]
    plain = feedback.encode_ratings(chatty, [Label("u", "<turn>", True)], **LONG)
    assert turn not in plain.completion.tokens and plain.completion.real.sum() == 7


KINDS_WITH_TOOLS = {
    "comparison": ({"chosen": "y", "rejected": "n"}, feedback.encode_comparisons),
    "ranking": ({"completions": ["y", "n"], "ranking": [1, 2]}, feedback.encode_rankings),
    "rating": ({"completion": "y", "score": 3}, feedback.encode_ratings),
    "label": ({"completion": "y", "label": True}, feedback.encode_ratings),
    "correction": ({"completion": "n", "correction": "y"}, feedback.encode_comparisons),
}


@pytest.mark.parametrize("kind", KINDS_WITH_TOOLS)
def test_a_rows_tools_are_given_to_its_template(chatty, tmp_path, kind):
    """As the variable `tools` gives them to all rows, and before it; an empty list is none."""
    template = data.ChatTemplate("{% if tools %}{{ tools[0].name }}{% endif %}" + TEMPLATE)
    offering = data.Tokenizer(chatty._backend, chat_template=template)
    fields, encode = KINDS_WITH_TOOLS[kind]
    given = [[{"name": "add"}], '[{"name": "add"}]', [], None]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(fields | {"prompt": [ASK], "tools": x}) for x in given))
    rows = feedback.read_feedback(path, kind).rows
    rows = [feedback.compare_correction(row) if kind == "correction" else row for row in rows]
    found = said(encode(offering, rows, **LONG).prompt)
    bare = said(encode(chatty, rows[3:], **LONG).prompt)[0]
    assert found == [[*offering.encode("add"), *bare]] * 2 + [bare] * 2
    assert said(encode(offering, rows, tools=[{"name": "sum"}], **LONG).prompt) == [
        *found[:2],
        *[[*offering.encode("sum"), *bare]] * 2,
    ]
    path.write_text(json.dumps(fields | {"prompt": "u", "tools": "add"}))
    with pytest.raises(ValueError, match="rows.jsonl:1: tools must be a list of JSON schemas"):
        feedback.read_feedback(path)


@pytest.mark.parametrize(("special", "padding"), [({"pad_token": "x"}, 4), ({}, 0)])
def test_the_padding_is_the_tokenizers_own_if_it_has_one(special, padding, greedy):
    tokenizer = data.Tokenizer(greedy._backend, {"eos_token": "<stop>"} | special)
    row = Rating("a", "b", 1.0)
    prompt, completion, _ = feedback.encode_ratings(tokenizer, [row], prompt_length=2, completion_length=3)
    assert lists(prompt.tokens) == [[padding, 2]] and lists(completion.tokens) == [[3, 1, padding]]
    assert lists(completion.real) == [[1, 1, 0]]


def test_a_conversation_ends_where_a_policy_stops(chatty):
    """What the template writes behind the last stop token is no token of the answer; between turns it is."""
    lines = data.Tokenizer(
        chatty._backend, chat_template=data.ChatTemplate(TEMPLATE.replace("<stop>", "<stop>|"))
    )
    row = Comparison([ASK], [YES, ASK, NO], [NO])
    got = feedback.encode_comparisons(lines, [row], **LONG)
    (bar,), stop = chatty.encode("|"), chatty.stop_token
    (chosen,) = said(got.chosen)
    assert chosen[-2:] == [*chatty.encode("n"), stop] and chosen.count(stop) == 3 and chosen.count(bar) == 2
    assert said(got.rejected) == [[*chatty.encode("n"), stop]]
    endless = data.Tokenizer(chatty._backend, {}, lines.chat_template)
    whole = feedback.encode_ratings(endless, [Label([ASK], [NO], True)], **LONG)
    assert said(whole.completion) == [[*chatty.encode("n"), stop, bar]]


def test_a_conversation_ends_at_any_of_the_models_stop_tokens(chatty):
    """As Gemma's: a turn ends in a token that is not the tokenizer's own stop token."""
    source = "{% for m in messages %}{{ m.role[0] }}{{ m.content }}<turn>|{% endfor %}"
    source += "{% if add_generation_prompt %}a{% endif %}"
    turn = chatty.vocab_size - 1
    tokenizer = data.Tokenizer(chatty._backend, chat_template=data.ChatTemplate(source)).with_stops([turn])
    assert tokenizer.stop_tokens == (chatty.stop_token, turn)
    got = feedback.encode_ratings(tokenizer, [Label([ASK], [NO], True)], **LONG)
    assert said(got.completion) == [[*chatty.encode("n"), turn]]
    dialogue = feedback.Dialogue([ASK, YES, ASK, NO])
    ((ids, imitated),) = feedback.tokenise_demonstrations(tokenizer, [dialogue])
    spoken = [token for token, own in zip(ids, imitated, strict=True) if own]
    assert spoken == [*chatty.encode("y"), turn, *chatty.encode("n"), turn] and ids[-1] == turn


SPACED = "{{ bos_token }}{% for m in messages %}{{ '[' + m.content + ']' if m.role == 'user' else "
SPACED += "m.content + eos_token }}{% endfor %}"


@pytest.fixture(scope="module")
def spaced():
    """A tokenizer that begins every text with a space, as Llama 2's and Mistral's do."""
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", *"_[]abc", "_a", "bc"])}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab, [("_", "a"), ("b", "c")]))
    steps = [tokenizers.normalizers.Prepend("_"), tokenizers.normalizers.Replace(" ", "_")]
    backend.normalizer = tokenizers.normalizers.Sequence(steps)
    steps = [tokenizers.decoders.Replace("_", " "), tokenizers.decoders.Fuse()]
    backend.decoder = tokenizers.decoders.Sequence([*steps, tokenizers.decoders.Strip(" ", 1, 0)])
    backend.add_special_tokens(["<s>", "</s>"])
    backend.post_processor = tokenizers.processors.TemplateProcessing("<s> $A", None, [("<s>", 0)])
    special = {"bos_token": "<s>", "eos_token": "</s>"}
    return data.Tokenizer(backend, special, data.ChatTemplate(SPACED, special))


@pytest.mark.parametrize(
    ("prompt", "completion", "ids"),
    [
        ("c", " a", ["_a"]),
        ("c", "a", ["a"]),
        ([{"role": "user", "content": "c"}], " a", ["_a"]),
        ([{"role": "user", "content": "c"}], "a", ["a"]),
        ("b", "ca", ["_", "c", "a"]),  # together it would be `bc`, which reaches over the border
    ],
)
def test_an_answer_is_written_as_it_goes_on_from_its_prompt(spaced, prompt, completion, ids):
    """No space is put between the two, as one is before a text that stands alone."""
    pytest.importorskip("jinja2")
    got = feedback.encode_ratings(spaced, [Label(prompt, completion, True)], **LONG)
    assert [spaced._backend.id_to_token(i) for i in said(got.completion)[0]] == [*ids, "</s>"]
    if isinstance(prompt, str):
        assert said(got.prompt) == [spaced.encode(prompt)]
    else:
        assert said(got.prompt) == [spaced.encode("<s>[c]", special=False, marked=True)]


def test_a_template_that_leaves_the_answer_out_is_refused(chatty):
    silent = data.ChatTemplate("{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}")
    tokenizer = data.Tokenizer(chatty._backend, chat_template=silent)
    with pytest.raises(
        ValueError, match="f:9: prompt and completion must have a token each; got none of one"
    ):
        feedback.encode_ratings(tokenizer, [Label([ASK], [YES], True, source="f:9")], **LONG)


def test_a_template_that_writes_a_prompt_in_two_ways_is_refused(chatty):
    row = Label([ASK], [YES], True, source="f:9")
    with pytest.raises(ValueError, match=r"f:9: the chat template must write a conversation alike .*'<turn>"):
        feedback.encode_ratings(chatty, [row], **LONG, opening="<think>")
    with pytest.raises(ValueError, match="f:9: this tokenizer has no chat template"):
        feedback.encode_ratings(data.byte_tokenizer(), [row], **LONG)


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
    fitting, long = feedback.choose_fitting(tokenizer, rows[:200], prompt_length=1024, completion_length=512)
    assert len(fitting) + len(long) == 200 and len(long) > 10
    got = feedback.encode_comparisons(tokenizer, fitting, prompt_length=1024, completion_length=512)
    for row, prompt, chosen in zip(fitting, said(got.prompt), said(got.chosen), strict=True):
        assert tokenizer.decode(chosen) == row.chosen and row.prompt.endswith(tokenizer.decode(prompt))
