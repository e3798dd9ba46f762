"""Our replay against flashbax's, in turn in one run; and whether a draw's time grows with the memory.

Claim: at capacity 100,000 and batches of 32, adding and sampling is at least 1.5 times as fast as flashbax's,
uniform and prioritised with its priority update; and a draw takes the same time, within 20%, from ten
thousand to a million transitions.

What was measured is in docs/benchmarks.md. A draw alone is flat within 20% to 100,000 and not beyond: it does
the same work at every capacity (a test counts it), but a million transitions, 42 MB, no longer lie in the
caches. A whole learner step is flat.
"""

import time
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import peers
from contest import ContestConfig, contest, rivals, run

from jaxrl_align.actors.value import make_value_actor
from jaxrl_align.nets.q_networks import make_q_net
from jaxrl_align.rl.dqn import DQNHParams, make_dqn
from jaxrl_align.rl.replay import Replay, ReplayState, make_replay
from jaxrl_align.types import Transition


@dataclass(frozen=True)
class Config(ContestConfig):
    """What is added is CartPole's transition; rates are medians over rounds, in turn."""

    capacity: int = 100_000
    capacities: tuple[int, ...] = (10_000, 100_000, 1_000_000)
    """For the times of draws alone and of whole learner steps."""
    batch_size: int = 32
    steps: int = 20_000
    """Rounds of add, sample and update in one compiled scan."""
    flashbax: str = ""
    """An interpreter with flashbax; empty leaves the comparison out."""


ONE = Transition(
    jnp.zeros(4), jnp.zeros((), jnp.int32), jnp.zeros(()), jnp.array(False), jnp.array(False), jnp.zeros(4)
)


def filled(replay: Replay, capacity: int) -> ReplayState:
    """Return a full memory; priorities, where there are any, differ."""

    def fill() -> ReplayState:
        rows = jax.tree.map(lambda x: jnp.zeros((1, capacity, *x.shape), x.dtype), ONE)
        state = replay.add(replay.init(ONE), rows)
        error = jax.random.exponential(jax.random.key(0), (capacity,))
        return replay.update(state, jnp.arange(capacity), error, 0.6)

    return jax.jit(fill)()


def add_and_sample(config: Config, prioritised: bool) -> peers.Round:
    """Return the measurement that `peers.flashbax` makes, with our replay."""
    replay = make_replay(config.capacity, config.batch_size, prioritised=prioritised)
    rows = jax.tree.map(lambda x: x[None, None], ONE)

    def body(state: ReplayState, key: jax.Array) -> tuple[ReplayState, jax.Array]:
        state = replay.add(state, rows)
        sample = replay.sample(state, key, 0.99, 0.5)
        state = replay.update(state, sample.index, sample.weight + 0.1, 0.6)
        return state, sum(jnp.sum(x) for x in sample)

    many = jax.jit(
        lambda state, key: jax.lax.scan(body, state, jax.random.split(key, config.steps)), donate_argnums=0
    )
    carry = [jax.block_until_ready(many(replay.init(ONE), jax.random.key(0)))[0]]

    def measure() -> float:
        begin = time.perf_counter()
        carry[0], _ = jax.block_until_ready(many(carry[0], jax.random.key(1)))
        return config.steps / (time.perf_counter() - begin)

    return measure


def sample_only(config: Config, capacity: int, prioritised: bool) -> peers.Round:
    """Return the measurement of draws from a full memory."""
    replay = make_replay(capacity, config.batch_size, prioritised=prioritised)
    state = filled(replay, capacity)

    @jax.jit
    def many(state: ReplayState, key: jax.Array) -> jax.Array:
        def body(total: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
            return total + sum(jnp.sum(x) for x in replay.sample(state, key, 0.99, 0.5)), None

        return jax.lax.scan(body, jnp.zeros(()), jax.random.split(key, config.steps))[0]

    many(state, jax.random.key(0)).block_until_ready()

    def measure() -> float:
        begin = time.perf_counter()
        many(state, jax.random.key(1)).block_until_ready()
        return config.steps / (time.perf_counter() - begin)

    return measure


def learner_step(config: Config, capacity: int, prioritised: bool) -> peers.Round:
    """Return the measurement of whole DQN steps on CartPole: eight environment steps and one update."""
    actor = make_value_actor("CartPole-v1", make_q_net(2, (64, 64)), num_envs=8, num_steps=1)
    learner = make_dqn(
        actor,
        capacity=capacity,
        batch_size=config.batch_size,
        prioritised=prioritised,
        warmup_steps=capacity,  # draws then reach all of the memory
    )
    many = jax.jit(
        lambda state: jax.lax.scan(lambda s, _: (learner.step(s)[0], None), state, None, config.steps // 8)[
            0
        ],
        donate_argnums=0,
    )
    carry = [jax.block_until_ready(many(jax.jit(learner.init)(jax.random.key(0), DQNHParams())))]

    def measure() -> float:
        begin = time.perf_counter()
        carry[0] = jax.block_until_ready(many(carry[0]))
        return config.steps // 8 / (time.perf_counter() - begin)

    return measure


def against_flashbax(config: Config) -> None:
    """Measure both kinds of memory beside flashbax's."""
    for prioritised in (False, True):
        kind = "prioritised, with its update" if prioritised else "uniform"
        what = f"replay, {kind}: add and sample {config.batch_size} of {config.capacity:,}"
        sizes = {"capacity": config.capacity, "batch": config.batch_size, "steps": config.steps}
        python, settings = config.flashbax, {"prioritised": prioritised, **sizes}
        with rivals(python, "flashbax", name="flashbax", flag="flashbax", **settings) as others:
            measure = add_and_sample(config, prioritised)
            contest(what, "a second", {"ours": measure} | others, config.rounds)


def main(config: Config) -> None:
    """Compare, then time draws by capacity."""
    against_flashbax(config)
    for what, make in {"draw": sample_only, "DQN step": learner_step}.items():
        for prioritised in (False, True):
            first, *rest = config.capacities
            kind = "prioritised" if prioritised else "uniform"
            sides = {f"ours, of {n:,}": make(config, n, prioritised) for n in (first, *rest)}
            contest(f"one {kind} {what} of {first:,}", "a second", sides, config.rounds)


if __name__ == "__main__":
    run(Config, main)
