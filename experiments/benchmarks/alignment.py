"""Alignment of language models beside trl: DPO, PPO and GRPO, in turn in one run, float32.

Aims, in times trl's rate, on GPT-2's layout (4 layers of 128, 4 heads, 256 tokens, all weights):

    DPO, 32 pairs of 32 + 32 tokens, reference log-probabilities computed before on both sides     2
    PPO, 32 answers of 32 tokens, 4 epochs, beside the experimental trainer of trl 1.12            5
    GRPO, 4 prompts of 32 tokens, 8 answers of 32 tokens each, no KL penalty                       4

and on SmolLM2-135M, LoRA of rank 8 on queries and values, peft on trl's side, GRPO of the same sizes: 3.

trl 1.16 has no PPO any more; `--ppo-peers` names an interpreter with 1.12.

What was measured is in docs/benchmarks.md: the aim on SmolLM2 is reached, the others are not. On an idle
machine that multiplies at 190 to 210 GFLOP/s, the products of a DPO step alone would make 3.2 times trl,
those of a PPO step 5.9. What a profile named besides: zeros for what the scan keeps 20 ms of 166, attention's
small products at half the rate of large ones, GELU and norms 20. The same small GRPO step takes 73 ms in some
stretches and 95 to 104 in others, with and without attention's own derivative, so that its factor moves by a
third from run to run. Tried: an unrolled scan (0.97), other layouts of the backward products (no better),
sums as products with ones (no better), memory that is kept and in huge pages
(`GLIBC_TUNABLES=glibc.malloc.hugetlb=1`, `MALLOC_MMAP_MAX_=0`: 1.08).
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import peers
from contest import ContestConfig, contest, rivals, run

from jaxrl_align.actors import Frozen
from jaxrl_align.align import (
    GRPO,
    DirectHParams,
    GroupHParams,
    RewardModel,
    RLHFHParams,
    init_policy,
    init_reward_params,
    make_direct_learner,
    make_group_learner,
    make_rlhf_learner,
    model_reward,
    token_reward,
    with_reference,
)
from jaxrl_align.learner import make_optimizer
from jaxrl_align.nets import init_lora, overlay
from jaxrl_align.nets.transformer import LanguageModel, TransformerConfig, make_transformer
from jaxrl_align.runtime.huggingface import find_model, load_model
from jaxrl_align.text import TextConfig
from jaxrl_align.types import Comparisons, Learner, PaddedTokens, Params


@dataclass(frozen=True)
class Config(ContestConfig):
    """GPT-2's layout and a real model, in float32 on both sides."""

    vocab: int = 512
    width: int = 128
    layers: int = 4
    heads: int = 4
    context: int = 256
    batch: int = 32
    """Pairs a step of DPO, answers a step of PPO."""
    prompt: int = 32
    """Tokens."""
    new: int = 32
    """Tokens of an answer."""
    epochs: int = 4
    """Of PPO."""
    prompts: int = 4
    """A step of GRPO."""
    group: int = 8
    """Answers to each."""
    dpo: bool = True
    ppo: bool = True
    grpo: bool = True
    real: bool = True
    """GRPO on SmolLM2-135M too, where `find_model` finds it."""
    rank: int = 8
    steps: int = 8
    """In a round; a quarter of it of PPO, an eighth with the real model."""
    peers: str = ""
    """An interpreter with trl, peft and torch; empty leaves it out."""
    ppo_peers: str = ""
    """An interpreter with trl 1.12; empty leaves PPO's peer out."""
    peer_threads: int = 2


OPTIMIZER = make_optimizer(max_grad_norm=1.0, eps=1e-8, weight_decay=0.01)


def draw(key: int, vocab: int, rows: int, length: int) -> PaddedTokens:
    """Return random texts of full length, which no side can shorten."""
    tokens = jax.random.randint(jax.random.key(key), (rows, length), 2, vocab)
    return PaddedTokens(tokens, jnp.ones(tokens.shape))


def make_round(
    learner: Learner, hparams: Any, params: Params, batch: Any, frozen: Any, steps: int, units: int
) -> peers.Round:
    """Return the measurement of a learner's steps, in units a second."""
    state = [jax.jit(learner.init)(jax.random.key(4), hparams, params)]
    step = jax.jit(learner.step, donate_argnums=0)

    def measure() -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            state[0], _ = step(state[0], batch, frozen)
        jax.block_until_ready(state[0])
        return steps * units / (time.perf_counter() - begin)

    measure()
    return measure


