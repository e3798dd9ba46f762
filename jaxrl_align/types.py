"""The few types that every room of the library shares.

Two ideas carry the library. A *learner* is two pure functions over an explicit state, as an optax
optimiser is. A *domain* (gymnax environments, text, tabular MDPs) is an actor: how experience is made and
how it is judged again under new parameters. A language model is a policy and generation is a rollout, so
both domains fill the same `Trajectory`, and everything between actor and learner is shared.

Shapes are written for one actor: `T` is time, and a batch adds a leading axis, `[B, T, ...]`. A quantity at
two times takes the field's suffixes: `v_tm1` at the step's start, `v_t` at its end.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import numpy as np
from typing_extensions import TypeAliasType

Array = TypeAliasType("Array", jax.Array | np.ndarray)
Numeric = TypeAliasType("Numeric", jax.Array | np.ndarray | np.number | float | int)
"""A number, or an array that broadcasts as one."""
Params = TypeAliasType("Params", Any)
"""A tree of arrays; of networks, nested dicts."""
Metrics = dict[str, jax.Array]
Sampler = Callable[[chex.PRNGKey], Any]
"""`key -> batch`: a pure draw from data on the device, so the key is the data cursor."""


class Trajectory(NamedTuple):
    """`T` steps of one actor, with the estimates that a learner needs.

    Padding (a sequence that ended early) is `reward = discount = lambda_ = value = next_value = mask = 0`,
    so every recursion over time runs unmasked.
    """

    obs: Any
    """[T, ...] observation before the action; for a language model the prompt's tokens, [P]."""
    action: jax.Array
    """[T, ...] what was done; for a language model the response's tokens."""
    log_prob: jax.Array
    """[T] log-probability in nats, under the policy that acted."""
    reward: jax.Array
    """[T] float."""
    discount: jax.Array
    """[T] gamma * (1 - terminated): nothing after a termination counts."""
    lambda_: jax.Array
    """[T] lambda * (1 - terminated) * (1 - truncated): no trace crosses an episode's end."""
    value: jax.Array
    """[T] estimate at the step's start."""
    next_value: jax.Array
    """[T] estimate at the step's end, read before any reset."""
    mask: jax.Array
    """[T] 1 for a real step, 0 for padding."""


class Evaluation(NamedTuple):
    """A trajectory's actions judged under given parameters: each field [T]."""

    log_prob: jax.Array
    entropy: jax.Array
    value: jax.Array
    distribution: Any = None
    """[T] the policy's distributions, of `losses.distributions`, for exact divergences."""
    extra: Any = None
    """Whatever else the actor hands to a loss of its own."""


class Actor(NamedTuple):
    """A domain: how experience is made, and how it is judged again; of policies and of action values alike.

    What an actor cannot do is None or False, and a learner that needs it raises when it is built.
    """

    init_params: Callable[[chex.PRNGKey], Params]
    """`key -> params`: the trainable parameters."""
    init_env: Callable[[chex.PRNGKey, Any], Any]
    """`(key, hparams) -> env_state`: whatever the domain carries from rollout to rollout."""
    rollout: Callable[..., tuple[Any, Any, Metrics]]
    """`(params, frozen, env_state, key, hparams, batch) -> (env_state, experience[B, T], metrics)`; the
    experience is a `Trajectory`, or `Transition`s where actions are valued."""
    evaluate: Callable[[Params, Any, Any], "Evaluation"] = None  # type: ignore[assignment]
    """`(params, frozen, Trajectory[T]) -> Evaluation[T]` for one trajectory; the caller vmaps."""
    action_values: Callable[..., jax.Array] = None  # type: ignore[assignment]
    """`(params, frozen, obs, key=None) -> [A] or [A, K]`: each action's value or value distribution, for ONE
    observation; the key draws a noisy net's noise, and None switches it off."""
    expected_values: Callable[[jax.Array], jax.Array] = lambda values: values
    """Maps the output of `action_values` to expected values [A]."""
    split_params: Callable[[Params], tuple[Params, Params]] = None  # type: ignore[assignment]
    """`params -> (policy's, critic's)`, where the two share no parameter; `policy | critic` joins them."""
    stepwise: bool = False
    """True if each step of a trajectory may be evaluated apart from the others."""
    takes_batch: bool = False
    """True if `rollout` reads `batch`."""


