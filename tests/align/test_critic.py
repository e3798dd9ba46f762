"""The critic that starts as the reward model: values by prefix, two trunks, and what trains what."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import nets
from jaxrl_align.actors.text import Frozen, make_text_actor, prefix_values
from jaxrl_align.align import (
    RewardModel,
    RLHFHParams,
    init_policy,
    make_rlhf_learner,
    model_reward,
    score,
)
from jaxrl_align.nets.transformer import init_scalar_head
from jaxrl_align.pretrain.lm import sample_rows
from jaxrl_align.rl.actor_critic import Batch, explained_variance, gae_advantages, ppo_loss
from jaxrl_align.runtime import checkpoint
from jaxrl_align.text.generation import TextConfig
from jaxrl_align.types import PaddedTokens
from tests.tiny import BIGRAM, LM, PARAMS, VOCAB, bits, disturb, favour

P, T, B, STOP = 4, 6, 16, 1
CONFIG = TextConfig(P, T, missing_stop="keep")
STOPPING = favour(STOP, 1.0, BIGRAM)
TABLE = BIGRAM.init(jax.random.key(0))
RNG = np.random.default_rng(0)
REAL = np.arange(P) >= RNG.integers(0, P - 1, (B, 1))
TOKENS = np.where(REAL, RNG.integers(2, VOCAB, (B, P)), 0)
PROMPTS = PaddedTokens(jnp.asarray(TOKENS, jnp.int32), jnp.asarray(REAL, jnp.float32))


def count_tokens(params, tokens, mask=None, *_, **__):
    """Embed every token and sum those up to each position: a reward that adds up over the tokens."""
    return jnp.cumsum(params[tokens] * mask[:, None], 0), None


COUNTING = BIGRAM._replace(encode=count_tokens, init=lambda key: jnp.eye(VOCAB))
HEAD = {"kernel": jnp.asarray(RNG.normal(size=VOCAB), jnp.float32), "bias": jnp.float32(0.3)}
MODEL = RewardModel({"lm": jnp.eye(VOCAB), "head": HEAD}, jnp.float32(2.0), jnp.float32(-0.5))
"""Twice the tokens' worths and 0.3, less 0.5: what a prefix has earned predicts what the answer will."""

ACTOR = make_text_actor(STOPPING, model_reward(COUNTING), CONFIG, critic=COUNTING)
SEPARATE = init_policy(BIGRAM, TABLE, MODEL, trunk="separate")
ZERO = SEPARATE | {"critic": {"lm": jnp.eye(VOCAB), "value": init_scalar_head(None, VOCAB)}}
FROZEN = Frozen(TABLE, MODEL)
HPARAMS = jax.tree.map(jnp.float32, RLHFHParams(kl_coef=0.0, gae_lambda=1.0))


def roll(actor, params, frozen, hparams=HPARAMS):
    """Return the trajectory of one rollout."""
    args = actor.init_env(None, hparams), jax.random.key(1), hparams, PROMPTS
    return jax.jit(lambda params, frozen: actor.rollout(params, frozen, *args)[1])(params, frozen)


roll_counting = functools.cache(lambda: roll(ACTOR, SEPARATE, FROZEN))


def score_prefixes(lm, model, trajectory):
    """Return the reward model's score of every truncated text (x, y_<t), [B, T]."""
    whole = np.concatenate([PROMPTS.tokens, trajectory.action], 1)
    real = np.concatenate([PROMPTS.real, trajectory.mask], 1)
    kept = np.arange(P + T) < P + np.arange(T)[:, None]
    texts, masks = np.where(kept, whole[:, None], 0), np.where(kept, real[:, None], 0.0)
    read = jax.jit(jax.vmap(jax.vmap(lambda t, m: score(lm, model, t, m))))
    return np.asarray(read(jnp.asarray(texts, jnp.int32), jnp.asarray(masks, jnp.float32)))


ON_LM = RewardModel(
    {"lm": PARAMS, "head": disturb(init_scalar_head(None, 16), jax.random.key(4), 1.0)}, 1.7, 0.4
)
ON_TABLE = RewardModel({"lm": TABLE, "head": HEAD}, 1.7, 0.4)


@pytest.mark.parametrize(
    ("lm", "model", "trunk"),
    [(COUNTING, MODEL, "separate"), (LM, ON_LM, "separate"), (BIGRAM, ON_TABLE, "shared")],
    ids=["counting", "transformer", "shared"],
)
def test_at_step_0_a_value_is_the_reward_models_score_of_the_prefix(lm, model, trunk):
    """Gain and bias included, one position before the token it judges; when acting and when judged again."""
    params = init_policy(BIGRAM, TABLE, model, trunk=trunk)
    actor = make_text_actor(STOPPING, model_reward(lm), CONFIG, critic=lm if trunk == "separate" else None)
    frozen = Frozen(TABLE, model)
    trajectory = roll(actor, params, frozen)
    expected, mask = score_prefixes(lm, model, trajectory), np.asarray(trajectory.mask)
    assert expected[mask > 0].std() > 0.3 and 0 < mask.mean() < 1
    np.testing.assert_allclose(trajectory.value, expected * mask, atol=1e-4)
    following = np.append(np.asarray(trajectory.value)[:, 1:], np.zeros((B, 1)), 1)
    np.testing.assert_array_equal(trajectory.next_value, following)
    again = jax.jit(jax.vmap(actor.evaluate, (None, None, 0)))(params, frozen, trajectory).value
    np.testing.assert_allclose(again * mask, expected * mask, atol=1e-4)


