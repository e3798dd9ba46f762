"""The course of a training run: steps, held-out evaluation, sample tables, the best part, writers."""

import contextlib
import json
import logging
import re
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.atomic import atomic_path, writes
from jaxrl_align.cli.bases import Base, pad_of
from jaxrl_align.cli.datasets import Encoded, count_rows, whole_batches
from jaxrl_align.cli.options import RunOptions
from jaxrl_align.finite import must_be_finite
from jaxrl_align.learner import LossFn
from jaxrl_align.nets.adapters import without_dropout
from jaxrl_align.runtime import checkpoint
from jaxrl_align.runtime.folder import RunFolder, open_run
from jaxrl_align.runtime.loop import check_chunk, run
from jaxrl_align.runtime.metrics import METRICS_FILE, History
from jaxrl_align.runtime.writers import open_writers
from jaxrl_align.text import Filters, make_completer
from jaxrl_align.types import Learner, Params

Found = TypeVar("Found")
HELD_OUT_FILE = "held_out.json"
SAMPLES_FILE = "samples.jsonl"
REWARD_ERROR = re.compile(r"^ValueError: (reward .*)$", re.MULTILINE)
SHOWN = 200
"""Characters of a prompt's end and of a completion in a printed table."""


class Course(NamedTuple):
    """What a method brings to a run."""

    learner: Learner
    hparams: Any
    part: Params
    """The parameters that the learner trains, as they start."""
    frozen: Any
    batches: Callable[[int, int], Any]
    measure: Callable[[Params], dict[str, float]] | None
    """Held-out metrics of the parameters; None without held-out rows."""
    judged_by: str
    """The held-out metric by which the best parameters are kept."""
    higher: bool
    """Whether more of it is better."""
    show: tuple[str, ...]
    """Metrics of the progress line."""
    samples: tuple[list[str], Callable[[Params], list[str]]] | None
    """Texts of a few prompts, and `params -> completions`; None for no sample tables."""


class Outcome(NamedTuple):
    """What a run has led to."""

    params: Params
    """The best by the held-out metric, or the last."""
    step: int
    """The step that they are of."""
    history: History
    held_out: dict[int, dict[str, float]]
    """Held-out metrics by step, 0 before training."""
    samples: list[dict[str, Any]]
    """Rows of the sample tables: step, prompt, completion."""


def open_folder(out: str, config: Mapping[str, Any], options: RunOptions) -> RunFolder:
    """Open the run's folder below `out`.

    Raises:
      ValueError: if `out` holds another run, a model, or anything else that is no run's.
    """
    path = Path(out)
    if path.is_file() or (path.is_dir() and any(path.iterdir()) and not (path / "run").is_dir()):
        raise ValueError(f"{out} exists and holds no run of ours; pass --out with a new folder")
    upkeep = options.upkeep()._replace(writers=())  # `follow` opens them, for held-out metrics too
    return open_run(path / "run", dict(config), resume=options.resume, upkeep=upkeep)


@contextlib.contextmanager
def opened_folder(out: str, config: Mapping[str, Any], options: RunOptions) -> Iterator[RunFolder]:
    """Open the run's folder as `open_folder` does, and remove it if an error comes before its first step.

    The corrected command then finds no run in its way. Only folders that this call has made are removed, and
    none of a step that was not finite: a replay is to find it.
    """
    run_path, above = Path(out) / "run", Path(out)
    made = [path for path in (run_path, above) if not path.exists()]
    folder = open_folder(out, config, options)
    try:
        yield folder
    except FloatingPointError:
        raise
    except Exception:
        stepped = (run_path / METRICS_FILE).exists() or checkpoint.latest_step(run_path) is not None
        if run_path in made and not stepped and writes():
            shutil.rmtree(run_path)
            if above in made and not any(above.iterdir()):
                above.rmdir()
        raise


