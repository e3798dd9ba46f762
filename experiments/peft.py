"""Accuracy, forgetting and bytes a task of the ways of tuning, against the number of trained weights.

The class is a word that the model's own head predicts as a row's last token (`peft_task.py`), so every way
trains its own leaves and no other; `head` is an untied copy of the embeddings. Equal budgets: all have the
same rows, 300 steps of 8, and four learning rates, of which each gets the smallest within a standard error
of its best on rows for validation. Forgetting is the change of the loss on books that are held out of
pre-training, with the part in place; what is laid beside the base can be taken off, and then nothing is
forgotten. The small model is pre-trained here, one for all seeds of the tuning: the intervals do not cover
pre-training. A published one (`--model`) has had a few steps, and full fine-tuning the least of the rates
that were tried: less may serve it better still (docs/results/peft_model.md).

What few weights forget depends on the rate that they need: to move the model far, they must move far
themselves. On large models a part comes near full fine-tuning; over frozen embeddings and a frozen last norm
this small one hardly learns which words are answers. (The rule of one standard error was made after full
fine-tuning's first results; by the best validation alone it would take a rate at which it forgets far more.)
Published: prompt tuning is behind up to about 10 billion weights (Lester et al. 2021). With two layers the
top half is the top layer (`top half` comes with four).
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from peft_report import UNTUNED, report
from peft_task import Base, BaseConfig, Task, make_accuracy, make_task, own_base, published_base
from peft_ways import Way, count, make_ways, tune

from jaxrl_align import runtime
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.pretrain.lm import make_text_loss, sample_rows
from jaxrl_align.runtime import cli
from jaxrl_align.types import Params, TokenBatch

CLAIM = runtime.Claim(
    "To train a part of the weights costs a task few bytes and forgets less of what pre-training taught; "
    "prompt tuning, which trains the fewest, is behind in small models.",
    rows=("D1", "D2", "D3", "D4", "D5", "D11", "D12"),
    minutes=20,
)
WINDOW = 96
"""Tokens of the held-out text that are read at a time; virtual tokens must fit the context beside them."""


@dataclass(frozen=True)
class Config(BaseConfig):
    """Every way has the same steps, batches, rows and learning rates to choose from."""

    out: str = "runs/peft"
    model: str | None = None
    """A local Hugging Face folder that is tuned instead, member after member."""
    ways: tuple[str, ...] = ()
    """Which; none means all."""
    ranks: tuple[int, ...] = (1, 4, 64)
    """Of LoRA."""
    tasks: tuple[str, ...] = ("trec", "sst2")
    """That are learnt, one by one."""
    lengths: tuple[int, ...] = (28, 40)
    """Tokens of a row, for each task; longer texts are cut."""
    steps: int = 300
    """Updates of each tuning."""
    batch_size: int = 8
    """Rows of an update."""
    rates: tuple[float, ...] = (1e-3, 5e-3, 2e-2, 1e-1)
    """Learning rates in rising order; each way's is chosen on the validation rows, see `choose`."""
    validation_rows: int = 200
    """Rows of a task by which the rate is chosen."""
    test_rows: int = 400
    """Rows of a task that accuracy is measured on."""


def make_measure(base: Base, task: Task, *parts: TokenBatch) -> Any:
    """Return `lm -> (params -> [accuracy on each part, nats a token on the held-out text])`."""

    def measure(lm: LanguageModel) -> Any:
        accuracy = make_accuracy(lm, task.words)
        text_loss = make_text_loss(lm, base.held_out, length=WINDOW, batch_size=8)

        def of(params: Params) -> jax.Array:
            nats, tokens = text_loss(params)
            return jnp.stack([*(accuracy(params, rows) for rows in parts), nats / tokens])

        return of

    return measure


def run_way(config: Config, base: Base, way: Way, task: Task) -> dict[str, Any]:
    """Tune by one way, every seed at every rate; return what it costs and what came out.

    Returns:
      `parameters`, `bytes`, and [rates, seeds] each: `validation` and `test` accuracy, `nats` a token on the
      held-out text, and `loss` over the last tenth of the steps.
    """
    sample = sample_rows(task.train, batch_size=config.batch_size)
    measure = make_measure(base, task, task.validation, task.test)
    found = tune(base, way, sample, measure, keys=config.keys(1), rates=config.rates, steps=config.steps)
    parameters, size = count(way, base.lm, base.params)
    sizes = {"parameters": parameters, "bytes": size}
    return sizes | dict(zip(("validation", "test", "nats", "loss"), found, strict=True))


def measure_untuned(base: Base, task: Task) -> dict[str, Any]:
    """Return the accuracy and the loss before any tuning."""
    test, nats = jax.jit(make_measure(base, task, task.test)(base.lm))(base.params)
    return {"test": float(test), "nats": float(nats)}


def main(config: Config) -> None:
    """Pre-train or load, tune by every way on every task; draw and write the result."""
    config.require(seeds=2, steps=1, rates=0, lengths=1)
    if len(config.lengths) != len(config.tasks):
        raise ValueError(f"lengths must be one for each task; got {config.lengths} for {config.tasks}")
    if list(config.rates) != sorted(config.rates):
        raise ValueError(f"rates must be in rising order; got {config.rates}")
    runtime.use_cpu_devices()
    folder = config.open_folder()
    if config.model is None:
        base = own_base(config, folder)
    else:
        base = published_base(config.model, config.text, config.held_out_tokens)
    ways = make_ways(base.lm, config.ranks)
    if unknown := sorted(set(config.ways) - ways.keys()):
        raise ValueError(f"ways must be among {', '.join(ways)}; got {', '.join(unknown)}")
    rows = config.validation_rows, config.test_rows
    results: dict[str, dict[str, Any]] = {}
    for name, length in zip(config.tasks, config.lengths, strict=True):
        task = make_task(name, base.tokenizer, length, rows)
        results[name] = {UNTUNED: folder.once(f"{name}_untuned.json", measure_untuned, base, task)}
        for way in config.ways or ways:
            file = f"{name}_{way}.json".replace(" ", "_")
            results[name][way] = folder.once(file, run_way, config, base, ways[way], task)
            print(f"{name}, {way}: done", flush=True)
    report(config, folder, CLAIM, results)


if __name__ == "__main__":
    cli.main(Config, main)
