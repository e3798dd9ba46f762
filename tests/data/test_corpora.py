import pytest

from jaxrl_align.data.corpora import paragraphs, python_topics, read_text, sentences


def test_every_machine_has_the_python_reference():
    text = python_topics()
    assert text == python_topics() and len(text) > 300_000
    assert len(paragraphs(text)) > 1000 and len(sentences(paragraphs(text))) > 1000


def test_paragraphs_are_joined_lines_without_rules_or_repeats():
    text = "A title\n*******\n\nOne  line\n   and another.\n  \nA title\n=======\n\n-----\n\nLast."
    assert paragraphs(text) == ["A title", "One line and another.", "Last."]
    assert paragraphs("") == paragraphs(" \n\n --- \n") == []


def test_sentences_run_from_a_capital_to_a_full_stop():
    blocks = [
        'One is here. Two follows!  "Three" is not one, but Four is. and this is not.',
        "One is here. Is this one? No code follows:: Here.",
        "No full stop",
        "See e.g. this one.",
    ]
    assert sentences(blocks) == ["One is here.", "See e.g. this one."]


def test_reading_a_file_of_ones_own(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("Grüße.\n", encoding="utf-8")
    assert read_text(path) == read_text(str(path)) == "Grüße.\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "must be a text file; found none at .*; give the path of one"),
        (b"", "corpus is empty: .*text.txt holds no text; give a file with text"),
        (b" \n\t\n", "corpus is empty"),
        (b"\xff\xfe\x00", "must be UTF-8; .*text.txt is not .*convert it"),
    ],
)
def test_files_that_hold_no_text_are_refused(tmp_path, content, message):
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_text(path)
    with pytest.raises(ValueError, match="must be a text file"):
        read_text(tmp_path)


def test_the_mark_before_a_text_is_no_text(tmp_path):
    (tmp_path / "marked.txt").write_text("Words.", encoding="utf-8-sig")
    assert read_text(tmp_path / "marked.txt") == "Words."
