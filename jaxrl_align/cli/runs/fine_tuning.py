"""The command `sft`: supervised fine-tuning."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
from tyro.conf import OmitArgPrefixes

from jaxrl_align import feedback
from jaxrl_align.checks import check_divides
from jaxrl_align.cli.datasets import (
    count_rows,
    divide_rows,
    encode_sft,
    shuffled_batches,
)
from jaxrl_align.cli.options import (
    DataOptions,
    ModelOptions,
    RunOptions,
    TuningOptions,
    check_run,
    count_steps,
    learning_rate,
)
from jaxrl_align.cli.runs.course import Course, make_measure, make_samples
from jaxrl_align.cli.runs.driving import Journey, drive
from jaxrl_align.cli.runs.estimates import halving_flags
from jaxrl_align.cli.tuning import (
    check_tuning,
    load_tuned_base,
    start_tuning,
    write_language_model,
)
from jaxrl_align.nets.adapters import overlay
from jaxrl_align.pretrain.lm import LMHParams, make_lm_learner, next_token_objective


@dataclass(frozen=True)
class SFT:
    """Supervised fine-tuning: imitate texts.

    Rows: {"text"}, of which all is imitated; {"messages": [{"role", "content"}]}, of which the assistant's
    turns are; {"prompt", "completion"}, of which the completion is.
    """

    base: OmitArgPrefixes[ModelOptions]
    rows: OmitArgPrefixes[DataOptions]
    tuning: OmitArgPrefixes[TuningOptions] = TuningOptions()
    run: OmitArgPrefixes[RunOptions] = RunOptions()
    length: int | None = None
    """Tokens that rows are padded to; None, what they need, at most the model's context."""
    microbatches: int = 1
    """Parts that a batch is read in, one in memory at a time: less memory, more time, the same gradient."""


def run_sft(options: SFT, argv: Sequence[str]) -> None:
    """Fine-tune a model on demonstrations."""
    check_run(options.run)
    check_divides(options.microbatches, options.run.batch_size, "--microbatches", "--batch-size")
    check_tuning(options.tuning)
    divided = divide_rows(options.rows, feedback.read_demonstrations, options.run.seed)
    base = load_tuned_base(options.base, options.tuning)
    encoded = encode_sft(divided, base.tokenizer, options.rows, options.length, base.config.context)
    tuned = start_tuning(options.tuning, base, jax.random.key(options.run.seed))
    counts = count_rows(encoded.train, encoded.held_out)
    steps, rate = count_steps(options.run, counts[0]), learning_rate("sft", options.run, options.tuning)
    whole = options.tuning.tuning == "full"
    batch, parts = options.run.batch_size, options.microbatches

    def course() -> Course:
        frozen, hparams = None if whole else tuned.frozen, LMHParams(rate)
        warmup = steps // 10
        return Course(
            make_lm_learner(base.lm, total_steps=steps, warmup_steps=warmup, microbatches=parts),
            hparams,
            tuned.part,
            frozen,
            shuffled_batches(encoded.train, batch_size=batch, seed=options.run.seed),
            make_measure(next_token_objective(base.lm), frozen, encoded.held_out, batch // parts, hparams),
            "loss",
            False,
            ("loss", "mean_token_accuracy"),
            make_samples(base, encoded, options.run, lambda part: overlay(frozen, part)),
        )

    journey = Journey(
        command="sft",
        options=options,
        shared=options,
        base=base,
        tuned=tuned,
        encoded=encoded,
        counts=counts,
        hashes=divided.hashes,
        steps=steps,
        rate=rate,
        method="supervised fine-tuning",
        course=course,
        write=lambda folder, part: write_language_model(
            folder, base, tuned, part, options.tuning, options.base
        ),
        at_once=batch // parts,
        length=encoded.lengths[1],
        halve=halving_flags(batch, parts, "--microbatches"),
    )
    drive(journey, argv)
