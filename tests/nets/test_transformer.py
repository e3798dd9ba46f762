import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.nets.transformer import (
    TransformerConfig,
    apply_scalar_head,
    init_scalar_head,
    make_transformer,
    positions_of,
)
from tests.tiny import LM, PARAMS, VOCAB, primitives

TOKENS = jnp.array([5, 3, 9, 17, 4, 11, 2])
encode = jax.jit(LM.encode)


def forward(tokens, mask):
    """Return the logits [L, V] of one sequence in a full pass."""
    return np.asarray(LM.logits(PARAMS, encode(PARAMS, jnp.asarray(tokens), jnp.asarray(mask))[0]))


def numpy_norm(p, x):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * p["scale"] + p["bias"]


def numpy_forward(config, params, tokens):
    """GPT-2 as loops over heads in NumPy (Radford et al. 2019), for tokens without padding."""
    p = jax.tree.map(np.asarray, params)
    length, depth = len(tokens), config.width // config.heads
    x = p["tokens"][tokens] + p["positions"][:length]
    for i in range(config.layers):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], p["layers"])
        linear = lambda name, h, layer=layer: h @ layer[name]["kernel"] + layer[name]["bias"]
        h = numpy_norm(layer["attention_norm"], x)
        q, k, v = (linear(name, h) for name in ("query", "key", "value"))
        heads = []
        for cut in (slice(j * depth, (j + 1) * depth) for j in range(config.heads)):
            scores = np.where(np.tri(length) > 0, q[:, cut] @ k[:, cut].T / depth**0.5, -np.inf)
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ v[:, cut])
        x = x + linear("attention_out", np.concatenate(heads, -1))
        h = linear("up", numpy_norm(layer["feed_forward_norm"], x))
        h = 0.5 * h * (1 + np.tanh((2 / np.pi) ** 0.5 * (h + 0.044715 * h**3)))
        x = x + linear("down", h)
    return numpy_norm(p["final_norm"], x) @ p["tokens"].T


def test_logits_equal_a_numpy_implementation():
    expected = numpy_forward(LM.config, PARAMS, np.asarray(TOKENS))
    np.testing.assert_allclose(forward(TOKENS, jnp.ones(7)), expected, atol=2e-5)
    assert expected.std() > 0.3, "the comparison must not be between zeros"


def test_a_token_does_not_see_what_follows():
    changed = forward(TOKENS.at[4].set(1), jnp.ones(7))
    np.testing.assert_array_equal(changed[:4], forward(TOKENS, jnp.ones(7))[:4])
    assert np.abs(changed[4:] - forward(TOKENS, jnp.ones(7))[4:]).max() > 1e-2


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([1, 1, 1, 1], [0, 1, 2, 3]),
        ([0, 0, 1, 1], [0, 0, 0, 1]),
        ([1, 1, 0, 0], [0, 1, 0, 0]),
        ([0, 1, 0, 1], [0, 0, 0, 1]),
        ([0, 0, 0, 0], [0, 0, 0, 0]),
    ],
)
def test_positions_are_the_exclusive_cumulative_sum_of_the_mask(mask, expected):
    """So padding before a text moves none of its positions."""
    for dtype in (jnp.float32, jnp.int32, bool):
        got = positions_of(jnp.array(mask, dtype))
        assert got.dtype == jnp.int32
        np.testing.assert_array_equal(got, expected)
    batched = jax.jit(jax.vmap(positions_of))(jnp.array([mask, mask], jnp.float32))
    np.testing.assert_array_equal(batched, [expected, expected])


@pytest.mark.parametrize(("left", "right"), [(1, 0), (50, 0), (0, 50), (20, 30)])
def test_padding_left_or_right_changes_no_logit(left, right):
    """Up to 50 pads on either side."""
    mask = jnp.pad(jnp.ones(7), (left, right))
    padded = forward(jnp.pad(TOKENS, (left, right)), mask)
    np.testing.assert_allclose(padded[left : left + 7], forward(TOKENS, jnp.ones(7)), atol=1e-5)


def test_padding_inside_a_sequence_changes_no_logit():
    """As between a left-padded query and its response."""
    tokens = jnp.concatenate([jnp.zeros(2, jnp.int32), TOKENS[:3], jnp.zeros(4, jnp.int32), TOKENS[3:]])
    real = np.array([0, 0, 1, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1])
    padded = forward(tokens, jnp.asarray(real, jnp.float32))
    np.testing.assert_allclose(padded[real > 0], forward(TOKENS, jnp.ones(7)), atol=1e-5)


