"""HELM's seven fields of a language model on a task: how its items are asked, as they are and perturbed.

print(report_task(load_task("sst2"), lm, params, tokenizer, limit=300))
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.evaluate.ask_items import AskedItems, Asker, Progress
from jaxrl_align.evaluate.helm import Answers, HelmReport, report
from jaxrl_align.evaluate.measures.calibration import option_probs
from jaxrl_align.evaluate.measures.perturbations import FAIRNESS, ROBUSTNESS, Perturbation, perturb_within
from jaxrl_align.evaluate.measures.wording import Scorer
from jaxrl_align.evaluate.run_task import draw_items
from jaxrl_align.evaluate.tasks.task_format import Task
from jaxrl_align.evaluate.tasks.task_items import Item
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.runtime.evidence import describe_cores
from jaxrl_align.runtime.statistics import DRAWS
from jaxrl_align.types import Params


def report_task(
    task: Task,
    lm: LanguageModel,
    params: Params,
    tokenizer: Tokenizer,
    *,
    shots: int = 0,
    limit: int | None = None,
    seed: int = 0,
    balanced: bool = False,
    scorer: Scorer | None = None,
    scorer_name: str = "",
    draws: int = DRAWS,
    progress: Progress | None = None,
    **how: Any,
) -> HelmReport:
    """Report HELM's fields of a language model on the items and the examples that `run_task` takes.

    The items are asked twice as they are: programs are compiled at the first time, and the second one is
    timed. Then those that it changes are asked for each perturbation, behind the same examples. It is a row's
    own words that change, not the template's. A text whose perturbed form cannot be asked, since it is an
    example's or does not fit the context, stays as it is.

    Args:
      task: from `load_task`.
      lm: the language model.
      params: its parameters.
      tokenizer: the model's.
      shots: as in `run_task`, like the three that follow.
      limit: at most about so many items.
      seed: of the examples, the perturbations and the bootstraps.
      balanced: examples of all labels in turn.
      scorer: of toxicity, see `wording.find_toxic`.
      scorer_name: what the report calls it.
      draws: of the bootstraps.
      progress: called with the number of items done and of all, of each asking.
      **how: `rule`, `thoughts`, `chat`, `response_length`, `stop_tokens` and `batch_size`, as `Asker`'s.

    Raises:
      FileNotFoundError, ImportError, ValueError: as `run_task`.
    """
    items, drawn = draw_items(task, shots=shots, limit=limit, seed=seed, balanced=balanced)
    asker = Asker(task, lm, params, tokenizer, drawn.examples, **how)
    asker.ask(items, progress)
    answers = to_answers(asker, asker.ask(items, progress))

    def answer(asked: Sequence[Item]) -> Answers:
        return answers if asked is items else to_answers(asker, asker.ask(asked, progress))

    return report(
        items,
        answer,
        metrics=task.metrics,
        robustness=_possible(ROBUSTNESS, asker, items),
        fairness=_possible(FAIRNESS, asker, items),
        scorer=scorer,
        scorer_name=scorer_name,
        conditions=f"{_device()}, {len(items):,} items, {asker.batch_size} at a time",
        draws=draws,
        seed=seed,
    )


def to_answers(asker: Asker, asked: AskedItems) -> Answers:
    """Return what came of asking as `helm.report` takes it.

    Options' probabilities are the softmax of what the rule compares; of scores by length, which are no
    logarithms of probabilities, that of the log-probabilities. Answers on a scale have none.
    """
    predictions = [result.prediction for result in asked.results]
    if asker.writes:
        texts = [result.written for result in asked.results]
        return Answers(predictions, None, texts, asked.seconds, asked.tokens)
    by_length = asker.rule in ("characters", "bytes")
    table = np.full((len(predictions), max(map(len, asked.scores))), -np.inf)
    for row, result, scores in zip(table, asked.results, asked.scores, strict=True):
        row[: len(scores)] = result.log_probs if by_length else scores
    scale = asker.task.options is not None and bool(asker.task.options.numbers)
    probs = None if scale else option_probs(table)
    return Answers(predictions, probs, None, asked.seconds, asked.tokens)


def _possible(
    perturbations: Mapping[str, Perturbation], asker: Asker, items: Sequence[Item]
) -> dict[str, Perturbation]:
    """Return perturbations of a row's own words, which leave a text whose perturbed form cannot be asked."""
    of_text = {item.input: item for item in items}

    def limited(perturb: Perturbation) -> Callable[[str, np.random.Generator], str]:
        def change(text: str, random: np.random.Generator) -> str:
            item = of_text[text]
            changed = perturb_within(perturb, text, item.own, random)
            try:
                asker.make_prompts([item._replace(input=changed, own=None)])
            except ValueError:
                return text
            return changed

        return change

    return {name: limited(perturb) for name, perturb in perturbations.items()}


def _device() -> str:
    device = jax.devices()[0]
    return device.device_kind + (f" with {describe_cores()}" if device.platform == "cpu" else "")
