"""A language model as an actor: generation is a rollout, and a reward model scores it.

Everything here is a pure function of arrays, so generation, scoring and the update that follows compile into
one program. A query is `prompt` [P], left-padded, followed by a response [T], right-padded; the reward model,
the value head and both policies read the two together. Masks say what is padding, so that a prompt may hold
the padding token, which may be the stop token too; if it is not, it is never sampled.
"""

import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.actors.queries import check_critic, check_fits, check_prompts, join
from jaxrl_align.actors.scores import Score, as_scored
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


class Frozen(NamedTuple):
    """The frozen models that RLHF reads."""

    reference: Params
    """The reference policy's language model, and the base that the trained part is laid over."""
    reward_model: Any
    """Whatever the score function reads."""
    critic: Params | None = None
    """The base that the trained part of a critic with its own trunk is laid over; None, it trains whole."""


class TextObservation(NamedTuple):
    """A prompt [P], and the temperature [] that its response is sampled at."""

    prompt: PaddedTokens
    temperature: jax.Array


class KLController(NamedTuple):
    """The weight of the KL penalty, carried from rollout to rollout."""

    coef: jax.Array


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


def prefix_values(
    lm: LanguageModel,
    critic: Params,
    prompt: PaddedTokens,
    response: jax.Array,
    mask: jax.Array,
    config: TextConfig,
) -> jax.Array:
    """Return the value of every prefix of ONE response, V(x, y_<t), in a single full pass of a critic.

    It never sees the token it judges: a baseline that reads the whole answer, as the lecture prints it,
    leaves no gradient (erratum H6).

    Args:
      lm: the critic's language model.
      critic: `{"lm": its parameters, "value": scalar head}`.
      prompt: [P] left-padded.
      response: [T] right-padded.
      mask: [T] 1 for a real response token.
      config: lengths and special tokens.

    Returns:
      [T] the head at position P - 1 + t, one before response token t; arbitrary on padding.
    """
    text = join(prompt, response, mask)
    hidden, _ = lm.encode(critic["lm"], text.tokens, text.real)
    return apply_scalar_head(critic["value"], hidden[config.prompt_length - 1 : -1])


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
    stopped = stopped.astype(jnp.float32)
    return trajectory, {"kl": kl, "score": paid, "stopped": stopped, "rewards": rewards}


def summarise(trajectory: Trajectory, parts: dict[str, Any], kl_coef: jax.Array) -> Metrics:
    """Return a rollout's metrics, as docs/metrics.md defines them.

    Args:
      trajectory: [B, T].
      parts: what `answer` returned beside each trajectory, leaves [B].
      kl_coef: the KL penalty's weight that was paid.
    """
    kl = jnp.mean(parts["kl"])
    metrics = {
        "objective/kl": kl,
        "objective/kl_coef": kl_coef,
        "objective/entropy": -jnp.mean(jnp.sum(trajectory.log_prob, 1)),
        "objective/non_score_reward": -kl_coef * kl,
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
        if batch is None:
            if sample_prompts is None:
                raise ValueError("this actor has no prompts; pass step(state, batch), or give sample_prompts")
            batch = sample_prompts(key_prompts)
        prompts = check_prompts(lm, config, batch)
        count = len(prompts.tokens)
        trajectory, parts = jax.vmap(
            lambda prompt, k: answer(
                lm, score, config, params, frozen, prompt, k, env_state.coef, hparams, critic
            )
        )(prompts, jax.random.split(key_answers, count))
        metrics = summarise(trajectory, parts, env_state.coef)
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
