"""Packed kernels; bitsandbytes' bytes come from `make_bitsandbytes_fixture`."""

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.actors.text import Frozen
from jaxrl_align.align import RLHFHParams, init_policy, make_rlhf_learner
from jaxrl_align.learner import train
from jaxrl_align.nets import (
    TransformerConfig,
    init_houlsby,
    init_ia3,
    init_lora,
    make_transformer,
    merge,
    overlay,
)
from jaxrl_align.nets.quantize import dequantise, kernel_shape, multiply, quantise, quantise_params
from jaxrl_align.pretrain.lm import LMHParams, make_lm_learner, sample_windows
from jaxrl_align.text import Filters, TextConfig, make_completer
from jaxrl_align.types import PaddedTokens
from tests.nets.make_bitsandbytes_fixture import FIXTURE, draw
from tests.tiny import LM, PARAMS, bits, disturb

THEIRS = np.load(FIXTURE)
BASE = jax.jit(quantise_params)(PARAMS)
PLAIN = jax.jit(lambda params: merge(params, jnp.float32))(BASE)
TOKENS = jnp.array([[5, 3, 9, 17], [1, 2, 3, 4]])
forward = jax.jit(lambda params: LM.logits(params, jax.vmap(LM.encode, (None, 0))(params, TOKENS)[0]))


def drawn(shape, seed=0):
    return jax.random.normal(jax.random.key(seed), shape)


def test_packed_bytes_equal_bitsandbytes():
    """Its [out, in] is our kernel's transpose; blocks lie across its rows."""
    kernel = jnp.asarray(draw().T)
    (nf4,), (plain,), (fp4,) = (
        quantise(kernel[:, :rows], kind, double=double).values()
        for kind, rows, double in (("nf4", 118, True), ("nf4", 118, False), ("fp4", 8, False))
    )
    np.testing.assert_array_equal(nf4["codes"], THEIRS["nf4_codes"])
    np.testing.assert_array_equal(plain["codes"], THEIRS["nf4_codes"])
    np.testing.assert_array_equal(plain["absmax"], THEIRS["nf4_plain_absmax"])
    np.testing.assert_array_equal(fp4["codes"], THEIRS["fp4_codes"])
    np.testing.assert_array_equal(fp4["absmax"], THEIRS["fp4_absmax"])
    assert np.mean(nf4["absmax"] == THEIRS["nf4_absmax"]) > 0.999
    np.testing.assert_allclose(nf4["spread"], THEIRS["nf4_spread"], atol=1e-8)
    np.testing.assert_allclose(nf4["offset"], THEIRS["nf4_offset"], atol=1e-8)
    for kind, own in (("nf4", nf4), ("fp4", fp4)):
        np.testing.assert_allclose(
            dequantise({kind: own})[:, 0], THEIRS[f"{kind}_first_row"], atol=1e-8, err_msg=kind
        )


@pytest.mark.parametrize(
    ("kind", "double", "bits_each"),
    [("nf4", True, 4.127), ("nf4", False, 4.5), ("int4", True, 4.127), ("int8", True, 8.127)],
)
def test_bits_a_parameter(kind, double, bits_each):
    """In bytes of the leaves; QLoRA's appendix: 0.5 and 0.127 bits for the scales."""
    kernel = jax.ShapeDtypeStruct((1024, 1024), jnp.float32)
    leaves = jax.tree.leaves(jax.eval_shape(lambda k: quantise(k, kind, double=double), kernel))
    assert 8 * sum(x.size * x.dtype.itemsize for x in leaves) / 2**20 == pytest.approx(bits_each, abs=5e-4)


@pytest.mark.parametrize(
    ("kind", "double", "error"),
    [
        *(("nf4", False, 0.0919), ("nf4", True, 0.0920), ("int4", False, 0.1076), ("fp4", False, 0.1219)),
        ("int8", False, 0.0060),  # a step of 2.63 / 127 on average, over the root of 12
    ],
)
def test_the_error_on_gaussian_weights(kind, double, error):
    """Root mean square in units of sigma."""
    kernel = drawn((1024, 1024))
    left = jax.jit(dequantise)(quantise(kernel, kind, double=double)) - kernel
    assert float(jnp.sqrt(jnp.mean(left**2))) == pytest.approx(error, abs=3e-4)


