"""Rewards of several parts: what is paid, what is logged, and what the host sees."""

import copy
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.actors.scores import Scored
from jaxrl_align.actors.text import Frozen, make_text_actor
from jaxrl_align.align import (
    RewardModel,
    RLHFHParams,
    combine_rewards,
    host_reward,
    init_policy,
    make_rlhf_learner,
    model_reward,
    token_reward,
)
from jaxrl_align.data.tokens.padding import left_pad
from jaxrl_align.data.tokens.vocabularies import character_tokenizer
from jaxrl_align.learner import train
from jaxrl_align.text.generation import TextConfig
from tests.tiny import BIGRAM, VOCAB, bits, favour

P, T, B, PAD, STOP = 4, 5, 6, 0, 1
LETTERS = "abcdefghijklmnopqr"
TOKENIZER = character_tokenizer(LETTERS)
CONFIG = TextConfig(P, T, missing_stop="keep")
STOPPING = favour(STOP, 2.0, BIGRAM)
POLICY = init_policy(BIGRAM, BIGRAM.init(jax.random.key(0)))
WORDS = ["ab", "c", "abcd", "q", "ba", "rrr"]
PROMPTS = jax.tree.map(jnp.asarray, left_pad([TOKENIZER.encode(word) for word in WORDS], P, PAD))
HPARAMS = jax.tree.map(jnp.float32, RLHFHParams(kl_coef=0.0))
WEIGHT_OF_LAST = np.random.default_rng(0).normal(size=VOCAB).astype(np.float32)
HEAD = {"kernel": jnp.asarray(WEIGHT_OF_LAST), "bias": 0.25}
MODEL = RewardModel({"lm": jnp.zeros((VOCAB, VOCAB)), "head": HEAD}, 2.0, -1.0)


def roll(score, reward_model=None, key=0):
    """Return the trajectory and metrics of one rollout."""
    actor = make_text_actor(STOPPING, score, CONFIG)
    args = actor.init_env(None, HPARAMS), jax.random.key(key), HPARAMS, PROMPTS
    run = lambda reward_model: actor.rollout(POLICY, Frozen(POLICY["lm"], reward_model), *args)[1:]
    return jax.jit(run)(reward_model)


def texts_of(trajectory):
    """Return each row's token ids, prompt and response, without padding."""
    rows = zip(PROMPTS.tokens, PROMPTS.real, trajectory.action, trajectory.mask, strict=True)
    return [([*p[r > 0].tolist(), *np.asarray(a)[np.asarray(m) > 0].tolist()]) for p, r, a, m in rows]


def spell(ids):
    return "".join(LETTERS[i - 2] for i in ids if i > 1)


# What is paid and what is logged.

count = token_reward(lambda tokens, mask: jnp.sum(mask))
first = token_reward(lambda tokens, mask: tokens[P] * 0.5)
PARTS = {"liked": model_reward(BIGRAM), "count": count, "both": combine_rewards({"n": count, "first": first})}


@pytest.fixture(scope="module")
def rolled():
    """A rollout whose weights come from both places: the frozen tree's replace those given."""
    score = combine_rewards(PARTS, {"liked": 0.5, "count": -7.0})
    return roll(score, {"liked": MODEL, "weights": {"count": jnp.float32(-2.0)}})


def by_hand(trajectory):
    """Return every part [B] from the tokens."""
    texts = texts_of(trajectory)
    liked = np.array([2.0 * (WEIGHT_OF_LAST[ids[-1]] + 0.25) - 1.0 for ids in texts])
    number = np.array([len(ids) for ids in texts], float)
    opening = np.asarray(trajectory.action)[:, 0] * 0.5
    return {
        "liked": liked, "count": number, "both": number + opening, "both/n": number, "both/first": opening
    }  # fmt: skip


def test_parts_are_weighted_together_at_the_last_token(rolled):
    trajectory, metrics = rolled
    parts = by_hand(trajectory)
    paid = 0.5 * parts["liked"] - 2.0 * parts["count"] + parts["both"]
    ends = np.asarray(trajectory.mask).sum(1).astype(int) - 1
    np.testing.assert_allclose(np.asarray(trajectory.reward)[np.arange(B), ends], paid, rtol=1e-5)
    np.testing.assert_allclose(trajectory.reward.sum(1), paid, rtol=1e-5)
    np.testing.assert_allclose(metrics["objective/scores"], paid.mean(), rtol=1e-5)
    assert len(set(ends)) > 2 and paid.std() > 0.5


