"""Rows to imitate and to answer: what is read, which tokens are imitated, what is refused."""

import json

import pytest

from jaxrl_align import data, feedback
from jaxrl_align.data.tokens.tokenizers import STOP, Tokenizer
from jaxrl_align.feedback import Demonstration, Dialogue, Document, Question

USER, BOT = {"role": "user", "content": "u"}, {"role": "assistant", "content": "a"}
PLAIN = (
    "{% for m in messages %}{{ m['role'][0] + ':' + m['content'] }}"
    "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}|{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)
MARKED = PLAIN.replace(
    "{{ m['role'][0] + ':' + m['content'] }}",
    "{{ m['role'][0] + ':' }}{% if m['role'] == 'assistant' %}{% generation %}{{ m['content'] }}"
    "{% endgeneration %}{% else %}{{ m['content'] }}{% endif %}",
)
FORGETS = PLAIN.replace("m['content'] }}", "(m['content'] if loop.last or m['role'] == 'user' else '-') }}")


def tokenizer(template=PLAIN):
    """Return bytes as tokens, but two colons are one."""
    special = {"pad_token": STOP, "eos_token": STOP}
    return Tokenizer(data.train_bpe(["::"], 259)._backend, special, data.ChatTemplate(template, special))


@pytest.fixture
def write(tmp_path):
    def to_file(*rows):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path

    return to_file


def shown(row, template=PLAIN, **variables):
    """Return a row's text with `[...]` around what is imitated, the stop token as `$`."""
    tok = tokenizer(template)
    ((ids, said),) = feedback.tokenise_demonstrations(tok, [row], **variables)
    text, before = "", False
    for token, now in zip([*ids, None], [*said, False], strict=True):
        text += ("[" if now else "]") if now != before else ""
        text += "" if token is None else "$" if token == tok.stop_token else tok.decode([token])
        before = now
    return text


def test_every_kind_is_read_with_its_place(write):
    rows = [{"text": "t"}, {"prompt": "p", "completion": "c", "text": None}, {"messages": [USER, BOT]}]
    path = write(*rows)
    assert feedback.read_demonstrations(path).rows == [
        Document("t", f"{path}:1"),
        Demonstration("p", "c", f"{path}:2"),
        Dialogue([USER, BOT], f"{path}:3"),
    ]


def test_prompts_keep_their_columns_and_lose_the_last_answer(write):
    rows = [{"prompt": "p", "answer": 3}, {"messages": [USER, BOT, USER, BOT], "k": "v"}, {"prompt": [USER]}]
    found = feedback.read_prompts(write(*rows)).rows
    assert [(row.prompt, row.columns) for row in found] == [
        ("p", {"answer": 3}),
        ([USER, BOT, USER], {"k": "v"}),
        ([USER], {}),
    ]
    assert feedback.tokenise_prompts(tokenizer(), found) == [
        tokenizer().encode("p"),
        tokenizer().encode_chat([USER, BOT, USER], add_generation_prompt=True),
        tokenizer().encode("u:u|a:"),
    ]


@pytest.mark.parametrize(
    ("row", "text"),
    [
        (Document("ab"), "[ab$]"),
        (Demonstration("ab", "cd"), "ab[cd$]"),
        (Demonstration([USER], "cd"), "u:u|a:[cd$]"),
        (Demonstration("ab", [BOT]), "u:ab|a:[a$]"),
        (Dialogue([USER, BOT]), "u:u|a:[a$]"),
        (Dialogue([USER, BOT, USER, BOT, USER]), "u:u|a:[a$]|u:u|a:[a$]"),
        (Dialogue([BOT, USER, BOT]), "a:a$|u:u|a:[a$]"),
    ],
)
def test_what_is_imitated(row, text):
    assert shown(row) == text


def test_a_template_that_marks_says_itself_what_is_imitated():
    assert shown(Dialogue([USER, BOT, USER, BOT]), MARKED) == "u:u|a:[a]$|u:u|a:[a]$|"


def test_a_turn_that_is_written_otherwise_later_is_read_only():
    dialogue = [USER, BOT | {"content": "first"}, USER, BOT]
    assert shown(Dialogue(dialogue), FORGETS) == "u:u|a:-$|u:u|a:[a$]"


def test_a_turn_that_is_tokenised_otherwise_later_is_imitated_like_the_others():
    """A token that reaches over its border is its own; of the last turn none does."""
    colon = BOT | {"content": ":b"}
    for dialogue, text in (
        ([USER, BOT, USER, colon, USER, BOT], "u:u|a:[a$]|u:u|a[::b$]|u:u|a:[a$]"),
        ([USER, BOT, USER, BOT, USER, colon], "u:u|a:[a$]|u:u|a:[a$]|u:u|a:[:b$]"),
    ):
        assert shown(Dialogue(dialogue)) == text


TOOLS = "{% if tools %}{{ tools[0].name }}|{% endif %}" + PLAIN


@pytest.mark.parametrize("fields", [{"messages": [USER, BOT]}, {"prompt": [USER], "completion": "a"}])
def test_a_rows_tools_are_given_to_its_template(write, fields):
    given = ([{"name": "add"}], '[{"name": "add"}]', None, " ", {}, [])
    for tools, text in zip(given, ("add|", "add|", "", "", "", ""), strict=True):
        (row,) = feedback.read_demonstrations(write(fields | {"tools": tools})).rows
        assert shown(row, TOOLS) == text + "u:u|a:[a$]"
    with pytest.raises(ValueError, match="rows.jsonl:1: tools must be a list of JSON schemas, .*; got 'add'"):
        feedback.read_demonstrations(write(fields | {"tools": "add"}))


def test_a_prompts_tools_are_given_to_its_template_and_stay_a_column(write):
    (row,) = feedback.read_prompts(write({"prompt": [USER], "tools": '[{"name": "add"}]'})).rows
    assert row.tools == [{"name": "add"}] and row.columns == {"tools": '[{"name": "add"}]'}
    ((asked,), (plain,)) = (
        feedback.tokenise_prompts(tokenizer(TOOLS), [one]) for one in (row, row._replace(tools=None))
    )
    assert asked == [*tokenizer(TOOLS).encode("add|"), *plain]


def test_rows_are_padded_and_masked():
    rows = feedback.tokenise_demonstrations(tokenizer(), [Demonstration("a", "b"), Document("c")])
    batch = feedback.pad_demonstrations(rows, 4)
    assert batch.real.tolist() == [[1, 1, 1, 0], [1, 1, 0, 0]]
    assert batch.predict.tolist() == [[0, 1, 1, 0], [1, 1, 0, 0]]
    assert batch.tokens[0, :3].tolist() == [*tokenizer().encode("ab"), 1]
    prompts = feedback.pad_prompts([[5, 6, 7], [8]], 2, 0)
    assert prompts.tokens.tolist() == [[6, 7], [0, 8]] and prompts.real.tolist() == [[1, 1], [0, 1]]


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"completion": "c"}, "a row must have text, messages, or prompt and completion; got completion"),
        ({"text": " "}, "text must hold words; got none"),
        ({"text": [USER]}, "text must hold words; got none"),
        ({"messages": "hi"}, "messages must be a list of messages; got the text 'hi'"),
        ({"messages": [BOT, USER]}, "messages must hold an assistant's turn after another's; got none"),
        ({"prompt": "p", "completion": " "}, "completion is empty"),
        (["p"], "the row must be a JSON object; got list"),
    ],
)
def test_bad_rows_are_named_or_skipped(write, row, line):
    path = write({"text": "good"}, row)
    with pytest.raises(ValueError) as error:
        feedback.read_demonstrations(path)
    assert str(error.value).startswith(f"{path}:2: ") and line in str(error.value)
    found = feedback.read_demonstrations(path, skip_bad_rows=True)
    assert len(found.rows) == 1 and line in found.skipped[0]
    with pytest.raises(ValueError, match="must hold a good row; all 1 rows are bad; first"):
        feedback.read_demonstrations(write(row), skip_bad_rows=True)