def test_integers_by_hand():
    kernel = jnp.array([[7.0, -7.0, 3.4, 0.4]]).T
    ((own),) = quantise(kernel, "int4", double=False).values()
    np.testing.assert_array_equal(own["codes"], [[14 << 4 | 0, 10 << 4 | 7]])
    np.testing.assert_array_equal(own["absmax"], [7.0])
    np.testing.assert_allclose(dequantise({"int4": own})[:, 0], [7.0, -7.0, 3.0, 0.0], rtol=1e-6)
    packed = quantise(kernel, "int8", double=False)
    np.testing.assert_array_equal(packed["int8"]["codes"], [[127, -127, 62, 7]])
    np.testing.assert_allclose(dequantise(packed)[:, 0], np.array([127, -127, 62, 7]) * 7 / 127, rtol=1e-6)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_each_layer_of_a_stack_is_quantised_on_its_own(kind):
    stack = drawn((2, 10, 7)) * jnp.array([1.0, 5.0])[:, None, None]
    packed = quantise(stack, kind)
    one = [quantise(kernel, kind) for kernel in stack]
    assert bits(packed) == bits(jax.tree.map(lambda *x: np.stack(x), *one))
    assert bits(packed) == bits(jax.jit(jax.vmap(lambda kernel: quantise(kernel, kind)))(stack))
    assert kernel_shape(packed) == stack.shape and kernel_shape(one[0]) == (10, 7)
    np.testing.assert_array_equal(jax.jit(dequantise)(packed)[1], jax.jit(dequantise)(one[1]))


@pytest.mark.parametrize(
    ("kind", "shape"), [("nf4", (32, 8)), ("int4", (32, 6)), ("fp4", (10, 7)), ("int8", (32, 8))]
)
@pytest.mark.parametrize("shards", [1, 2])
def test_multiplying_reads_the_dequantised_kernel(kind, shape, shards):
    """In four pieces, in two, and in one, whose last block is short."""
    packed = quantise(drawn(shape), kind)
    times = functools.partial(multiply, packed=packed, shards=shards)
    x, y = drawn((2, 3, shape[0]), 1), drawn((2, 3, shape[1]), 2)

    @jax.jit
    def both(x, y):
        ours, theirs = (jax.vjp(f, x) for f in (times, lambda x: x @ plain))
        return (ours[0], ours[1](y)), (theirs[0], theirs[1](y)), times(x.astype(jnp.bfloat16))

    plain = jax.jit(dequantise)(packed)
    ours, theirs, half = both(x, y)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), ours, theirs)
    assert half.dtype == jnp.bfloat16
    np.testing.assert_allclose(half.astype(jnp.float32), theirs[0], atol=0.2)


def test_only_the_blocks_kernels_are_packed():
    for name, leaf in BASE.items():
        assert name == "layers" or bits(leaf) == bits(PARAMS[name]), name
    for name, layer in BASE["layers"].items():
        plain = PARAMS["layers"][name]
        assert ("nf4" in layer.get("kernel", {})) == ("kernel" in plain), name
        assert bits({k: v for k, v in layer.items() if k != "kernel"}) == bits(
            {k: v for k, v in plain.items() if k != "kernel"}
        )
    assert jax.tree.structure(PLAIN) == jax.tree.structure(PARAMS)
    larger = {"lm": PARAMS, "head": {"kernel": drawn((4, 2))}}
    every, some = (
        jax.eval_shape(lambda t=t: quantise_params(larger, "int8", targets=t)) for t in (None, ("up", "down"))
    )
    assert every["head"]["kernel"].shape == (4, 2), "a classifier reads its head itself"
    packed = [name for name, layer in some["lm"]["layers"].items() if isinstance(layer.get("kernel"), dict)]
    assert sorted(packed) == ["down", "up"]


def test_a_model_reads_packed_kernels_as_plain_ones():
    assert jnp.abs(forward(BASE) - forward(PARAMS)).max() > 0.01, "4 bits must be seen"
    np.testing.assert_allclose(forward(BASE), forward(PLAIN), atol=1e-5)


@pytest.mark.slow
def test_a_completion_from_packed_kernels():
    """Through the cache."""
    complete = make_completer(LM, response_length=6, stop_tokens=(19,), filters=Filters(top_k=1))
    prompts = [[5, 3, 9], [1, 2]]
    got, expected = (complete(params, prompts, jax.random.key(0)) for params in (BASE, PLAIN))
    assert [row.tokens for row in got] == [row.tokens for row in expected]


@pytest.mark.slow
def test_members_with_bases_of_their_own():
    stacked = jax.vmap(lambda scale: jax.tree.map(lambda x: x * scale, PARAMS))(jnp.array([1.0, 1.1]))
    packed = jax.jit(jax.vmap(quantise_params))(stacked)
    together = jax.jit(jax.vmap(forward))(packed)
    for i in range(2):
        own = jax.tree.map(lambda x, i=i: x[i], packed)
        np.testing.assert_allclose(together[i], forward(own), atol=1e-4)
    assert jnp.abs(together[0] - together[1]).max() > 0.1


