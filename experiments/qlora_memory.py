"""What full fine-tuning, LoRA and QLoRA hold in memory, and whether 4 bits cost quality.

Claims (lecture 002: C12, D8 to D10): full fine-tuning needs weights, gradients and Adam's moments; QLoRA
brings 65 billion weights from more than 780 GB to less than 48 GB; NF4 loses less than FP4 and Int4; QLoRA is
as good as LoRA.

Measured (`python experiments/qlora_memory.py`; two busy shared CPU cores). One step on 4 x 128 tokens of
SmolLM2-135M, each way in a process of its own, in MB; rank 16 on every linear layer; `activations` are the
compiled program's temporaries but for the gradients, `peak` the process' largest resident size less an empty
one's:

                 weights  optimiser  gradients  activations    peak
    full             538      1,076        538          725   3,268
    LoRA             558         39         20          730   1,734
    LoRA bf16        289         39         20        1,288   2,061
    QLoRA            188         39         20          730   1,439
    QLoRA bf16       131         39         20          864   1,563

so LoRA does away with the optimiser's and the gradients' share, and QLoRA with up to 76% of the weights', of
which the embeddings stay plain. At this size the activations (the logits over 49,152 words above all) decide,
and QLoRA's peak is still 44% of full tuning's. 16 bits cost memory on a CPU, where XLA makes 32-bit copies of
all layers' kernels: of 16-bit LoRA the activations are not an accelerator's. Packed kernels have no such
copies.

Llama's shapes, 1 x 512 tokens, layers recomputed, rank 64: a step compiled for the shapes and not run, in GB:

                       weights  optimiser  gradients  activations  in all   published
    full at 65B          261.1      522.3      261.1        261.1   1,306     > 780
    QLoRA bf16 at 65B     37.7        6.4        3.2          3.2    50.4      < 48
    full at 7B            27.0       53.9       27.0         27.0   134.8
    QLoRA bf16 at 7B       4.5        1.3         0.6          1.0     7.4

The published 780 GB are 12 bytes a weight, with weights and gradients in 16 bits; ours has 32 bits throughout
(16 bytes), and the step another 4 of temporaries. With the optimiser's 6.4 GB on the host (`learner.offload`,
in place of the paper's pages) QLoRA needs 44.0 GB, within the published bound; without, it does not.

Error of the weights in units of sigma, and what it adds to the loss on held-out children's books in nats a
token (95% t interval over 21 and 42 windows of 96 tokens; the plain models have 4.156 and 4.270):

                 Gaussian   SmolLM2   its loss             small   its loss
    NF4            .0920     .0938    +0.155 +- 0.039      .0930   +0.0035 +- 0.0027
    NF4 + DQ       .0920     .0939    +0.158 +- 0.039      .0931   +0.0035 +- 0.0027
    Int4           .1076     .1136    +0.320 +- 0.077      .1103   +0.0060 +- 0.0030
    FP4            .1220     .1258    +0.303 +- 0.053      .1242   +0.0065 +- 0.0036
    Int8           .0059     .0062    -0.002 +- 0.003      .0061   -0.0002 +- 0.0001

NF4 is the best of the 4-bit ones by the weights' error and by SmolLM2's loss (FP4 is +0.148 +- 0.073 worse,
Int4 +0.166 +- 0.080), and double quantisation costs it next to nothing (+0.003 +- 0.002). The published NF4
< FP4 < Int4 is an order of the loss: there FP4 and Int4 are level, and by the weights' error Int4 is the
better one. In the small model none of the three differs. (The published file of SmolLM2 that is read here
was itself rounded to 4 bits, in blocks of 32.)

QLoRA against LoRA at rank 16, same batches and adapters, 4 seeds, rates 1e-3, 3e-3 and 1e-2, each way's
chosen on validation data; two one-sided t tests of the paired differences at 5%:

    small model to CPython's reference [nats]   4.0315, 4.0327: +0.0012 +- 0.0026, margin 0.02, p = 9e-5
    small model to TREC, accuracy [%]            27.9, 28.8:   +0.8 +- 1.1,       margin 2,    p = .022

so they are equivalent within the margins; TREC is hardly learnt at this size by either. On SmolLM2 the same
contest (`--model-steps 16`) was left out for want of time.
"""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import qlora_quality as quality
from peft_task import Base, BaseConfig, own_base, published_base
from qlora_step import WAYS, analyse_shapes

