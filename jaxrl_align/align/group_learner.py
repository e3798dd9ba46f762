"""Alignment without a critic: answers to one prompt are judged by each other, or by the whole batch.

GRPO, Dr. GRPO, GSPO, RLOO and REINFORCE++ are `GroupMethod`s for the shared update of `rl.actor_critic`,
under the actor of `actors.answer_groups`:

    learner = make_group_learner(lm, score, config, group_size=8, method=GRPO)
    state = learner.init(key, GRPO.hparams._replace(learning_rate=1e-4), {"lm": part})
    state, metrics = learner.step(state, prompts, Frozen(reference, reward_model))
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl_align import losses
from jaxrl_align.actors.answer_groups import Penalty, make_group_actor
from jaxrl_align.actors.scores import Score
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.rl.actor_critic import Batch, make_actor_critic
from jaxrl_align.text.generation import TextConfig
from jaxrl_align.types import Evaluation, Learner, Metrics, Numeric, Sampler, State, Trajectory


class GroupHParams(NamedTuple):
    """The traced scalars of group methods; each `GroupMethod.hparams` holds those of its paper."""

    learning_rate: Numeric = 1e-4
    """Adam's rate, for LoRA and small models; 1e-6 is usual for all weights of large ones."""
    clip: Numeric = 0.2
    """The ratio earns nothing below 1 - clip; which ratio, says the method."""
    clip_high: Numeric | None = None
    """Nor above 1 + clip_high; None takes `clip`, DAPO 0.28."""
    kl_coef: Numeric = 0.04
    """beta, weight of the KL penalty towards the reference; fixed unless `adapt` moves it."""
    temperature: Numeric = 1.0
    """Of sampling, of the reference and of the update alike."""
    stop_penalty: Numeric = 1.0
    """Penalty of an answer without a stop token; see `TextConfig.missing_stop`."""


