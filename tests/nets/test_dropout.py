"""LoRA's dropout: what it computes, that rows, layers and steps draw their own, and that learners call it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.align import RewardHParams, init_reward_params, make_reward_learner, rating_objective
from jaxrl_align.nets import (
    TransformerConfig,
    init_lora,
    make_transformer,
    overlay,
    with_dropout,
    without_dropout,
)
from jaxrl_align.nets.blocks import Linear
from jaxrl_align.pretrain.lm import LMHParams, make_lm_learner, next_token_objective
from jaxrl_align.pretrain.text_classification import (
    LabelledText,
    TextClassifierHParams,
    attach_head,
    make_text_classifier,
)
from jaxrl_align.types import Comparisons, PaddedTokens, Ratings, TokenBatch
from tests.tiny import LM, PARAMS, bits, disturb

KEY = jax.random.key(0)
RATE = 0.4


def tuned(base, dropout, **settings):
    """Return a base with constants, and a part that does something."""
    part, constants = init_lora(jax.random.key(1), base, rank=2, alpha=3, dropout=dropout, **settings)
    return overlay(base, constants), disturb(part, jax.random.key(2), 0.3)


LAYER = Linear(5, 0.02, False)
X = jax.random.normal(jax.random.key(4), (7, 6))
KERNEL = {"layer": {"kernel": jax.random.normal(jax.random.key(3), (6, 5))}}
apply = jax.jit(lambda params, x: LAYER.apply({"params": params["layer"]}, x))


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_a_layer_with_dropout_by_hand(kind):
    """The adapter reads inputs of which a share is 0 and the rest larger; the kernel reads all of them."""
    base, part = tuned(KERNEL, RATE, dora=kind == "dora")
    params = with_dropout(overlay(base, part), KEY)
    own = {name: np.asarray(leaf) for name, leaf in params["layer"][kind].items() if name != "key"}
    kept = np.asarray(jax.random.bernoulli(params["layer"][kind]["key"], 1 - RATE, X.shape))
    assert 0 < kept.sum() < kept.size
    kernel, x = np.asarray(KERNEL["layer"]["kernel"]), np.asarray(X)
    low = 1.5 * (x * kept / (1 - RATE)) @ own["a"] @ own["b"]
    gain = 1.0
    if kind == "dora":
        gain = own["magnitude"] / np.linalg.norm(kernel + 1.5 * own["a"] @ own["b"], axis=0)
    np.testing.assert_allclose(apply(params, X), gain * (x @ kernel + low), rtol=1e-5, atol=1e-5)


def test_over_many_draws_the_mean_is_what_is_computed_without_dropout():
    base, part = tuned(KERNEL, RATE)
    params = overlay(base, part)
    many = jax.vmap(lambda key: apply(with_dropout(params, key), X))(jax.random.split(KEY, 4000))
    error = jnp.std(many, 0) / 4000**0.5
    assert (jnp.abs(jnp.mean(many, 0) - apply(params, X)) < 4.5 * error).all()


def test_every_layer_and_every_place_draws_its_own():
    base, part = tuned(PARAMS, RATE)
    params = with_dropout(overlay(base, part), KEY)
    words = [
        tuple(word.tolist())
        for name in ("query", "key", "value", "attention_out", "up", "down")
        for word in jax.random.key_data(params["layers"][name]["lora"]["key"])
    ]
    assert len(set(words)) == len(words) == 6 * LM.config.layers


def test_nothing_is_drawn_without_a_rate_or_without_the_call():
    base, part = tuned(PARAMS, 0.0)
    plain = overlay(base, part)
    assert bits(with_dropout(plain, KEY)) == bits(plain)
    rated, _ = tuned(PARAMS, RATE)
    read = jax.jit(lambda params: LM.encode(params, jnp.arange(5))[0])
    np.testing.assert_array_equal(read(overlay(rated, part)), read(plain))
    assert bits(without_dropout(overlay(rated, part))) == bits(plain)


TINY = make_transformer(
    TransformerConfig(20, width=8, layers=1, heads=1, context=8, norm="none", feed_forward="none")
)
TINY_PARAMS = jax.jit(lambda key: disturb(TINY.init(key), jax.random.key(5), 0.5))(KEY)
TOKENS = jnp.tile(jnp.array([[3, 1, 4, 1, 5, 9, 2, 6]]), (4, 1))
ONES = jnp.ones(TOKENS.shape)
TEXTS = TokenBatch(TOKENS, ONES, ONES)


def test_equal_rows_drop_different_inputs_in_parts_of_a_batch_as_in_the_whole():
    base, part = tuned(TINY_PARAMS, RATE)
    objectives = (next_token_objective(TINY, microbatches=n) for n in (1, 2))
    whole, parts = (jax.jit(lambda batch, o=o: o(part, base, batch, KEY, None)[0]) for o in objectives)
    one_row = lambda i: TEXTS._replace(predict=ONES * (jnp.arange(4) == i)[:, None])
    singles = [float(whole(one_row(i))) for i in range(4)]
    assert len(set(singles)) == 4
    np.testing.assert_allclose([whole(TEXTS), parts(TEXTS)], np.mean(singles), rtol=1e-5)


def lm_case(base, part):
    return make_lm_learner(TINY), LMHParams(1e-3), base, part, TEXTS


def classifier_case(base, part):
    whole = attach_head(TINY, base, 2)
    texts = LabelledText(TOKENS, ONES, jnp.array([0, 1, 0, 1]))
    head = jax.tree.map(lambda x: x + 0.1, whole["head"])
    head["kernel"] = head["kernel"].at[:, 0].add(jnp.linspace(-1, 1, head["kernel"].shape[0]))
    learner = make_text_classifier(TINY, 2)
    return learner, TextClassifierHParams(1e-3), whole | {"head": head}, {"lm": part}, texts


def reward_case(base, part):
    whole = init_reward_params(jax.random.key(9), TINY, base)
    half = lambda tokens: PaddedTokens(tokens[:, :3], ONES[:, :3])
    pairs = Comparisons(half(TOKENS), half(TOKENS[:, 1:]), half(TOKENS[:, ::-1]))
    return make_reward_learner(TINY), RewardHParams(1e-3), whole, {"lm": part}, pairs


@pytest.mark.parametrize("case", [lm_case, classifier_case, reward_case])
def test_the_learners_of_texts_draw_anew_at_every_step(case):
    """From states that differ in their key alone."""
    learner, hparams, base, part, batch = case(*tuned(TINY_PARAMS, RATE))
    state = learner.init(KEY, hparams, params=part)
    step = jax.jit(lambda key: learner.step(state._replace(key=key), batch, base)[1]["loss"])
    first, again, other = (float(step(jax.random.key(i))) for i in (1, 1, 2))
    assert first == again != other


def test_rows_of_feedback_drop_apart():
    """Three equal rows score differently, and alike without a rate."""
    text = PaddedTokens(TOKENS[:3, :3], ONES[:3, :3])
    rows = Ratings(text, text, jnp.zeros(3))
    for rate in (RATE, 0.0):
        base, part = tuned(TINY_PARAMS, rate)
        whole = init_reward_params(jax.random.key(9), TINY, base)
        _, metrics = jax.jit(rating_objective(TINY))({"lm": part}, whole, rows, KEY, RewardHParams())
        assert (metrics["max_reward"] - metrics["min_reward"] > 1e-3) == (rate > 0)


@pytest.mark.parametrize("rate", [-0.1, 1.0, float("nan")])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(ValueError, match="dropout must be from 0 to below 1; got"):
        init_lora(KEY, PARAMS, rank=1, dropout=rate)
