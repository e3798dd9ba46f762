"""Attention's kernels, RLHF, PPO and the two scans of GAE, as `accelerator.py` measures them."""

import contextlib
import itertools
from typing import Any, NamedTuple

import alignment
import jax
import jax.numpy as jnp
import numpy as np
import rl
from accelerator_counts import make_config
from accelerator_rows import Report, compile_together, measure
from accelerator_text import draw_narrow
from contest import contest

from jaxrl_align.actors import Frozen
from jaxrl_align.align import (
    RewardModel,
    RLHFHParams,
    init_policy,
    init_reward_params,
    make_rlhf_learner,
    model_reward,
)
from jaxrl_align.losses import gae_associative
from jaxrl_align.losses.returns import _gae_loop
from jaxrl_align.nets import TransformerConfig, make_transformer
from jaxrl_align.text import TextConfig


class Read(NamedTuple):
    """What a model makes of rows: its hidden states, and the gradient of a loss on them."""

    hidden: Any
    gradient: Any


def read_rows(config: TransformerConfig, masked: bool) -> Any:
    """Return `(params, tokens [B, L]) -> Read`, jitted; `masked` leaves out three tokens a row."""
    lm = make_transformer(config)

    def loss(params: Any, tokens: jax.Array) -> tuple[jax.Array, jax.Array]:
        real = jnp.ones(tokens.shape).at[:, :3].set(0.0) if masked else None
        read = lambda row, mask: lm.encode(params, row, mask)[0].astype(jnp.float32)
        hidden = jax.vmap(read, (0, 0 if masked else None))(tokens, real)
        counted = hidden[:, 3:]
        return jnp.mean(jnp.sum(counted * jnp.roll(counted, 1, -1), -1)), counted

    def both(params: Any, tokens: jax.Array) -> Read:
        # A GPU would round the factors of float32 products.
        precision = "highest" if config.dtype == "float32" else None
        with jax.default_matmul_precision(precision):
            gradient, hidden = jax.grad(loss, has_aux=True)(params, tokens)
        return Read(hidden, gradient["layers"])

    return jax.jit(both)


def distance(got: Any, want: Any) -> float:
    """Return the norm of the difference of two trees over the norm of the second."""
    flat = lambda tree: np.concatenate([np.ravel(np.asarray(x, np.float64)) for x in jax.tree.leaves(tree)])
    got, want = flat(got), flat(want)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def attention(report: Report, *, kernel: str, length: int, longest: tuple[int, ...]) -> None:
    """Compare a kernel with XLA's attention: distances from float32, and the memory of a gradient."""
    shape = {"vocab_size": 256, "width": 256, "layers": 2, "heads": 4, "key_value_heads": 2}
    shape |= {"context": max(*longest, length + 1)}
    kinds = {"bfloat16": "xla", kernel: kernel, "float32": "xla"}
    make = lambda name, **changes: TransformerConfig(
        **shape
        | {"dtype": "float32" if name == "float32" else "bfloat16", "attention": kinds[name]}
        | changes
    )
    params = jax.jit(make_transformer(make("float32")).init)(jax.random.key(0))
    programs: dict[str, Any] = {}
    cases = ((False, length), (True, length + 1))  # the kernel wants even lengths
    for (masked, n), name in itertools.product(cases, kinds):
        tokens = jax.random.randint(jax.random.key(n), (4, n), 0, 256)
        label = f"{name}, length {n}{', masked' if masked else ''}"
        programs[label] = (read_rows(make(name), masked), (params, tokens))
    for n, name in itertools.product(longest, ("bfloat16", kernel)):
        tokens = jax.ShapeDtypeStruct((1, n), jnp.int32)
        programs[f"memory, {name}, {n}"] = (read_rows(make(name), False), (params, tokens))
    compiled = compile_together(programs)
    for masked, n in cases:
        tail = f", length {n}{', masked' if masked else ''}"
        names = [f"{name}{tail}" for name in (kernel, "bfloat16", "float32")]
        if not set(names) <= set(compiled):
            continue
        ours, plain, exact = (compiled[name](*programs[name][1]) for name in names)
        for what in Read._fields:
            far = [distance(getattr(x, what), getattr(exact, what)) for x in (ours, plain)]
            note = f"from float32; XLA's attention in bfloat16 is {far[1]:.2e} away"
            report.add(
                "attention", f"{kernel} {what}{tail}", far[0], "distance", ratio=far[0] / far[1], note=note
            )
    for n in longest:
        names = [f"memory, {name}, {n}" for name in (kernel, "bfloat16")]
        if set(names) <= set(compiled):
            size = [compiled[name].memory_analysis().temp_size_in_bytes / 1e6 for name in names]
            note = f"temporary, a gradient of one row of {n}; XLA's attention {size[1]:,.1f}"
            report.add("attention", f"{kernel} memory", size[0], "MB", ratio=size[1] / size[0], note=note)


