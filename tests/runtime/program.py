"""A tiny experiment: members fit a line by gradient descent. The tests import it and run it as a program."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_align.learner import make_gradient_learner
from jaxrl_align.runtime import cli
from jaxrl_align.runtime.folder import RunConfig
from jaxrl_align.runtime.loop import run


class Hparams(NamedTuple):
    learning_rate: float = 0.01


def make_learner(width=3):
    def loss(params, frozen, batch, key, hparams):
        error = batch @ params["w"] - 1.0 + 0.1 * jax.random.normal(key, batch.shape[:1])
        return jnp.mean(error**2), {"largest": jnp.max(jnp.abs(error))}

    return make_gradient_learner(
        lambda key: {"w": jax.random.normal(key, (width,))},
        loss,
        lambda key: jax.random.normal(key, (8, width)),
    )


def make_problem(members=2, width=3):
    """Return `(step, state)` of vmapped members."""
    learner = make_learner(width)
    keys = jax.random.split(jax.random.key(0), members)
    return jax.vmap(learner.step), jax.vmap(learner.init, (0, None))(keys, Hparams())


@dataclasses.dataclass(frozen=True)
class Config(RunConfig):
    """Fit a line."""

    width: int = 3
    """Size of the input."""
    num_steps: int = 3002
    """Length of the run."""


def main(config):
    folder = config.open_folder()
    step, state = make_problem(width=config.width)
    run(step, state, config.num_steps, chunk=4, folder=folder, checkpoint_every=100, label="fit")


if __name__ == "__main__":
    cli.main(Config, main)
