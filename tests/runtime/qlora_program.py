"""Load a model in 4 bits and train LoRA on every linear layer; print the process' peak memory in bytes."""

import re
import resource
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from jaxrl_align.nets import init_lora, make_transformer, overlay
from jaxrl_align.pretrain.lm import LMHParams, make_lm_learner
from jaxrl_align.runtime.huggingface import load_model
from jaxrl_align.types import TokenBatch

model = load_model(sys.argv[1], quantise="nf4")
part, constants = init_lora(jax.random.key(0), model.params, rank=8)
base = overlay(model.params, constants)
rows = jax.random.randint(jax.random.key(1), (8, 128), 0, model.config.vocab_size)
batch = TokenBatch(rows, jnp.ones(rows.shape), jnp.ones(rows.shape))
learner = make_lm_learner(make_transformer(model.config), microbatches=8)
state = learner.init(jax.random.key(2), LMHParams(), params=part)
step = jax.jit(learner.step, donate_argnums=0)
for _ in range(2):
    state, metrics = step(state, batch, base)
assert jnp.isfinite(metrics["loss"]) and any(leaf.any() for leaf in jax.tree.leaves(state.params))
status = Path("/proc/self/status")
if status.exists():  # getrusage counts what the parent held when it forked, too
    kilobytes = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())[1]
    print(1024 * int(kilobytes))
else:
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)  # bytes on macOS
