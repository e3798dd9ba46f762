"""Modelling language is not assisting: who answers an instruction, and who only goes on.

To "Explain the moon landing to a 6 year old in a few sentences." GPT-3 writes further such instructions; it
is the same with "Write a poem about a wise frog". Whether a text answers or continues is said by the eleven
rules of `assistants_rules.py`, which read its form and not its truth; their own error is measured on texts
that they did not make.

Small models (4 layers of 128) are pre-trained on children's books and, three windows in ten, on *lists of
instructions without any answer*: what GPT-3 continues with must have stood in its text, so it stands in ours,
and that the model goes on with instructions is by construction. SFT imitates 743 human answers of a file of
1,100 instructions; RLHF follows (GRPO), on a reward model that has learnt that the human answer is better
than what the two models write and than the human answer to another prompt; no rule judges for it. All write
at temperature 1 behind the same bare line; hardly an answer is true. SmolLM2-135M-Instruct writes 48 tokens
at most, greedily: behind the bare text, behind the text and a line break, and in its chat template. Its
tuning is in its weights; how the model that it was tuned from continues is not measured.

A reader judged 60 of the published model's texts that are not empty, drawn at random, without the verdicts in
view: the rules agreed on 44. Of the 8 that the reader called continuing they found 1, since its texts go on
as a page about the request does and not with instructions; and one long sentence that was cut they called
continuing, three times. SFT's and RLHF's rates are chosen on 2 other seeds; of pre-training and the reward
model the rates are the first tried.
"""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from assistants_data import Split, read_pairs, split_pairs
from assistants_model import write_published
from assistants_report import report
from assistants_rules import check_rules
from assistants_stages import (
    STAGES,
    Setup,
    align,
    ask,
    choose_alignment,
    choose_cloning,
    fine_tune,
    learn_reward,
    pretrain,
)
from parts import join_claims

from jaxrl_align import runtime
from jaxrl_align.data.probes import ASSISTANCE_PROMPTS
from jaxrl_align.runtime import cli

Part = Literal["scratch", "published"]
CLAIMS = {
    "scratch": runtime.Claim(
        "A pre-trained model continues an instruction; fine-tuned on human answers it answers, in form, and "
        "RLHF makes it answer more often still.",
        rows=("C16", "F11", "F13", "F18"),
        minutes=15,
    ),
    "published": runtime.Claim(
        "A published assistant answers in its chat template and continues behind the bare text.",
        rows=("C16", "F18"),
        minutes=5,
    ),
}


@dataclass(frozen=True)
class Config(runtime.MembersConfig):
    """Small models from text to assistant, and a published one with and without its template."""

    out: str = "runs/assistants"
    seeds: int = 4
    """Reported members."""
    tuning_seeds: int = 2
    """Further members, on whom alone the rates are chosen."""
    parts: tuple[Part, ...] = ("scratch", "published")
    """Which models are asked: trained from scratch, published."""
    vocab_size: int = 2048
    """Tokens of the vocabulary, at most."""
    width: int = 128
    """Numbers in a token's hidden state."""
    layers: int = 4
    """Of the transformer."""
    heads: int = 4
    """Attention heads of a layer."""
    prompt_length: int = 40
    """Tokens of an instruction, at most."""
    response_length: int = 40
    """Tokens, the stop token included."""
    words: int = 20_000
    """Of each children's book."""
    lists: float = 0.3
    """Share of the pre-training windows that come from lists of instructions; the rest is books. With 0 the
    first instruction is seen in fine-tuning."""
    pretrain_steps: int = 700
    """Updates of the pre-training."""
    pretrain_batch: int = 8
    """Windows of text in an update of the pre-training."""
    pretrain_rate: float = 3e-3
    """Learning rate of the pre-training."""
    sft_steps: int = 250
    """Updates of the fine-tuning on demonstrations."""
    sft_rates: tuple[float, ...] = (1e-3, 3e-3, 6e-3)
    """The one with the least cross-entropy of the validation pairs is taken."""
    reward_steps: int = 100
    """Updates of the reward model."""
    reward_rate: float = 5e-4
    """Learning rate of the reward model."""
    batch_size: int = 16
    """Rows a step of fine-tuning and of the reward model."""
    rlhf_steps: int = 60
    """Updates of the policy by RLHF."""
    rlhf_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4)
    """The one with the most answers to the validation prompts is taken."""
    prompts_per_step: int = 8
    """Prompts of an update."""
    group_size: int = 4
    """Answers to each prompt of an update."""
    kl_coef: float = 0.04
    """Weight of the KL from the reference [reward a nat]."""
    model: str | None = None
    """A Hugging Face folder with a chat template; none means SmolLM2-135M-Instruct."""
    model_items: int = 60
    """Of the held-out instructions."""
    model_tokens: int = 48
    """The most that the published model writes."""

    def __post_init__(self) -> None:
        """Refuse what would fail after minutes of training."""
        self.require(
            seeds=2, tuning_seeds=1, pretrain_steps=1, sft_steps=1, reward_steps=1, rlhf_steps=1, group_size=2
        )
        if not 0.0 <= self.lists < 1.0:
            raise ValueError(f"lists must be at least 0 and below 1; got {self.lists}")


def train(config: Config, folder: runtime.RunFolder, split: Split) -> dict[str, Any]:
    """Train all stages, and let each member of each stage write to the lecture's and the held-out prompts.

    Returns:
      `sft` and `rlhf`, the rates tried and what chose among them; `reward`, the shares [M] of validation
      comparisons that the reward models order rightly, by whose text is worse; `written` {stage: [M][N]}.
    """
    setup = Setup(config, split)
    base = pretrain(setup, folder)
    cloning = folder.once("sft_rates.json", choose_cloning, setup, folder, base)
    rate = cloning["rates"][int(np.argmin(np.mean(cloning["nats"], 1)))]
    sft = fine_tune(setup, folder.sub("sft"), base, rate, setup.keys(1))
    model, right = learn_reward(setup, folder, base, sft)
    tried = folder.once("rlhf_rates.json", choose_alignment, setup, folder, sft, model)
    rate = tried["rates"][int(np.argmax(np.mean(tried["answers"], 1)))]
    base, sft, model = jax.tree.map(lambda x: x[: config.seeds], (base, sft, model))
    rlhf = align(setup, folder.sub("rlhf"), sft, model, rate, setup.keys(8, config.seeds))
    prompts = [*ASSISTANCE_PROMPTS, *(pair.prompt for pair in split.test)]
    written = {n: ask(setup, p, prompts, 10) for n, p in zip(STAGES, (base, sft, rlhf), strict=True)}
    reward = {name: x[: config.seeds] for name, x in right.items()}
    return {"sft": cloning, "rlhf": tried, "reward": reward, "written": written}


def main(config: Config) -> None:
    """Measure the rules' own error, run the parts, and report."""
    runtime.use_cpu_devices()
    folder = config.open_folder()
    split = split_pairs(read_pairs())
    found: dict[str, Any] = {"rules": check_rules(split.test)}
    if "scratch" in config.parts:
        found["scratch"] = train(config, folder, split)
    if "published" in config.parts:
        prompts = [*ASSISTANCE_PROMPTS, *(pair.prompt for pair in split.test[: config.model_items])]
        found["published"] = folder.once("published.json", write_published, config, prompts)
    claim = join_claims(CLAIMS[part] for part in config.parts)
    report(config, folder, claim, found, [pair.prompt for pair in split.test])


if __name__ == "__main__":
    cli.main(Config, main)
