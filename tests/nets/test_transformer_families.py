"""The layouts beyond GPT-2's, from Llama to Gemma 3 and OLMo 2, and every part taken away."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.nets import init_lora, merge, overlay
from jaxrl_align.nets.rope import rope_frequencies, rotate
from jaxrl_align.nets.transformer import TransformerConfig, make_transformer, positions_of
from jaxrl_align.nets.transformer_config import RopeScaling

SMALL = TransformerConfig(20, width=16, layers=2, heads=4, context=40)
MODERN = dataclasses.replace(
    SMALL, positions="rotary", norm="rms", feed_forward="swiglu", feed_forward_width=24, biased=()
)
FAMILIES = {
    "llama": dataclasses.replace(
        MODERN,
        key_value_heads=2,
        tied_head=False,
        rope_scaling=RopeScaling(8.0, 1.0, 4.0, 16),
        rope_theta=50.0,
    ),
    "qwen2": dataclasses.replace(
        MODERN, key_value_heads=1, biased=("query", "key", "value"), window=3, window_layers=(1,)
    ),
    "qwen3": dataclasses.replace(MODERN, head_width=6, query_key_norm="head", window=4, norm_epsilon=1e-6),
    "gemma3": dataclasses.replace(
        MODERN,
        norm="offset_rms",
        norm_placement="both",
        feed_forward="geglu",
        embedding_scale=4.0,
        query_key_norm="head",
        attention_scale=0.3,
        rope_theta=400.0,
        rope_scaling=RopeScaling(4.0),
        local_rope_theta=20.0,
        window=3,
        window_layers=(1,),
    ),
    "smollm3": dataclasses.replace(MODERN, key_value_heads=2, rotary_layers=(1,)),
    "olmo2": dataclasses.replace(
        MODERN, norm_placement="after", query_key_norm="width", key_value_heads=2, tied_head=False
    ),
}
TOKENS = jnp.array([5, 3, 9, 17, 4, 11, 2])


def fill(shapes):
    """Return random leaves, drawn without compiling a draw; norms stay around 1."""
    draw = np.random.default_rng(0)
    around = lambda path, x: float(path[-1].key == "scale") + 0.2 * draw.standard_normal(x.shape)
    return jax.tree_util.tree_map_with_path(lambda *leaf: jnp.asarray(around(*leaf), jnp.float32), shapes)


def weights(config):
    """Return a model and parameters in which norms and biases too matter."""
    lm = make_transformer(config)
    return lm, fill(jax.eval_shape(lm.init, jax.random.key(0)))


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    """Return a family's model, its parameters and its jitted logits."""
    lm, params = weights(FAMILIES[request.param])

    @jax.jit
    def forward(params, tokens, mask):
        return lm.logits(params, lm.encode(params, tokens, mask)[0])

    return lm, params, forward


def rms(config, module, x):
    scale = module["scale"] + (config.norm == "offset_rms")
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + config.norm_epsilon) * scale


def numpy_rotate(x, position, frequency):
    """Turn each pair as a complex number."""
    half = len(x) // 2
    turned = (x[:half] + 1j * x[half:]) * np.exp(1j * position * frequency)
    return np.concatenate([turned.real, turned.imag])


