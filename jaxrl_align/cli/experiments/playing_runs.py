"""The command `play`: how good a run's policies are, and a film of one."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tyro.conf import Positional

from jaxrl_align import evaluate
from jaxrl_align.evaluate.policies.policy_folder import INNER, POLICY_FILE
from jaxrl_align.runtime.resampling import bootstrap_mean


@dataclass(frozen=True)
class Play:
    """Play the policies that a run has kept: their returns, and a film.

    Experiments that train agents keep their best policy in `policy/` of the run's folder.
    """

    run: Positional[str]
    """A run's folder, or one of a policy."""
    episodes: int = 100
    """That are played, each from a start of its own."""
    sample: bool = False
    """Draw the actions, as in training, instead of taking the likeliest or the best."""
    seed: int = 0
    """Of the starts, of what happens by chance, and of the draws."""
    env: str | None = None
    """A gymnax name, if not the environment that the policy was trained in."""
    max_steps: int | None = None
    """Steps after which an episode is cut; None takes what ends every one."""
    film: str | None = None
    """A .gif for a film of one episode (CartPole, Acrobot, MountainCar, Pendulum and their kin, MinAtar)."""


def find_policies(run: Path) -> list[Path]:
    """Return the policies' folders in a run's, which may itself be one.

    Raises:
      ValueError: there is none.
    """
    places = [run, run / INNER, *sorted(path / INNER for path in run.glob("*") if path.is_dir())]
    found = [place for place in places if (place / POLICY_FILE).is_file()]
    if not found:
        raise ValueError(
            f"{run} holds no policy ({POLICY_FILE}); ppo_* and dqn_* of jaxrl-align list keep one"
        )
    return found


def run_play(options: Play, argv: Sequence[str]) -> None:
    """Print the mean return of each policy with its interval over episodes, and write the film."""
    if options.episodes < 1:
        raise ValueError(f"--episodes must be at least 1; got {options.episodes}")
    folders = find_policies(Path(options.run))
    if options.film and len(folders) > 1:
        names = ", ".join(map(str, folders))
        raise ValueError(f"a film is of one policy; {options.run} holds {len(folders)}: give one of {names}")
    key, key_film = jax.random.split(jax.random.key(options.seed))
    how: dict[str, Any] = {"env": options.env, "max_steps": options.max_steps, "sample": options.sample}
    for folder in folders:
        policy = evaluate.load_policy(folder)
        episodes = evaluate.play_policy(policy, key, episodes=options.episodes, **how)
        returns, lengths = np.asarray(episodes.episode_return), np.asarray(episodes.episode_length)
        cut = int(np.sum(~np.asarray(episodes.finished)))
        print(
            f"{folder}: {options.env or policy.env}, {'sampled' if options.sample else 'greedy'}: return "
            f"{bootstrap_mean(returns)} (95% bootstrap, {options.episodes} episodes of "
            f"{lengths.mean():.0f} steps; from {returns.min():.6g} to {returns.max():.6g})"
            + (f"; {cut} were cut" if cut else "")
        )
        if options.film:
            total, steps = evaluate.film_policy(policy, options.film, key_film, **how)
            print(f"{options.film} shows an episode of {steps} steps that returns {total:.6g}")
