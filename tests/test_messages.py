"""Bad input, one row each: a one-line error with the argument, what was expected, what came, and a remedy.

Every case runs eagerly or at trace time: what it refuses is refused before anything is compiled.
"""

import pytest

LOSSES = {}
AGENTS = {}
ENVIRONMENTS = {}
LANGUAGE = {}
"""Each: what is wrong -> (call without arguments, error type, what its message must say)."""

CASES = LOSSES | AGENTS | ENVIRONMENTS | LANGUAGE


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_in_one_line(name):
    call, kind, says = CASES[name]
    with pytest.raises(kind, match=says) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 400, message


def test_no_two_rooms_name_a_case_alike():
    assert len(CASES) == sum(map(len, (LOSSES, AGENTS, ENVIRONMENTS, LANGUAGE)))
