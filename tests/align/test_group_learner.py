"""Critic-free methods: whole updates by hand, trl's trainers on the same batch, and what a step may not do."""

import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_align.actors.answer_groups import GroupObservation, make_group_actor
from jaxrl_align.actors.text import Frozen
from jaxrl_align.align import (
    DR_GRPO,
    GRPO,
    GSPO,
    REINFORCE_PLUS_PLUS,
    RLOO,
    by_answer,
    group_loss,
    make_group_learner,
    whitened_returns,
)
from jaxrl_align.nets import init_lora, make_transformer, overlay
from jaxrl_align.pretrain.lm import sample_rows
from jaxrl_align.rl.actor_critic import Batch
from jaxrl_align.text.generation import TextConfig
from jaxrl_align.types import Evaluation, PaddedTokens, Trajectory
from tests.align import make_trl_group_fixtures as trl
from tests.tiny import BIGRAM, LM, PARAMS, VOCAB, bits, disturb, favour, primitives

P, T, B, G, STOP, LIKED = 4, 6, 6, 4, 1, 3
CONFIG = TextConfig(P, T, missing_stop="subtract")
STOPPING = favour(STOP, 1.5, BIGRAM)
TABLE = BIGRAM.init(jax.random.key(0))
POLICY = {"lm": disturb(TABLE, jax.random.key(1), 0.3)}
RNG = np.random.default_rng(0)
REAL = np.arange(P) >= RNG.integers(0, P, (B, 1))
TOKENS = np.where(REAL, RNG.integers(2, VOCAB, (B, P)), 0)
PROMPTS = PaddedTokens(jnp.asarray(TOKENS, jnp.int32), jnp.asarray(REAL, jnp.float32))
FROZEN = Frozen(TABLE, jnp.float32(1.0))
METHODS = {"grpo": GRPO, "dr_grpo": DR_GRPO, "gspo": GSPO, "rloo": RLOO, "reinforce++": REINFORCE_PLUS_PLUS}


def count_liked(weight, tokens, mask):
    """Pay for every liked token of the answer, and a little for its length."""
    return weight * jnp.sum((tokens[P:] == LIKED) * mask[P:] + 0.1 * mask[P:])


def scalars(method, **changes):
    return jax.tree.map(jnp.float32, method.hparams._replace(**changes))


make = functools.partial(make_group_learner, STOPPING, count_liked, CONFIG, group_size=G)
HAND = {"learning_rate": 2.0, "clip": 0.1, "clip_high": 0.15, "kl_coef": 0.3, "temperature": 0.7}


def step_and_answers(learner, method, state):
    """Return what a step does, and the answers [B, G, T] that it is made of: tokens, log-probabilities, mask."""
    actor = make_group_actor(STOPPING, count_liked, CONFIG, group_size=G, penalty=method.kl)

    @jax.jit
    def both(state):
        key = jax.random.split(state.key, 3)[1]
        trajectory = actor.rollout(state.params, FROZEN, None, key, state.hparams, PROMPTS)[1]
        return learner.step(state, PROMPTS, FROZEN), trajectory

    after, made = both(state)
    return after, [np.asarray(x).reshape(B, G, T) for x in (made.action, made.log_prob, made.mask)]


def log_probs(table, tokens, temperature):
    """Return log pi of answers [B, G, T] by plain indexing: each token after the one before; 0 is barred."""
    last = jnp.broadcast_to(PROMPTS.tokens[:, None, -1:], (*tokens.shape[:2], 1))
    before = jnp.concatenate([last, tokens[..., :-1]], -1)
    logits = (table[before] + 1.5 * jax.nn.one_hot(STOP, VOCAB)[None, None, None]) / temperature
    logits = jnp.where(jnp.arange(VOCAB)[None, None, None] == 0, -1e9, logits)
    logits = logits - jax.nn.logsumexp(logits, -1, keepdims=True)
    return jnp.take_along_axis(logits, jnp.asarray(tokens)[..., None], -1)[..., 0]


