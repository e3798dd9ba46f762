"""Load a model in 4 bits and train LoRA on every linear layer; print the process' peak memory in bytes."""

import sys

import jax
import jax.numpy as jnp

from jaxrl_align.nets import init_lora, make_transformer, overlay
from jaxrl_align.pretrain.lm import LMHParams, make_lm_learner
from jaxrl_align.runtime.guards.device_memory import peak_memory
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
print(peak_memory())
