"""Rounds of collecting preferences, fitting the reward model and training the policy, as ChatGPT was made.

A reward model that was fitted once is wrong where the policy goes. Here each round's policy writes the
answers that are compared next, so that the reward model learns where the policy is. A round is the step of a
learner: a sequence of rounds is jitted, vmapped over seeds and resumed as any other run.

    learner = make_rounds_learner(lm, gold, config, sample_prompts, rounds=3)
    start = {"policy": init_policy(lm, part), "reward": {"head": head}}
    state = learner.init(key, RoundsHParams(), start)
    state, metrics = learner.step(state, None, Frozen(base, gold_model))

Source: Ouyang et al. 2022; Bai et al. 2022 (arXiv:2204.05862), section 4.5; docs/lectures.md (F10, F16).
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import chex
import jax
import jax.numpy as jnp
import optax

from jaxrl_align.actors.queries import check_fits, check_prompts, join
from jaxrl_align.actors.scores import Score, as_scored
from jaxrl_align.actors.text import Frozen
from jaxrl_align.align.reward_learner import RewardHParams, make_reward_learner
from jaxrl_align.align.reward_model import (
    RewardModel,
    choose_completions,
    init_reward_params,
    normalise_scores,
    score,
    score_margins,
)
from jaxrl_align.align.rlhf import RLHFHParams, init_policy, make_rlhf_learner
from jaxrl_align.checks import check_counts, check_divides
from jaxrl_align.learner import begin
from jaxrl_align.nets.adapters import overlay
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.placement import place_rows
from jaxrl_align.text.generation import TextConfig, generate
from jaxrl_align.types import Comparisons, Learner, Metrics, Numeric, PaddedTokens, Params, Sampler, State


class RoundsHParams(NamedTuple):
    """The traced scalars of a round's three stages."""

    annotator_temperature: Numeric = 1.0
    """P(a preferred) = sigmoid((gold(a) - gold(b)) / temperature); towards 0 annotators are exact."""
    reward: RewardHParams = RewardHParams()
    policy: RLHFHParams = RLHFHParams()


class Collected(NamedTuple):
    """What was collected so far, and what the reward model's scores are scaled by."""

    rows: Comparisons
    """[rounds N]; those of later rounds are still zeros."""
    gain: jax.Array
    """[] of the newest reward model; 1 before the first round."""
    bias: jax.Array
    """[]."""


class Rounds(NamedTuple):
    """The parts of a learner of rounds; `make_rounds_learner` says what each is."""

    lm: LanguageModel
    gold: Score
    config: TextConfig
    sample_prompts: Sampler
    rounds: int
    comparisons: int
    reward_steps: int
    reward_batch: int
    policy_steps: int
    writer: Literal["policy", "reference"]
    reward: Learner
    policy: Learner


