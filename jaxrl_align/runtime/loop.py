"""The host loop: drives a pure step in compiled chunks, with progress, metrics and checkpoints."""

import contextlib
import json
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxrl_align.atomic import writes
from jaxrl_align.finite import check_finite
from jaxrl_align.runtime import checkpoint
from jaxrl_align.runtime.devices.hosts import agree, exchange, several
from jaxrl_align.runtime.devices.spreading import check_axes, is_meshed, read_batches, settled, spread
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.guards.device_memory import check_room, explained_shortage
from jaxrl_align.runtime.guards.faults import replay
from jaxrl_align.runtime.guards.interrupts import deferred_interrupts
from jaxrl_align.runtime.keeper import Keeper
from jaxrl_align.runtime.metrics import METRICS_FILE, History, append_metrics, recover_metrics
from jaxrl_align.runtime.writers import Writer, open_writers, write_history

FROZEN_FILE = "frozen.json"
_SHA256 = re.compile("[0-9a-f]{64}")

Step = Callable[..., tuple[Any, dict[str, Any]]]
"""`(state, batch, frozen) -> (state, metrics)`, a learner's, or several by `vmap`. It is called with what the
run has: `step(state)`, `step(state, batch)`, or `step(state, batch or None, frozen)`."""


def run(
    step: Step,
    state: Any,
    num_steps: int,
    *,
    chunk: int = 10,
    folder: RunFolder | None = None,
    label: str = "",
    show: Sequence[str] = ("loss",),
    progress: bool = True,
    checkpoint_every: int | None = None,
    on_chunk: Callable[[int, Any, History], None] | None = None,
    writers: Sequence[Writer] = (),
    batches: Callable[[int, int], Any] | None = None,
    frozen: Any = None,
) -> tuple[Any, History]:
    """Take `num_steps` steps from `state`, entering Python once a chunk.

    The chunks end at multiples of `chunk` and at `num_steps`, wherever a run was interrupted: a continued run
    goes through the same compiled programs as an uninterrupted one and ends in the same bits. One program is
    compiled for a whole chunk and one for the shorter last one.

    With a folder, each step's metrics go to `metrics.jsonl` and the state to checkpoints, at the ends of
    chunks: when a minute has passed (`Upkeep.minutes`; more where a save takes more than 2 seconds), at or
    after every multiple of `checkpoint_every`, at the end, and on Ctrl-C, SIGTERM and SIGHUP (the chunk is
    finished first; a second Ctrl-C stops at once). A folder opened with `resume=True` continues from its
    newest checkpoint that is whole, whatever became of its metrics.

    Args:
      step: a pure function `state -> (state, metrics)`; metrics is a flat dict of arrays, [M] with M members.
      state: any pytree of arrays. It is copied, because the loop gives its buffers to the compiled program.
      num_steps: the length of the whole run, including what was done before an interruption.
      chunk: steps per entry into Python.
      folder: where the run is kept; None keeps nothing.
      label: the progress line's first word.
      show: metrics in the progress line: means over the last chunk and the members, nan left out.
      progress: show progress on stderr; without a terminal, about ten lines.
      checkpoint_every: steps between checkpoints, beside those by time; None for none.
      on_chunk: `(steps done, state, metrics)`, called after each chunk and before its checkpoint, for example
        to evaluate or to write the chunk's metrics [steps, ...] elsewhere; after an interruption it may see a
        step again. It must not keep the state, which the next chunk consumes.
      writers: where each step's metrics go beside `metrics.jsonl`, of members their means; those that the
        folder names (`Upkeep.writers`) are opened and closed here.
      batches: data from the host, `(first step, steps) -> tree of arrays [steps, ...]`, one row for each call
        `step(state, row)`. A function of its arguments alone makes a continued run end in the same bits. The
        next chunk's are made while this one is computed. Of `data.HostBatches` each of several processes
        reads its own rows.
      frozen: what the step reads besides its state, `step(state, row or None, frozen)`. It is neither copied
        nor saved: the folder keeps its SHA-256 in `frozen.json`, and a run continues on the same only.

    Returns:
      `(state, history)`; the history maps each metric to [num_steps, ...], read back where the run was
      resumed.

    Raises:
      FloatingPointError: a loss, KL or reward is nan or infinite, or parameters or the optimiser's state are
        where they would be saved (`finite.check_finite`); no checkpoint is written. A folder opened with
        `Upkeep.replay` says which operation made it.
      KeyboardInterrupt: Ctrl-C, SIGTERM or SIGHUP, whose number it holds, after the checkpoint.
      MemoryError: a step needs more memory than the device has; before it is taken where the backend tells.
      ValueError: an argument out of range, a checkpoint that does not fit this run, or other frozen weights.
    """
    _check_arguments(num_steps, chunk, folder, checkpoint_every)
    first = _peek(batches)

    def take(carry: Any, row: Any, frozen: Any) -> tuple[Any, dict[str, Any]]:
        if frozen is not None:
            return step(carry, row, frozen)
        return step(carry) if batches is None else step(carry, row)

    one = lambda carry: take(carry, jax.tree.map(lambda x: x[0], first), frozen)
    done, state = _start(spread(state), num_steps, folder, frozen)
    frozen = spread(frozen)
    if folder is not None and folder.upkeep.replay and done < num_steps:
        _replay(lambda carry, row: take(carry, row, frozen), state, done, num_steps, batches, folder)
    history = _read_history(one, state, done, folder)

    def draw(begin: int) -> tuple[int, Any]:
        end = min(begin - begin % chunk + chunk, num_steps)
        return end, None if batches is None or begin == end else read_batches(batches, begin, end - begin)

    report = _reporter(label, done, num_steps) if progress else lambda *_: None
    advance = _compiled_chunk(take, state)
    config = {} if folder is None else folder.config
    with deferred_interrupts() as interrupted, explained_shortage(config), _named(folder, done) as named:
        end, rows = draw(done)
        if done < num_steps:
            _check_program(advance, state, rows, frozen, end - done, config)
        keeper = Keeper(folder, checkpoint_every)
        while done < num_steps:
            state, metrics = advance(state, rows, frozen, end - done)
            following = draw(end)
            metrics = {name: np.asarray(values) for name, values in metrics.items()}
            write_history([*named, *writers], end, metrics)
            if on_chunk is not None:
                on_chunk(end, state, metrics)
            stop, due = _decide(interrupted(), keeper.is_due(done, end))
            save = bool(stop) or end == num_steps or due
            _keep(state, metrics, done, end, folder, keeper if save else None)
            history.append(metrics)
            done, (end, rows) = end, following
            report(done, {name: metrics[name] for name in show if name in metrics})
            stop = stop or (interrupted() if done == num_steps else 0)  # none asks after the last save
            if stop:
                raise KeyboardInterrupt(stop)
    return state, {name: np.concatenate([part[name] for part in history]) for name in history[0]}