def by_answer(advantages: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """Return the advantages of tokens whose answers are judged as wholes, within their groups.

    Args:
      advantages: `scores [G] -> [G]`, such as `losses.group_advantages`; an answer's score is the sum of its
        rewards.

    Returns:
      `(reward [B, G, T], mask [B, G, T]) -> [B, G, T]`, the same for all tokens of an answer, 0 on padding.
    """
    return lambda reward, mask: jax.vmap(advantages)(jnp.sum(reward, 2))[..., None] * mask


def whitened_returns(reward: jax.Array, mask: jax.Array) -> jax.Array:
    """Return each token's reward to go, whitened over all tokens of the batch (REINFORCE++).

        (R_t - mean(R)) / std(R),   R_t = sum_{t' >= t} r_t'

    Args:
      reward: [B, G, T].
      mask: [B, G, T].

    Returns:
      [B, G, T], mean 0 and variance 1 over real tokens, 0 on padding.
    """
    return losses.whiten(jax.vmap(jax.vmap(losses.reward_to_go))(reward), mask)


def mean_over_room(x: jax.Array, mask: jax.Array) -> jax.Array:
    """Return the sum over an answer's tokens [T], divided by T whatever its length, as Dr. GRPO does."""
    return jnp.mean(jnp.where(mask > 0, x, 0.0))


class GroupMethod(NamedTuple):
    """What makes one group method; change a preset by `GRPO._replace(kl="none")`."""

    advantages: Callable[[jax.Array, jax.Array], jax.Array]
    """`(reward [B, G, T], mask [B, G, T]) -> [B, G, T]`, of each token."""
    loss: Callable[..., jax.Array]
    """`(log_prob [T], behaviour_log_prob [T], advantage [T], mask [T], *, clip, clip_high) -> []` of ONE
    answer, as in `losses`; the batch takes the mean over its answers."""
    kl: Penalty = "loss"
    """Where the KL penalty is paid. "loss" adds k3, an estimate that is never negative, averaged over an
    answer's tokens as `average` says; without the tokens' ratio, as Shao et al. print it, its gradient is
    that of KL(pi_ref || pi). "unbiased" multiplies k3 by the ratio, which makes it the gradient of
    KL(pi || pi_ref) (DeepSeek-AI 2025, arXiv:2512.02556; trl's default). "reward" takes k1, the log-ratio,
    from each token's reward. "none" reads neither the reference nor `kl_coef`, and reports no KL."""
    average: Callable[[jax.Array, jax.Array], jax.Array] = losses.masked_mean
    """`(x [T], mask [T]) -> []` over an answer's tokens: what the loss does with its own."""
    log_ratio: Callable[[jax.Array, jax.Array], jax.Array] = lambda log_ratio, mask: log_ratio
    """`(log pi - log pi_old [T], mask [T]) -> [T]`, or [] for ratios of whole answers: what the loss clips,
    for the metrics."""
    hparams: GroupHParams = GroupHParams()
    """The paper's."""


def _of_answer(loss: Callable[..., jax.Array]) -> Callable[..., jax.Array]:
    """Return a loss that takes an answer's one advantage as one of its tokens'; every answer has a first."""
    return lambda log_prob, behaviour, advantage, mask, **clips: loss(
        log_prob, behaviour, advantage[0], mask, **clips
    )


GRPO = GroupMethod(by_answer(losses.group_advantages), losses.grpo)
"""Group relative policy optimisation (Shao et al. 2024, arXiv:2402.03300)."""
DR_GRPO = GroupMethod(
    by_answer(functools.partial(losses.group_advantages, scale=False)),
    losses.dr_grpo,
    average=mean_over_room,
    hparams=GroupHParams(kl_coef=0.0),
)
"""GRPO without its two biases, the division by each answer's length and by each group's deviation (Liu et al.
2025, arXiv:2503.20783, who take no KL penalty)."""
GSPO = GroupMethod(
    by_answer(losses.group_advantages),
    _of_answer(losses.gspo),
    log_ratio=losses.masked_mean,
    hparams=GroupHParams(clip=3e-4, clip_high=4e-4, kl_coef=0.0),
)
"""Group sequence policy optimisation: one ratio an answer, the geometric mean of its tokens' (Zheng et al.
2025, arXiv:2507.18071, who leave the KL penalty out)."""
RLOO = GroupMethod(
    by_answer(losses.leave_one_out_advantages),
    _of_answer(losses.rloo),
    kl="reward",
    log_ratio=lambda log_ratio, mask: jnp.sum(log_ratio * mask),
    hparams=GroupHParams(kl_coef=0.05),
)
"""REINFORCE with the mean of the others' rewards as baseline, an answer one action (Ahmadian et al. 2024,
arXiv:2402.14740; kl_coef as in trl)."""
REINFORCE_PLUS_PLUS = GroupMethod(
    whitened_returns, losses.grpo, kl="reward", hparams=GroupHParams(kl_coef=0.01)
)
"""REINFORCE with advantages of tokens whitened over the whole batch (Hu et al. 2025, arXiv:2501.03262;
kl_coef as in OpenRLHF); one answer to a prompt is enough."""


def group_loss(
    method: GroupMethod, group_size: int, evaluation: Evaluation, batch: Batch, hparams: Any
) -> tuple[jax.Array, Metrics]:
    """Return a method's objective over the answers of a minibatch, and its metrics.

        mean over answers of loss(y) [+ kl_coef average_t k3_t, or of r_t k3_t]

    Args:
      method: the method.
      group_size: G.
      evaluation: [N, G * T] under the parameters being trained.
      batch: [N, G * T].
      hparams: anything with `clip, clip_high`, and `kl_coef` where the penalty is in the loss.
    """
    answers = lambda x: x.reshape(x.shape[0] * group_size, -1)
    trajectory = batch.trajectory
    log_prob, behaviour, advantage, mask = map(
        answers, (evaluation.log_prob, trajectory.log_prob, batch.advantage, trajectory.mask)
    )
    clips = {"clip": hparams.clip, "clip_high": hparams.clip_high}
    policy = jnp.mean(jax.vmap(functools.partial(method.loss, **clips))(log_prob, behaviour, advantage, mask))
    metrics = {
        "loss/policy_avg": policy,
        "entropy": losses.masked_mean(answers(evaluation.entropy), mask),
    } | clip_ratios(method, log_prob - behaviour, advantage, mask, hparams)
    if method.kl == "none":
        return policy, metrics
    reference = answers(trajectory.obs.reference_log_prob)
    if method.kl == "reward":
        return policy, metrics | {"kl": losses.masked_mean(behaviour - reference, mask)}
    kl = losses.kl_estimate(log_prob, reference)
    if method.kl == "unbiased":
        kl = kl * losses.importance_ratio(log_prob, behaviour)
    penalty = jnp.mean(jax.vmap(method.average)(kl, mask))
    return policy + hparams.kl_coef * penalty, metrics | {"kl": losses.masked_mean(kl, mask)}


def clip_ratios(
    method: GroupMethod, log_ratio: jax.Array, advantage: jax.Array, mask: jax.Array, hparams: Any
) -> Metrics:
    """Return how often the clip held a ratio, below and above: shares of tokens, or of answers.

    Args:
      method: says which ratio its loss clips.
      log_ratio: [N, T] of each token.
      advantage: [N, T].
      mask: [N, T].
      hparams: anything with `clip, clip_high`.
    """
    log_ratio = jax.vmap(method.log_ratio)(log_ratio, mask)
    if log_ratio.ndim == 1:
        advantage, mask = advantage[:, 0], jnp.ones(log_ratio.shape)
    high = hparams.clip if hparams.clip_high is None else hparams.clip_high
    ratio = jnp.exp(log_ratio)
    below = (ratio < 1.0 - hparams.clip) & (advantage < 0)
    above = (ratio > 1.0 + high) & (advantage > 0)
    share = lambda held: losses.masked_mean(held.astype(jnp.float32), mask)
    return {
        "clip_ratio/low_mean": share(below),
        "clip_ratio/high_mean": share(above),
        "clip_ratio/region_mean": share(below | above),
    }


def make_group_learner(
    lm: LanguageModel,
    score: Score,
    config: TextConfig,
    sample_prompts: Sampler | None = None,
    *,
    group_size: int = 8,
    method: GroupMethod = GRPO,
    epochs: int = 1,
    minibatches: int = 1,
    total_steps: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
    adapt: Callable[[Any, Metrics], Any] | None = None,
) -> Learner:
    """Build the learner whose `step` answers every prompt several times and follows the better answers.

    Start it with `init(key, method.hparams, params={"lm": a part or a whole model})`, and give each step its
    `frozen=Frozen(reference, reward_model)`.

    Args:
      lm: the language model.
      score: `(frozen.reward_model, tokens[L], mask[L]) -> []`, or the same with parts that are logged apart
        (`combine_rewards`).
      config: lengths and special tokens.
      sample_prompts: `key -> PaddedTokens` [B, P].
      group_size: G, answers to each prompt; all but REINFORCE++ need 2.
      method: GRPO, DR_GRPO, GSPO, RLOO, REINFORCE_PLUS_PLUS, or another.
      epochs: passes over each batch of answers.
      minibatches: gradient steps per pass; must divide the number of prompts. One of one epoch takes a step
        at ratio 1, which no clip holds.
      total_steps: the learning rate falls linearly to 0 over this many steps; None keeps it constant.
      optimizer: an update rule without its learning rate.
      adapt: `(hparams, the update's metrics) -> hparams` after every update, for a controller of `kl_coef` by
        `kl`; None keeps it fixed.

    Returns:
      A `Learner`; `step(state)` draws prompts, `step(state, PaddedTokens)` takes given ones. Its metrics are
      those of `actors.answer_groups.make_group_actor` and of `group_loss`.

    Raises:
      ValueError: what `actors.answer_groups.make_group_actor` refuses, a group too small for the method, or
        advantages of another shape; at trace time, if `minibatches` does not divide the number of prompts.
    """
    actor = make_group_actor(lm, score, config, sample_prompts, group_size=group_size, penalty=method.kl)
    shape = (1, group_size, config.response_length)
    given = jax.eval_shape(method.advantages, *[jax.ShapeDtypeStruct(shape, jnp.float32)] * 2).shape
    if given != shape:
        raise ValueError(
            f"a method's advantages must be [B, G, T], one for each token; got shape {given} for {shape}; "
            "wrap those of whole answers in by_answer"
        )

    def advantages(trajectory: Trajectory) -> tuple[jax.Array, jax.Array]:
        split = lambda x: x.reshape(-1, *shape[1:])
        advantage = method.advantages(split(trajectory.reward), split(trajectory.mask))
        return advantage.reshape(trajectory.mask.shape), jnp.zeros_like(trajectory.mask)

    learner = make_actor_critic(
        actor,
        epochs=epochs,
        minibatches=minibatches,
        total_steps=total_steps,
        optimizer=optimizer,
        advantages=advantages,
        loss=functools.partial(group_loss, method, group_size),
        adapt=adapt,
    )

    return without_critic(learner)


def without_critic(learner: Learner) -> Learner:
    """Return the learner without the metric of how much a critic explains."""

    def step(state: State, batch: Any = None, frozen: Any = None) -> tuple[State, Metrics]:
        state, metrics = learner.step(state, batch, frozen)
        metrics.pop("val/explained_variance", None)
        return state, metrics

    return Learner(learner.init, step)