def test_the_policy_answers_alike_whatever_its_critic():
    """Log-probabilities, rewards and discounts are those of a policy without a critic's trunk."""
    plain = make_text_actor(STOPPING, model_reward(COUNTING), CONFIG)
    without, with_critic = roll(plain, init_policy(BIGRAM, TABLE), FROZEN), roll_counting()
    for name in ("action", "log_prob", "reward", "discount", "lambda_", "mask"):
        np.testing.assert_array_equal(getattr(without, name), getattr(with_critic, name), err_msg=name)
    assert not without.value.any() and with_critic.value.any()
    judge = lambda actor, params: jax.jit(jax.vmap(actor.evaluate, (None, None, 0)))(params, FROZEN, without)
    one, other = judge(plain, init_policy(BIGRAM, TABLE)), judge(ACTOR, SEPARATE)
    np.testing.assert_array_equal(one.log_prob, other.log_prob)
    np.testing.assert_array_equal(one.entropy, other.entropy)


def batch_of(trajectory):
    return Batch(trajectory, *gae_advantages(trajectory))


def test_the_reward_model_explains_more_than_a_zero_critic():
    """By NumPy against the reward that followed (lambda 1); a constant explains nothing."""
    trajectory, zero = roll_counting(), roll(ACTOR, ZERO, FROZEN)
    np.testing.assert_array_equal(trajectory.action, zero.action)
    real = np.asarray(trajectory.mask) > 0
    to_go = np.cumsum(np.asarray(trajectory.reward, np.float64)[:, ::-1], 1)[:, ::-1][real]
    left = to_go - np.asarray(trajectory.value, np.float64)[real]
    explained = explained_variance(batch_of(trajectory))
    np.testing.assert_allclose(explained, 1 - left.var() / to_go.var(), atol=1e-4)
    assert explained > 0.3
    np.testing.assert_allclose(explained_variance(batch_of(zero)), 0.0, atol=1e-6)


def test_h6_a_critic_that_knows_the_answer_removes_the_policys_gradient():
    """As printed, each value is the whole answer's score: no advantage is left. By prefix some is."""
    trajectory = roll_counting()
    mask = trajectory.mask
    whole = trajectory.reward.sum(1, keepdims=True) * mask
    after = jnp.pad(whole[:, 1:], ((0, 0), (0, 1)))
    printed = trajectory._replace(value=whole, next_value=after)

    @jax.jit
    def gradient(trajectory):
        def loss(params):
            judged = jax.vmap(ACTOR.evaluate, (None, None, 0))(params, FROZEN, trajectory)
            return ppo_loss(judged, batch_of(trajectory), HPARAMS)[1]["loss/policy_avg"]

        return jax.grad(loss)(SEPARATE)["lm"]

    assert whole.std() > 0.5
    np.testing.assert_array_equal(gradient(printed), 0.0)
    assert jnp.abs(gradient(trajectory)).max() > 1e-2


def test_each_loss_reaches_its_own_trunk_alone():
    """The value's gradient ends in the critic, the policy's in the policy."""
    batch = batch_of(roll_counting())

    def gradients(actor, params, name):
        def loss(params):
            judged = jax.vmap(actor.evaluate, (None, None, 0))(params, FROZEN, batch.trajectory)
            return ppo_loss(judged, batch, HPARAMS)[1][name]

        return jax.tree.map(lambda x: float(jnp.abs(x).max()), jax.jit(jax.grad(loss))(params))

    value, policy = (gradients(ACTOR, SEPARATE, f"loss/{name}_avg") for name in ("value", "policy"))
    assert value["lm"] == 0.0 and value["critic"]["lm"] > 1e-3 and value["critic"]["value"]["kernel"] > 1e-3
    assert policy["lm"] > 1e-3 and not any(jax.tree.leaves(policy["critic"]))


def test_the_two_parts_share_no_parameter_and_join_again():
    policy, critic = ACTOR.split_params(SEPARATE)
    assert (policy | critic).keys() == SEPARATE.keys() and not policy.keys() & critic.keys()
    assert bits(policy | critic) == bits(SEPARATE)
    assert bits(policy) == bits(TABLE)
    assert make_text_actor(STOPPING, model_reward(COUNTING), CONFIG).split_params is None


def test_where_a_critic_starts():
    """At zero where no reward model is given, its trunk the policy's; drawn parameters have the same form."""
    form = jax.tree.structure
    zero = init_policy(BIGRAM, TABLE, trunk="separate")
    empty = lambda params: not any(bool(x.any()) for x in jax.tree.leaves(params["critic"]["value"]))
    assert bits(zero["critic"]["lm"]) == bits(TABLE) and empty(zero)
    drawn = ACTOR.init_params(jax.random.key(0))
    assert form(drawn) == form(SEPARATE) and jnp.abs(drawn["lm"]).max() > 0
    assert empty(drawn)
    assert bits(SEPARATE["critic"]["lm"]) == bits(MODEL.params["lm"])
    assert form(init_policy(BIGRAM, TABLE, ON_TABLE)) == form(init_policy(BIGRAM, TABLE))


