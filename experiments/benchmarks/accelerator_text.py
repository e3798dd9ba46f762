"""Training and decoding of `accelerator.py`, and its attention kernels."""

import functools
import itertools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from accelerator_counts import decoding_floor, make_config, training_flops
from accelerator_rows import (
    DATASHEET_FLOPS,
    Ceilings,
    Report,
    compile_together,
    list_kernels,
    measure,
    shorten,
)

from jaxrl_align.learner import LossFn, make_gradient_learner, make_optimizer
from jaxrl_align.losses import token_log_prob_chunked
from jaxrl_align.nets import TransformerConfig, make_transformer
from jaxrl_align.nets.transformer import LanguageModel
from jaxrl_align.pretrain import LMHParams, make_lm_learner
from jaxrl_align.text import Filters, TextConfig, generate
from jaxrl_align.types import Learner, PaddedTokens, TokenBatch

OPTIMIZER = make_optimizer(max_grad_norm=1.0, b2=0.95, eps=1e-8)
KEY = jax.random.key(0)
VARIANTS = ("unrolled", "looped", "masked", "xla", "chunked", "wide gradient")
"""Of training: the library's learner with cuDNN's attention and its layers laid out one behind the other;
with a loop over them, as all others; with a mask of ones; with XLA's attention; with the loss in chunks; and
with the logits' gradients multiplied in float32."""


def wide_logits(lm: LanguageModel) -> LanguageModel:
    """Return the model with logits whose gradients enter their products in float32."""
    head = "tokens" if lm.config.tied_head else "head"

    def logits(params: Any, hidden: jax.Array) -> jax.Array:
        matrix = params[head].astype(hidden.dtype)
        matrix = matrix.T if lm.config.tied_head else matrix
        return jnp.matmul(hidden, matrix, preferred_element_type=jnp.float32)

    return lm._replace(logits=logits)


def chunked_loss(lm: LanguageModel, chunk_size: int) -> LossFn:
    """Return the mean next-token loss of full rows, whose logits are formed some positions at a time."""

    def loss(params: Any, frozen: Any, batch: TokenBatch, key: Any, hparams: Any) -> Any:
        def row(tokens: jax.Array) -> jax.Array:
            hidden, _ = lm.encode(params, tokens[:-1])
            unembed = lambda h: lm.logits(params, h)
            return token_log_prob_chunked(hidden, tokens[1:], unembed, chunk_size=chunk_size)

        return -jnp.mean(jax.vmap(row)(batch.tokens)), {}

    return loss


