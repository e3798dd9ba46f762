"""Lecture 002's four policy-gradient updates of a language model, as settings of one learner.

| update | `UpdateHParams` | its gradient |
|---|---|---|
| vanilla (B24) | `VANILLA` | `E[G grad log pi]` |
| variance-stabilised (B25) | `VARIANCE` | `E[(G - b) grad log pi]` |
| exploration-stabilised (B26) | `EXPLORATION` | that of a further `beta H(pi)` |
| drift-stabilised (B27) | `DRIFT` | that of a further `gamma log P_pre` |

They differ in traced numbers alone, so that `vmap` runs all four in one program. PPO's clip, value function
and epochs are `align.make_rlhf_learner`.
"""

import functools
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl_align.actors.answer_groups import make_group_actor
from jaxrl_align.actors.scores import Score
from jaxrl_align.align.group_learner import without_critic
from jaxrl_align.losses import average_baseline, drift_stabilised_loss, masked_mean
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.rl.actor_critic import Batch, make_actor_critic
from jaxrl_align.text.generation import TextConfig
from jaxrl_align.types import Evaluation, Learner, Metrics, Numeric, Sampler, Trajectory


class UpdateHParams(NamedTuple):
    """The traced scalars of the four updates."""

    learning_rate: Numeric = 3e-4
    baseline_coef: Numeric = 1.0
    """Of the baseline b, the mean of the other answers to the prompt; 0 leaves it out, 1 takes it whole."""
    exploration_coef: Numeric = 0.0
    """beta, weight of the entropy."""
    drift_coef: Numeric = 0.0
    """The lecture's gamma, weight of the log-probability under the reference, its pre-trained model."""
    temperature: Numeric = 1.0
    """Of sampling, of the reference and of the update alike."""
    stop_penalty: Numeric = 1.0
    """Penalty of an answer without a stop token; see `TextConfig.missing_stop`."""


VANILLA = UpdateHParams(baseline_coef=0.0)
VARIANCE = UpdateHParams()
EXPLORATION = UpdateHParams(exploration_coef=0.05)
DRIFT = UpdateHParams(exploration_coef=0.05, drift_coef=0.05)
"""With Shannon's entropy and equal weights, `beta KL(pi || P_pre)` is taken off the reward (erratum H9)."""


def returns_and_baselines(group_size: int, trajectory: Trajectory) -> tuple[jax.Array, jax.Array]:
    """Return G, an answer's score at each of its tokens, and b, the mean score of the others, [B, G * T]."""
    reward = trajectory.reward.reshape(-1, group_size, trajectory.reward.shape[1] // group_size)
    ret = jnp.sum(reward, 2)
    spread = lambda x: jnp.broadcast_to(x[..., None], reward.shape).reshape(trajectory.mask.shape)
    return spread(ret) * trajectory.mask, spread(jax.vmap(average_baseline)(ret)) * trajectory.mask


def update_loss(
    kind: Literal["shannon", "tsallis"], answers: int, evaluation: Evaluation, batch: Batch, hparams: Any
) -> tuple[jax.Array, Metrics]:
    """Return the objective of one batch: `losses.drift_stabilised_loss`, summed over each answer's tokens.

    Each token weighs its own entropy and drift, as the lecture prints them; a token's effect on what its
    successors pay is not counted, as it is where the KL is part of the reward (`align.RLOO`).

    Args:
      kind: which entropy, see `losses.exploration_stabilised_loss`.
      answers: G.
      evaluation: [B, G * T] under the parameters being trained.
      batch: [B, G * T], `advantage` the returns and `target` the baselines.
      hparams: `UpdateHParams`.
    """
    mask, reference = batch.trajectory.mask, batch.trajectory.obs.reference_log_prob
    losses = drift_stabilised_loss(
        evaluation.log_prob,
        batch.advantage,
        hparams.baseline_coef * batch.target,
        reference,
        exploration_coef=hparams.exploration_coef,
        drift_coef=hparams.drift_coef,
        kind=kind,
    )
    loss = jnp.sum(losses * mask) / (mask.shape[0] * answers)
    return loss, {
        "loss/policy_avg": loss,
        "entropy": masked_mean(evaluation.entropy, mask),
        "kl": masked_mean(batch.trajectory.log_prob - reference, mask),
    }


def make_update_learner(
    lm: LanguageModel,
    score: Score,
    config: TextConfig,
    sample_prompts: Sampler | None = None,
    *,
    group_size: int = 8,
    entropy: Literal["shannon", "tsallis"] = "shannon",
    total_steps: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
) -> Learner:
    """Build the learner of the four updates: one gradient step on the answers of each rollout.

    Start it with `init(key, VANILLA, params={"lm": a part or a whole model})`, and give each step its
    `frozen=Frozen(pre_trained, reward_model)`.

    Args:
      lm: the language model.
      score: `(frozen.reward_model, tokens[L], mask[L]) -> []`.
      config: lengths and special tokens.
      sample_prompts: `key -> PaddedTokens` [B, P].
      group_size: G >= 2, answers to each prompt; the others are an answer's baseline.
      entropy: "tsallis" is the lecture's `-beta pi(a|s)`, "shannon" what it calls it (erratum H9).
      total_steps: the learning rate falls linearly to 0 over this many steps; None keeps it constant.
      optimizer: an update rule without its learning rate.

    Returns:
      A `Learner` with the metrics of `actors.answer_groups.make_group_actor` and of `update_loss`.

    Raises:
      ValueError: what `make_group_actor` refuses, an entropy that is none, or a group of one answer.

    Source: docs/lectures.md (B24 to B27).
    """
    if group_size < 2:
        raise ValueError(f"group_size must be at least 2, for a baseline; got {group_size}; 4 or 8 are usual")
    if entropy not in ("shannon", "tsallis"):
        raise ValueError(f'entropy must be "shannon" or "tsallis"; got {entropy!r}')
    actor = make_group_actor(lm, score, config, sample_prompts, group_size=group_size, penalty="loss")
    learner = make_actor_critic(
        actor,
        epochs=1,
        minibatches=1,
        total_steps=total_steps,
        optimizer=optimizer,
        advantages=functools.partial(returns_and_baselines, group_size),
        loss=functools.partial(update_loss, entropy, group_size),
    )
    return without_critic(learner)
