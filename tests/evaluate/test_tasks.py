"""Task files that a user may write, and the line of every fault; `test_task_files` has the package's own."""

import json
import time
import zipfile

import pytest

from jaxrl_align.evaluate.tasks.task_format import Thoughts, load_task
from jaxrl_align.evaluate.tasks.task_items import extract_answer, read_items

CHOICE = """\
name = "films"
kind = "choice"
source = "ours"
licence = "CC0"
metrics = ["accuracy"]
description = "Say how it is."
template = "Review: {text}\\nSentiment:"

[options]
choices = { "0" = "bad", "1" = "good" }

[[test]]
format = "label text"
path = "rows.txt"
"""
GENERATE = """\
name = "sums"
kind = "generate"
source = "ours"
licence = "CC0"
metrics = ["exact_match"]
template = "{q}="
[answer]
field = "a"
extractor = "last number"
[[test]]
format = "jsonl"
path = "rows.jsonl"
"""


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a task file and its rows, and read the task."""
    monkeypatch.delenv("JAXRL_ALIGN_DATA", raising=False)

    def make(text, **files):
        for name, content in files.items():
            (tmp_path / name.replace("_", ".")).write_text(content, encoding="utf-8")
        (tmp_path / "my.toml").write_text(text, encoding="utf-8")
        return load_task(tmp_path / "my.toml")

    return make


def fault(write, text, error=ValueError, **files):
    with pytest.raises(error) as caught:
        read_items(write(text, **files))
    return str(caught.value)


def table(text, form, path):
    return text.replace('"label text"', f'"{form}"').replace("rows.txt", path)


def test_a_choice_has_its_input_its_options_and_the_place_of_the_right_one(write):
    items = read_items(write(CHOICE, rows_txt="1 well made\n0 dull , dull\n"))
    assert [item.input for item in items] == [
        "Review: well made\nSentiment:",
        "Review: dull , dull\nSentiment:",
    ]
    assert items[0].options == ("bad", "good") and [item.answer for item in items] == [1, 0]
    assert items[1].place.endswith("rows.txt:2") and items[1].group is None
    assert [[item.input[a:b] for a, b in item.own] for item in items] == [["well made"], ["dull , dull"]]


@pytest.mark.parametrize(
    "form, path, rows",
    [
        ("jsonl", "r.jsonl", '{"label": 1, "text": "well"}\n\n{"label": 0, "text": "ill"}\n'),
        ("json", "r.json", '[{"label": "1", "text": "well"}, {"label": "0", "text": "ill"}]'),
        ("tsv", "r.tsv", "\ufefflabel\ttext\r\n1\twell\r\n0\till\r\n"),
        ("csv", "r.csv", 'label,text\n1,"well"\n0,ill\n'),
    ],
)
def test_formats_say_the_same(write, form, path, rows):
    items = read_items(write(table(CHOICE, form, path), **{path.replace(".", "_"): rows}))
    assert [(item.fields["text"], item.answer) for item in items] == [("well", 1), ("ill", 0)]
    line = {"jsonl": ":3", "json": ", row 2", "tsv": ":3", "csv": ":3"}[form]
    assert items[1].place.endswith(path + line)


def test_members_of_an_archive_are_read_in_the_order_of_their_names(write, tmp_path):
    with zipfile.ZipFile(tmp_path / "r.zip", "w") as archive:
        archive.writestr("in/b.jsonl", '{"label": 0, "text": "two"}')
        archive.writestr("in/a.jsonl", '{"label": 1, "text": "one"}')
        archive.writestr("out.txt", "no rows")
    items = read_items(write(table(CHOICE, "jsonl", "r.zip") + 'member = "in/*.jsonl"\n'))
    assert [item.fields["text"] for item in items] == ["one", "two"]
    assert items[0].place.endswith("r.zip/in/a.jsonl:1")
    assert "must hold x.tsv" in fault(write, table(CHOICE, "jsonl", "r.zip") + 'member = "x.tsv"\n')


def test_columns_without_a_heading_replace_lines(write):
    text = table(CHOICE, "tsv", "r.tsv") + 'columns = ["label", "text"]\nskip_lines = 1\n'
    assert [item.answer for item in read_items(write(text, r_tsv='Quality\t#1 "x\n1\twe"ll\n'))] == [1]


def test_lists_inside_lists_are_rows_and_an_outer_field_wins(write):
    rows = {
        "id": 7,
        "p": {"text": "P", "qs": [{"q": "Q", "as": [{"text": "A", "right": True}]}, {"q": "R", "as": []}]},
    }
    text = table(CHOICE, "jsonl", "r.jsonl") + 'each = "p.qs.as"\n'
    text = text.replace("{text}", "{text} {q} {p.qs.as.text} {id}").replace('"0" =', '"false" =')
    text = text.replace('"1" =', '"true" =').replace("[options]", '[options]\nlabel = "right"')
    (item,) = read_items(write(text, r_jsonl=json.dumps(rows)))
    assert item.input == "Review: P Q A 7\nSentiment:" and item.answer == 1


def test_options_come_from_fields_from_a_list_or_from_a_pattern(write):
    swap = lambda new: table(CHOICE, "jsonl", "r.jsonl").replace(
        'choices = { "0" = "bad", "1" = "good" }', new
    )
    row = {"label": 1, "text": "(A) x\n(B) y", "one": "up", "two": "down", "many": ["u", "v", "u"]}
    two = read_items(write(swap('fields = ["one", "two"]'), r_jsonl=json.dumps(row)))[0]
    assert two.options == ("up", "down") and two.answer == 1
    many = read_items(write(swap('list = "many"'), r_jsonl=json.dumps(row | {"label": ["v"]})))[0]
    assert many.options == ("u", "v") and many.answer == (1,)
    letters = swap("pattern = '^\\([A-Z]\\)'\nwithin = \"text\"")
    found = read_items(write(letters, r_jsonl=json.dumps(row | {"label": "(B)"})))[0]
    assert found.options == ("(A)", "(B)") and found.answer == 1


@pytest.mark.parametrize(
    "many, label, answer",
    [
        (["1", "2", "3"], 1, 1),  # a place, as in MMLU
        (["1", "2", "3"], "1", 0),  # the option itself
        (["1", "2", "3"], [0, "3"], (0, 2)),
        ([1, 2, 3], 1, 0),
        (["u", "v", "u", "w"], 3, 2),  # a place among all that are listed
        (["u", "v", "u", "w"], 2, 0),
    ],
)
def test_a_whole_number_is_a_place_unless_the_options_are_numbers(write, many, label, answer):
    task = table(CHOICE, "jsonl", "r.jsonl").replace(
        'choices = { "0" = "bad", "1" = "good" }', 'list = "many"'
    )
    row = {"label": label, "text": "x", "many": many}
    assert read_items(write(task, r_jsonl=json.dumps(row)))[0].answer == answer


def test_numbers_are_options_and_the_label_lies_between_them(write):
    text = table(CHOICE, "csv", "r.csv").replace(
        'choices = { "0" = "bad", "1" = "good" }', "numbers = [0, 5]"
    )
    (item,) = read_items(write(text, r_csv="label,text\n3.75,x\n"))
    assert item.options == ("0", "5") and item.answer == 3.75
    assert "r.csv:2: the label 'label' must be a number; got 'x'" in fault(
        write, text, r_csv="label,text\nx,x\n"
    )


def test_a_pair_hides_the_right_text_among_the_wrong_ones(write):
    text = CHOICE.replace('"choice"', '"pair"').replace(
        'choices = { "0" = "bad", "1" = "good" }', 'list = "all"'
    )
    rows = "\n".join(json.dumps({"text": "", "all": ["R", "x", "y"]}) for _ in range(4))
    items = read_items(write(table(text, "jsonl", "r.jsonl"), r_jsonl=rows))
    assert [item.answer for item in items] == [0, 1, 2, 0]
    assert all(item.options[item.answer] == "R" and sorted(item.options) == ["R", "x", "y"] for item in items)


def test_answers_are_read_as_the_extractor_reads_them(write):
    items = read_items(write(GENERATE, rows_jsonl='{"q": "1+1", "a": 2}\n{"q": "9", "a": "1,000.0"}'))
    assert [(item.input, item.answer) for item in items] == [("1+1=", "2"), ("9=", "1000")]
    assert "the answer 'a' must be" in fault(write, GENERATE, rows_jsonl='{"q": "", "a": "two"}')


def test_derived_fields_are_cut_out_mapped_and_taken_from_spans(write):
    derived = """