def make_rounds_learner(
    lm: LanguageModel,
    gold: Score,
    config: TextConfig,
    sample_prompts: Sampler,
    *,
    rounds: int,
    comparisons: int = 256,
    reward_steps: int = 100,
    reward_batch: int = 32,
    policy_steps: int = 50,
    writer: Literal["policy", "reference"] = "policy",
    epochs: int = 4,
    minibatches: int = 4,
    reward_optimizer: optax.GradientTransformation | None = None,
    policy_optimizer: optax.GradientTransformation | None = None,
) -> Learner:
    """Build the learner whose step is a round: collect, fit the reward model, train the policy.

    The reward model goes on from the round before, on the comparisons of all rounds so far, and its scores
    are normalised on the newest answers; the policy goes on too, with a fresh optimiser and KL controller,
    and always pays its distance from `frozen.reference`.

    Args:
      lm: the language model of policy and reward model.
      gold: what annotators judge by, `(frozen.reward_model, tokens[L], mask[L]) -> []`; the policy never
        sees it. `align.host_reward` makes one of a Python function of texts.
      config: lengths and special tokens.
      sample_prompts: `key -> PaddedTokens` [B, P].
      rounds: how many there is room for; further ones take the place of the last.
      comparisons: N of each round, a multiple of B.
      reward_steps: gradient steps of the reward model a round.
      reward_batch: comparisons in each.
      policy_steps: steps of RLHF a round.
      writer: whose answers are compared; "reference" leaves the policy's own out of all rounds, to measure
        what they are worth.
      epochs: of RLHF, passes over each batch of responses.
      minibatches: of RLHF, gradient steps per pass.
      reward_optimizer: an update rule without its learning rate.
      policy_optimizer: likewise.

    Returns:
      A `Learner` over `{"policy": ..., "reward": ...}`: what `init_policy` returns, and a reward model's
      parameters, its head and all, a part or nothing of its `lm`, which lies over
      `frozen=Frozen(base, gold's model)`. Its metrics are those of the last RLHF step, of the last reward
      step as `reward_model/...`, and

      | metric | what it is |
      |---|---|
      | `gold` | mean gold reward of the answers that were compared, the writer's before the round |
      | `reward_model/accuracy_before` | share of the new comparisons that the old reward model orders so |
      | `reward_model/accuracy_after` | the same of the new one, on what it was fitted to |

    Raises:
      ValueError: as `make_rlhf_learner`; for counts below 1, comparisons that are no multiple of B, or
        another writer.
    """
    check_counts(
        rounds=rounds,
        comparisons=comparisons,
        reward_steps=reward_steps,
        reward_batch=reward_batch,
        policy_steps=policy_steps,
    )
    if writer not in ("policy", "reference"):
        raise ValueError(f"writer must be policy or reference; got {writer!r}")
    check_fits(lm, config, None)
    prompts = check_prompts(lm, config, sample_prompts(jax.random.key(0)))
    check_divides(len(prompts.tokens), comparisons, "prompts of a sample", "comparisons of a round")
    settings = Rounds(
        lm,
        gold,
        config,
        sample_prompts,
        rounds,
        comparisons,
        reward_steps,
        reward_batch,
        policy_steps,
        writer,
        make_reward_learner(lm, total_steps=reward_steps, optimizer=reward_optimizer),
        make_rlhf_learner(
            lm,
            functools.partial(score, lm),
            config,
            sample_prompts,
            epochs=epochs,
            minibatches=minibatches,
            total_steps=policy_steps,
            optimizer=policy_optimizer,
        ),
    )
    begin_data = lambda key, hparams: empty(config, rounds * comparisons)
    init = functools.partial(begin, functools.partial(_init_params, lm), lambda params: (), begin_data)
    return Learner(init, functools.partial(take_round, settings))


def empty(config: TextConfig, count: int) -> Collected:
    """Return room for that many comparisons."""
    blank = lambda length: PaddedTokens(jnp.zeros((count, length), jnp.int32), jnp.zeros((count, length)))
    answers = blank(config.response_length), blank(config.response_length)
    return Collected(Comparisons(blank(config.prompt_length), *answers), jnp.ones(()), jnp.zeros(()))


def _init_params(lm: LanguageModel, key: chex.PRNGKey) -> Params:
    key_lm, key_head = jax.random.split(key)
    params = lm.init(key_lm)
    return {"policy": init_policy(lm, params), "reward": init_reward_params(key_head, lm, params)}


def take_round(
    settings: Rounds, state: State, batch: Any = None, frozen: Frozen | None = None
) -> tuple[State, Metrics]:
    """Collect, fit the reward model, train the policy; pure."""
    if batch is not None:
        raise ValueError("a round draws its own prompts; got a batch; leave it out")
    if frozen is None:
        raise ValueError("a base and the gold reward's model are needed; pass step(..., frozen=Frozen(...))")
    key, key_collect, key_reward, key_policy = jax.random.split(state.key, 4)
    old, params, hparams = state.env_state, state.params, state.hparams
    writer = params["policy"] if settings.writer == "policy" else {"lm": frozen.reference}
    new, gold = collect(settings, writer, frozen, key_collect, hparams.annotator_temperature)
    place = state.step * settings.comparisons
    write = lambda rows, x: jax.lax.dynamic_update_slice_in_dim(rows, x, place, 0)
    rows = jax.tree.map(write, old.rows, new)
    # The head is part of what trains; the base has one only for the part to lie over.
    base = {"lm": frozen.reference, "head": params["reward"]["head"]}
    model_of = lambda reward, *scale: RewardModel(overlay(base, reward), *scale)
    accuracy = lambda model: jnp.mean(score_margins(settings.lm, model, new) > 0, dtype=jnp.float32)
    before = accuracy(model_of(params["reward"]))
    reward, fitted = fit_reward(settings, params["reward"], base, rows, place, key_reward, hparams.reward)
    model = model_of(reward)
    both = lambda *sides: jnp.concatenate(sides)
    asked, answers = (jax.tree.map(both, *pair) for pair in ((new.prompt, new.prompt), new[1:3]))
    model = normalise_scores(settings.lm, model, asked, answers)
    policy, trained = train_policy(settings, params["policy"], frozen, model, key_policy, hparams.policy)
    metrics = trained | {f"reward_model/{name}": value for name, value in fitted.items()}
    metrics |= {
        "gold": gold,
        "reward_model/accuracy_before": before,
        "reward_model/accuracy_after": accuracy(model),
    }
    return state._replace(
        params={"policy": policy, "reward": reward},
        step=optax.safe_increment(state.step),
        env_state=Collected(rows, jnp.asarray(model.gain), jnp.asarray(model.bias)),
        key=key,
    ), metrics


