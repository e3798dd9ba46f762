"""A language model as an actor: generation is a rollout, and a reward model scores it.

Everything here is a pure function of arrays, so generation, scoring and the update that follows compile into
one program. A query is `prompt` [P], left-padded, followed by a response [T], right-padded; the reward model,
the value head and both policies read the two together. Masks say what is padding, so that a prompt may hold
the padding token, which may be a stop token too; if it is not, it is never sampled.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.actors.judging import judge, last_real, prefix_values, token_rewards
from jaxrl_align.actors.queries import check_critic, check_fits, check_prompts, draw_prompts, join
from jaxrl_align.actors.scores import Score, as_paid, as_scored
from jaxrl_align.losses import proportional_kl_coefficient
from jaxrl_align.nets.adapters import overlay
from jaxrl_align.nets.transformer import LanguageModel, init_scalar_head
from jaxrl_align.text.generation import TextConfig, generate
from jaxrl_align.types import (
    Actor,
    Evaluation,
    Metrics,
    Numeric,
    PaddedTokens,
    Params,
    Sampler,
    Trajectory,
)


class Frozen(NamedTuple):
    """The frozen models that RLHF reads."""

    reference: Params
    """The reference policy's language model, and the base that the trained part is laid over."""
    reward_model: Any
    """Whatever the score function reads."""
    critic: Params | None = None
    """The base that the trained part of a critic with its own trunk is laid over; None, it trains whole."""


class TextObservation(NamedTuple):
    """What a response was written to, and what a loss may hold it against."""

    prompt: PaddedTokens
    """[P]."""
    temperature: jax.Array
    """[] that the response is sampled at."""
    reference_log_prob: jax.Array
    """[T] of the response's tokens under the reference."""
    kl_coef: jax.Array
    """[] weight of the KL penalty in this rollout."""


class KLController(NamedTuple):
    """The weight of the KL penalty, carried from rollout to rollout."""

    coef: jax.Array


def answer(
    lm: LanguageModel,
    score: Score,
    config: TextConfig,
    params: Params,
    frozen: Frozen,
    prompt: PaddedTokens,
    key: chex.PRNGKey,
    kl_coef: Numeric,
    hparams: Any,
    critic: LanguageModel | None = None,
) -> tuple[Trajectory, dict[str, Any]]:
    """Generate ONE response, evaluate it under the reference, score it, and return its trajectory.

    Returns:
      The trajectory, leaves [T], and the sequence's `kl` [] (nats, summed), `score` [] as paid, `stopped` []
      and `rewards`, the score's parts by name.
    """
    check_critic(params, critic)
    temperature = jnp.asarray(hparams.temperature, jnp.float32)
    policy = overlay(frozen.reference, params["lm"])
    tokens, log_prob, value, mask = generate(
        lm, policy, prompt, key, config, temperature=temperature, value_head=params.get("value")
    )
    if critic is not None:
        value = mask * prefix_values(critic, _whole_critic(params, frozen), prompt, tokens, mask, config)
    reference = judge(lm, frozen.reference, prompt, tokens, mask, config, temperature=temperature)
    text = join(prompt, tokens, mask)
    raw, rewards = as_scored(score(frozen.reward_model, text.tokens, text.real))
    paid, stopped = as_paid(config, raw, tokens, mask, hparams.stop_penalty)
    goes_on = mask * (1.0 - last_real(mask))
    trajectory = Trajectory(
        obs=TextObservation(prompt, temperature, reference.log_prob, jnp.asarray(kl_coef, jnp.float32)),
        action=tokens,
        log_prob=log_prob,
        reward=token_rewards(paid, log_prob, reference.log_prob, mask, kl_coef, config.kl_penalty),
        discount=hparams.gamma * goes_on,
        lambda_=hparams.gae_lambda * goes_on,
        value=value,
        next_value=jnp.append(value[1:], 0.0),
        mask=mask,
    )
    kl = jnp.sum((log_prob - reference.log_prob) * mask)
    return trajectory, {"kl": kl, "score": paid, "stopped": stopped, "rewards": rewards}


def summarise(
    trajectory: Trajectory, parts: dict[str, Any], kl_coef: jax.Array, config: TextConfig
) -> Metrics:
    """Return a rollout's metrics, as docs/metrics.md defines them.

    Args:
      trajectory: [B, T].
      parts: what `answer` returned beside each trajectory, leaves [B].
      kl_coef: the KL penalty's weight, in the reward or in the loss.
      config: says which of the two.
    """
    kl = jnp.mean(parts["kl"])
    paid = 0.0 if config.kl_penalty == "loss" else -kl_coef * kl
    metrics = {
        "objective/kl": kl,
        "objective/kl_coef": kl_coef,
        "objective/entropy": -jnp.mean(jnp.sum(trajectory.log_prob, 1)),
        "objective/non_score_reward": jnp.asarray(paid),
        "objective/rlhf_reward": jnp.mean(jnp.sum(trajectory.reward, 1)),
        "objective/scores": jnp.mean(parts["score"]),
        "val/num_eos_tokens": jnp.sum(parts["stopped"]),
        "response_length": jnp.mean(jnp.sum(trajectory.mask, 1)),
    }
    for name, part in parts["rewards"].items():
        metrics |= {f"rewards/{name}/mean": jnp.mean(part), f"rewards/{name}/std": jnp.std(part)}
    return metrics


