"""Training of reward models beside trl's RewardTrainer, in turn in one run.

Aim: at least 2 times trl's pairs a second, on GPT-2's layout (4 layers of 128, 4 heads, 256 tokens, all
weights) and on SmolLM2-135M with LoRA (rank 8 on queries and values, peft on trl's side), float32.

What was measured is in docs/benchmarks.md: the aim is reached on SmolLM2. Of a step with 64 + 64 tokens half
was attention while JAX derived it: in its backward pass XLA's sum over the slots took as long as all of
attention's products, and weights were transposed for them. Attention's own derivative (`nets/attention.py`)
took the step from 172 to 145 ms, a mask that is added in place of chosen to 137. Of the rest the products
with weights are 38, attention 45, zeros for what the scan over layers keeps 13.

Ours reads a pair's prompt once for both completions, trl reads it twice; `separate` is ours doing the same.
"""

import time
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import peers
from contest import ContestConfig, contest, rivals, run

from jaxrl_align.align import RewardHParams, init_reward_params, make_reward_learner, score
from jaxrl_align.align.reward_model import RewardModel
from jaxrl_align.learner import make_optimizer
from jaxrl_align.losses import bradley_terry
from jaxrl_align.nets import init_lora, overlay
from jaxrl_align.nets.transformer import LanguageModel, TransformerConfig, make_transformer
from jaxrl_align.runtime.huggingface import find_model, load_model
from jaxrl_align.types import Comparisons, PaddedTokens, Params


@dataclass(frozen=True)
class Config(ContestConfig):
    """GPT-2's layout and a real model, in float32 on both sides."""

    vocab: int = 512
    width: int = 128
    layers: int = 4
    heads: int = 4
    context: int = 256
    batch: int = 16
    """Pairs a step."""
    prompt: int = 64
    """Tokens."""
    completion: int = 64
    real: bool = True
    """SmolLM2-135M too, where `find_model` finds it."""
    real_batch: int = 4
    rank: int = 8
    steps: int = 4
    """In a round; a quarter of it with the real model."""
    peers: str = ""
    """An interpreter with trl, peft and torch; empty leaves it out."""
    peer_threads: int = 2


def draw(config: Config, vocab: int, batch: int) -> Comparisons:
    """Return a batch of random pairs of full length, which no side can shorten."""
    keys = jax.random.split(jax.random.key(1), 3)
    lengths = (config.prompt, config.completion, config.completion)
    draws = (jax.random.randint(k, (batch, n), 2, vocab) for k, n in zip(keys, lengths, strict=True))
    return Comparisons(*(PaddedTokens(tokens, jnp.ones(tokens.shape)) for tokens in draws))


def read_apart(lm: LanguageModel) -> Any:
    """Return the objective of comparisons that reads each prompt twice, for comparison."""

    def loss(params: Params, frozen: Any, batch: Comparisons, key: Any, hparams: Any) -> tuple[Any, dict]:
        model = RewardModel(overlay(frozen, params))
        sides = (
            [jnp.concatenate([p, c], 1) for p, c in zip(batch.prompt, side, strict=True)]
            for side in (batch.chosen, batch.rejected)
        )
        text = [jnp.concatenate(both) for both in zip(*sides, strict=True)]
        scores = jax.vmap(lambda t, m: score(lm, model, t, m))(*text)
        return jnp.mean(bradley_terry(*jnp.split(scores, 2))), {}

    return loss


def make_round(
    lm: LanguageModel, base: Params, data: Comparisons, steps: int, *, rank: int = 0, apart: bool = False
) -> peers.Round:
    """Return the measurement of training, pairs a second: all weights, or LoRA of a rank and the head."""
    objective = read_apart(lm) if apart else None
    learner = make_reward_learner(
        lm, objective=objective, optimizer=make_optimizer(max_grad_norm=1.0, eps=1e-8, weight_decay=0.01)
    )
    part, frozen = init_reward_params(jax.random.key(2), lm, base), None
    if rank:
        lora, constants = init_lora(jax.random.key(3), base, rank=rank, targets=["*query", "*value"])
        frozen = {"lm": overlay(base, constants), "head": part["head"]}
        part = {"lm": lora, "head": part["head"]}
    state = [jax.jit(learner.init)(jax.random.key(4), RewardHParams(1e-3), part)]
    step = jax.jit(learner.step, donate_argnums=0)

    def measure() -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            state[0], _ = step(state[0], data, frozen)
        jax.block_until_ready(state[0])
        return steps * len(data.prompt.tokens) / (time.perf_counter() - begin)

    measure()
    return measure


def compare(config: Config, what: str, sides: dict[str, peers.Round], **peer: Any) -> None:
    """Measure ours, ours with prompts read twice, and trl in turn."""
    lengths = {"prompt": config.prompt, "completion": config.completion, "rank": config.rank}
    what = f"{what}, pairs of {config.prompt} + {config.completion} tokens"
    threads = (config.peer_threads,)
    with rivals(config.peers, "trl_reward", name="trl", threads=threads, **lengths, **peer) as others:
        contest(what, "pairs/s", sides | others, config.rounds)


def main(config: Config) -> None:
    """Train GPT-2's layout, then the real model; medians and the range over rounds."""
    shape = {name: getattr(config, name) for name in ("vocab", "width", "layers", "heads", "context")}
    lm = make_transformer(TransformerConfig(*shape.values()))
    base = jax.jit(lm.init)(jax.random.key(0))
    data = draw(config, config.vocab, config.batch)
    sides = {
        "ours": make_round(lm, base, data, config.steps),
        "ours, prompts read twice": make_round(lm, base, data, config.steps, apart=True),
    }
    sizes = {"batch": config.batch, "steps": config.steps}
    compare(config, "reward model, GPT-2's layout", sides, model=shape, targets=None, **sizes)
    if not config.real:
        return
    folder = find_model()
    pretrained = load_model(folder)
    lm = make_transformer(pretrained.config)
    data = draw(config, pretrained.config.vocab_size, config.real_batch)
    steps = max(1, config.steps // 4)
    sides = {
        "ours": make_round(lm, pretrained.params, data, steps, rank=config.rank),
        "ours, prompts read twice": make_round(
            lm, pretrained.params, data, steps, rank=config.rank, apart=True
        ),
    }
    sizes = {"batch": config.real_batch, "steps": steps}
    compare(
        config,
        "reward model, SmolLM2-135M with LoRA",
        sides,
        model=str(folder),
        targets=["q_proj", "v_proj"],
        **sizes,
    )


if __name__ == "__main__":
    run(Config, main)
