"""The ways of tuning that `peft.py` compares: each says which leaves there are and which of them train."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from peft_task import Base

from jaxrl_align.learner import train
from jaxrl_align.nets.adapters import overlay, select
from jaxrl_align.nets.kinds import Tuning, init_houlsby, init_ia3, init_lora
from jaxrl_align.nets.quantize import quantise_params
from jaxrl_align.nets.transformer import LanguageModel, init_prefix, init_prompt, make_transformer
from jaxrl_align.pretrain.lm import LMHParams, make_lm_learner
from jaxrl_align.runtime.members import cross_rates
from jaxrl_align.runtime.mesh import shard_members
from jaxrl_align.types import Params, Sampler


class Start(NamedTuple):
    """A tuning before its first step."""

    lm: LanguageModel
    frozen: Params
    part: Params
    """What trains, laid over the frozen parameters."""


Way = Callable[[chex.PRNGKey, LanguageModel, Params], Start]

BOTTLENECK = 16
"""Width of Houlsby's adapters."""
VIRTUAL = 20
"""Tokens of a prompt or prefix."""


def _add(init: Callable[[chex.PRNGKey, Params], Tuning]) -> Way:
    """Lay new leaves over the base."""

    def start(key: chex.PRNGKey, lm: LanguageModel, params: Params) -> Start:
        tuning = init(key, params)
        return Start(lm, overlay(params, tuning.constants), tuning.part)

    return start


def _select(spec: str, top: Callable[[int], int] | None = None) -> Way:
    """Train some of the base's leaves; with `top`, of so many of its layers alone, from the last."""

    def start(key: chex.PRNGKey, lm: LanguageModel, params: Params) -> Start:
        layers = None if top is None else range(-top(lm.config.layers), 0)
        return Start(lm, params, select(params, spec, layers=layers))

    return start


def _head(key: chex.PRNGKey, lm: LanguageModel, params: Params) -> Start:
    """Train the matrix that the logits read alone: where it is the embeddings, a copy of them."""
    if lm.config.tied_head:
        lm = make_transformer(replace(lm.config, tied_head=False))
        params = params | {"head": params["tokens"].T}
    return Start(lm, params, select(params, "head"))


def _prefix(key: chex.PRNGKey, lm: LanguageModel, params: Params) -> Start:
    return Start(lm, params, init_prefix(lm, params, init_prompt(key, params, length=VIRTUAL).part).part)


def lora(rank: int, *, dora: bool = False) -> Way:
    """Return LoRA, or DoRA, on every linear layer."""
    return _add(lambda key, params: init_lora(key, params, rank=rank, dora=dora))


def qlora(rank: int, kind: str = "nf4") -> Way:
    """Return LoRA over a base whose kernels are packed in 4 bits."""
    return lambda key, lm, params: lora(rank)(key, lm, quantise_params(params, kind))


def make_ways(lm: LanguageModel, ranks: Sequence[int]) -> dict[str, Way]:
    """Return the ways by their names, in the order of the three kinds of lecture 002 (D1)."""
    selective = {
        "head": _head,
        "norms": _select("*norm/*"),
        "top layer": _select("layers/*", lambda layers: 1),
    }
    if lm.config.layers > 3:  # of fewer, half are the top one
        selective["top half"] = _select("layers/*", lambda layers: layers // 2)
    if lm.config.biased or lm.config.norm == "layer":
        selective["biases"] = _select("*bias")
    low_rank = {f"LoRA {rank}": lora(rank) for rank in ranks}
    return {
        "full": lambda key, lm, params: Start(lm, params, params),
        **selective,
        **low_rank,
        "DoRA 4": lora(4, dora=True),
        "IA3": _add(lambda key, params: init_ia3(params)),
        "adapters": _add(lambda key, params: init_houlsby(key, params, width=BOTTLENECK)),
        "prompt": _add(lambda key, params: init_prompt(key, params, length=VIRTUAL)),
        "random prompt": _add(lambda key, params: init_prompt(key, params, length=VIRTUAL, start="random")),
        "prefix": _prefix,
    }


def kind_of(way: str) -> str:
    """Return which of the lecture's three kinds a way is, or "full"."""
    if way == "full":
        return "full"
    if way in ("head", "norms", "biases", "top layer", "top half"):
        return "selective"
    return "reparameterised" if way.startswith(("LoRA", "DoRA", "QLoRA", "IA3")) else "additive"


def count(way: Way, lm: LanguageModel, params: Params) -> tuple[int, int]:
    """Return the number of trained parameters and the bytes of the part that a task keeps; allocates nothing.

    Args:
      way: counted.
      lm: the language model.
      params: its parameters, or their shapes.
    """
    part = jax.eval_shape(lambda params: way(jax.random.key(0), lm, params).part, params)
    leaves = jax.tree.leaves(part)
    return sum(x.size for x in leaves), sum(x.size * x.dtype.itemsize for x in leaves)


def tune(
    base: Base,
    way: Way,
    sample: Sampler,
    measure: Callable[[LanguageModel], Callable[[Params], jax.Array]],
    *,
    keys: chex.PRNGKey,
    rates: Sequence[float],
    steps: int,
) -> np.ndarray:
    """Tune by one way, every seed at every learning rate, and measure each result.

    Small models train side by side, a large one member after member.

    Args:
      base: what is tuned.
      way: how.
      sample: the batches.
      measure: `lm -> (params -> numbers [K])`.
      keys: [M] of the seeds.
      rates: R learning rates; each rises over a tenth of the steps and falls to 0.
      steps: of each.

    Returns:
      [K + 1, R, M]; last the loss over the last tenth of the steps.
    """

    def member(key: jax.Array, rate: jax.Array, params: Params) -> jax.Array:
        key_init, key_train = jax.random.split(key)
        lm, frozen, part = way(key_init, base.lm, params)
        run = train(make_lm_learner(lm, sample, total_steps=steps, warmup_steps=steps // 10), steps)
        state, history = run(key_train, LMHParams(rate), part, frozen)
        last = jnp.mean(history["loss"][-max(1, steps // 10) :])
        return jnp.append(measure(lm)(overlay(frozen, state.params)), last)

    def in_turn(keys: jax.Array, rates: jax.Array, params: Params) -> jax.Array:
        return jax.lax.map(lambda of: member(*of, params), (keys, rates))

    side_by_side = jax.vmap(member, (0, 0, None))
    keys, hparams = cross_rates(keys, LMHParams(), rates)
    members = keys, hparams.learning_rate
    if base.in_turn:
        found = jax.jit(in_turn)(*members, base.params)
    else:
        found = jax.jit(side_by_side)(*shard_members(members), base.params)
    return np.asarray(found).T.reshape(-1, len(rates), len(keys) // len(rates))


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("peft")
