"""A film of one episode of a kept policy."""

from pathlib import Path
from typing import Any

import chex
import jax
import numpy as np

from jaxrl_align.atomic import atomic_path
from jaxrl_align.envs.registry import Environment
from jaxrl_align.envs.rollout import EnvState, Policy, advance, reset, step_keys
from jaxrl_align.evaluate.policies.drawings import find_camera, need_pillow
from jaxrl_align.evaluate.policies.playing import find_environment, longest_episode
from jaxrl_align.evaluate.policies.policy_folder import KeptPolicy


def film_policy(
    policy: KeptPolicy,
    path: str | Path,
    key: chex.PRNGKey,
    *,
    env: Environment | None = None,
    max_steps: int | None = None,
    sample: bool = False,
) -> tuple[float, int]:
    """Play one episode by a kept policy and write a film of it.

    Args:
      policy: as `load_policy` gives it.
      path: a `.gif`; its folder is made.
      key: seeds the start, the policy and the dynamics.
      env: a gymnax name or (environment, params); None takes the one that it was trained in.
      max_steps: the film ends after so many; None takes the whole episode.
      sample: draw the actions, as in training, where it is otherwise greedy.

    Returns:
      The return of the steps in the film, and how many these are.

    Raises:
      ImportError: Pillow is not installed.
      ValueError: for another ending than `.gif`, as `find_environment`, or for an environment that has no
        drawing.
    """
    path = Path(path)
    if path.suffix.lower() != ".gif":
        raise ValueError(f"a film must be a .gif; got {path}")
    place = find_environment(policy, env)
    camera = find_camera(place[0], policy.observation.shape)
    need_pillow()
    steps = longest_episode(place, max_steps)
    act = policy.sampled if sample else policy.greedy
    states, observations, returns = _record(place, act, key, steps)
    shown = sorted({*range(0, len(returns), camera.every), len(returns) - 1})
    rows = [jax.tree.map(lambda x, i=i: x[i], states) for i in shown]
    pictures = [camera.draw(row, observations[i], place[1]) for i, row in zip(shown, rows, strict=True)]
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        _write_gif(temporary, pictures, camera.milliseconds)
    return float(returns[-1]), len(returns)


def _record(
    place: tuple[Any, Any], act: Policy, key: chex.PRNGKey, steps: int
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Return one episode's states, observations and returns so far, each [T, ...]."""
    environment, env_params = place
    key_reset, key_steps = jax.random.split(key)

    def one(env_state: EnvState, words: jax.Array) -> tuple[EnvState, Any]:
        key_action, key_step = jax.random.wrap_key_data(words, impl=jax.random.key_impl(key))
        action = act(key_action, env_state.obs)
        after, step = advance(environment, env_params, env_state, action, key_step, lambda x: x)
        ended = step.terminated | step.truncated
        return after, (env_state.state, env_state.obs, step.episode_return, ended)

    @jax.jit
    def play(key_reset: chex.PRNGKey, words: jax.Array) -> Any:
        return jax.lax.scan(one, reset(environment, env_params, key_reset), words)[1]

    states, obs, returns, ended = jax.tree.map(np.asarray, play(key_reset, step_keys(key_steps, steps)))
    count = int(np.argmax(ended)) + 1 if ended.any() else steps
    cut = jax.tree.map(lambda x: x[:count], states)
    return cut, obs[:count], returns[:count]


def _write_gif(path: Path, pictures: list[Any], milliseconds: int) -> None:
    image = need_pillow()
    drawn = [picture.convert("P", palette=image.Palette.ADAPTIVE, colors=32) for picture in pictures]
    how = {"save_all": True, "append_images": drawn[1:], "duration": milliseconds, "loop": 0}
    drawn[0].save(path, format="GIF", optimize=False, **how)