@contextlib.contextmanager
def _named(folder: RunFolder | None, done: int) -> Iterator[list[Writer]]:
    """Open the writers that a run's folder names, and close them."""
    if folder is None or not folder.upkeep.writers:
        yield []
        return
    writer = open_writers(folder.upkeep.writers, folder, done)
    try:
        yield [writer]
    finally:
        writer.close()


def _peek(batches: Callable[[int, int], Any] | None) -> Any:
    """Return the first batch, which must be the same in all processes; None without batches."""
    first = None if batches is None else batches(0, 1)
    if several():
        agree("rows", "sha256 " + checkpoint.fingerprint(first)["sha256"][:12])
    return first


def _compiled_chunk(take: Step, state: Any) -> Any:
    """Return `(state, rows, frozen, steps) -> (state, metrics)`, jitted; it consumes the state."""

    def advance(carry: Any, rows: Any, frozen: Any, size: int) -> tuple[Any, dict[str, Any]]:
        return jax.lax.scan(lambda carry, row: take(carry, row, frozen), carry, rows, size)

    places = {"out_shardings": settled(state)} if is_meshed() else {}
    return jax.jit(advance, static_argnums=3, donate_argnums=0, **places)


def _check_program(
    advance: Any, state: Any, rows: Any, frozen: Any, steps: int, config: dict[str, Any]
) -> None:
    """Raise where a chunk's program takes more memory than there is, or loses an axis of the mesh."""
    lowered = advance.lower(state, rows, frozen, steps)
    check_axes(lowered, state, frozen)
    check_room(lowered.compile(), config)


def _decide(stop: int, due: bool) -> tuple[int, bool]:
    """Return what all processes do: stop if any was told to, save by the first one's clock."""
    told = [json.loads(text) for text in exchange(json.dumps([stop, due]))]
    return max(number for number, _ in told), told[0][1]


def _check_arguments(
    num_steps: int, chunk: int, folder: RunFolder | None, checkpoint_every: int | None
) -> None:
    for name, value in {"num_steps": num_steps, "chunk": chunk, "checkpoint_every": checkpoint_every}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    if checkpoint_every is not None and folder is None:
        raise ValueError("checkpoint_every needs a folder to write to; pass folder=open_run(path, config)")


def _start(state: Any, num_steps: int, folder: RunFolder | None, frozen: Any) -> tuple[int, Any]:
    """Return the steps already done, and a state that the loop may consume."""
    if folder is None:
        return 0, _copy(state)
    last = checkpoint.latest_step(folder.path)
    if not folder.resume and ((folder.path / METRICS_FILE).exists() or last is not None):
        raise ValueError(f"{folder.path} already holds a run; give each run its own folder.sub(name)")
    _check_frozen(folder, frozen)
    if not folder.resume or last is None:
        return 0, _copy(state)
    state, done = checkpoint.restore(folder.path, state, folder.config)
    if done > num_steps:
        raise ValueError(
            f"the checkpoint in {folder.path} is at step {done}, beyond num_steps={num_steps}; "
            "pass --out with a new folder, or more steps"
        )
    return done, state


