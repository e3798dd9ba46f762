"""RLHF as one pure step: generate, score, estimate advantages, run the PPO epochs.

There is no RLHF algorithm in this file: it is the text actor under the shared update of `rl.actor_critic`,
the same that plays CartPole. The objective is `E[r(x, y) - beta log(pi(y|x) / pi_ref(y|x))]` (Ziegler et al.
2019, arXiv:1909.08593; Stiennon et al. 2020, arXiv:2009.01325).
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl_align.actors.scores import Score
from jaxrl_align.actors.text import make_text_actor
from jaxrl_align.align.ptx import add_pretraining, with_pretraining
from jaxrl_align.align.reward_model import RewardModel
from jaxrl_align.losses import kl_estimate, masked_mean
from jaxrl_align.nets.transformer import LanguageModel, init_scalar_head
from jaxrl_align.rl.actor_critic import Batch, make_actor_critic, ppo_loss
from jaxrl_align.text.generation import TextConfig
from jaxrl_align.types import Evaluation, Learner, Metrics, Numeric, Params, Sampler


class RLHFHParams(NamedTuple):
    """The traced scalars of RLHF; the first block is PPO's, read by the shared update."""

    learning_rate: Numeric = 3e-4
    gamma: Numeric = 1.0
    gae_lambda: Numeric = 0.95
    clip: Numeric = 0.2
    value_clip: Numeric = 0.2
    value_coef: Numeric = 0.1
    entropy_coef: Numeric = 0.0
    temperature: Numeric = 1.0
    """Of sampling, of the reference and of the update alike."""
    kl_coef: Numeric = 0.15
    """beta, where the controller starts."""
    kl_target: Numeric = 6.0
    """Nats, of the KL summed over a sequence."""
    kl_horizon: Numeric = 10_000.0
    """Episodes; infinity keeps beta fixed."""
    stop_penalty: Numeric = 1.0
    """Penalty of a response without a stop token; see `TextConfig.missing_stop`."""
    pretraining_coef: Numeric = 1.0
    """Weight of the pre-training loss, nats a token, where the learner is given `pretraining`."""


def init_policy(
    lm: LanguageModel,
    params: Params,
    reward_model: RewardModel | None = None,
    *,
    trunk: Literal["shared", "separate"] = "shared",
) -> Params:
    """Return a policy's parameters: what is trained of a language model, and the critic.

    The critic starts at zero, or as the reward model: its value of a prefix is then the reward model's score
    of that prefix, `gain * (w h + b) + bias` (lecture 002, F14; as printed, a critic of whole answers, it
    would remove the gradient: erratum H6).

    Args:
      lm: the language model.
      params: all of its parameters, or a part of them (`nets.adapters`).
      reward_model: where the critic starts; None, its head at zero.
      trunk: "shared" reads the value from the policy's own hidden states, so that a reward head there is
        useful only as far as they are the reward model's: where the policy starts from the reward model's
        language model, or both from one whose features the head can read. "separate" gives the critic a
        language model of its own, the reward model's, or a copy of `params` without one; it costs that
        much memory, and needs `make_rlhf_learner(..., critic=...)`.

    Returns:
      "shared": `{"lm", "value"}`; "separate": `{"lm", "critic": {"lm", "value"}}`.

    Raises:
      ValueError: for another trunk, or a reward head that the shared trunk's width does not fit.
    """
    if trunk not in ("shared", "separate"):
        raise ValueError(f'trunk must be "shared" or "separate"; got {trunk!r}')
    if trunk == "shared":
        return {"lm": params, "value": _value_head(reward_model, lm.config.width)}
    if reward_model is None:
        return {"lm": params, "critic": {"lm": params, "value": init_scalar_head(None, lm.config.width)}}
    own = reward_model.params
    width = own["head"]["kernel"].shape[-1]
    return {"lm": params, "critic": {"lm": own["lm"], "value": _value_head(reward_model, width)}}


