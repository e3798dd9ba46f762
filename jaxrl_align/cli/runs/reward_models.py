"""Commands about rewards: learn a reward model from feedback, and score answers by one."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tyro.conf import OmitArgPrefixes

from jaxrl_align import align, evaluate, feedback
from jaxrl_align.align.reward_model import stack_pair
from jaxrl_align.checks import check_hparams
from jaxrl_align.cli.bases import Base
from jaxrl_align.cli.datasets import (
    Divided,
    Encoded,
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
from jaxrl_align.cli.runs.course import Course, Outcome, make_measure
from jaxrl_align.cli.runs.driving import Journey, drive
from jaxrl_align.cli.runs.estimates import halving_flags
from jaxrl_align.cli.tuning import check_tuning, load_tuned_base, start_tuning
from jaxrl_align.learner import LossFn
from jaxrl_align.nets.adapters import merge, overlay
from jaxrl_align.nets.transformer import LanguageModel, init_scalar_head
from jaxrl_align.runtime.devices.hosts import gather
from jaxrl_align.runtime.huggingface import save_reward_model
from jaxrl_align.types import Comparisons, PaddedTokens, Params, Rankings

SCALED_BY = 256
"""Rows that the normalisation is fitted to, at most."""


@dataclass(frozen=True)
class Reward:
    """Train a reward model on human feedback; it is written as a sequence classifier, an adapter folded in.

    Rows: comparisons {"prompt", "chosen", "rejected"} (mostly "margin"), rankings {"prompt", "completions",
    "ranking"}, ratings {"prompt", "completion", "score"}, labels {"prompt", "completion", "label"} or
    corrections {"prompt", "completion", "correction"}.
    """

    base: OmitArgPrefixes[ModelOptions]
    rows: OmitArgPrefixes[DataOptions]
    lengths: OmitArgPrefixes[LengthOptions] = LengthOptions()
    tuning: OmitArgPrefixes[TuningOptions] = TuningOptions()
    run: OmitArgPrefixes[RunOptions] = RunOptions(samples=0)
    scale: tuple[float, float] = (1.0, 10.0)
    """The lowest and the highest score of ratings."""
    label_smoothing: float = 0.0
    """The chance that any comparison's label is flipped, below 0.5."""
    centring: float = 0.0
    """Weight of a penalty on the mean of a pair's scores; 0.01 is usual."""
    normalise: bool = True
    """Give scores mean 0 and deviation 1 over the rows' completions."""


def run_reward(options: Reward, argv: Sequence[str]) -> None:
    """Train a reward model."""
    check_run(options.run)
    check_tuning(options.tuning, reward_model=True)
    divided = read_judgements(options)
    base = load_tuned_base(options.base, options.tuning, whole=True)
    encoded = encode_feedback(divided, base.tokenizer, options.rows, options.lengths, base.config.context)
    pad = choose_pad(base, encoded)
    key, key_head = jax.random.split(jax.random.key(options.run.seed))
    tuned = start_tuning(options.tuning, base, key)
    head = init_scalar_head(key_head, base.config.width)
    part = {"head": head} | ({"lm": tuned.part} if tuned.part else {})
    whole = options.tuning.tuning == "full"
    frozen = None if whole else {"lm": tuned.frozen, "head": head}
    counts = count_rows(encoded.train, encoded.held_out)
    steps, rate = count_steps(options.run, counts[0]), learning_rate("reward", options.run, options.tuning)
    objective = choose_objective(base.lm, divided.train[0])
    hparams = align.RewardHParams(rate, options.label_smoothing, options.centring)
    check_hparams(hparams)
    batch = options.run.batch_size

    def course() -> Course:
        return Course(
            align.make_reward_learner(
                base.lm, objective=objective, total_steps=steps, warmup_steps=steps // 10
            ),
            hparams,
            part,
            frozen,
            shuffled_batches(encoded.train, batch_size=batch, seed=options.run.seed),
            make_measure(objective, frozen, encoded.held_out, batch, hparams),
            "loss",
            False,
            ("loss", "accuracy"),
            None,
        )

    completions = np.asarray(_completions(encoded.train).real).shape[1]
    journey = Journey(
        command="reward",
        options=options,
        shared=options,
        base=base,
        tuned=tuned,
        encoded=encoded,
        counts=counts,
        hashes=divided.hashes,
        steps=steps,
        rate=rate,
        method="reward model (docs/lectures.md, F5 to F8)",
        course=course,
        write=lambda folder, params: write_reward_model(
            folder, base, overlay(frozen, params), encoded, pad, options.normalise
        ),
        at_once=batch,
        length=encoded.lengths[0] + completions * encoded.lengths[1],
        halve=halving_flags(batch),
        facts={"padding": f"token {pad}, {base.tokenizer.with_pad(pad).special['pad_token']!r}"},
        conclude=lambda outcome: report_held_out(base, frozen, outcome, encoded),
    )
    drive(journey, argv)


