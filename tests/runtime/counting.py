"""The simplest of runs, for the tests of what keeps it."""

from jaxrl_align.runtime import checkpoint


def count(state):
    """Count up; the loss is the count before the step."""
    return state + 1, {"loss": state}


def steps_in(path):
    return checkpoint._steps(path)
