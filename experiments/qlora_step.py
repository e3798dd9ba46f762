"""The memory of one fine-tuning step, in a process of its own so that no other's peak is in its figures.

`python experiments/qlora_step.py --way QLoRA` prints one line of JSON: what `qlora_memory.py` asks for.
"""

import gc
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import chex
import jax
import jax.numpy as jnp

from jaxrl_align.nets.adapters import overlay
from jaxrl_align.nets.kinds import init_lora
from jaxrl_align.nets.quantize import quantise_params
from jaxrl_align.nets.transformer import LanguageModel, make_transformer
from jaxrl_align.pretrain.lm import LMHParams, make_lm_learner
from jaxrl_align.runtime import cli, save
from jaxrl_align.runtime.guards.device_memory import peak_memory
from jaxrl_align.runtime.huggingface import find_model, load_model
from jaxrl_align.types import Learner, Params, TokenBatch

WAYS = ("full", "LoRA", "LoRA bf16", "QLoRA", "QLoRA bf16")
"""LoRA and QLoRA on every linear layer; bf16: what is frozen and the computation are in 16 bits."""


@dataclass(frozen=True)
class Config:
    """One way, one batch."""

    way: Literal["full", "LoRA", "LoRA bf16", "QLoRA", "QLoRA bf16"] = "QLoRA"
    """Of fine-tuning."""
    model: str | None = None
    """A local Hugging Face folder; none means the one that `make model` writes."""
    rank: int = 16
    """Of the LoRA."""
    rows: int = 4
    """Of the step."""
    length: int = 128
    """Tokens that are read of each row."""
    steps: int = 3
    """That are taken; the peak is that of all."""


def half(params: Params) -> Params:
    """Return parameters with float32 leaves in bfloat16; what is packed keeps its scales."""
    if not isinstance(params, dict):
        return params.astype(jnp.bfloat16) if params.dtype == jnp.float32 else params
    return {k: v if k in ("nf4", "fp4", "int4", "int8") else half(v) for k, v in params.items()}


def start(way: str, lm: LanguageModel, params: Params, rank: int) -> tuple[LanguageModel, Params, Params]:
    """Return the model, what is frozen (nothing in full fine-tuning) and what trains.

    Args:
      way: of `WAYS`.
      lm: the language model.
      params: its parameters, plain or packed already.
      rank: of the adapters.
    """
    if way == "full":
        return lm, None, params
    if way.startswith("QLoRA") and not isinstance(params["layers"]["query"]["kernel"], dict):
        params = quantise_params(params, "nf4")
    if way.endswith("bf16"):
        lm, params = make_transformer(replace(lm.config, dtype="bfloat16")), half(params)
    part, constants = init_lora(jax.random.key(0), params, rank=rank)
    return lm, overlay(params, constants), part


def nbytes(tree: Any) -> int:
    """Return the bytes of a tree of arrays, or of shapes."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree) if hasattr(x, "dtype"))


def blank_batch(rows: int, length: int) -> TokenBatch:
    """Return a batch whose tokens are all the first: memory does not depend on them."""
    ones = jnp.ones((rows, length + 1))
    return TokenBatch(jnp.zeros((rows, length + 1), jnp.int32), ones, ones)


def analyse(learner: Learner, state: Any, batch: Any, frozen: Any) -> tuple[Any, dict[str, int]]:
    """Compile a step and return it with its memory in bytes; arguments may be shapes, and nothing is run.

    `temporaries` are what the compiled program holds at most beside its arguments and results: gradients and
    activations. Gradients have the size of what trains, and all are there at once, since their norm is.
    """
    step = jax.jit(learner.step, donate_argnums=0)
    compiled = step.lower(state, batch, frozen).compile()
    analysis = compiled.memory_analysis()
    gradients = nbytes(state.params)
    return compiled, {
        "weights": nbytes(frozen) + gradients,
        "trained": gradients,
        "optimiser": nbytes(state.opt_state),
        "gradients": gradients,
        "temporaries": analysis.temp_size_in_bytes,
        "activations": max(0, analysis.temp_size_in_bytes - gradients),
        "arguments": analysis.argument_size_in_bytes,
        "new results": analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
    }


def analyse_shapes(way: str, lm: LanguageModel, *, rank: int, rows: int, length: int) -> dict[str, int]:
    """Return the memory of a step of a model that is never made: `analyse` of its shapes."""

    def begin(key: chex.PRNGKey) -> tuple[Params, Params]:
        return start(way, lm, lm.init(key), rank)[1:]

    frozen, part = jax.eval_shape(begin, jax.random.key(0))
    if way.endswith("bf16"):
        lm = make_transformer(replace(lm.config, dtype="bfloat16"))
    learner = make_lm_learner(lm)
    state = jax.eval_shape(learner.init, jax.random.key(0), LMHParams(1e-4), part)
    batch = jax.eval_shape(lambda: blank_batch(rows, length))
    return analyse(learner, state, batch, frozen)[1]


def stored_bytes(part: Params) -> int:
    """Return the size of the file that a task leaves behind: what trained, saved."""
    with tempfile.TemporaryDirectory() as folder:
        return save(folder, 0, {"part": part}, {}).stat().st_size


def reset_peak() -> bool:
    """Begin the process' peak anew where Linux allows it; otherwise it includes the reading of the model."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def main(config: Config) -> None:
    """Load, begin, compile, take some steps; print the memory of each."""
    jax.block_until_ready(jnp.ones(1))
    empty = peak_memory()
    quantise = "nf4" if config.way.startswith("QLoRA") else None
    model = load_model(config.model or find_model(), quantise=quantise)
    lm, frozen, part = start(config.way, make_transformer(model.config), model.params, config.rank)
    del model
    learner = make_lm_learner(lm)
    state = learner.init(jax.random.key(0), LMHParams(1e-4), part)
    del part
    batch = blank_batch(config.rows, config.length)
    compiled, found = analyse(learner, state, batch, frozen)
    gc.collect()
    reset = reset_peak()
    loss = None
    for _ in range(config.steps):
        state, metrics = compiled(state, batch, frozen)
        loss = float(metrics["loss"])
    peaks = {"empty process": empty, "resident": peak_memory(), "peak is of the steps alone": reset}
    print(json.dumps(found | peaks | {"loss": loss, "stored": stored_bytes(state.params)}))


if __name__ == "__main__":
    cli.main(Config, main)