def read_judgements(options: Reward) -> Divided:
    """Read feedback; ratings of several annotators come on one scale."""
    read = functools.partial(feedback.read_feedback, scale=options.scale)
    divided = divide_rows(options.rows, read, options.run.seed)
    rows = [*divided.train, *divided.held_out]
    if isinstance(rows[0], feedback.Rating) and len({row.annotator for row in rows}) > 1:
        rows, count = feedback.standardise_ratings(rows), len(divided.train)
        divided = divided._replace(train=rows[:count], held_out=rows[count:])
    return divided


def choose_objective(lm: LanguageModel, row: Any) -> LossFn:
    """Return the objective of a kind of feedback, known by one of its rows."""
    objectives: dict[type, Callable[[LanguageModel], LossFn]] = {
        feedback.Comparison: align.comparison_objective,
        feedback.Correction: align.comparison_objective,
        feedback.Ranking: align.ranking_objective,
        feedback.Rating: align.rating_objective,
        feedback.Label: align.label_objective,
    }
    return objectives[type(row)](lm)


def choose_pad(base: Base, encoded: Encoded) -> int:
    """Return a padding token that no text ends with, as transformers needs it to find a text's last token.

    It is the tokenizer's, unless that ends texts too; then the first token of the vocabulary that no row
    holds.
    """
    pad = base.tokenizer.pad_token
    if pad is not None and pad not in base.stop_tokens:
        return pad
    used = set(base.stop_tokens)
    for rows in (encoded.train, encoded.held_out):
        texts = jax.tree.leaves(rows, is_leaf=lambda x: isinstance(x, PaddedTokens))
        for text in (x for x in texts if isinstance(x, PaddedTokens)):
            used |= set(np.unique(np.asarray(text.tokens)[np.asarray(text.real) > 0]).tolist())
    return next(token for token in range(base.config.vocab_size) if token not in used)


def _completions(rows: Any) -> PaddedTokens:
    """Return a batch's completions [N, K, C]."""
    if isinstance(rows, Comparisons):
        return stack_pair(rows)
    if isinstance(rows, Rankings):
        return rows.completions
    return jax.tree.map(lambda x: np.asarray(x)[:, None], rows.completion)


def score_texts(lm: LanguageModel, model: align.RewardModel, rows: Any, batch_size: int = 8) -> np.ndarray:
    """Return the scores [N, K] of the completions of rows of feedback."""
    data = jax.tree.map(jnp.asarray, (rows.prompt, _completions(rows)))

    @jax.jit
    def score_all(model: align.RewardModel, data: Any) -> jax.Array:
        read = lambda row: align.score_completions(lm, model, *row)
        return jax.lax.map(read, data, batch_size=batch_size)

    return np.asarray(gather(score_all(model, data)))


def write_reward_model(
    folder: Path, base: Base, params: Params, encoded: Encoded, pad: int, normalise: bool
) -> str:
    """Write a reward model into a new folder, its scores normalised over some of the training rows."""
    whole = {"lm": merge(params["lm"], dtype=jnp.float32), "head": params["head"]}
    gain, bias = 1.0, 0.0
    if normalise:
        rows = jax.tree.map(lambda x: x[:SCALED_BY], encoded.train)
        scores = score_texts(base.lm, align.RewardModel(whole), rows)
        if isinstance(rows, Rankings):  # what fills a shorter ranking up has a score, but is no answer
            scores = scores[np.asarray(rows.mask) > 0]
        gain = 1.0 / max(float(scores.std()), 1e-6)
        bias = -float(scores.mean()) * gain
    save_reward_model(
        folder,
        base.config,
        whole,
        gain=gain,
        bias=bias,
        pad_token=pad,
        stop_tokens=base.stop_tokens,
        tokenizer=base.tokenizer.with_pad(pad),
    )
    return "a reward model (a sequence classifier of one label)"


def report_held_out(base: Base, frozen: Any, outcome: Outcome, encoded: Encoded) -> str:
    """Return the report on held-out comparisons; nothing for other rows."""
    rows = encoded.held_out
    if not isinstance(rows, Comparisons):
        return ""
    model = align.RewardModel(overlay(frozen, outcome.params))
    scores = score_texts(base.lm, model, rows)
    lengths = np.stack([np.asarray(side.real).sum(-1) for side in (rows.chosen, rows.rejected)], -1)
    return str(evaluate.report_pairs(scores[:, 0] - scores[:, 1], lengths))
