"""The host loop: drives a pure step in compiled chunks, with progress, metrics and checkpoints."""

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tqdm import tqdm

from jaxrl_align.runtime import checkpoint
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.metrics import METRICS_FILE, History, append_metrics, cut_metrics, read_metrics
from jaxrl_align.types import State

FROZEN_FILE = "frozen.json"

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
    batches: Callable[[int, int], Any] | None = None,
    frozen: Any = None,
) -> tuple[Any, History]:
    """Take `num_steps` steps from `state`, entering Python once a chunk.

    The chunks end at multiples of `chunk` and at `num_steps`, wherever a run was interrupted: a continued run
    goes through the same compiled programs as an uninterrupted one and ends in the same bits. One program is
    compiled for a whole chunk and one for the shorter last one.

    With a folder, each step's metrics go to `metrics.jsonl` and the state to checkpoints: at the first
    chunk's end at or after every multiple of `checkpoint_every`, at the end, and on Ctrl-C (the chunk is
    finished first; a second Ctrl-C stops at once). A folder opened with `resume=True` continues from its
    newest checkpoint.

    Args:
      step: a pure function `state -> (state, metrics)`; metrics is a flat dict of arrays, [M] with M members.
      state: any pytree of arrays. It is copied, because the loop gives its buffers to the compiled program.
      num_steps: the length of the whole run, including what was done before an interruption.
      chunk: steps per entry into Python.
      folder: where the run is kept; None keeps nothing.
      label: the progress line's first word.
      show: metrics in the progress line: means over the last chunk and the members, nan left out.
      progress: show progress on stderr; without a terminal, about ten lines.
      checkpoint_every: steps between checkpoints; None saves only at the end.
      on_chunk: `(steps done, state, metrics)`, called after each chunk and before its checkpoint, for example
        to evaluate or to write the chunk's metrics [steps, ...] elsewhere; after an interruption it may see a
        step again. It must not keep the state, which the next chunk consumes.
      batches: data from the host, `(first step, steps) -> tree of arrays [steps, ...]`, one row for each call
        `step(state, row)`. A function of its arguments alone makes a continued run end in the same bits. The
        next chunk's are made while this one is computed.
      frozen: what the step reads besides its state, `step(state, row or None, frozen)`. It is neither copied
        nor saved: the folder keeps its SHA-256 in `frozen.json`, and a run continues on the same only.

    Returns:
      `(state, history)`; the history maps each metric to [num_steps, ...], read back where the run was
      resumed.

    Raises:
      FloatingPointError: a metric whose name ends in "loss" or begins with "loss/" is nan or infinite, or
        parameters or the optimiser's state are nan where they would be saved; no checkpoint is written.
      KeyboardInterrupt: Ctrl-C, after the checkpoint.
      ValueError: an argument out of range, a checkpoint that does not fit this run, or other frozen weights.
    """
    _check_arguments(num_steps, chunk, folder, checkpoint_every)
    first = None if batches is None else batches(0, 1)

    def take(carry: Any, row: Any, frozen: Any) -> tuple[Any, dict[str, Any]]:
        if frozen is not None:
            return step(carry, row, frozen)
        return step(carry) if batches is None else step(carry, row)

    one = lambda carry: take(carry, jax.tree.map(lambda x: x[0], first), frozen)
    done, state, history = _start(one, state, num_steps, folder, frozen)
    report = _reporter(label, done, num_steps) if progress else lambda *_: None

    def advance(carry: Any, rows: Any, frozen: Any, size: int) -> tuple[Any, dict[str, Any]]:
        return jax.lax.scan(lambda carry, row: take(carry, row, frozen), carry, rows, size)

    def draw(begin: int) -> tuple[int, Any]:
        end = min(begin - begin % chunk + chunk, num_steps)
        return end, None if batches is None or begin == end else batches(begin, end - begin)

    advance = jax.jit(advance, static_argnums=3, donate_argnums=0)
    with _deferred_interrupt() as interrupted:
        end, rows = draw(done)
        while done < num_steps:
            state, metrics = advance(state, rows, frozen, end - done)
            following = draw(end)
            metrics = {name: np.asarray(values) for name, values in metrics.items()}
            if on_chunk is not None:
                on_chunk(end, state, metrics)
            stop = interrupted()
            due = checkpoint_every is not None and end // checkpoint_every > done // checkpoint_every
            save = stop or due or end == num_steps
            bad = _find_bad_loss(metrics, done) or (_find_bad_leaf(state, end) if save else None)
            if folder is not None:
                append_metrics(folder.path / METRICS_FILE, done, metrics, sync=save)
                if save and bad is None:
                    checkpoint.save(folder.path, end, state, folder.config)
            _check_finite(bad, folder)
            history.append(metrics)
            done, (end, rows) = end, following
            report(done, {name: metrics[name] for name in show if name in metrics})
            if stop:
                raise KeyboardInterrupt
    return state, {name: np.concatenate([part[name] for part in history]) for name in history[0]}


