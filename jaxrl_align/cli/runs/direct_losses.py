"""The commands dpo, ipo, kto, orpo, simpo and slic: preferences without a reward model."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import numpy as np
from tyro.conf import OmitArgPrefixes

from jaxrl_align import align, feedback
from jaxrl_align.checks import check_divides, check_hparams
from jaxrl_align.cli.datasets import (
    Divided,
    count_rows,
    divide_rows,
    encode_feedback,
    shuffled_batches,
)
from jaxrl_align.cli.options import (
    DataOptions,
    LengthOptions,
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
from jaxrl_align.feedback import Comparison, Correction, Label, Ranking
from jaxrl_align.learner import LossFn
from jaxrl_align.nets.adapters import overlay
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.types import Params


@dataclass(frozen=True)
class PreferenceOptions:
    """What the direct losses share."""

    base: OmitArgPrefixes[ModelOptions]
    rows: OmitArgPrefixes[DataOptions]
    lengths: OmitArgPrefixes[LengthOptions] = LengthOptions()
    tuning: OmitArgPrefixes[TuningOptions] = TuningOptions()
    run: OmitArgPrefixes[RunOptions] = RunOptions()
    microbatches: int = 1
    """Parts that a batch is read in, one in memory at a time: less memory, more time, the same gradient."""


@dataclass(frozen=True)
class DPO:
    """Direct preference optimisation (Rafailov et al. 2023); --label-smoothing makes it conservative (cDPO).

    Rows: {"prompt", "chosen", "rejected"}, also without a prompt where both begin with it; rankings
    {"prompt", "completions", "ranking"} and corrections {"prompt", "completion", "correction"} become pairs.
    """

    shared: OmitArgPrefixes[PreferenceOptions]
    beta: float = 0.1
    """Weight of the implicit KL penalty: more keeps the model nearer to where it started."""
    label_smoothing: float = 0.0
    """The chance that a label is wrong, below 0.5."""


@dataclass(frozen=True)
class IPO:
    """Identity preference optimisation (Azar et al. 2024), bounded for certain preferences.

    Rows: as dpo's.
    """

    shared: OmitArgPrefixes[PreferenceOptions]
    beta: float = 0.1
    """Weight of the KL penalty (the paper's tau)."""


@dataclass(frozen=True)
class KTO:
    """Kahneman-Tversky optimisation (Ethayarajh et al. 2024), from single answers judged good or bad.

    Rows: {"prompt", "completion", "label"}; of pairs the chosen answer is good and the rejected one bad.
    """

    shared: OmitArgPrefixes[PreferenceOptions]
    beta: float = 0.1
    """Sharpness of the judgement."""
    desirable_weight: float = 1.0
    undesirable_weight: float = 1.0


@dataclass(frozen=True)
class ORPO:
    """Odds-ratio preference optimisation (Hong et al. 2024): imitation and preference at once, no reference.

    Rows: as dpo's.
    """

    shared: OmitArgPrefixes[PreferenceOptions]
    beta: float = 0.1
    """Weight of the odds ratio (the paper's lambda)."""


@dataclass(frozen=True)
class SimPO:
    """Simple preference optimisation (Meng et al. 2024), whose reward is the mean log-probability.

    Rows: as dpo's.
    """

    shared: OmitArgPrefixes[PreferenceOptions]
    beta: float = 2.0
    """Scale of the reward."""
    margin: float = 1.0
    """By how much the chosen answer is to win (the paper's gamma)."""


@dataclass(frozen=True)
class SLiC:
    """Sequence-likelihood calibration (Zhao et al. 2023).

    Rows: as dpo's.
    """

    shared: OmitArgPrefixes[PreferenceOptions]
    margin: float = 1.0
    """By how many nats the chosen answer is to win (the paper's delta)."""
    target_weight: float = 0.1
    """Weight of imitating the chosen answer (lambda)."""


class Method(NamedTuple):
    """A direct loss as a command."""

    name: str
    objective: Callable[..., LossFn]
    words: str
    referenced: bool = False


METHODS: dict[type, Method] = {
    DPO: Method("dpo", align.dpo_objective, "DPO (Rafailov et al. 2023, arXiv:2305.18290)", True),
    IPO: Method("ipo", align.ipo_objective, "IPO (Azar et al. 2024, arXiv:2310.12036)", True),
    KTO: Method("kto", align.kto_objective, "KTO (Ethayarajh et al. 2024, arXiv:2402.01306)", True),
    ORPO: Method("orpo", align.orpo_objective, "ORPO (Hong et al. 2024, arXiv:2403.07691)"),
    SimPO: Method("simpo", align.simpo_objective, "SimPO (Meng et al. 2024, arXiv:2405.14734)"),
    SLiC: Method("slic", align.slic_objective, "SLiC-HF (Zhao et al. 2023, arXiv:2305.10425)"),
}


def as_pairs(rows: Sequence[Any]) -> list[Any]:
    """Return rankings and corrections as the pairs that they order; other rows as they are."""
    made: list[Any] = []
    for row in rows:
        if isinstance(row, Correction):
            made.append(feedback.compare_correction(row))
            continue
        if not isinstance(row, Ranking):
            made.append(row)
            continue
        order = np.argsort(row.ranks, kind="stable")
        made += [
            Comparison(row.prompt, row.completions[i], row.completions[j], source=row.source, tools=row.tools)
            for place, i in enumerate(order)
            for j in order[place + 1 :]
            if row.ranks[i] < row.ranks[j]
        ]
    return made


def as_labels(rows: Sequence[Any]) -> list[Any]:
    """Return pairs as a good and a bad answer each; other rows as they are."""
    made: list[Any] = []
    for row in rows:
        if isinstance(row, Comparison):
            made += [
                Label(row.prompt, text, good, source=row.source, tools=row.tools)
                for text, good in ((row.chosen, True), (row.rejected, False))
            ]
        else:
            made.append(row)
    return made


def run_direct(options: Any, argv: Sequence[str]) -> None:
    """Fit a model to preferences by one of the direct losses."""
    method, shared = METHODS[type(options)], options.shared
    check_shared(shared)
    hparams = choose_hparams(options)
    divided = divide_rows(shared.rows, feedback.read_feedback, shared.run.seed)
    divided = as_direct(divided, isinstance(options, KTO))
    base = load_tuned_base(shared.base, shared.tuning)
    encoded = encode_feedback(divided, base.tokenizer, shared.rows, shared.lengths, base.config.context)
    tuned = start_tuning(shared.tuning, base, jax.random.key(shared.run.seed))
    counts = count_rows(encoded.train, encoded.held_out)
    check_others(options, counts)
    steps, whole = count_steps(shared.run, counts[0]), shared.tuning.tuning == "full"
    batch, parts = shared.run.batch_size, shared.microbatches
    objective = method.objective(base.lm, microbatches=parts)

    def course() -> Course:
        frozen = None if whole else tuned.frozen
        train, held_out = (
            refer(base.lm, base.params, rows, batch // parts, method.referenced)
            for rows in (encoded.train, encoded.held_out)
        )
        return Course(
            align.make_direct_learner(
                base.lm, objective=objective, total_steps=steps, warmup_steps=steps // 10
            ),
            hparams,
            tuned.part,
            frozen,
            shuffled_batches(train, batch_size=batch, seed=shared.run.seed),
            make_measure(read_in_parts(method, base.lm, batch // parts), frozen, held_out, batch, hparams),
            "loss",
            False,
            ("loss", "rewards/margins"),
            make_samples(base, encoded, shared.run, lambda part: overlay(frozen, part)),
        )

    journey = Journey(
        command=method.name,
        options=options,
        shared=shared,
        base=base,
        tuned=tuned,
        encoded=encoded,
        counts=counts,
        hashes=divided.hashes,
        steps=steps,
        rate=float(hparams.learning_rate),
        method=method.words,
        course=course,
        write=lambda folder, part: write_language_model(
            folder, base, tuned, part, shared.tuning, shared.base
        ),
        at_once=2 * (batch // parts),
        length=sum(encoded.lengths),
        halve=halving_flags(batch, parts, "--microbatches"),
    )
    drive(journey, argv)


def read_in_parts(method: Method, lm: LanguageModel, at_once: int) -> LossFn:
    """Return a method's objective of a batch of any size, with at most so many rows in memory at a time."""

    def objective(params: Any, frozen: Any, batch: Any, *given: Any) -> Any:
        count = count_rows(batch, None)[0]
        parts = next(n for n in range(1, count + 1) if count % n == 0 and count // n <= at_once)
        return method.objective(lm, microbatches=parts)(params, frozen, batch, *given)

    return objective


def check_shared(shared: PreferenceOptions) -> None:
    """Raise ValueError for settings that cannot be, before anything is read."""
    check_run(shared.run)
    check_divides(shared.microbatches, shared.run.batch_size, "--microbatches", "--batch-size")
    check_tuning(shared.tuning)


def choose_hparams(options: Any) -> align.DirectHParams:
    """Return a method's hyperparameters.

    Raises:
      ValueError: for one out of range; a beta of 0 too, which leaves ORPO the imitation and others nothing.
    """
    named = {name: getattr(options, name) for name in align.DirectHParams._fields if hasattr(options, name)}
    rate = learning_rate("direct", options.shared.run, options.shared.tuning)
    hparams = align.DirectHParams(**named | {"learning_rate": rate})
    check_hparams(hparams)
    if hparams.beta == 0 and not isinstance(options, ORPO):
        raise ValueError(f"--beta must be above 0; got {hparams.beta}; at 0 no answer is preferred")
    return hparams


def check_others(options: Any, counts: tuple[int, int]) -> None:
    """Raise ValueError for a single answer to learn or judge by: KTO reads each under another's prompt."""
    flags = (f"--data {options.shared.rows.data}", f"--held-out {options.shared.rows.held_out}")
    for flag, count in zip(flags, counts, strict=True):
        if count == 1 and isinstance(options, KTO):
            raise ValueError(
                f"KTO needs at least two answers, to read each under another's prompt; {flag} gives one; add "
                "rows, or hold out none by --held-out None"
            )


def as_direct(divided: Divided, labels: bool) -> Divided:
    """Return rows as a direct loss reads them: pairs, or for KTO labels."""
    change = lambda rows: as_labels(as_pairs(rows)) if labels else as_pairs(rows)
    train, held_out = change(divided.train), change(divided.held_out)
    wanted = Label if labels else Comparison
    for row in [*train, *held_out]:
        if not isinstance(row, wanted):
            raise ValueError(
                f"{row.source}: rows must be {'labels or pairs' if labels else 'pairs or rankings'}; got a "
                f"{type(row).__name__}; another command learns from it: see jaxrl-align --help"
            )
    return divided._replace(train=train, held_out=held_out)


def refer(lm: Any, params: Params, rows: Any, batch_size: int, referenced: bool) -> Any:
    """Return rows on the host, with the reference's log-probabilities where a loss reads them."""
    if rows is None or not referenced:
        if rows is not None:
            align.check_answers(lm, rows)
        return rows
    print(f"the reference reads {len(rows.prompt.tokens):,} rows", flush=True)
    return jax.tree.map(np.asarray, align.with_reference(lm, params, rows, batch_size=batch_size))