def numpy_forward(config, params, tokens):
    """Llama and its kin as loops over layers, heads and tokens, for tokens without padding."""
    p = jax.tree.map(np.asarray, params)
    length, depth = len(tokens), config.depth
    scale = depth**-0.5 if config.attention_scale is None else config.attention_scale
    x = p["tokens"][tokens] * config.embedding_scale
    for i in range(config.layers):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], p["layers"])
        linear = lambda name, h, layer=layer: h @ layer[name]["kernel"] + layer[name].get("bias", 0.0)
        norm = lambda name, h, layer=layer: rms(config, layer[name], h) if name in layer else h
        h = norm("attention_norm", x)
        q, k, v = (linear(name, h) for name in ("query", "key", "value"))
        if config.query_key_norm == "width":
            q, k = norm("query_norm", q), norm("key_norm", k)
        q, k, v = (t.reshape(length, -1, depth) for t in (q, k, v))
        if config.query_key_norm == "head":
            q, k = norm("query_norm", q), norm("key_norm", k)
        windowed = config.window and (config.window_layers is None or i in config.window_layers)
        reach = config.window if windowed else length
        frequency = rope_frequencies(depth, config.rope_theta, config.rope_scaling)
        if windowed and config.local_rope_theta is not None:
            frequency = rope_frequencies(depth, config.local_rope_theta)
        if config.rotary_layers is not None and i not in config.rotary_layers:
            frequency = np.zeros_like(frequency)
        out = np.zeros((length, config.heads, depth))
        for head in range(config.heads):
            shared = head * config.kv_heads // config.heads
            for t in range(length):
                past = range(max(0, t - reach + 1), t + 1)
                query = numpy_rotate(q[t, head], t, frequency)
                scores = np.array([query @ numpy_rotate(k[s, shared], s, frequency) for s in past])
                weight = np.exp((scores - scores.max()) * scale)
                out[t, head] = (weight / weight.sum()) @ v[past.start : t + 1, shared]
        x = x + norm("attention_post_norm", linear("attention_out", out.reshape(length, -1)))
        h = norm("feed_forward_norm", x)
        gate = linear("gate", h)
        if config.feed_forward == "geglu":
            gate = 0.5 * gate * (1 + np.tanh((2 / np.pi) ** 0.5 * (gate + 0.044715 * gate**3)))
        else:
            gate = gate / (1 + np.exp(-gate))
        x = x + norm("feed_forward_post_norm", linear("down", gate * linear("up", h)))
    head = p["tokens"].T if config.tied_head else p["head"]
    return rms(config, p["final_norm"], x) @ head


def test_logits_equal_a_numpy_implementation(family):
    lm, params, forward = family
    expected = numpy_forward(lm.config, params, np.asarray(TOKENS))
    np.testing.assert_allclose(forward(params, TOKENS, jnp.ones(7)), expected, atol=2e-5)
    assert expected.std() > 0.3, "the comparison must not be between zeros"


def test_padding_changes_no_logit(family):
    _, params, forward = family
    plain = forward(params, TOKENS, jnp.ones(7))
    left = jnp.pad(TOKENS, (3, 2))
    mask = jnp.pad(jnp.ones(7), (3, 2))
    np.testing.assert_allclose(forward(params, left, mask)[3:10], plain, atol=1e-5)
    within = jnp.concatenate([TOKENS[:3], jnp.full(4, 8), TOKENS[3:], jnp.zeros(1, int)])[:12]
    mask = jnp.array([1.0, 1, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0])
    np.testing.assert_allclose(
        forward(params, within, mask)[jnp.array([0, 1, 2, 7, 8, 9, 10])], plain, atol=1e-5
    )


def test_no_mask_says_that_all_is_real_and_beyond_the_context_all_is_nan():
    lm, params = weights(FAMILIES["llama"])
    encode, tokens, mask = jax.jit(lm.encode), jnp.ones(41, int), jnp.ones(41)
    (plain, cache), masked = encode(params, tokens[1:]), encode(params, tokens, mask.at[0].set(0.0))[0]
    assert cache is None and np.isfinite(plain).all()
    np.testing.assert_allclose(plain, masked[1:], atol=1e-5)
    assert np.isnan(encode(params, tokens, mask)[0]).all()


