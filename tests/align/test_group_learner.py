"""Critic-free methods: whole updates by hand, trl's trainers on one batch, and what a step may not do."""

import functools
import json

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
HAND = {"learning_rate": 6.0, "clip": 0.1, "clip_high": 0.15, "kl_coef": 0.3, "temperature": 0.7}


def step_and_answers(learner, method, state):
    """Return what a step does, and the answers [B, G, T] it is made of: tokens, log-probabilities, mask."""
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
    """Two gradient steps on one batch, so that the second has ratios to clip; the model alone is ours."""
    method = METHODS[name]
    learner = make(method=method, epochs=2, optimizer=optax.identity())
    state = learner.init(jax.random.key(7), scalars(method, **HAND), POLICY)
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
        table = table - 6.0 * gradient
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
    assert metrics["learning_rate"] == 6.0 and metrics["clip_ratio/region_mean"] > 0


def test_whitened_returns_by_hand():
    """Rewards to go over two answers of two tokens and one, mean 0 and deviation 1 over the three."""
    reward, mask = jnp.array([[[1.0, 2.0], [-3.0, 0.0]]]), jnp.array([[[1.0, 1.0], [1.0, 0.0]]])
    to_go = np.array([3.0, 2.0, -3.0])
    expected = (to_go - to_go.mean()) / to_go.std()
    made = whitened_returns(reward, mask)
    np.testing.assert_allclose(made, [[expected[:2], [expected[2], 0.0]]], atol=1e-5)


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
    """Three GPT-2 through our Hugging Face folder, trl's own trainers, temperature 0.8."""
    if not kl and "unbiased" in name:
        pytest.skip("there is no KL to weigh")
    expected = ORIGIN["cases"][name if kl else f"{name} without kl"]
    method, kl_coef = TRL_METHODS[name], trl.BETA if kl else 0.0
    batch, mask, advantage = trl_batch(method, kl_coef)
    np.testing.assert_allclose(advantage[..., 0].ravel(), expected["advantages"], atol=1e-5)
    assert not np.asarray(advantage)[mask == 0].any()
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


SAMPLE = sample_rows(PROMPTS, batch_size=4)
LEARNER = make(sample_prompts=SAMPLE, minibatches=2, total_steps=40)
step = jax.jit(LEARNER.step)


def start(learner=LEARNER, method=GRPO, params=POLICY, key=0, **changes):
    return learner.init(jax.random.key(key), scalars(method, **changes), params)


def test_many_steps_compile_once_and_hold_no_callback_and_no_frozen_weights():
    state = start(learning_rate=1e-2)
    with jax.debug_key_reuse(True):
        for _ in range(20):
            state, metrics = step(state, None, FROZEN)
    assert state.step == 20 and step._cache_size() == 1
    assert optax.tree.get(state.opt_state, "count") == 40
    assert metrics["learning_rate"] == pytest.approx(1e-2 * 21 / 40)
    assert all(np.isfinite(value) for value in metrics.values())
    assert "val/explained_variance" not in metrics and "loss/value_avg" not in metrics
    weights = sum(x.size for x in jax.tree.leaves((state.params, state.env_state)))
    assert weights == TABLE.size and state.env_state is None
    names = primitives(jax.make_jaxpr(LEARNER.step)(state, None, FROZEN))
    assert {"scan", "dot_general", "random_bits"} <= names
    assert not [name for name in names if "callback" in name]


def test_8_vmapped_members_equal_8_single_runs():
    """Seeds, learning rates and KL coefficients side by side, on the policy that has left its reference."""
    keys = jax.random.split(jax.random.key(0), 8)
    rates, coefs = jnp.linspace(1e-3, 8e-3, 8), jnp.linspace(0.0, 0.7, 8)
    init = lambda key, rate, coef: LEARNER.init(
        key, scalars(GRPO)._replace(learning_rate=rate, kl_coef=coef), POLICY
    )
    members = jax.jit(jax.vmap(lambda *args: LEARNER.step(init(*args), None, FROZEN)))
    together, logged = members(keys, rates, coefs)
    for i in range(8):
        alone, metrics = step(init(keys[i], rates[i], coefs[i]), None, FROZEN)
        np.testing.assert_allclose(together.params["lm"][i], alone.params["lm"], atol=1e-5)
        for name, value in metrics.items():
            np.testing.assert_allclose(logged[name][i], value, atol=1e-5, rtol=1e-5, err_msg=name)
    assert jnp.ptp(together.params["lm"], 0).max() > 5e-3


