"""Readers of tasks, with rows in every format, and of files of settings."""

import json
from pathlib import Path
from typing import Any

from jaxrl_align.cli.config_files import with_config
from jaxrl_align.cli.runs.direct_losses import DPO
from jaxrl_align.evaluate.tasks.task_format import load_task
from jaxrl_align.evaluate.tasks.task_items import read_items
from tests.fuzz.data_readers import pack_zip
from tests.fuzz.readers import Reader

HEAD = 'name = "mine"\nsource = "ours"\nlicence = "CC0"\n'
CHOICE = 'kind = "choice"\nmetrics = ["accuracy"]\ntemplate = "{text} ="\nseparator = " "\n[options]\n'
WORKED = """Say what it is.

Q: Is it (A) or (B)?
A: Let's think step by step. It is neither. So the answer is (B).

Q: Is it (A) or (B), or both?
A: Let's think step by step. It is. So the answer is (A).
"""
TASKS: dict[str, tuple[str, dict[str, str | bytes]]] = {
    "label text": (
        CHOICE + 'choices = { "0" = "bad", "1" = "good" }\n'
        '[[test]]\nformat = "label text"\npath = "rows.txt"\n'
        '[[examples]]\nformat = "label text"\npath = "rows.txt"\n',
        {"rows.txt": "0 a dull film\n1 a good one\n" * 3},
    ),
    "csv": (
        CHOICE + 'fields = ["one", "two"]\n[[test]]\nformat = "csv"\npath = "rows.csv"\nleft_out = [2]\n',
        {"rows.csv": 'text,one,two,label\nWhat?,"a, b",c,0\nWho?,a,c,1\nWhy?,x,y,y\n'},
    ),
    "tsv": (
        CHOICE + 'numbers = [0, 5]\nlabel = "score"\n[[test]]\nformat = "tsv"\npath = "rows.tsv"\n'
        'columns = ["text", "score"]\nskip_lines = 1\nskip_incomplete = true\n',
        {"rows.tsv": "text\tscore\nOne thing\t3.5\nAnother\t0\nlost\n"},
    ),
    "json": (
        CHOICE
        + 'list = "spans"\nlabel = "qas.answers.text"\n[derived.spans]\nof = "entities"\nspans_of = "text"\n'
        '[[test]]\nformat = "json"\npath = "rows.json"\neach = "data.qas"\n',
        {
            "rows.json": json.dumps(
                {
                    "data": [
                        {
                            "text": "Ann met Bob.",
                            "entities": [{"start": 0, "end": 2}, {"start": 8, "end": 10}],
                            "qas": [{"q": "Who?", "answers": [{"text": "Bob"}]}],
                        }
                    ]
                }
            )
        },
    ),
    "jsonl": (
        'kind = "generate"\nmetrics = ["exact_match"]\ntemplate = "{q}="\ngroup = "{by}"\n'
        '[answer]\nfield = "a"\n'
        'extractor = "last number"\n[derived.a]\nof = "long"\npattern = "#### (.*)$"\nremove = "<[^>]*>"\n'
        '[[test]]\nformat = "jsonl"\npath = "rows.zip"\nmember = "data/*.jsonl"\n',
        {
            "rows.zip": pack_zip(
                {
                    f"data/{name}.jsonl": json.dumps(
                        {"q": "2+2", "long": f"It is <x>\n#### {name}", "by": "ann"}
                    )
                    for name in (4, 5)
                }
            )
        },
    ),
    "worked examples": (
        CHOICE.replace("{text}", "{input}") + 'pattern = "\\\\([A-Z]\\\\)"\nlabel = "target"\n'
        '[[test]]\nformat = "worked examples"\npath = "rows.txt"\n',
        {"rows.txt": WORKED},
    ),
}


def _task_reader(name: str, task: str, files: dict[str, str | bytes]) -> Reader:
    def write(folder: Path) -> None:
        (folder / "my.toml").write_text(HEAD + task)
        for file, content in files.items():
            (folder / file).write_bytes(content.encode() if isinstance(content, str) else content)

    def read(folder: Path) -> Any:
        task = load_task(folder / "my.toml")
        return [read_items(task, split) for split in ("test", "examples") if getattr(task, split)]

    text = HEAD + task
    bad = [
        text.replace('path = "rows', 'path = "../../rows'),
        text.replace('path = "rows', 'path = "/etc/passwd'),
        text.replace('name = "mine"', 'name = "mine"\nx = ' + "[" * 3_000),
        text.replace('name = "mine"', "name" + ".a" * 3_000 + " = 1"),
        text.replace('"mine"', "9" * 5_000),
        text.replace("[[test]]", "[derived.x]\nof = 'text'\nremove = '(a+)+$'\n[[test]]"),
        text.replace("[[test]]", "[derived.x]\nof = 'text'\npattern = '" + "(" * 5_000 + "'\n[[test]]"),
    ]
    return Reader(f"task of {name}", write, read, _bad_items, tuple({"my.toml": one.encode()} for one in bad))


def _bad_items(splits: Any) -> str | None:
    for item in (item for items in splits for item in items):
        if not (isinstance(item.input, str) and all(isinstance(text, str) for text in item.options)):
            return f"an input or an option that is no text: {item!r:.80}"
        try:
            "".join([item.input, *item.options]).encode()
        except UnicodeEncodeError:
            return "a text that no tokenizer can encode"
    return None


SETTINGS = (
    "model: folder\nout: new\nlearning_rate: 1.0e-4\nrank: 4\ntargets: ['*query', '*up']\nremat: true\n"
)
LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
BAD_SETTINGS = (
    *(LAUGHS, "rank: &r [*r]", "rank: " + "[" * 5_000, "rank: " + "{a: " * 3_000, "rank: 1\nrank: 2", "- a"),
    *("rank: !!python/object/apply:os.mkdir ['fuzz-escape']", "rank: 2026-13-45", "rank: 2026-11-12", "{"),
    *("rank: !!binary aGk=", "? {a: 1}\n: 2", "rank: !!set {a}", "a: &a {<<: *a}", "rank: " + "9" * 5_000),
    *("x" * 200_000, "\0", "rank: [[1]]", "rank: {a: 1}", "? [a]\n: 1", "\ud800"),
)


def _read_settings(folder: Path) -> Any:
    found = [path for path in sorted(folder.iterdir()) if path.name.startswith("settings")]
    return [with_config("dpo", DPO, ["--config", str(path)]) for path in found]


def _bad_flags(found: Any) -> str | None:
    flags = [flag for one in found for flag in one]
    return None if all(isinstance(flag, str) for flag in flags) else "a flag that is no text"


READERS: tuple[Reader, ...] = (
    *(_task_reader(name, task, files) for name, (task, files) in TASKS.items()),
    Reader(
        "settings in YAML",
        lambda folder: (folder / "settings.yaml").write_text(SETTINGS),
        _read_settings,
        _bad_flags,
        hostile=tuple({"settings.yaml": text.encode("utf-8", "surrogatepass")} for text in BAD_SETTINGS),
    ),
    Reader(
        "settings in JSON",
        lambda folder: (folder / "settings.json").write_text(
            '{"command": "dpo", "rank": 4, "targets": ["*up"]}'
        ),
        _read_settings,
        _bad_flags,
        hostile=tuple(
            {"settings.json": text.encode()}
            for text in (
                "[" * 9_000,
                "[]",
                '{"rank": {"a": 1}}',
                '{"rank": ' + "9" * 5_000 + "}",
                '{"a": 1}',
                "{",
            )
        ),
    ),
)