def follow(course: Course, folder: RunFolder, options: RunOptions, steps: int) -> Outcome:
    """Take a course's steps, or those that an interrupted run has left, and return its outcome.

    Raises:
      FloatingPointError: a loss, KL, score or reward that is not finite; the last checkpoint is intact.
      KeyboardInterrupt: Ctrl-C, after a checkpoint.
      ValueError: for a checkpoint or frozen weights of another run.
    """
    done = (checkpoint.latest_step(folder.path) or 0) if folder.resume else 0
    watch = Watch(course, folder, options, steps, done)
    if done == 0:
        with readable_rewards():
            watch.look(0, course.part)
    writer = open_writers(options.writers, folder, done)

    def on_chunk(step: int, state: Any, metrics: History) -> None:
        looks = step % options.every == 0 or step == steps
        check_chunk(state if looks else None, metrics, step - 1, folder)
        if looks:
            found = watch.look(step, state.params)
            writer.write(step, {f"held_out/{name}": value for name, value in found.items()})

    try:
        with readable_rewards():
            state, history = run(
                course.learner.step,
                course.learner.init(jax.random.key(options.seed), course.hparams, params=course.part),
                steps,
                chunk=1,
                folder=folder,
                label=str(folder.config["command"]),
                show=course.show,
                checkpoint_every=options.every,
                on_chunk=on_chunk,
                writers=[writer],
                batches=course.batches,
                frozen=course.frozen,
            )
    finally:
        writer.close()
    best = watch.best()
    if best is None or best == steps:
        return Outcome(state.params, steps, history, watch.held_out, watch.rows)
    params, _ = checkpoint.restore(folder.path / "best", state.params, step=best)
    return Outcome(params, best, history, watch.held_out, watch.rows)


@contextlib.contextmanager
def readable_rewards() -> Iterator[None]:
    """Turn what a compiled program makes of an error in a user's reward function back into that error."""
    logging.getLogger("jax._src.callback").setLevel(logging.CRITICAL)  # it would print the traceback
    try:
        yield
    except Exception as error:
        found = REWARD_ERROR.findall(str(error))
        if isinstance(error, ValueError) or not found:
            raise
        raise ValueError(found[-1]) from error


class Watch:
    """Looks at a run from time to time: held-out metrics, sample tables, and the best parameters so far.

    What it has found is kept in the run's folder; of a continued run it forgets what lies behind its
    checkpoint, since those steps are taken again.

    Args:
      course: what is looked at.
      folder: of the run.
      options: how many samples.
      steps: of the whole run.
      done: steps that a continued run has behind it.
    """

    def __init__(self, course: Course, folder: RunFolder, options: RunOptions, steps: int, done: int) -> None:
        self._course, self._folder, self._steps = course, folder, steps
        self.held_out: dict[int, dict[str, float]] = {}
        self.rows: list[dict[str, Any]] = []
        if done:
            self._recall(done)

    def _recall(self, done: int) -> None:
        """Read back what was found up to a step."""
        path, course = self._folder.path, self._course
        if course.measure is not None:
            read = lambda file, done: _read_held_out(file, done, course.judged_by)
            self.held_out = _read_or_lose(read, path / HELD_OUT_FILE, done, {})
        if course.samples is not None:
            self.rows = _read_or_lose(_read_samples, path / SAMPLES_FILE, done, [])

    def best(self) -> int | None:
        """Return the step, after the start, whose held-out metric is the best, the first of equal ones."""
        name, sign = self._course.judged_by, -1 if self._course.higher else 1
        steps = [step for step, found in self.held_out.items() if step > 0 and np.isfinite(found[name])]
        return min(steps, key=lambda step: (sign * self.held_out[step][name], step), default=None)

    def look(self, step: int, params: Params) -> dict[str, float]:
        """Evaluate, show samples, keep what is best, and return the held-out metrics."""
        found: dict[str, float] = {}
        if self._course.measure is not None:
            found = self._course.measure(params)
            self.held_out[step] = found
            if self.best() == step:
                best = self._folder.path / "best"
                best.mkdir(exist_ok=True)
                checkpoint.save(best, step, params, self._folder.config)
            self._folder.write_json(HELD_OUT_FILE, {str(s): m for s, m in self.held_out.items()})
            shown = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
            print(f"step {step}/{self._steps}, held out: {shown}", flush=True)
        if self._course.samples is not None:
            prompts, complete = self._course.samples
            rows = zip(prompts, complete(params), strict=True)
            self.rows = [row for row in self.rows if row["step"] < step]
            self.rows += [{"step": step, "prompt": p, "completion": c} for p, c in rows]
            text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)
            with atomic_path(self._folder.path / SAMPLES_FILE) as temporary:
                temporary.write_text(text, encoding="utf-8")
            print(table_text([row for row in self.rows if row["step"] == step]), flush=True)
        return found