def test_each_part_is_logged_apart_and_unweighted(rolled):
    trajectory, metrics = rolled
    logged = {name for name in metrics if name.startswith("rewards/")}
    parts = by_hand(trajectory)
    assert logged == {f"rewards/{name}/{of}" for name in parts for of in ("mean", "std")}
    for name, values in parts.items():
        np.testing.assert_allclose(metrics[f"rewards/{name}/mean"], values.mean(), rtol=1e-5, err_msg=name)
        np.testing.assert_allclose(metrics[f"rewards/{name}/std"], values.std(), rtol=1e-4, err_msg=name)


def test_one_part_pays_as_it_does_alone():
    """To the last bit; a plain number logs no parts."""
    (alone, plain), (combined, logged) = roll(count), roll(combine_rewards({"count": count}))
    assert bits(alone) == bits(combined)
    assert logged.keys() - plain.keys() == {"rewards/count/mean", "rewards/count/std"}
    assert not [name for name in plain if name.startswith("rewards/")]


def test_parts_are_logged_as_measured_whatever_the_rule_for_a_missing_stop():
    """An answer without its stop token is paid -1, and its part is still its length."""
    never = favour(STOP, -50.0, BIGRAM)
    actor = make_text_actor(never, combine_rewards({"count": count}), TextConfig(P, T))
    args = actor.init_env(None, HPARAMS), jax.random.key(0), HPARAMS, PROMPTS
    metrics = jax.jit(lambda: actor.rollout(POLICY, Frozen(POLICY["lm"], None), *args)[2])()
    assert metrics["objective/scores"] == -1.0
    np.testing.assert_allclose(metrics["rewards/count/mean"], T + PROMPTS.real.sum(1).mean(), rtol=1e-6)


def test_weights_sweep_in_one_program():
    """Members differ in a weight of the frozen tree alone."""
    actor = make_text_actor(STOPPING, combine_rewards({"count": count, "first": first}), CONFIG)
    args = actor.init_env(None, HPARAMS), jax.random.key(0), HPARAMS, PROMPTS
    run = lambda w: actor.rollout(POLICY, Frozen(POLICY["lm"], {"weights": {"first": w}}), *args)[1:]
    weights = jnp.array([0.0, 1.0, -3.0])
    trajectory, metrics = jax.jit(jax.vmap(run))(weights)
    parts = by_hand(jax.tree.map(lambda x: x[0], trajectory))
    paid = parts["count"] + np.asarray(weights)[:, None] * parts["both/first"]
    np.testing.assert_allclose(trajectory.reward.sum(2), paid, rtol=1e-5)
    assert len(set(np.asarray(metrics["rewards/first/mean"]).tolist())) == 1


def test_a_score_may_name_its_own_parts():
    """Any function may return a total with parts, integers too."""
    whole = lambda model, tokens, mask: Scored(jnp.int32(7), {"odd": tokens[P] % 2})
    trajectory, metrics = roll(whole)
    assert trajectory.reward.dtype == jnp.float32 and metrics["objective/scores"] == 7.0
    np.testing.assert_allclose(metrics["rewards/odd/mean"], (np.asarray(trajectory.action)[:, 0] % 2).mean())


# The host.

ANSWERS = [f"answer {word}" for word in WORDS]


def pay(prompts, completions, answer):
    """Pay a completion by its length, a prompt by its letters, and a column."""
    rows = zip(prompts, completions, answer, strict=True)
    return [len(c) + 10 * len(p) + 0.5 * len(a) for p, c, a in rows]


class Recorded:
    """Pays, and keeps what it was given."""

    def __init__(self):
        self.calls = []

    def __call__(self, prompts, completions, answer):
        self.calls.append((prompts, completions, answer))
        return pay(prompts, completions, answer)


def make_host(f, **options):
    return host_reward(f, TOKENIZER, prompt_length=P, **options)


def test_the_host_gets_texts_without_padding_and_what_stands_behind_the_stop_token():
    """By keyword, in one call a batch, each row with its prompt's column."""
    f = Recorded()
    # The table has other padding, another order and a repetition: rows are found by their tokens.
    order = [3, 1, 5, 0, 2, 4, 1]
    table = left_pad([TOKENIZER.encode(WORDS[i]) for i in order], P + 3, PAD)
    host = make_host(f, prompts=table, columns={"answer": [ANSWERS[i] for i in order]})
    trajectory, metrics = roll(host, key=1)
    ((prompts, completions, answer),) = f.calls
    assert prompts == WORDS and answer == ANSWERS
    said = [ids[len(word) :] for ids, word in zip(texts_of(trajectory), WORDS, strict=True)]
    assert completions == [spell(ids) for ids in said]
    assert any(STOP in ids for ids in said) and not all(STOP in ids for ids in said)
    paid = pay(WORDS, completions, ANSWERS)
    np.testing.assert_allclose(trajectory.reward.sum(1), paid, rtol=1e-6)
    np.testing.assert_allclose(metrics["objective/scores"], np.mean(paid), rtol=1e-6)