def earn(tokens, mask):
    """Return what the answers [B, G, T] are paid: 1 is taken from those that did not stop."""
    raw = ((tokens == LIKED) * mask + 0.1 * mask).sum(-1)
    return raw - 1.0 * ~((tokens == STOP) & (mask > 0)).any(-1)


def advantages_by_hand(name, score, kl, mask):
    """Return advantages [B, G, T] in NumPy; `kl` [B, G, T] are the rewards' log-ratios, already weighted."""
    centred = score - score.mean(1, keepdims=True)
    if name in ("grpo", "gspo"):
        return (centred / (score.std(1, ddof=1, keepdims=True) + 1e-4))[..., None] * mask
    if name == "dr_grpo":
        return centred[..., None] * mask
    if name == "rloo":
        total = score - (kl * mask).sum(-1)
        others = (total.sum(1, keepdims=True) - total) / (G - 1)
        return (total - others)[..., None] * mask
    to_go = score[..., None] - np.cumsum((kl * mask)[..., ::-1], -1)[..., ::-1]
    real = to_go[mask > 0]
    return np.where(mask > 0, (to_go - real.mean()) / np.sqrt(real.var() + 1e-8), 0.0)


def loss_by_hand(name, new, old, reference, advantage, mask, kl_coef=0.3, clip=0.1, clip_high=0.15):
    """Return the objective of all answers [B, G, T], written out."""
    length = mask.sum(-1)
    mean = lambda x: (x * mask).sum(-1) / (T if name == "dr_grpo" else length)
    if name in ("gspo", "rloo"):
        log_ratio = ((new - old) * mask).sum(-1) / (length if name == "gspo" else 1.0)
        advantage, average = advantage[..., 0], lambda x: x
    else:
        log_ratio, average = new - old, mean
    ratio = jnp.exp(log_ratio)
    held = jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip_high) * advantage)
    loss = -average(held).mean()
    if name in ("rloo", "reinforce++"):
        return loss
    log_r = reference - new
    return loss + kl_coef * mean(jnp.exp(log_r) - log_r - 1).mean()


@pytest.mark.parametrize(
    "name", [n if n in ("grpo", "rloo") else pytest.param(n, marks=pytest.mark.slow) for n in METHODS]
)
def test_a_whole_step_by_hand(name):
    """Two gradient steps on one batch, so that the second has ratios to clip; only the model is the library's."""
    method = METHODS[name]
    learner = make(method=method, epochs=2, optimizer=optax.identity())
    state = learner.init(jax.random.key(3), scalars(method, **HAND), POLICY)
    (after, metrics), (tokens, old, mask) = step_and_answers(learner, method, state)
    assert 0.1 < mask.mean() < 0.9 and len(set(mask.sum(-1).ravel().tolist())) > 3
    table = POLICY["lm"]
    np.testing.assert_allclose(log_probs(table, tokens, 0.7) * mask, old, atol=1e-5)
    reference = np.asarray(log_probs(TABLE, tokens, 0.7))
    score = earn(tokens, mask)
    advantage = advantages_by_hand(name, score, 0.3 * (old - reference), mask)

    @jax.jit
    @jax.value_and_grad
    def objective(table):
        new = log_probs(table, tokens, 0.7)
        return loss_by_hand(name, new, old, reference, advantage, mask)

    for _ in range(2):
        value, gradient = objective(table)
        table = table - 2.0 * gradient
    assert jnp.abs(table - POLICY["lm"]).max() > 0.01
    np.testing.assert_allclose(after.params["lm"], table, atol=1e-5)
    assert metrics["reward"] == pytest.approx(score.mean(), abs=1e-5)
    assert metrics["reward_std"] == pytest.approx(score.std(), abs=1e-5)
    assert metrics["frac_reward_zero_std"] == pytest.approx((np.ptp(score, 1) == 0).mean())
    assert metrics["completions/mean_length"] == pytest.approx(mask.sum(-1).mean())
    stopped = ((tokens == STOP) & (mask > 0)).any(-1)
    assert metrics["completions/clipped_ratio"] == pytest.approx(1 - stopped.mean(), abs=1e-6)
    drift = ((old - reference) * mask).sum(-1)
    assert metrics["objective/kl"] == pytest.approx(drift.mean(), abs=1e-4)
    assert metrics["learning_rate"] == 2.0 and metrics["clip_ratio/region_mean"] > 0