def test_cached_logits_equal_a_full_pass(family):
    lm, params, forward = family
    tokens, mask = jnp.pad(TOKENS, (3, 0)), (jnp.arange(10) >= 3).astype(jnp.float32)
    positions = positions_of(mask)

    @jax.jit
    def one_by_one(params):
        hidden, cache = lm.encode(params, tokens[:5], mask, lm.init_cache(10), 0, positions[:5])
        read = lambda cache, i: lm.encode(params, tokens[i][None], mask, cache, i, positions[i][None])[::-1]
        return jnp.concatenate([hidden, jax.lax.scan(read, cache, jnp.arange(5, 10))[1][:, 0]])

    got = lm.logits(params, one_by_one(params))
    np.testing.assert_allclose(got[3:], forward(params, TOKENS, jnp.ones(7)), atol=1e-5)
    assert lm.init_cache(10).key.shape == (2, lm.config.kv_heads, 10, lm.config.depth)


def test_packed_documents_equal_documents_alone(family):
    lm, params, forward = family
    segments = jnp.array([0] * 5 + [1] * 7)
    hidden = jax.jit(lm.encode)(params, jnp.concatenate([TOKENS[:5], TOKENS]), segments=segments)[0]
    alone = forward(params, TOKENS, jnp.ones(7))
    np.testing.assert_allclose(lm.logits(params, hidden), jnp.concatenate([alone[:5], alone]), atol=1e-5)


def test_an_adapter_reaches_every_linear_layer_and_merges(family):
    lm, params, forward = family
    part, constants = jax.eval_shape(lambda key: init_lora(key, params, rank=2), jax.random.key(2))
    adapter, base = fill(part), overlay(params, jax.tree.map(lambda x: jnp.full(x.shape, 2.0), constants))
    assert set(adapter["layers"]) == {"query", "key", "value", "attention_out", "gate", "up", "down"}

    def loss(adapter):
        logits = lm.logits(params, lm.encode(overlay(base, adapter), TOKENS, jnp.ones(7))[0])
        return jnp.sum(logits**2), logits

    gradients, adapted = jax.jit(jax.grad(loss, has_aux=True))(adapter)
    for name, gradient in gradients["layers"].items():
        assert gradient["lora"]["a"].any() and gradient["lora"]["b"].any(), name
    assert jnp.abs(adapted - forward(params, TOKENS, jnp.ones(7))).max() > 0.1
    merged = forward(merge(overlay(base, adapter)), TOKENS, jnp.ones(7))
    np.testing.assert_allclose(merged, adapted, atol=2e-5)


