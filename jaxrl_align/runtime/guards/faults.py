"""A run that met a nan or an infinity, taken again one step at a time up to that step."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.experimental import checkify
from jax.extend import core

from jaxrl_align.finite import check_finite, must_be_finite
from jaxrl_align.types import State


def replay(
    take: Callable[[Any, Any], tuple[Any, dict[str, Any]]],
    state: Any,
    rows: Callable[[int], Any],
    done: int,
    num_steps: int,
    keep: Callable[[int, Any], Any],
) -> None:
    """Take a run's steps singly until one gives what is not finite, and say which operation made it.

    Args:
      take: `(state, row) -> (state, metrics)`.
      state: of the last checkpoint.
      rows: `step -> row`, or None.
      done: steps that the checkpoint has behind it.
      num_steps: of the run.
      keep: `(step, state) -> path`, writes the state before the bad step.

    Raises:
      FloatingPointError: naming the term, the step, the members, the operation, and where the state before
        it is.
      ValueError: all steps up to the run's end are finite.
    """
    one = jax.jit(take)
    for step in range(done, num_steps):
        row = rows(step)
        after, metrics = one(state, row)
        try:
            check_finite(after, {name: np.asarray(x)[None] for name, x in metrics.items()}, first_step=step)
        except FloatingPointError as error:
            path = keep(step, state)
            made = find_first_nan(lambda state, row: _terms(*take(state, row)), state, row)
            raise FloatingPointError(f"{error}; {made}; the state before step {step} is {path}") from error
        state = after
    raise ValueError(
        f"steps {done} to {num_steps - 1}, taken one by one, are finite; continue with --resume alone"
    )


def _terms(state: Any, metrics: dict[str, Any]) -> Any:
    """Return what must be finite of a step's outcome."""
    learns = (state.params, state.opt_state) if isinstance(state, State) else state
    return learns, {name: x for name, x in metrics.items() if must_be_finite(name)}


def find_first_nan(function: Callable[..., Any], *arguments: Any) -> str:
    """Return in words which operation made the first nan on the way to a function's outputs, and where.

    It looks into compiled loops, where `jax.debug_nans` sees no more than the whole loop. What the outputs do
    not depend on is left out: a mean over no episodes is nan by intention.

    Args:
      function: of trees of arrays.
      arguments: its own.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    needed, equations = {v for v in closed.jaxpr.outvars if not isinstance(v, core.Literal)}, []
    for equation in reversed(closed.jaxpr.eqns):
        if any(v in needed for v in equation.outvars):
            equations.append(equation)
            needed.update(v for v in equation.invars if not isinstance(v, core.Literal))
    lean = core.ClosedJaxpr(closed.jaxpr.replace(eqns=equations[::-1]), closed.consts)
    checked = checkify.checkify(core.jaxpr_as_fun(lean), errors=checkify.nan_checks)
    error, _ = jax.jit(checked)(*jax.tree.leaves(arguments))
    found = error.get_exception()
    if found is None:
        return "no operation made a nan: an infinity came first"
    return f"the first nan was made by {getattr(found, 'prim', 'an operation')}{_place(found)}"


def _place(found: Any) -> str:
    """Return the file and line outside of jax that an error of checkify goes back to."""
    frames = getattr(getattr(found, "traceback_info", None), "frames", ())
    library = jax.__file__.rsplit("/", 1)[0]
    own = [frame for frame in frames if not frame.file_name.startswith(library)]
    return f" at {own[0].file_name}:{own[0].line_num}" if own else ""
