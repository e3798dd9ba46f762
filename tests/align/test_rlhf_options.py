"""Where the KL penalty is paid, pre-training that goes on, and updates that end early; one step by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_align.actors.text import Frozen, make_text_actor
from jaxrl_align.align import (
    RLHFHParams,
    combine_rewards,
    init_policy,
    likelihood_reward,
    make_rlhf_learner,
    token_reward,
)
from jaxrl_align.pretrain.lm import sample_rows
from jaxrl_align.text.generation import TextConfig
from jaxrl_align.types import PaddedTokens, TokenBatch
from tests.tiny import BIGRAM, VOCAB, disturb, favour

P, T, B, STOP = 3, 5, 8, 1
CONFIG = TextConfig(P, T, missing_stop="keep")
LM = favour(STOP, 1.0, BIGRAM)
TABLE = BIGRAM.init(jax.random.key(0))
MOVED = disturb(TABLE, jax.random.key(1), 0.5)
FROZEN = Frozen(TABLE, None)
RNG = np.random.default_rng(0)
PROMPTS = PaddedTokens(jnp.asarray(RNG.integers(2, VOCAB, (B, P)), jnp.int32), jnp.ones((B, P)))
COUNT = lambda model, tokens, mask: jnp.sum((tokens[P:] > 9) * mask[P:])
HPARAMS = jax.tree.map(jnp.float32, RLHFHParams(learning_rate=1.0, kl_coef=0.3, kl_horizon=jnp.inf))


KEY = jax.random.key(3)
POLICY = init_policy(LM, MOVED)


@pytest.fixture(scope="module")
def rollouts():
    """Return kind -> (controller, trajectory, metrics) of the moved policy against what it moved from."""

    def roll(kind):
        actor = make_text_actor(LM, COUNT, dataclasses.replace(CONFIG, kl_penalty=kind))
        start = actor.init_env(None, HPARAMS)._replace(coef=jnp.float32(0.3))
        return actor.rollout(POLICY, FROZEN, start, jax.random.split(KEY, 3)[1], HPARAMS, PROMPTS)

    return jax.jit(lambda: {kind: roll(kind) for kind in ("token", "sequence", "loss")})()


def log_probs(table, trajectory):
    """Return log pi [B, T] of the answers by NumPy from the table, padding barred."""
    before = np.concatenate([PROMPTS.tokens[:, -1:], trajectory.action[:, :-1]], 1)
    logits = np.asarray(table, np.float64)[before]
    logits[..., STOP] += 1.0
    logits[..., 0] = -np.inf
    logits -= np.log(np.exp(logits).sum(-1, keepdims=True))
    return np.take_along_axis(logits, np.asarray(trajectory.action)[..., None], 2)[..., 0]


def test_the_three_penalties_pay_the_same_answers_differently(rollouts):
    """By each token, by the answer's sum at its last token, and not at all; all log the same KL."""
    trajectory = rollouts["token"][1]
    mask = np.asarray(trajectory.mask)
    assert len(set(mask.sum(1).tolist())) > 2
    actions = np.asarray(trajectory.action)
    moved, table = (np.where(mask > 0, log_probs(x, trajectory), 0.0) for x in (MOVED, TABLE))
    ratio = moved - table
    end = np.arange(T) == mask.sum(1)[:, None] - 1
    score = ((actions > 9) * mask).sum(1, keepdims=True) * end
    expected = {"token": score - 0.3 * ratio, "sequence": score - 0.3 * ratio.sum(1, keepdims=True) * end}
    expected["loss"] = score
    for kind, (_, got, metrics) in rollouts.items():
        np.testing.assert_array_equal(got.action, actions)
        np.testing.assert_allclose(got.reward, expected[kind], atol=1e-5, err_msg=kind)
        np.testing.assert_allclose(metrics["objective/kl"], ratio.sum(1).mean(), rtol=1e-5)
        np.testing.assert_allclose(metrics["objective/rlhf_reward"], expected[kind].sum(1).mean(), rtol=1e-5)
        paid = 0.0 if kind == "loss" else -0.3 * ratio.sum(1).mean()
        np.testing.assert_allclose(metrics["objective/non_score_reward"], paid, rtol=1e-5, atol=1e-7)
    assert abs(ratio.sum(1).mean()) > 0.1


def make_step(config, **settings):
    """Return a jitted step of one plain gradient step on all answers, and its first state."""
    plain = {"epochs": 1, "minibatches": 1, "optimizer": optax.identity()} | settings
    learner = make_rlhf_learner(LM, COUNT, config, **plain)
    state = learner.init(KEY, HPARAMS, POLICY)._replace(key=KEY)
    return jax.jit(lambda state: learner.step(state, PROMPTS, FROZEN)), state


def table_gradient(step, state):
    after, metrics = step(state)
    return np.asarray(state.params["lm"] - after.params["lm"]), metrics


