"""What cuDNN's attention is handed, and that it lowers; its numbers need a GPU."""

import functools
import re
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from jaxrl_align.pretrain import LMHParams, make_lm_learner, packed_batch, sample_windows
from jaxrl_align.types import TokenBatch
from tests.tiny import draw_params

CONFIG = TransformerConfig(20, width=32, layers=2, heads=4, key_value_heads=2, context=16, dtype="bfloat16")
PLAIN, MASKED = "__cudnn$fmhaSoftmax", "__cudnn$fmhaScaleBiasSoftmax"
RNG = np.random.default_rng(0)


@pytest.fixture
def cudnn(monkeypatch):
    """Let it be traced where there is none: JAX asks for the library's version alone."""
    monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)


def rows_of(length):
    """Rows of which the second is padded on the left, the third on the right."""
    tokens = jnp.asarray(RNG.integers(0, 20, (3, length)), jnp.int32)
    real = np.ones((3, length), np.float32)
    real[1, :3], real[2, -2:] = 0, 0
    return tokens, jnp.asarray(real)


@pytest.fixture
def handed(monkeypatch):
    """Record what cuDNN's kernel is handed, and let the other one compute it."""
    calls, kernel = [], jax.nn.dot_product_attention

    def attention(query, key, value, *, mask, is_causal, implementation, **options):
        if implementation == "cudnn":
            shapes = [x.shape for x in (query, key, value)]
            calls.append((*shapes, None if mask is None else mask.shape, is_causal))
        return kernel(query, key, value, mask=mask, is_causal=is_causal, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", attention)
    return calls


@pytest.mark.parametrize(("length", "even"), [(8, 8), (9, 10)])
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_it_is_handed_an_even_length_and_the_mask_of_every_head(handed, length, even, window, masked):
    lm = make_transformer(replace(CONFIG, attention="cudnn", window=window))
    params = draw_params(lm)
    handed.clear()
    tokens, real = rows_of(length)
    encode = lambda row, mask: lm.encode(params, row, mask if masked else None)[0]
    jax.eval_shape(lambda: jax.vmap(encode)(tokens, real))
    mask = (4, even, even) if masked or window else None
    assert set(handed) == {((even, 4, 8), (even, 2, 8), (even, 2, 8), mask, mask is None)}


@pytest.mark.parametrize("masked", [False, True])
def test_what_it_is_handed_computes_the_same(handed, masked):
    """At an odd length, with a scale of its own and grouped keys and values."""
    tokens, real = rows_of(9)

    def read(kernel):
        lm = make_transformer(replace(CONFIG, dtype="float32", attention_scale=0.7, attention=kernel))

        def loss(params):
            encode = lambda row, mask: lm.encode(params, row, mask if masked else None)[0]
            hidden = jax.vmap(encode)(tokens, real)
            return jnp.sum(hidden**3), hidden

        return jax.jit(jax.grad(loss, has_aux=True))(draw_params(lm))

    got, expected = read("cudnn"), read("xla")
    assert handed
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), got, expected)


def kernels_of(f, *args):
    text = jax.jit(f).trace(*args).lower(lowering_platforms=("cuda",)).as_text()
    return set(re.findall(r"__cudnn\$\w+", text))


def stacked(tree, members=2):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((members, *x.shape), x.dtype), tree)


@pytest.mark.parametrize("length", [8, 9])
@pytest.mark.parametrize(("masked", "kernel"), [(False, PLAIN), (True, MASKED)])
def test_it_lowers_for_rows_and_for_members_times_rows(cudnn, length, masked, kernel):
    lm = make_transformer(replace(CONFIG, attention="cudnn", remat=masked))
    params = jax.eval_shape(lm.init, jax.random.key(0))
    rows = rows_of(length)

    def loss(params, tokens, real):
        encode = lambda row, mask: lm.encode(params, row, mask if masked else None)[0]
        return jnp.sum(jax.vmap(encode)(tokens, real).astype(jnp.float32))

    both = {kernel, f"{kernel}Backward"}
    assert kernels_of(loss, params, *rows) == {kernel}
    assert kernels_of(jax.grad(loss), params, *rows) == both
    assert kernels_of(jax.vmap(jax.grad(loss)), *stacked((params, *rows))) == both
    assert kernels_of(jax.vmap(jax.grad(loss), (0, None, None)), stacked(params), *rows) == both
    shared = lambda p, t, m: jax.vmap(lambda p: jax.vmap(lambda r: lm.encode(p, r, m)[0])(t))(p)
    assert kernels_of(shared, stacked(params), rows[0], rows[1][0]) == {MASKED}


@pytest.mark.parametrize("kind", ["windows", "padded", "packed"])
def test_text_without_padding_is_read_without_a_mask(cudnn, kind):
    lm = make_transformer(replace(CONFIG, attention="cudnn"))
    tokens, real = rows_of(9)
    batch = {
        "windows": sample_windows(jnp.arange(40) % 20, batch_size=3, length=8)(jax.random.key(0)),
        "padded": TokenBatch(tokens, real, real),
        "packed": packed_batch(TokenBatch(tokens, real, real, segments=jnp.ones((3, 9), jnp.int32))),
    }[kind]
    learner = make_lm_learner(lm, microbatches=3)
    state = jax.eval_shape(lambda key: learner.init(key, LMHParams()), jax.random.key(0))
    kernel = PLAIN if kind == "windows" else MASKED
    assert kernels_of(learner.step, state, batch) == {kernel, f"{kernel}Backward"}