class Transition(NamedTuple):
    """One step as value learners keep it, with its two endings apart: only a termination ends the return."""

    obs: jax.Array
    """[...] observation before the action."""
    action: jax.Array
    """[] integer."""
    reward: jax.Array
    """[] float."""
    terminated: jax.Array
    """[] bool: nothing follows."""
    truncated: jax.Array
    """[] bool: the episode was cut, for example by a time limit, and its value goes on."""
    next_obs: jax.Array
    """[...] observation after the action, read before any reset."""


class PaddedTokens(NamedTuple):
    """Token ids filled up to one length, as prompts and responses are; each leaf [..., L].

    What is padding the mask says, never a token: many published models pad with a token that texts hold.
    """

    tokens: jax.Array
    """int32."""
    real: jax.Array
    """float, 1 for a token, 0 for padding."""


class TokenBatch(NamedTuple):
    """Sequences to predict, each leaf [B, L]."""

    tokens: jax.Array
    """int32; padding anywhere."""
    real: jax.Array | None
    """float, 1 where a token may be read, 0 for padding; None, nothing is padded."""
    predict: jax.Array
    """float, 1 where a token counts in the loss; the first of a sequence or document cannot be predicted."""
    segments: jax.Array | None = None
    """int32, the number of each token's document where several are packed into a row; None, one a row."""


class Comparisons(NamedTuple):
    """Pairs of completions of the same prompts, of which an annotator preferred one."""

    prompt: PaddedTokens
    """[B, P], padded anywhere, as completions are."""
    chosen: PaddedTokens
    """[B, C]."""
    rejected: PaddedTokens
    """[B, C]."""
    margin: jax.Array | None = None
    """[B] by how much the chosen one is better, >= 0; None, unknown."""
    flip_chance: jax.Array | None = None
    """[B] the chance that the other one is better, in [0, 0.5], for example of a consensus; None, 0."""


class Rankings(NamedTuple):
    """Up to K completions of each prompt, with the places that an annotator gave them."""

    prompt: PaddedTokens
    """[B, P]."""
    completions: PaddedTokens
    """[B, K, C]."""
    ranks: jax.Array
    """[B, K] int32, 1 for the best; equal places are ties."""
    mask: jax.Array
    """[B, K] 1 for a completion, 0 for padding, which holds a token all the same."""


class Ratings(NamedTuple):
    """Completions that were judged alone, by a score or by a label."""

    prompt: PaddedTokens
    """[B, P]."""
    completion: PaddedTokens
    """[B, C]."""
    value: jax.Array
    """[B] float: a score on any scale; as a label 1 for good, 0 for bad, or a share of the votes."""


class MDP(NamedTuple):
    """A finite Markov decision process `(S, A, T, R, gamma)`; a terminal state absorbs and pays nothing.

    The step from `s_t` by `a_t` pays `r_{t+1}` and leads to `s_{t+1}`.
    """

    transition: jax.Array
    """[S, A, S] probability of the next state; every row sums to 1."""
    reward: jax.Array
    """[S, A, S] reward of arriving."""
    gamma: jax.Array
    """[] discount, in [0, 1)."""
    start: jax.Array
    """[S] probability of starting there."""
    terminal: jax.Array
    """[S] bool."""


class Learner(NamedTuple):
    """An algorithm: two pure functions that may be jitted, vmapped, scanned and sharded."""

    init: Callable[..., "State"]
    """`(key, hparams, params=None, frozen=None) -> State`; given `params` are where training starts."""
    step: Callable[..., tuple["State", Metrics]]
    """`(state, batch=None, frozen=None) -> (State, metrics)`; without a batch the learner draws its own.
    `frozen` is what is read but never trained: the base under an adapter, the reference policy, the reward
    model. It stays beside the state, so that no loop copies, donates or saves it."""


class State(NamedTuple):
    """Everything a learner carries; saving this one pytree is enough to resume bit for bit.

    The state that `init` returns owns its buffers, so it may be donated.
    """

    params: Params
    opt_state: Any
    step: jax.Array
    """[] int32, the number of steps taken."""
    hparams: Any
    """Traced scalars (learning rate, clip, ...): one vmap runs seeds x hyperparameters in one program."""
    env_state: Any
    """The actor's state between two steps, or None."""
    key: chex.PRNGKey