from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from jaxrl_align.runtime import cli, plots, statistics
from jaxrl_align.runtime.huggingface import find_model
from jaxrl_align.runtime.mesh import use_cpu_devices

PARTS = ("weights", "optimiser", "gradients", "activations")
_LLAMA = {"positions": "rotary", "norm": "rms", "feed_forward": "swiglu", "biased": (), "tied_head": False}
LLAMA: dict[str, TransformerConfig] = {
    "7B": TransformerConfig(32_000, 4_096, 32, 32, 2_048, feed_forward_width=11_008, remat=True, **_LLAMA),
    "65B": TransformerConfig(32_000, 8_192, 80, 64, 2_048, feed_forward_width=22_016, remat=True, **_LLAMA),
}
"""The shapes of Touvron et al. 2023, arXiv:2302.13971."""
PUBLISHED_GB = {"full": 780, "QLoRA bf16": 48}
"""More than, and less than, at 65 billion weights (Dettmers et al. 2023)."""
PUBLISHED_FULL_BYTES = 12
"""A weight: itself and its gradient in 16 bits, Adam's moments in 32."""
GB = 1e9


@dataclass(frozen=True)
class Config(BaseConfig):
    """One step of each way on a published model; its quality on that and on small models of our own."""

    out: str = "runs/qlora_memory"
    model: str | None = None
    """A local Hugging Face folder; none means the one that `make model` writes."""
    ways: tuple[str, ...] = WAYS
    rank: int = 16
    rows: int = 4
    length: int = 128
    """Tokens of a row, of which the batch has `rows`."""
    steps: int = 150
    """Of LoRA and QLoRA on the small models."""
    batch_size: int = 8
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    model_steps: int = 0
    """Of LoRA and QLoRA on the published model too, in batches of 4; 0 leaves them out."""
    model_rates: tuple[float, ...] = (1e-3,)


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
    contests = {"text": quality.text_contest(base, batch_size=size, length=64, num_tokens=aside)}
    if small:
        contests["trec"] = quality.label_contest(base, batch_size=size, length=28, rows=(200, 500))
    how: dict[str, Any] = {"rank": config.rank, "keys": config.keys(2), "rates": rates, "steps": steps}
    for name, contest in contests.items() if steps else ():
        found[name] = quality.hold(base, contest, **how) | {"margin": contest.margin}
    return found


def report_memory(config: Config, memory: dict[str, Any], larger: dict[str, Any]) -> None:
    """Print the bytes of each part, measured and compiled for larger shapes."""
    columns = (*PARTS, "resident", "empty process")
    print(f"{config.rows} x {config.length} tokens, MB:" + "".join(f"{name:>15}" for name in columns))
    for way, row in memory.items():
        print(f"  {way:26}" + "".join(f"{row[name] / 1e6:15,.0f}" for name in columns))
    for way, sizes in larger.items():
        for size, row in sizes.items():
            each = "".join(f"{row[name] / GB:15,.1f}" for name in PARTS)
            total = sum(row[name] for name in PARTS) / GB
            print(f"  {f'{way} at {size}, GB':26}{each}   in all {total:,.1f}")
    weights = larger["full"]["65B"]["weights"] / 4
    print(
        f"  published at 65B: full > {PUBLISHED_GB['full']} GB, {PUBLISHED_FULL_BYTES} bytes a weight being"
    )
    print(f"  {PUBLISHED_FULL_BYTES * weights / GB:.0f} GB; QLoRA < {PUBLISHED_GB['QLoRA bf16']} GB")


