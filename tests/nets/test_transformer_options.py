"""The options that Gemma 3, SmolLM3 and OLMo 2 brought, each by itself."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.nets.rope import layer_frequencies, rope_frequencies
from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from jaxrl_align.nets.transformer_config import RopeScaling

ROTARY = TransformerConfig(
    20, width=16, layers=2, heads=4, context=40, positions="rotary", norm="rms", biased=()
)
TOKENS = jnp.array([5, 3, 9, 17, 4, 11, 2])
SHUFFLED = TOKENS[jnp.array([3, 0, 5, 1, 4, 2, 6])]


def draw(config):
    """Return parameters in which norms too matter; the same draw for every module of the same name."""
    shapes = jax.eval_shape(make_transformer(config).init, jax.random.key(0))

    def leaf(path, shape):
        path = jax.tree_util.keystr(path)
        source = np.random.default_rng(list(path.encode()))
        center = float("scale" in path and config.norm != "offset_rms")
        return jnp.asarray(center + 0.2 * source.standard_normal(shape.shape), jnp.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


@functools.cache
def compiled(config):
    return jax.jit(make_transformer(config).encode)


def encode(config, params, tokens=TOKENS):
    return np.asarray(compiled(config)(params, tokens)[0], np.float32)


def multiply(params, factor, *path):
    """Return the parameters with one leaf multiplied."""
    chosen = "".join(f"['{name}']" for name in path)
    return jax.tree_util.tree_map_with_path(
        lambda p, x: x * factor if jax.tree_util.keystr(p) == chosen else x, params
    )


def map_scales(params, change):
    return jax.tree_util.tree_map_with_path(lambda p, x: change(x) if p[-1].key == "scale" else x, params)


def test_an_offset_norm_is_an_rms_norm_with_one_plus_its_scale():
    """At `w = 0` its scale is 1; queries' and keys' norms are of the same kind."""
    offset = dataclasses.replace(ROTARY, norm="offset_rms", norm_placement="both", query_key_norm="head")
    plain = dataclasses.replace(offset, norm="rms")
    params = draw(offset)
    got = encode(offset, params)
    np.testing.assert_array_equal(got, encode(plain, map_scales(params, lambda w: 1 + w)))
    assert np.abs(got - encode(plain, params)).max() > 0.1
    params = jax.jit(make_transformer(offset).init)(jax.random.key(0))
    scales = []
    map_scales(params, scales.append)
    assert len(scales) == 7 and not any(w.any() for w in scales)
    np.testing.assert_array_equal(
        encode(offset, params), encode(plain, map_scales(params, lambda w: jnp.ones_like(w)))
    )


def test_an_offset_norm_adds_in_float32_to_weights_of_half_precision():
    """1 + 1/512 is 1 in bfloat16."""
    config = TransformerConfig(
        2, 2, 1, 1, 4, positions="none", norm="offset_rms", feed_forward="none", norm_epsilon=1e-30
    )
    params = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.bfloat16), draw(config))
    params |= {"tokens": jnp.ones((2, 2)), "final_norm": {"scale": jnp.full(2, 1 / 512, jnp.bfloat16)}}
    np.testing.assert_array_equal(encode(config, params, jnp.array([1])), 1 + 1 / 512)


@pytest.mark.parametrize(
    ("placement", "names"),
    [
        ("before", {"attention_norm", "feed_forward_norm"}),
        ("after", {"attention_post_norm", "feed_forward_post_norm"}),
        ("both", {"attention_norm", "feed_forward_norm", "attention_post_norm", "feed_forward_post_norm"}),
    ],
)
def test_norms_stand_where_the_placement_says(placement, names):
    """Behind a norm, the scale of what a part adds does not matter; before one, that of what it reads."""
    config = dataclasses.replace(ROTARY, norm_placement=placement, norm_epsilon=1e-12)
    params = draw(config)
    assert {name for name in params["layers"] if "norm" in name} == names
    plain = encode(config, params)
    for name in ("attention_out", "down"):
        changed = np.abs(encode(config, multiply(params, 3.0, "layers", name, "kernel")) - plain).max()
        assert changed > 0.1 if placement == "before" else changed < 1e-4, name
    for name in names:
        assert np.abs(encode(config, multiply(params, 3.0, "layers", name, "scale")) - plain).max() > 0.1
    silent = jax.tree_util.tree_map_with_path(
        lambda p, x: 0 * x if "post_norm" in jax.tree_util.keystr(p) else x, params
    )
    if placement != "before":  # both parts add nothing: the final norm of the embeddings is left
        embedded = np.asarray(params["tokens"])[np.asarray(TOKENS)]
        expected = embedded / np.sqrt((embedded**2).mean(-1, keepdims=True))
        np.testing.assert_allclose(
            encode(config, silent),
            expected * np.asarray(params["final_norm"]["scale"])[None],
            atol=1e-5,
            rtol=1e-5,
        )


def test_the_embedding_scale_multiplies_what_is_read_but_not_the_head():
    scaled = dataclasses.replace(ROTARY, embedding_scale=4.0)
    params = draw(scaled)
    hidden = encode(scaled, params)
    larger = multiply(params, 4.0, "tokens")
    np.testing.assert_array_equal(hidden, encode(ROTARY, larger))
    logits = [make_transformer(scaled).logits(p, hidden) for p in (params, larger)]
    np.testing.assert_allclose(4 * logits[0], logits[1], rtol=1e-5)
    learned = dataclasses.replace(scaled, positions="learned")
    params = draw(learned)
    unscaled = dataclasses.replace(learned, embedding_scale=1.0)
    np.testing.assert_array_equal(
        encode(learned, params), encode(unscaled, multiply(params, 4.0, "tokens")), "positions are not scaled"
    )


def test_the_embedding_scale_is_rounded_to_the_dtype():
    """As in transformers: sqrt(10) = 3.1623 is 3.15625 in bfloat16, where 15 times it is 47.25, not 47.5."""
    config = TransformerConfig(
        20, 2, 1, 1, 8, positions="none", norm="none", feed_forward="none", embedding_scale=10**0.5
    )
    params = jax.tree.map(jnp.zeros_like, draw(config)) | {"tokens": jnp.full((20, 2), 15.0)}
    half = dataclasses.replace(config, dtype="bfloat16")
    np.testing.assert_array_equal(encode(half, params, jnp.array([1, 0])), 47.25)
    np.testing.assert_array_equal(encode(config, params), np.float32(15) * np.float32(10**0.5))


def test_the_attention_scale_is_one_with_scaled_queries():
    """Depth 4: the usual scale is 1/2, so 1.5 is three times as much; also through the cache."""
    config = dataclasses.replace(ROTARY, attention_scale=1.5)
    assert (config.scale, ROTARY.scale) == (1.5, 0.5)
    params = draw(ROTARY)
    larger = multiply(params, 3.0, "layers", "query", "kernel")
    expected = encode(ROTARY, larger)
    np.testing.assert_allclose(encode(config, params), expected, atol=1e-5)
    assert np.abs(encode(ROTARY, params) - expected).max() > 0.1
    lm = make_transformer(config)

    @jax.jit
    def in_two_steps(params):
        mask, positions = jnp.ones(7), jnp.arange(7)
        cache = lm.encode(params, TOKENS[:4], mask, lm.init_cache(7), 0, positions[:4])[1]
        return lm.encode(params, TOKENS[4:], mask, cache, jnp.int32(4), positions[4:])[0]

    np.testing.assert_allclose(in_two_steps(params), expected[4:], atol=1e-5)


def test_geglu_gates_with_gelu():
    """Width 1, no attention: `x + gelu(g x) u x d` by hand, with gelu(1) = 0.8412 in its tanh form."""
    config = TransformerConfig(
        2, 1, 1, 1, 4, positions="none", norm="none", feed_forward="geglu", feed_forward_width=1, biased=()
    )
    params = jax.tree.map(jnp.zeros_like, draw(config)) | {"tokens": jnp.full((2, 1), 0.5)}
    for name, value in {"gate": 2.0, "up": 3.0, "down": 5.0}.items():
        params["layers"][name]["kernel"] = jnp.full((1, 1, 1), value)
    assert config.linears == ("query", "key", "value", "attention_out", "gate", "up", "down")
    got = encode(config, params, jnp.array([1]))
    np.testing.assert_allclose(got, 0.5 + 0.841192 * 1.5 * 5, rtol=1e-5)


def test_a_norm_over_the_width_sees_all_heads_and_one_over_a_head_does_not():
    """Tripling the queries of one head: its own norm undoes that, a norm over all heads passes it on."""
    first = jnp.where(jnp.arange(16) < 4, 3.0, 1.0)  # head 0 of 4
    for kind, shape in (("head", (2, 4)), ("width", (2, 16))):
        config = dataclasses.replace(ROTARY, query_key_norm=kind, norm_epsilon=1e-12)
        params = draw(config)
        assert params["layers"]["query_norm"]["scale"].shape == shape
        plain = encode(config, params)
        whole = encode(config, multiply(params, 3.0, "layers", "query", "kernel"))
        one = encode(config, multiply(params, first[None, None], "layers", "query", "kernel"))
        np.testing.assert_allclose(whole, plain, atol=1e-4)
        changed = np.abs(one - plain).max()
        assert changed < 1e-4 if kind == "head" else changed > 0.01
    grouped = dataclasses.replace(ROTARY, query_key_norm="width", key_value_heads=2)
    assert draw(grouped)["layers"]["key_norm"]["scale"].shape == (2, 8)


def test_layers_without_positions_cannot_tell_the_order_of_what_they_read():
    """No layer rotates: as without positions, bit for bit. One that does is enough to tell the order."""
    params = draw(ROTARY)
    none = dataclasses.replace(ROTARY, rotary_layers=())
    absent = dataclasses.replace(ROTARY, positions="none")
    np.testing.assert_array_equal(encode(none, params), encode(absent, params))
    every = dataclasses.replace(ROTARY, rotary_layers=(0, 1))
    np.testing.assert_allclose(encode(every, params), encode(ROTARY, params), atol=1e-5)
    single = dataclasses.replace(ROTARY, layers=1, rotary_layers=())
    params = draw(single)
    np.testing.assert_allclose(
        encode(single, params)[-1], encode(single, params, SHUFFLED)[-1], atol=1e-5, err_msg="permuted"
    )
    rotating = dataclasses.replace(single, rotary_layers=(0,))
    assert np.abs(encode(rotating, params)[-1] - encode(rotating, params, SHUFFLED)[-1]).max() > 0.01


def test_the_layers_frequencies_by_hand():
    """Depth 4, base 100: 1 and 0.1; with base 16: 1 and 0.25."""
    config = dataclasses.replace(ROTARY, layers=3, rope_theta=100.0, window=2, window_layers=(1,))
    np.testing.assert_array_equal(layer_frequencies(config), rope_frequencies(4, 100.0))
    local = dataclasses.replace(config, local_rope_theta=16.0, rope_scaling=RopeScaling(2.0))
    np.testing.assert_allclose(layer_frequencies(local), [[0.5, 0.05], [1, 0.25], [0.5, 0.05]], rtol=1e-6)
    everywhere = dataclasses.replace(local, window_layers=None)
    np.testing.assert_allclose(layer_frequencies(everywhere), [[1, 0.25]] * 3, rtol=1e-6)
    partly = dataclasses.replace(local, rotary_layers=(0, 1))
    np.testing.assert_allclose(layer_frequencies(partly), [[0.5, 0.05], [1, 0.25], [0, 0]], rtol=1e-6)


def test_windowed_layers_turn_by_their_own_base():
    """With a window in all layers the local base is the base."""
    everywhere = dataclasses.replace(ROTARY, window=7, rope_theta=900.0, local_rope_theta=20.0)
    params = draw(ROTARY)
    local = encode(dataclasses.replace(ROTARY, rope_theta=20.0), params)
    np.testing.assert_allclose(encode(everywhere, params), local, atol=1e-5)
    mixed = encode(dataclasses.replace(everywhere, window_layers=(1,)), params)
    for theta in (20.0, 900.0):
        assert np.abs(mixed - encode(dataclasses.replace(ROTARY, rope_theta=theta), params)).max() > 0.01


def test_at_their_defaults_the_options_add_no_operation():
    """The layers of one frequency share an angle that is computed once, and nothing is multiplied by 1."""
    params = draw(ROTARY)
    program = lambda config: str(jax.make_jaxpr(make_transformer(config).encode)(params, TOKENS))
    plain = program(ROTARY)
    for option in ({"embedding_scale": 2.0}, {"attention_scale": 0.3}, {"rotary_layers": (0,)}):
        assert program(dataclasses.replace(ROTARY, **option)) != plain
    assert program(dataclasses.replace(ROTARY, embedding_scale=1.0, attention_scale=None)) == plain
    more = program(dataclasses.replace(ROTARY, embedding_scale=2.0))
    assert more.count("mul") == plain.count("mul") + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"norm": "offset"}, "norm must be one of layer, rms, offset_rms, none; got 'offset'"),
        ({"norm_placement": "between"}, "norm_placement must be one of before, after, both; got 'between'"),
        ({"feed_forward": "reglu"}, "feed_forward must be one of gelu, swiglu, geglu, none; got 'reglu'"),
        ({"query_key_norm": True}, "query_key_norm must be one of none, head, width; got True"),
        ({"embedding_scale": 0.0}, "embedding_scale must be positive; got 0.0"),
        ({"attention_scale": -1.0}, "attention_scale must be positive; got -1.0"),
        ({"attention_scale": float("nan")}, "attention_scale must be positive; got nan"),
        ({"rope_theta": 0.0}, "rope_theta must be positive; got 0.0"),
        ({"local_rope_theta": 0.0, "window": 2}, "local_rope_theta must be positive; got 0.0"),
        ({"local_rope_theta": 10.0}, "local_rope_theta=10.0 needs a window; got window=None"),
        (
            {"local_rope_theta": 10.0, "window": 2, "positions": "none"},
            "local_rope_theta=10.0 needs rotary positions; got positions='none'",
        ),
        ({"rotary_layers": (0, 2)}, r"rotary_layers must lie in 0..1; got \[2\]"),
        (
            {"rotary_layers": (), "positions": "learned"},
            r"rotary_layers=\(\) needs rotary positions; got positions='learned'",
        ),
        (
            {"rope_scaling": RopeScaling(4.0), "positions": "learned"},
            "rope_scaling=RopeScaling.* needs rotary positions; got positions='learned'",
        ),
    ],
)
def test_options_that_cannot_be_meant_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(ROTARY, **change)
