"""The benchmark of one GPU: what it counts, and its parts in miniature on a CPU."""

import importlib
import json
import sys
from pathlib import Path

import pytest

from jaxrl_align.nets import TransformerConfig

BENCHMARKS = str(Path(__file__).parents[2] / "experiments" / "benchmarks")
GPT2 = TransformerConfig(10, width=4, layers=3, heads=2)
LLAMA = TransformerConfig(
    10, width=8, layers=2, heads=4, key_value_heads=1, feed_forward="swiglu", feed_forward_width=5, biased=()
)


def load(name):
    sys.path.insert(0, BENCHMARKS)
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(BENCHMARKS)


@pytest.fixture(scope="module")
def counts():
    return load("accelerator_counts")


def test_weights(counts):
    count_weights = load("floors").count_weights
    assert count_weights(GPT2) == 3 * (4 * 4 * 4 + 2 * 4 * 16) + 10 * 4
    assert count_weights(LLAMA) == 2 * (2 * 8 * 8 + 2 * 8 * 2 + 3 * 8 * 5) + 10 * 8
    published = {name: count_weights(counts.make_config(name, quick=False)) for name in counts.SHAPES}
    # Published: 124.4 and 134.5 million with positions, norms and biases.
    assert published["GPT-2 124M"] == 12 * 12 * 768**2 + 50_257 * 768 == 123_532_032
    assert published["SmolLM2-135M"] == 134_479_872


def test_operations_of_a_token(counts):
    weights = 6 * load("floors").count_weights(GPT2)
    assert counts.training_flops(GPT2, 7, causal=False) == weights + 12 * 3 * 4 * 7
    assert counts.training_flops(GPT2, 7) == weights + 6 * 3 * 4 * 7


def test_floor_of_decoding(counts):
    floors = load("floors")
    assert floors.count_cached(LLAMA, 5) == 2 * 2 * 1 * 2 * 5
    reading, writing = counts.decoding_floor(LLAMA, 3, 4, 6, 10.0, 100.0)
    layers = floors.count_weights(LLAMA) - 80
    assert reading == pytest.approx(3 * (4 * (2 * layers + 2 * 2 * 8 * 4) + 2 * 80) / 10)
    assert writing == pytest.approx(5 * (2 * (layers + 80) + 2 * 3 * floors.count_cached(LLAMA, 7)) / 100)


def test_its_parts_in_miniature(tmp_path, capsys, monkeypatch):
    accelerator, text = load("accelerator"), load("accelerator_text")

    def fail(*_):
        raise RuntimeError("no memory")

    monkeypatch.setattr(accelerator.rl, "ours", fail)
    config = accelerator.Config(
        parts=("ppo", "training", "decoding", "gae"),
        out=str(tmp_path / "rows.json"),
        models=("SmolLM2-135M",),
        variants=text.VARIANTS[:1],
        draws=("sampled",),
        listed=1,
        quick=True,
    )
    monkeypatch.setattr(accelerator, "TINY", accelerator.TINY | {"batches": (2,)})
    accelerator.main(config)
    out = capsys.readouterr().out
    assert "  ppo: RuntimeError: no memory" in out
    assert out.count("0.00 ms in 0 kernels") == 3  # a CPU has none
    rows = json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))
    assert [row["part"] for row in rows] == ["ceilings"] * 2 + ["training"] + ["decoding"] * 2 + ["gae"] * 2
    assert all(row["value"] > 0 and row["device"] and row["versions"]["jax"] for row in rows)
    assert 0 < rows[2]["share of floor"] < 1
    accelerator.main(accelerator.Config(parts=(), out=config.out, quick=True))
    assert len(json.loads((tmp_path / "rows.json").read_text(encoding="utf-8"))) == len(rows) + 2


def test_losses_of_training_agree():
    """Whole, in chunks, and with float32 gradients."""
    import jax
    import jax.numpy as jnp

    from jaxrl_align.pretrain import LMHParams
    from jaxrl_align.types import TokenBatch

    text, counts = load("accelerator_text"), load("accelerator_counts")
    config = counts.make_config("GPT-2 124M", quick=True, layers=1, dtype="float32")
    tokens = jnp.full((2, 17), 7).at[0].set(jax.random.randint(jax.random.key(0), (17,), 0, 256))
    batch = TokenBatch(tokens, None, jnp.ones(tokens.shape))
    norms, hits = [], []
    for variant in ("looped", "chunked", "wide gradient"):
        learner = text.make_training(config, variant, 16)
        state = learner.init(jax.random.key(1), LMHParams())
        _, metrics = jax.jit(learner.step)(state, batch)
        norms.append((float(metrics["loss"]), float(metrics["grad_norm"])))
        hits.append(metrics.get("mean_token_accuracy"))
    assert norms == [pytest.approx(norms[0], rel=1e-4)] * 3
    assert 0 < hits[0] == hits[2] < 1


def test_ceilings_count_both_factors_and_both_ways(monkeypatch):
    rows = load("accelerator_rows")
    monkeypatch.setattr(rows, "measure", lambda call: rows.Timing(2.0, 1.0, 3.0))
    assert rows.measure_ceilings(size=8, num_bytes=64)[0] == (2 * 8**3 / 2, 2 * 64 / 2)


TRACE = """
planes {
  name: "/device:GPU:0"
  lines {
    name: "Stream #7(Compute)"
    events { metadata_id: 1 duration_ps: 2000000 }
    events { metadata_id: 2 duration_ps: 3000000 }
  }
  lines { name: "XLA Ops" events { metadata_id: 1 duration_ps: 9000000 } }
  event_metadata { key: 1 value { id: 1 name: "loop_add_fusion.3" } }
  event_metadata { key: 2 value { id: 2 name: "loop_add_fusion_17" } }
}
planes { name: "/host:CPU" lines { name: "Stream" events { metadata_id: 1 duration_ps: 9000000 } } }
"""


def test_kernels_of_a_trace_are_those_of_the_streams(tmp_path):
    import jax

    path = tmp_path / "host.xplane.pb"
    path.write_bytes(jax.profiler.ProfileData.text_proto_to_serialized_xspace(TRACE))
    seen = list(load("accelerator_rows").read_kernels(path))
    assert [name for name, _ in seen] == ["loop_add_fusion"] * 2
    assert [seconds for _, seconds in seen] == pytest.approx([2e-6, 3e-6])
