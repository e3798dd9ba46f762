"""Modelling language is not assisting: who answers an instruction, and who only goes on.

Claim (lectures 001 to 003, C16): a pre-trained model continues a prompt, a tuned one answers it. To "Explain
the moon landing to a 6 year old in a few sentences." GPT-3 writes further such instructions; it is the same
with "Write a poem about a wise frog". Whether a text answers or continues is said by the eleven rules of
`assistants_rules.py`, which read its form and not its truth.

Small models (4 layers of 128) are pre-trained on children's books and, three windows in ten, on *lists of
instructions without any answer*: what GPT-3 continues with must have stood in its text, so it stands in ours,
and that the model goes on with instructions is by construction. SFT imitates 743 human answers of a file of
1,100 instructions; RLHF follows (GRPO), on a reward model that has learnt that the human answer is better
than what the two models write and than the human answer to another prompt; no rule judges for it. All write
at temperature 1 behind the same bare line. SmolLM2-135M-Instruct writes 48 tokens at most, greedily: behind
the bare text, behind the text and a line break, and in its chat template.

Measured (`python experiments/assistants.py`: per cent of texts to held-out instructions of that file; 200 for
each of 4 seeds, 95% t intervals; 60 of them for the published model, Wilson's; 20 minutes of CPU time, 36 on
2 cores that other jobs shared). The first three rows, Wilson's too, are the rules' own error, on 200 texts
that they did not make:

                               answers             continues           neither             ends by itself
    the human answer           99.0 [96.4, 99.7]    0.5 [0.1, 2.8]      0.5 [0.1, 2.8]
    another instruction         0.0 [0.0, 1.9]     98.5 [95.7, 99.5]    1.5 [0.5, 4.3]
    another's human answer     22.0 [16.8, 28.2]    0.5 [0.1, 2.8]     77.5 [71.2, 82.7]
    from scratch, pre-trained   1.9 [1.1, 2.6]     70.5 [65.5, 75.5]   27.6 [23.0, 32.3]   16.2 [9.4, 23.1]
      SFT                      58.4 [51.1, 65.6]    1.8 [0.4, 3.1]     39.9 [31.4, 48.4]   97.9 [96.5, 99.2]
      RLHF                     63.5 [47.7, 79.3]    0.8 [0.0, 1.8]     35.8 [19.4, 52.1]   99.2 [97.7, 100]
    published, bare prompt     30.0 [19.9, 42.5]   10.0 [4.7, 20.1]    60.0 [47.4, 71.4]   68.3 [55.8, 78.7]
      and line break           81.7 [70.1, 89.4]    1.7 [0.3, 8.9]     16.7 [9.3, 28.0]    51.7 [39.3, 63.8]
      chat template            91.7 [81.9, 96.4]    5.0 [1.7, 13.7]     3.3 [0.9, 11.4]    73.3 [61.0, 82.9]

The claim holds, in form. Fine-tuning turns continuing into answering (+56.5 +- 7.2 points, paired by seed),
though hardly an answer is true, and what is left is off topic. RLHF adds +5.1 +- 8.8, which may be nothing:
the reward model puts the human answer above SFT's in 62.8 [57.7, 67.9]% of validation prompts (above
another's in 76.4 [67.6, 85.2], above the pre-trained model's text in 99.7), and faster rates lose by it. To
the lecture's two prompts, which are unlike the file's, the pre-trained models continue 7 times of 8; SFT and
RLHF answer once of 8 each, and the rest is no poem or off topic. One of each:

    pre-trained   Define the following a dort S colour descriild in a sentence using a warer. I needo ...
    SFT           A use some by the cor fruager The mole is coo a c room.
    RLHF          A delicon is a parketerapor in the chement, neissin and things.
    line break    The moon landing was a historic event that took place on July 20, 1969, when astronauts ...
    template      The moon landing was a big event that happened on a big piece of land called Earth. It ...

The published model's tuning is in its weights: a line break nearly does for a template (answers -0.10 [-0.21,
0.01], paired by prompt). Behind the bare text it ends at once in 58%, both of the lecture's prompts among
them, and continues in 10%; how the model that it was tuned from continues is not measured. A reader judged 60
of its texts that are not empty, drawn at random, without the verdicts in view: the rules agree on 44. Of the
8 that the reader calls continuing they find 1, since its texts go on as a page about the request does and not
with instructions; and one long sentence that was cut they call continuing, three times.

Rates tried on 2 other seeds: SFT 1e-3, 3e-3, 6e-3, cross-entropy of validation pairs 3.305, 3.220, 3.276;
RLHF 3e-5, 1e-4, 3e-4, validation prompts answered 58.5, 45.5, 43.5% (55.0 before). Of pre-training and the
reward model the rates are the first tried.
"""

import time
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from assistants_data import Split, read_pairs, split_pairs
from assistants_model import write_published
from assistants_report import draw, report
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

from jaxrl_align.data.probes import ASSISTANCE_PROMPTS
from jaxrl_align.runtime import cli
from jaxrl_align.runtime.folder import RunFolder
from jaxrl_align.runtime.members import MembersConfig
from jaxrl_align.runtime.mesh import use_cpu_devices

Part = Literal["scratch", "published"]


@dataclass(frozen=True)
class Config(MembersConfig):
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


def train(config: Config, folder: RunFolder, split: Split) -> dict[str, Any]:
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
    started = time.monotonic()
    use_cpu_devices()
    folder = config.open_folder()
    split = split_pairs(read_pairs())
    found: dict[str, Any] = {"rules": check_rules(split.test)}
    if "scratch" in config.parts:
        found["scratch"] = train(config, folder, split)
    if "published" in config.parts:
        prompts = [*ASSISTANCE_PROMPTS, *(pair.prompt for pair in split.test[: config.model_items])]
        found["published"] = folder.once("published.json", write_published, config, prompts)
    draw(folder, report(folder, found, [pair.prompt for pair in split.test]))
    print(f"figure, results.json and texts.json are in {folder.path}; {time.monotonic() - started:.0f} s")


if __name__ == "__main__":
    cli.main(Config, main)
