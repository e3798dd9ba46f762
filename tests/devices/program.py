"""Train a learner of `learners.CASES` as an experiment does: in a folder, on a mesh, in several processes."""

import os
import time
from dataclasses import dataclass

import jax
import numpy as np

from jaxrl_align.data.batches import HostBatches
from jaxrl_align.pretrain.lm import LMHParams
from jaxrl_align.runtime import cli
from jaxrl_align.runtime.folder import RunConfig
from jaxrl_align.runtime.loop import run
from jaxrl_align.types import TokenBatch


@dataclass(frozen=True)
class Config(RunConfig):
    """A run."""

    case: str = "lm"
    """Of `learners.CASES`."""
    steps: int = 6
    """In all."""
    rows: int = 16
    """Of a batch."""


def main(config: Config) -> None:
    """Train on batches from the host."""
    from tests.devices.learners import CASES, VOCAB

    if "FAIL" in os.environ:
        raise TypeError("this process alone")
    case = CASES[config.case]()
    folder = config.open_folder()

    shift = int(os.environ.get("SHIFT", "0"))

    def read(first: int, steps: int, rows: slice) -> TokenBatch:
        if jax.process_count() > 1 and first > 0:  # the first step's shapes are asked of all
            assert rows.stop - rows.start == config.rows // 2, rows
        draw = lambda step: np.random.default_rng(step + shift).integers(
            0, VOCAB, (config.rows, 25), np.int32
        )
        tokens = np.stack([draw(step)[rows] for step in range(first, first + steps)])
        ones = np.ones(tokens.shape, np.float32)
        return TokenBatch(tokens, ones, ones)

    def on_chunk(step: int, state: object, metrics: object) -> None:
        print(f"step {step}", flush=True)
        time.sleep(float(os.environ.get("PAUSE", "0")))  # in which the run can be killed

    noise = float(os.environ.get("NOISE", "0"))
    frozen = jax.tree.map(lambda x: x + noise, case.frozen) if noise else case.frozen
    state = jax.jit(case.learner.init)(jax.random.key(1), case.hparams, case.params)
    from_host = isinstance(case.hparams, LMHParams)  # the others draw their batches
    run(
        case.learner.step,
        state,
        config.steps,
        chunk=2,
        folder=folder,
        checkpoint_every=2,
        batches=HostBatches(config.rows, read) if from_host else None,
        frozen=frozen,
        on_chunk=on_chunk,
    )


if __name__ == "__main__":
    cli.main(Config, main)
