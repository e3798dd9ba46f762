"""Parts of many tasks over one base: swapped, mixed within a batch, trained together, saved."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.nets import init_ia3, init_lora, init_prefix, init_prompt, overlay, stack_parts, take_part
from jaxrl_align.pretrain import LMHParams, make_lm_learner
from jaxrl_align.runtime.checkpoint import restore, save
from jaxrl_align.types import TokenBatch
from tests.tiny import LM, PARAMS, VOCAB, bits, disturb

CONSTANTS = init_lora(jax.random.key(0), PARAMS, rank=3).constants
BASE = overlay(PARAMS, CONSTANTS)
TOKENS = jax.random.randint(jax.random.key(1), (4, 7), 0, VOCAB)


@jax.jit
def forward(part, tokens):
    params = overlay(BASE, part)
    return LM.logits(params, LM.encode(params, tokens)[0])


def lora(seed):
    return disturb(init_lora(jax.random.key(0), PARAMS, rank=3).part, jax.random.key(seed), 0.3)


def test_parts_are_swapped_without_compiling_again():
    a, b = lora(2), lora(3)
    first, other, again = forward(a, TOKENS[0]), forward(b, TOKENS[0]), forward(a, TOKENS[0])
    assert bits(first) == bits(again) != bits(other)
    assert forward._cache_size() == 1


@pytest.mark.slow
@pytest.mark.parametrize("way", ["lora", "ia3", "prefix"])
def test_tasks_are_mixed_within_one_batch(way):
    start = {
        "lora": lambda key: init_lora(key, PARAMS, rank=3, dora=True, targets=["*up"]).part,
        "ia3": lambda key: init_ia3(PARAMS).part,
        "prefix": lambda key: init_prefix(LM, PARAMS, init_prompt(key, PARAMS, length=3).part).part,
    }[way]
    keys = jax.random.split(jax.random.key(4), 3)
    parts = [disturb(start(key), key, 0.3) for key in keys]
    base = overlay(PARAMS, init_lora(keys[0], PARAMS, rank=3, dora=True, targets=["*up"]).constants)
    read = lambda part, row: LM.encode(overlay(base, part), row)[0]
    stacked, tasks = stack_parts(parts), jnp.array([2, 0, 1, 3])
    mixed = jax.jit(jax.vmap(lambda task, row: read(take_part(stacked, task), row)))(tasks, TOKENS)
    for row, task in enumerate((2, 0, 1)):
        np.testing.assert_allclose(mixed[row], read(parts[task], TOKENS[row]), atol=1e-5)
    assert jnp.isnan(mixed[3]).any(), "there is no fourth task"


@pytest.mark.slow
def test_eight_parts_train_together_as_eight_runs():
    learner, hparams = make_lm_learner(LM), LMHParams(1e-2)
    keys = jax.random.split(jax.random.key(5), 8)
    parts = stack_parts([lora(seed) for seed in range(8)])
    rows = jax.random.randint(jax.random.key(6), (3, 8, 5, 7), 0, VOCAB)
    batches = TokenBatch(rows, jnp.ones(rows.shape), jnp.ones(rows.shape))
    begin = jax.vmap(learner.init, (0, None, 0))(keys, hparams, parts)

    def train(state, batches, base):
        return jax.lax.scan(lambda s, b: learner.step(s, b, base), state, batches)

    every = jax.vmap(train, (0, 1, None))
    together, metrics = jax.jit(every)(begin, batches, BASE)
    alone = jax.jit(train)
    for i in range(8):
        row = jax.tree.map(lambda x, i=i: x[i], begin)
        state, expected = alone(row, jax.tree.map(lambda x, i=i: x[:, i], batches), BASE)
        close = lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)
        jax.tree.map(close, state.params, take_part(together.params, i))
        close(metrics["loss"][i], expected["loss"])
    shapes = str(jax.make_jaxpr(every)(begin, batches, BASE))
    assert "f32[16,64]" in shapes and "f32[8,16,64]" not in shapes, "the base is there once"


def test_a_part_takes_kilobytes(tmp_path):
    part = init_lora(jax.random.key(0), PARAMS, rank=1, targets=["*query", "*value"]).part
    path = save(tmp_path, 1, part, {})
    assert path.stat().st_size < 3000, "512 bytes of numbers, their names, and a zip"
    assert bits(restore(tmp_path, jax.eval_shape(lambda: part))[0]) == bits(part)
