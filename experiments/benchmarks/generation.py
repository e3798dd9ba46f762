"""Language models beside transformers' generate and trl's SFTTrainer, in turn in one run, and the floor.

Aim: with GPT-2's layout (4 layers of 128, 4 heads, 256 tokens, float32) at least 3 times transformers'
generation of 32 tokens after 32, and at least 1.5 times the training of trl on 32 rows of 64.

Measured (`python experiments/benchmarks/generation.py --rounds 5 --peers PYTHON`; two CPU cores, an AMD EPYC
on which XLA multiplies at 190 to 210 GFLOP/s; torch 2.13.0, transformers 5.24.0, trl 1.16.0 with one and with
two torch threads, the better of each round counts; medians and the range over 5 rounds):

    generation, batch 32, greedy   14,700 new tokens/s; transformers 6,620 and 7,720: 1.85 times [1.57, 2.29]
                          sampled  19,600; 6,690 and 8,010: 2.19 times [1.79, 3.21]
    generation, batch 1, greedy    5,150; 765 and 615: 6.7 times [4.8, 8.6]
                         sampled   4,790; 700 and 593: 6.7 times [6.2, 7.0]
    training, AdamW                15,100 tokens/s; trl 8,820 and 13,000: 1.13 times [0.93, 1.40]

So both factors are missed at batch 32. On a machine whose products ran at 416 GFLOP/s the same lines gave
2.70 (greedy), 2.84 (sampled, with the draw of that time) and 1.77 times (training). The floor is the work
over this machine's own rates at these shapes: at batch 32 8.4 ms for the prompts (1.71 GFLOP at 203 a
second) and 16.8 ms for 31 single tokens (1.72 GFLOP at 103), 40,600 tokens a second, of which we reach 36
to 48%; at batch 1 24%; in training 37% of 40,700. What is missing at batch 32 is mostly each layer's keys
and values, which XLA cuts out of the cache into a copy before it multiplies.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peers

from jaxrl_align.learner import make_optimizer
from jaxrl_align.nets.transformer import LanguageModel, TransformerConfig, make_transformer
from jaxrl_align.pretrain.lm import LMHParams, make_lm_learner, sample_rows
from jaxrl_align.runtime import cli
from jaxrl_align.runtime.huggingface import find_model, load_model
from jaxrl_align.text.generation import (
    WHOLE,
    DecodeState,
    Filters,
    Slots,
    TextConfig,
    draw_token,
    generate,
    read_token,
)
from jaxrl_align.types import PaddedTokens, Params, TokenBatch


@dataclass(frozen=True)
class Config:
    """GPT-2's layout and a real model in float32; equal lengths on both sides, and no early stop."""

    vocab: int = 256
    width: int = 128
    layers: int = 4
    heads: int = 4
    batch_sizes: tuple[int, ...] = (32, 1)
    """Of generation."""
    real: bool = True
    """SmolLM2-135M too, where `find_model` finds it."""
    real_batch_sizes: tuple[int, ...] = (1, 8, 32)
    real_slots: tuple[int, int] = (16, 256)
    """Of the caches that a token of the real model is timed with."""
    prompt: int = 32
    new: int = 32
    train_batch: int = 32
    train_length: int = 64
    train_steps: int = 20
    """In a round."""
    rounds: int = 7
    generation: bool = True
    training: bool = True
    peers: str = ""
    """An interpreter with transformers, trl and torch; empty leaves them out."""
    peer_threads: tuple[int, int] = (1, 2)
    """Each peer is measured with both, and its better one in each round counts."""


@dataclass(frozen=True)
class Work:
    """What must be done at least, one phase after the other."""

    flops: tuple[float, ...]
    """Multiplications and additions of each phase."""
    rows: tuple[int, ...]
    """The rows that its products with the weights have."""
    moved: tuple[float, ...]
    """Bytes that must be read or written."""