def _whole_critic(params: Params, frozen: Frozen) -> Params:
    return params["critic"] | {"lm": overlay(frozen.critic, params["critic"]["lm"])}


def make_text_actor(
    lm: LanguageModel,
    score: Score,
    config: TextConfig,
    sample_prompts: Sampler | None = None,
    *,
    critic: LanguageModel | None = None,
) -> Actor:
    """Build the actor that answers prompts; its reward is a score and a KL penalty.

    Its parameters are `{"lm": a whole model or a part of one, "value": head}`, its frozen tree a `Frozen`.
    With a critic of its own they are `{"lm": ..., "critic": {"lm": ..., "value": head}}`: values are read
    from the critic, and policy and critic share no parameter (`split_params`).

    Args:
      lm: the language model.
      score: reads the query and the response up to its stop token.
      config: lengths and special tokens.
      sample_prompts: `key -> PaddedTokens` [B, P], for rollouts without a batch.
      critic: the language model that a critic with its own trunk is built on, for example the reward model's;
        None reads values from the policy's trunk.

    Returns:
      An `Actor`; hparams need `temperature, gamma, gae_lambda, kl_coef, kl_target, kl_horizon, stop_penalty`.
      Its metrics are means over the batch: `objective/kl` is the KL summed over each sequence.

    Raises:
      ValueError: if prompt and response do not fit the models' contexts, a special token the vocabulary, the
        policy's vocabulary the critic's, or what is sampled is no prompts; at trace time, if the frozen tree
        or the prompts are missing, the parameters have no critic of that kind, or the score is not a number.
    """
    check_fits(lm, config, critic)
    if sample_prompts is not None:
        check_prompts(lm, config, sample_prompts(jax.random.key(0)))

    def init_env(key: chex.PRNGKey, hparams: Any) -> KLController:
        return KLController(jnp.asarray(hparams.kl_coef, jnp.float32))

    def rollout(
        params: Params, frozen: Frozen, env_state: KLController, key: chex.PRNGKey, hparams: Any, batch: Any
    ) -> tuple[KLController, Trajectory, Metrics]:
        if frozen is None:
            raise ValueError("a reference and a reward model are needed; pass step(..., frozen=Frozen(...))")
        key_prompts, key_answers = jax.random.split(key)
        prompts = draw_prompts(lm, config, sample_prompts, key_prompts, batch)
        count = len(prompts.tokens)
        trajectory, parts = jax.vmap(
            lambda prompt, k: answer(
                lm, score, config, params, frozen, prompt, k, env_state.coef, hparams, critic
            )
        )(prompts, jax.random.split(key_answers, count))
        metrics = summarise(trajectory, parts, env_state.coef, config)
        coef = proportional_kl_coefficient(
            env_state.coef,
            metrics["objective/kl"],
            target=hparams.kl_target,
            num_episodes=count,
            horizon=hparams.kl_horizon,
        )
        return KLController(coef), trajectory, metrics

    def evaluate(params: Params, frozen: Frozen, trajectory: Trajectory) -> Evaluation:
        check_critic(params, critic)
        text = trajectory.obs.prompt, trajectory.action, trajectory.mask
        policy, temperature = overlay(frozen.reference, params["lm"]), trajectory.obs.temperature
        judged = judge(lm, policy, *text, config, temperature=temperature, value_head=params.get("value"))
        if critic is None:
            return judged
        return judged._replace(value=prefix_values(critic, _whole_critic(params, frozen), *text, config))

    init_params = functools.partial(_init_params, lm, critic)
    actor = Actor(init_params, init_env, rollout, evaluate, takes_batch=True)
    split = lambda params: ({"lm": params["lm"]}, {"critic": params["critic"]})
    return actor if critic is None else actor._replace(split_params=split)


def _init_params(lm: LanguageModel, critic: LanguageModel | None, key: chex.PRNGKey) -> Params:
    if critic is None:
        return {"lm": lm.init(key), "value": init_scalar_head(None, lm.config.width)}
    key, key_critic = jax.random.split(key)
    head = init_scalar_head(None, critic.config.width)
    return {"lm": lm.init(key), "critic": {"lm": critic.init(key_critic), "value": head}}