[derived.short]
of = "a"
pattern = '#(.*)$'
remove = '<.*?>'
[derived.word]
of = "q"
values = { x = "ex" }
[derived.names]
of = "spans"
spans_of = "b"
"""
    text = GENERATE.replace('field = "a"', 'field = "short"').replace('"last number"', '"all"') + derived
    row = {
        "q": "x",
        "a": "long #<1>yes",
        "b": "Ann met Bo",
        "spans": [{"start": 0, "end": 2}, {"start": 8, "end": 9}],
    }
    (item,) = read_items(write(text, rows_jsonl=json.dumps(row)))
    assert item.answer == "yes" and item.fields["word"] == "ex" and item.fields["names"] == ["Ann", "Bo"]
    message = fault(write, text, rows_jsonl=json.dumps(row | {"q": "z"}))
    assert "rows.jsonl:1: the field 'q' must be one of ['x']; got 'z'" in message
    assert "must match '#(.*)$'" in fault(write, text, rows_jsonl=json.dumps(row | {"a": "none"}))


def test_worked_examples_are_taken_apart(write):
    prompts = (
        "canary\n-----\nDo.\n\nQ: a\nb?\nA: Let's think step by step.\nIt is\n\nso. So the answer is (B).\n\n"
        "Q: c?\nA: Let's think step by step.\nNo. So the answer is 1.5."
    )
    text = GENERATE.replace('"jsonl"', '"worked examples"').replace("rows.jsonl", "r.txt")
    text = text.replace('"a"', '"target"').replace("{q}", "{input}").replace('"last number"', '"all"')
    first, second = read_items(write(text, r_txt=prompts))
    assert first.fields == {"input": "a\nb?", "reasoning": "It is\n\nso.", "target": "(B)"}
    assert second.answer == "1.5" and second.place.endswith("r.txt, example 2")
    assert "r.txt, example 1: expected" in fault(write, text, r_txt="\n\nQ: a\nA: I do not know")


@pytest.mark.parametrize(
    "extractor, text, answer",
    [
        ("all", "  a\nb ", "a\nb"),
        ("all", " \n", None),
        ("first line", "\n yes. \nno", "yes."),
        ("first number", "It costs $1,234.50, or 7", "1234.5"),
        ("last number", "3 + 4 = 7.0.", "7"),
        ("last number", "5 to -12", "-12"),
        ("last number", "none", None),
        ("last number", "9,007,199,254,740,993", "9007199254740993"),
        ("last number", "9007199254740992.0", "9007199254740992"),
        (Thoughts.extractor, "the answer is 3. No, the answer is (B).", "(B)"),
        (Thoughts.extractor, "Say\nThe answer is: no.\nQ: x", "no"),
        (r"\(\w\)", "(A) or (C)?", "(C)"),
        (r"answer is (.*)", "I do not know", None),
    ],
)
def test_extractors(extractor, text, answer):
    assert extract_answer(extractor, text) == answer


@pytest.mark.parametrize(
    "old, new, message",
    [
        ('licence = "CC0"\n', "", "my.toml: the key 'licence' is missing"),
        ("metrics", "metric", "my.toml:5: unknown key 'metric'; did you mean metrics?"),
        ("choices =", "choises =", "my.toml:10: unknown key 'choises' in [options]; did you mean choices?"),
        (
            "[options]\nchoices",
            "  [options]\n  chs",
            "my.toml:10: unknown key 'chs' in [options]; did you mean choices",
        ),
        ('format = "label text"\n', "", "my.toml:12: the key 'format' is missing in [test]"),
        ('"label text"', '"xml"', "my.toml:13: format must be one of label text, jsonl"),
        ('path = "rows.txt"\n', "", "my.toml:13: the key 'path' is missing"),
        (
            'kind = "choice"',
            'kind = "chose"',
            "my.toml:2: kind must be one of choice, generate, pair; got 'chose'",
        ),
        ('["accuracy"]', '"accuracy"', "my.toml:5: metrics must be a list; got 'accuracy'"),
        ('["accuracy"]', "[1]", "my.toml:5: metrics must be a text; got 1"),
        ('["accuracy"]', '["acuracy"]', "my.toml:5: 'acuracy' is no metric; did you mean accuracy?"),
        ('["accuracy"]', '["accuracy", "brier"]', "my.toml:5: brier is of probabilities"),
        ('["accuracy"]', '["group_exact_match"]', "my.toml:5: group_exact_match needs the key 'group'"),
        ('["accuracy"]', "[]", "my.toml: a task must have rows, [[test]], and metrics"),
        (
            '"1" = "good"',
            '"1" = "bad"',
            "my.toml:10: options must be at least two, none empty and none alike",
        ),
        ('"1" = "good"', '"1" = " "', "my.toml:10: options must be"),
        (', "1" = "good"', "", "my.toml:10: options must be"),
        ("choices =", "fields = ['a']\nchoices =", "my.toml:9: options need one of choices, numbers, fields"),
        ('kind = "choice"', 'kind = "generate"', "my.toml:2: the table [answer] is missing"),
        ('"0" = "bad"', '"0" = 1', "my.toml:10: options.choices.0 must be a text; got 1"),
        ('template = "Review: {text}\\nSentiment:"\n', "", "my.toml: the key 'template' is missing"),
        ("{text}", "{text", "my.toml:7: "),
        ("name =", "name", "my.toml: expected TOML; "),
        ('"films"', "9" * 5_000, "my.toml: expected TOML; Exceeds the limit"),
        ("name =", "x = " + "[" * 70 + "]" * 70 + "\nname =", "my.toml: expected TOML; more than 64 lists"),
        ("name =", "x = " + "[" * 9_000 + "\nname =", "my.toml: expected TOML; more than 64 lists"),
        (
            '{ "0" = "bad", "1" = "good" }',
            f"{{}}\nnumbers = [0, {10**20}]",
            "my.toml:11: options.numbers must be",
        ),
        *(
            ('"rows.txt"', path, "a path must lie below the folder of the task file")
            for path in (
                '"../rows.txt"',
                '"/etc/passwd"',
                "'a\\rows.txt'",
                '"C:/rows.txt"',
                '"a/./b"',
                '"a//b"',
                '"a\u2028b"',
            )
        ),
    ],
)
def test_a_fault_of_the_task_file_names_its_line(write, old, new, message):
    assert old in CHOICE
    assert message in fault(write, CHOICE.replace(old, new), rows_txt="1 x\n")


def test_a_pattern_that_is_none_names_its_line(write):
    text = GENERATE.replace('"last number"', '"answer (is"')
    assert "my.toml:9: answer.extractor must be a regular expression" in fault(write, text, rows_jsonl="")


def test_a_correlation_is_of_numbers(write):
    text = GENERATE.replace('["exact_match"]', '["pearson"]')
    assert text != GENERATE
    assert write(text).metrics == ("pearson",)
    said = fault(write, text.replace('"last number"', '"first line"'))
    assert "pearson is of numbers; give [answer] the extractor 'first number' or 'last number'" in said


@pytest.mark.parametrize(
    "row, message",
    [
        ('{"label": 2, "text": "x"}', "rows.jsonl:2: the label 'label' must be one of ['0', '1']; got '2'"),
        (
            '{"label": 1}',
            "rows.jsonl:2: the task wants the field 'text'; got label; correct the task file or",
        ),
        ('{"text": "x"}', "rows.jsonl:2: the task wants the field 'label'; got text"),
        ('{"label": [], "text": "x"}', "rows.jsonl:2: the label 'label' must name a right option"),
        ("{", "rows.jsonl:2: expected JSON; got '{'"),
        ("[1]", "rows.jsonl:2: expected an object of fields; got '1'"),
        ("[" * 9_000, "rows.jsonl:2: expected JSON; got"),
        ('{"label": 1, "text": "\\ud800"}', "rows.jsonl:2: expected JSON; got"),
    ],
)
def test_a_fault_of_a_row_names_file_and_line(write, row, message):
    rows = '{"label": 1, "text": "x"}\n' + row
    assert message in fault(write, table(CHOICE, "jsonl", "rows.jsonl"), rows_jsonl=rows)


@pytest.mark.parametrize(
    "spans",
    [[1], [{}], [{"start": "a", "end": 1}], 5, [{"start": None, "end": 1}], [{"start": -1, "end": 1}]],
)
def test_spans_that_are_none_are_refused(write, spans):
    task = GENERATE + "[derived.a]\nof = 's'\nspans_of = 'q'\n"
    number = fault(write, task, rows_jsonl='{"q": 5, "s": [{"start": 0, "end": 1}]}')
    assert "rows.jsonl:1: the field 's' must list spans with start and end of the text 'q'" in number
    message = fault(write, task, rows_jsonl=json.dumps({"q": "abc", "s": spans}))
    assert "rows.jsonl:1: the field 's' must list spans with start and end of the text 'q'" in message


@pytest.mark.parametrize("label", [10**400, float("nan"), float("inf"), "1e999", None, [1], "x"])
def test_a_label_on_a_scale_is_a_finite_number(write, label):
    task = table(CHOICE, "jsonl", "rows.jsonl").replace(
        'choices = { "0" = "bad", "1" = "good" }', "numbers = [0, 5]"
    )
    message = fault(write, task, rows_jsonl=json.dumps({"text": "a", "label": label}))
    assert "rows.jsonl:1: the label 'label' must be a number; got" in message


def test_options_are_sought_in_what_is_no_text(write):
    task = table(CHOICE, "jsonl", "rows.jsonl").replace(
        'choices = { "0" = "bad", "1" = "good" }', "pattern = '[0-9]'\nwithin = 'text'"
    )
    (item,) = read_items(write(task, rows_jsonl='{"text": 123, "label": "2"}'))
    assert item.options == ("1", "2", "3") and item.answer == 1


def test_what_a_task_wants_is_quoted_in_one_short_line(write):
    task = table(CHOICE, "jsonl", "rows.jsonl").replace("{text}", "{a\\n\\u2028" + "b" * 9_000 + "}")
    message = fault(write, task, rows_jsonl='{"text": 123, "label": "1"}')
    assert "rows.jsonl:1: the task wants the field" in message
    assert len(message) < 700 and len(message.splitlines()) == 1


def test_the_name_of_a_member_is_quoted_in_one_line(write, tmp_path):
    with zipfile.ZipFile(tmp_path / "r.zip", "w") as archive:
        archive.writestr("a\nb\u2028.jsonl", "{")
    message = fault(write, table(CHOICE, "jsonl", "r.zip") + 'member = "*.jsonl"\n')
    assert "r.zip/a b .jsonl:1: expected JSON" in message and len(message.splitlines()) == 1


def test_a_number_beyond_all_floats_is_read_as_infinite():
    assert extract_answer("last number", "It is " + "1" * 400 + ".") == "inf"


def test_a_task_file_is_looked_through_in_linear_time(write):
    start = time.process_time()
    assert "unknown key 'x'" in fault(write, CHOICE + " " * 10**6 + "\nx = 1\n", rows_txt="1 x\n")
    assert time.process_time() - start < 1.0


@pytest.mark.parametrize("texts", [["a"], ["a", ""], ["a", " "]])
def test_options_of_a_row_are_two_and_not_empty(write, texts):
    text = table(CHOICE, "jsonl", "r.jsonl").replace('choices = { "0" = "bad", "1" = "good" }', 'list = "o"')
    row = json.dumps({"label": 0, "text": "", "o": texts})
    assert "r.jsonl:1: options must be at least two, none empty and none alike" in fault(
        write, text, r_jsonl=row
    )
    assert "must hold rows; it has none" in fault(write, text + "left_out = [1]\n", r_jsonl=row)


def test_options_of_fields_are_not_alike(write):
    text = table(CHOICE, "jsonl", "r.jsonl").replace(
        'choices = { "0" = "bad", "1" = "good" }', 'fields = ["a", "b"]'
    )
    assert "none alike; got ['u', 'u']" in fault(
        write, text, r_jsonl='{"text": "", "label": 0, "a": "u", "b": "u"}'
    )


def test_a_line_that_lacks_columns_is_a_fault_unless_the_task_leaves_it_out(write):
    text, rows = table(CHOICE, "tsv", "r.tsv"), "label\ttext\n1\n0\tx\n"
    assert "r.tsv:2: expected 2 columns (label, text); got 1" in fault(write, text, r_tsv=rows)
    assert len(read_items(write(text + "skip_incomplete = true\n", r_tsv=rows))) == 1


def test_an_unknown_task_and_a_split_that_is_not_there(write):
    with pytest.raises(FileNotFoundError, match="sst3 is no task of the package; did you mean sst2"):
        load_task("sst3")
    with pytest.raises(FileNotFoundError, match="found none at nowhere.toml"):
        load_task("nowhere.toml")
    task = write(CHOICE, rows_txt="1 x\n")
    with pytest.raises(ValueError, match=r"must name rows to draw examples from, \[\[examples\]\]"):
        read_items(task, "examples")
    with pytest.raises(ValueError, match='split must be "test" or "examples"'):
        read_items(task, "validation")
