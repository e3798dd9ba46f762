"""Learning from preferences without a reward model: one learner, and an objective for each loss.

learner = make_direct_learner(lm, sample_rows(with_reference(lm, base, pairs), batch_size=32))

| method | objective | rows |
|---|---|---|
| DPO, cDPO | `dpo_objective` | `Referenced` comparisons |
| IPO | `ipo_objective` | `Referenced` comparisons |
| KTO | `kto_objective` | `Referenced` ratings by label |
| ORPO | `orpo_objective` | `Comparisons` |
| SimPO | `simpo_objective` | `Comparisons` |
| SLiC | `slic_objective` | `Comparisons` |

Another loss of pairs is `pair_objective(lm, loss, ...)`. A prompt is computed once for both of its answers.
Any part may train: given a LoRA as parameters, the rest is each step's `frozen`, and the reference is the
base without the part. Metrics bear TRL's names.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxrl_align.align.reference import Referenced, check_answers, stack_answers
from jaxrl_align.align.reward_learner import check_rows, flip_chances
from jaxrl_align.align.reward_model import stack_pair
from jaxrl_align.checks import check_divides
from jaxrl_align.learner import LossFn, make_gradient_learner, make_optimizer
from jaxrl_align.losses import dpo, ipo, kto, log_odds_ratio, masked_mean, orpo, simpo, slic
from jaxrl_align.nets.adapters import overlay, with_dropout
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.text.shared_prompt import completion_log_probs
from jaxrl_align.types import (
    Comparisons,
    Learner,
    Metrics,
    Numeric,
    PaddedTokens,
    Params,
    Ratings,
    Sampler,
)


class DirectHParams(NamedTuple):
    """The traced scalars of learning from preferences; each objective says which it reads."""

    learning_rate: Numeric = 1e-5
    """1e-6 to 1e-5 are usual where all weights train, ten times as much for a LoRA."""
    beta: Numeric = 0.1
    """Weight of the implicit KL penalty in DPO, IPO (its tau) and KTO; ORPO's lambda; the scale of SimPO's
    reward, 2 to 2.5 there."""
    label_smoothing: Numeric = 0.0
    """DPO's, in [0, 0.5): the chance that any label is flipped, on top of the rows' own."""
    margin: Numeric = 1.0
    """SimPO's gamma, half of its beta is usual; SLiC's delta, in nats."""
    target_weight: Numeric = 0.1
    """SLiC's lambda: weight of imitating the chosen answer."""
    desirable_weight: Numeric = 1.0
    """KTO's, of good answers."""
    undesirable_weight: Numeric = 1.0
    """KTO's, of bad ones. TRL advises that weights times numbers of rows, good to bad, be 1 to 4/3."""


class PairLogProbs(NamedTuple):
    """The log-probabilities of a batch's chosen and rejected answers, side by side."""

    rows: Comparisons
    log_prob: jax.Array
    """[B, 2] nats under the policy, each the sum over an answer's tokens."""
    lengths: jax.Array
    """[B, 2] tokens."""
    reference: jax.Array
    """[B, 2] nats under the reference; of an objective without one, not to be read."""


class PairLosses(NamedTuple):
    """What a loss of pairs gives."""

    loss: jax.Array
    """[B]."""
    rewards: jax.Array
    """[B, 2] the implicit rewards of chosen and rejected answers."""
    log_prob: jax.Array
    """[B, 2] as the loss reads them: sums, or means over an answer's tokens."""
    metrics: Metrics = {}
    """Others than the losses, rewards and log-probabilities."""


PairLoss = Callable[[PairLogProbs, Any], PairLosses]
"""`(log-probabilities, hparams) -> losses`."""


def answer_log_probs(
    lm: LanguageModel,
    params: Params,
    prompt: PaddedTokens,
    answers: PaddedTokens,
    key: chex.PRNGKey,
    *,
    microbatches: int = 1,
) -> jax.Array:
    """Return the log-probabilities [B, K] of whole answers [B, K, C]: each prompt once, dropout by row.

    With `microbatches` the batch is read in that many parts, one in memory at a time, and the gradient costs
    a second forward pass.
    """
    count = len(prompt.tokens)
    read = lambda p, a, k: jnp.sum(completion_log_probs(lm, with_dropout(params, k), p, a), -1)
    rows = (prompt, answers, jax.random.split(key, count))
    if microbatches == 1:
        return jax.vmap(read)(*rows)
    check_divides(microbatches, count, "microbatches", "rows")
    parts = jax.tree.map(lambda x: x.reshape(microbatches, -1, *x.shape[1:]), rows)
    read_part = jax.checkpoint(lambda part: jax.vmap(read)(*part), prevent_cse=False)
    return jax.lax.map(read_part, parts).reshape(count, -1)