def collect(
    settings: Rounds, policy: Params, frozen: Frozen, key: chex.PRNGKey, temperature: Numeric
) -> tuple[Comparisons, jax.Array]:
    """Let the policy answer N prompts twice, and annotators choose between the two.

    Returns:
      The comparisons [N], and the mean gold reward [] of all answers.
    """
    lm, config = settings.lm, settings.config
    params = overlay(frozen.reference, policy["lm"])
    key_prompts, key_answers, key_choice = jax.random.split(key, 3)
    size = jax.eval_shape(settings.sample_prompts, key_prompts).tokens.shape[0]
    drawn = jax.vmap(settings.sample_prompts)(jax.random.split(key_prompts, settings.comparisons // size))
    prompts = place_rows(jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), drawn))

    def write(prompt: PaddedTokens, key: chex.PRNGKey) -> tuple[PaddedTokens, jax.Array]:
        response = generate(lm, params, prompt, key, config)
        text = join(prompt, response.tokens, response.mask)
        worth = as_scored(settings.gold(frozen.reward_model, text.tokens, text.real)).total
        return PaddedTokens(response.tokens, response.mask), jnp.asarray(worth)

    keys = jax.random.split(key_answers, (settings.comparisons, 2))
    answers, worth = jax.vmap(jax.vmap(write, (None, 0)))(prompts, keys)
    chance = jax.nn.sigmoid((worth[:, 0] - worth[:, 1]) / jnp.maximum(temperature, 1e-6))
    first = jax.random.uniform(key_choice, chance.shape) < chance
    a, b = (jax.tree.map(lambda x, i=i: x[:, i], answers) for i in (0, 1))
    return choose_completions(prompts, a, b, first), jnp.mean(worth)


def fit_reward(
    settings: Rounds,
    params: Params,
    base: Params,
    rows: Comparisons,
    place: jax.Array,
    key: chex.PRNGKey,
    hparams: RewardHParams,
) -> tuple[Params, Metrics]:
    """Fit the reward model to the comparisons of all rounds so far, `place` of the newest round's first."""
    key_init, key_rows = jax.random.split(key)
    known = jnp.minimum(place + settings.comparisons, len(rows.prompt.tokens))

    def step(state: State, key: chex.PRNGKey) -> tuple[State, Metrics]:
        index = jax.random.randint(key, (settings.reward_batch,), 0, known)
        return settings.reward.step(state, jax.tree.map(lambda x: x[index], rows), base)

    keys = jax.random.split(key_rows, settings.reward_steps)
    state, metrics = jax.lax.scan(step, settings.reward.init(key_init, hparams, params), keys)
    return state.params, jax.tree.map(lambda x: x[-1], metrics)


def train_policy(
    settings: Rounds,
    params: Params,
    frozen: Frozen,
    model: RewardModel,
    key: chex.PRNGKey,
    hparams: RLHFHParams,
) -> tuple[Params, Metrics]:
    """Take the RLHF steps of a round on the newest reward model."""
    against = Frozen(frozen.reference, model)
    take: Callable[..., Any] = lambda state, _: settings.policy.step(state, None, against)
    state, metrics = jax.lax.scan(
        take, settings.policy.init(key, hparams, params), None, settings.policy_steps
    )
    return state.params, jax.tree.map(lambda x: x[-1], metrics)
