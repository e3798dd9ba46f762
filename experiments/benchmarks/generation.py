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
from collections.abc import Callable
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
from jaxrl_align.text.generation import WHOLE, Filters, TextConfig, generate
from jaxrl_align.types import PaddedTokens, TokenBatch


@dataclass(frozen=True)
class Config:
    """GPT-2's layout in float32; equal lengths on both sides, and no early stop."""

    vocab: int = 256
    width: int = 128
    layers: int = 4
    heads: int = 4
    batch_sizes: tuple[int, int] = (32, 1)
    """Of generation."""
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


def weight_bytes(config: Config) -> int:
    """Return the size of the matrices that every token is multiplied with."""
    return 4 * (12 * config.width**2 * config.layers + config.vocab * config.width)


def token_flops(config: Config, slots: float) -> float:
    """Return the multiplications and additions of one token that reads `slots` slots, its logits included."""
    return weight_bytes(config) / 2 + 4.0 * config.width * slots * config.layers


def generation_work(config: Config, batch: int) -> Work:
    """Return the work of `batch` responses: the prompt read once, then one token at a time."""
    steps = config.new - 1
    mean_slots = config.prompt + (steps + 1) / 2
    weights = weight_bytes(config)
    cache = 4 * 2 * config.width * config.layers * mean_slots * batch
    prompt = token_flops(config, (config.prompt + 1) / 2)
    return Work(
        (batch * config.prompt * prompt, batch * steps * token_flops(config, mean_slots)),
        (batch * config.prompt, batch),
        (weights, steps * (weights + cache)),
    )


def training_work(config: Config) -> Work:
    """Return the work of a step: a backward pass takes twice a forward pass."""
    tokens = config.train_batch * (config.train_length - 1)
    flops = 3 * tokens * token_flops(config, config.train_length / 2)
    weights = weight_bytes(config)
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


def matrix_rate(config: Config, rows: int) -> float:
    """Return float32 operations a second of `[rows, width] [width, 4 width] [4 width, width]`, repeated."""
    count = max(4, 2**13 // rows)
    up, x = jnp.eye(config.width, 4 * config.width), jnp.ones((rows, config.width))
    chain = jax.jit(lambda x, u, d: jax.lax.fori_loop(0, count, lambda _, y: (y @ u) @ d, x))
    down = jnp.eye(4 * config.width, config.width)
    return best_rate(lambda: chain(x, up, down), count * rows * 2 * 2 * 4 * config.width**2)


def memory_rate(num_bytes: float) -> float:
    """Return bytes a second through an array of this size that is read and written, both counted."""
    x = jnp.ones(int(num_bytes) // 4)
    count = max(4, int(1e8 / num_bytes))
    add = jax.jit(lambda x: jax.lax.fori_loop(0, count, lambda _, y: y + 1.0, x))
    return best_rate(lambda: add(x), 2.0 * count * x.nbytes)


def floor(config: Config, work: Work, resident: float) -> float:
    """Print what each phase takes at least, `resident` bytes in use; return the seconds together."""
    bandwidth, total = memory_rate(resident), 0.0
    for flops, rows, moved in zip(work.flops, work.rows, work.moved, strict=True):
        rate = matrix_rate(config, rows)
        total += max(flops / rate, moved / bandwidth)
        print(f"  {flops / 1e9:.3f} GFLOP in {rows} rows at {rate / 1e9:.0f} a second:", end=" ")
        print(f"{1e3 * flops / rate:.2f} ms; {moved / 1e6:.1f} MB at {bandwidth / 1e9:.1f} GB/s:", end=" ")
        print(f"{1e3 * moved / bandwidth:.2f} ms")
    return total


def model(config: Config) -> LanguageModel:
    """Return our model; its context holds prompt and response."""
    context = max(config.prompt + config.new, config.train_length)
    return make_transformer(
        TransformerConfig(config.vocab, config.width, config.layers, config.heads, context)
    )


def our_generation(config: Config, batch: int, sample: bool) -> peers.Round:
    """Return the measurement of `generate`, new tokens a second."""
    lm, text = model(config), TextConfig(config.prompt, config.new)
    params = jax.jit(lm.init)(jax.random.key(0))
    tokens = jax.random.randint(jax.random.key(1), (batch, config.prompt), 2, config.vocab)
    prompts = PaddedTokens(tokens, jnp.ones(tokens.shape))
    filters = WHOLE if sample else Filters(top_k=1)

    @jax.jit
    def respond(params: Any, prompts: Any, key: Any) -> Any:
        one = lambda prompt, key: generate(lm, params, prompt, key, text, filters=filters, stop_tokens=())
        return jax.vmap(one)(prompts, jax.random.split(key, batch))

    repeats = max(2, 256 // batch)

    def measure() -> float:
        begin = time.perf_counter()
        for i in range(repeats):
            np.asarray(respond(params, prompts, jax.random.key(i)).tokens)
        return repeats * batch * config.new / (time.perf_counter() - begin)

    measure()
    return measure


def our_training(config: Config) -> peers.Round:
    """Return the measurement of next-token training with AdamW in one scan, tokens a second."""
    shape = (config.train_batch * (config.train_steps + 2), config.train_length)
    ones = jnp.ones(shape)
    rows = TokenBatch(jax.random.randint(jax.random.key(1), shape, 2, config.vocab), ones, ones)
    learner = make_lm_learner(
        model(config),
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
    print(f"; {name} {threads} threads: {middle:.2f} times the better [{low:.2f}, {high:.2f}]")


def main(config: Config) -> None:
    """Each batch size, greedy and sampled, then training; medians and the range over rounds."""
    shape = {name: getattr(config, name) for name in ("vocab", "width", "layers", "heads")}
    shape["context"] = model(config).config.context
    weights = weight_bytes(config)
    for batch in config.batch_sizes if config.generation else ():
        cache = 4 * 2 * config.width * config.layers * (config.prompt + config.new) * batch
        print(f"generation, batch {batch}: at least")
        least = batch * config.new / floor(config, generation_work(config, batch), weights + cache)
        for sample in (False, True):
            compare(
                config,
                "  sampled" if sample else "  greedy",
                our_generation(config, batch, sample),
                least,
                "transformers_generate",
                shape=shape,
                batch=batch,
                prompt=config.prompt,
                new=config.new,
                sample=sample,
                repeats=max(2, 64 // batch),
            )
    if not config.training:
        return
    print(f"training, batch {config.train_batch} x {config.train_length}: at least")
    tokens = config.train_batch * config.train_length
    least = tokens / floor(config, training_work(config), 4 * weights)
    arguments = {"batch": config.train_batch, "length": config.train_length, "steps": config.train_steps}
    compare(config, "  AdamW", our_training(config), least, "trl_sft", shape=shape, **arguments)


if __name__ == "__main__":
    cli.main(Config, main)
