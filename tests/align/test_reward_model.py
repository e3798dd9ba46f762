import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_align.align import (
    RewardHParams,
    RewardModel,
    choose_completions,
    init_reward_params,
    make_reward_learner,
    normalise_scores,
    score,
    score_cautiously,
    score_completions,
    score_margins,
    score_members,
)
from jaxrl_align.nets.transformer import TransformerConfig, init_scalar_head, make_transformer
from jaxrl_align.pretrain.lm import sample_rows
from jaxrl_align.runtime import checkpoint
from jaxrl_align.types import Comparisons, PaddedTokens
from tests.tiny import BIGRAM, LM, PARAMS, VOCAB, bits, disturb, encode_all

LENGTH = 9
WINDOWED = TransformerConfig(
    VOCAB,
    width=16,
    layers=2,
    heads=2,
    context=80,
    positions="rotary",
    window=5,
    window_layers=(1,),
)
HEAD = disturb(init_scalar_head(None, 16), jax.random.key(4), 1.0)
MODEL = RewardModel({"lm": PARAMS, "head": HEAD})
LEARNER = make_reward_learner(LM, total_steps=300)
step = jax.jit(LEARNER.step)
read = jax.jit(lambda model, tokens, mask: score(LM, model, tokens, mask))
read_all = jax.jit(jax.vmap(lambda tokens, mask: score(LM, MODEL, tokens, mask)))
margins_of = jax.jit(lambda params, data: score_margins(LM, RewardModel(params), data))
fit = jax.jit(lambda model, *text: normalise_scores(LM, model, *text))


def make_texts(count, seed):
    """Return tokens and masks [count, LENGTH]: left padding, then text, then right padding."""
    rng = np.random.default_rng(seed)
    first, last = rng.integers(0, 3, (count, 1)), rng.integers(5, LENGTH + 1, (count, 1))
    mask = (np.arange(LENGTH) >= first) & (np.arange(LENGTH) < last)
    tokens = np.where(mask, rng.integers(2, VOCAB, (count, LENGTH)), 0)
    return jnp.asarray(tokens, jnp.int32), jnp.asarray(mask, jnp.float32)


TOKENS, MASK = make_texts(64, 0)


PROMPT = PaddedTokens(jnp.pad(TOKENS[:, :3], ((0, 0), (1, 0))), jnp.array([[0.0, 1, 1, 1]] * 64))
"""Three tokens, padded on the left."""
TEXT = PaddedTokens(TOKENS, MASK)


def joined(prompt, text):
    """Return prompts and completions [..., L] as sequences: tokens and mask."""
    return [jnp.concatenate([p, t], -1) for p, t in zip(prompt, text, strict=True)]


def pairs(first, second):
    """Return comparisons of texts in the rows of two slices, after the prompts of the first."""
    at = lambda texts, rows: jax.tree.map(lambda x: x[rows], texts)
    return Comparisons(at(PROMPT, first), at(TEXT, first), at(TEXT, second))


def test_the_score_is_read_at_the_last_real_token():
    """The reward model reads query and response, up to the last token that is no padding."""
    hidden, kernel = (np.asarray(x) for x in (encode_all(PARAMS, TOKENS, MASK)[0], HEAD["kernel"]))
    for row, mask, got in zip(hidden, np.asarray(MASK), read_all(TOKENS, MASK), strict=True):
        last = np.flatnonzero(mask)[-1]
        np.testing.assert_allclose(got, row[last] @ kernel + float(HEAD["bias"]), atol=1e-5)


@pytest.mark.parametrize("side", [(50, 0), (0, 50), (20, 30)])
def test_padding_left_or_right_changes_no_score(side):
    """50 more pads, on either side or on both."""
    padded = jnp.pad(TOKENS, ((0, 0), side)), jnp.pad(MASK, ((0, 0), side))
    plain = read_all(TOKENS, MASK)
    assert plain.std() > 0.5
    np.testing.assert_allclose(read_all(*padded), plain, atol=1e-4)


def test_what_stands_in_padding_changes_no_score():
    """A response counts up to its stop token; what lies behind it is never read."""
    rubbish = jnp.where(MASK > 0, TOKENS, 7)
    np.testing.assert_array_equal(read_all(rubbish, MASK), read_all(TOKENS, MASK))


def test_the_head_is_drawn_and_the_network_taken_over():
    """The head is N(0, 1 / sqrt(d + 1)) with bias 0, the network the language model's bit for bit."""
    params = init_reward_params(jax.random.key(0), LM, PARAMS)
    assert bits(params["lm"]) == bits(PARAMS)
    kernels = jax.vmap(lambda k: init_reward_params(k, LM, PARAMS)["head"]["kernel"])(
        jax.random.split(jax.random.key(1), 3000)
    )
    assert kernels.std() == pytest.approx(17**-0.5, rel=0.02) and params["head"]["bias"] == 0.0


