import json
import os
import zipfile

import pytest

from jaxrl_align.data.blimp import BLIMP, load_blimp
from jaxrl_align.data.files import DATA_VARIABLE


def write_blimp(path, paradigms):
    """Write a zip as upstream's, with what macOS leaves in one beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("data/.DS_Store", b"\xb0")
        archive.writestr("__MACOSX/data/._x.jsonl", b"\xb0")
        for name, pairs in paradigms.items():
            rows = [
                {
                    "sentence_good": g,
                    "sentence_bad": b,
                    "field": "syntax",
                    "linguistics_term": "t",
                    "UID": name,
                }
                for g, b in pairs
            ]
            archive.writestr(f"data/{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))


def test_paradigms_are_read_by_name(tmp_path, monkeypatch):
    write_blimp(
        tmp_path / "glue" / "BLiMP.zip", {"b": [("Good é.", "Bad.")], "a": [("A.", "B."), ("C.", "D.")]}
    )
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    found = load_blimp()
    assert [(p.name, p.field, p.term) for p in found] == [("a", "syntax", "t"), ("b", "syntax", "t")]
    assert found[0].good == ("A.", "C.") and found[0].bad == ("B.", "D.") and found[1].good == ("Good é.",)


@pytest.mark.parametrize("content", [b"", b"no zip", None])
def test_other_files_are_refused(tmp_path, content):
    path = tmp_path / "x.zip"
    if content is None:
        write_blimp(path, {})
    else:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"x.zip must be BLiMP's zip file"):
        load_blimp(path)


def test_rows_without_a_pair_are_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("data/a.jsonl", '{"sentence_good": "A."}\n')
    with pytest.raises(ValueError, match="sentence_bad"):
        load_blimp(tmp_path / "x.zip")


@pytest.mark.skipif(
    not os.path.isfile(os.path.join(os.environ.get(DATA_VARIABLE, ""), BLIMP.name)), reason="needs BLiMP"
)
def test_the_real_file():
    found = load_blimp()
    assert len(found) == 67 and {len(p.good) for p in found} == {len(p.bad) for p in found} == {1000}
    assert len({p.term for p in found}) == 12
    same = sum(g == b for p in found for g, b in zip(p.good, p.bad, strict=True))
    assert same == 7  # pairs that upstream published with one sentence twice
