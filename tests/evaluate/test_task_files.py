"""The tasks of the package: each states its source, and reads its rows as they are published."""

import json
import os
import zipfile
from pathlib import Path

import pytest

from jaxrl_align.data import load_blimp, load_sst2
from jaxrl_align.data.probes import CLOZE_PROBES
from jaxrl_align.evaluate.tasks import task_rows
from jaxrl_align.evaluate.tasks.task_format import find_tasks, load_task, shipped_tasks
from jaxrl_align.evaluate.tasks.task_items import extract_answer, read_items


def test_every_task_of_the_package_is_named_as_its_file_and_states_its_source():
    tasks = [load_task(name) for name in shipped_tasks()]
    assert [task.name for task in tasks] == list(shipped_tasks())
    assert all(task.source and task.licence for task in tasks)
    glue, superglue = find_tasks(["glue"]), find_tasks(["superglue"])
    assert len(glue) == 10 and len(superglue) == 8 and len(find_tasks(["bbh"])) == 27
    assert {"mnli_matched", "mnli_mismatched"} < set(glue) and find_tasks(["sst2", "a.toml"]) == [
        "sst2",
        "a.toml",
    ]
    several = {task.name: task.metrics for task in tasks if task.metrics != ("accuracy",)}
    assert {name: list(m) for name, m in several.items() if not name.startswith("bbh")} == {
        "cola": ["matthews"],
        "mrpc": ["accuracy", "f1"],
        "qqp": ["accuracy", "f1"],
        "stsb": ["pearson", "spearman"],
        "cb": ["accuracy", "macro_f1"],
        "multirc": ["f1", "group_exact_match"],
        "record": ["token_f1", "normalised_exact_match"],
        "gsm8k": ["exact_match"],
    }


def test_the_probes_need_no_file():
    items = read_items(load_task("probes"))
    assert [item.options[item.answer] for item in items] == [probe.filled()[0] for probe in CLOZE_PROBES]


def test_the_task_of_the_documentation_reads_its_professions():
    """Each is named once, and found wherever a sentence names it, not within another word."""
    task = load_task(Path(__file__).parents[2] / "docs" / "professions.toml")
    items = read_items(task)
    assert len({item.answer for item in items}) == len(items) == 30
    assert all(f"the {item.answer} who" in item.input for item in items)
    assert task.answer is not None
    read = lambda text: extract_answer(task.answer.extractor, text)
    assert all(read(f"Two {item.answer}s came.") == item.answer for item in items)
    assert read("A nurse met a Chef.") == "Chef" and read("A pilots' cooking class") == "pilot"
    assert read("Cookery and teaching") is None


def test_a_task_whose_file_is_nowhere_says_which_and_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXRL_ALIGN_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError) as caught:
        read_items(load_task("boolq"))
    message = str(caught.value)
    assert "wants the file superglue/BoolQ.zip" in message and str(tmp_path) in message
    assert "get it from https://dl.fbaipublicfiles.com/glue/superglue/data/v2/BoolQ.zip" in message


def archive(path, member, *lines):
    path.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(path, "w") as made:
        made.writestr(member, "\n".join(lines))


def test_superglue_is_read_as_it_is_published(tmp_path, monkeypatch):
    """Rows of the publishers' form, made here."""
    monkeypatch.setenv("JAXRL_ALIGN_DATA", str(tmp_path))
    folder = tmp_path / "superglue"
    first = {"start": 0, "end": 2}
    rows = {
        "BoolQ": {"question": "is it", "passage": "It is.", "idx": 0, "label": True},
        "CB": {"premise": "A.", "hypothesis": "b", "label": "neutral", "idx": 0},
        "COPA": {
            "premise": "I fell.",
            "choice1": "a",
            "choice2": "b",
            "question": "cause",
            "label": 1,
            "idx": 0,
        },
        "RTE": {"premise": "A.", "hypothesis": "b", "label": "not_entailment", "idx": 0},
        "WiC": {"word": "w", "sentence1": "a", "sentence2": "b", "idx": 0, "label": False},
        "WSC": {"text": "t", "target": {"span1_text": "Ann", "span2_text": "she"}, "idx": 0, "label": False},
        "MultiRC": {
            "idx": 3,
            "passage": {
                "text": "T",
                "questions": [
                    {
                        "question": "Q",
                        "idx": 5,
                        "answers": [{"text": t, "idx": i, "label": i} for i, t in enumerate("ab")],
                    }
                ],
            },
        },
        "ReCoRD": {
            "passage": {
                "text": "Ann saw Bo.\n@highlight\nHi",
                "entities": [first, {"start": 8, "end": 9}, first],
            },
            "qas": [{"query": "@placeholder ran", "answers": [{**first, "text": "Ann"}]}],
        },
    }
    for name, row in rows.items():
        archive(folder / f"{name}.zip", f"{name}/val.jsonl", json.dumps(row))
    read = {name: read_items(load_task(name)) for name in find_tasks(["superglue"])}
    answers = {
        name: [item.options[i] for item in items for i in [item.answer] if isinstance(i, int)]
        for name, items in read.items()
    }
    assert answers == {
        "boolq": ["yes"],
        "cb": ["open"],
        "copa": ["b"],
        "multirc": ["no", "yes"],
        "record": [],
        "superglue_rte": ["no"],
        "wic": ["no"],
        "wsc": ["no"],
    }
    assert read["copa"][0].input == "I fell. This is because:"
    assert [item.group for item in read["multirc"]] == ["3.5", "3.5"] and "Answer: b\n" in read["multirc"][
        1
    ].input
    assert read["record"][0].options == ("Ann", "Bo") and read["record"][0].answer == (0,)
    assert "highlight" not in read["record"][0].input and "Name: Ann" in read["wsc"][0].input


