"""Instruction tuning: many tasks in training, unseen ones in the test."""

import time
from dataclasses import dataclass
from typing import Literal

from instruction_tuning_model import tune_published
from instruction_tuning_report import draw, report
from instruction_tuning_sets import POOL
from instruction_tuning_world import TASKS, UNSEEN_TASKS, learn_world

from jaxrl_align.runtime import cli
from jaxrl_align.runtime.members import MembersConfig


@dataclass(frozen=True)
class Config(MembersConfig):
    """Small transformers in a world of exact tasks, and a published model with LoRA on T0's sets."""

    out: str = "runs/instruction_tuning"
    seeds: int = 6
    """Of the world: weights, the unseen tasks and the order of the others differ."""
    parts: tuple[Literal["world", "model"], ...] = ("world",)
    """`world`: small models from nothing; `model`: the published one."""
    world_breadths: tuple[int, ...] = (1, 4, 16, 48)
    """Numbers of tasks that are learnt, at the same number of rows; each divides 48."""
    width: int = 64
    layers: int = 2
    world_steps: int = 2_000
    batch_size: int = 64
    learning_rate: float = 3e-3
    """It rises over a twentieth of the steps and falls linearly to 0."""
    lists: int = 50
    """That every task is asked of."""
    model: str = ""
    """A folder with a tokenizer; empty, SmolLM2-135M-Instruct (make model)."""
    breadths: tuple[int, ...] = (1, 4, 16)
    """Numbers of T0's sets that are learnt from, at the same number of rows."""
    pilot: bool = False
    """Ask the last quarter of every template's rows instead of the others, to choose rates."""
    model_draws: int = 2
    """Of orders of the sets and of rows."""
    model_length: int = 96
    """Tokens of a row that is learnt, at most."""
    answer_length: int = 24
    """Tokens of a completion that are learnt, its end included; what is longer is cut."""
    model_steps: int = 50
    model_batch: int = 8
    """Rows of a step; every row is read once."""
    model_rate: float = 1e-2
    rank: int = 8
    model_questions: int = 20
    """Of every unseen set."""
    length: int = 128
    """Tokens of a question or a dialogue, at most."""
    items: int = 40
    """Of the questions about pronouns."""
    dialogues: int = 20
    long_answer: int = 48
    """Tokens of a solution or a summary, at most."""

    def __post_init__(self) -> None:
        """Refuse what would fail after minutes of training."""
        self.require(seeds=2, breadths=1, world_breadths=1, model_draws=1, model_steps=1, model_questions=1)
        if list(self.breadths) != sorted(set(self.breadths)) or self.breadths[-1] > len(POOL):
            raise ValueError(f"breadths must rise to at most {len(POOL)} sets; got {self.breadths}")
        learnt = TASKS - UNSEEN_TASKS
        if any(learnt % n for n in self.world_breadths):
            raise ValueError(f"world_breadths must divide {learnt}; got {self.world_breadths}")


PARTS = {"world": learn_world, "model": tune_published}


def main(config: Config) -> None:
    """Run the parts, and report."""
    started = time.monotonic()
    folder = config.open_folder()
    found = {name: PARTS[name](config, folder.sub(name)) for name in config.parts}
    folder.write_json("results.json", found)
    report(config, found)
    draw(folder, config, found)
    print(f"figure and results.json are in {folder.path}; {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    cli.main(Config, main)