def test_the_kl_in_the_loss_is_k2_times_the_rollouts_beta(rollouts):
    """A step less one of beta 0 is beta times the gradient of E[(log pi - log pi_ref)^2 / 2]."""
    step, state = make_step(dataclasses.replace(CONFIG, kl_penalty="loss"))
    state = state._replace(hparams=state.hparams._replace(kl_coef=jnp.float32(99.0)))  # where beta started
    with_kl, metrics = table_gradient(step, state)
    free = state._replace(env_state=state.env_state._replace(coef=jnp.float32(0.0)))
    without, _ = table_gradient(step, free)
    trajectory = rollouts["loss"][1]
    before = jnp.concatenate([PROMPTS.tokens[:, -1:], trajectory.action[:, :-1]], 1)

    @jax.jit
    @jax.value_and_grad
    def kl(table):
        logits = LM.logits(table, jax.nn.one_hot(before, VOCAB)).at[..., 0].set(-1e9)
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), trajectory.action[..., None], 2)[..., 0]
        half = jnp.square(log_p - trajectory.obs.reference_log_prob) / 2
        return jnp.sum(half * trajectory.mask) / jnp.sum(trajectory.mask)

    value, gradient = kl(MOVED)
    np.testing.assert_allclose(metrics["loss/kl_avg"], value, rtol=1e-4)
    assert jnp.abs(gradient).max() > 1e-2
    np.testing.assert_allclose(with_kl - without, 0.3 * gradient, atol=1e-5)


ROWS = TokenBatch(
    jnp.asarray(RNG.integers(2, VOCAB, (3 * B, 6)), jnp.int32),
    jnp.asarray(np.arange(6) < RNG.integers(3, 7, (3 * B, 1)), jnp.float32),
    jnp.ones((3 * B, 6)),
)


def test_ptx_adds_the_gradient_of_the_pretraining_loss():
    """Three rows an answer; the plain mean over their tokens, by hand from the table, times its weight."""
    step, state = make_step(CONFIG, pretraining=lambda key: ROWS)
    state = state._replace(hparams=state.hparams._replace(pretraining_coef=jnp.float32(0.7)))
    mixed, metrics = table_gradient(step, state)
    off = state._replace(hparams=state.hparams._replace(pretraining_coef=jnp.float32(0.0)))
    alone, _ = table_gradient(step, off)

    def nats(table):
        logits = LM.logits(table, jax.nn.one_hot(ROWS.tokens[:, :-1], VOCAB))
        log_p = jnp.take_along_axis(jax.nn.log_softmax(logits), ROWS.tokens[:, 1:, None], 2)[..., 0]
        return -jnp.sum(log_p * ROWS.real[:, 1:]) / jnp.sum(ROWS.real[:, 1:])

    value, gradient = jax.value_and_grad(nats)(MOVED)
    np.testing.assert_allclose(metrics["loss/pretraining_avg"], value, rtol=1e-5)
    np.testing.assert_allclose(mixed - alone, 0.7 * gradient, atol=1e-5)
    assert np.abs(alone).max() > 1e-2


@pytest.mark.slow
def test_ptx_rows_go_into_the_minibatches_and_do_not_change_the_answers():
    """Every minibatch has its share of the rows, drawn anew in every step."""
    sample = sample_rows(ROWS, batch_size=2 * B)
    step, state = make_step(CONFIG, pretraining=sample, minibatches=4, epochs=2)
    plain, start = make_step(CONFIG, minibatches=4, epochs=2)
    _, with_rows = step(state)
    without = plain(start)[1]
    assert set(with_rows) - set(without) == {"loss/pretraining_avg"}
    assert without["response_length"] > 1.0
    uneven, state = make_step(CONFIG, pretraining=sample_rows(ROWS, batch_size=B + 1))
    with pytest.raises(ValueError, match="responses of a rollout must divide pre-training rows; got .*=9"):
        uneven(state)


@pytest.mark.slow
def test_target_kl_ends_the_update():
    """A tiny target leaves one gradient step of eight, an endless one all."""
    counts = []
    for target in (1e-6, 1e6):
        step, state = make_step(CONFIG, epochs=4, minibatches=2, target_kl=target)
        counts.append(float(step(state)[1]["gradient_steps"]))
    assert counts == [1.0, 8.0]


def test_the_likelihood_under_a_frozen_model_is_a_reward_of_its_own():
    """Summed over the answer's real tokens alone; its weight is the drift coefficient."""
    drift = likelihood_reward(LM, prompt_length=P)
    score = combine_rewards(
        {"own": token_reward(lambda tokens, mask: 1.0), "drift": drift}, weights={"drift": 0.5}
    )
    tokens, mask = jnp.array([4, 5, 6, 7, STOP, 0]), jnp.array([1.0, 1, 1, 1, 1, 0])
    log_p = jax.nn.log_softmax(LM.logits(TABLE, jnp.eye(VOCAB)))
    by_hand = log_p[6, 7] + log_p[7, STOP]
    scored = score({"drift": TABLE}, tokens, mask)
    np.testing.assert_allclose(scored.total, 1.0 + 0.5 * by_hand, rtol=1e-5)
    np.testing.assert_allclose(scored.parts["drift"], by_hand, rtol=1e-5)
