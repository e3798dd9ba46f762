"""What full fine-tuning, LoRA and QLoRA hold in memory and store for a task, and whether 4 bits cost quality.

Memory is that of one step on SmolLM2-135M, each way in a process of its own, rank 16 on every linear layer:
the arrays that it holds, the compiled program's own account (`memory_analysis`: arguments are weights and
moments, temporaries are gradients and activations), the process' peak, and the size of the file that a task
leaves behind. Llama's shapes are compiled and not run: 1 x 512 tokens, layers recomputed, rank 64. Quality is
the error of packed weights, the loss that it adds on held-out children's books, and LoRA over plain and over
packed kernels on the same batches, at rates that other seeds choose, held equal within a margin by two
one-sided t tests.

LoRA does away with the optimiser's and the gradients' share, and with the copy for each task; QLoRA with
three quarters of the weights', of which the embeddings stay plain. At this size the activations decide, of
them the logits over 49,152 words. 16 bits cost memory on a CPU, where XLA makes 32-bit copies of all layers'
kernels: of 16-bit LoRA the activations are not an accelerator's. The published 780 GB at 65 billion weights
are 12 bytes a weight, with weights and gradients in 16 bits; ours has 32 bits throughout, 16 bytes, and the
step another 4 of temporaries. QLoRA at 65 billion stays below the published 48 GB once the optimiser's state
is on the host (`learner.offload`, in place of the paper's pages). The published order NF4 < FP4 < Int4 is one
of the loss: NF4 is the best here too, FP4 and Int4 are level. (The published file of SmolLM2 that is read
here was itself rounded to 4 bits, in blocks of 32.)
"""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import qlora_quality as quality
from peft_task import Base, BaseConfig, own_base, published_base
from qlora_report import report
from qlora_step import WAYS, analyse_shapes

from jaxrl_align import runtime
from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from jaxrl_align.runtime import cli
from jaxrl_align.runtime.huggingface import find_model
from jaxrl_align.runtime.mesh import use_cpu_devices

CLAIM = runtime.Claim(
    "Full fine-tuning stores a full copy of the weights for each task and holds weights, gradients and two "
    "moments; LoRA does without, and QLoRA brings 65 billion weights from more than 780 GB to less than 48 "
    "GB, with NF4 better than FP4 and Int4, and as good as LoRA.",
    rows=("C11", "C12", "D8", "D9", "D10"),
    minutes=9,
)
_LLAMA = {"positions": "rotary", "norm": "rms", "feed_forward": "swiglu", "biased": (), "tied_head": False}
LLAMA: dict[str, TransformerConfig] = {
    "7B": TransformerConfig(32_000, 4_096, 32, 32, 2_048, feed_forward_width=11_008, remat=True, **_LLAMA),
    "65B": TransformerConfig(32_000, 8_192, 80, 64, 2_048, feed_forward_width=22_016, remat=True, **_LLAMA),
}
"""The shapes of Touvron et al. 2023, arXiv:2302.13971."""


@dataclass(frozen=True)
class Config(BaseConfig):
    """One step of each way on a published model; its quality on that and on small models of our own."""

    out: str = "runs/qlora_memory"
    model: str | None = None
    """A local Hugging Face folder; none means the one that `make model` writes."""
    ways: tuple[str, ...] = WAYS
    """Ways of fine-tuning that are measured."""
    tuning_seeds: int = 2
    """Of the tuning too: they choose the rates of LoRA and QLoRA and are not reported."""
    rank: int = 16
    """Of the LoRA."""
    rows: int = 4
    """Of the step whose memory is measured."""
    length: int = 128
    """Tokens of a row, of which the batch has `rows`."""
    steps: int = 150
    """Of LoRA and QLoRA on the small models."""
    batch_size: int = 8
    """Rows of an update of the small model."""
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Learning rates that are tried on the small model."""
    model_steps: int = 0
    """Of LoRA and QLoRA on the published model too, in batches of 4; 0 leaves them out."""
    model_rates: tuple[float, ...] = (1e-3,)
    """Learning rates that are tried on the published model."""


def in_child(config: Config, model: str, way: str) -> dict[str, Any]:
    """Return what `qlora_step.py` measures in a process of its own."""
    script = Path(__file__).with_name("qlora_step.py")
    sizes = {"way": way, "model": model, "rank": config.rank, "rows": config.rows, "length": config.length}
    flags = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
    done = subprocess.run([sys.executable, script, *flags], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{way} could not be measured: {done.stderr.strip()[-500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def extrapolate(rank: int) -> dict[str, dict[str, Any]]:
    """Return the memory of a step on one row of 512 tokens at the sizes of `LLAMA`, compiled and not run."""
    found: dict[str, dict[str, Any]] = {}
    for size, shape in LLAMA.items():
        lm = make_transformer(shape)
        for way in ("full", "LoRA bf16", "QLoRA bf16"):
            found.setdefault(way, {})[size] = analyse_shapes(way, lm, rank=rank, rows=1, length=512)
    return found


def measure_quality(config: Config, base: Base, steps: int, rates: tuple[float, ...]) -> dict[str, Any]:
    """Return a base's errors, losses and contests of LoRA against QLoRA."""
    small = not base.in_turn
    found = {
        "kernel errors": quality.kernel_errors(base.params),
        "losses": quality.text_losses(base, length=96),
    }
    size = config.batch_size if small else 4
    aside = 4_096 if small else 1_024
    if not steps:
        return found
    contests = {"text": quality.text_contest(base, batch_size=size, length=64, num_tokens=aside)}
    if small:
        contests["trec"] = quality.label_contest(base, batch_size=size, length=28, rows=(200, 500))
    keys = jax.random.split(jax.random.key(config.seed + 2), config.seeds + config.tuning_seeds)
    how: dict[str, Any] = {"rank": config.rank, "keys": keys, "rates": rates, "steps": steps}
    how["tuning"] = config.tuning_seeds
    for name, contest in contests.items():
        found[name] = quality.hold(base, contest, **how) | {"margin": contest.margin}
    return found


def main(config: Config) -> None:
    """Measure memory, extrapolate it, compare quality; print, save and draw."""
    if unknown := sorted(set(config.ways) - set(WAYS)):
        raise ValueError(f"ways must be among {', '.join(WAYS)}; got {', '.join(unknown)}")
    if "full" not in config.ways:
        raise ValueError(f"ways must hold full, which the others are held against; got {config.ways}")
    model = str(config.model or find_model())
    folder = config.open_folder()
    name = lambda way: f"step_{way}.json".replace(" ", "_")
    memory = {way: folder.once(name(way), in_child, config, model, way) for way in config.ways}
    use_cpu_devices()
    larger = folder.once("larger.json", extrapolate, 64)
    found = {"memory": memory, "larger": larger, "gaussian errors": quality.gaussian_errors()}
    makers = {
        "small": lambda: (own_base(config, folder), config.steps, config.rates),
        "model": lambda: (published_base(model, config.text, 2_048), config.model_steps, config.model_rates),
    }
    for who, make in makers.items():
        found[who] = folder.once(f"quality_{who}.json", lambda make=make: measure_quality(config, *make()))
    report(folder, config, CLAIM, found)


if __name__ == "__main__":
    cli.main(Config, main)