@pytest.mark.parametrize("row", [{"answer": "a"}, {"prompt": " "}, {"messages": [BOT]}])
def test_prompts_that_ask_nothing_are_refused(write, row):
    with pytest.raises(ValueError, match="rows.jsonl:1: (prompt|messages) (is missing|must ask something)"):
        feedback.read_prompts(write(row))


def test_errors_of_tokens_name_the_row():
    bare = Tokenizer(data.byte_tokenizer()._backend, {})
    with pytest.raises(ValueError, match="f:3: the tokenizer must have a stop token"):
        feedback.tokenise_demonstrations(bare, [Demonstration("p", "c", "f:3")])
    with pytest.raises(ValueError, match="row 0: a token must follow another to be imitated"):
        feedback.tokenise_demonstrations(bare, [Document("c")])
    with pytest.raises(ValueError, match="f:4: this tokenizer has no chat template"):
        feedback.tokenise_prompts(bare, [Question([USER], {}, "f:4")])
    with pytest.raises(ValueError, match="f:5: a prompt must have a token; got none"):
        feedback.tokenise_prompts(bare, [Question("", {}, "f:5")])


def test_rows_are_measured_before_lengths_are_chosen():
    rows = [feedback.Comparison("abc", "d", "efg"), feedback.Comparison("", "d", "e", source="f:2")]
    counts, refused = feedback.measure_rows(tokenizer(), rows)
    assert counts.tolist() == [[3, 4], [0, 0]]
    assert len(refused) == 1 and refused[0].startswith("f:2: prompt and completion must have a token each")
