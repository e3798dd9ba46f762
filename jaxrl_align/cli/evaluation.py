"""The command `evaluate`: a model on tasks, with metrics and their intervals."""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from tyro.conf import OmitArgPrefixes

from jaxrl_align.atomic import atomic_path
from jaxrl_align.checks import check_counts
from jaxrl_align.cli.bases import Base, load_base
from jaxrl_align.cli.serve import ReadOptions
from jaxrl_align.evaluate.helm import HelmReport
from jaxrl_align.evaluate.run_task import TaskResult, run_task
from jaxrl_align.evaluate.scoring.option_rules import Rule
from jaxrl_align.evaluate.task_report import report_task
from jaxrl_align.evaluate.tasks.task_format import Task, find_tasks, load_task
from jaxrl_align.runtime.folder import write_json


@dataclass(frozen=True)
class Evaluate:
    """Measure a model on tasks, with none or several examples in its prompts; nothing is trained.

    A task is one of the package's (such as sst2, cola, trec, gsm8k, blimp, probes), a suite (glue, superglue,
    bbh), or the path of your own .toml file.
    """

    source: OmitArgPrefixes[ReadOptions]
    tasks: str
    """Names or .toml files, with commas between them."""
    shots: str = "0"
    """Numbers of examples in a prompt, with commas between them: each is a run of its own."""
    rule: str = "raw"
    """How options are compared, with commas between them: raw, characters, bytes (log-likelihood by length),
    mutual_information (less that of the option alone), calibrated (less that behind an input that says
    nothing)."""
    limit: int | None = None
    """Items of each task, the same ones at every call; None, all."""
    seed: int = 0
    """Of the examples."""
    balanced: bool = False
    """Examples of all labels in turn."""
    thoughts: bool = False
    """Chain of thought, for tasks that have solutions written out."""
    chat: bool = False
    """Prompts in the model's chat template."""
    tokens: int | None = None
    """The most that a generated answer has; None, 48, or 256 with --thoughts."""
    batch_size: int = 32
    """Items at a time."""
    report: bool = False
    """Also accuracy, calibration, robustness, fairness, bias, toxicity and efficiency, HELM's seven fields;
    it asks all items some ten times more, as they are and perturbed."""
    out: str | None = None
    """A folder: results.json with all metrics, a file of items for each run, and of its report; None, the
    screen alone."""


def run_evaluate(options: Evaluate, argv: Sequence[str]) -> None:
    """Run every task with every number of examples and every rule; print a table and write the results."""
    begin, source = time.monotonic(), options.source
    check_counts(batch_size=options.batch_size)
    shots, rules = parse_shots(options.shots), parse_rules(options.rule)
    tasks = [load_task(name) for name in find_tasks(split_commas(options.tasks, "--tasks"))]
    base = load_base(source.model, base=source.base, hub=source.hub, fold=False)
    results = []
    for task in tasks:
        generates = options.thoughts or task.kind == "generate"
        for count in shots if task.kind != "pair" else (0,):
            for rule in rules[:1] if generates else rules:
                results.append(run_one(base, options, task, count, rule))
                print(task_result_text(results[-1], header=len(results) == 1), flush=True)
                if options.out is not None:
                    write_task_results(Path(options.out), results)
                if options.report:
                    report_one(base, options, task, results[-1], rule)
    where = f" in {options.out}" if options.out else ""
    print(f"[{len(results)} results{where}; {time.monotonic() - begin:.1f} s]")


def run_one(base: Base, options: Evaluate, task: Task, shots: int, rule: Rule) -> TaskResult:
    """Run one task, and show how far it is on a terminal."""
    how = settings(base, options, f"{task.name}, {shots} examples")
    return run_task(task, base.lm, base.params, base.tokenizer, shots=shots, rule=rule, **how)


def report_one(base: Base, options: Evaluate, task: Task, result: TaskResult, rule: Rule) -> None:
    """Print the seven fields of a run's task, and write them beside its result."""
    how = settings(base, options, f"{task.name}, {result.shots} examples, report")
    model = base.lm, base.params, base.tokenizer
    report = report_task(task, *model, shots=result.shots, rule=rule, **how)
    print(f"{file_name(result)}: {report}", flush=True)
    if options.out is not None:
        write_report(Path(options.out), result, report)