def _value_head(reward_model: RewardModel | None, width: int) -> Params:
    """Return a value head at zero, or the reward head with its normalisation folded in."""
    if reward_model is None:
        return init_scalar_head(None, width)
    head, gain = reward_model.params["head"], reward_model.gain
    if head["kernel"].shape != (width,):
        raise ValueError(
            f"a reward head on the policy's trunk must fit its width; got shape {head['kernel'].shape}, "
            f'width={width}; give the critic its own trunk with trunk="separate"'
        )
    return {
        "kernel": jnp.asarray(gain) * head["kernel"],
        "bias": jnp.asarray(gain) * head["bias"] + jnp.asarray(reward_model.bias),
    }


def rlhf_loss(evaluation: Evaluation, batch: Batch, hparams: Any) -> tuple[jax.Array, Metrics]:
    """Return PPO's loss with the KL to the reference in it, for `TextConfig(kl_penalty="loss")`.

        ppo_loss + beta E[(log pi - log pi_ref)^2 / 2],   a mean over the tokens

    The estimate k2 is the one whose gradient, on samples of the policy, is the KL's (`losses.kl_estimate`).

    Args:
      evaluation: [N, T] under the parameters being trained.
      batch: [N, T] with `TextObservation`s, whose `kl_coef` is beta.
      hparams: those of `ppo_loss`.
    """
    loss, metrics = ppo_loss(evaluation, batch, hparams)
    obs, mask = batch.trajectory.obs, batch.trajectory.mask
    kl = masked_mean(kl_estimate(evaluation.log_prob, obs.reference_log_prob, kind="k2"), mask)
    return loss + jnp.mean(obs.kl_coef) * kl, metrics | {"loss/kl_avg": kl}


def make_rlhf_learner(
    lm: LanguageModel,
    score: Score,
    config: TextConfig,
    sample_prompts: Sampler | None = None,
    *,
    epochs: int = 4,
    minibatches: int = 4,
    total_steps: int | None = None,
    optimizer: optax.GradientTransformation | None = None,
    critic: LanguageModel | None = None,
    target_kl: Numeric | None = None,
    pretraining: Sampler | None = None,
) -> Learner:
    """Build the learner whose `step` is all of RLHF, without callbacks.

    Start it with `init(key, hparams, params=init_policy(...))`, and give each step its
    `frozen=Frozen(reference, reward_model)`.

    Args:
      lm: the language model.
      score: `(frozen.reward_model, tokens[L], mask[L]) -> []`, or the same with parts that are logged apart
        (`combine_rewards`).
      config: lengths and special tokens.
      sample_prompts: `key -> PaddedTokens` [B, P].
      epochs: passes over each batch of responses.
      minibatches: gradient steps per pass; must divide the number of prompts.
      total_steps: the learning rate falls linearly to 0 over this many steps; None keeps it constant.
      optimizer: an update rule without its learning rate; the default clips the gradient of policy and critic
        together.
      critic: the language model of a critic with its own trunk, for `init_policy(..., trunk="separate")`;
        None, the value head reads the policy's trunk.
      target_kl: nats a token; an update ends at the first minibatch whose `policy/approxkl_avg` is above 1.5
        times this. None takes every step.
      pretraining: `key -> TokenBatch`, a multiple of the prompts in rows: PPO-ptx, which goes on predicting
        them with a weight of `pretraining_coef`. None leaves it out.

    Returns:
      A `Learner`; `step(state)` draws prompts, `step(state, PaddedTokens)` takes given ones. Its metrics
      are those of `actors.text.make_text_actor` and of `rl.actor_critic.ppo_loss`.

    Raises:
      ValueError: what `actors.text.make_text_actor` refuses, a target_kl of 0 or below; at trace time, if
        `minibatches` does not divide the number of prompts.
    """
    actor = make_text_actor(lm, score, config, sample_prompts, critic=critic)
    loss = rlhf_loss if config.kl_penalty == "loss" else ppo_loss
    if pretraining is not None:
        actor, loss = with_pretraining(actor, lm, pretraining), add_pretraining(loss)
    return make_actor_critic(
        actor,
        epochs=epochs,
        minibatches=minibatches,
        total_steps=total_steps,
        optimizer=optimizer,
        loss=loss,
        target_kl=target_kl,
    )
