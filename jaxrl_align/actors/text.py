"""A language model as an actor: generation is a rollout, and a reward model scores it.

Everything here is a pure function of arrays, so generation, scoring and the update that follows compile into
one program. A query is `prompt` [P], left-padded, followed by a response [T], right-padded; the reward model,
the value head and both policies read the two together. Padding is never a token that can be sampled, and it
is not the stop token.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align.losses import Categorical, entropy, proportional_kl_coefficient, token_log_prob
from jaxrl_align.nets.adapters import overlay
from jaxrl_align.nets.transformer import LanguageModel, apply_scalar_head, init_scalar_head
from jaxrl_align.text.generation import TextConfig, generate, sampling_logits
from jaxrl_align.types import Actor, Evaluation, Metrics, Numeric, Params, Sampler, Trajectory

Score = Callable[[Any, jax.Array, jax.Array], jax.Array]
"""`(reward_model, tokens[L], mask[L]) -> []`: how good a query and its response are, any pure function."""


class Frozen(NamedTuple):
    """The frozen models that RLHF reads."""

    reference: Params
    """The reference policy's language model, and the base that the trained part is laid over."""
    reward_model: Any
    """Whatever the score function reads."""


class TextObservation(NamedTuple):
    """A prompt [P], and the temperature [] that its response is sampled at."""

    prompt: jax.Array
    temperature: jax.Array


class KLController(NamedTuple):
    """The weight of the KL penalty, carried from rollout to rollout."""

    coef: jax.Array


def join(
    prompt: jax.Array, response: jax.Array, mask: jax.Array, config: TextConfig
) -> tuple[jax.Array, jax.Array]:
    """Return the query and its response as one sequence: tokens [P + T] and their mask [P + T].

    Args:
      prompt: [P] left-padded.
      response: [T] right-padded.
      mask: [T] 1 for a real response token.
      config: names the padding token.
    """
    real = (prompt != config.pad_token).astype(mask.dtype)
    return jnp.concatenate([prompt, response]), jnp.concatenate([real, mask])


def judge(
    lm: LanguageModel,
    params: Params,
    prompt: jax.Array,
    response: jax.Array,
    mask: jax.Array,
    config: TextConfig,
    *,
    temperature: Numeric = 1.0,
    value_head: Params | None = None,
) -> Evaluation:
    """Judge ONE response in a single full pass: log-probabilities, entropies, values and distributions.

    The hidden state at position P - 1 + t predicts response token t, so values too are read one position
    before the token they judge.

    Args:
      lm: the language model.
      params: its parameters.
      prompt: [P] left-padded.
      response: [T] right-padded.
      mask: [T] 1 for a real response token.
      config: lengths and special tokens.
      temperature: the sampling temperature.
      value_head: scalar head; None reads zeros.

    Returns:
      An `Evaluation` with leaves [T], the distribution's logits [T, V].
    """
    tokens, real = join(prompt, response, mask, config)
    hidden, _ = lm.encode(params, tokens, real)
    hidden = hidden[prompt.shape[0] - 1 : -1]
    logits = sampling_logits(lm.logits(params, hidden), temperature, config.pad_token)
    value = jnp.zeros_like(mask) if value_head is None else apply_scalar_head(value_head, hidden)
    return Evaluation(token_log_prob(logits, response), entropy(logits), value, Categorical(logits))


def last_real(mask: jax.Array) -> jax.Array:
    """Return [T] with 1 at the last real position of a right-padded mask [T], all 0 if nothing is real."""
    return mask * (1.0 - jnp.append(mask[1:], 0.0))


def token_rewards(
    score: jax.Array,
    log_prob: jax.Array,
    reference_log_prob: jax.Array,
    mask: jax.Array,
    kl_coef: Numeric,
) -> jax.Array:
    """Return each token's reward: `-kl_coef (log pi - log pi_ref)`, plus the score at the last real token.

    Args:
      score: [] any real type; the rewards are float.
      log_prob: [T] under the acting policy.
      reference_log_prob: [T] under the reference.
      mask: [T].
      kl_coef: beta, weight of the KL penalty (Ziegler et al. 2019, arXiv:1909.08593, equation 2).

    Returns:
      [T] float32, 0 on padding.
    """
    penalty = -jnp.asarray(kl_coef) * (log_prob - reference_log_prob) * mask
    return penalty + jnp.asarray(score, jnp.float32) * last_real(mask)


def answer(
    lm: LanguageModel,
    score: Score,
    config: TextConfig,
    params: Params,
    frozen: Frozen,
    prompt: jax.Array,
    key: chex.PRNGKey,
    kl_coef: Numeric,
    hparams: Any,
) -> tuple[Trajectory, Metrics]:
    """Generate ONE response, evaluate it under the reference, score it, and return its trajectory.

    Returns:
      The trajectory, leaves [T], and the sequence's `kl` [] (nats, summed), `score` [] and `stopped` [].
    """
    temperature = jnp.asarray(hparams.temperature, jnp.float32)
    policy = overlay(frozen.reference, params["lm"])
    tokens, log_prob, value, mask = generate(
        lm, policy, prompt, key, config, temperature=temperature, value_head=params["value"]
    )
    reference = judge(lm, frozen.reference, prompt, tokens, mask, config, temperature=temperature)
    raw = jnp.asarray(score(frozen.reward_model, *join(prompt, tokens, mask, config)), jnp.float32)
    unstopped = {"replace": -hparams.stop_penalty, "subtract": raw - hparams.stop_penalty, "keep": raw}
    stopped = jnp.any((tokens == config.stop_token) & (mask > 0))
    paid = jnp.where(stopped, raw, unstopped[config.missing_stop])
    goes_on = mask * (1.0 - last_real(mask))
    trajectory = Trajectory(
        obs=TextObservation(prompt, temperature),
        action=tokens,
        log_prob=log_prob,
        reward=token_rewards(paid, log_prob, reference.log_prob, mask, kl_coef),
        discount=hparams.gamma * goes_on,
        lambda_=hparams.gae_lambda * goes_on,
        value=value,
        next_value=jnp.append(value[1:], 0.0),
        mask=mask,
    )
    kl = jnp.sum((log_prob - reference.log_prob) * mask)
    return trajectory, {"kl": kl, "score": paid, "stopped": stopped.astype(jnp.float32)}