@pytest.mark.parametrize(
    "name", [n if n == "grpo" else pytest.param(n, marks=pytest.mark.slow) for n in METHODS]
)
def test_every_method_raises_a_toy_reward(name):
    """It learns to write the liked token; on a single answer to a prompt where the method can."""
    method, size = METHODS[name], 1 if name == "reinforce++" else G
    config = TextConfig(P, T, missing_stop="keep")
    sample = sample_rows(PROMPTS, batch_size=16)
    learner = make_group_learner(STOPPING, count_liked, config, sample, group_size=size, method=method)
    state = learner.init(jax.random.key(0), scalars(method, learning_rate=0.3, kl_coef=0.01), POLICY)
    run = jax.jit(lambda s: jax.lax.scan(lambda s, _: learner.step(s, None, FROZEN), s, None, 60))
    _, history = run(state)
    reward = np.asarray(history["reward"])
    assert reward[:5].mean() < 1.2 and reward[-10:].mean() > 3.5, (reward[:5], reward[-10:])
    kl = np.asarray(history["objective/kl"])
    assert kl[-10:].mean() > kl[0] + 2 and np.isfinite(history["entropy"]).all()


def test_equal_scores_move_nothing_and_are_counted():
    """A constant reward, whose advantage is 0 to the last bit; the penalty alone would move the policy."""
    learner = make_group_learner(
        STOPPING, lambda *_: 0.3, TextConfig(P, T, missing_stop="keep"), group_size=3
    )
    one_step = jax.jit(learner.step)
    after, metrics = one_step(start(learner, learning_rate=1.0, kl_coef=0.0), PROMPTS, FROZEN)
    assert bits(after.params) == bits(POLICY)
    assert metrics["frac_reward_zero_std"] == 1.0 and metrics["reward"] == pytest.approx(0.3)
    after, _ = one_step(start(learner, learning_rate=1.0, kl_coef=0.1), PROMPTS, FROZEN)
    assert bits(after.params) != bits(POLICY)


def test_room_that_no_answer_needs_changes_grpo_not_and_dr_grpo_by_its_divisor():
    """Padding counts in no mean; Dr. GRPO divides by the room, whatever the answers' lengths."""
    short = favour(STOP, 4.0, BIGRAM)
    moved = {}
    for name in ("grpo", "dr_grpo"):
        for room in (T, 2 * T):
            learner = make_group_learner(
                short, count_liked, TextConfig(P, room), method=METHODS[name], optimizer=optax.identity()
            )
            after, metrics = jax.jit(learner.step)(
                start(learner, METHODS[name], learning_rate=1.0, kl_coef=0.5), PROMPTS, FROZEN
            )
            assert metrics["completions/clipped_ratio"] < 1e-6
            moved[name, room] = np.asarray(after.params["lm"] - POLICY["lm"])
    assert np.abs(moved["grpo", T]).max() > 1e-3
    np.testing.assert_allclose(moved["grpo", 2 * T], moved["grpo", T], atol=1e-6)
    np.testing.assert_allclose(moved["dr_grpo", 2 * T], moved["dr_grpo", T] / 2, atol=1e-6)


def test_without_a_kl_penalty_no_reference_is_read():
    learner = make(method=GRPO._replace(kl="none"))
    state, metrics = jax.jit(learner.step)(start(learner), PROMPTS, Frozen(None, jnp.float32(1.0)))
    assert not {"kl", "objective/kl"} & metrics.keys()
    with_zero = jax.jit(make().step)(start(make(), kl_coef=0.0), PROMPTS, FROZEN)[0]
    np.testing.assert_allclose(state.params["lm"], with_zero.params["lm"], atol=1e-6)


def test_a_controller_may_move_the_kl_coefficient():
    adapt = lambda hparams, metrics: hparams._replace(kl_coef=hparams.kl_coef * (1 + metrics["kl"]))
    state = start(LEARNER, kl_coef=0.5)
    assert step(state, None, FROZEN)[0].hparams.kl_coef == 0.5, "fixed by default"
    after, metrics = jax.jit(make(sample_prompts=SAMPLE, adapt=adapt).step)(state, None, FROZEN)
    assert after.hparams.kl_coef == pytest.approx(0.5 * (1 + float(metrics["kl"])), rel=1e-5)


@pytest.mark.slow
def test_the_base_under_an_adapter_does_not_move():
    """LoRA on the tiny transformer: only the part is carried, and all of it learns."""
    part, constants = init_lora(jax.random.key(2), PARAMS, rank=2, alpha=4)
    frozen = Frozen(overlay(PARAMS, constants), jnp.float32(1.0))
    before = bits(frozen)
    learner = make_group_learner(LM, count_liked, CONFIG, group_size=2)
    one_step = jax.jit(learner.step)
    state = start(learner, params={"lm": disturb(part, jax.random.key(3), 0.1)}, learning_rate=0.1)
    after, metrics = one_step(state, PROMPTS, frozen)
    assert bits(frozen) == before and jax.tree.structure(after.params["lm"]) == jax.tree.structure(part)
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), after.params, state.params)
    assert all(jax.tree.leaves(moved)) and abs(metrics["objective/kl"]) > 1e-3
