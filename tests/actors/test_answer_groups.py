"""Answers in groups: one reading of the prompt, what a trajectory holds, and who scores it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend import core

from jaxrl_align import align, data, nets
from jaxrl_align.actors import Frozen, judge_answers, make_group_actor
from jaxrl_align.actors.text import judge
from jaxrl_align.text.generation import TextConfig
from jaxrl_align.types import PaddedTokens
from tests.tiny import BIGRAM, LM, PARAMS, VOCAB, disturb, favour

P, T, B, G, STOP, LIKED = 5, 4, 3, 4, 1, 3
CONFIG = TextConfig(P, T)
RNG = np.random.default_rng(0)
REAL = np.arange(P) >= np.array([[0], [2], [4]])
PROMPTS = PaddedTokens(
    jnp.asarray(np.where(REAL, RNG.integers(2, VOCAB, (B, P)), 0), jnp.int32), jnp.asarray(REAL, jnp.float32)
)
LENGTHS = np.array([4, 1, 3, 2])
ANSWERS = PaddedTokens(
    jnp.asarray(RNG.integers(2, VOCAB, (G, T)), jnp.int32),
    jnp.asarray(np.arange(T) < LENGTHS[:, None], jnp.float32),
)
STOPPING = favour(STOP, 1.5, BIGRAM)
TABLE = BIGRAM.init(jax.random.key(0))
POLICY = {"lm": disturb(TABLE, jax.random.key(1), 0.3)}
FROZEN = Frozen(TABLE, jnp.float32(2.0))
HPARAMS = jax.tree.map(jnp.float32, align.GRPO.hparams._replace(kl_coef=0.3, temperature=0.7, stop_penalty=3))
ROTARY = nets.make_transformer(
    nets.TransformerConfig(
        VOCAB,
        width=16,
        layers=2,
        heads=4,
        key_value_heads=2,
        context=32,
        norm="rms",
        positions="rotary",
        feed_forward="swiglu",
        window=4,
        window_layers=(1,),
    )
)


def count_liked(weight, tokens, mask):
    return weight * jnp.sum((tokens[P:] == LIKED) * mask[P:])


def roll(
    lm=STOPPING, policy=POLICY, frozen=FROZEN, score=count_liked, *, config=CONFIG, hparams=HPARAMS, **made
):
    actor = make_group_actor(lm, score, config, **{"group_size": G} | made)
    args = None, jax.random.key(2), hparams, PROMPTS
    _, trajectory, metrics = jax.jit(lambda p, f: actor.rollout(p, f, *args))(policy, frozen)
    return actor, trajectory, metrics


roll_plain = functools.cache(roll)


def with_prompt(part):
    """Return the tiny model's parameters with virtual tokens, as a prompt or as keys and values."""
    prompt = nets.init_prompt(jax.random.key(5), PARAMS, length=3).part
    if part == "prefix":
        prompt = nets.init_prefix(LM, PARAMS, prompt).part
    return nets.overlay(PARAMS, prompt)


@pytest.mark.parametrize(
    "model", ["learned", *(pytest.param(m, marks=pytest.mark.slow) for m in ("rotary", "prompt", "prefix"))]
)
def test_answers_are_judged_as_each_alone_and_so_are_their_gradients(model):
    """Padded prompts, answers of all lengths; learned positions, rotary ones in a window, virtual tokens."""
    lm = ROTARY if model == "rotary" else LM
    params = {
        "learned": lambda: PARAMS,
        "rotary": lambda: disturb(ROTARY.init(jax.random.key(3)), jax.random.key(4), 0.2),
    }.get(model, lambda: with_prompt(model))()
    temperature = 0.7

    def together(params):
        judge_one = lambda prompt: judge_answers(lm, params, prompt, ANSWERS, CONFIG, temperature=temperature)
        return jax.vmap(judge_one)(PROMPTS)

    def apart(params):
        one = lambda prompt, tokens, mask: judge(
            lm, params, prompt, tokens, mask, CONFIG, temperature=temperature
        )
        return jax.vmap(jax.vmap(one, (None, 0, 0)), (0, None, None))(PROMPTS, *ANSWERS)

    weight = jax.random.normal(jax.random.key(6), (B, G, T)) * ANSWERS.real[None]

    @jax.jit
    def read(params):
        def loss(params, judged):
            made = judged(params)
            return jnp.sum(weight * (made.log_prob + 0.3 * made.entropy)), made

        return [jax.value_and_grad(loss, has_aux=True)(params, judged) for judged in (together, apart)]

    ((_, one), gradient), ((_, other), expected) = read(params)
    for name in ("log_prob", "entropy"):
        a, b = (getattr(x, name) * ANSWERS.real[None] for x in (one, other))
        np.testing.assert_allclose(a, b, atol=1e-5, err_msg=name)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), gradient, expected)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(gradient)) > 0.1


