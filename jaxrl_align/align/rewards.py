"""Rewards as things one composes: reward models and functions of tokens, weighted together.

Every function here, and `host_reward` for functions of texts, returns a `Score`,
`(frozen.reward_model, tokens[L], mask[L]) -> []`, which is what the text actor takes:

    score = combine_rewards(
        {"helpful": model_reward(lm), "brief": token_reward(lambda tokens, mask: -jnp.sum(mask))},
        weights={"brief": 0.01},
    )
    learner = make_rlhf_learner(lm, score, config)
    learner.step(state, prompts, Frozen(reference, {"helpful": reward_model}))
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_align.actors.scores import Score, Scored, as_scored
from jaxrl_align.align.reward_model import score
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.text.shared_prompt import completion_log_probs
from jaxrl_align.types import Numeric, PaddedTokens, Params

WEIGHTS = "weights"
"""Where the frozen tree of a combined reward holds weights; no part may be called so."""


def model_reward(lm: LanguageModel) -> Score:
    """Return the reward model that the frozen tree holds as a score, read at the last real token.

    Args:
      lm: the language model that the reward model is built on.

    Returns:
      A `Score` of a `RewardModel`.
    """
    return functools.partial(score, lm)


def token_reward(f: Callable[[jax.Array, jax.Array], Numeric]) -> Score:
    """Return a pure JAX function of tokens as a score; it stays in the compiled program.

    Args:
      f: `(tokens[L], mask[L]) -> []`; the query is the first `prompt_length` of the L.

    Returns:
      A `Score` that reads no model.
    """
    return lambda model, tokens, mask: f(tokens, mask)


def likelihood_reward(lm: LanguageModel, *, prompt_length: int) -> Score:
    """Return the log-probability of the response under a frozen language model as a score, in nats.

    Weighted by a drift coefficient in `combine_rewards` it holds the policy near that model, for example the
    pre-trained one where the reference is a fine-tuned one (docs/lectures.md, B27).

    Args:
      lm: the language model.
      prompt_length: P, tokens; what follows is the response.

    Returns:
      A `Score` that reads the model's parameters.
    """

    def log_prob(params: Params, tokens: jax.Array, mask: jax.Array) -> jax.Array:
        prompt = PaddedTokens(tokens[:prompt_length], mask[:prompt_length])
        response = PaddedTokens(tokens[None, prompt_length:], mask[None, prompt_length:])
        return jnp.sum(completion_log_probs(lm, params, prompt, response))

    return log_prob


def combine_rewards(scores: Mapping[str, Score], weights: Mapping[str, Numeric] | None = None) -> Score:
    """Return the weighted sum of several scores, each of which is logged apart.

        sum_name weight_name score_name

    It reads a dict in the place of the reward model: `frozen.reward_model[name]` is that part's model (a part
    without one gets None), and `frozen.reward_model["weights"]`, a dict of numbers, replaces weights given
    here. These may be traced: give them an axis and vmap to sweep them.

    Args:
      scores: name -> score; at least one. A part may be combined itself: its parts are logged as `name/part`.
      weights: name -> any finite number; 1 where a part has none.

    Returns:
      A `Score` of `Scored`; parts are logged unweighted, as `rewards/<name>/mean` and `rewards/<name>/std`.

    Raises:
      ValueError: for no score, a part called "weights", or a weight of no part; at trace time, if the frozen
        tree is no dict of the parts' models and weights, a weight is no number, or a part's score is none.
    """
    if not scores or WEIGHTS in scores:
        raise ValueError(
            f'scores must hold at least one, and none called "{WEIGHTS}"; got {sorted(scores)}; name each '
            "after what it rewards"
        )
    given = dict(weights or {})
    _check_names(given, scores, "weights")

    def combined(models: Any, tokens: jax.Array, mask: jax.Array) -> Scored:
        models = {} if models is None else models
        if not isinstance(models, Mapping):
            raise ValueError(
                f"a combined reward reads a dict of its parts' models; got {type(models).__name__}; pass "
                f"Frozen(reference, {{{next(iter(scores))!r}: model}})"
            )
        _check_names(models, [*scores, WEIGHTS], "frozen.reward_model")
        traced = models.get(WEIGHTS) or {}
        _check_names(traced, scores, f'frozen.reward_model["{WEIGHTS}"]')
        total: jax.Array = jnp.zeros(())
        parts: dict[str, Numeric] = {}
        for name, one in scores.items():
            own = as_scored(one(models.get(name), tokens, mask))
            parts |= {name: own.total} | {f"{name}/{k}": v for k, v in (own.parts or {}).items()}
            total += _as_weight(name, (given | dict(traced)).get(name, 1.0)) * own.total
        return Scored(total, parts)

    return combined


def _check_names(given: Iterable[str], known: Iterable[str], what: str) -> None:
    if unknown := sorted(set(given) - set(known)):
        raise ValueError(f"{what} must be named after parts; got {unknown}; there are {sorted(known)}")


def _as_weight(name: str, weight: Numeric) -> jax.Array:
    if shape := jnp.shape(weight):
        raise ValueError(
            f"a weight must be one number; got shape {list(shape)} for {name!r}; to sweep it, vmap over "
            f'frozen.reward_model["{WEIGHTS}"]'
        )
    return jnp.asarray(weight, jnp.float32)