ORIGIN = json.loads(trl.FIXTURE.read_text(encoding="utf-8"))
TRL_LM = make_transformer(trl.CONFIG)
TRL_METHODS = {
    "grpo": GRPO,
    "grpo, kl unbiased": GRPO._replace(kl="unbiased"),
    "dr_grpo": DR_GRPO,
    "dr_grpo, kl unbiased": DR_GRPO._replace(kl="unbiased"),
    "gspo": GSPO,
    "rloo": RLOO,
}


@functools.cache
def trl_evaluations():
    """Return trl's batch as a trajectory without rewards, and how the three models judge it."""
    data = trl.draw_batch()
    real = np.array([[0] * (trl.PROMPT - len(p)) + [1] * len(p) for p in data["prompts"]], np.float32)
    tokens = np.array([[0] * (trl.PROMPT - len(p)) + p for p in data["prompts"]], np.int32)
    fill = lambda x: (x + [0] * trl.ANSWER)[: trl.ANSWER]
    action = np.array([[fill(a) for a in group] for group in data["answers"]], np.int32)
    mask = np.array([[fill([1] * len(a)) for a in group] for group in data["answers"]], np.float32)
    flat = lambda x: jnp.asarray(x.reshape(len(tokens), -1))
    prompt = PaddedTokens(jnp.asarray(tokens), jnp.asarray(real))
    obs = GroupObservation(prompt, jnp.full(len(tokens), trl.TEMPERATURE), None)
    none = jnp.zeros((len(tokens), trl.GROUP * trl.ANSWER))
    trajectory = Trajectory(obs, flat(action), none, none, none, none, none, none, flat(mask))
    # trl samples its padding token too; with the stop token as padding ours bars none.
    config = TextConfig(trl.PROMPT, trl.ANSWER, stop_token=trl.STOP, pad_token=trl.STOP)
    actor = make_group_actor(TRL_LM, count_liked, config, group_size=trl.GROUP)
    judge = jax.jit(jax.vmap(actor.evaluate, (None, None, 0)))
    judged = {
        name: judge({"lm": params}, Frozen(None, None), trajectory)
        for name, params in trl.draw_models().items()
    }
    return trajectory, judged, np.array(data["scores"], np.float32), actor


def trl_batch(method, kl_coef):
    """Return the batch of one method, with its rewards and advantages."""
    trajectory, judged, scores, _ = trl_evaluations()
    old, reference = judged["behaviour"].log_prob, judged["reference"].log_prob
    grouped = lambda x: np.asarray(x).reshape(*scores.shape, trl.ANSWER)
    mask = grouped(trajectory.mask)
    last = mask * (1 - np.append(mask[..., 1:], np.zeros((*scores.shape, 1)), -1))
    reward = scores[..., None] * last
    if method.kl == "reward":
        reward = reward - kl_coef * grouped(old - reference) * mask
    advantage = jax.jit(method.advantages)(reward.astype(np.float32), mask)
    obs = trajectory.obs._replace(reference_log_prob=reference)
    flat = advantage.reshape(trajectory.mask.shape)
    return Batch(trajectory._replace(obs=obs, log_prob=old), flat, jnp.zeros_like(flat)), mask, advantage


