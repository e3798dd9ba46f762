"""Several processes, usually one a host, that run one program: how they join, agree, and end together.

    JAX_COORDINATOR_ADDRESS=host0:5000 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=0 python x.py --mesh fsdp=16
    JAX_COORDINATOR_ADDRESS=host0:5000 JAX_NUM_PROCESSES=2 JAX_PROCESS_ID=1 python x.py --mesh fsdp=16

Under SLURM `srun python x.py --mesh ...` is enough. jax's runtime carries all of it; a run's folder is one
that every host sees. The first process alone writes files and messages.
"""

import contextlib
import itertools
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, TypeVar

import jax
from jax.sharding import NamedSharding, PartitionSpec

from jaxrl_align.atomic import discard_writes

Value = TypeVar("Value")

SETTINGS = {"JAX_COORDINATOR_ADDRESS": str, "JAX_NUM_PROCESSES": int, "JAX_PROCESS_ID": int}
HEARTBEAT = 20
"""Seconds without a sign of life after which a process counts as lost."""
PATIENCE = 3600
"""Seconds that a process waits for the others at most, for example while one of them compiles."""
FAREWELL = 5
"""Seconds that a process which ends with an error waits for the others' errors."""

_exchanges = itertools.count()


def join_hosts() -> None:
    """Join the other processes of the run, if there are any: by the environment, or by SLURM's.

    The other processes than the first are silent from then on, and what they write is discarded.

    Raises:
      ValueError: if the environment names some of the settings, but not all; or the others do not come.
    """
    if jax.distributed.is_initialized():
        return
    given = {name: os.environ[name] for name in SETTINGS if os.environ.get(name)}
    if not given and int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) < 2:
        return
    if given and (missing := sorted(SETTINGS.keys() - given.keys())):
        raise ValueError(f"a process of several needs {', '.join(SETTINGS)}; {', '.join(missing)} is not set")
    try:
        address, count, index = (kind(given[name]) if given else None for name, kind in SETTINGS.items())
        jax.distributed.initialize(address, count, index, heartbeat_timeout_seconds=HEARTBEAT)  # type: ignore[arg-type]
    except (ValueError, RuntimeError) as error:
        raise ValueError(
            f"the processes could not be joined ({_first_line(error)}); start all of them"
        ) from error
    if not is_first():
        discard_writes()
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115


def several() -> bool:
    """Return whether this process is one of several."""
    return jax.distributed.is_initialized() and _state().num_processes > 1


def is_first() -> bool:
    """Return whether this process is the one that writes; a process alone is."""
    return not jax.distributed.is_initialized() or _state().process_id == 0


def exchange(text: str) -> list[str]:
    """Return the texts of all processes, the first's first; every process must call it, in the same order."""
    if not several():
        return [text]
    state, number = _state(), next(_exchanges)
    client, own = state.client, state.process_id
    client.key_value_set(f"jaxrl_align/{number}/{own}", text)
    get = client.blocking_key_value_get
    texts = [get(f"jaxrl_align/{number}/{i}", 1000 * PATIENCE) for i in range(state.num_processes)]
    if number > 0:  # whoever is here has read all of the exchange before
        client.key_value_delete(f"jaxrl_align/{number - 1}/{own}")
    return texts


def agree(what: str, value: str) -> None:
    """Raise the same ValueError in every process unless all of them have the same value.

    Args:
      what: that must be the same, in words.
      value: this process's.
    """
    values = exchange(value)
    for i, other in enumerate(values):
        if other != values[0]:
            raise ValueError(
                f"all processes must have the same {what}; process 0 has {values[0][:300]}, process {i} has "
                f"{other[:300]}; start them with the same command and the same files"
            )


def together(f: Callable[[], Value]) -> Value:
    """Call a function in every process; where one raises a ValueError or OSError, all raise the first's.

    Without it the others would wait for the one that has ended.
    """
    try:
        value, own = f(), None
    except (ValueError, OSError) as error:
        value, own = None, error
    texts = exchange("" if own is None else str(own) or type(own).__name__)
    if own is not None:
        raise own
    if failed := next((text for text in texts if text), None):
        raise ValueError(failed)
    return value  # type: ignore[return-value]


def gather(tree: Any) -> Any:
    """Return a tree whose arrays every process holds whole; of one process, as it is. All must call it."""
    if not several():
        return tree
    whole = lambda x: x if getattr(x, "is_fully_addressable", True) else _gather_one(x)
    return jax.tree.map(whole, tree)


def _gather_one(x: jax.Array) -> jax.Array:
    where: Any = x.sharding
    everywhere = NamedSharding(where.mesh, PartitionSpec())
    return x if x.is_fully_replicated else jax.jit(lambda x: x, out_shardings=everywhere)(x)


@contextlib.contextmanager
def explained_lost_process() -> Iterator[None]:
    """Turn what a backend raises when another process has gone into an error in one line."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        signs = ("Gloo", "Connection", "unreachable", "heartbeat", "UNAVAILABLE", "ABORTED", "DEADLINE")
        if not several() or not any(sign in str(error) for sign in signs):
            raise
        raise ConnectionError(
            f"another process of the run is lost ({_first_line(error)}); start all of them again, with "
            "--resume"
        ) from error


def end_process(code: int, line: str) -> NoReturn:
    """End this process: print a line, once for all processes that end with the same one.

    Of several processes none waits for the others in vain, as they would in jax's own farewell.

    Args:
      code: the exit code.
      line: for stderr; empty, none.
    """
    if not jax.distributed.is_initialized():
        if line:
            print(line, file=sys.stderr)
        raise SystemExit(code)
    if line and not _is_said(line):
        print(line if is_first() else f"process {_state().process_id}: {line}", file=sys.__stderr__)
    for stream in (sys.stdout, sys.__stdout__, sys.__stderr__):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            stream.flush()  # type: ignore[union-attr]
    if is_first():
        time.sleep(1)  # it keeps the store that the others still read
    os._exit(code)


def _is_said(line: str) -> bool:
    """Return whether an earlier process ends with the same line; wait a little for those that end too."""
    client, index = _state().client, _state().process_id
    try:
        client.key_value_set(f"jaxrl_align/farewell/{index}", line)
        client.wait_at_barrier("jaxrl_align/farewell", 1000 * FAREWELL)
    except Exception:  # the others go on, or are gone
        return False
    before = (client.blocking_key_value_get(f"jaxrl_align/farewell/{i}", 1000) for i in range(index))
    return any(other == line for other in before)


def _state() -> Any:
    """Return jax's record of the processes; asking jax by its public names would start its devices.

    Its client of the processes' key-value store has no public name.
    """
    from jax._src import distributed

    return distributed.global_state


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