def test_what_stands_in_padded_slots_changes_nothing():
    """Bit for bit: masked slots are never read."""
    mask = jnp.array([0.0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 0, 0])
    padded = jnp.concatenate([jnp.zeros(3, jnp.int32), TOKENS, jnp.zeros(2, jnp.int32)])
    rubbish = padded.at[jnp.array([0, 1, 2, 10, 11])].set(jnp.array([7, VOCAB - 1, 1, 13, 6]))
    np.testing.assert_array_equal(forward(padded, mask)[3:10], forward(rubbish, mask)[3:10])


def test_a_sequence_of_padding_alone_stays_finite():
    loss = lambda params: jnp.sum(LM.encode(params, jnp.zeros(4, jnp.int32), jnp.zeros(4))[0] ** 2)
    value, grads = jax.jit(jax.value_and_grad(loss))(PARAMS)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(grads))


@pytest.mark.parametrize(
    ("mask", "segments", "expected"),
    [
        ([1, 1, 1, 1, 1], [0, 0, 1, 1, 1], [0, 1, 0, 1, 2]),
        ([0, 1, 1, 1, 0], [3, 3, 3, 7, 7], [0, 0, 1, 0, 0]),
        ([1, 1, 0, 1, 1], [5, 5, 5, 5, 2], [0, 1, 0, 2, 0]),
        ([1, 1, 1, 1, 1], [0, 1, 2, 3, 4], [0, 0, 0, 0, 0]),
    ],
)
def test_positions_restart_with_every_document(mask, segments, expected):
    for read in (positions_of, jax.jit(positions_of)):
        np.testing.assert_array_equal(read(jnp.array(mask), jnp.array(segments)), expected)


def test_packed_documents_do_not_see_each_other():
    """Issue 7: packed equals unpacked, padding in between included."""
    mask = jnp.array([1.0, 1, 1, 1, 0, 1, 1, 1, 1, 1, 1, 1, 0])
    tokens = jnp.concatenate([TOKENS[:4], jnp.array([6]), TOKENS, jnp.array([8])])
    segments = jnp.array([4] * 5 + [1] * 7 + [2])
    pack = lambda tokens: LM.logits(PARAMS, encode(PARAMS, tokens, mask, segments=segments)[0])
    packed = pack(tokens)
    alone = forward(TOKENS, jnp.ones(7))
    np.testing.assert_allclose(packed[:4], alone[:4], atol=1e-5)
    np.testing.assert_allclose(packed[5:12], alone, atol=1e-5)
    np.testing.assert_array_equal(pack(tokens.at[:5].set(11))[5:12], packed[5:12])


@pytest.mark.parametrize("prefilled", [1, 4])
def test_cached_logits_equal_a_full_pass(prefilled):
    """Token by token through the cache, behind left padding."""
    tokens = jnp.concatenate([jnp.zeros(3, jnp.int32), TOKENS])
    mask = (jnp.arange(10) >= 3).astype(jnp.float32)
    positions, length = positions_of(mask), 3 + prefilled
    read = functools.partial(jax.jit(LM.encode), PARAMS)
    hidden, cache = read(tokens[:length], mask, LM.init_cache(10), 0, positions[:length])
    rows = [hidden]
    for i in range(length, 10):
        hidden, cache = read(tokens[i : i + 1], mask, cache, i, positions[i : i + 1])
        rows.append(hidden)
    got = LM.logits(PARAMS, jnp.concatenate(rows))
    np.testing.assert_allclose(got[3:], forward(TOKENS, jnp.ones(7)), atol=1e-5)


def test_vmap_equals_one_by_one():
    rows = jnp.stack([TOKENS, TOKENS[::-1]])
    masks = jnp.array([[0.0, 0, 1, 1, 1, 1, 1], [1.0, 1, 1, 1, 1, 1, 0]])
    hidden, _ = jax.jit(jax.vmap(LM.encode, (None, 0, 0)))(PARAMS, rows, masks)
    for one, row, mask in zip(hidden, rows, masks, strict=True):
        np.testing.assert_allclose(one, encode(PARAMS, row, mask)[0], atol=1e-5)