def test_bfloat16_computes_in_half_and_keeps_parameters_logits_and_gradients_whole():
    lm, params = weights(FAMILIES["qwen3"])
    half = make_transformer(dataclasses.replace(lm.config, dtype="bfloat16"))
    assert half.init_cache(3).key.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(jax.eval_shape(half.init, jax.random.key(0)))} == {
        np.dtype(np.float32)
    }

    def judge(params):
        hidden = half.encode(params, TOKENS)[0]
        logits = half.logits(params, hidden)
        return jnp.mean(logits**2), (logits, hidden)

    gradient, (logits, hidden) = jax.jit(jax.grad(judge, has_aux=True))(params)
    assert (hidden.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    expected = numpy_forward(lm.config, params, np.asarray(TOKENS))
    assert 0 < np.abs(logits - expected).max() < 0.1 * expected.std()
    for leaf in jax.tree.leaves(gradient):
        assert leaf.dtype == jnp.float32 and np.isfinite(leaf).all() and leaf.any()


def test_norm_and_softmax_of_bfloat16_add_up_in_float32():
    """A norm over 1024 equal entries of half precision: sums in bfloat16 would stop growing at 256."""
    config = TransformerConfig(
        4, 1024, 1, 1, 600, norm="rms", positions="none", feed_forward="none", dtype="bfloat16"
    )
    lm = make_transformer(config)
    params = jax.eval_shape(lm.init, jax.random.key(0))
    params = jax.tree.map(lambda x: jnp.zeros(x.shape), params) | {"tokens": jnp.ones((4, 1024))}
    params["final_norm"] = {"scale": jnp.ones(1024)}
    params["layers"]["value"]["bias"] = jnp.ones((1, 1024))
    params["layers"]["attention_out"]["kernel"] = jnp.eye(1024)[None]
    hidden = jax.jit(lm.encode)(params, jnp.zeros(600, int))[0]
    np.testing.assert_allclose(hidden.astype(jnp.float32), 1.0, atol=0.01)
    np.testing.assert_allclose(lm.logits(params, hidden)[-1], 1024.0, rtol=0.01)


@pytest.mark.parametrize("family", ["qwen2", "gemma3"])
def test_layers_one_behind_the_other_compute_the_same_without_a_loop(family):
    lm, params = weights(FAMILIES[family])
    unrolled = make_transformer(dataclasses.replace(lm.config, unroll=True))
    assert jax.tree.map(jnp.shape, jax.eval_shape(unrolled.init, jax.random.key(0))) == jax.tree.map(
        jnp.shape, params
    )

    def read(lm):
        def loss(params):
            hidden = lm.encode(params, TOKENS, jnp.ones(7))[0]
            return jnp.sum(hidden**2), hidden

        def write(params):
            cache, place = lm.init_cache(8), jnp.arange(7)
            cache = lm.encode(params, TOKENS, jnp.ones(8), cache, 0, place)[1]
            return lm.encode(params, TOKENS[:1], jnp.ones(8), cache, 7, place[-1:] + 1)

        both = jax.jit(lambda params: (jax.grad(loss, has_aux=True)(params), write(params)))
        return both.trace(params).lower().as_text().count("stablehlo.while"), both(params)

    (loops, want), (none, got) = read(lm), read(unrolled)
    assert loops == 4 and none == 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4), got, want)


def test_remat_recomputes_and_changes_nothing():
    lm, params = weights(FAMILIES["qwen2"])
    again = make_transformer(dataclasses.replace(lm.config, remat=True))
    gradients = [
        jax.grad(lambda p, lm=lm: jnp.sum(lm.encode(p, TOKENS, jnp.ones(7))[0] ** 2)) for lm in (lm, again)
    ]
    for got, want in zip(*(jax.tree.leaves(jax.jit(g)(params)) for g in gradients), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-4)
    products = [str(jax.make_jaxpr(g)(params)).count("dot_general") for g in gradients]
    assert products[1] > products[0]


@pytest.mark.parametrize(
    ("change", "gone"),
    [
        ({"positions": "none"}, {"positions"}),
        ({"norm": "none"}, {"attention_norm", "feed_forward_norm", "final_norm"}),
        ({"feed_forward": "none"}, {"up", "down", "feed_forward_norm"}),
        ({"residual": False}, set()),
    ],
    ids=["positions", "norm", "feed_forward", "residual"],
)
def test_every_part_can_be_taken_away(change, gone):
    """Lecture C1."""
    (lm, params), (less, _) = weights(SMALL), weights(dataclasses.replace(SMALL, **change))
    left = {name: value for name, value in params.items() if name not in gone}
    left["layers"] = {name: value for name, value in params["layers"].items() if name not in gone}
    assert jax.tree.structure(left) == jax.tree.structure(jax.eval_shape(less.init, jax.random.key(0)))
    got = jax.jit(less.encode)(left, TOKENS)[0]
    assert np.isfinite(got).all()
    assert np.abs(got - jax.jit(lm.encode)(params, TOKENS)[0]).max() > 1e-2


def test_without_positions_the_last_token_cannot_tell_the_order_of_the_others():
    lm, params = weights(dataclasses.replace(SMALL, positions="none", layers=1))
    encode = jax.jit(lm.encode)
    shuffled = TOKENS[jnp.array([3, 0, 5, 1, 4, 2, 6])]
    np.testing.assert_allclose(encode(params, TOKENS)[0][-1], encode(params, shuffled)[0][-1], atol=1e-5)