def test_glue_is_read_as_it_is_published(tmp_path, monkeypatch):
    """Tables of the publishers' form, made here."""
    monkeypatch.setenv("JAXRL_ALIGN_DATA", str(tmp_path))
    folder = tmp_path / "glue"
    pair = "index\tsentence1\tsentence2\tlabel"
    mnli = "index\tsentence1\tsentence2\tlabel1\tgold_label"
    archive(folder / "RTE.zip", "RTE/dev.tsv", pair, "0\ta\tb\tnot_entailment")
    archive(folder / "WNLI.zip", "WNLI/dev.tsv", pair, "0\ta\tb\t1")
    archive(folder / "QNLIv2.zip", "QNLI/dev.tsv", "index\tquestion\tsentence\tlabel", "0\ta\tb\tentailment")
    archive(folder / "STS-B.zip", "STS-B/dev.tsv", "index\tsentence1\tsentence2\tscore", '0\t"a\tb\t3.8')
    archive(
        folder / "QQP-clean.zip",
        "QQP/dev.tsv",
        "id\tquestion1\tquestion2\tis_duplicate",
        "0\ta",
        "1\ta\tb\t1",
    )
    with zipfile.ZipFile(folder / "MNLI.zip", "w") as made:
        made.writestr("MNLI/dev_matched.tsv", mnli + "\n0\ta\tb\tneutral\tentailment\n")
        made.writestr("MNLI/dev_mismatched.tsv", mnli + "\n0\ta\tb\tneutral\tcontradiction\n")
    (folder / "msr_paraphrase_test.txt").write_text(
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 S\t#2 S\n1\t2\t3\ta\tb\n", "utf-8"
    )
    names = set(find_tasks(["glue"])) - {"cola", "sst2"}
    found = {
        name: [
            i.options[i.answer] if isinstance(i.answer, int) else i.answer
            for i in read_items(load_task(name))
        ]
        for name in names
    }
    assert found == {
        "rte": ["no"],
        "wnli": ["yes"],
        "qnli": ["yes"],
        "stsb": [3.8],
        "qqp": ["yes"],
        "mnli_matched": ["true"],
        "mnli_mismatched": ["false"],
        "mrpc": ["yes"],
    }


@pytest.mark.slow
@pytest.mark.skipif("JAXRL_ALIGN_DATA" not in os.environ, reason="reads the data folder")
def test_what_lies_in_the_data_folder_runs():
    sst2, trec = read_items(load_task("sst2")), read_items(load_task("trec"))
    assert [item.fields["text"] for item in sst2] == list(load_sst2().validation.texts)
    assert [item.answer for item in sst2] == list(load_sst2().validation.labels) and len(trec) == 500
    assert len(read_items(load_task("cola"))) == 1043 and len(read_items(load_task("gsm8k"))) == 1319
    blimp = read_items(load_task("blimp"))
    assert len(blimp) == 67_000 - 7 and len({item.group for item in blimp}) == 67
    assert blimp[0].options[blimp[0].answer] == load_blimp()[0].good[0]
    bbh = {name: read_items(load_task(name)) for name in find_tasks(["bbh"])}
    assert sum(map(len, bbh.values())) == 6511 - 4
    assert all(len(read_items(load_task(name), "examples")) == 3 for name in bbh)


def test_no_address_of_a_file_is_written_twice():
    """What `data` already knows is not repeated in a task file."""
    for path in shipped_tasks().values():
        text = Path(path).read_text(encoding="utf-8")
        assert not any(file.url in text or file.sha256 in text for file in task_rows.KNOWN_FILES.values())