def multiplications(jaxpr):
    """Return how many multiplications a jaxpr's matrix products take; an open loop's, T - 1 times."""
    jaxpr = jaxpr.jaxpr if isinstance(jaxpr, core.ClosedJaxpr) else jaxpr
    is_jaxpr = lambda x: isinstance(x, core.ClosedJaxpr | core.Jaxpr)
    total = 0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            lengths = [equation.invars[0].aval.shape[axis] for axis in contracted]
            total += int(np.prod(equation.outvars[0].aval.shape) * np.prod(lengths))
        loops = {"scan": equation.params.get("length"), "while": T - 1}
        steps = loops.get(equation.primitive.name, 1)
        inner = filter(is_jaxpr, jax.tree.leaves(equation.params, is_leaf=is_jaxpr))
        total += steps * sum(map(multiplications, inner))
    return total


def test_the_prompt_is_read_once_for_all_answers():
    """When they are written, under the reference, in the update: G answers add G times the same to it."""
    alone = multiplications(jax.make_jaxpr(jax.vmap(lambda p: LM.encode(PARAMS, *p)[0]))(PROMPTS))

    def count(size, penalty):
        actor = make_group_actor(LM, count_liked, CONFIG, group_size=size, penalty=penalty)
        frozen, policy = Frozen(PARAMS, jnp.float32(1.0)), {"lm": PARAMS}
        run = lambda policy: actor.rollout(policy, frozen, None, jax.random.key(0), HPARAMS, PROMPTS)
        trajectory = jax.eval_shape(run, policy)[1]
        again = lambda policy, t: jax.vmap(actor.evaluate, (None, None, 0))(policy, frozen, t)
        return [
            multiplications(jax.make_jaxpr(run)(policy)),
            multiplications(jax.make_jaxpr(again)(policy, trajectory)),
        ]

    for penalty, readings in (("none", 1), ("loss", 2)):
        one, two, four = (count(size, penalty) for size in (1, 2, 4))
        for place, times in ((0, readings), (1, 1)):
            each = two[place] - one[place]
            assert each > 0 and four[place] - two[place] == 2 * each
            assert one[place] - each == times * alone, (penalty, place)


def test_a_trajectory_by_hand():
    """The score at the last real token, replaced where none stopped; nothing crosses between answers."""
    _, trajectory, metrics = roll_plain()
    shape = lambda x: np.asarray(x).reshape(B, G, T)
    tokens, mask, reward = map(shape, (trajectory.action, trajectory.mask, trajectory.reward))
    assert trajectory.action.shape == (B, G * T)
    lengths = mask.sum(-1).astype(int)
    assert len(set(lengths.ravel().tolist())) > 2
    expected = np.zeros((B, G, T))
    paid = np.zeros((B, G))
    for b, g in np.ndindex(B, G):
        real = tokens[b, g, : lengths[b, g]]
        paid[b, g] = 2.0 * (real == LIKED).sum() if STOP in real else -3.0
        expected[b, g, lengths[b, g] - 1] = paid[b, g]
        assert not tokens[b, g, lengths[b, g] :].any()
    np.testing.assert_array_equal(reward, expected)
    goes_on = np.arange(T) < lengths[..., None] - 1
    for name in ("discount", "lambda_"):
        np.testing.assert_array_equal(shape(getattr(trajectory, name)), goes_on)
    assert not trajectory.value.any() and not trajectory.next_value.any()
    assert metrics["reward"] == pytest.approx(paid.mean()) and metrics["reward_std"] == pytest.approx(
        paid.std()
    )
    assert metrics["frac_reward_zero_std"] == pytest.approx((np.ptp(paid, 1) == 0).mean())
    assert metrics["completions/mean_length"] == pytest.approx(lengths.mean())
    clipped = 1 - (tokens == STOP).any(-1).mean()
    assert metrics["completions/clipped_ratio"] == pytest.approx(clipped, abs=1e-6) and 0 < clipped < 1
    distinct = {tokens[b, g].tobytes() for b, g in np.ndindex(B, G)}
    assert len(distinct) > G, "every answer has a key of its own"