def rlhf(report: Report, *, config: alignment.Config, runs: int) -> None:
    """A whole step of RLHF by PPO alone and in many runs by `vmap`, each with its own seed and rate."""
    lm = make_transformer(
        TransformerConfig(config.vocab, config.width, config.layers, config.heads, config.context)
    )
    base = jax.jit(lm.init)(jax.random.key(0))
    text = TextConfig(config.prompt, config.new)
    learner = make_rlhf_learner(lm, model_reward(lm), text, epochs=config.epochs, minibatches=1)
    frozen = Frozen(base, RewardModel(init_reward_params(jax.random.key(2), lm, base)))
    prompts = alignment.draw(0, config.vocab, config.batch, config.prompt)
    policy = init_policy(lm, base)
    begin = lambda key, rate: learner.init(key, RLHFHParams(rate), policy)
    keys = jax.random.split(jax.random.key(4), runs)
    states = {
        "one run": jax.jit(begin)(keys[0], jnp.float32(1e-4)),
        f"{runs} runs by vmap": jax.jit(jax.vmap(begin))(keys, jnp.geomspace(1e-5, 1e-3, runs)),
    }
    steps = (learner.step, jax.vmap(learner.step, (0, None, None)))
    programs = {
        name: (jax.jit(step, donate_argnums=0), (state, prompts, frozen))
        for (name, state), step in zip(states.items(), steps, strict=True)
    }
    first = None
    for name, step in compile_together(programs).items():

        def once(name: str = name, step: Any = step) -> Any:
            states[name], metrics = step(states[name], prompts, frozen)
            return metrics

        timing = measure(once, rounds=5, seconds=0.3)
        first = timing.median if name == "one run" else first
        ratio = None if first is None else timing.median / first
        note = f"{config.batch} answers of {config.new} tokens, {config.epochs} epochs; times one run's"
        spread = timing.fastest, timing.slowest
        report.add("rlhf", name, timing.median, "s a step", ratio=ratio, spread=spread, note=note)


def grpo(report: Report, *, config: alignment.Config, kernel: str, steps: int, quick: bool) -> None:
    """GRPO with LoRA on SmolLM2's shape, in bfloat16, base weights included."""
    lm = make_transformer(make_config("SmolLM2-135M", quick=quick, attention=kernel))
    base = draw_narrow(lm)
    round_ = alignment.our_grpo(config, lm, base, steps, config.rank)
    rates = sorted(round_() for _ in range(3))
    note = f"{config.prompts} prompts of {config.prompt}, {config.group} answers of {config.new} tokens each"
    name = f"SmolLM2-135M, LoRA of rank {config.rank}, GRPO, {kernel}"
    spread = 1 / rates[2], 1 / rates[0]
    report.add("rlhf", name, 1 / rates[1], "s an update", spread=spread, note=note)


def ppo(report: Report, *, config: rl.Config, envs: int) -> None:
    """PPO on CartPole beside the peers that an interpreter was given for, in turn."""
    what = f"PPO on CartPole, {envs:,} environments, {config.steps} steps"
    measure = rl.ours(config, envs, 1)
    with contextlib.ExitStack() as stack:
        sides = {"ours": measure} | rl.add_rivals(config, stack, envs, 1)
        row = contest(what, "env steps/s", sides, config.rounds)
    note = f"{what}; compiled in {measure.compile_seconds:.1f} s"
    report.add("ppo", "ours", row.rate, "env steps/s", note=note)
    for rival in row.rivals:
        note = f"ours is so many times it, from {rival.low:.2f} to {rival.high:.2f}"
        report.add("ppo", rival.name, rival.rate, "env steps/s", ratio=rival.times, note=note)


def scans(report: Report, *, streams: tuple[int, ...], lengths: tuple[int, ...], most: int) -> None:
    """GAE by `gae_associative` over CPUs' loop, where the streams hold at most `most` steps together."""
    sizes = [(b, t) for b, t in itertools.product(streams, lengths) if b * t <= most]
    given, programs = {}, {}
    for size in sizes:
        given[size] = [jnp.full(size, x, jnp.float32) for x in (1.0, 0.99, 0.95, 0.5, 0.5)]
        for function in (_gae_loop, gae_associative):
            programs[f"{function.__name__} {size}"] = (jax.jit(jax.vmap(function)), tuple(given[size]))
    compiled = compile_together(programs)
    for size in sizes:
        names = [f"{function.__name__} {size}" for function in (gae_associative, _gae_loop)]
        if report.late(str(size)) or not set(names) <= set(compiled):
            continue
        quick, loop = (
            measure(lambda name=name, size=size: compiled[name](*given[size]), rounds=3, seconds=0.02)
            for name in names
        )
        ratio = loop.median / quick.median
        note = f"[streams, T]; the loop {loop.median * 1e6:,.0f}, so many times it"
        spread = quick.fastest * 1e6, quick.slowest * 1e6
        name = f"associative {list(size)}"
        report.add("gae", name, quick.median * 1e6, "us", ratio=ratio, spread=spread, note=note)
