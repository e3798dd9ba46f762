"""Rounds: what is collected, what the reward model is fitted to, and what the policy is trained on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_align.actors import Frozen
from jaxrl_align.align import (
    RewardHParams,
    RewardModel,
    RLHFHParams,
    RoundsHParams,
    init_policy,
    make_rlhf_learner,
    make_rounds_learner,
    normalise_scores,
    score,
    score_margins,
)
from jaxrl_align.align.rounds import fit_reward
from jaxrl_align.nets.transformer import init_scalar_head
from jaxrl_align.pretrain.lm import sample_rows
from jaxrl_align.text.generation import TextConfig
from jaxrl_align.types import PaddedTokens
from tests.tiny import BIGRAM, VOCAB, favour

P, T, B, N, STOP = 2, 4, 8, 32, 1
CONFIG = TextConfig(P, T, missing_stop="keep")
LM = favour(STOP, 0.5, BIGRAM)
TABLE = BIGRAM.init(jax.random.key(0))
FROZEN = Frozen(TABLE, jnp.float32(1.0))
RNG = np.random.default_rng(0)
PROMPTS = PaddedTokens(jnp.asarray(RNG.integers(2, VOCAB, (B, P)), jnp.int32), jnp.ones((B, P)))
SAMPLE = sample_rows(PROMPTS, batch_size=B)
HPARAMS = RoundsHParams(1e-6, RewardHParams(0.3), RLHFHParams(0.05, kl_coef=0.01, kl_horizon=jnp.inf))


def last_token(weight, tokens, mask):
    """The gold reward: the last token's number, which a bigram's reward model can read."""
    last = jnp.max(jnp.where(mask > 0, jnp.arange(P + T), 0))
    return weight * tokens[last] / VOCAB


make = functools.partial(
    make_rounds_learner, LM, last_token, CONFIG, SAMPLE, comparisons=N, epochs=1, minibatches=1
)
LEARNER = make(rounds=3, reward_steps=30, policy_steps=4, policy_optimizer=optax.identity())
START = {"policy": init_policy(LM, TABLE), "reward": {"head": init_scalar_head(jax.random.key(1), VOCAB)}}


@pytest.fixture(scope="module")
def states():
    """States before and after each of three rounds, and the metrics."""
    step = jax.jit(LEARNER.step)
    states, history = [LEARNER.init(jax.random.key(0), HPARAMS, START)], []
    for _ in range(3):
        state, metrics = step(states[-1], None, FROZEN)
        states.append(state)
        history.append(jax.tree.map(float, metrics))
    assert step._cache_size() == 1
    return states, history


def rows_of(state, part):
    return jax.tree.map(lambda x: x[part], state.env_state.rows)


def worth(text):
    """Return the gold reward of completions by NumPy."""
    tokens, count = np.asarray(text.tokens), np.asarray(text.real).sum(-1).astype(int)
    return np.take_along_axis(tokens, count[:, None] - 1, 1)[:, 0] / VOCAB


def test_each_round_adds_its_comparisons_and_keeps_the_others(states):
    """The better answer is chosen by exact annotators; rooms of later rounds are empty."""
    for i, state in enumerate(states[0]):
        chosen = rows_of(state, slice(0, i * N)).chosen
        assert (np.asarray(chosen.real).sum(1) > 0).all()
        assert not np.asarray(rows_of(state, slice(i * N, None)).chosen.real).any()
        if i:
            before = rows_of(states[0][i - 1], slice(0, (i - 1) * N))
            jax.tree.map(np.testing.assert_array_equal, rows_of(state, slice(0, (i - 1) * N)), before)
    rows = rows_of(states[0][3], slice(0, 3 * N))
    chosen, rejected = worth(rows.chosen), worth(rows.rejected)
    assert (chosen >= rejected).all() and (chosen > rejected).mean() > 0.5
    known = {tuple(row) for row in PROMPTS.tokens.tolist()}
    assert {tuple(row) for row in rows.prompt.tokens.tolist()} <= known
    for i in range(3):
        part = slice(i * N, (i + 1) * N)
        np.testing.assert_allclose(
            states[1][i]["gold"], (chosen[part].mean() + rejected[part].mean()) / 2, rtol=1e-5
        )


def model_of(state, scaled=True):
    params = {"lm": TABLE} | state.params["reward"]
    return RewardModel(params, state.env_state.gain, state.env_state.bias) if scaled else RewardModel(params)


@pytest.mark.parametrize("i", [0, 1, 2])
def test_the_reward_model_learns_from_all_rounds_and_is_scaled_by_the_newest(states, i):
    """Its accuracy before and after, and the scale that gives the newest answers mean 0 and deviation 1."""
    before, after = states[0][i : i + 2]
    new = rows_of(after, slice(i * N, (i + 1) * N))
    for state, name in ((before, "before"), (after, "after")):
        share = (score_margins(LM, model_of(state), new) > 0).mean()
        np.testing.assert_allclose(states[1][i][f"reward_model/accuracy_{name}"], share, rtol=1e-6)
    every = rows_of(after, slice(0, (i + 1) * N))
    differ = worth(every.chosen) > worth(every.rejected)
    right = np.asarray(score_margins(LM, model_of(after), every) > 0)[differ]
    assert right.mean() > 0.85, "one that also saw the empty room, or one round alone, is fitted less well"
    twice = jax.tree.map(lambda *x: jnp.concatenate(x), (new.prompt, new.chosen), (new.prompt, new.rejected))
    model = normalise_scores(LM, model_of(after, False), *twice)
    np.testing.assert_allclose(after.env_state.gain, model.gain, rtol=1e-4)
    np.testing.assert_allclose(after.env_state.bias, model.bias, rtol=1e-4, atol=1e-5)


def test_the_room_of_later_rounds_is_never_learnt_from(states):
    """The first round's fit is the same with room for two more rounds and without."""
    settings, base = LEARNER.step.args[0], {"lm": TABLE, "head": START["reward"]["head"]}
    fit = lambda rows: fit_reward(settings, START["reward"], base, rows, 0, jax.random.key(7), HPARAMS.reward)
    fits = [jax.jit(fit)(rows_of(states[0][1], part))[0] for part in (slice(None), slice(0, N))]
    jax.tree.map(np.testing.assert_array_equal, *fits)
    assert jnp.abs(fits[0]["head"]["kernel"] - START["reward"]["head"]["kernel"]).max() > 0.1