def make_training(config: TransformerConfig, variant: str, length: int) -> Learner:
    """Return the learner of a variant of `VARIANTS`."""
    lm = make_transformer(config)
    if variant == "wide gradient":
        return make_lm_learner(wide_logits(lm))
    if variant == "chunked":
        return make_gradient_learner(lm.init, chunked_loss(lm, length // 8), optimizer=OPTIMIZER)
    return make_lm_learner(lm)


def training(
    report: Report,
    ceilings: Ceilings,
    *,
    models: tuple[str, ...],
    variants: tuple[str, ...],
    batch: int,
    length: int,
    attention: str,
    quick: bool,
) -> None:
    """Train each model in each variant on full rows of random tokens; a row each, over both ceilings."""
    programs, arguments = {}, {}
    begin = {
        model: jax.jit(make_training(make_config(model, quick=quick), "looped", length).init)
        for model in models
    }
    for model, variant in itertools.product(models, variants):
        kernel = "xla" if variant == "xla" else attention
        config = make_config(model, quick=quick, attention=kernel, unroll=variant == "unrolled")
        learner = make_training(config, variant, length)
        tokens = jax.random.randint(jax.random.key(1), (batch, length + 1), 0, config.vocab_size)
        ones = jnp.ones(tokens.shape)
        rows = TokenBatch(tokens, ones if variant == "masked" else None, ones)
        name = f"{model}, {variant}"
        state = jax.eval_shape(begin[model], KEY, LMHParams())
        programs[name] = (jax.jit(learner.step, donate_argnums=0), (state, rows))
        arguments[name] = (config, begin[model], rows)
    for name, step in compile_together(programs, at_once=3).items():
        if report.late(name):
            continue
        config, init, rows = arguments[name]
        try:
            state = [init(KEY, LMHParams())]

            def once(state: list[Any] = state, step: Any = step, rows: TokenBatch = rows) -> jax.Array:
                state[0], metrics = step(state[0], rows)
                return metrics["loss"]

            timing = measure(once, rounds=3, seconds=0.5)
            list_kernels(report, once)
        except Exception as error:  # out of memory, most likely: the others go on
            print(f"  {name}: {shorten(error)}", flush=True)
            continue
        tokens = batch * length
        rate, flops = tokens / timing.median, training_flops(config, length)
        whole = training_flops(config, length, causal=False)
        temporary = step.memory_analysis().temp_size_in_bytes / 1e9
        note = (
            f"of the measured product's rate; MFU {rate * flops / DATASHEET_FLOPS:.1%} of 989 TFLOP/s, "
            f"{rate * whole / DATASHEET_FLOPS:.1%} with all of attention counted; {batch} rows of {length}, "
            f"{timing.median * 1e3:.1f} ms a step, {temporary:.1f} GB temporary"
        )
        spread = tokens / timing.slowest, tokens / timing.fastest
        share = rate * flops / ceilings.flops
        report.add("training", name, rate, "tokens/s", share=share, spread=spread, note=note)


def draw_narrow(lm: LanguageModel) -> Any:
    """Return random weights in bfloat16, cast once."""
    narrow = lambda x: x.astype(jnp.bfloat16)
    return jax.jit(lambda key: jax.tree.map(narrow, lm.init(key)))(jax.random.key(0))


def make_decoding(config: TransformerConfig, prompt: int, new: int, greedy: bool) -> Callable[..., Any]:
    """Return `(params, prompts, keys) -> tokens [B, new]`, jitted; nothing stops an answer early."""
    lm, text = make_transformer(config), TextConfig(prompt, new)
    filters = Filters(top_k=1) if greedy else Filters()

    def respond(params: Any, prompts: PaddedTokens, keys: jax.Array) -> jax.Array:
        one = lambda p, key: generate(lm, params, p, key, text, filters=filters, stop_tokens=()).tokens
        return jax.vmap(one)(prompts, keys)

    return jax.jit(respond)


def decoding(
    report: Report,
    ceilings: Ceilings,
    *,
    models: tuple[str, ...],
    batches: tuple[int, ...],
    kernels: tuple[str, ...],
    draws: tuple[str, ...],
    layers: tuple[str, ...],
    prompt: int,
    new: int,
    quick: bool,
) -> None:
    """Write `new` tokens behind prompts; a row each, over the device's floor."""
    programs, floors = {}, {}
    for model in models:
        lm = make_transformer(make_config(model, quick=quick))
        params = draw_narrow(lm)
        for batch, kernel, draw, layout in itertools.product(batches, kernels, draws, layers):
            config = make_config(model, quick=quick, attention=kernel, unroll=layout == "unrolled")
            keys = jax.random.split(jax.random.key(1), batch)
            tokens = jax.random.randint(keys[0], (batch, prompt), 2, config.vocab_size)
            name = f"{model}, {kernel}, batch {batch}, {draw}, {layout}"
            given = (params, PaddedTokens(tokens, jnp.ones(tokens.shape)), keys)
            programs[name] = (make_decoding(config, prompt, new, draw == "greedy"), given)
            floors[name] = batch, decoding_floor(config, batch, prompt, new, *ceilings)
    for name, respond in compile_together(programs).items():
        if report.late(name):
            continue
        batch, (reading, writing) = floors[name]
        try:
            once = functools.partial(respond, *programs[name][1])
            timing = measure(once, rounds=3, seconds=0.2)
            list_kernels(report, once)
        except Exception as error:  # the others go on
            print(f"  {name}: {shorten(error)}", flush=True)
            continue
        amount = batch * new
        step = (timing.median - reading) / (new - 1)
        note = (
            f"{step * 1e3:.3f} ms a step, by the bandwidth at least {writing / (new - 1) * 1e3:.3f}; "
            f"{prompt} + {new} tokens"
        )
        spread = amount / timing.slowest, amount / timing.fastest
        share = (reading + writing) / timing.median
        report.add(
            "decoding", name, amount / timing.median, "tokens/s", share=share, spread=spread, note=note
        )
