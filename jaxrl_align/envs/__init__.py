"""Environments behind the interface of gymnax: rollouts, action spaces, finite processes, foreign ones."""

from jaxrl_align.envs.actions import Distribution, MultiDiscrete, make_distribution, to_environment
from jaxrl_align.envs.foreign import from_brax, from_jumanji, from_navix
from jaxrl_align.envs.host import make_host_environment
from jaxrl_align.envs.registry import Environment, make_environment, num_actions, spaces
from jaxrl_align.envs.rollout import (
    WINDOW,
    EnvState,
    Episodes,
    GymState,
    Policy,
    Steps,
    evaluate_policy,
    first_episode,
    first_episodes,
    record_episodes,
    reset,
    start,
    unroll,
)
from jaxrl_align.envs.tabular import frozen_lake, make_mdp, make_tabular_environment, random_mdp

# fmt: off
__all__ = [
    "Distribution", "EnvState", "Environment", "Episodes", "GymState", "MultiDiscrete", "Policy", "Steps",
    "WINDOW", "evaluate_policy", "first_episode", "first_episodes", "from_brax", "from_jumanji",
    "from_navix", "frozen_lake", "make_distribution", "make_environment", "make_host_environment",
    "make_mdp", "make_tabular_environment", "num_actions", "random_mdp", "record_episodes", "reset",
    "spaces", "start", "to_environment", "unroll",
]
# fmt: on