def test_a_round_too_many_learns_from_the_room_there_is(states):
    """It takes the place of the last one, and no row is drawn from beyond it."""
    settings, rows = LEARNER.step.args[0], rows_of(states[0][3], slice(None))
    base = {"lm": TABLE, "head": START["reward"]["head"]}
    fit = lambda place: fit_reward(
        settings, START["reward"], base, rows, place, jax.random.key(7), HPARAMS.reward
    )
    last, beyond = jax.jit(jax.vmap(lambda place: fit(place)[0]))(jnp.array([2 * N, 3 * N]))["head"]["kernel"]
    np.testing.assert_array_equal(last, beyond)


def test_the_policy_is_trained_on_the_newest_reward_model(states):
    """The same four steps of RLHF from where the policy stood, on the round's own reward model."""
    before, after = states[0][1:3]
    settings = {"epochs": 1, "minibatches": 1, "total_steps": 4, "optimizer": optax.identity()}
    learner = make_rlhf_learner(LM, functools.partial(score, LM), CONFIG, SAMPLE, **settings)
    key = jax.random.split(before.key, 4)[3]

    @jax.jit
    def train(params, model):
        state = learner.init(key, HPARAMS.policy, params)
        for _ in range(4):
            state, metrics = learner.step(state, None, Frozen(TABLE, model))
        return state.params, metrics

    params, metrics = train(before.params["policy"], model_of(after))
    close = functools.partial(np.testing.assert_allclose, atol=1e-5)
    jax.tree.map(close, params, after.params["policy"])
    close(states[1][1]["objective/scores"], metrics["objective/scores"])
    moved = jnp.abs(params["lm"] - before.params["policy"]["lm"]).max()
    assert moved > 1e-3
    stale = train(before.params["policy"], model_of(before))[0]
    assert jnp.abs(stale["lm"] - params["lm"]).max() > 1e-4, "the old reward model trains another policy"


@pytest.mark.parametrize("writer", ["policy", "reference"])
def test_the_writers_answers_are_compared(writer):
    """Of two policies that differ, the rows differ, or not where the reference writes."""
    learner = make(rounds=1, reward_steps=1, policy_steps=1, writer=writer)
    state = learner.init(jax.random.key(0), HPARAMS, START)
    policy = {**START["policy"], "lm": TABLE.at[:, 3].add(9.0)}
    other = state._replace(params={**state.params, "policy": policy})
    step = jax.jit(lambda state: learner.step(state, None, FROZEN)[0].env_state.rows.chosen.tokens)
    mine, theirs = step(state), step(other)
    assert (mine == theirs).all() == (writer == "reference")
    assert ((theirs == 3).mean() > 0.9) == (writer == "policy")


@pytest.mark.slow
def test_rounds_raise_the_gold_reward_that_the_policy_never_sees():
    """Over 8 seeds at once; noisy annotators."""
    learner = make(rounds=4, reward_steps=40, policy_steps=20)
    hparams = RoundsHParams(0.2, RewardHParams(0.1), RLHFHParams(0.1, kl_coef=0.01, kl_horizon=jnp.inf))

    @jax.jit
    @jax.vmap
    def run(key):
        state = learner.init(key, hparams, START)
        return jax.lax.scan(lambda s, _: learner.step(s, None, FROZEN), state, None, 4)[1]["gold"]

    gold = np.asarray(run(jax.random.split(jax.random.key(0), 8)))
    gain = gold[:, -1] - gold[:, 0]
    assert (gain > 0).all() and gain.mean() > 0.07, gold


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"comparisons": 12}, "prompts of a sample must divide comparisons of a round; got .*=12"),
        ({"rounds": 0}, "rounds must be"),
        ({"reward_steps": 0}, "reward_steps must be"),
        ({"writer": "critic"}, "writer must be policy or reference; got 'critic'"),
    ],
)
def test_rounds_that_cannot_be_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**{"rounds": 2} | arguments)


def test_a_round_draws_its_own_prompts_and_needs_a_base():
    state = LEARNER.init(jax.random.key(0), HPARAMS, START)
    with pytest.raises(ValueError, match="a round draws its own prompts"):
        LEARNER.step(state, PROMPTS, FROZEN)
    with pytest.raises(ValueError, match="pass step\\(..., frozen=Frozen"):
        LEARNER.step(state)
