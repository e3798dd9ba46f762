"""Every way of tuning against peft 0.21 on a small Llama with biases: `make_peft_fixtures.py`."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.nets import (
    TransformerConfig,
    init_ia3,
    init_lora,
    init_prefix,
    init_prompt,
    make_transformer,
    overlay,
)

FIXTURE = Path(__file__).parent / "fixtures" / "peft.json"
TOKENS = [5, 3, 9, 17, 4, 11, 2]
RANK, ALPHA, VIRTUAL = 3, 5, 4
LM = make_transformer(
    TransformerConfig(
        20,
        width=16,
        layers=2,
        heads=4,
        key_value_heads=2,
        context=32,
        positions="rotary",
        norm="rms",
        feed_forward="swiglu",
        feed_forward_width=24,
        tied_head=False,
    )
)


def draw(shapes):
    """Return a tree of numbers drawn by their names, scales and vectors around 1."""

    def leaf(path, shape):
        path = jax.tree_util.keystr(path)
        source = np.random.default_rng(list(path.encode()))
        center = float(any(name in path for name in ("scale", "vector", "magnitude")))
        return (center + 0.3 * source.standard_normal(shape.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(leaf, shapes)


def draw_base():
    return draw(jax.eval_shape(LM.init, jax.random.key(0)))


def draw_part(way):
    """Return a way's constants and its part, as training might leave it."""
    base, key = draw_base(), jax.random.key(0)
    lora = {"rank": RANK, "alpha": ALPHA, "rslora": way == "rslora", "dora": way == "dora"}
    prompt = lambda: init_prompt(key, base, length=VIRTUAL)
    starts = {"ia3": lambda: init_ia3(base), "prompt": prompt}
    starts["prefix"] = lambda: init_prefix(LM, base, prompt().part)
    part, constants = starts.get(way, lambda: init_lora(key, base, **lora))()
    return constants, draw(part)


@pytest.mark.parametrize("way", ["lora", "rslora", "dora", "ia3", "prompt", "prefix"])
def test_logits_are_pefts(way):
    constants, part = draw_part(way)
    params = overlay(overlay(draw_base(), constants), part)
    logits = LM.logits(params, jax.jit(LM.encode)(params, jnp.array(TOKENS))[0])
    expected = np.array(json.loads(FIXTURE.read_text())["logits"][way])
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-5 * np.abs(expected).max())