@pytest.mark.parametrize("kl", [True, False], ids=["kl", "no kl"])
@pytest.mark.parametrize("name", TRL_METHODS)
def test_advantages_losses_and_metrics_are_trls(name, kl):
    """Three GPT-2 through our Hugging Face folder, trl's own trainers, temperature 0.8, no token of padding."""
    if not kl and "unbiased" in name:
        pytest.skip("there is no KL to weigh")
    expected = ORIGIN["cases"][name if kl else f"{name} without kl"]
    method, kl_coef = TRL_METHODS[name], trl.BETA if kl else 0.0
    batch, mask, advantage = trl_batch(method, kl_coef)
    np.testing.assert_allclose(advantage[..., 0].ravel(), expected["advantages"], atol=1e-5)
    clips = {"clip": trl.CLIPS["epsilon"], "clip_high": trl.CLIPS["epsilon_high"]}
    hparams = scalars(method, kl_coef=kl_coef, **clips)
    judged = trl_evaluations()[1]["policy"]
    loss, metrics = jax.jit(lambda e, b: group_loss(method, trl.GROUP, e, b, hparams))(judged, batch)
    assert loss == pytest.approx(expected["loss"], abs=1e-5)
    theirs = expected["metrics"]
    for ours in ("entropy", "clip_ratio/low_mean", "clip_ratio/high_mean", "clip_ratio/region_mean"):
        assert metrics[ours] == pytest.approx(theirs[ours], abs=2e-5), ours
    if kl:
        assert metrics["kl"] == pytest.approx(theirs["kl"], abs=2e-5)


@pytest.mark.parametrize("name", ["grpo", "rloo"])
def test_the_gradient_of_a_batch_is_trls(name):
    """Its norm, over all of GPT-2's weights."""
    method, judge = TRL_METHODS[name], trl_evaluations()[3].evaluate
    batch, _, _ = trl_batch(method, trl.BETA)
    hparams = scalars(method, kl_coef=trl.BETA, clip=0.1, clip_high=0.25)

    def loss(params):
        judged = jax.vmap(judge, (None, None, 0))({"lm": params}, Frozen(None, None), batch.trajectory)
        return group_loss(method, trl.GROUP, judged, batch, hparams)[0]

    norm = optax.tree.norm(jax.jit(jax.grad(loss))(trl.draw_models()["policy"]))
    assert norm == pytest.approx(ORIGIN["cases"][name]["gradient_norm"], rel=1e-4)


def test_the_fixture_says_where_it_is_from():
    assert ORIGIN["origin"].startswith("trl 1.16") and set(ORIGIN["cases"]) == set(trl.CASES)


def test_k3_times_the_ratio_has_the_gradient_of_the_kl_and_k3_alone_that_of_the_reversed_one():
    """Exact expectations over 5 answers of one token, each weighted by its probability."""
    start, reference = (jax.random.normal(jax.random.key(i), (5,)) for i in (0, 1))
    log_ref, chance = jax.nn.log_softmax(reference), jax.nn.softmax(start)
    one = jnp.ones((5, 1))
    obs = GroupObservation(PaddedTokens(one, one), one[:, 0], log_ref[:, None])
    old = jax.nn.log_softmax(start)[:, None]
    trajectory = Trajectory(obs, one, old, one, one, one, one, one, one)

    def expected_penalty(logits, kl):
        # Each answer weighs as often as it is drawn: 5 p times its share of the mean over 5 answers.
        method = GRPO._replace(kl=kl, average=lambda x, mask: x[0])
        judged = Evaluation(jax.nn.log_softmax(logits)[:, None], one, one)
        pay = lambda row: group_loss(method, 1, *row, scalars(GRPO, kl_coef=1.0))[0]
        rows = jax.tree.map(lambda x: x[:, None], (judged, Batch(trajectory, 0 * one, 0 * one)))
        return jnp.sum(chance * jax.vmap(pay)(rows))

    exact = lambda logits: jnp.sum(jax.nn.softmax(logits) * (jax.nn.log_softmax(logits) - log_ref))
    reversed_ = lambda logits: jnp.sum(jnp.exp(log_ref) * (log_ref - jax.nn.log_softmax(logits)))
    gradient = lambda f, *args: jax.grad(f)(start, *args)
    np.testing.assert_allclose(gradient(expected_penalty, "unbiased"), gradient(exact), atol=1e-6)
    np.testing.assert_allclose(gradient(expected_penalty, "loss"), gradient(reversed_), atol=1e-6)