def test_tokens_behind_the_mask_are_not_read():
    f = Recorded()
    score = make_host(f, prompts=PROMPTS, columns={"answer": ANSWERS})
    tokens = jnp.array([9, 9, 2, 3, 4, 5, STOP, 9, 9])
    mask = jnp.array([0.0, 0.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0])
    assert score(None, tokens, mask) == 2 + 20 + 0.5 * len(ANSWERS[0])
    assert f.calls == [(["ab"], ["cd"], [ANSWERS[0]])]


def test_members_and_rows_arrive_in_one_call_a_step():
    """jit of vmapped members' scans: a call a step, each of members x batch rows in their order."""
    f = Recorded()
    score = combine_rewards({"host": make_host(f, prompts=PROMPTS, columns={"answer": ANSWERS})})
    learner = make_rlhf_learner(STOPPING, score, CONFIG, lambda key: PROMPTS, epochs=1, minibatches=1)
    run = jax.jit(
        jax.vmap(lambda key: train(learner, 3)(key, HPARAMS, POLICY, Frozen(POLICY["lm"], None))[1])
    )
    metrics = jax.block_until_ready(run(jax.random.split(jax.random.key(1), 2)))
    assert [len(prompts) for prompts, _, _ in f.calls] == [2 * B] * 3
    assert f.calls[0][0] == WORDS * 2 and f.calls[0][2] == ANSWERS * 2
    for step, given in enumerate(f.calls):
        paid = np.reshape(pay(*given), (2, B)).mean(1)
        np.testing.assert_allclose(metrics["rewards/host/mean"][:, step], paid, rtol=1e-5)


def test_columns_of_arrays_and_a_function_of_completions_alone():
    """TRL's functions take what they need by name; NumPy numbers and booleans are numbers."""
    got = {}

    def f(completions, gold, **rest):
        got.update(gold=gold, rest=rest)
        return np.array([len(c) > 2 for c in completions])

    columns = {"gold": np.arange(B) * 3, "tag": [{"k": i} for i in range(B)]}
    trajectory, _ = roll(make_host(f, prompts=PROMPTS, columns=columns))
    assert got["gold"] == [0, 3, 6, 9, 12, 15] and got["rest"]["tag"] == columns["tag"]
    assert got["rest"].keys() == {"tag", "prompts"}
    said = [ids[len(word) :] for ids, word in zip(texts_of(trajectory), WORDS, strict=True)]
    long = [len(spell(ids)) > 2 for ids in said]
    np.testing.assert_array_equal(trajectory.reward.sum(1), long)
    assert 0 < sum(long) < B


def test_a_function_gets_prompts_as_their_rows_hold_them_and_answers_in_the_same_form():
    """As TRL gives them: of messages both are lists of messages; of equal tokens the first row speaks."""
    got = {}

    def f(prompts, completions):
        got.update(prompts=prompts, completions=completions)
        return [1.0 for _ in completions]

    turn = lambda text: [{"role": "user", "content": text}]
    own = [turn(word.upper()) if i % 2 else word.upper() for i, word in enumerate(WORDS)]
    table = jax.tree.map(lambda x: jnp.concatenate([x, x[:1]]), PROMPTS)
    trajectory, _ = roll(make_host(f, prompts=table, texts=[*own, "again"]))
    said = [spell(ids[len(word) :]) for ids, word in zip(texts_of(trajectory), WORDS, strict=True)]
    assert got["prompts"] == own
    assert got["completions"] == [
        [{"role": "assistant", "content": text}] if i % 2 else text for i, text in enumerate(said)
    ]


SAME = [[["a"], ["b", "c"]], math.nan, {"k": np.array([1.0, math.nan])}, (1, None)]


