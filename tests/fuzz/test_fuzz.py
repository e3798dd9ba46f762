"""Every reader on a few hundred changed inputs and on those known to be bad; the harness on bad readers."""

import os
import signal
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings

from tests.fuzz.__main__ import long_run, run_again
from tests.fuzz.judge import FAULTS, good_files, judge, lay
from tests.fuzz.mutations import changed_files
from tests.fuzz.readers import Reader
from tests.fuzz.tables import all_readers
from tests.fuzz.workers import FOLDER, case_files, run_cases

READERS = all_readers()
EXAMPLES = 200


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def _read_well(reader, folder):
    """Return the good input's files, once they are seen to be good."""
    good = good_files(reader, folder)
    verdict = judge(reader, folder, 2**40, 60.0)
    assert verdict.kind == "right", verdict
    return good


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("name", READERS)
def test_changed_inputs_are_read_or_refused_in_a_line(name, tmp_path):
    reader, folder = READERS[name], tmp_path / FOLDER
    good = _read_well(reader, folder)
    present = dict(good)

    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(changed_files(good))
    def check(files):
        lay(folder, files, present)
        verdict = judge(reader, folder, sum(map(len, files.values())))
        assert verdict.kind not in FAULTS, verdict

    check()


@pytest.mark.parametrize("name", [name for name, reader in READERS.items() if reader.hostile])
def test_inputs_known_to_be_bad_are_refused_in_a_line(name, tmp_path):
    reader, folder = READERS[name], tmp_path / FOLDER
    good = _read_well(reader, folder)
    present = dict(good)
    for number, bad in enumerate(reader.hostile):
        files = {**good, **bad}
        lay(folder, files, present)
        verdict = judge(reader, folder, sum(map(len, files.values())))
        assert verdict.kind == "error", (number, {key: data[:60] for key, data in bad.items()}, verdict)


def _fake(read, complain=lambda value: None):
    """Return a reader that is good at the first input of a process's, and does `read` from then on."""
    seen = []

    def read_later(folder: Path):
        seen.append(folder)
        return read(folder) if len(seen) > 1 else None

    return Reader("fake", lambda folder: (folder / "a.txt").write_bytes(b"a good one"), read_later, complain)


def _raise(error):
    raise error


def _hang_in_python(folder):
    while True:
        pass


def _hang_in_c(folder):
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGPROF])
    time.sleep(600)


def _kill(folder):
    os.kill(os.getpid(), signal.SIGSEGV)


def _take(size):
    taken = bytearray(size)
    taken[::4096] = b"1" * len(taken[::4096])


FAKES = {
    "a raw error": (_fake(lambda folder: _raise(KeyError("x"))), "crash", "KeyError"),
    "an error below Exception": (_fake(lambda folder: _raise(GeneratorExit("x"))), "crash", "GeneratorExit"),
    "two lines": (_fake(lambda folder: _raise(ValueError("a.txt\nb"))), "crash", "2 lines"),
    "no file named": (
        _fake(lambda folder: _raise(ValueError("expected a, got b"))),
        "crash",
        "names no file",
    ),
    "a long message": (_fake(lambda folder: _raise(ValueError("a.txt" * 2_000))), "crash", "characters"),
    "a death": (_fake(_kill), "crash", "died"),
    "a hang": (_fake(_hang_in_python), "hang", ""),
    "a hang that no signal ends": (_fake(_hang_in_c), "hang", "killed"),
    "much memory": (_fake(lambda folder: _take(200 * 2**20)), "memory", "MiB"),
    "more memory than a worker may have": (_fake(lambda folder: bytes(2**33)), "memory", "MemoryError"),
    "an escape": (_fake(lambda folder: Path("fuzz-escape").mkdir()), "escape", "made"),
    "a silent fault": (_fake(lambda folder: -1, lambda value: value and "a width of -1"), "silent", "width"),
    "a refusal": (_fake(lambda folder: _raise(ValueError("a.txt must be good"))), "error", "must be"),
    "a value": (_fake(lambda folder: None), "right", ""),
}


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # these children use nothing of JAX
@pytest.mark.parametrize("name", FAKES)
def test_the_harness_sees(name):
    reader, kind, said = FAKES[name]
    # Only what hangs is waited for: to fault in much memory can take a busy machine a while.
    results = list(run_cases([reader], range(2), workers=1, seconds=0.25 if kind == "hang" else 5.0))
    assert [result.case for result in results] == [0, 1]
    for result in results:
        assert result.verdict.kind == kind and said in result.verdict.said, result


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_the_long_run_counts_and_keeps_the_failures(tmp_path, capsys):
    bad, good = _fake(lambda folder: _raise(KeyError("x"))), _fake(lambda folder: None)._replace(name="good")
    assert long_run([bad, good], range(7, 10), tmp_path / "out", 2) == 1
    tally = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["fake", "3", *"000000"] in tally and ["good", *"000000", "3"] in tally
    assert ["all", "3", *"00000", "3"] in tally
    kept = tmp_path / "out" / "fake"
    assert sorted(path.name for path in kept.iterdir()) == ["crash-7", "crash-8", "crash-9"]
    files = {"a.txt": b"a good one"}
    assert (kept / "crash-8" / "a.txt").read_bytes() == case_files(bad, files, 8)["a.txt"]
    assert "KeyError" in (kept / "crash-8" / "verdict.txt").read_text()
    assert long_run([good], range(3), tmp_path / "none", 1) == 0 and not (tmp_path / "none").exists()
    assert run_again(bad, 8, tmp_path / "again") == 1 and "fake 8: crash" in capsys.readouterr().out


def test_a_number_gives_the_same_files_and_another_number_others():
    good = {"a.json": b'{"a": [1, 2]}', "b.txt": b"some words of a text"}
    reader = _fake(lambda folder: None)
    first, again = ([case_files(reader, good, case) for case in range(50)] for _ in range(2))
    assert first == again
    assert len({str(files) for files in first}) > 40
