"""Write what bitsandbytes makes of a small matrix into a fixture for the test suite.

In an environment of its own, from the repository's root:

    pip install torch bitsandbytes==0.50.2
    rm .../site-packages/bitsandbytes/libbitsandbytes_cpu.so
    python -m tests.nets.make_bitsandbytes_fixture

Without its compiled library bitsandbytes computes by its definition, in torch. Compiled for the CPU, it looks
the scales' codes up in a table and misses the nearest of 256 in 0.2% of the cases; packed weights are equal.
"""

from pathlib import Path

import numpy as np

FIXTURE = Path(__file__).parent / "fixtures" / "bitsandbytes.npz"


def draw():
    """Return [out, in] weights in 259 blocks, which lie across rows, the last one short and one of zeros."""
    weight = np.random.default_rng(0).normal(0, 0.02, (118, 140)).astype(np.float32)
    weight.reshape(-1)[640:704] = 0
    return weight


def main():
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    torch._dynamo.config.disable = True
    weight, found = torch.tensor(draw()), {}
    for name, rows, kind, double in (("nf4", 118, "nf4", True), ("fp4", 8, "fp4", False)):
        codes, state = quantize_4bit(weight[:rows], blocksize=64, quant_type=kind, compress_statistics=double)
        found[f"{name}_codes"], found[f"{name}_absmax"] = (
            codes.numpy().reshape(rows, -1),
            state.absmax.numpy(),
        )
        found[f"{name}_first_row"] = dequantize_4bit(codes, state)[0].numpy()
        if double:
            found |= {"nf4_spread": state.state2.absmax.numpy(), "nf4_offset": state.offset.numpy()}
    plain = quantize_4bit(weight, blocksize=64, quant_type="nf4")[1]
    np.savez_compressed(FIXTURE, nf4_plain_absmax=plain.absmax.numpy(), **found)


if __name__ == "__main__":
    main()