def test_without_residuals_a_layer_of_zeros_forgets_its_input():
    lm, params = weights(dataclasses.replace(SMALL, residual=False))
    params["layers"]["down"] = jax.tree.map(jnp.zeros_like, params["layers"]["down"])
    hidden = jax.jit(lm.encode)(params, TOKENS)[0]
    np.testing.assert_allclose(
        hidden, jnp.broadcast_to(params["final_norm"]["bias"], hidden.shape), atol=1e-6
    )


@pytest.mark.parametrize("layers", [None, (0,)])
def test_a_window_ends_where_it_says(layers):
    config = dataclasses.replace(MODERN, layers=1, window=3, window_layers=layers)
    lm, params = weights(config)
    read = jax.jit(lambda tokens: lm.encode(params, tokens)[0])
    changed = np.abs(read(TOKENS.at[1].set(8)) - read(TOKENS)).max(-1) > 1e-4
    np.testing.assert_array_equal(changed, [False, True, True, True, False, False, False])


def test_rotation_by_hand():
    x = jnp.array([[[1.0, 0.0, 0.0, 2.0]]])
    got = rotate(x, jnp.array([[jnp.pi / 2, jnp.pi]]))
    np.testing.assert_allclose(got, [[[0.0, 0.0, 1.0, -2.0]]], atol=1e-6)
    assert rotate(x.astype(jnp.bfloat16), jnp.zeros((1, 2))).dtype == jnp.bfloat16


def test_rotated_products_depend_on_the_distance_alone():
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 1, 8))
    frequency = rope_frequencies(8, 10_000.0)
    turn = lambda x, position: rotate(x, position * frequency[None])
    near, far = (float(jnp.sum(turn(query, t + 5.0) * turn(key, t))) for t in (0.0, 100.0))
    assert near == pytest.approx(far, abs=1e-4)
    assert near != pytest.approx(float(jnp.sum(query * key)), abs=1e-2)


def test_frequencies_by_hand():
    np.testing.assert_allclose(rope_frequencies(4, 100.0), [1.0, 0.1], rtol=1e-6)
    np.testing.assert_allclose(rope_frequencies(4, 100.0, RopeScaling(4.0)), [0.25, 0.025], rtol=1e-6)
    # Wavelengths 6.28, 62.8, 628 against the bounds 200 / 4 = 50 and 200 / 1 = 200 of Llama 3.
    scaled = rope_frequencies(6, 1000.0, RopeScaling(8.0, 1.0, 4.0, 200))
    smooth = (200 * 0.1 / (2 * np.pi) - 1) / 3
    np.testing.assert_allclose(scaled, [1.0, (1 - smooth) * 0.1 / 8 + smooth * 0.1, 0.01 / 8], rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "batch"}, "norm must be one of layer, rms, offset_rms, none; got 'batch'"),
        ({"dtype": "float16"}, "dtype must be one of float32, bfloat16; got 'float16'"),
        ({"window": 0}, "window must be at least 1; got 0"),
        ({"key_value_heads": 3}, "must divide heads; got heads=4, key_value_heads=3"),
        ({"positions": "rotary", "head_width": 5}, "a head's width must be even; got 5"),
        ({"biased": ("query", "qkv")}, r"biased must name linear layers among .*; got \['qkv'\]"),
        ({"window": 2, "window_layers": (2,)}, r"window_layers must lie in 0..1; got \[2\]"),
        ({"window_layers": (0,)}, r"window_layers=\(0,\) needs a window; got window=None"),
    ],
)
def test_configurations_that_cannot_be_built_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(SMALL, **change)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.5,), "factor must be at least 1; got 0.5"),
        ((2.0, 1.0), "together, or none of them"),
        ((2.0, 4.0, 1.0, 32), "expected 0 < low < high"),
    ],
)
def test_scalings_that_cannot_be_meant_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RopeScaling(*arguments)
