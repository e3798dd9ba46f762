"""Environment steps a second of `unroll`, against a loop around gymnax's `step` as people write it.

Claim: keeping episodes apart, their returns and every observation before a reset costs no speed.

What was measured, 256 environments with 200 random actions each, is in docs/benchmarks.md: the two are level.
Nobody reads the observations here, so the compiler drops them on both sides.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import chex
import jax
import peers
from contest import ContestConfig, contest, run

from jaxrl_align import envs


@dataclass(frozen=True)
class Config(ContestConfig):
    """What is rolled out; a round is one rollout of either side."""

    envs: tuple[str, ...] = ("CartPole-v1", "Acrobot-v1", "Breakout-MinAtar", "Asterix-MinAtar")
    num_envs: int = 256
    steps: int = 200
    rounds: int = 15


def ours(environment: Any, env_params: Any, steps: int) -> Callable[[chex.PRNGKey], chex.Array]:
    """Return `key -> sum of rewards` of one environment, by `unroll`."""
    space = environment.action_space(env_params)

    def play(key: chex.PRNGKey) -> chex.Array:
        key_reset, key_play = jax.random.split(key)
        begin = envs.reset(environment, env_params, key_reset)
        policy = lambda key, obs: space.sample(key)
        return envs.unroll(environment, env_params, policy, begin, key_play, steps)[1].reward.sum()

    return play


def plain(environment: Any, env_params: Any, steps: int) -> Callable[[chex.PRNGKey], chex.Array]:
    """Return the same by a scan around `environment.step` that splits its key as it goes."""
    space = environment.action_space(env_params)

    def play(key: chex.PRNGKey) -> chex.Array:
        key_reset, key_play = jax.random.split(key)
        _, state = environment.reset(key_reset, env_params)

        def step(carry: tuple, _: None) -> tuple:
            state, key = carry
            key, key_action, key_step = jax.random.split(key, 3)
            _, state, reward, *_ = environment.step(key_step, state, space.sample(key_action), env_params)
            return (state, key), reward

        # One step before the loop gives the state the types that it keeps.
        return jax.lax.scan(step, step((state, key_play), None)[0], None, steps)[1].sum()

    return play


def make_round(play: Callable, keys: chex.PRNGKey, steps: int) -> peers.Round:
    """Return the measurement of a rollout of all environments, steps a second."""
    play = jax.jit(jax.vmap(play))

    def measure() -> float:
        begin = time.perf_counter()
        jax.block_until_ready(play(keys))
        return len(keys) * steps / (time.perf_counter() - begin)

    measure()
    return measure


def main(config: Config) -> None:
    """Roll out both ways in turn, for every environment."""
    for name in config.envs:
        environment, env_params = envs.make_environment(name)
        keys = jax.random.split(jax.random.key(0), config.num_envs)
        sides = {
            side: make_round(make(environment, env_params, config.steps), keys, config.steps)
            for side, make in {"ours": ours, "a loop around gymnax's step": plain}.items()
        }
        contest(f"random {name}, {config.num_envs} environments", "env steps/s", sides, config.rounds)


if __name__ == "__main__":
    run(Config, main)