def pair_objective(
    lm: LanguageModel,
    loss: PairLoss,
    *,
    referenced: bool = False,
    doubtful: bool = False,
    microbatches: int = 1,
) -> LossFn:
    """Return the objective of comparisons by a loss of pairs, mean over the rows.

    Args:
      lm: the language model.
      loss: of a batch's log-probabilities.
      referenced: it reads those of the reference.
      doubtful: it reads the rows' `flip_chance`; otherwise rows with one are refused.
      microbatches: parts in which a batch is read, to save memory; see `answer_log_probs`.
    """

    def objective(
        params: Params, frozen: Any, batch: Any, key: chex.PRNGKey, hparams: Any
    ) -> tuple[jax.Array, Metrics]:
        rows, reference = _part_rows(batch, Comparisons, referenced)
        if rows.flip_chance is not None and not doubtful:
            raise ValueError(
                "flip_chance must be None for this objective; got one for each row; leave it out, or take "
                "dpo_objective, which smooths the labels by it"
            )
        answers = stack_pair(rows)
        log_prob = answer_log_probs(
            lm, overlay(frozen, params), rows.prompt, answers, key, microbatches=microbatches
        )
        lengths = jnp.maximum(jnp.sum(answers.real, -1), 1.0)
        found = loss(PairLogProbs(rows, log_prob, lengths, reference), hparams)
        chosen, rejected = found.rewards.T
        return jnp.mean(found.loss), found.metrics | {
            "rewards/chosen": jnp.mean(chosen),
            "rewards/rejected": jnp.mean(rejected),
            "rewards/margins": jnp.mean(chosen - rejected),
            "rewards/accuracies": jnp.mean((chosen > rejected).astype(jnp.float32)),
            "logps/chosen": jnp.mean(found.log_prob[:, 0]),
            "logps/rejected": jnp.mean(found.log_prob[:, 1]),
        }

    return objective


def dpo_objective(lm: LanguageModel, *, microbatches: int = 1) -> LossFn:
    """Return the objective of direct preference optimisation: `losses.dpo`, rewards `beta log(pi / pi_ref)`.

    A row's `flip_chance` and `hparams.label_smoothing` smooth its label, which is conservative DPO (cDPO).
    Its `margin` is not read: DPO's rewards have no scale that annotators' margins could be on.

    Source: Rafailov et al. 2023, arXiv:2305.18290; cDPO: Mitchell 2023.
    """

    def loss(read: PairLogProbs, hparams: Any) -> PairLosses:
        losses = dpo(
            *read.log_prob.T,
            *read.reference.T,
            beta=hparams.beta,
            label_smoothing=flip_chances(read.rows, hparams.label_smoothing),
        )
        return PairLosses(losses, hparams.beta * (read.log_prob - read.reference), read.log_prob)

    return pair_objective(lm, loss, referenced=True, doubtful=True, microbatches=microbatches)


def ipo_objective(lm: LanguageModel, *, microbatches: int = 1) -> LossFn:
    """Return the objective of identity preference optimisation: `losses.ipo` of log-ratios a token.

    The rewards that are reported, `beta log(pi / pi_ref)`, are sums over an answer's tokens.

    Source: Azar et al. 2024, arXiv:2310.12036. Averaging over tokens is not in the paper; its authors told
    TRL's that the results were obtained so.
    """

    def loss(read: PairLogProbs, hparams: Any) -> PairLosses:
        mean, ref_mean = read.log_prob / read.lengths, read.reference / read.lengths
        losses = ipo(*mean.T, *ref_mean.T, beta=hparams.beta)
        return PairLosses(losses, hparams.beta * (read.log_prob - read.reference), read.log_prob)

    return pair_objective(lm, loss, referenced=True, microbatches=microbatches)


def orpo_objective(lm: LanguageModel, *, microbatches: int = 1) -> LossFn:
    """Return the objective of odds-ratio preference optimisation: `losses.orpo`, `hparams.beta` its lambda.

    The chosen answers are imitated token by token, so that no fine-tuning need come before. `nll_loss` is
    that part. TRL's also imitates the prompts, and averages over all tokens of the batch, where the paper
    averages over an answer's.

    Source: Hong et al. 2024, arXiv:2403.07691.
    """

    def loss(read: PairLogProbs, hparams: Any) -> PairLosses:
        mean = read.log_prob / read.lengths
        ratio = log_odds_ratio(*mean.T)
        metrics = {
            "nll_loss": -jnp.mean(mean[:, 0]),
            "log_odds_chosen": jnp.mean(ratio),
            "log_odds_ratio": jnp.mean(jax.nn.log_sigmoid(ratio)),
        }
        return PairLosses(orpo(*mean.T, beta=hparams.beta), hparams.beta * mean, mean, metrics)

    return pair_objective(lm, loss, microbatches=microbatches)


def simpo_objective(lm: LanguageModel, *, microbatches: int = 1) -> LossFn:
    """Return the objective of simple preference optimisation: `losses.simpo` of log-probabilities a token.

    Source: Meng et al. 2024, arXiv:2405.14734.
    """

    def loss(read: PairLogProbs, hparams: Any) -> PairLosses:
        mean = read.log_prob / read.lengths
        losses = simpo(*mean.T, beta=hparams.beta, margin=hparams.margin)
        return PairLosses(losses, hparams.beta * mean, mean)

    return pair_objective(lm, loss, microbatches=microbatches)