def settings(base: Base, options: Evaluate, label: str) -> dict[str, Any]:
    """Return how every task is asked; on a terminal the label tells what is being asked."""
    show = sys.stderr.isatty()

    def progress(done: int, total: int) -> None:
        if show:
            end = "\r" if done < total else "\r\033[K"
            print(f"{label}: {done:,} of {total:,} items", end=end, file=sys.stderr)

    return {
        "limit": options.limit,
        "seed": options.seed,
        "balanced": options.balanced,
        "thoughts": options.thoughts,
        "chat": options.chat,
        "response_length": options.tokens,
        "stop_tokens": base.stop_tokens,
        "batch_size": options.batch_size,
        "progress": progress,
    }


def split_commas(text: str, flag: str) -> list[str]:
    """Return the entries of a flag.

    Raises:
      ValueError: for none.
    """
    found = [part.strip() for part in text.split(",") if part.strip()]
    if not found:
        raise ValueError(f"{flag} must name at least one, with commas between them; got {text!r}")
    return found


def parse_shots(text: str) -> list[int]:
    """Return the numbers of examples.

    Raises:
      ValueError: for what is no whole number of at least 0.
    """
    found = split_commas(text, "--shots")
    if not all(part.isdecimal() for part in found):
        raise ValueError(f"--shots must be whole numbers such as 0,1,4; got {text!r}")
    return [int(part) for part in found]


def parse_rules(text: str) -> list[Rule]:
    """Return the rules by which options are compared.

    Raises:
      ValueError: for another one.
    """
    known: dict[str, Rule] = {rule: rule for rule in get_args(Rule)}
    found = split_commas(text, "--rule")
    if wrong := [part for part in found if part not in known]:
        raise ValueError(f"--rule must be of {', '.join(known)}; got {wrong[0]!r}")
    return [known[part] for part in found]


def task_result_text(result: TaskResult, header: bool = False) -> str:
    """Return a result as lines of a table, one for each metric."""
    width = max(24, len(result.task))
    how = "written" if not result.rule else result.rule
    notes = [f"{result.shortened} with fewer examples"] if result.shortened else []
    notes += [f"{result.excluded} test items kept out of the examples"] if result.excluded else []
    notes += [f"{result.unread} without an answer"] if result.unread else []
    row = lambda *cells: "{:{}} {:5}  {:18} {:22} {:26} {:>6}".format(cells[0], width, *cells[1:])
    tail = f"  ({'; '.join(notes)})" if notes else ""
    lines = [row("task", "shots", "rule", "metric", "value [95%]", "items")] if header else []
    for name, value in result.metrics.items():
        lines.append(
            row(result.task, str(result.shots), how, name, str(value), f"{len(result.items):,}") + tail
        )
    return "\n".join(lines)


def write_task_results(folder: Path, results: Sequence[TaskResult]) -> None:
    """Write the last result's items, and all metrics so far."""
    folder.mkdir(parents=True, exist_ok=True)
    last = results[-1]
    with atomic_path(folder / f"{file_name(last)}.json") as path:
        path.write_bytes(last.to_json())
    write_json(folder / "results.json", [summary(result) for result in results])


def write_report(folder: Path, result: TaskResult, report: HelmReport) -> None:
    """Write a report, and efficiency apart, so that the report is the same whenever the run is."""
    fields = report.to_dict()
    efficiency = fields.pop("efficiency")
    write_json(folder / f"{file_name(result)}_report.json", summary(result) | {"report": fields})
    write_json(folder / f"{file_name(result)}_efficiency.json", efficiency)


def file_name(result: TaskResult) -> str:
    """Return the name of a result's file, which tells runs of one command apart."""
    return "_".join([result.task, str(result.shots), result.rule or "written"])


def summary(result: TaskResult) -> dict[str, object]:
    """Return a result without its items."""
    fields = ("task", "kind", "shots", "rule", "thoughts", "chat", "seed", "excluded", "shortened", "unread")
    values = {name: getattr(result, name) for name in (*fields, "parameters")}
    metrics = {name: value.to_dict() for name, value in result.metrics.items()}
    return values | {"items": len(result.items), "metrics": metrics}
