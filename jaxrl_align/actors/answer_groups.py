"""A language model that answers every prompt several times, so that its answers are judged by each other.

The G answers to one prompt are ONE trajectory of G * T steps, answer by answer: generation reads the prompt
once for all of them, so does every pass that judges them again, and minibatches hold whole groups. There is
no critic; the policy's parameters are `{"lm": a whole model or a part of one}`.
"""

import functools
from typing import Any, Literal, NamedTuple, get_args

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.actors.judging import last_real, token_rewards
from jaxrl_align.actors.queries import check_fits, check_prompts, draw_prompts, join
from jaxrl_align.actors.scores import Score, as_paid, as_scored
from jaxrl_align.actors.text import Frozen
from jaxrl_align.checks import check_counts
from jaxrl_align.losses import entropy, token_log_prob
from jaxrl_align.nets.adapters import overlay
from jaxrl_align.nets.transformer import LanguageModel, positions_of
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

Penalty = Literal["loss", "unbiased", "reward", "none"]
"""Where the KL penalty towards the reference is paid. "loss" and "unbiased": by the learner, from the
reference's log-probabilities in the trajectory. "reward": token by token, in the trajectory's rewards.
"none": nowhere; the reference is only the base under a part, and no KL is measured: one forward pass less."""


class GroupObservation(NamedTuple):
    """What G answers of T tokens were written for, and what the reference thinks of them."""

    prompt: PaddedTokens
    """[P]."""
    temperature: jax.Array
    """[]."""
    reference_log_prob: jax.Array | None
    """[G * T] nats of the tokens under the reference, 0 on padding; None where no KL is measured."""