def test_columns_are_compared_by_their_parts_and_only_those_that_the_function_takes():
    """Equal prompts with ragged lists, nan or arrays that are equal; `id` differs, but is not taken."""
    f = lambda completions, gold: [float(len(str(x))) for x in gold]
    for value in SAME:
        columns = {"gold": [value, copy.deepcopy(value)], "id": [0, 1]}
        table = jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), PROMPTS)
        score = make_host(f, prompts=table, columns=columns)
        assert score(None, TEXT[0], REAL[0]) == len(str(value))
        with pytest.raises(ValueError, match="must agree for equal prompts; got gold="):
            make_host(f, prompts=table, columns={"gold": [value, [["a"], ["b", "d"]]]})
        with pytest.raises(ValueError, match="must agree for equal prompts; got id="):
            make_host(lambda **given: [], prompts=table, columns=columns)


def spoil(value, row=3):
    """Return a function that pays 1 but for one row of a batch."""
    return lambda prompts, completions: [value if i == row else 1.0 for i in range(len(prompts))]


def stumble(prompts, completions):
    return [1.0 if "q" not in prompt else {}[prompt] for prompt in prompts]


def refuse_batches(prompts, completions):
    if len(prompts) > 1:
        raise RuntimeError("too many at once")
    return [1.0]


ROW = r"row 3 \(prompt 'q', completion 'cdc'\)"
FAULTS = {
    "nan": (spoil(math.nan), rf"must return finite numbers; got nan in {ROW}; return 0 where it does not"),
    "inf": (spoil(-math.inf), rf"finite numbers; got -inf in {ROW}"),
    "beyond float32": (spoil(1e39), rf"finite numbers; got 1e\+39 in {ROW}"),
    "none": (spoil(None), rf"finite numbers; got None in {ROW}"),
    "a text": (spoil("0.5"), rf"finite numbers; got '0.5' in {ROW}"),
    "an array": (spoil(np.ones(2)), rf"finite numbers; got array\(\[1., 1.\]\) in {ROW}"),
    "too few": (lambda prompts, completions: [1.0] * 5, r"for each of 6 completions; got 5; append one"),
    "too many": (lambda prompts, completions: [1.0] * 7, r"for each of 6 completions; got 7; append one"),
    "no list": (
        lambda prompts, completions: 1.0,
        r"one number for each completion; got float; wrap",
    ),
    "raises": (stumble, rf"must not raise; got KeyError: 'q' in {ROW}; catch it"),
    "raises for many": (
        refuse_batches,
        r"got RuntimeError: too many at once for a batch of 6 rows, of which none raises alone; catch it",
    ),
}
TEXT = jnp.concatenate([PROMPTS.tokens, jnp.tile(jnp.array([[4, 5, 4, STOP, PAD]]), (B, 1))], 1)
REAL = jnp.concatenate([PROMPTS.real, jnp.tile(jnp.array([[1.0, 1.0, 1.0, 1.0, 0.0]]), (B, 1))], 1)


def raised(score, tokens=TEXT, mask=REAL):
    """Return the message of what a compiled scan over a batch raises."""
    batch = jax.vmap(lambda t, m: score(None, t, m))
    run = jax.jit(lambda t: jax.lax.scan(lambda c, _: (c + batch(t, mask), None), jnp.zeros(B), None, 2)[0])
    with pytest.raises(Exception) as caught:
        jax.block_until_ready(run(tokens))
    return str(caught.value)


@pytest.mark.parametrize("fault", FAULTS)
def test_what_a_host_reward_does_wrong_is_reported_with_its_row(fault):
    """Through jit, scan and vmap: the message is the last line, behind JAX's traceback."""
    f, says = FAULTS[fault]
    *_, last = raised(make_host(f, name="taste")).strip().splitlines()
    assert "reward 'taste' " in last
    assert re.search(says, last), last
    assert len(last) < 400


def test_a_row_of_members_is_named_by_both_places():
    score = make_host(spoil(math.nan, row=B + 2))
    batch = jax.vmap(jax.vmap(lambda t, m: score(None, t, m)))
    with pytest.raises(Exception, match=r"row \[1, 2\] \(prompt 'abcd', completion 'cdc'\)"):
        jax.block_until_ready(batch(jnp.stack([TEXT, TEXT]), jnp.stack([REAL, REAL])))


def test_a_prompt_of_no_row_is_reported():
    table = jax.tree.map(lambda x: x[:3], PROMPTS)
    score = make_host(lambda prompts, completions, gold: gold, prompts=table, columns={"gold": [1, 2, 3]})
    message = raised(score)
    assert "must have a row for every prompt; got none for row 3 (prompt 'q', completion 'cdc')" in message


def test_a_host_reward_has_no_gradient():
    score = make_host(spoil(1.0))
    with pytest.raises(ValueError, match="do not support JVP"):
        jax.grad(lambda mask: score(None, TEXT[0], mask))(REAL[0])
