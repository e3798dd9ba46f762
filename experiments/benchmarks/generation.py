"""Language models beside transformers' generate and trl's SFTTrainer, in turn in one run, and the floor.

Aims, in times the better of transformers' two runs (one and two torch threads): generation of 32 tokens after
32 with GPT-2's layout (4 layers of 128, 4 heads, 256 tokens, float32) 2.8 at batch 32, with SmolLM2-135M 2.3,
2.6 and 2.4 at batch 1, 8 and 32, and there a token behind 256 slots in at most 1.6 times that behind 16; the
training on 32 rows of 64 at 2 times trl's. What came out is in docs/benchmarks.md.

Where a token of SmolLM2 goes at batch 32 behind 16 slots, by the profiler, of about 50 ms: 28 products with
the layers' weights, 8 the logits, 20 copies of each layer's weights out of the stack, which partly run beside
the products, 2 attention, 1 the draw. Behind 256 slots attention takes 21: 10 its products, 10 copies of a
layer's keys and values.

What paid: values times weights as [queries, slots] [slots, depth]. XLA had taken the transposed product,
which its fast library does not know: attention behind 256 slots took 55 ms, behind 16 5. Greedily, two plain
reductions in place of an argmax: 3.7 to 0.6 ms a token.

What did not (tokens/s or ms, before and after):

    layers unrolled, with arrays of their own      450 to 410, 294 to 240, 59 to 55 tokens/s at batch 32, 8
                                                   and 1; GPT-2's layout 37,800 to 29,500
    one product for query, key and value, and      52 to 55 ms of products at 32 rows, 20 to 24 at 8
      one for gate and up, joined in the layer
    the same, joined before the loop               31.0 to 31.8 ms at 32 rows, 14.0 to 12.5 at 1
    weights kept in bfloat16, cast in the layer    the cast leaves the loop: a copy of the model, no gain
    the same behind a barrier                      52 to 66 ms of products at 32 rows
    scores, or values, element by element          21 to 24, and to 29, ms of attention behind 256 slots
    in training, all rows of a batch as one        alone 9.8 to 6.3 ms a layer; a step 120 to 129, then 125 to
      product, kernels' gradients on the fast path 127 ms: other work runs beside them
"""

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peers
from contest import ContestConfig, contest, rivals, run
from floors import FLOAT, count_cached, count_weights, floor, generation_work, training_work

from jaxrl_align.learner import make_optimizer
from jaxrl_align.nets.transformer import LanguageModel, TransformerConfig, make_transformer
from jaxrl_align.pretrain.lm import LMHParams, make_lm_learner, sample_rows
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
class Config(ContestConfig):
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
    generation: bool = True
    training: bool = True
    peers: str = ""
    """An interpreter with transformers, trl and torch; empty leaves them out."""
    peer_threads: tuple[int, int] = (1, 2)
    """Each peer is measured with both, and its better one in each round counts."""


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
    return 1 if count_weights(shape) > 2e7 else max(2, wanted)


def one_token(lm: LanguageModel, params: Params, batch: int, slots: int, count: int = 8) -> peers.Round:
    """Return the measurement of single tokens behind a cache of that many slots, tokens a row a second."""
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


def compare(config: Config, what: str, ours: peers.Round, floor: float, name: str, **arguments: Any) -> None:
    """Measure ours and a peer in turn."""
    side = "trl" if name.startswith("trl") else "transformers"
    with rivals(config.peers, name, name=side, threads=config.peer_threads, **arguments) as others:
        contest(what, "tokens/s", {"ours": ours} | others, config.rounds, floor=floor)


def generate_both(
    config: Config, lm: LanguageModel, params: Params, batch: int, model: Any, *, label: str, greedy: bool
) -> None:
    """Generate sampled, and greedily where asked, beside transformers and the floor."""
    shape = lm.config
    work = generation_work(shape, batch, config.prompt, config.new)
    held = count_weights(shape) + batch * count_cached(shape, config.prompt + config.new)
    print(f"{label}, batch {batch}: at least")
    least = batch * config.new / floor(shape, work, FLOAT * held)
    what = f"generation, {label}, {batch} prompts of {config.prompt} tokens, {config.new} more each"
    peer: dict[str, Any] = {"model": model, "batch": batch, "prompt": config.prompt, "new": config.new}
    for sample in (False, True) if greedy else (True,):
        compare(
            config,
            f"{what}, {'sampled' if sample else 'greedy'}",
            our_generation(config, lm, params, batch, sample),
            least,
            "transformers_generate",
            **peer | {"sample": sample, "repeats": repeats_of(shape, 64 // batch)},
        )


def time_slots(config: Config, lm: LanguageModel, params: Params, batch: int) -> None:
    """Measure a token behind a long cache beside one behind a short cache."""
    short, long = config.real_slots
    sides = {f"ours, {slots} slots": one_token(lm, params, batch, slots) for slots in (short, long)}
    contest(f"a token of SmolLM2-135M, batch {batch}, {short} slots", "tokens/s", sides, config.rounds)


def main(config: Config) -> None:
    """Each batch size, greedy and sampled, and training; then the real model."""
    lm = small_model(config)
    model = {name: getattr(config, name) for name in ("vocab", "width", "layers", "heads")}
    model["context"] = lm.config.context
    if config.generation:
        params = jax.jit(lm.init)(jax.random.key(0))
        for batch in config.batch_sizes:
            generate_both(config, lm, params, batch, model, label="GPT-2's layout", greedy=True)
    if config.training:
        batch, length = config.train_batch, config.train_length
        print(f"training, batch {batch} x {length}: at least")
        work = training_work(lm.config, batch, length)
        least = batch * length / floor(lm.config, work, FLOAT * count_weights(lm.config))
        peer = {"shape": model, "batch": batch, "length": length, "steps": config.train_steps}
        what = f"training, GPT-2's layout, {batch} rows of {length}, AdamW"
        compare(config, what, our_training(config, lm), least, "trl_sft", **peer)
    if not (config.real and config.generation):
        return
    folder = find_model()
    pretrained = load_model(folder)
    lm = make_transformer(pretrained.config)
    for batch in config.real_batch_sizes:
        generate_both(config, lm, pretrained.params, batch, str(folder), label="SmolLM2-135M", greedy=False)
        time_slots(config, lm, pretrained.params, batch)


if __name__ == "__main__":
    run(Config, main)
