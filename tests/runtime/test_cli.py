import dataclasses
import os
import subprocess
import sys

import pytest

from jaxrl_align.runtime import cli


@dataclasses.dataclass(frozen=True)
class Config:
    """Fit a line."""

    width: int = 3
    """Size of the input."""
    resume: bool = False
    """Continue the run."""


def raising(error):
    def function(config):
        raise error

    return function


def test_fields_are_flags_with_defaults():
    assert cli.parse(Config, []) == Config()
    assert cli.parse(Config, ["--width", "5", "--resume"]) == Config(5, True)


def test_help_is_made_of_docstrings(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.parse(Config, ["--help"])
    out = capsys.readouterr().out
    assert stop.value.code == 0 and "Fit a line." in out and "Size of the input." in out


def test_a_flag_that_does_not_parse_exits_with_2(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(Config, raising(AssertionError), ["--width", "wide"])
    assert stop.value.code == 2 and "width" in capsys.readouterr().err


def test_main_runs_the_function():
    seen = []
    cli.main(Config, seen.append, ["--width", "5"])
    assert seen == [Config(5)]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("width must be even;\n got 3"), "error: width must be even; got 3\n"),
        (FileNotFoundError(2, "No such file", "a.txt"), "error: [Errno 2] No such file: 'a.txt'\n"),
        (FloatingPointError("loss is not finite"), "error: loss is not finite\n"),
        (ValueError(), "error: ValueError\n"),
    ],
)
def test_user_errors_are_one_line_and_code_2(capsys, monkeypatch, error, line):
    monkeypatch.delenv("JAXRL_ALIGN_DEBUG", raising=False)
    with pytest.raises(SystemExit) as stop:
        cli.main(Config, raising(error), [])
    assert stop.value.code == 2 and capsys.readouterr().err == line
    monkeypatch.setenv("JAXRL_ALIGN_DEBUG", "1")
    with pytest.raises(type(error)):
        cli.main(Config, raising(error), [])


@pytest.mark.parametrize("length", [1, 100_000])  # less than Python's buffer, and more
def test_a_reader_that_has_gone_ends_the_program_in_silence(length):
    """As `jaxrl-align list | head -1` does."""
    program = f"from jaxrl_align.runtime import cli\nwith cli.user_errors():\n    print('x' * {length})"
    reader, writer = os.pipe()
    os.close(reader)
    ended = subprocess.run(
        [sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, b"")


def test_another_pipe_that_breaks_is_an_error(capsys):
    """As that of a program which a user's reward asks."""
    with pytest.raises(SystemExit) as ended, cli.user_errors():
        raise BrokenPipeError(32, "Broken pipe")
    assert ended.value.code == 2 and capsys.readouterr().err == "error: [Errno 32] Broken pipe\n"


def test_a_bug_keeps_its_traceback():
    with pytest.raises(TypeError):
        cli.main(Config, raising(TypeError("bug")), [])


def test_interrupt_says_how_to_continue(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(Config, raising(KeyboardInterrupt), [])
    assert stop.value.code == 130 and "--resume" in capsys.readouterr().err
