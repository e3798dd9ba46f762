"""Shapes of published families, as small as they get; importing them starts no device."""

from jaxrl_align.nets.transformer import TransformerConfig

GPT2 = TransformerConfig(20, width=8, layers=2, heads=2, context=16)
LLAMA = TransformerConfig(
    20,
    width=8,
    layers=2,
    heads=2,
    context=16,
    positions="rotary",
    norm="rms",
    feed_forward="swiglu",
    feed_forward_width=12,
    biased=(),
    tied_head=False,
)