@pytest.mark.slow
def test_lora_trains_over_a_packed_base_of_which_not_a_bit_moves():
    text = jnp.tile(jnp.arange(7, dtype=jnp.int32), 40)
    learner = make_lm_learner(LM, sample_windows(text, batch_size=4, length=8))
    part, constants = init_lora(jax.random.key(1), BASE, rank=4, alpha=8.0)
    assert set(part["layers"]) == {"query", "key", "value", "attention_out", "up", "down"}
    base = overlay(BASE, constants)
    before = bits(base)
    state, metrics = jax.jit(train(learner, 100))(jax.random.key(0), LMHParams(1e-2), part, base)
    assert bits(base) == before
    assert metrics["loss"][-1] < 0.3 * metrics["loss"][0]
    merged = jax.jit(lambda params: merge(params, jnp.bfloat16))(overlay(base, state.params))
    kernels = {k: v["kernel"] for k, v in merged["layers"].items() if "kernel" in v}
    assert {k.dtype for k in kernels.values()} == {jnp.dtype("bfloat16")}
    assert jax.tree.structure(merged) == jax.tree.structure(PARAMS)
    own = state.params["layers"]["up"]["lora"]
    expected = dequantise(BASE["layers"]["up"]["kernel"]) + 2.0 * own["a"] @ own["b"]
    np.testing.assert_allclose(kernels["up"].astype(jnp.float32), expected, rtol=2**-8)


STARTS = {
    "lora": lambda base: init_lora(jax.random.key(1), base, rank=2),
    "dora": lambda base: init_lora(jax.random.key(1), base, rank=2, dora=True),
    "ia3": init_ia3,
    "houlsby": lambda base: init_houlsby(jax.random.key(1), base, width=3),
}


@pytest.mark.parametrize("kind", STARTS)
def test_every_kind_lies_over_a_packed_base_as_over_the_plain_one(kind):
    part, constants = jax.jit(STARTS[kind])(BASE)
    part = disturb(part, jax.random.key(2), 0.3)
    packed, plain = (overlay(overlay(base, constants), part) for base in (BASE, PLAIN))
    np.testing.assert_allclose(forward(packed), forward(plain), atol=1e-4)
    assert jnp.abs(forward(packed) - forward(BASE)).max() > 0.1
    if kind != "houlsby":
        merged = jax.jit(lambda params: merge(params, jnp.float32))(packed)
        np.testing.assert_allclose(forward(merged), forward(plain), atol=1e-4)


def test_merging_without_an_adapter_leaves_packed_kernels_until_it_is_asked():
    assert bits(merge(BASE)) == bits(BASE)
    assert merge(BASE, jnp.bfloat16)["layers"]["up"]["kernel"].dtype == jnp.bfloat16
    assert merge(BASE, jnp.bfloat16)["tokens"].dtype == jnp.float32


@pytest.mark.slow
def test_rlhf_trains_a_part_over_a_packed_base():
    prompts = PaddedTokens(TOKENS[:, :2], jnp.ones((2, 2)))
    learner = make_rlhf_learner(
        LM, lambda *_: jnp.zeros(()), TextConfig(2, 3), lambda key: prompts, epochs=1, minibatches=1
    )
    part, constants = init_lora(jax.random.key(0), BASE, rank=2)
    base = overlay(BASE, constants)
    start = lambda: learner.init(jax.random.key(0), RLHFHParams(), init_policy(LM, part))
    state = jax.eval_shape(start)
    after, _ = jax.eval_shape(learner.step, state, None, Frozen(base, None))
    assert jax.tree.structure(after.params) == jax.tree.structure(state.params)


@pytest.mark.optimised
@pytest.mark.slow
@pytest.mark.parametrize("remat", [False, True])
def test_a_scanned_step_never_holds_the_dequantised_layers(remat):
    """At most 1.5 times the largest kernel in float32, activations and gradients included."""
    lm = make_transformer(
        TransformerConfig(64, width=512, layers=4, heads=8, context=8, feed_forward="swiglu", remat=remat)
    )
    base = jax.eval_shape(lambda key: quantise_params(lm.init(key)), jax.random.key(0))
    part, constants = jax.eval_shape(lambda p: init_lora(jax.random.key(0), p, rank=2), base)

    def loss(part, base, constants, tokens):
        return jnp.sum(lm.encode(overlay(overlay(base, constants), part), tokens)[0] ** 2)

    tokens = jax.ShapeDtypeStruct((2,), jnp.int32)
    compiled = jax.jit(jax.grad(loss)).lower(part, base, constants, tokens).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 1.5 * 512 * 2048 * 4


@pytest.mark.optimised
@pytest.mark.slow
def test_a_published_model_is_loaded_and_tuned_in_little_memory(real_folder):
    """SmolLM2-135M, LoRA on every linear layer, 8 rows of 128; plain, its weights alone take 0.54 GB."""
    program = [sys.executable, "-m", "tests.runtime.qlora_program", str(real_folder)]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=True)
    assert int(done.stdout) < 1.2e9