def weight_bytes(shape: TransformerConfig) -> int:
    """Return the size in float32 of the matrices that every token is multiplied with, the logits' included."""
    attention = 2 * shape.width * shape.depth * (shape.heads + shape.kv_heads)
    gated = shape.feed_forward in ("swiglu", "geglu")
    feed_forward = (3 if gated else 2) * shape.width * shape.hidden
    return 4 * ((attention + feed_forward) * shape.layers + shape.vocab_size * shape.width)


def token_flops(shape: TransformerConfig, slots: float) -> float:
    """Return the multiplications and additions of one token that reads `slots` slots, its logits included."""
    return weight_bytes(shape) / 2 + 4.0 * shape.heads * shape.depth * slots * shape.layers


def cache_bytes(shape: TransformerConfig, slots: float) -> float:
    """Return the size in float32 of one row's keys and values."""
    return 4 * 2 * shape.kv_heads * shape.depth * shape.layers * slots


def generation_work(config: Config, shape: TransformerConfig, batch: int) -> Work:
    """Return the work of `batch` responses: the prompt read once, then one token at a time."""
    steps = config.new - 1
    mean_slots = config.prompt + (steps + 1) / 2
    prompt = config.prompt * token_flops(shape, (config.prompt + 1) / 2)
    # Of a prompt only the last token's logits are needed.
    prompt -= 2.0 * (config.prompt - 1) * shape.vocab_size * shape.width
    weights = weight_bytes(shape)
    return Work(
        (batch * prompt, batch * steps * token_flops(shape, mean_slots)),
        (batch * config.prompt, batch),
        (weights, steps * (weights + batch * cache_bytes(shape, mean_slots))),
    )


def training_work(config: Config, shape: TransformerConfig) -> Work:
    """Return the work of a step: a backward pass takes twice a forward pass."""
    tokens = config.train_batch * (config.train_length - 1)
    flops = 3 * tokens * token_flops(shape, config.train_length / 2)
    weights = weight_bytes(shape)
    # Read in both passes, and once more by Adam, which writes them; as do the gradient and two moments.
    return Work((flops,), (tokens,), (10.0 * weights,))


def best_rate(call: Callable[[], Any], amount: float) -> float:
    """Return the highest of 15 rates."""
    seconds = []
    for _ in range(16):
        begin = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - begin)
    return amount / min(seconds[1:])