def test_members_start_from_their_own_reward_models():
    """Under vmap each member's gain and bias are folded into its head."""
    stack = lambda *x: jnp.stack(x)
    models = jax.tree.map(stack, MODEL, MODEL._replace(gain=jnp.float32(3.0), bias=jnp.float32(1.0)))
    start = jax.vmap(lambda model: init_policy(BIGRAM, TABLE, model, trunk="separate"))(models)
    head = start["critic"]["value"]
    np.testing.assert_allclose(head["kernel"], np.stack([2.0 * HEAD["kernel"], 3.0 * HEAD["kernel"]]))
    np.testing.assert_allclose(head["bias"], [2.0 * 0.3 - 0.5, 3.0 * 0.3 + 1.0], rtol=1e-6)


def test_a_part_of_a_critic_is_laid_over_its_frozen_base():
    part = nets.select(PARAMS, "final_norm/*")
    moved = jax.tree.map(lambda x: x + 0.5, part)
    actor = make_text_actor(BIGRAM, model_reward(LM), CONFIG, critic=LM)
    value = ON_LM.params["head"]
    trajectory = jax.tree.map(lambda x: x[0], roll_counting())
    read = jax.jit(
        lambda critic, base: actor.evaluate({"lm": TABLE, "critic": critic}, base, trajectory).value
    )
    over = read({"lm": moved, "value": value}, Frozen(TABLE, None, PARAMS))
    whole = read({"lm": nets.overlay(PARAMS, moved), "value": value}, Frozen(TABLE, None))
    np.testing.assert_array_equal(over, whole)
    plain = read({"lm": part, "value": value}, Frozen(TABLE, None, PARAMS))
    assert jnp.abs(over - plain).max() > 1e-2


SAMPLE = sample_rows(PROMPTS, batch_size=8)
LEARNER = make_rlhf_learner(
    STOPPING, model_reward(COUNTING), CONFIG, SAMPLE, epochs=2, minibatches=2, critic=COUNTING
)
step = jax.jit(LEARNER.step)
begin = lambda key: LEARNER.init(key, jax.tree.map(jnp.float32, RLHFHParams(1e-2)), SEPARATE)


def test_both_trunks_learn_and_a_saved_run_continues_to_the_same_bits(tmp_path):
    one, metrics = step(begin(jax.random.key(0)), None, FROZEN)
    assert {"val/explained_variance", "loss/value_avg"} <= metrics.keys()
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), one.params, SEPARATE)
    assert all(jax.tree.leaves(moved))
    two, _ = step(one, None, FROZEN)
    checkpoint.save(tmp_path, 1, one, {"experiment": "critic"})
    restored, done = checkpoint.restore(tmp_path, begin(jax.random.key(9)), {"experiment": "critic"})
    assert done == 1 and bits(restored) == bits(one)
    assert bits(step(restored, None, FROZEN)[0]) == bits(two)


def test_vmapped_members_equal_single_runs():
    keys = jax.random.split(jax.random.key(3), 2)
    together, _ = jax.jit(jax.vmap(lambda key: LEARNER.step(begin(key), None, FROZEN)))(keys)
    assert bool((together.params["critic"]["lm"][0] != together.params["critic"]["lm"][1]).any())
    for i in range(2):
        alone, _ = step(begin(keys[i]), None, FROZEN)
        pairs = jax.tree.map(lambda x, y, i=i: jnp.abs(x[i] - y).max(), together.params, alone.params)
        assert max(jax.tree.leaves(pairs)) < 1e-5


def test_training_improves_what_the_critic_explains():
    """From zero, on the planted reward."""
    state = LEARNER.init(jax.random.key(0), jax.tree.map(jnp.float32, RLHFHParams(1e-2)), ZERO)
    train = jax.jit(lambda s: jax.lax.scan(lambda s, _: LEARNER.step(s, None, FROZEN), s, None, 60)[1])
    explained = np.asarray(train(state)["val/explained_variance"])
    assert abs(explained[0]) < 1e-6 and explained[-20:].mean() > 0.15


def test_the_pass_of_the_critic_reads_no_token_ahead():
    """A later token changes no earlier value."""
    prompt = jax.tree.map(lambda x: x[0], PROMPTS)
    read = jax.jit(
        lambda response: prefix_values(
            LM, {"lm": PARAMS, "value": ON_LM.params["head"]}, prompt, response, jnp.ones(T), CONFIG
        )
    )
    one = read(jnp.array([5, 6, 7, 8, 9, 10]))
    other = read(jnp.array([5, 6, 7, 11, 9, 10]))
    np.testing.assert_allclose(one[:4], other[:4], atol=1e-6)
    assert (jnp.abs(one - other)[4:] > 1e-4).all()