def test_normalised_scores_have_mean_0_and_deviation_1():
    """On the samples it was fitted to, whatever the normalisation was before."""
    sequences = joined(PROMPT, TEXT)
    raw = read_all(*sequences)
    for model in (MODEL, RewardModel(MODEL.params, 7.0, -3.0)):
        fitted = fit(model, PROMPT, TEXT)
        scores = jax.vmap(lambda t, m, fitted=fitted: read(fitted, t, m))(*sequences)
        assert scores.mean() == pytest.approx(0.0, abs=1e-5)
        assert scores.std() == pytest.approx(1.0, abs=1e-5)
        np.testing.assert_allclose(scores, (raw - raw.mean()) / raw.std(), atol=1e-4)
        assert bits(fitted.params) == bits(MODEL.params)


def test_a_reward_model_that_cannot_tell_samples_apart_stays_finite():
    params = {"lm": PARAMS, "head": init_scalar_head(None, 16)}
    fitted = fit(RewardModel(params), PROMPT, TEXT)
    assert read(fitted, TOKENS[0], MASK[0]) == 0.0


def test_the_normalisation_is_saved_with_the_model(tmp_path):
    """Gain and bias are leaves of the model, so a checkpoint holds them."""
    fitted = fit(MODEL, PROMPT, TEXT)
    checkpoint.save(tmp_path, 1, fitted, {})
    restored, _ = checkpoint.restore(tmp_path, jax.eval_shape(lambda: fitted))
    assert bits(restored) == bits(fitted)
    assert read(restored, TOKENS[0], MASK[0]) == read(fitted, TOKENS[0], MASK[0])


@pytest.mark.parametrize("config", [LM.config, WINDOWED], ids=["gpt2", "window"])
def test_completions_beside_each_other_score_as_each_behind_the_prompt(config):
    """The prompt is computed once; padding is anywhere, positions and windows are those of each alone."""
    lm = make_transformer(config)
    params = disturb(lm.init(jax.random.key(5)), jax.random.key(6), 0.3)
    model = RewardModel({"lm": params, "head": HEAD}, 2.0, 0.5)
    prompt = jax.tree.map(lambda x: x[0], PROMPT)
    texts = jax.tree.map(lambda x: x[:5], TEXT)
    together = jax.jit(lambda p, t: score_completions(lm, model, p, t))(prompt, texts)
    alone = [
        score(lm, model, *joined(prompt, text)) for text in map(PaddedTokens._make, zip(*texts, strict=True))
    ]
    assert np.std(alone) > 0.5
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_a_prompt_is_computed_once_for_all_of_its_completions():
    """40 tokens before four completions of 5: 60 are computed, where each alone would take 180."""
    prompt = PaddedTokens(jnp.ones(40, jnp.int32), jnp.ones(40))
    texts = PaddedTokens(jnp.ones((4, 5), jnp.int32), jnp.ones((4, 5)))
    alone = lambda p, t: jax.vmap(lambda *c: score(LM, MODEL, *joined(p, c)))(*t)
    together = lambda p, t: score_completions(LM, MODEL, p, t)
    flops = [jax.jit(f).lower(prompt, texts).compile().cost_analysis()["flops"] for f in (together, alone)]
    assert 0.2 < flops[0] / flops[1] < 0.45


def test_the_members_of_an_ensemble_share_their_base():
    heads = {"head": jax.tree.map(lambda x: jnp.stack([x, -x, 2 * x]), HEAD)}
    members = RewardModel(heads, jnp.array([1.0, 1.0, 0.5]), jnp.array([0.0, 0.0, 3.0]))
    one = float(read(MODEL, TOKENS[0], MASK[0]))
    base = {"lm": PARAMS, "head": init_scalar_head(None, 16)}
    scores = jax.jit(lambda m: score_members(LM, m, TOKENS[0], MASK[0], base))(members)
    np.testing.assert_allclose(scores, [one, -one, one + 3.0], rtol=1e-5)
    careful = lambda m: score_cautiously(LM, m, TOKENS[0], MASK[0], caution=0.7)
    cautious = jax.jit(careful)(members._replace(params=jax.vmap(lambda head: base | head)(heads)))
    np.testing.assert_allclose(cautious, np.mean(scores) - 0.7 * np.std(scores), rtol=1e-5)


