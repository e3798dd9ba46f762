"""Learners of every kind, small, but with weights that are worth dividing."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align import actors, align, nets, rl
from jaxrl_align.actors.text import Frozen
from jaxrl_align.learner import make_optimizer
from jaxrl_align.pretrain.lm import LMHParams, make_lm_learner, sample_rows, sample_windows
from jaxrl_align.text.generation import TextConfig
from jaxrl_align.types import Comparisons, Learner, PaddedTokens

VOCAB, ROWS, STOP = 256, 16, 1
SHAPE = {"width": 128, "layers": 2, "heads": 4, "context": 32, "norm": "rms", "biased": ()}
LM = nets.make_transformer(
    nets.TransformerConfig(VOCAB, positions="rotary", feed_forward="swiglu", tied_head=False, **SHAPE)
)
GPT = nets.make_transformer(nets.TransformerConfig(VOCAB, width=128, layers=2, heads=4, context=32))
ODD = nets.make_transformer(nets.TransformerConfig(VOCAB, width=130, layers=1, heads=1, context=32))
"""Of a width that eight devices do not divide; its vocabulary and hidden layer they do."""
KEY = jax.random.key(0)
CONFIG = TextConfig(8, 8, STOP)
ONE_MODEL = ("data=8", "fsdp=8", "fsdp=2,model=4", "data=2,fsdp=2,model=2")
AGENTS = ("data=8",)


class Case(NamedTuple):
    """A learner as a run has it, and the meshes on which it must do the same as on one device."""

    learner: Learner
    hparams: Any
    params: Any = None
    frozen: Any = None
    meshes: tuple[str, ...] = ONE_MODEL
    members: int = 0


def texts(seed: int, length: int, count: int = 64) -> PaddedTokens:
    """Return texts [count, length] of at least two tokens, padded on the left."""
    random = np.random.default_rng(seed)
    real = np.arange(length) >= random.integers(0, length - 1, (count, 1))
    tokens = np.where(real, random.integers(2, VOCAB, (count, length)), 0)
    return PaddedTokens(jnp.asarray(tokens, jnp.int32), jnp.asarray(real, jnp.float32))


def pairs() -> Comparisons:
    """Return comparisons [64]."""
    return Comparisons(texts(0, 8), texts(1, 8), texts(2, 8))


def windows() -> Callable[[Any], Any]:
    """Return a sampler of batches of windows."""
    text = jax.random.randint(jax.random.key(5), (5000,), 0, VOCAB)
    return sample_windows(text, batch_size=ROWS, length=24)


def optimizer() -> Any:
    """Return Adam with an eps that near-zero gradients do not blow up."""
    return make_optimizer(max_grad_norm=1.0, eps=1e-5)


def count_even(weight: Any, tokens: jax.Array, mask: jax.Array) -> jax.Array:
    """Pay for even tokens."""
    return weight * jnp.sum((tokens % 2 == 0) * mask)


def base(rank: int = 4, *, quantised: bool = False) -> tuple[Any, Any]:
    """Return a base with LoRA's constants, and the part."""
    params = LM.init(KEY)
    params = nets.quantise_params(params, "nf4") if quantised else params
    part, constants = nets.init_lora(KEY, params, rank=rank)
    part = jax.tree.map(lambda x: x + 0.02 * jax.random.normal(KEY, x.shape), part)
    return nets.overlay(params, constants), part


def make_lm(lm: Any) -> Case:
    """Pre-training."""
    return Case(make_lm_learner(lm, windows(), optimizer=optimizer()), LMHParams())


def make_lora(quantised: bool = False) -> Case:
    """Fine-tuning of a part."""
    frozen, part = base(quantised=quantised)
    return Case(make_lm_learner(LM, windows(), optimizer=optimizer()), LMHParams(), part, frozen)


def make_reward() -> Case:
    """A reward model over a LoRA."""
    learner = align.make_reward_learner(LM, sample_rows(pairs(), batch_size=ROWS), optimizer=optimizer())
    frozen, part = base()
    head = nets.init_scalar_head(KEY, SHAPE["width"])
    frozen = {"lm": frozen, "head": head}
    return Case(learner, align.RewardHParams(), {"lm": part, "head": head}, frozen)


def make_dpo() -> Case:
    """DPO over a LoRA."""
    frozen, part = base()
    rows = align.with_reference(LM, frozen, pairs())
    learner = align.make_direct_learner(LM, sample_rows(rows, batch_size=ROWS), optimizer=optimizer())
    return Case(learner, align.DirectHParams(learning_rate=1e-3), part, frozen)


def make_rlhf() -> Case:
    """RLHF of a whole model: generation, scores, and two epochs of PPO."""
    sample = sample_rows(texts(3, 8), batch_size=ROWS)
    settings = {"epochs": 2, "minibatches": 2, "optimizer": optimizer()}
    learner = align.make_rlhf_learner(LM, count_even, CONFIG, sample, **settings)
    params = LM.init(KEY)
    policy = align.init_policy(LM, params)
    return Case(learner, align.RLHFHParams(learning_rate=1e-3), policy, Frozen(params, jnp.float32(1.0)))


def make_grpo() -> Case:
    """GRPO of a LoRA."""
    sample = sample_rows(texts(3, 8), batch_size=8)
    frozen, part = base()
    learner = align.make_group_learner(LM, count_even, CONFIG, sample, group_size=2, optimizer=optimizer())
    hparams = align.GRPO.hparams._replace(learning_rate=1e-3)
    return Case(learner, hparams, {"lm": part}, Frozen(frozen, jnp.float32(1.0)))


def make_ppo(members: int = 0, num_envs: int = 8) -> Case:
    """PPO on CartPole."""
    net = nets.make_actor_critic_net(2, (64, 64))
    actor = actors.make_actor("CartPole-v1", net, num_envs=num_envs, num_steps=16)
    learner = rl.make_actor_critic(actor, segment_length=1)
    meshes = ("members=4,data=2", "members=8") if members else AGENTS
    return Case(learner, rl.PPOHParams(), meshes=meshes, members=members)


def make_dqn(prioritised: bool) -> Case:
    """DQN on CartPole."""
    actor = actors.make_value_actor("CartPole-v1", nets.make_q_net(2, (32,)), num_envs=8, num_steps=4)
    learner = rl.make_dqn(
        actor, capacity=1024, batch_size=32, warmup_steps=64, prioritised=prioritised, optimizer=optimizer()
    )
    return Case(learner, rl.DQNHParams(), meshes=AGENTS)


CASES: dict[str, Callable[[], Case]] = {
    "lm": functools.partial(make_lm, LM),
    "gpt": functools.partial(make_lm, GPT),
    "lora": make_lora,
    "qlora": functools.partial(make_lora, True),
    "reward": make_reward,
    "dpo": make_dpo,
    "rlhf": make_rlhf,
    "grpo": make_grpo,
    "ppo": make_ppo,
    "ppo members": functools.partial(make_ppo, 8),
    "odd": functools.partial(make_lm, ODD),
    "dqn": functools.partial(make_dqn, False),
    "dqn prioritised": functools.partial(make_dqn, True),
}
