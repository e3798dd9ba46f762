"""Prompts and prefixes: the same as tokens put in front of every row, and read once for all of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.align.reward_model import RewardModel, score
from jaxrl_align.nets import (
    TransformerConfig,
    init_prefix,
    init_prompt,
    init_scalar_head,
    make_transformer,
    overlay,
)
from jaxrl_align.pretrain import LMHParams, make_lm_learner
from jaxrl_align.text import TextConfig, generate
from jaxrl_align.types import PaddedTokens, TokenBatch
from tests.nets.test_adapters_cost import flops
from tests.nets.test_transformer_options import draw
from tests.tiny import LM, PARAMS, VOCAB, bits

N = 5
TOKENS = jnp.array([[0, 0, 5, 3, 9, 17], [4, 11, 2, 8, 8, 1]])
MASK = jnp.array([[0.0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]])
WINDOWED = TransformerConfig(
    VOCAB,
    width=16,
    layers=2,
    heads=4,
    key_value_heads=2,
    context=40,
    positions="rotary",
    norm="rms",
    window=4,
)
CONFIGS = {
    "learned": LM.config,
    "all windowed": WINDOWED,
    "one windowed": dataclasses.replace(WINDOWED, window_layers=(1,), local_rope_theta=50.0, remat=True),
}


@functools.cache
def case(name):
    """Return a model, its parameters and a prompt, and the model that has the prompt in its vocabulary."""
    config = CONFIGS[name]
    lm, params = make_transformer(config), draw(config)
    prompt = {"prompt": {"table": 0.5 * jax.random.normal(jax.random.key(0), (N, config.width))}}
    return lm, params, prompt, make_transformer(dataclasses.replace(config, vocab_size=VOCAB + N))


DEAR = {name: pytest.param(name, marks=pytest.mark.slow) for name in ("learned", "all windowed")}
"""Layouts whose dearest tests are slow; the one that has both kinds of layers stays fast."""


def read(lm, params, tokens, mask):
    return jax.vmap(lambda t, m: lm.encode(params, t, m)[0])(tokens, mask)


@pytest.mark.parametrize("name", [DEAR.get(name, name) for name in CONFIGS])
def test_a_prompt_is_embeddings_in_front_of_every_row(name):
    lm, params, prompt, larger = case(name)
    virtual = jnp.broadcast_to(VOCAB + jnp.arange(N)[None], (2, N))
    tokens = jnp.concatenate([virtual, TOKENS], 1)
    mask = jnp.concatenate([jnp.ones((2, N)), MASK], 1)

    def shared(prompt):
        return read(lm, overlay(params, prompt), TOKENS, MASK)

    def in_front(prompt):
        table = jnp.concatenate([params["tokens"], prompt["prompt"]["table"]])
        return read(larger, {**params, "tokens": table}, tokens, mask)[:, N:]

    def both(prompt):
        loss = lambda f: lambda p: (jnp.sum(jnp.sin(f(p)) * MASK[..., None]), f(p) * MASK[..., None])
        return [jax.value_and_grad(loss(f), has_aux=True)(prompt) for f in (shared, in_front)]

    ((_, got), slope), ((_, expected), expected_slope) = jax.jit(both)(prompt)
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6 * np.abs(expected).max())
    slope, expected_slope = slope["prompt"]["table"], expected_slope["prompt"]["table"]
    np.testing.assert_allclose(slope, expected_slope, rtol=0, atol=3e-6 * np.abs(expected_slope).max())
    assert (
        np.abs(expected_slope).min(1).max() > 0 and np.abs(got - read(lm, params, TOKENS, MASK)).max() > 0.1
    )


@pytest.mark.parametrize("name", ["learned", "one windowed"])
def test_a_prefix_starts_as_its_prompt(name):
    lm, params, prompt, _ = case(name)
    prefix, constants = init_prefix(lm, params, prompt)
    assert prefix["layers"]["prefix"]["key"].shape == (2, N, lm.config.kv_heads * lm.config.depth)
    both = jax.jit(lambda parts: [read(lm, overlay(params, part), TOKENS, MASK) for part in parts])
    got, expected = both([overlay(constants, prefix) if constants else prefix, prompt])
    np.testing.assert_allclose(got, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.slow
def test_packed_documents_all_read_the_prompt():
    lm, params, prompt, _ = case("one windowed")
    tokens, segments = TOKENS.reshape(-1)[2:], jnp.array([1] * 4 + [2] * 6)
    encode = jax.jit(lambda *rest, **named: lm.encode(overlay(params, prompt), *rest, **named)[0])
    packed = encode(tokens, segments=segments)
    np.testing.assert_allclose(packed[:4], encode(TOKENS[0], MASK[0])[2:], atol=1e-5)
    np.testing.assert_allclose(packed[4:], encode(TOKENS[1]), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["learned", "one windowed"])
def test_generation_reads_a_prompt_and_never_hears_of_it(name):
    """The log-probabilities of what it writes are those of one pass without a cache."""
    lm, params, prompt, _ = case(name)
    config = TextConfig(6, 5, stop_token=VOCAB - 1)
    keys = jax.random.split(jax.random.key(3), 2)

    @jax.jit
    def write(part):
        tuned = overlay(params, part)
        answer = jax.vmap(lambda t, m, k: generate(lm, tuned, PaddedTokens(t, m), k, config))(
            TOKENS, MASK, keys
        )
        whole = jnp.concatenate([TOKENS, answer.tokens], 1), jnp.concatenate([MASK, answer.mask], 1)
        logits = lm.logits(tuned, read(lm, tuned, *whole))[:, 5:-1].at[..., 0].set(-1e9)
        said = jnp.take_along_axis(jax.nn.log_softmax(logits), answer.tokens[..., None], -1)[..., 0]
        return answer.log_prob, said * answer.mask

    log_prob, said = write(prompt)
    np.testing.assert_allclose(log_prob, said, atol=1e-5)
    prefix = init_prefix(lm, params, prompt).part
    np.testing.assert_allclose(write(prefix)[0], log_prob, atol=1e-5)


@pytest.mark.optimised
@pytest.mark.slow
def test_virtual_tokens_cost_their_passes_once_a_batch():
    """20 of them: 20 token passes a batch of 16, and none for a token that is written later."""
    config = TransformerConfig(VOCAB, width=64, layers=1, heads=2, context=64)
    lm = make_transformer(config)
    params = jax.eval_shape(lm.init, jax.random.key(0))
    tuned = {**params, "prompt": {"table": jax.ShapeDtypeStruct((20, 64), jnp.float32)}}
    encode = lambda params, tokens: jax.vmap(lambda t: lm.encode(params, t)[0])(tokens)
    rows = lambda count, length: jax.ShapeDtypeStruct((count, length), jnp.int32)
    plain, shared = (flops(encode, p, rows(16, 10)) for p in (params, tuned))
    attention = 160 * 20 * 64 * 4  # every token compares with every virtual one and sums their values
    assert shared < plain + 1.2 * flops(encode, params, rows(1, 20)) + 1.5 * attention
    assert shared < flops(encode, params, rows(16, 30)) / 2

    def follow(params, cache, token):
        one = jnp.array([3])
        return lm.encode(params, token, jnp.ones(16), cache, one[0], one)[0]

    cache = lm.init_cache(16)
    start = lambda p: lm.encode(
        p, jnp.zeros(3, jnp.int32), jnp.ones(16), lm.init_cache(16), 0, jnp.arange(3)
    )[1]
    filled = jax.eval_shape(start, tuned)
    assert filled.prefix.key.shape == (1, 2, 20, 32) and cache.prefix is None
    token = jax.ShapeDtypeStruct((1,), jnp.int32)
    assert flops(follow, tuned, filled, token) < 1.5 * flops(follow, params, cache, token)


def test_a_prompt_starts_from_the_vocabulary_or_at_random():
    table = lambda **how: init_prompt(jax.random.key(0), PARAMS, **how).part["prompt"]["table"]
    np.testing.assert_array_equal(table(length=5, start=[3, 7]), PARAMS["tokens"][jnp.array([3, 7, 3, 7, 3])])
    np.testing.assert_array_equal(table(length=1, start=[3, 7]), PARAMS["tokens"][3:4])
    drawn = table()
    assert drawn.shape == (20, 16)
    assert (drawn[:, None] == PARAMS["tokens"][None]).all(-1).any(1).all(), "embeddings of the vocabulary"
    uniform = table(length=200, start="random")
    assert 0.45 < jnp.abs(uniform).max() <= 0.5 and abs(float(uniform.mean())) < 0.05


@pytest.mark.slow
def test_a_learner_trains_a_prompt_and_never_hears_of_it():
    learner = make_lm_learner(LM)
    part = init_prompt(jax.random.key(0), PARAMS, length=3).part
    batch = TokenBatch(TOKENS, MASK, MASK)
    state, before = learner.init(jax.random.key(1), LMHParams(0.1), part), bits(PARAMS)
    step, losses = jax.jit(learner.step), []
    for _ in range(10):
        state, metrics = step(state, batch, PARAMS)
        losses.append(float(metrics["loss"]))
    assert jax.tree.structure(state.params) == jax.tree.structure(part)
    assert losses[-1] < 0.9 * losses[0] and bits(PARAMS) == before


def test_a_reward_model_reads_a_prompt():
    model = {"lm": PARAMS, "head": init_scalar_head(jax.random.key(0), 16)}
    part = {"lm": init_prompt(jax.random.key(0), PARAMS, length=3).part}
    scores = lambda params: score(LM, RewardModel(params), TOKENS[0], MASK[0])
    plain, tuned = jax.jit(lambda: (scores(model), scores(overlay(model, part))))()
    assert plain.shape == tuned.shape == () and plain != tuned
