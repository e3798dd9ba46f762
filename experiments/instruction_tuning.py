"""Instruction tuning: many tasks in training, unseen ones in the test."""

import time
from dataclasses import dataclass
from typing import Literal

from instruction_tuning_model import tune_published
from instruction_tuning_report import draw, report
from instruction_tuning_scratch import learn_from_scratch
from instruction_tuning_sets import POOL

from jaxrl_align.runtime import cli
from jaxrl_align.runtime.members import MembersConfig


@dataclass(frozen=True)
class Config(MembersConfig):
    """Small transformers from nothing, and a published model with LoRA, tuned on more and more sets."""

    out: str = "runs/instruction_tuning"
    seeds: int = 4
    """Of the models from nothing: weights, order of the sets and rows differ."""
    parts: tuple[Literal["scratch", "model"], ...] = ("scratch",)
    """`scratch`: models from nothing; `model`: the published one."""
    breadths: tuple[int, ...] = (1, 4, 18)
    """Numbers of sets that are learnt from, at the same number of rows and steps."""
    pilot: bool = False
    """Ask the last quarter of every template's rows instead of the others, to choose rates."""
    questions: int = 40
    """Of every unseen set, to the models from nothing."""
    answer_length: int = 24
    """Tokens of a completion that are learnt, its end included; what is longer is cut."""
    width: int = 128
    layers: int = 4
    vocab_size: int = 3_000
    length: int = 128
    """Tokens of a row, at most; of a question to any model too."""
    pretrain_steps: int = 400
    """On windows of the pool's prompts, every set alike."""
    pretrain_rate: float = 3e-3
    batch_size: int = 16
    tune_rows: int = 900
    """Rows that a model learns from."""
    tune_steps: int = 150
    tune_rate: float = 1e-3
    model: str = ""
    """A folder with a tokenizer; empty, SmolLM2-135M-Instruct (make model)."""
    model_draws: int = 3
    """Of orders of the sets and of rows."""
    model_length: int = 96
    """Tokens of a row that the published model learns from, at most."""
    model_steps: int = 50
    model_batch: int = 8
    """Rows of a step; every row is read once."""
    model_rate: float = 1e-3
    rank: int = 8
    model_questions: int = 20
    items: int = 40
    """Of the questions about pronouns."""
    dialogues: int = 20
    long_answer: int = 48
    """Tokens of a solution or a summary, at most."""

    def __post_init__(self) -> None:
        """Refuse what would fail after minutes of training."""
        self.require(seeds=2, breadths=1, questions=1, model_draws=1, model_steps=1, tune_steps=1)
        if list(self.breadths) != sorted(set(self.breadths)) or self.breadths[-1] > len(POOL):
            raise ValueError(f"breadths must rise to at most {len(POOL)} sets; got {self.breadths}")


PARTS = {"scratch": learn_from_scratch, "model": tune_published}


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
