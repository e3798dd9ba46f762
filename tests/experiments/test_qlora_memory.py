"""Memory of one step in bytes, errors of 4 bits, and the test of equivalence."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.data.tokens.vocabularies import byte_tokenizer
from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from jaxrl_align.runtime import Interval
from tests.experiments.loading import load

memory, quality, step = load("qlora_memory"), load("qlora_quality"), load("qlora_step")
reports = load("qlora_report")
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
    assert row["trained"] < row["stored"] < row["trained"] + 20_000, "adapters alone, with their names"
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
    keys, how = jax.random.split(jax.random.key(1), 3), {"rates": (1e-3, 1e-1), "steps": 4}
    found = quality.hold(base, contest, rank=2, keys=keys, tuning=1, **how)
    assert np.shape(found["LoRA"]["test"]) == (2, 2) and np.shape(found["LoRA"]["validation"]) == (2, 1)
    with pytest.raises(ValueError, match="tuning must leave members to report of 3"):
        quality.hold(base, contest, rank=2, keys=keys, tuning=3, **how)
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


BYTES = {"weights": 1e9, "optimiser": 2e9, "gradients": 1e9, "activations": 0.5e9, "stored": 1.001e9}
BYTES |= {"arguments": 3.001e9, "temporaries": 1.5e9, "resident": 4.6e9, "empty process": 0.2e9}
LARGER = {"full": {"65B": {"weights": 261e9, "optimiser": 522e9, "gradients": 261e9, "activations": 1e9}}}
LARGER["QLoRA bf16"] = {"65B": {"weights": 38e9, "optimiser": 6e9, "gradients": 3e9, "activations": 3e9}}


def test_the_verdict_on_memory_is_that_of_the_bytes():
    """50 GB of QLoRA are too many with the optimiser's 6 and few enough without."""
    ways = {"full": BYTES, "LoRA": BYTES | {"stored": 0.09e9}}
    judged = list(reports.judge_memory(ways, LARGER).values())
    assert judged == [True, True, True, True, True, True, False, True]
    worse = {"stored": 1.02e9, "arguments": 2.9e9, "temporaries": 0.9e9, "resident": 4.1e9}
    judged = list(reports.judge_memory({"full": BYTES | worse, "LoRA": BYTES | worse}, LARGER).values())
    assert judged == [False, False, False, False, False, True, False, True]
    assert list(reports.judge_memory(ways | {"LoRA": BYTES | {"stored": 0.2e9}}, LARGER).values())[1] is False
    table = reports.memory_table(ways)
    assert table["LoRA"]["file"] == "90.0" and table["full"]["peak of the process"] == "4,400"
    assert reports.larger_table(LARGER)["QLoRA bf16 at 65B"]["in all"] == "50.0"


def test_the_verdict_on_quality_is_that_of_paired_differences():
    """NF4 adds .1, FP4 .3 and Int4 about as much, up and down from window to window."""
    plain = np.linspace(3, 5, 8)
    wave = 0.05 * (-1.0) ** np.arange(8)
    losses = {"plain": plain, "NF4": plain + 0.1, "FP4": plain + 0.3 + wave, "Int4": plain + 0.31 - wave}
    errors = dict.fromkeys(("NF4", "FP4", "Int4"), 0.1)
    contest = {
        "LoRA": {"rate": 1, "test": [[0, 0, 0], [4.0, 4.1, 4.2]]},
        "QLoRA": {"rate": 0, "test": [[4.001, 4.101, 4.2], [9, 9, 9]]},
        "margin": 0.02,
    }
    found = {"losses": losses, "kernel errors": errors}
    judged = reports.judge_quality(found, {"text": contest})
    assert list(judged.values()) == [True, True, False, True]
    assert reports.judge_quality(found, {"text": contest | {"margin": 1e-4}}).popitem()[1] is False
    level = found | {"losses": losses | {"FP4": losses["NF4"] + wave}}
    assert list(reports.judge_quality(level, {}).values())[:2] == [False, True]
    table = reports.quality_table(found)
    assert table["NF4"]["- NF4"] == "" and table["FP4"]["- NF4"].value == pytest.approx(0.2)
    row = reports.contest_table({"text": contest})["text"]
    assert row["QLoRA - LoRA"].value == pytest.approx(0.002 / 3) and isinstance(row["LoRA"], Interval)


@pytest.mark.optimised
@pytest.mark.slow
def test_the_whole_experiment_in_miniature(tmp_path):
    """On a folder of a tiny model of its own; full fine-tuning's file is the model's size."""
    pytest.importorskip("safetensors")
    from jaxrl_align.runtime.huggingface import save_model

    longer = make_transformer(dataclasses.replace(TINY.config, context=128))
    params = jax.jit(longer.init)(jax.random.key(0))
    save_model(tmp_path / "model", longer.config, params, tokenizer=byte_tokenizer(), stop_tokens=[256])
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog again and again. " * 700, encoding="utf-8")
    sizes = {"rank": 4, "rows": 1, "length": 16, "steps": 0, "pretrain_steps": 2, "pretrain_batch": 2}
    base = {"width": 64, "layers": 1, "vocabulary": 280, "held_out_tokens": 400, "seeds": 2}
    config = memory.Config(
        model=str(tmp_path / "model"),
        text=str(text),
        ways=("full", "LoRA"),
        out=str(tmp_path / "run"),
        **sizes,
        **base,
    )
    memory.main(config)
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["rows"][:2] == ["C11", "C12"]
    (own,), (full,) = result["headline"].values(), result["baselines"].values()
    assert own["value"] == full["value"] == pytest.approx(1, abs=0.03) and own["kind"] == "none"
    with pytest.raises(ValueError, match="ways must hold full"):
        memory.main(memory.Config(ways=("LoRA",), out=str(tmp_path / "other")))
