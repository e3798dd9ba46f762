"""What a step of tuning costs, in compiled operations: no gradient of a frozen weight may be formed.

XLA counts the body of a loop once, so a ratio within a scan over layers is that of one layer and the head.
"""

import functools

import jax
import jax.numpy as jnp
import pytest

from jaxrl_align.learner import make_gradient_learner, make_optimizer
from jaxrl_align.nets import TransformerConfig, init_ia3, init_lora, make_transformer, overlay, select
from jaxrl_align.nets.blocks import Linear
from jaxrl_align.pretrain.lm import LMHParams, make_lm_learner, next_token_objective
from jaxrl_align.types import TokenBatch

WIDTH = 256


def flops(function, *arguments):
    return jax.jit(function).lower(*arguments).compile().cost_analysis()["flops"]


def step_cost(learner, start, base, batch):
    """Return a step's operations on a part of a base, with the gradient's global norm clipped."""
    part, constants = jax.eval_shape(start, base)
    state = jax.eval_shape(lambda p: learner.init(jax.random.key(0), LMHParams(), p), part)
    return flops(learner.step, state, batch, jax.eval_shape(overlay, base, constants))


def test_a_step_of_lora_costs_less_than_two_forward_passes():
    """Of four linear layers: 4 forward, 3 back (nothing trains below the first), and the adapters' own."""
    layer = Linear(WIDTH, 0.02, False)

    def forward(params, x):
        return functools.reduce(lambda h, name: layer.apply({"params": params[name]}, h), "abcd", x)

    def loss(params, frozen, x, key, hparams):
        return jnp.sum(forward(overlay(frozen, params), x)), {}

    base = {name: {"kernel": jax.ShapeDtypeStruct((WIDTH, WIDTH), jnp.float32)} for name in "abcd"}
    x = jax.ShapeDtypeStruct((512, WIDTH), jnp.float32)
    learner = make_gradient_learner(None, loss, optimizer=make_optimizer(max_grad_norm=1.0))
    start = lambda base: init_lora(jax.random.key(0), base, rank=4)
    assert step_cost(learner, start, base, x) < 1.95 * flops(forward, base, x)


LM = make_transformer(TransformerConfig(64, width=WIDTH, layers=2, heads=2, context=33))
BASE = jax.eval_shape(LM.init, jax.random.key(0))
KEY = jax.random.key(0)
BATCH = TokenBatch(*[jnp.ones((8, 33), t) for t in (jnp.int32, jnp.float32, jnp.float32)])
STARTS = {
    "lora": lambda base: init_lora(jax.random.key(0), base, rank=4, targets=["*query", "*value"]),
    "dora": lambda base: init_lora(jax.random.key(0), base, rank=4, targets=["*query", "*value"], dora=True),
    "ia3": init_ia3,
    "bitfit": lambda base: (select(base, "*bias"), {}),
}


@functools.cache
def forward_cost():
    return flops(lambda params: next_token_objective(LM)(params, None, BATCH, KEY, None)[0], BASE)


@pytest.mark.slow  # two programs each
@pytest.mark.parametrize("name", STARTS)
def test_a_transformers_step_costs_two_forward_passes_and_little_more(name):
    """Forward and back through every linear layer is 2; attention goes back at twice its forward cost."""
    assert step_cost(make_lm_learner(LM), STARTS[name], BASE, BATCH) < 2.15 * forward_cost()