def make_text_actor(
    lm: LanguageModel, score: Score, config: TextConfig, sample_prompts: Sampler | None = None
) -> Actor:
    """Build the actor that answers prompts; its reward is a score and a KL penalty.

    Its parameters are `{"lm": a whole model or a part of one, "value": head}`, its frozen tree a `Frozen`.

    Args:
      lm: the language model.
      score: reads the query and the response up to its stop token.
      config: lengths and special tokens.
      sample_prompts: `key -> [B, P]` prompts, for rollouts without a batch.

    Returns:
      An `Actor`; hparams need `temperature, gamma, gae_lambda, kl_coef, kl_target, kl_horizon, stop_penalty`.
      Its metrics are means over the batch: `objective/kl` is the KL summed over each sequence.

    Raises:
      ValueError: if prompt and response do not fit the model's context, or a special token its vocabulary; at
        trace time, if the frozen tree or the prompts are missing.
    """
    _check_fits(lm, config)

    def init_params(key: chex.PRNGKey) -> Params:
        return {"lm": lm.init(key), "value": init_scalar_head(None, lm.config.width)}

    def init_env(key: chex.PRNGKey, hparams: Any) -> KLController:
        return KLController(jnp.asarray(hparams.kl_coef, jnp.float32))

    def rollout(
        params: Params, frozen: Frozen, env_state: KLController, key: chex.PRNGKey, hparams: Any, batch: Any
    ) -> tuple[KLController, Trajectory, Metrics]:
        if frozen is None:
            raise ValueError("a reference and a reward model are needed; pass step(..., frozen=Frozen(...))")
        key_prompts, key_answers = jax.random.split(key)
        if batch is None:
            if sample_prompts is None:
                raise ValueError("this actor has no prompts; pass step(state, batch), or give sample_prompts")
            batch = sample_prompts(key_prompts)
        prompts = _check_prompts(config, batch)
        count = prompts.shape[0]
        trajectory, parts = jax.vmap(
            lambda prompt, k: answer(lm, score, config, params, frozen, prompt, k, env_state.coef, hparams)
        )(prompts, jax.random.split(key_answers, count))
        kl = jnp.mean(parts["kl"])
        metrics = {
            "objective/kl": kl,
            "objective/kl_coef": env_state.coef,
            "objective/entropy": -jnp.mean(jnp.sum(trajectory.log_prob, 1)),
            "objective/non_score_reward": -env_state.coef * kl,
            "objective/rlhf_reward": jnp.mean(jnp.sum(trajectory.reward, 1)),
            "objective/scores": jnp.mean(parts["score"]),
            "val/num_eos_tokens": jnp.sum(parts["stopped"]),
            "response_length": jnp.mean(jnp.sum(trajectory.mask, 1)),
        }
        coef = proportional_kl_coefficient(
            env_state.coef, kl, target=hparams.kl_target, num_episodes=count, horizon=hparams.kl_horizon
        )
        return KLController(coef), trajectory, metrics

    def evaluate(params: Params, frozen: Frozen, trajectory: Trajectory) -> Evaluation:
        return judge(
            lm,
            overlay(frozen.reference, params["lm"]),
            trajectory.obs.prompt,
            trajectory.action,
            trajectory.mask,
            config,
            temperature=trajectory.obs.temperature,
            value_head=params["value"],
        )

    return Actor(init_params, init_env, rollout, evaluate, takes_batch=True)


def _check_prompts(config: TextConfig, prompts: Any) -> Any:
    shape, kind = np.shape(prompts), getattr(prompts, "dtype", type(prompts).__name__)
    if shape[1:] != (config.prompt_length,) or not jnp.issubdtype(kind, jnp.integer):
        raise ValueError(
            f"prompts must be integers [B, {config.prompt_length}]; got {kind} {shape}; pad or cut them"
        )
    return prompts


def _check_fits(lm: LanguageModel, config: TextConfig) -> None:
    if config.prompt_length + config.response_length > lm.config.context:
        raise ValueError(
            f"prompt and response must fit the context; got prompt_length={config.prompt_length} + "
            f"response_length={config.response_length} > context={lm.config.context}; shorten one of them"
        )
    for name in ("stop_token", "pad_token"):
        if not 0 <= getattr(config, name) < lm.config.vocab_size:
            raise ValueError(
                f"{name} must lie in the vocabulary; got {getattr(config, name)}, "
                f"vocab_size={lm.config.vocab_size}; pass the tokenizer's {name}"
            )
