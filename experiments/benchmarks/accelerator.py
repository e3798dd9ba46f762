"""This library on ONE GPU: training, decoding, attention, RLHF, PPO and scans beside the device's ceilings.

Aims: training in bfloat16 at 40% of the device's rate of dense products (MFU) or more, decoding at 50% of
what its memory's bandwidth allows where that binds, cuDNN's attention as exact as XLA's and with memory
linear in the length, 32 runs of RLHF by `vmap` in at most 8 times one run's time, and PPO on 4,096 CartPoles
ahead of purejaxrl and rejax on the same device.

    python experiments/benchmarks/accelerator.py --out rows.json
    python experiments/benchmarks/accelerator.py --parts ppo --rejax PYTHON --purejaxrl PYTHON \
        --purejaxrl-folder FOLDER
    python experiments/benchmarks/accelerator.py --quick                         # tiny, on a CPU

Parts come most important first; one that fails says why, and the others go on. A process that is given the
file of an earlier one adds to its rows; docs/accelerator.json is the file of record. Set
`XLA_PYTHON_CLIENT_PREALLOCATE=false` where peers share the GPU.

How the floors are counted (`accelerator_counts.py`): a token costs 6 operations for each weight that it is
multiplied with, the embedding's once, for the logits, and attention's products with what came before it,
half of 12 layers x width x length; nothing that is computed again counts. A decoding step reads every weight
once in bfloat16, and of each row the keys and values that are written; the prompts' pass is added at the
rate of products. At batch 1 neither binds, but the time between one kernel and the next.

What came out is in docs/benchmarks.md (an H200): 32 runs of RLHF take 5 times as long as one, GPT-2 trains at
an MFU of 42%, cuDNN's attention is as exact as XLA's with 7.6 times less memory: these aims hold. SmolLM2's
MFU is 35%, decoding reaches 9 to 29% of its bound, PPO was level with its peers. What gave what:

    training   GPT-2, ms a step: 95 at first; a fused gradient of the chosen logit (`losses._arrays.pick`) and
               an accuracy without argmax, 92; layers unrolled, 81; rows of logits of 50,304 in place of
               50,257, 66; products by cuBLAS alone (XLA_FLAGS=--xla_gpu_enable_triton_gemm=false), 63, of
               which kernels are 60: attention's 7, the logits' three products 9, their two passes and their
               gradient 7. Before that the logits' gradient in bfloat16 gave 19%, cuDNN's attention 83%
    decoding   up to a batch of 8 the time goes between 280 kernels a step, a fifth of it into copies of
               weights that the compiler slices out of their stack anew; unrolled 13% faster at a batch of 8,
               39% at 256, where attention's two sums take half. cuBLAS alone: 18% slower at 8, 3% faster at
               256. Loops as CUDA graphs (`--xla_gpu_enable_command_buffer=...,WHILE`): no change
    scans      one iteration of a loop takes 24 us, so `gae_associative` is 38 times as fast as a loop at 128
               steps and 300 times at 1,024: there is no crossing, and `gae` computes it on accelerators:
               PPO's update of 4,096 environments 9% faster. That flag would cost PPO a factor of 2.6

Not measured: GRPO on SmolLM2's shape, and decoding of SmolLM2 unrolled.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import accelerator_agents as agents
import accelerator_text as text
import alignment
import jax
import rl
from accelerator_rows import DATASHEET_FLOPS, Ceilings, Report, device_name, measure_ceilings, shorten

from jaxrl_align.runtime import cli

Part = Literal["training", "decoding", "rlhf", "ppo", "attention", "gae", "grpo"]


@dataclass(frozen=True)
class Config:
    """Which parts, on which sizes."""

    parts: tuple[Part, ...] = ("training", "decoding", "rlhf", "ppo", "attention", "gae", "grpo")
    out: str = ""
    """A JSON file that rows are added to; empty, none."""
    limit: float = 240.0
    """Seconds after which no further measurement is begun."""
    models: tuple[str, ...] = ("GPT-2 124M", "SmolLM2-135M")
    """Of `accelerator_counts.SHAPES`."""
    variants: tuple[str, ...] = ("unrolled", "looped", "xla", "wide gradient", "chunked", "masked")
    """Of training: `accelerator_text.VARIANTS`."""
    batch: int = 32
    """Rows of training."""
    length: int = 1024
    """Tokens of each."""
    batches: tuple[int, ...] = (1, 8, 64, 256)
    """Of decoding."""
    prompt: int = 128
    new: int = 128
    kernels: tuple[str, ...] = ("xla", "cudnn")
    """Attention's, in decoding; training, GRPO and the comparison take the last one."""
    draws: tuple[Literal["sampled", "greedy"], ...] = ("sampled", "greedy")
    """Of decoding."""
    layers: tuple[Literal["unrolled", "looped"], ...] = ("unrolled", "looped")
    """Of decoding: one behind the other in the program, or a loop over them."""
    runs: int = 32
    """Of RLHF, by `vmap`."""
    envs: int = 4096
    timesteps: int = 8_388_608
    """Of PPO, in a round."""
    rounds: int = 3
    """Of PPO."""
    rejax: str = ""
    """An interpreter with rejax and gymnax 0.0.9; empty leaves it out."""
    purejaxrl: str = ""
    """An interpreter with gymnax 0.0.9 and distrax; empty leaves it out."""
    purejaxrl_folder: str = ""
    """Where purejaxrl's ppo.py and wrappers.py lie."""
    listed: int = 0
    """Of each program of training and decoding, so many of the kernels that take longest are printed."""
    quick: bool = False
    """Tiny shapes and XLA's attention alone, to try it on a CPU."""


