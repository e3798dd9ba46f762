"""Bad input, one row each: a one-line error that names the argument, what it must be, what came, a remedy.

Every case runs eagerly or at trace time: what it refuses is refused before anything is compiled. A row
of a file in `tests/messages` is `what is wrong -> (call without arguments, error type, what it must say)`.
"""

import importlib.util
import pkgutil

import pytest

from tests import messages

NEEDS = {"gguf": "gguf", "peft": "safetensors"}
"""File -> the optional package that its cases need."""
ROOMS = [
    importlib.import_module(f"tests.messages.{file.name}").CASES
    for file in pkgutil.iter_modules(messages.__path__)
    if importlib.util.find_spec(NEEDS.get(file.name, "pytest"))
]
CASES = {name: row for room in ROOMS for name, row in room.items()}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_in_one_line(name):
    call, kind, says = CASES[name]
    with pytest.raises(kind, match=says) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400, message


def test_no_two_rooms_name_a_case_alike():
    assert len(CASES) == sum(map(len, ROOMS)) > 50
