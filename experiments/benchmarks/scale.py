"""What a step of a large language model costs on 1 to 256 chips, compiled without the chips.

Shapes of Llama 3.2 1B and Llama 2 7B and 70B with the library's own learners and sharding rules: next-token
training of all weights, of LoRA, and of LoRA over 4-bit weights, and a step of RLHF, which writes 1,024
tokens behind each of its prompts, with LoRA, the base as its reference, and a reward model of the same size.
Training lies on `fsdp` over all chips, RLHF on `model=8` within a host and `data` across: along `fsdp` all
weights would be gathered again for every token that is written.

Nothing runs and nothing is allocated: XLA's compilers for an H100 and for a TPU v5e compile for machines that
they are told of. They need their wheels (`jax-cuda12-plugin`, `jax-cuda12-pjrt` and `nvidia-cuda-nvcc-cu12`;
`libtpu`), the CPU's comes with JAX. From the compiled program of one chip come what it holds (its arguments)
and needs beside (temporary), its matrix products, and its exchanges; what stands in a loop, such as the scan
over layers, counts as often as the loop turns, so nothing is extrapolated. The loop over written tokens ends
early where all answers stop; here it turns for every token. `fits` compares the sum with the chip's memory.

The step is an ESTIMATE, not a measurement, by the roofline: each matrix product takes the longer of its
operations at the chip's peak and of its bytes at its bandwidth, the state is read and written once, and each
exchange takes its bytes at the link's speed; the first figure lets all exchanges hide behind computing, the
second none. Other operations, latency and congestion are left out, so a real step takes longer.
Figures: NVIDIA's data sheets of the H100 SXM (989 TFLOP/s in bfloat16 without sparsity, 80 GB at 3.35 TB/s,
NVLink 450 GB/s each way) and of the DGX H100 (a card of 400 Gbit/s for every GPU); Google Cloud's page on TPU
v5e (197 TFLOP/s, 16 GB at 819 GB/s, links of 1,600 Gbit/s, 256 chips in a torus).

The table, and how exchanges grow with the chips: docs/scale.md.
"""

import itertools
import math
import re
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxrl_align import align, nets, pretrain
from jaxrl_align.actors import Frozen
from jaxrl_align.nets import TransformerConfig
from jaxrl_align.runtime import cli
from jaxrl_align.runtime.devices.collectives import count_lines, list_collectives, size_of
from jaxrl_align.runtime.devices.spreading import shardings
from jaxrl_align.runtime.mesh import use_cpu_devices
from jaxrl_align.text import TextConfig
from jaxrl_align.types import Learner, PaddedTokens

LLAMA = {"positions": "rotary", "norm": "rms", "feed_forward": "swiglu", "biased": (), "remat": True}
LLAMA |= {"dtype": "bfloat16", "context": 2049}
SHAPES = {
    "1B": {"vocab_size": 128_256, "width": 2048, "layers": 16, "heads": 32, "key_value_heads": 8}
    | {"feed_forward_width": 8192, "rope_theta": 500_000.0},
    "7B": {"vocab_size": 32_000, "width": 4096, "layers": 32, "heads": 32, "feed_forward_width": 11_008}
    | {"tied_head": False},
    "70B": {"vocab_size": 32_000, "width": 8192, "layers": 80, "heads": 64, "key_value_heads": 8}
    | {"feed_forward_width": 28_672, "tied_head": False},
    "tiny": {"vocab_size": 256, "width": 64, "layers": 2, "heads": 8, "feed_forward_width": 128},
}
"""As published, but for Llama 3.2's scaling of positions; and one for `--quick`."""


class Chip(NamedTuple):
    """A chip's published figures."""

    flops: float
    """A second, dense products in bfloat16."""
    bandwidth: float
    """Bytes a second between the chip and its memory."""
    memory: float
    """Bytes."""
    near: float
    """Bytes a second that a chip receives from those of its own host, or of its torus."""
    far: float
    """The same from the chips of another host, each by a network card of its own."""
    host: int
    """Chips that reach each other at `near`."""


CHIPS = {
    "cuda": Chip(989e12, 3.35e12, 80e9, 450e9, 50e9, 8),
    "tpu": Chip(197e12, 819e9, 16e9, 200e9, 200e9, 256),
}
CHIPS["cpu"] = CHIPS["cuda"]
NAMES = {"cuda": "H100 SXM", "tpu": "TPU v5e", "cpu": "virtual CPU devices"}
TPU_TOPOLOGIES = {1: "v5e:1x1", 8: "v5e:2x4", 64: "v5e:8x8", 256: "v5e:16x16"}
H100 = """gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
  shared_memory_per_core: 233472 threads_per_core_limit: 2048 core_count: 132 fpus_per_core: 128
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98
  device_memory_size: 85520809984 shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 minor: 0 } registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA" dnn_version_info { major: 9 minor: 8 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3" """


