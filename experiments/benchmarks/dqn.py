"""Our DQN's environment steps a second against stable-baselines3's and rejax's, in turn in one run.

Claim: on CartPole at equal updates per step, at least 20 times stable-baselines3 (8 environments, one update
for 32 steps), and at least 5 times rejax in its own configuration (8 environments, one update for 8 steps,
a memory of 100,000).

What was measured is in docs/benchmarks.md. While another program holds the other core, one seed of ours fell
to about half its rate, because XLA's threads wait for a core they do not get (`taskset -c 0` keeps them on
one); 8 seeds keep theirs.
"""

import time
from dataclasses import dataclass
from typing import Any

import jax
import peers
from contest import ContestConfig, contest, rivals, run

from jaxrl_align.actors.value import make_value_actor
from jaxrl_align.nets.q_networks import make_q_net
from jaxrl_align.rl.dqn import DQNHParams, make_dqn
from jaxrl_align.runtime.mesh import shard_members


@dataclass(frozen=True)
class Config(ContestConfig):
    """Equal networks, batches, memories and updates per environment step."""

    envs: int = 8
    batch_size: int = 32
    capacity: int = 100_000
    hidden: tuple[int, int] = (64, 64)
    seeds: int = 8
    """Members of the additional measurement with several seeds at once."""
    timesteps: int = 400_000
    """Of ours in a round, over all seeds."""
    sb3: str = ""
    """An interpreter with stable-baselines3; empty leaves it out."""
    rejax: str = ""
    """An interpreter with rejax and gymnax 0.0.9; empty leaves it out."""


def ours(config: Config, num_steps: int, double: bool, seeds: int) -> peers.Round:
    """Return the measurement of our DQN: one update for `envs * num_steps` steps."""
    net = make_q_net(2, config.hidden)
    actor = make_value_actor("CartPole-v1", net, num_envs=config.envs, num_steps=num_steps)
    learner = make_dqn(actor, capacity=config.capacity, batch_size=config.batch_size, double=double)
    length = max(1, config.timesteps // (seeds * config.envs * num_steps))

    def many(state: Any) -> Any:
        return jax.lax.scan(lambda s, _: (jax.vmap(learner.step)(s)[0], None), state, None, length)[0]

    many = jax.jit(many, donate_argnums=0)
    keys = jax.random.split(jax.random.key(0), seeds)
    state = jax.jit(jax.vmap(learner.init, (0, None)))(keys, DQNHParams())
    carry = [jax.block_until_ready(many(shard_members(state)))]

    def measure() -> float:
        begin = time.perf_counter()
        carry[0] = jax.block_until_ready(many(carry[0]))
        return seeds * length * config.envs * num_steps / (time.perf_counter() - begin)

    return measure


def compare(config: Config, peer: str, num_steps: int, double: bool, **arguments: Any) -> None:
    """Measure one seed of ours, then several, and the peer in turn."""
    name = {"sb3": "stable-baselines3", "rejax": "rejax"}[peer]
    arguments |= {"envs": config.envs, "batch": config.batch_size, "capacity": config.capacity}
    python, hidden = getattr(config, peer), config.hidden
    with rivals(python, peer, name=name, flag=peer, hidden=hidden, **arguments) as others:
        for seeds in (1, config.seeds):
            what = f"DQN on CartPole, an update for {config.envs * num_steps} steps, seeds at once: {seeds}"
            measure = ours(config, num_steps, double, seeds)
            contest(what, "env steps/s", {"ours": measure} | others, config.rounds)


def main(config: Config) -> None:
    """Run ours and each peer in turn; medians and the range over rounds."""
    compare(config, "sb3", 4, False, steps=4, timesteps=16_000)
    compare(config, "rejax", 1, True, timesteps=16_000)


if __name__ == "__main__":
    run(Config, main)