TINY = {
    "batch": 2,
    "length": 32,
    "batches": (1, 2),
    "prompt": 8,
    "new": 8,
    "kernels": ("xla",),
    "runs": 2,
    "envs": 8,
    "timesteps": 4096,
    "rounds": 1,
}


def measure_device(report: Report, quick: bool) -> Ceilings:
    """Add the rows of the device's two ceilings."""
    sizes = {"size": 256, "num_bytes": 2**20} if quick else {"size": 8192, "num_bytes": 2**32}
    ceilings, multiplying, copying = measure_ceilings(**sizes)
    rate, moved = 2e-12 * sizes["size"] ** 3, 2e-9 * sizes["num_bytes"]
    share = ceilings.flops / DATASHEET_FLOPS
    name = f"bfloat16 product of {sizes['size']}^3"
    note = "the data sheet's 989"
    spread = rate / multiplying.slowest, rate / multiplying.fastest
    report.add("ceilings", name, ceilings.flops / 1e12, "TFLOP/s", share=share, spread=spread, note=note)
    spread = moved / copying.slowest, moved / copying.fastest
    report.add("ceilings", "copy", ceilings.bandwidth / 1e9, "GB/s", spread=spread, note="read and written")
    return ceilings


def list_parts(config: Config, report: Report, ceilings: Ceilings) -> dict[str, Callable[[], None]]:
    """Return the parts by their names, each a call that adds its rows."""
    quick, kernel = config.quick, config.kernels[-1]
    small = {"width": 16, "layers": 1, "batch": 2, "prompt": 4, "new": 4, "prompts": 2, "group": 2, "rank": 2}
    layout = alignment.Config(vocab=256, **small if quick else {})
    cartpole = rl.Config(
        timesteps=config.timesteps,
        rounds=config.rounds,
        steps=16 if quick else 128,
        rejax=config.rejax,
        purejaxrl=config.purejaxrl,
        purejaxrl_folder=config.purejaxrl_folder,
    )
    both = {"models": config.models, "quick": quick}
    writing = {"batches": config.batches, "kernels": config.kernels, "prompt": config.prompt}
    writing |= {"new": config.new, "draws": config.draws, "layers": config.layers}
    training = {"variants": config.variants, "batch": config.batch, "length": config.length}
    comparing = {"length": 16, "longest": (32,)} if quick else {"length": 256, "longest": (4096,)}
    grid = {"streams": (1, 256), "lengths": (128, 1024, 8192), "most": 2**22}
    grid = {"streams": (1, 2), "lengths": (16,), "most": 64} if quick else grid
    return {
        "training": lambda: text.training(report, ceilings, attention=kernel, **training, **both),
        "decoding": lambda: text.decoding(report, ceilings, **writing, **both),
        "rlhf": lambda: agents.rlhf(report, config=layout, runs=config.runs),
        "ppo": lambda: agents.ppo(report, config=cartpole, envs=config.envs),
        "attention": lambda: agents.attention(report, kernel=kernel, **comparing),
        "gae": lambda: agents.scans(report, **grid),
        "grpo": lambda: agents.grpo(report, config=layout, kernel=kernel, steps=2, quick=quick),
    }


def main(config: Config) -> None:
    """Measure the ceilings, then every part that was asked for."""
    if config.quick:
        config = replace(config, **TINY)
    report = Report(config.out, config.limit, config.listed)
    print(f"{device_name()}, {len(jax.devices())} device(s)", flush=True)
    ceilings = measure_device(report, config.quick)
    parts = list_parts(config, report, ceilings)
    for name in config.parts:
        if report.late(name):
            continue
        print(f"{name}:", flush=True)
        try:
            parts[name]()
        except Exception as error:  # whatever it is, the other parts go on
            print(f"  {name}: {shorten(error)}", flush=True)


if __name__ == "__main__":
    cli.main(Config, main)