def _check_arguments(
    num_steps: int, chunk: int, folder: RunFolder | None, checkpoint_every: int | None
) -> None:
    for name, value in {"num_steps": num_steps, "chunk": chunk, "checkpoint_every": checkpoint_every}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1; got {value}")
    if checkpoint_every is not None and folder is None:
        raise ValueError("checkpoint_every needs a folder to write to; pass folder=open_run(path, config)")


def _start(
    step: Step, state: Any, num_steps: int, folder: RunFolder | None, frozen: Any
) -> tuple[int, Any, list[History]]:
    """Return the steps already done, a state that the loop may consume, and the history so far."""
    if folder is None:
        return 0, _copy(state), []
    metrics_path = folder.path / METRICS_FILE
    if not folder.resume and (metrics_path.exists() or checkpoint.latest_step(folder.path) is not None):
        raise ValueError(f"{folder.path} already holds a run; give each run its own folder.sub(name)")
    _check_frozen(folder, frozen)
    if not folder.resume or checkpoint.latest_step(folder.path) is None:
        cut_metrics(metrics_path, 0)
        return 0, _copy(state), []
    state, done = checkpoint.restore(folder.path, state, folder.config)
    if done > num_steps:
        raise ValueError(
            f"the checkpoint in {folder.path} is at step {done}, beyond num_steps={num_steps}; "
            "pass --out with a new folder, or more steps"
        )
    kinds = jax.eval_shape(step, state)[1]
    history = read_metrics(metrics_path, done)
    if history.keys() != kinds.keys():
        raise ValueError(
            f"{metrics_path} holds {sorted(history)}, but this run's metrics are {sorted(kinds)}"
        )
    cut_metrics(metrics_path, done)
    return done, state, [{name: values.astype(kinds[name].dtype) for name, values in history.items()}]


def _check_frozen(folder: RunFolder, frozen: Any) -> None:
    """Write what the frozen weights are into a new run's folder; compare a continued run's with it."""
    path, now = folder.path / FROZEN_FILE, None if frozen is None else checkpoint.fingerprint(frozen)
    if checkpoint.latest_step(folder.path) is None:
        path.unlink(missing_ok=True)
        if now is not None:
            folder.write_json(FROZEN_FILE, now)
        return
    was = folder.read_json(FROZEN_FILE) if path.exists() else None
    if was != now:
        began, got = (f"frozen weights {x['sha256'][:12]}" if x else "no frozen weights" for x in (was, now))
        raise ValueError(
            f"the run in {folder.path} was begun with {began}, but this run has {got}; "
            "pass the same weights, or --out with a new folder"
        )


def _copy(state: Any) -> Any:
    # An explicit dtype also drops weak types, which would cost a second compilation at the second chunk.
    return jax.tree.map(lambda x: jnp.array(x, dtype=jnp.asarray(x).dtype, copy=True), state)


def _find_bad_loss(metrics: History, done: int) -> str | None:
    """Return what is wrong with the first loss that is not finite, or None."""
    for name, values in metrics.items():
        is_loss = name.endswith("loss") or name.startswith("loss/")
        bad = ~np.isfinite(values.astype(np.float64)) if is_loss else np.zeros(0, bool)
        if bad.any():
            row = int(bad.reshape(len(bad), -1).any(axis=1).argmax())
            where = ""
            if bad.ndim > 1:
                members = np.flatnonzero(bad[row].reshape(bad.shape[1], -1).any(axis=1)).tolist()
                where = f" in members {members} of {bad.shape[1]}"
            return f"{name} is not finite at step {done + row}{where}"
    return None


def _find_bad_leaf(state: Any, done: int) -> str | None:
    """Return what is wrong with the first nan in what learns: params and opt_state, or else all of the state.

    An environment or a hyperparameter may hold an infinity, and its state is its own.
    """
    learns = {"params": state.params, "optimiser": state.opt_state} if isinstance(state, State) else state
    bad = [
        jax.tree_util.keystr(path, simple=True, separator="/") or "the state"
        for path, leaf in jax.tree_util.tree_leaves_with_path(learns)
        if jnp.issubdtype(leaf.dtype, jnp.floating) and np.isnan(np.asarray(leaf)).any()
    ]
    # Sorted by name "params" comes last, and says more than Adam's moments.
    return f"{bad[-1]} is nan after {done} steps, although the loss is finite" if bad else None


def _check_finite(bad: str | None, folder: RunFolder | None) -> None:
    if bad is None:
        return
    kept = ""
    if folder is not None and (step := checkpoint.latest_step(folder.path)) is not None:
        kept = f"; the checkpoint of step {step} in {folder.path} is intact"
    raise FloatingPointError(f"{bad}; lower the learning rate{kept}")


@contextlib.contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], bool]]:
    """Let the first Ctrl-C only raise a flag, so that it cannot fall between a state and its checkpoint."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag.is_set
        return

    def on_interrupt(*_: Any) -> None:
        flag.set()
        signal.signal(signal.SIGINT, previous)
        print("\nstopping at the end of this chunk; Ctrl-C again stops at once", file=sys.stderr)

    previous = signal.signal(signal.SIGINT, on_interrupt)
    try:
        yield flag.is_set
    finally:
        signal.signal(signal.SIGINT, previous)


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