def test_what_the_annotator_preferred_is_chosen():
    prompt = PaddedTokens(jnp.array([[9], [8]]), jnp.ones((2, 1)))
    a, b = jnp.array([[2, 3], [4, 5]]), jnp.array([[6, 7], [8, 9]])
    ones, half = jnp.ones((2, 2)), jnp.array([[1.0, 0.0], [1.0, 0.0]])
    texts = PaddedTokens(a, ones), PaddedTokens(b, half)
    data = choose_completions(prompt, *texts, np.array([True, False]))
    np.testing.assert_array_equal(data.chosen, [[[2, 3], [8, 9]], [[1, 1], [1, 0]]])
    np.testing.assert_array_equal(data.rejected, [[[6, 7], [4, 5]], [[1, 0], [1, 1]]])
    np.testing.assert_array_equal(data.prompt.tokens, prompt.tokens)
    members = jax.tree.map(lambda x: x[None], (prompt, *texts, jnp.array([True, False])))
    np.testing.assert_array_equal(choose_completions(*members).chosen.tokens[0], data.chosen.tokens)


def test_margins_of_any_number_of_comparisons():
    data = pairs(slice(0, 7), slice(7, 14))
    model = RewardModel(MODEL.params, 2.0, 5.0)
    read_pairs = lambda side: read_all(*joined(data.prompt, side))
    gap = 2.0 * (read_pairs(data.chosen) - read_pairs(data.rejected))
    for size in (3, 64):
        got = jax.jit(lambda data, size=size: score_margins(LM, model, data, batch_size=size))(data)
        np.testing.assert_allclose(got, gap, atol=1e-4)


@pytest.mark.slow
def test_a_planted_rule_is_learned_and_holds_on_pairs_never_seen():
    """The annotators like the token 3; by noise they err on one pair in ten."""
    tokens, mask = make_texts(2000, 1)
    count = np.asarray(((tokens == 3) & (mask > 0)).sum(1)) + 0.1 * np.random.default_rng(2).random(2000)
    first = count[:1000] > count[1000:]
    noisy = first ^ (np.random.default_rng(3).random(1000) < 0.1)
    known = count[:1000].astype(int) != count[1000:].astype(int)
    both = PaddedTokens(tokens[:1000], mask[:1000]), PaddedTokens(tokens[1000:], mask[1000:])
    prompt = PaddedTokens(jnp.full((1000, 1), 2), jnp.ones((1000, 1)))
    data = choose_completions(prompt, *both, noisy)
    train = jax.tree.map(lambda x: x[:700][known[:700]], data)
    truth = choose_completions(prompt, *both, first)
    test = jax.tree.map(lambda x: x[700:][known[700:]], truth)
    sample = jax.jit(sample_rows(train, batch_size=32))
    params = init_reward_params(jax.random.key(3), LM, PARAMS)
    state = LEARNER.init(jax.random.key(0), RewardHParams(5e-3), params)
    accuracy = lambda params: float((margins_of(params, test) > 0).mean())
    before = accuracy(state.params)
    for key in jax.random.split(jax.random.key(1), 300):
        state, _ = step(state, sample(key))
    assert test.chosen.tokens.shape[0] > 100
    assert before < 0.7 and accuracy(state.params) > 0.9, (before, accuracy(state.params))


def test_training_needs_no_language_model_to_start_from_and_uses_keys_once():
    data = pairs(slice(0, 32), slice(32, 64))
    learner = make_reward_learner(BIGRAM, sample_rows(data, batch_size=4))
    with jax.debug_key_reuse(True):
        state = jax.jit(learner.init)(jax.random.key(0), RewardHParams())
        state, metrics = jax.jit(learner.step)(state)
    assert set(state.params) == {"lm", "head"} and np.isfinite(metrics["loss"])


def test_a_part_of_a_reward_model_trains_over_a_frozen_one():
    """The head alone: the same step as the head's in whole training, and not a bit of the rest."""
    data = pairs(slice(0, 8), slice(8, 16))
    learner = make_reward_learner(LM, optimizer=optax.identity())
    head = {"head": MODEL.params["head"]}
    begin = lambda params: learner.init(jax.random.key(0), RewardHParams(0.1), params)
    whole, _ = jax.jit(learner.step)(begin(MODEL.params), data)
    part, _ = jax.jit(learner.step)(begin(head), data, MODEL.params)
    assert set(part.params) == {"head"}
    np.testing.assert_allclose(part.params["head"]["kernel"], whole.params["head"]["kernel"], rtol=1e-6)
    assert bits(part.params) != bits(head)