def judge_answers(
    lm: LanguageModel,
    params: Params,
    prompt: PaddedTokens,
    answers: PaddedTokens,
    config: TextConfig,
    *,
    temperature: Numeric = 1.0,
) -> Evaluation:
    """Judge G answers to ONE prompt: log-probabilities and entropies.

    The prompt is read once, into a cache that all answers read; behind one another in a row of P + G T
    tokens, as `align.score_completions` packs them, each would also be compared with the others' tokens,
    G times the attention.

    Args:
      lm: the language model.
      params: its parameters.
      prompt: [P] left-padded.
      answers: [G, T] right-padded.
      config: lengths and special tokens.
      temperature: the sampling temperature.

    Returns:
      An `Evaluation` with leaves [G, T], values 0, and no distributions.
    """
    length = config.prompt_length
    slots = jnp.concatenate([prompt.real, jnp.ones(config.response_length)])
    positions = positions_of(slots)
    room = lm.init_cache(slots.shape[0])
    read, cache = lm.encode(params, prompt.tokens, slots, room, 0, positions[:length])

    def states_before(answer: PaddedTokens) -> jax.Array:
        # The hidden state before a token predicts it: the prompt's last comes first, an answer's last is not
        # needed. Positions are those of an answer that fills its room, which a real token's always are.
        if config.response_length == 1:
            return read[-1:]
        real = jnp.concatenate([prompt.real, answer.real])
        own, _ = lm.encode(params, answer.tokens[:-1], real, cache, length, positions[length:-1])
        return jnp.concatenate([read[-1:], own])

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def judge_one(answer: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        hidden, tokens = answer
        logits = sampling_logits(lm.logits(params, hidden), temperature, config.barred_token)
        return token_log_prob(logits, tokens), entropy(logits)

    # One answer's logits at a time, computed again for the gradient: with SmolLM2's vocabulary they are the
    # most of a group's memory.
    log_prob, uncertainty = jax.lax.map(judge_one, (jax.vmap(states_before)(answers), answers.tokens))
    return Evaluation(log_prob, uncertainty, jnp.zeros_like(log_prob))


def answer_group(
    lm: LanguageModel,
    score: Score,
    config: TextConfig,
    penalty: Penalty,
    params: Params,
    frozen: Frozen,
    prompt: PaddedTokens,
    keys: chex.PRNGKey,
    hparams: Any,
) -> tuple[Trajectory, dict[str, Any]]:
    """Generate G answers to ONE prompt, judge them under the reference, score them.

    Args:
      lm: the language model.
      score: what an answer earns.
      config: lengths and special tokens.
      penalty: where the KL penalty is paid.
      params: the policy's.
      frozen: the reference, which is the policy's base too, and the reward model.
      prompt: [P].
      keys: [G], a draw for each answer.
      hparams: anything with `temperature, kl_coef, stop_penalty`.

    Returns:
      The trajectory, leaves [G * T], and of every answer [G] its `score` as paid, whether it `stopped`, its
      `length`, `rewards`, the score's parts by name, and, where it is measured, the sequence's `kl` (nats).
    """
    temperature = jnp.asarray(hparams.temperature, jnp.float32)
    policy = overlay(frozen.reference, params["lm"])
    # Only the keys differ, so vmap reads the prompt once for all answers.
    written = jax.vmap(lambda key: generate(lm, policy, prompt, key, config, temperature=temperature))(keys)
    tokens, log_prob, mask = written.tokens, written.log_prob, written.mask

    def pay(tokens: jax.Array, mask: jax.Array) -> tuple[jax.Array, jax.Array, Any]:
        text = join(prompt, tokens, mask)
        raw, rewards = as_scored(score(frozen.reward_model, text.tokens, text.real))
        paid, stopped = as_paid(config, raw, tokens, mask, hparams.stop_penalty)
        return paid, stopped, rewards

    paid, stopped, rewards = jax.vmap(pay)(tokens, mask)
    parts = {"score": paid, "stopped": stopped, "length": jnp.sum(mask, 1), "rewards": rewards}
    reference = log_prob
    if penalty != "none":
        answers = PaddedTokens(tokens, mask)
        judged = judge_answers(lm, frozen.reference, prompt, answers, config, temperature=temperature)
        reference = judged.log_prob * mask
        parts["kl"] = jnp.sum((log_prob - reference) * mask, 1)
    kl_coef = hparams.kl_coef if penalty == "reward" else 0.0
    reward = jax.vmap(token_rewards, (0, 0, 0, 0, None))(paid, log_prob, reference, mask, kl_coef)
    goes_on = mask * (1.0 - jax.vmap(last_real)(mask))
    flat = lambda x: x.reshape(-1)
    none = jnp.zeros(mask.size)
    trajectory = Trajectory(
        obs=GroupObservation(prompt, temperature, None if penalty == "none" else flat(reference)),
        action=flat(tokens),
        log_prob=flat(log_prob),
        reward=flat(reward),
        discount=flat(goes_on),
        lambda_=flat(goes_on),
        value=none,
        next_value=none,
        mask=flat(mask),
    )
    return trajectory, parts


def summarise_groups(parts: dict[str, Any]) -> Metrics:
    """Return a rollout's metrics, as docs/metrics.md defines them.

    Args:
      parts: what `answer_group` returned beside each trajectory, leaves [B, G].
    """
    scores = parts["score"]
    metrics = {
        "reward": jnp.mean(scores),
        "reward_std": jnp.std(scores),
        "frac_reward_zero_std": jnp.mean(jnp.ptp(scores, 1) == 0.0, dtype=jnp.float32),
        "completions/mean_length": jnp.mean(parts["length"]),
        "completions/clipped_ratio": 1.0 - jnp.mean(parts["stopped"]),
    }
    if "kl" in parts:
        metrics["objective/kl"] = jnp.mean(parts["kl"])
    for name, part in parts["rewards"].items():
        metrics |= {f"rewards/{name}/mean": jnp.mean(part), f"rewards/{name}/std": jnp.std(part)}
    return metrics


def make_group_actor(
    lm: LanguageModel,
    score: Score,
    config: TextConfig,
    sample_prompts: Sampler | None = None,
    *,
    group_size: int = 8,
    penalty: Penalty = "loss",
) -> Actor:
    """Build the actor that answers every prompt `group_size` times.

    Its parameters are `{"lm": a whole model or a part of one}`, its frozen tree a `Frozen`. It has no critic,
    and its values are 0.

    Args:
      lm: the language model.
      score: reads the query and an answer up to its stop token.
      config: lengths and special tokens.
      sample_prompts: `key -> PaddedTokens` [B, P], for rollouts without a batch.
      group_size: G, answers to each prompt.
      penalty: where the KL penalty is paid.

    Returns:
      An `Actor` of trajectories [B, G * T]; hparams need `temperature, kl_coef, stop_penalty`.

    Raises:
      ValueError: for a group size below 1, a penalty that is none, if prompt and answer do not fit the
        context, a special token the vocabulary, or what is sampled is no prompts; at trace time, if the
        frozen tree, the reference that a penalty reads, or the prompts are missing, the parameters have a
        critic, or the score is not a number.
    """
    check_counts(group_size=group_size)
    if penalty not in get_args(Penalty):
        raise ValueError(f"the KL penalty must be one of {', '.join(get_args(Penalty))}; got {penalty!r}")
    if config.kl_penalty != "token":
        raise ValueError(
            f"groups say where the KL is paid by penalty=; got TextConfig(kl_penalty={config.kl_penalty!r}), "
            "which is PPO's; leave it out and choose the method's kl"
        )
    check_fits(lm, config, None)
    if sample_prompts is not None:
        check_prompts(lm, config, sample_prompts(jax.random.key(0)))

    def rollout(
        params: Params, frozen: Frozen, env_state: None, key: chex.PRNGKey, hparams: Any, batch: Any
    ) -> tuple[None, Trajectory, Metrics]:
        check_policy(params)
        _check_frozen(frozen, penalty)
        key_prompts, key_answers = jax.random.split(key)
        prompts = draw_prompts(lm, config, sample_prompts, key_prompts, batch)
        keys = jax.random.split(key_answers, (len(prompts.tokens), group_size))
        answer = lambda prompt, own: answer_group(
            lm, score, config, penalty, params, frozen, prompt, own, hparams
        )
        trajectory, parts = jax.vmap(answer)(prompts, keys)
        return None, trajectory, summarise_groups(parts)

    def evaluate(params: Params, frozen: Frozen, trajectory: Trajectory) -> Evaluation:
        check_policy(params)
        prompt, temperature, _ = trajectory.obs
        split = lambda x: x.reshape(group_size, config.response_length)
        answers = PaddedTokens(split(trajectory.action), split(trajectory.mask))
        policy = overlay(frozen.reference, params["lm"])
        judged = judge_answers(lm, policy, prompt, answers, config, temperature=temperature)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), judged)

    return Actor(
        lambda key: {"lm": lm.init(key)}, lambda key, hparams: None, rollout, evaluate, takes_batch=True
    )


def check_policy(params: Params) -> None:
    """Raise ValueError unless the parameters are a language model's alone."""
    if params.keys() != {"lm"}:
        raise ValueError(
            f"params must hold lm alone, as answers that judge each other need no critic; got "
            f'{", ".join(sorted(params))}; start from {{"lm": a model\'s parameters or a part of them}}'
        )


def _check_frozen(frozen: Frozen | None, penalty: Penalty) -> None:
    if frozen is None:
        raise ValueError("a reference and a reward model are needed; pass step(..., frozen=Frozen(...))")
    if frozen.reference is None and penalty != "none":
        raise ValueError(
            f"a KL penalty ({penalty}) needs a reference; got None; pass Frozen(reference, ...), or take a "
            'method with kl="none"'
        )