def our_dpo(config: Config, lm: LanguageModel, base: Params) -> peers.Round:
    """Return the measurement of DPO, pairs a second."""
    texts = (
        draw(i, config.vocab, config.batch, n) for i, n in enumerate((config.prompt, config.new, config.new))
    )
    rows = with_reference(lm, base, Comparisons(*texts))
    learner = make_direct_learner(lm, optimizer=OPTIMIZER)
    return make_round(learner, DirectHParams(1e-3), base, rows, None, config.steps, config.batch)


def our_ppo(config: Config, lm: LanguageModel, base: Params) -> peers.Round:
    """Return the measurement of RLHF by PPO with a reward model of the policy's size, episodes a second."""
    learner = make_rlhf_learner(
        lm, model_reward(lm), TextConfig(config.prompt, config.new), epochs=config.epochs, minibatches=1
    )
    reward = RewardModel(init_reward_params(jax.random.key(2), lm, base))
    prompts = draw(0, config.vocab, config.batch, config.prompt)
    hparams, policy, frozen = RLHFHParams(1e-4), init_policy(lm, base), Frozen(base, reward)
    return make_round(learner, hparams, policy, prompts, frozen, max(1, config.steps // 4), config.batch)


def our_grpo(config: Config, lm: LanguageModel, base: Params, steps: int, rank: int = 0) -> peers.Round:
    """Return the measurement of GRPO without a KL penalty, updates a second: all weights, or LoRA."""
    even = token_reward(lambda tokens, mask: jnp.sum((tokens % 2 == 0) * mask))
    shape = TextConfig(config.prompt, config.new, missing_stop="keep")
    method = GRPO._replace(kl="none")
    learner = make_group_learner(lm, even, shape, group_size=config.group, method=method, optimizer=OPTIMIZER)
    part, frozen = base, Frozen(None, None)
    if rank:
        part, constants = init_lora(jax.random.key(3), base, rank=rank, targets=["*query", "*value"])
        frozen = Frozen(overlay(base, constants), None)
    prompts = draw(0, lm.config.vocab_size, config.prompts, config.prompt)
    return make_round(learner, GroupHParams(1e-3), {"lm": part}, prompts, frozen, steps, 1)


def compare(
    config: Config,
    what: str,
    unit: str,
    make: Callable[[], peers.Round],
    python: str,
    name: str,
    flag: str = "peers",
    **peer: Any,
) -> None:
    """Measure ours and trl in turn."""
    with rivals(python, name, name="trl", flag=flag, threads=(config.peer_threads,), **peer) as others:
        contest(what, unit, {"ours": make()} | others, config.rounds)


def main(config: Config) -> None:
    """Train GPT-2's layout by each method, then the real model."""
    shape = {name: getattr(config, name) for name in ("vocab", "width", "layers", "heads", "context")}
    lm = make_transformer(TransformerConfig(*shape.values()))
    base = jax.jit(lm.init)(jax.random.key(0))
    if config.dpo:
        sizes = {"batch": config.batch, "prompt": config.prompt, "completion": config.new}
        make = lambda: our_dpo(config, lm, base)
        what = f"DPO, {config.batch} pairs of {config.prompt} + {config.new} tokens"
        compare(
            config, what, "pairs/s", make, config.peers, "trl_dpo", model=shape, steps=config.steps, **sizes
        )
    if config.ppo:
        sizes = {"batch": config.batch, "prompt": config.prompt, "new": config.new, "epochs": config.epochs}
        make = lambda: our_ppo(config, lm, base)
        peer = {"python": config.ppo_peers, "name": "trl_ppo", "flag": "ppo-peers"}
        peer |= {"model": shape, "steps": max(1, config.steps // 4), **sizes}
        what = f"RLHF by PPO, {config.batch} answers of {config.new} tokens, {config.epochs} epochs"
        compare(config, what, "episodes/s", make, **peer)
    sizes = {name: getattr(config, name) for name in ("prompts", "group", "prompt", "new", "rank")}
    grpo = {"unit": "updates/s", "python": config.peers, "name": "trl_grpo", **sizes}
    if config.grpo:
        make = lambda: our_grpo(config, lm, base, config.steps)
        what = f"GRPO, {config.prompts} prompts, {config.group} answers of {config.new} tokens each"
        compare(config, what, make=make, model=shape, targets=None, steps=config.steps, **grpo)
    if config.real:
        folder, steps = find_model(), max(1, config.steps // 8)
        pretrained = load_model(folder)
        real = make_transformer(pretrained.config)
        make = lambda: our_grpo(config, real, pretrained.params, steps, config.rank)
        targets = ["q_proj", "v_proj"]
        what = f"GRPO of SmolLM2-135M with LoRA, {config.prompts} x {config.group} answers"
        compare(config, what, make=make, model=str(folder), targets=targets, steps=steps, **grpo)


if __name__ == "__main__":
    run(Config, main)
