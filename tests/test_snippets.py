"""Every command that the README and the docs print exists, and takes the flags that it is given there."""

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

from jaxrl_align.cli.commands import COMMANDS
from jaxrl_align.runtime.cli import parse
from tests.experiments.loading import load

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


def commands(text):
    """Return the commands of a page's shell blocks, whole, and those in its prose, which may lack flags."""
    blocks = re.findall(r"^ *```sh\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    lines += [f"{line} ..." for line in re.findall(r"`((?:jaxrl-align|python|make) [^`]+)`", prose)]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


PRINTED = [
    (page.relative_to(ROOT).as_posix(), words)
    for page in PAGES
    for words in commands(page.read_text(encoding="utf-8"))
]


def check(words):
    """Raise where a printed command could not be run."""
    while "=" in words[0] and "/" not in words[0]:  # JAX_PROCESS_ID=0 python ...
        words = words[1:]
    program, *rest = words
    if program == "make":
        assert {word for word in rest if re.fullmatch(r"[a-z-]+", word)} <= TARGETS, rest
    elif program == "jaxrl-align" and rest[0] == "run":
        flags_of(load(rest[1]).Config, rest[2:])
    elif program == "jaxrl-align" and rest[0][0].islower():
        flags_of(COMMANDS[rest[0]].options, rest[1:])
    elif program.startswith("python") and rest[:1] == ["-m"]:
        assert importlib.util.find_spec(rest[1]) is not None, rest[1]
    elif program.startswith("python") and rest and rest[0].startswith("experiments/benchmarks/"):
        assert (ROOT / rest[0]).is_file(), rest[0]
    elif program.startswith("python") and rest and rest[0].startswith("experiments/"):
        flags_of(load(Path(rest[0]).stem).Config, rest[1:])


def flags_of(options, words):
    if not {"...", "--help"} & set(words):
        parse(options, words)


@pytest.mark.parametrize(
    ("page", "words"), PRINTED, ids=lambda x: x if isinstance(x, str) else " ".join(x)[:60]
)
def test_a_printed_command_can_be_given(page, words, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT))
    try:
        check(words)
    except SystemExit as error:
        raise AssertionError(f"{page} prints {shlex.join(words)}, which is refused") from error


def test_what_is_wrong_is_seen():
    assert len(PRINTED) > 60
    for wrong in ("jaxrl-align dpo --modle x", "python experiments/sweep.py --sedes 3", "jaxrl-align none"):
        with pytest.raises((SystemExit, KeyError)):
            check(shlex.split(wrong))
    for wrong in ("make nothing", "python -m tests.nothing", "python experiments/benchmarks/none.py"):
        with pytest.raises(AssertionError):
            check(shlex.split(wrong))
