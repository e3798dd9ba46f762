"""Files of labelled texts: what is read, split and refused."""

import os
from collections import Counter

import pytest

from jaxrl_align.data.files import DATA_VARIABLE
from jaxrl_align.data.labelled_texts import SENTCONV, load_sst2, load_trec, read_labelled


def write_texts(folder, **files):
    """Write files of "label text" as the data folder has them; names with dots as underscores."""
    place = folder / "sentiment" / "sentconv"
    place.mkdir(parents=True, exist_ok=True)
    for name, lines in files.items():
        (place / name.replace("_", ".")).write_text("".join(f"{line}\n" for line in lines))


def test_lines_are_read_in_either_encoding(tmp_path):
    (tmp_path / "a").write_bytes("1 crème brûlée .\n0  two  words\n".encode())
    (tmp_path / "b").write_bytes("1 crème brûlée .".encode("latin-1"))
    assert read_labelled(tmp_path / "a", 2) == (("crème brûlée .", "two  words"), (1, 0))
    assert read_labelled(tmp_path / "b", 2).texts == ("crème brûlée .",)


@pytest.mark.parametrize("line", ["2 beyond", "-1 x", "x y", "1", "1 ", "", "good 1"])
def test_other_lines_are_refused(tmp_path, line):
    (tmp_path / "a").write_text(f"1 fine\n{line}\n0 fine\n")
    with pytest.raises(ValueError, match="with labels from 0 to 1; got .* in line 2 of .*a"):
        read_labelled(tmp_path / "a", 2)


def test_an_empty_file_is_refused(tmp_path):
    (tmp_path / "a").write_text("")
    with pytest.raises(ValueError, match="must hold labelled texts"):
        read_labelled(tmp_path / "a", 2)


def test_every_tenth_question_is_set_aside(tmp_path, monkeypatch):
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    write_texts(tmp_path, TREC_train_all=[f"{i % 6} q{i}" for i in range(25)], TREC_test_all=["5 how many"])
    trec = load_trec()
    assert trec.validation.texts == ("q0", "q10", "q20") and trec.validation.labels == (0, 4, 2)
    assert len(trec.train.texts) == 22 and not set(trec.train.texts) & set(trec.validation.texts)
    assert trec.test == (("how many",), (5,)) and trec.classes[5] == "number"


@pytest.mark.skipif(
    not os.path.isfile(os.path.join(os.environ.get(DATA_VARIABLE, ""), SENTCONV["TREC.test.all"].name)),
    reason="needs the data folder",
)
def test_the_published_files():
    """The classes are named rightly: the first questions of TREC's test ask for a number and for a place."""
    sst2, trec = load_sst2(), load_trec()
    assert [len(part.texts) for part in sst2[1:]] == [6_920, 872, 1_821]
    assert [len(part.texts) for part in trec[1:]] == [4_906, 546, 500]
    assert Counter(sst2.test.labels) == {0: 912, 1: 909}
    assert trec.test.texts[0] == "How far is it from Denver to Aspen ?"
    assert [trec.classes[i] for i in trec.test.labels[:3]] == ["number", "location", "human"]
    assert len(set(sst2.train.texts) & set(sst2.test.texts)) == 2, "as published"
