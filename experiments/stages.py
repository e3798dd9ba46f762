"""The stages of `rlhf.py`, smaller: the first of their seeds choose the rates, the others are reported."""

from dataclasses import dataclass

import numpy as np
import rlhf


@dataclass(frozen=True)
class StagesConfig(rlhf.Config):
    """The fields of experiments that compare what may follow the stages."""

    seeds: int = 8
    """Of the stages, which everything that is compared shares."""
    tuning_seeds: int = 2
    """The first of the seeds, on whom alone the rates are chosen."""
    vocab_size: int = 512
    width: int = 64
    layers: int = 1
    pretrain_steps: int = 300

    def __post_init__(self) -> None:
        """Refuse what would fail after minutes of training."""
        super().__post_init__()
        self.require(tuning_seeds=1, seeds=self.tuning_seeds + 2)

    @property
    def tuning(self) -> np.ndarray:
        """The places of the seeds that choose the rates."""
        return np.arange(self.tuning_seeds)

    @property
    def reported(self) -> np.ndarray:
        """The places of the seeds that are reported."""
        return np.arange(self.tuning_seeds, self.seeds)


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("rlhf")