def slic_objective(lm: LanguageModel, *, microbatches: int = 1) -> LossFn:
    """Return the objective of sequence-likelihood calibration: `losses.slic`, its target the chosen answer.

    `hparams.margin` is its delta; the rewards that are reported are the log-probabilities themselves.

    Source: Zhao et al. 2023, arXiv:2305.10425.
    """

    def loss(read: PairLogProbs, hparams: Any) -> PairLosses:
        chosen, rejected = read.log_prob.T
        losses = slic(chosen, rejected, chosen, delta=hparams.margin, target_weight=hparams.target_weight)
        return PairLosses(losses, read.log_prob, read.log_prob)

    return pair_objective(lm, loss, microbatches=microbatches)


def kto_objective(lm: LanguageModel, *, microbatches: int = 1) -> LossFn:
    """Return the objective of Kahneman-Tversky optimisation: `losses.kto` of ratings by label.

    The point z that log-ratios are measured against is the batch's mean log-ratio of answers that do not
    belong to their prompts, held at 0 from below, without a gradient. `with_reference` chose these answers
    once. A label between 0 and 1, a share of the votes, weighs both sides. Metrics of good or bad rows are
    NaN in a batch without one.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306.
    """

    def objective(
        params: Params, frozen: Any, batch: Any, key: chex.PRNGKey, hparams: Any
    ) -> tuple[jax.Array, Metrics]:
        rows, reference = _part_rows(batch, Ratings, True)
        both = answer_log_probs(
            lm, overlay(frozen, params), rows.prompt, stack_answers(batch), key, microbatches=microbatches
        )
        log_prob, good, bad = both[:, 0], rows.value, 1.0 - rows.value
        z = jnp.maximum(jnp.mean(both[:, 1] - reference[:, 1]), 0.0)
        judge = lambda desirable: kto(
            log_prob,
            reference[:, 0],
            jnp.full(log_prob.shape, desirable),
            jnp.full(log_prob.shape, z),
            beta=hparams.beta,
            desirable_weight=hparams.desirable_weight,
            undesirable_weight=hparams.undesirable_weight,
        )
        rewards = hparams.beta * (log_prob - reference[:, 0])
        mean = lambda x, mask: jnp.where(jnp.sum(mask) > 0, masked_mean(x, mask), jnp.nan)
        chosen, rejected = mean(rewards, good), mean(rewards, bad)
        return jnp.mean(good * judge(1.0) + bad * judge(0.0)), {
            "kl": z,
            "rewards/chosen": chosen,
            "rewards/rejected": rejected,
            "rewards/margins": chosen - rejected,
            "logps/chosen": mean(log_prob, good),
            "logps/rejected": mean(log_prob, bad),
        }

    return objective


def make_direct_learner(
    lm: LanguageModel,
    sample: Sampler | None = None,
    *,
    objective: LossFn | None = None,
    total_steps: int | None = None,
    warmup_steps: int = 0,
    optimizer: optax.GradientTransformation | None = None,
) -> Learner:
    """Build the learner that fits a language model to preferences, without a reward model.

    Args:
      lm: the language model.
      sample: `key -> batch` of what the objective reads.
      objective: one of this module's; None is `dpo_objective(lm)`.
      total_steps: the learning rate falls linearly to 0 over this many steps.
      warmup_steps: it first rises over this many.
      optimizer: an update rule without its learning rate; default Adam with eps = 1e-8 behind a global norm
        of 1.

    Returns:
      A `Learner` over the language model's parameters, or a part of them laid over `frozen`, with metrics
      `loss`, `rewards/chosen`, `rewards/rejected`, `rewards/margins`, `rewards/accuracies`, `logps/chosen`,
      `logps/rejected`, those of the objective, `grad_norm`, `learning_rate`.

    Raises:
      ValueError: for sampled rows that `check_answers` refuses; at trace time, for rows of another kind than
        the objective's, or without the reference's log-probabilities where it reads them.
    """
    if sample is not None:
        batch = sample(jax.random.key(0))
        check_answers(lm, batch.rows if isinstance(batch, Referenced) else batch)
    return make_gradient_learner(
        lm.init,
        objective or dpo_objective(lm),
        sample,
        optimizer=optimizer or make_optimizer(max_grad_norm=1.0, eps=1e-8),
        total_steps=total_steps,
        warmup_steps=warmup_steps,
    )


def _part_rows(batch: Any, kind: type, referenced: bool) -> tuple[Any, Any]:
    """Return a batch's rows and the reference's log-probabilities, after a check that both are there."""
    if isinstance(batch, Referenced):
        check_rows(batch.rows, kind)
        return batch.rows, batch.log_prob
    check_rows(batch, kind)
    if referenced:
        raise ValueError(
            f"a batch of this objective must hold the reference's log-probabilities; got {kind.__name__} "
            "alone; sample from with_reference(lm, base, rows)"
        )
    return batch, None
