"""The tiny experiment beside this file, as fixtures; the same file runs as a program in new processes."""

import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

PROGRAM = Path(__file__).with_name("program.py")


@pytest.fixture(scope="session")
def program():
    return SimpleNamespace(**runpy.run_path(str(PROGRAM)), path=PROGRAM)


@pytest.fixture
def problem(program):
    return program.make_problem()
