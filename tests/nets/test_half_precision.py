"""In bfloat16: one token's attention, generation in a batch, and the gradient of the logits."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.nets.blocks import Cache, attend_all
from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from jaxrl_align.text import Filters, TextConfig, generate
from jaxrl_align.types import PaddedTokens
from tests.tiny import draw_params

CONFIG = TransformerConfig(50, width=32, layers=2, heads=4, key_value_heads=2, context=16, dtype="bfloat16")
NARROW = lambda tree: jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)


@pytest.mark.parametrize(("heads", "kv_heads", "depth"), [(4, 2, 8), (2, 2, 8), (3, 1, 5)])
def test_one_tokens_attention_is_that_of_float32(heads, kv_heads, depth):
    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.bfloat16)
    masks = jnp.asarray(rng.random((3, 1, 6)) < 0.5), jnp.ones((3, 1, 1), bool)
    places = [Cache(draw(3, kv_heads, n, depth), draw(3, kv_heads, n, depth)) for n in (6, 1)]
    query = draw(3, 1, heads, depth)

    @jax.jit
    @jax.vmap
    def read(query, places, masks):
        return attend_all(query, list(zip(places, masks, strict=True)), 0.7)

    wide = jax.tree.map(lambda x: x.astype(jnp.float32), (query, places))
    got, expected = read(query, places, masks), read(*wide, masks)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(got, np.float32), expected, rtol=2**-8, atol=2**-8)


def test_large_products_stay_finite():
    ones = jnp.ones((2, 1, 4), jnp.bfloat16)
    place = Cache(100 * ones, ones), jnp.ones((1, 1), bool)
    read = attend_all(100 * ones.swapaxes(0, 1), [place, place], 1.0)
    np.testing.assert_array_equal(np.asarray(read, np.float32), 1.0)


def list_equations(jaxpr):
    """Yield a program's operations, those of its loops included."""
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from list_equations(inner)


@pytest.mark.parametrize(("kind", "slices"), [("float32", 2), ("bfloat16", 0)])
def test_a_layer_takes_its_part_of_the_cache(kind, slices):
    """By an index in float32, by the scan in bfloat16."""
    lm = make_transformer(replace(CONFIG, dtype=kind))
    params, cache, one = draw_params(lm), lm.init_cache(8), jnp.zeros(1, jnp.int32)
    read = lambda start: lm.encode(params, one, jnp.ones(8), cache, start, one)
    found = [
        e
        for e in list_equations(jax.make_jaxpr(read)(3).jaxpr)
        if e.primitive.name == "dynamic_slice" and e.invars[0].aval.shape == cache.key.shape
    ]
    assert len(found) == slices


@pytest.mark.parametrize("kv_heads", [2, 4])
@pytest.mark.parametrize("changes", [{}, {"window": 3, "window_layers": (1,)}, {"positions": "rotary"}])
def test_a_batch_is_written_as_it_is_read(kv_heads, changes):
    """XLA has no products of bfloat16 numbers for a batch of grouped queries on a CPU."""
    config = replace(CONFIG, key_value_heads=kv_heads, **changes)
    lm, text = make_transformer(config), TextConfig(5, 6)
    params = NARROW(draw_params(lm))
    tokens = jax.random.randint(jax.random.key(0), (3, 5), 2, 50)
    prompts = PaddedTokens(tokens, jnp.ones(tokens.shape).at[1, :2].set(0.0))

    @jax.jit
    @jax.vmap
    def write(prompt, key):
        out = generate(lm, params, prompt, key, text, filters=Filters(top_k=1), stop_tokens=())
        whole = jnp.concatenate([prompt.tokens, out.tokens])
        real = jnp.concatenate([prompt.real, out.mask])
        wide = make_transformer(replace(config, dtype="float32"))
        logits = wide.logits(params, wide.encode(params, whole, real)[0])[4:-1].at[:, 0].set(-jnp.inf)
        return jnp.max(logits, -1) - jnp.take_along_axis(logits, out.tokens[:, None], -1)[:, 0]

    behind = write(prompts, jax.random.split(jax.random.key(1), 3))
    assert jnp.max(behind) < 0.05  # of the likeliest token's logit in float32


@pytest.mark.parametrize("trained", [(0, 1), (0,), (1,)])
@pytest.mark.parametrize("tied", [True, False])
def test_logits_gradients_are_multiplied_in_their_own_type(trained, tied):
    lm = make_transformer(replace(CONFIG, tied_head=tied))
    name = "tokens" if tied else "head"
    params = NARROW(draw_params(lm))
    hidden = jax.random.normal(jax.random.key(2), (3, 7, 32), jnp.bfloat16)

    def loss(kind):
        read = make_transformer(replace(CONFIG, tied_head=tied, dtype=kind))

        def of(hidden, head):
            given = params | {name: head}
            return jnp.sum(jnp.sin(jax.vmap(lambda h: read.logits(given, h))(hidden)))

        return of

    gradient = jax.grad(loss("bfloat16"), trained)
    got = jax.jit(gradient)(hidden, params[name])
    expected = jax.jit(jax.grad(loss("float32"), trained))(
        *(x.astype(jnp.float32) for x in (hidden, params[name]))
    )
    for x, y in zip(got, expected, strict=True):
        assert x.dtype == jnp.bfloat16
        distance = np.linalg.norm(np.asarray(x, np.float32) - y) / np.linalg.norm(y)
        assert distance < 0.01
    products = [
        e for e in jax.make_jaxpr(gradient)(hidden, params[name]).eqns if e.primitive.name == "dot_general"
    ]
    assert len(products) == 1 + len(trained)  # what is fixed has none
    assert all(x.aval.dtype == jnp.bfloat16 for e in products for x in e.invars)
    _, moved = jax.jvp(lambda h: lm.logits(params, h), (hidden,), (hidden,))
    np.testing.assert_allclose(moved, lm.logits(params, hidden), rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize(("shape", "columns"), [((3, 7, 32), 128), ((1, 32), 50), ((32,), 50)])
def test_many_tokens_logits_have_rows_of_whole_cache_lines(shape, columns):
    lm = make_transformer(CONFIG)
    params, hidden = draw_params(lm), jax.random.normal(jax.random.key(2), shape, jnp.bfloat16)
    read = lambda hidden: lm.logits(params, hidden)
    program = jax.jit(read).trace(hidden).lower().as_text()
    (product,) = [line for line in program.splitlines() if "dot_general" in line]
    assert "x".join(map(str, (*shape[:-1], columns))) + "xf32>" in product
    rounded = params["tokens"].astype(jnp.bfloat16).astype(jnp.float32)
    assert read(hidden).shape == (*shape[:-1], 50)
    np.testing.assert_allclose(read(hidden), hidden.astype(jnp.float32) @ rounded.T, rtol=1e-3, atol=1e-4)