def test_the_acting_policys_log_probabilities_are_those_of_judging_again():
    """So the first update's ratios are 1; the reference's are those of the base, at the same temperature."""
    actor, trajectory, _ = roll_plain()
    judge_all = jax.jit(jax.vmap(actor.evaluate, (None, None, 0)))
    again = judge_all(POLICY, FROZEN, trajectory)
    np.testing.assert_allclose(again.log_prob * trajectory.mask, trajectory.log_prob, atol=1e-5)
    reference = judge_all({"lm": TABLE}, FROZEN, trajectory)
    np.testing.assert_allclose(
        reference.log_prob * trajectory.mask, trajectory.obs.reference_log_prob, atol=1e-5
    )
    assert jnp.abs(trajectory.log_prob - trajectory.obs.reference_log_prob).max() > 0.1


def test_where_the_kl_penalty_is_paid():
    """The same answers; "reward": each token pays its own log-ratio; "none": no reference is read."""
    (_, plain, metrics), (_, paid, _), (_, unpaid, none) = (
        roll(penalty=penalty) for penalty in ("loss", "reward", "none")
    )
    np.testing.assert_array_equal(plain.action, paid.action)
    np.testing.assert_array_equal(plain.action, unpaid.action)
    drift = (plain.log_prob - plain.obs.reference_log_prob) * plain.mask
    np.testing.assert_allclose(paid.reward, plain.reward - 0.3 * drift, atol=1e-6)
    np.testing.assert_array_equal(unpaid.reward, plain.reward)
    assert unpaid.obs.reference_log_prob is None and "objective/kl" not in none
    kl = np.asarray(drift).reshape(B * G, T).sum(1).mean()
    assert metrics["objective/kl"] == pytest.approx(kl, abs=1e-5) and abs(kl) > 0.01


def test_a_part_is_laid_over_the_base():
    """LoRA: the acting policy is the base with the adapter on, the reference the base with it off."""
    part, constants = nets.init_lora(jax.random.key(7), PARAMS, rank=2, alpha=4)
    part, base = disturb(part, jax.random.key(8), 0.3), nets.overlay(PARAMS, constants)
    frozen = Frozen(base, jnp.float32(1.0))
    actor, trajectory, _ = roll(LM, {"lm": part}, frozen)
    again = jax.jit(jax.vmap(actor.evaluate, (None, None, 0)))
    adapted = again({"lm": nets.overlay(base, part)}, frozen, trajectory)
    np.testing.assert_allclose(adapted.log_prob * trajectory.mask, trajectory.log_prob, atol=2e-5)
    plain = again({"lm": base}, Frozen(None, None), trajectory).log_prob
    np.testing.assert_allclose(
        plain * trajectory.mask, trajectory.obs.reference_log_prob * trajectory.mask, atol=2e-5
    )
    assert jnp.abs(adapted.log_prob - plain).max() > 0.1


def test_a_host_reward_is_asked_once_for_a_whole_batch_and_parts_are_logged():
    calls = []

    def taste(prompts, completions):
        calls.append(len(completions))
        assert len(set(prompts)) <= B
        return [float(len(text)) for text in completions]

    host = align.host_reward(taste, data.character_tokenizer("abcdefghijklmnopqr"), prompt_length=P)
    score = align.combine_rewards(
        {"taste": host, "liked": align.token_reward(functools.partial(count_liked, 1.0))}
    )
    _, trajectory, metrics = roll(
        frozen=Frozen(TABLE, None), score=score, config=TextConfig(P, T, missing_stop="keep")
    )
    jax.block_until_ready(trajectory)
    assert calls == [B * G]
    reward = np.asarray(trajectory.reward).sum()
    parts = metrics["rewards/taste/mean"] + metrics["rewards/liked/mean"]
    assert parts == pytest.approx(reward / (B * G), rel=1e-5)
    assert {"rewards/taste/std", "rewards/liked/std"} <= metrics.keys()


@pytest.mark.slow
def test_answers_of_one_token():
    config = TextConfig(P, 1, missing_stop="keep")
    actor, trajectory, metrics = roll(LM, {"lm": PARAMS}, Frozen(PARAMS, jnp.float32(1.0)), config=config)
    assert trajectory.mask.shape == (B, G) and metrics["completions/mean_length"] == 1
    judged = jax.jit(jax.vmap(actor.evaluate, (None, None, 0)))(
        {"lm": PARAMS}, FROZEN._replace(reference=PARAMS), trajectory
    )
    np.testing.assert_allclose(judged.log_prob, trajectory.log_prob, atol=1e-5)