@dataclass(frozen=True)
class Config:
    """Which programs are compiled, and by which compilers."""

    compilers: tuple[Literal["cuda", "tpu", "cpu"], ...] = ("cuda",)
    """Of an H100 and of a TPU v5e, which need their wheels and no chip; that of the CPU comes with JAX."""
    models: tuple[str, ...] = ("1B", "7B", "70B")
    ways: tuple[str, ...] = ("full", "LoRA", "QLoRA", "RLHF")
    chips: tuple[int, ...] = (1, 8, 64, 256)
    rows: int = 2
    """Of every chip: windows of 2,048 tokens, or prompts of 1,024 with as many written behind."""
    rank: int = 16
    """Of LoRA, on every linear layer of the blocks."""
    quick: bool = False
    """A tiny model on two virtual CPU devices."""


KEY = jax.eval_shape(lambda: jax.random.key(0))


def make_step(way: str, config: TransformerConfig, rows: int, rank: int) -> tuple[Learner, Any, Any]:
    """Return a learner of the library, and the shapes of its state and of its frozen weights."""
    lm = nets.make_transformer(config)
    params = jax.eval_shape(lm.init, KEY)
    half = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), params)
    base = jax.eval_shape(nets.quantise_params, half) if way == "QLoRA" else half
    part, frozen = params, None
    if way != "full":
        part, constants = jax.eval_shape(lambda key, p: nets.init_lora(key, p, rank=rank), KEY, base)
        frozen = nets.overlay(base, constants)
    length = config.context - 1
    if way != "RLHF":
        text = np.zeros(2 * length, np.int32)
        learner = pretrain.make_lm_learner(lm, pretrain.sample_windows(text, batch_size=rows, length=length))
        hparams: Any = pretrain.LMHParams()
    else:
        prompts = PaddedTokens(jnp.zeros((rows, length // 2), jnp.int32), jnp.ones((rows, length // 2)))
        learner = align.make_rlhf_learner(
            lm,
            align.model_reward(lm),
            TextConfig(length // 2, length // 2),
            pretrain.sample_rows(prompts, batch_size=rows),
            epochs=1,
            minibatches=1,
        )
        hparams = align.RLHFHParams()
        part = jax.eval_shape(lambda p: align.init_policy(lm, p), part)
        head = jax.eval_shape(lambda key: nets.init_scalar_head(key, config.width), KEY)
        frozen = Frozen(frozen, align.RewardModel({"lm": half, "head": head}, np.float32(1), np.float32(0)))
    state = jax.eval_shape(lambda key, p, f: learner.init(key, hparams, p, f), KEY, part, frozen)
    return learner, state, frozen


def find_devices(compiler: str, chips: int) -> list:
    """Return devices to compile for; those of a GPU or TPU are descriptions."""
    if compiler == "cpu":
        return jax.devices()[:chips]
    if compiler == "tpu":
        one = {"chips_per_host_bounds": [1, 1, 1]} if chips == 1 else {}
        return topologies.get_topology_desc(TPU_TOPOLOGIES[chips], "tpu", **one).devices
    nodes = f"1x{max(1, chips // 8)}x{min(chips, 8)}"
    return topologies.get_topology_desc("", "cuda", target_config=H100, topology=nodes).devices


def make_mesh(way: str, devices: list) -> Mesh:
    """Return `fsdp` over all chips; where text is written, `model` within groups of eight, `data` across."""
    rows, model = ("data", min(8, len(devices))) if way == "RLHF" else ("fsdp", 1)
    grid = np.array(devices).reshape(-1, model)
    return Mesh(grid, (rows, "model"), axis_types=(AxisType.Auto,) * 2)


def compile_step(way: str, shape: TransformerConfig, mesh: Mesh, rows: int, rank: int) -> Any:
    """Compile a step as `runtime.loop.run` does on a mesh: the state is donated and stays where it is."""
    learner, state, frozen = make_step(way, shape, rows, rank)
    place = lambda leaf, where: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype, sharding=where)
    placed = lambda tree: jax.tree.map(place, tree, shardings(mesh, tree))
    everywhere = NamedSharding(mesh, PartitionSpec())
    with jax.set_mesh(mesh):
        step = jax.jit(learner.step, donate_argnums=0, out_shardings=(shardings(mesh, state), everywhere))
        return step.lower(placed(state), None, placed(frozen)).compile()


class Costs(NamedTuple):
    """What a compiled step costs each chip."""

    flops: float
    """Of the matrix products, all that are computed again included."""
    computing: float
    """Seconds."""
    exchanging: float
    """Seconds."""
    exchanged: dict[str, tuple[int, float]]
    """Kind -> how often, and the bytes that a chip receives."""


_DEFINED = re.compile(r"^\s*(?:ROOT )?%?([\w.-]+) = (\(.*?\)|\S+) ")
_PRODUCT = re.compile(r"= (\S+) dot\(%?([\w.-]+), %?([\w.-]+)\).*lhs_contracting_dims=\{([\d,]*)\}")
_DIMENSIONS = re.compile(r"\[([\d,]*)\]")


def dimensions(shape: str) -> list[int]:
    """Return the dimensions of the first array of a shape as XLA writes it."""
    found = _DIMENSIONS.search(shape)
    return [int(d) for d in found[1].split(",") if d] if found else []


def list_products(text: str, turns: int) -> list[tuple[float, float, int]]:
    """Return a program's matrix products: operations, bytes read and written, and how often."""
    lines = count_lines(text, turns=turns)
    shapes = {found[1]: found[2] for line, _ in lines if (found := _DEFINED.match(line))}
    rows = []
    for line, times in lines:
        if product := _PRODUCT.search(line):
            result, left, right = product[1], shapes[product[2]], shapes[product[3]]
            summed = [dimensions(left)[int(axis)] for axis in product[4].split(",")]
            flops = 2.0 * np.prod(dimensions(result)) * np.prod(summed)
            rows.append((flops, sum(size_of(shape) for shape in (result, left, right)), times))
    return rows


def measure(compiled: Any, chip: Chip, mesh: Mesh, turns: int) -> Costs:
    """Read a compiled step: what it computes and exchanges, and the time of each by the roofline."""
    text, memory = compiled.as_text(), compiled.memory_analysis()
    products = list_products(text, turns)
    computing = sum(n * max(flops / chip.flops, size / chip.bandwidth) for flops, size, n in products)
    computing += 2 * memory.alias_size_in_bytes / chip.bandwidth  # the state is read and written
    kinds: dict[str, tuple[int, float]] = {}
    exchanging = 0.0
    for row in list_collectives(text, turns=turns):
        factor = {"all-reduce": 2, "reduce-scatter": row.devices}.get(row.kind, 1)
        received = row.times * row.size * factor
        times, size = kinds.get(row.kind, (0, 0.0))
        kinds[row.kind] = times + row.times, size + received
        exchanging += received / link(chip, dict(mesh.shape), row.devices)
    return Costs(sum(n * flops for flops, _, n in products), computing, exchanging, kinds)


def link(chip: Chip, sizes: dict[str, int], devices: int) -> float:
    """Return the bytes a second that a chip receives in a group of that many of a mesh."""
    chips = math.prod(sizes.values())
    if chips <= chip.host or 1 < devices == sizes["model"]:
        return chip.near
    # A ring through all chips enters and leaves a host by all of its cards.
    return min(chip.near, chip.far * chip.host) if devices in (0, chips) else chip.far


def show(seconds: float) -> str:
    """Return a time in units that suit it."""
    return f"{seconds * 1e3:,.0f} ms" if seconds < 10 else f"{seconds:,.0f} s"


def write_memory(compiled: Any, chip: Chip) -> str:
    """Return the columns of the table on memory."""
    memory = compiled.memory_analysis()
    held, beside = memory.argument_size_in_bytes, memory.temp_size_in_bytes
    return f"{held / 1e9:,.1f} | {beside / 1e9:,.1f} | {'yes' if held + beside < chip.memory else 'no'}"


def write_costs(costs: Costs) -> str:
    """Return the columns of the table on computing and exchanging."""
    low, high = max(costs.computing, costs.exchanging), costs.computing + costs.exchanging
    kinds = [f"{n:,} {kind} {size / 1e9:,.1f}" for kind, (n, size) in sorted(costs.exchanged.items())]
    step = f"{show(low)} to {show(high)}" if high > 1.01 * low else show(high)
    return f"{costs.flops / 1e12:,.1f} | {'; '.join(kinds) or 'none'} | {step}"


HEAD = """| program, chips | held, GB | beside | fits | TFLOP | exchanges: times, kind, GB | estimated step |
|---|---|---|---|---|---|---|"""


def main(config: Config) -> None:
    """Compile every program and print a row of each."""
    if config.quick:
        config = replace(config, compilers=("cpu",), models=("tiny",), chips=(2,), rank=2)
    if "cpu" in config.compilers:
        use_cpu_devices(max(config.chips))
    for compiler in config.compilers:
        print(f"\n{NAMES[compiler]}\n\n{HEAD}", flush=True)
        chip = CHIPS[compiler]
        for model, way, chips in itertools.product(config.models, config.ways, config.chips):
            length = 32 if config.quick else 2048
            shape = TransformerConfig(**LLAMA | SHAPES[model] | {"context": length + 1})
            label = f"{model} {way} {chips}"
            mesh = make_mesh(way, find_devices(compiler, chips))
            try:
                compiled = compile_step(way, shape, mesh, config.rows * chips, config.rank)
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                print(f"| {label} | | | no | | | |", flush=True)  # what does not fit a TPU's compiler refuses
                continue
            costs = " | | "
            if compiler != "tpu":
                costs = write_costs(measure(compiled, chip, mesh, length // 2))
            print(f"| {label} | {write_memory(compiled, chip)} | {costs} |", flush=True)


if __name__ == "__main__":
    cli.main(Config, main)
