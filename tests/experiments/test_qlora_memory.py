"""Memory of one step in bytes, errors of 4 bits, and the test of equivalence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.data.tokens.tokenizers import byte_tokenizer
from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from tests.experiments.loading import load

memory, quality, step = load("qlora_memory"), load("qlora_quality"), load("qlora_step")
LLAMA = {"positions": "rotary", "norm": "rms", "feed_forward": "swiglu", "biased": (), "tied_head": False}
TINY = make_transformer(TransformerConfig(258, 64, 2, 2, 64, feed_forward_width=128, **LLAMA))
KERNELS = 2 * (4 * 64 * 64 + 3 * 64 * 128)
OTHERS = 2 * 258 * 64 + 5 * 64


def test_two_one_sided_tests():
    stats = pytest.importorskip("scipy.stats")
    x = np.array([0.01, -0.02, 0.03, 0.015])
    found = quality.equivalence(x, 0.04)
    p = [
        stats.ttest_1samp(x, bound, alternative=side).pvalue
        for bound, side in ((-0.04, "greater"), (0.04, "less"))
    ]
    assert found.p == pytest.approx(max(p), rel=1e-4) and found.mean == pytest.approx(x.mean())
    assert found.p < 0.05 < quality.equivalence(x, 0.01).p
    assert quality.equivalence(x + 1, 0.04).p > 0.99
    with np.errstate(over="raise"):
        assert quality.equivalence([0.01, 0.01], 0.04).p == 0, "of differences without any variance"
    with pytest.raises(ValueError, match="differences"):
        quality.equivalence([0.1], 0.02)


@pytest.mark.slow
def test_errors_on_gaussian_weights_are_those_published():
    found = quality.gaussian_errors(512)
    published = {"NF4": 0.0919, "NF4 + DQ": 0.0920, "Int4": 0.1076, "FP4": 0.1219}
    assert {how: found[how] for how in published} == pytest.approx(published, abs=5e-4)
    assert found["Int8"] < 0.01
    kernels = quality.kernel_errors(jax.jit(TINY.init)(jax.random.key(0)))
    assert {how: kernels[how] for how in published} == pytest.approx(published, abs=3e-3)


@pytest.mark.slow
def test_bytes_by_hand():
    """Adapters of rank 4 on 7 layers; float32 has 4 bytes, NF4 .127 bits of scales beside its 4 bits."""
    found = {
        way: step.analyse_shapes(way, TINY, rank=4, rows=2, length=16)
        for way in ("full", "LoRA bf16", "QLoRA")
    }
    lora = 4 * 4 * 2 * (4 * (64 + 64) + 3 * (64 + 128))
    scales = 4 * 2 * 7
    assert found["full"]["weights"] == found["full"]["gradients"] == 4 * (KERNELS + OTHERS)
    assert found["LoRA bf16"]["weights"] == 2 * (KERNELS + OTHERS) + lora + scales
    packed = found["QLoRA"]["weights"] - 4 * OTHERS - lora - scales
    # Two bytes more for every 256 blocks or part of them and one offset, of each of 14 kernels.
    assert packed == KERNELS // 2 + KERNELS // 64 + 14 * 8
    for row in found.values():
        assert row["optimiser"] == 2 * row["trained"] + 4, "two moments and a count"
        assert row["temporaries"] >= row["gradients"] and row["new results"] < 2_000
    assert found["LoRA bf16"]["trained"] == found["QLoRA"]["trained"] == lora


def test_llamas_shapes_have_as_many_weights_as_published():
    count = lambda shape: sum(
        x.size for x in jax.tree.leaves(jax.eval_shape(make_transformer(shape).init, jax.random.key(0)))
    )
    assert {name: count(shape) / 1e9 for name, shape in memory.LLAMA.items()} == pytest.approx(
        {"7B": 6.74, "65B": 65.3}, abs=0.05
    )


@pytest.mark.optimised
@pytest.mark.slow
def test_a_step_is_measured_in_a_process_of_its_own(tmp_path):
    pytest.importorskip("safetensors")
    from jaxrl_align.runtime.huggingface import save_model

    save_model(
        tmp_path / "model", TINY.config, jax.jit(TINY.init)(jax.random.key(0)), tokenizer=byte_tokenizer()
    )
    config = memory.Config(rank=4, rows=2, length=16, out=str(tmp_path / "run"))
    row = memory.in_child(config, str(tmp_path / "model"), "QLoRA")
    assert row["weights"] == step.analyse_shapes("QLoRA", TINY, rank=4, rows=2, length=16)["weights"]
    assert row["resident"] > row["weights"] and np.isfinite(row["loss"])
    with pytest.raises(ValueError, match="full could not be measured: .*config.json is missing"):
        memory.in_child(config, str(tmp_path / "none"), "full")


@pytest.mark.slow
def test_lora_and_qlora_are_held_against_each_other():
    """On the same batches; over kernels that 4 bits hold exactly they end alike."""
    task = load("peft_task")
    lm = make_transformer(TransformerConfig(258, width=64, layers=1, heads=2, context=32))
    params = jax.jit(lm.init)(jax.random.key(0))
    for layer in params["layers"].values():
        if "kernel" in layer:
            layer["kernel"] = 0.02 * jnp.sign(layer["kernel"])
    base = task.Base(lm, params, False, byte_tokenizer(), np.arange(300) % 258)
    losses = quality.text_losses(base, length=32)
    assert losses["plain"].shape == (9,)
    np.testing.assert_allclose(losses["NF4"], losses["plain"], atol=1e-5)
    contest = quality.text_contest(base, batch_size=2, length=16, num_tokens=200)
    keys = jax.random.split(jax.random.key(1))
    found = quality.hold(base, contest, rank=2, keys=keys, rates=(1e-3, 1e-1), steps=4)
    assert np.shape(found["LoRA"]["test"]) == (2, 2)
    result = quality.judge(found, contest.margin)
    assert abs(result.mean) < 1e-3 and result.p < 0.05


@pytest.mark.optimised
@pytest.mark.slow
def test_four_bits_of_a_real_model_take_less_than_sixteen_and_those_less_than_all(real_model, tmp_path):
    from jaxrl_align.runtime.huggingface import find_model

    config = memory.Config(rows=1, length=32, out=str(tmp_path / "run"))
    rows = {way: memory.in_child(config, str(find_model()), way) for way in ("full", "LoRA", "QLoRA")}
    weights, resident = ([rows[way][name] for way in rows] for name in ("weights", "resident"))
    assert resident == sorted(resident, reverse=True) and weights[2] < weights[1]