def _read_history(step: Step, state: Any, done: int, folder: RunFolder | None) -> list[History]:
    """Return the metrics of the steps already done, and leave no other in the run's file."""
    if folder is None:
        return []
    path = folder.path / METRICS_FILE
    if done == 0:
        if writes():
            path.unlink(missing_ok=True)
        return []
    return [recover_metrics(path, done, jax.eval_shape(step, state)[1])]


def _check_frozen(folder: RunFolder, frozen: Any) -> None:
    """Write what the frozen weights are into a new run's folder; compare a continued run's with it."""
    path, now = folder.path / FROZEN_FILE, None if frozen is None else checkpoint.fingerprint(frozen)
    agree("frozen weights", f"sha256 {now['sha256'][:12]}" if now else "none")
    if checkpoint.latest_step(folder.path) is None:
        if writes():
            path.unlink(missing_ok=True)
        if now is not None:
            folder.write_json(FROZEN_FILE, now)
        return
    was = folder.read_json(FROZEN_FILE) if path.exists() else None
    if was is not None and not (isinstance(was, dict) and _SHA256.fullmatch(str(was.get("sha256")))):
        raise ValueError(f"{path} is damaged: no sha256; copy it again, or pass --out with a new folder")
    if was != now:
        began, got = (f"frozen weights {x['sha256'][:12]}" if x else "no frozen weights" for x in (was, now))
        raise ValueError(
            f"the run in {folder.path} was begun with {began}, but this run has {got}; "
            "pass the same weights, or --out with a new folder"
        )


def _keep(
    state: Any, metrics: History, done: int, end: int, folder: RunFolder | None, keeper: Keeper | None
) -> None:
    """Write a chunk's metrics, check them, and save the state where there is a keeper."""
    if folder is not None:
        append_metrics(folder.path / METRICS_FILE, done, metrics, sync=keeper is not None)
    check_chunk(None if keeper is None else state, metrics, done, folder)
    if keeper is not None:
        keeper.save(end, state, metrics)


def check_chunk(state: Any, metrics: History, done: int, folder: RunFolder | None) -> None:
    """Raise what `check_finite` finds, and say what is kept of the run.

    Args:
      state: the run's, or None to check the metrics alone.
      metrics: of a chunk.
      done: steps before it.
      folder: of the run.
    """
    try:
        check_finite(state, metrics, first_step=done)
    except FloatingPointError as error:
        kept = ""
        if folder is not None:
            if (last := checkpoint.latest_step(folder.path)) is not None:
                kept = f"; the checkpoint of step {last} in {folder.path} is intact"
            kept += "; --replay finds the operation" if "replay" in folder.config else ""
        raise FloatingPointError(f"{error}{kept}") from error


def _replay(
    take: Callable[[Any, Any], tuple[Any, dict[str, Any]]],
    state: Any,
    done: int,
    num_steps: int,
    batches: Callable[[int, int], Any] | None,
    folder: RunFolder,
) -> None:
    def row(step: int) -> Any:
        return None if batches is None else jax.tree.map(lambda x: x[0], batches(step, 1))

    def keep(step: int, state: Any) -> Any:
        fault = folder.path / "fault"
        fault.mkdir(exist_ok=True)
        return checkpoint.save(fault, step, state, folder.config, keep=1)

    replay(take, state, row, done, num_steps, keep)


def _copy(state: Any) -> Any:
    # An explicit dtype also drops weak types, which would cost a second compilation at the second chunk.
    return jax.tree.map(lambda x: jnp.array(x, dtype=jnp.asarray(x).dtype, copy=True), state)


def _reporter(label: str, initial: int, total: int) -> Callable[[int, History], None]:
    """Return `(done, metrics) -> None`: a bar on a terminal, elsewhere one line for each tenth of the run."""
    if sys.stderr.isatty():
        bar = tqdm(total=total, initial=initial, desc=label, file=sys.stderr)

        def update(done: int, metrics: History) -> None:
            bar.set_postfix(_means(metrics), refresh=False)
            bar.update(done - bar.n)
            if done == total:
                bar.close()

        return update
    started, printed = time.monotonic(), [initial * 10 // total]

    def log(done: int, metrics: History) -> None:
        if done * 10 // total > printed[0]:
            printed[0] = done * 10 // total
            values = "".join(f" {name}={value}" for name, value in _means(metrics).items())
            print(
                f"{label} {done}/{total}{values} {time.monotonic() - started:.0f} s".lstrip(), file=sys.stderr
            )

    return log


def _means(metrics: History) -> dict[str, str]:
    finite = {name: values[np.isfinite(values)] for name, values in metrics.items()}
    return {name: f"{values.mean():.4g}" if values.size else "nan" for name, values in finite.items()}