def _read_or_lose(read: Callable[[Path, int], Found], path: Path, done: int, nothing: Found) -> Found:
    """Return what a file holds up to a step; a damaged or missing one is lost, and no hindrance."""
    try:
        return read(path, done)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError) as error:
        warnings.warn(f"{path} cannot be read, and is lost up to step {done} ({error!r})", stacklevel=4)
        return nothing


def _read_held_out(path: Path, done: int, judged_by: str) -> dict[int, dict[str, float]]:
    stored = json.loads(path.read_text(encoding="utf-8"))
    found = {int(step): {name: float(x) for name, x in row.items()} for step, row in stored.items()}
    if without := [step for step, row in found.items() if judged_by not in row]:
        raise ValueError(f"step {without[0]} has no {judged_by}")
    return {step: row for step, row in found.items() if step <= done}


def _read_samples(path: Path, done: int) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    kinds = {"step": int, "prompt": str, "completion": str}
    rows = [{name: kind(row[name]) for name, kind in kinds.items()} for row in rows]
    return [row for row in rows if row["step"] <= done]


def table_text(rows: list[dict[str, Any]]) -> str:
    """Return sample rows as text: each prompt's end, and below it the completion."""
    lines = []
    for row in rows:
        lines.append(f"  step {row['step']} | {' '.join(row['prompt'].split())[-SHOWN:]}")
        lines.append(f"      -> {' '.join(row['completion'].split())[:SHOWN]}")
    return "\n".join(lines)


def make_measure(
    objective: LossFn, frozen: Any, held_out: Any, batch_size: int, hparams: Any
) -> Callable[[Params], dict[str, float]] | None:
    """Return `params -> held-out metrics`, means over batches, weighted by `num_tokens`, or else by rows.

    Nothing is dropped out. What is no mean over rows, such as an extreme, is a mean over batches nonetheless.

    Args:
      objective: of the method; it must take a batch of any size.
      frozen: what it reads beside the parameters.
      held_out: a tree of arrays [N, ...]; None gives None.
      batch_size: rows at a time.
      hparams: of the objective.
    """
    if held_out is None:
        return None
    frozen = without_dropout(frozen)
    batches = whole_batches(held_out, batch_size)
    sizes = [count_rows(batch, None)[0] for batch in batches]
    keys = jax.random.split(jax.random.key(0), len(batches))

    @jax.jit
    def read(params: Params, frozen: Any, batch: Any, key: Any) -> dict[str, jax.Array]:
        loss, metrics = objective(params, frozen, batch, key, hparams)
        return {"loss": loss, **metrics}

    def measure(params: Params) -> dict[str, float]:
        found = [read(params, frozen, batch, key) for batch, key in zip(batches, keys, strict=True)]
        weights = np.array([float(row.get("num_tokens", n)) for row, n in zip(found, sizes, strict=True)])
        names = [name for name in found[0] if name != "num_tokens"]
        values = {name: np.array([float(row[name]) for row in found]) for name in names}
        return {name: _mean_of_batches(name, x, weights) for name, x in values.items()}

    return measure


def _mean_of_batches(name: str, values: np.ndarray, weights: np.ndarray) -> float:
    """Return a weighted mean; but of a loss, over batches that have a value: not all have good answers."""
    there = np.isfinite(values) | must_be_finite(name)
    weight = weights[there].sum()
    return float(weights[there] @ values[there] / weight) if weight > 0 else np.nan


def make_samples(
    base: Base, encoded: Encoded, options: RunOptions, whole: Callable[[Params], Params]
) -> tuple[list[str], Callable[[Params], list[str]]] | None:
    """Return prompts and `params -> completions` for sample tables: the likeliest words, to compare.

    Args:
      base: the model.
      encoded: has the prompts.
      options: how many, and how long.
      whole: `params -> the language model's parameters`.
    """
    if not options.samples:
        return None
    length = min(options.sample_tokens, base.config.context // 2)
    prompts = [ids[-(base.config.context - length) :] for ids in encoded.prompts[: options.samples]]
    pad = pad_of(base)
    write = make_completer(
        base.lm,
        response_length=length,
        stop_tokens=base.stop_tokens,
        pad_token=None if pad in base.stop_tokens else pad,
        filters=Filters(top_k=1),
    )

    def complete(params: Params) -> list[str]:
        done = write(jax.tree.map(jnp.asarray, whole(params)), prompts, jax.random.key(0))
        return [base.tokenizer.decode(completion.tokens) for completion in done]

    return [base.tokenizer.decode(ids) for ids in prompts], complete
