"""Shapes of `accelerator.py`'s language models, and the least work that they take: operations and bytes."""

from typing import Any

from floors import count_cached, count_weights

from jaxrl_align.nets import TransformerConfig

GPT2: dict[str, Any] = {"vocab_size": 50_257, "width": 768, "layers": 12, "heads": 12, "context": 1024}
SMOLLM2: dict[str, Any] = {
    "vocab_size": 49_152,
    "width": 576,
    "layers": 30,
    "heads": 9,
    "key_value_heads": 3,
    "feed_forward_width": 1536,
    "context": 2048,
    "positions": "rotary",
    "rope_theta": 100_000.0,
    "norm": "rms",
    "feed_forward": "swiglu",
    "biased": (),
}
SHAPES = {
    "GPT-2 124M": GPT2,
    "GPT-2 124M, vocabulary of 50,304": GPT2 | {"vocab_size": 50_304},
    "SmolLM2-135M": SMOLLM2,
}
"""As published, but for one whose vocabulary is filled up to a multiple of 128; weights are drawn."""
SMALL = {"vocab_size": 256, "width": 64, "layers": 2, "heads": 4, "feed_forward_width": 128, "context": 128}
"""What `--quick` makes of each shape, heads of keys and values aside."""


def make_config(name: str, *, quick: bool, **changes: Any) -> TransformerConfig:
    """Return a shape of `SHAPES` in bfloat16, or with `quick` a tiny one of its family."""
    shape = SHAPES[name] | {"dtype": "bfloat16"}
    if quick:
        shape |= SMALL | ({"key_value_heads": 2} if "key_value_heads" in shape else {})
    return TransformerConfig(**shape | changes)


def training_flops(config: TransformerConfig, length: int, *, causal: bool = True) -> float:
    """Return the operations of one token's forward and backward pass, nothing computed again.

        6 N + 12 layers heads depth L,   the second term halved with `causal`

    Args:
      config: N is its `count_weights`.
      length: L, tokens a row.
      causal: count only products of a token with those before it, which are all that is needed.
    """
    attention = 12.0 * config.layers * config.heads * config.depth * length
    return 6.0 * count_weights(config) + attention / (2 if causal else 1)


def decoding_floor(
    config: TransformerConfig, batch: int, prompt: int, new: int, flops: float, bandwidth: float
) -> tuple[float, float]:
    """Return the least seconds of the prompts' pass and of the steps after it.

    The prompts are products, one set of logits a row; each of the `new - 1` steps reads all weights once, in
    bfloat16, and of every row the slots written so far.

    Args:
      config: the model.
      batch: rows.
      prompt: tokens of each.
      new: tokens that are written behind each.
      flops: a second.
      bandwidth: bytes a second.
    """
    weights, head = count_weights(config), config.vocab_size * config.width
    attention = 2.0 * config.layers * config.heads * config.depth * prompt
    prompts = batch * (prompt * (2.0 * (weights - head) + attention) + 2.0 * head)
    step = 2.0 * weights + 2.0 * batch * count_cached(config, prompt + new / 2)
    return prompts / flops, (new - 1) * step / bandwidth