def test_the_context_may_be_filled_and_beyond_it_everything_is_loudly_nan():
    context = LM.config.context
    assert np.isfinite(forward(jnp.ones(context, jnp.int32), jnp.ones(context))).all()
    assert np.isnan(forward(jnp.ones(context + 1, jnp.int32), jnp.ones(context + 1))).all()


def test_nothing_in_the_model_is_random():
    """No dropout, in any pass."""
    jaxpr = jax.make_jaxpr(jax.grad(lambda p: jnp.sum(LM.encode(p, TOKENS, jnp.ones(7))[0])))(PARAMS)
    names = primitives(jaxpr)
    assert "dot_general" in names
    assert not [name for name in names if "random" in name or "threefry" in name]


def test_initial_weights_follow_gpt_2():
    config = TransformerConfig(300, width=64, layers=3, heads=4, context=32)
    params = jax.tree.map(np.asarray, jax.jit(make_transformer(config).init)(jax.random.key(0)))
    layers = params["layers"]
    assert layers["query"]["kernel"].shape == (3, 64, 64)
    assert layers["down"]["kernel"].shape == (3, 256, 64)
    for name, stddev in {
        "query": 0.02,
        "up": 0.02,
        "attention_out": 0.02 / 6**0.5,
        "down": 0.02 / 6**0.5,
    }.items():
        for kernel in layers[name]["kernel"]:
            assert kernel.std() == pytest.approx(stddev, rel=0.1)
        np.testing.assert_array_equal(layers[name]["bias"], 0.0)
    assert not np.array_equal(layers["query"]["kernel"][0], layers["query"]["kernel"][1])
    per_layer = 12 * 64**2 + 13 * 64
    assert sum(x.size for x in jax.tree.leaves(params)) == (300 + 32 + 2) * 64 + 3 * per_layer


def test_a_model_of_bfloat16_weights_gives_float32_logits():
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), PARAMS)
    logits = LM.logits(half, encode(half, TOKENS, jnp.ones(7))[0])
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(logits, forward(TOKENS, jnp.ones(7)), atol=0.3)


def test_reward_heads_start_random_and_value_heads_at_zero():
    """N(0, 1 / sqrt(d + 1)) with bias 0 for the reward; 0 for the value."""
    drawn = jax.vmap(lambda key: init_scalar_head(key, 24)["kernel"])(
        jax.random.split(jax.random.key(0), 2000)
    )
    assert drawn.shape == (2000, 24)
    assert drawn.mean() == pytest.approx(0.0, abs=0.005)
    assert drawn.std() == pytest.approx(0.2, rel=0.02)  # 1 / sqrt(25)
    assert init_scalar_head(jax.random.key(0), 24)["bias"] == 0.0
    assert not any(x.any() for x in jax.tree.leaves(init_scalar_head(None, 24)))


def test_a_scalar_head_reads_one_number_from_a_hidden_state():
    head = {"kernel": jnp.array([1.0, -2.0]), "bias": jnp.array(0.5)}
    np.testing.assert_allclose(apply_scalar_head(head, jnp.array([[3.0, 1.0], [0.0, 1.0]])), [1.5, -1.5])
    assert apply_scalar_head(head, jnp.array([3.0, 1.0])).shape == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocab_size": 0}, "vocab_size must be at least 1; got 0"),
        ({"layers": 0}, "layers must be at least 1; got 0"),
        ({"context": -1}, "context must be at least 1; got -1"),
        ({"heads": 3}, "heads must divide width; got width=64, heads=3"),
    ],
)
def test_shapes_that_cannot_be_built_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**({"vocab_size": 10} | change))


def test_a_cache_needs_positions():
    with pytest.raises(ValueError, match="needs the tokens' positions"):
        LM.encode(PARAMS, TOKENS, jnp.ones(7), LM.init_cache(7))


def test_packed_documents_have_no_cache():
    with pytest.raises(ValueError, match="packed documents have no cache; pass segments without one"):
        LM.encode(PARAMS, TOKENS, jnp.ones(7), LM.init_cache(7), 0, jnp.arange(7), segments=jnp.ones(7, int))


def test_tokens_and_mask_of_unequal_length_are_refused():
    with pytest.raises(AssertionError):
        LM.encode(PARAMS, TOKENS, jnp.ones(8))
    with pytest.raises(AssertionError):
        LM.encode(PARAMS, TOKENS, jnp.ones(7), segments=jnp.ones(8, int))
