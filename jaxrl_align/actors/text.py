"""A language model as an actor: generation is a rollout, and a reward model scores it.

Everything here is a pure function of arrays, so generation, scoring and the update that follows compile into
one program. A query is `prompt` [P], left-padded, followed by a response [T], right-padded; the reward model,
the value head and both policies read the two together. Masks say what is padding, so that a prompt may hold
the padding token, which may be the stop token too; if it is not, it is never sampled.
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

    prompt: PaddedTokens
    temperature: jax.Array


class KLController(NamedTuple):
    """The weight of the KL penalty, carried from rollout to rollout."""

    coef: jax.Array


def join(prompt: PaddedTokens, response: jax.Array, mask: jax.Array) -> PaddedTokens:
    """Return the query and its response as one sequence [P + T].

    Args:
      prompt: [P] left-padded.
      response: [T] right-padded.
      mask: [T] 1 for a real response token.
    """
    return PaddedTokens(jnp.concatenate([prompt.tokens, response]), jnp.concatenate([prompt.real, mask]))


def judge(
    lm: LanguageModel,
    params: Params,
    prompt: PaddedTokens,
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
    text = join(prompt, response, mask)
    hidden, _ = lm.encode(params, text.tokens, text.real)
    hidden = hidden[config.prompt_length - 1 : -1]
    pad_token = None if config.pad_token == config.stop_token else config.pad_token
    logits = sampling_logits(lm.logits(params, hidden), temperature, pad_token)
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
    prompt: PaddedTokens,
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
    text = join(prompt, tokens, mask)
    raw = jnp.asarray(score(frozen.reward_model, text.tokens, text.real), jnp.float32)
    if raw.shape:
        raise ValueError(
            f"score must return one number for a text, shape []; got {list(raw.shape)}; take its sum, or its "
            "value at the last real token"
        )
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
      sample_prompts: `key -> PaddedTokens` [B, P], for rollouts without a batch.

    Returns:
      An `Actor`; hparams need `temperature, gamma, gae_lambda, kl_coef, kl_target, kl_horizon, stop_penalty`.
      Its metrics are means over the batch: `objective/kl` is the KL summed over each sequence.

    Raises:
      ValueError: if prompt and response do not fit the model's context, a special token its vocabulary, or
        what is sampled is no prompts; at trace time, if the frozen tree or the prompts are missing, or the
        score is not a number.
    """
    _check_fits(lm, config)
    if sample_prompts is not None:
        _check_prompts(lm, config, sample_prompts(jax.random.key(0)))

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
        prompts = _check_prompts(lm, config, batch)
        count = len(prompts.tokens)
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


def _known(x: Any) -> bool:
    """Return whether a value can be looked at, as it cannot be while a program is traced."""
    return not isinstance(x, jax.core.Tracer)


def _check_prompts(lm: LanguageModel, config: TextConfig, prompts: Any) -> PaddedTokens:
    length = config.prompt_length
    if not isinstance(prompts, PaddedTokens):
        raise ValueError(
            f"prompts must be PaddedTokens(tokens, real) of [B, {length}]; got "
            f"{getattr(prompts, 'dtype', type(prompts).__name__)} {np.shape(prompts)}; left_pad makes them"
        )
    (shape, other), kind = map(np.shape, prompts), jnp.asarray(prompts.tokens).dtype
    if shape != other or shape[1:] != (length,) or not shape[0] or not jnp.issubdtype(kind, jnp.integer):
        raise ValueError(
            f"prompts must be integers and their mask, each [B, {length}], B >= 1; got {kind} {shape} and "
            f"{other}; pad or cut them"
        )
    if _known(prompts.tokens) and _known(prompts.real):
        tokens, real = map(np.asarray, prompts)
        if not ((tokens >= 0) & (tokens < lm.config.vocab_size)).all():
            raise ValueError(
                f"tokens of prompts must be from 0 to {lm.config.vocab_size - 1}; got {tokens.min()} to "
                f"{tokens.max()}; was another tokenizer used?"
            )
        if wrong := np.flatnonzero((real[:, -1] != 1) | (np.diff(real, axis=1) < 0).any(1)).tolist():
            raise ValueError(
                "every prompt must be padding, then at least one token; got holes, or none at its end, in "
                f"rows {wrong[:5]}; left_pad makes them"
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