def report_quality(name: str, found: dict[str, Any]) -> None:
    """Print errors, losses in paired differences, and the contests."""
    losses = {how: np.array(values) for how, values in found["losses"].items()}
    print(f"{name}: loss of the plain model {losses['plain'].mean():.4f} nats a token")
    for how, error in found["kernel errors"].items():
        print(f"  {how:10} error of the kernels {error:.4f} sigma, loss", end=" ")
        line = statistics.mean_text(losses[how] - losses["plain"], "+.4f")
        print(line + f", than NF4 {statistics.mean_text(losses[how] - losses['NF4'], '+.4f')}")
    for contest in ("text", "trec"):
        if contest in found:
            result, rows = quality.judge(found[contest], found[contest]["margin"]), found[contest]
            for way in ("LoRA", "QLoRA"):
                test = np.array(rows[way]["test"])
                every = " ".join(f"{x:.4f}" for x in test.mean(1))
                print(
                    f"  {contest}, {way:5} {statistics.mean_text(test[rows[way]['rate']], '.4f')} ({every})"
                )
            print(
                f"  QLoRA - LoRA {result.mean:+.4f} +- {result.half_width:.4f}, margin {result.margin}",
                end="",
            )
            print(
                f", p = {result.p:.2g}: {'equivalent' if result.p < 0.05 else 'not shown to be equivalent'}"
            )


def draw(path: Any, memory: dict[str, Any], larger: dict[str, Any]) -> None:
    """Draw stacked bars: measured on the published model, and of the compiled step at 65B."""
    fig, (left, right) = plots.panels(1, 2, size=(10, 4))
    left.set(ylabel="MB", title="measured step")
    right.set(ylabel="GB", title="compiled for Llama 65B, 1 x 512 tokens")
    at_65b = {way: sizes["65B"] for way, sizes in larger.items()}
    for ax, rows, unit in ((left, memory, 1e6), (right, at_65b, GB)):
        bottom = np.zeros(len(rows))
        for i, part in enumerate(PARTS):
            height = np.array([row[part] for row in rows.values()]) / unit
            ax.bar(list(rows), height, bottom=bottom, label=part, color=plots.COLORS[i])
            bottom += height
        ax.tick_params(axis="x", labelsize=8)
    resident = [(row["resident"] - row["empty process"]) / 1e6 for row in memory.values()]
    left.plot(
        list(memory),
        resident,
        "_",
        color="black",
        markersize=24,
        label="peak of the process, less an empty one",
    )
    for way, level in PUBLISHED_GB.items():
        right.axhline(level, color="#777777", linestyle=":")
        right.text(
            2.4,
            level,
            f"published {'>' if way == 'full' else '<'} {level}",
            ha="right",
            va="bottom",
            fontsize=8,
        )
    left.legend(fontsize=8)
    plots.save_figure(fig, path)


def main(config: Config) -> None:
    """Measure memory, extrapolate it, compare quality; print, save and draw."""
    if unknown := sorted(set(config.ways) - set(WAYS)):
        raise ValueError(f"ways must be among {', '.join(WAYS)}; got {', '.join(unknown)}")
    model = str(config.model or find_model())
    folder = config.open_folder()
    begin = time.perf_counter()
    name = lambda way: f"step_{way}.json".replace(" ", "_")
    memory = {way: folder.once(name(way), in_child, config, model, way) for way in config.ways}
    use_cpu_devices()
    larger = folder.once("larger.json", extrapolate, 64)
    report_memory(config, memory, larger)
    gaussian = quality.gaussian_errors()
    print("Gaussian weights: " + ", ".join(f"{how} {error:.4f}" for how, error in gaussian.items()))
    result = {"memory": memory, "larger": larger, "gaussian errors": gaussian}
    makers = {
        "small": lambda: (own_base(config, folder), config.steps, config.rates),
        "model": lambda: (published_base(model, config.text, 2_048), config.model_steps, config.model_rates),
    }
    for who, make in makers.items():
        result[who] = folder.once(f"quality_{who}.json", lambda make=make: measure_quality(config, *make()))
        report_quality(who, result[who])
    folder.write_json("result.json", result)
    draw(folder.path / "qlora_memory.png", memory, larger)
    print(f"figure and result.json are in {folder.path}; {time.perf_counter() - begin:.0f} s")


if __name__ == "__main__":
    cli.main(Config, main)