def matrix_rate(shape: TransformerConfig, rows: int) -> float:
    """Return float32 operations a second of `[rows, width] [width, hidden] [hidden, width]`, repeated.

    It multiplies with as many matrices in turn as the model has, so that they lie where the model's lie.
    """
    width, hidden = shape.width, shape.hidden
    total = max(1, weight_bytes(shape) // (8 * width * hidden))
    count = max(4, 2**13 // (rows * total))
    up, down = (
        jnp.broadcast_to(jnp.eye(*size), (total, *size)) + 0 for size in ((width, hidden), (hidden, width))
    )

    @jax.jit
    def chain(x: Any, up: Any, down: Any) -> Any:
        once = lambda x: jax.lax.scan(lambda y, m: ((y @ m[0]) @ m[1], None), x, (up, down))[0]
        return jax.lax.fori_loop(0, count, lambda _, y: once(y), x)

    x = jnp.ones((rows, width))
    return best_rate(lambda: chain(x, up, down), count * total * rows * 4.0 * width * hidden)


def memory_rate(num_bytes: float) -> float:
    """Return bytes a second through an array of this size that is read and written, both counted."""
    x = jnp.ones(int(num_bytes) // 4)
    count = max(4, int(1e8 / num_bytes))
    add = jax.jit(lambda x: jax.lax.fori_loop(0, count, lambda _, y: y + 1.0, x))
    return best_rate(lambda: add(x), 2.0 * count * x.nbytes)


def floor(shape: TransformerConfig, work: Work, resident: float) -> float:
    """Print what each phase takes at least, `resident` bytes in use; return the seconds together."""
    bandwidth, total = memory_rate(resident), 0.0
    for flops, rows, moved in zip(work.flops, work.rows, work.moved, strict=True):
        rate = matrix_rate(shape, rows)
        total += max(flops / rate, moved / bandwidth)
        print(f"  {flops / 1e9:.3f} GFLOP in {rows} rows at {rate / 1e9:.0f} a second:", end=" ")
        print(f"{1e3 * flops / rate:.2f} ms; {moved / 1e6:.1f} MB at {bandwidth / 1e9:.1f} GB/s:", end=" ")
        print(f"{1e3 * moved / bandwidth:.2f} ms")
    return total


def small_model(config: Config) -> LanguageModel:
    """Return GPT-2's layout; its context holds prompt and response."""
    context = max(config.prompt + config.new, config.train_length)
    return make_transformer(
        TransformerConfig(config.vocab, config.width, config.layers, config.heads, context)
    )


def our_generation(
    config: Config, lm: LanguageModel, params: Params, batch: int, sample: bool
) -> peers.Round:
    """Return the measurement of `generate`, new tokens a second."""
    text = TextConfig(config.prompt, config.new)
    tokens = jax.random.randint(jax.random.key(1), (batch, config.prompt), 2, lm.config.vocab_size)
    prompts = PaddedTokens(tokens, jnp.ones(tokens.shape))
    filters = WHOLE if sample else Filters(top_k=1)

    @jax.jit
    def respond(params: Any, prompts: Any, key: Any) -> Any:
        one = lambda prompt, key: generate(lm, params, prompt, key, text, filters=filters, stop_tokens=())
        return jax.vmap(one)(prompts, jax.random.split(key, batch))

    repeats = repeats_of(lm.config, 256 // batch)

    def measure() -> float:
        begin = time.perf_counter()
        for i in range(repeats):
            np.asarray(respond(params, prompts, jax.random.key(i)).tokens)
        return repeats * batch * config.new / (time.perf_counter() - begin)

    measure()
    return measure


def repeats_of(shape: TransformerConfig, wanted: int) -> int:
    """Return how often a round generates: a large model once, a small one so often that it can be timed."""
    return 1 if weight_bytes(shape) > 1e8 else max(2, wanted)


def one_token(lm: LanguageModel, params: Params, batch: int, slots: int, count: int = 8) -> peers.Round:
    """Return the measurement of single tokens behind a full cache of that many slots, tokens a row a second."""
    text = TextConfig(slots - count, count)
    places = Slots(jnp.ones(slots), jnp.arange(slots))

    @jax.jit
    def write(params: Any, keys: Any) -> Any:
        def one(key: Any) -> Any:
            state = DecodeState(jnp.zeros(lm.config.width), lm.init_cache(slots), jnp.array(True), key, None)

            def body(i: Any, state: Any) -> Any:
                state, out = draw_token(lm, params, state, text, WHOLE, (), 1.0, None)
                return read_token(lm, params, places, state, out.tokens, slots - count + i)

            return jax.lax.fori_loop(0, count, body, state).hidden

        return jax.vmap(one)(keys)

    keys = jax.random.split(jax.random.key(0), batch)

    def measure() -> float:
        begin = time.perf_counter()
        jax.block_until_ready(write(params, keys))
        return count / (time.perf_counter() - begin)

    measure()
    return measure


def our_training(config: Config, lm: LanguageModel) -> peers.Round:
    """Return the measurement of next-token training with AdamW in one scan, tokens a second."""
    shape = (config.train_batch * (config.train_steps + 2), config.train_length)
    ones = jnp.ones(shape)
    rows = TokenBatch(jax.random.randint(jax.random.key(1), shape, 2, config.vocab), ones, ones)
    learner = make_lm_learner(
        lm,
        sample_rows(rows, batch_size=config.train_batch),
        total_steps=config.train_steps,
        optimizer=make_optimizer(max_grad_norm=1.0, eps=1e-8, weight_decay=0.01),
    )
    train = jax.jit(lambda s: jax.lax.scan(lambda s, _: learner.step(s), s, None, config.train_steps))
    state = jax.jit(learner.init)(jax.random.key(0), LMHParams())

    def measure() -> float:
        begin = time.perf_counter()
        jax.block_until_ready(train(state))
        tokens = config.train_steps * config.train_batch * config.train_length
        return tokens / (time.perf_counter() - begin)

    measure()
    return measure


def compare(config: Config, label: str, ours: peers.Round, least: float, name: str, **arguments: Any) -> None:
    """Print our rate, our share of the floor's rate `least`, the peer's rate and the ratio."""
    others = []
    if config.peers:
        others = [peers.start(config.peers, name, **arguments, threads=n) for n in config.peer_threads]
    rates = np.array([[ours(), *map(peers.ask, others)] for _ in range(config.rounds)])
    median = np.median(rates, 0)
    print(f"{label}: {median[0]:,.0f} tokens/s, {median[0] / least:.0%} of the floor's {least:,.0f}", end="")
    if not others:
        print(f"; {name} is left out, give --peers PYTHON, an interpreter that has it")
        return
    for other in others:
        peers.stop(other)
    low, middle, high = np.quantile(rates[:, 0] / rates[:, 1:].max(1), [0, 0.5, 1])
    threads = ", ".join(f"{x:,.0f} with {n}" for x, n in zip(median[1:], config.peer_threads, strict=True))
    print(f"; {name} {threads} threads: {middle:.2f} times the better [{low:.2f}, {high:.2f}]", flush=True)


def generate_both(
    config: Config, lm: LanguageModel, params: Params, batch: int, samples: Sequence[bool], model: Any
) -> None:
    """Print what generation takes at least and what it takes, `samples` saying greedy or sampled."""
    shape = lm.config
    resident = weight_bytes(shape) + batch * cache_bytes(shape, config.prompt + config.new)
    print(f"generation, batch {batch}: at least")
    least = batch * config.new / floor(shape, generation_work(config, shape, batch), resident)
    for sample in samples:
        compare(
            config,
            "  sampled" if sample else "  greedy",
            our_generation(config, lm, params, batch, sample),
            least,
            "transformers_generate",
            model=model,
            batch=batch,
            prompt=config.prompt,
            new=config.new,
            sample=sample,
            repeats=repeats_of(shape, 64 // batch),
        )


def time_slots(config: Config, lm: LanguageModel, params: Params, batch: int) -> None:
    """Print the milliseconds of a token behind a short and behind a long cache, in turn, and their ratio."""
    short, long = (one_token(lm, params, batch, slots) for slots in config.real_slots)
    rates = np.array([[short(), long()] for _ in range(config.rounds)])
    low, middle, high = np.quantile(rates[:, 0] / rates[:, 1], [0, 0.5, 1])
    few, many = 1e3 / np.median(rates, 0)
    print(
        f"  a token with {config.real_slots[0]} slots {few:.1f} ms, with {config.real_slots[1]} {many:.1f}:",
        end="",
    )
    print(f" {middle:.2f} times [{low:.2f}, {high:.2f}]", flush=True)


def main(config: Config) -> None:
    """Each batch size, greedy and sampled, training, then the real model; medians and the range over rounds."""
    lm = small_model(config)
    model = {name: getattr(config, name) for name in ("vocab", "width", "layers", "heads")}
    model["context"] = lm.config.context
    if config.generation:
        params = jax.jit(lm.init)(jax.random.key(0))
        for batch in config.batch_sizes:
            generate_both(config, lm, params, batch, (False, True), model)
    if config.training:
        print(f"training, batch {config.train_batch} x {config.train_length}: at least")
        tokens = config.train_batch * config.train_length
        least = tokens / floor(lm.config, training_work(config, lm.config), 4 * weight_bytes(lm.config))
        arguments = {"batch": config.train_batch, "length": config.train_length, "steps": config.train_steps}
        compare(config, "  AdamW", our_training(config, lm), least, "trl_sft", shape=model, **arguments)
    if not (config.real and config.generation):
        return
    folder = find_model()
    pretrained = load_model(folder)
    lm = make_transformer(pretrained.config)
    for batch in config.real_batch_sizes:
        print("SmolLM2-135M,", end=" ")
        generate_both(config, lm, pretrained.params, batch, (True,), str(folder))
        time_slots(config, lm, pretrained.params, batch)


if __name__ == "__main__":
    cli.main(Config, main)
