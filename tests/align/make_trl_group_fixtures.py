"""Write what trl's GRPO and RLOO trainers answer for one batch into a fixture: advantages, loss, metrics.

In an environment of its own, from the repository's root:

    pip install -e '.[hf]' torch transformers datasets 'trl==1.16.*'
    python -m tests.align.make_trl_group_fixtures

The reference, the policy that wrote the answers and the policy that is trained are three tiny GPT-2 whose
weights NumPy draws here; they reach trl through our own Hugging Face folder, so that log-probabilities are
compared end to end. The trainers are trl's own but for the sampling and the reward, which are fixed.
"""

import json
import os
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from jaxrl_align.types import Params

FIXTURE = Path(__file__).parent / "fixtures" / "trl_groups.json"
CONFIG = TransformerConfig(40, width=16, layers=2, heads=4, context=32)
PAD, STOP, PROMPT, ANSWER, GROUP = 0, 1, 5, 6, 4
CLIPS = {"epsilon": 0.1, "epsilon_high": 0.25}
BETA, TEMPERATURE = 0.3, 0.8
METRICS = (
    "kl",
    "entropy",
    "clip_ratio/low_mean",
    "clip_ratio/high_mean",
    "clip_ratio/region_mean",
    "reward",
    "reward_std",
    "frac_reward_zero_std",
    "completions/mean_length",
    "completions/clipped_ratio",
)
PAPER = {"beta": BETA, "use_bias_correction_kl": False}
DR = {"loss_type": "dr_grpo", "scale_rewards": "none"}
SEQUENCE = {"loss_type": "grpo", "importance_sampling_level": "sequence"}
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "grpo": ("GRPO", {"loss_type": "grpo", **PAPER}),
    "grpo without kl": ("GRPO", {"loss_type": "grpo", "beta": 0.0}),
    "grpo, kl unbiased": ("GRPO", {"loss_type": "grpo", "beta": BETA, "use_bias_correction_kl": True}),
    "dr_grpo": ("GRPO", DR | PAPER),
    "dr_grpo without kl": ("GRPO", DR | {"beta": 0.0}),
    "dr_grpo, kl unbiased": ("GRPO", DR | {"beta": BETA, "use_bias_correction_kl": True}),
    "gspo": ("GRPO", SEQUENCE | PAPER),
    "gspo without kl": ("GRPO", SEQUENCE | {"beta": 0.0}),
    "rloo": ("RLOO", {"beta": BETA}),
    "rloo without kl": ("RLOO", {"beta": 0.0}),
}
"""Name -> trl's trainer and settings. Its default weighs k3 by the ratio; the GRPO paper does not."""


def draw_params(seed: int, scale: float) -> Params:
    """Return weights of `CONFIG`, drawn leaf by leaf in the order of their paths."""
    draw = np.random.RandomState(seed)
    shapes = jax.eval_shape(make_transformer(CONFIG).init, jax.random.key(0))
    return jax.tree.map(lambda x: (scale * draw.standard_normal(x.shape)).astype(np.float32), shapes)


def draw_models() -> dict[str, Params]:
    """Return the reference, the policy that wrote the answers, and the policy that is trained."""
    reference = draw_params(1, 0.3)
    behaviour = jax.tree.map(np.add, reference, draw_params(2, 0.1))
    return {
        "reference": reference,
        "behaviour": behaviour,
        "policy": jax.tree.map(np.add, behaviour, draw_params(3, 0.06)),
    }


def draw_batch() -> dict[str, list]:
    """Return three prompts, a group of answers to each, of all lengths, and scores; one group's are equal.

    The prompts have one length: trl hands a model no positions, so that GPT-2 would count their padding.
    """
    draw = np.random.RandomState(4)
    text = lambda count: draw.randint(2, CONFIG.vocab_size, count).tolist()
    prompts = [text(PROMPT) for _ in range(3)]
    lengths = ((6, 2, 4, 1), (3, 6, 5, 6), (2, 2, 6, 4))
    answers = [[[*text(n - 1), 2 if n == ANSWER else STOP] for n in group] for group in lengths]
    scores = [[0.7, -1.9, 0.0, 1.3], [0.1] * GROUP, [2.0, -0.5, 0.25, 0.25]]
    return {"prompts": prompts, "answers": answers, "scores": scores}


def load(folder: str, name: str) -> Any:
    """Return one of the models, as transformers reads it from a folder that we write."""
    from transformers import GPT2LMHeadModel

    from jaxrl_align.runtime.huggingface import save_model

    if not (made := Path(folder) / name).exists():
        save_model(made, CONFIG, draw_models()[name], stop_tokens=[STOP])
    return GPT2LMHeadModel.from_pretrained(made).eval()


def make_tokenizer() -> Any:
    """Return a tokenizer whose words are the tokens' numbers."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {str(i): i for i in range(CONFIG.vocab_size)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token=str(PAD)))
    made.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=made, pad_token=str(PAD), eos_token=str(STOP))


def make_trainer(kind: str, batch: dict[str, list], folder: str, settings: dict[str, Any]) -> Any:
    """Return trl's trainer with this batch in the place of its sampling and its rewards."""
    import torch
    import trl
    from datasets import Dataset

    prompts = [p for p, group in zip(batch["prompts"], batch["answers"], strict=True) for _ in group]
    answers = [answer for group in batch["answers"] for answer in group]
    base = getattr(trl, f"{kind}Trainer")

    class Fixed(base):
        def _tokenize_prompts(self, given: list) -> tuple:
            return prompts, None, {}

        def _generate_single_turn(self, *_: Any) -> Any:
            return (answers, None) if kind == "GRPO" else answers

        def _calculate_rewards(self, *_: Any) -> Any:
            return torch.tensor([[s] for group in batch["scores"] for s in group])

    config = getattr(trl, f"{kind}Config")(
        output_dir=folder,
        report_to="none",
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=len(answers),
        num_generations=GROUP,
        num_iterations=2,  # otherwise GRPO takes its own log-probabilities for the behaviour's
        max_completion_length=ANSWER,
        temperature=TEMPERATURE,
        **CLIPS,
        **settings,
    )
    rows = Dataset.from_list([{"prompt": " ".join(map(str, p))} for p in batch["prompts"]])
    return Fixed(
        model=load(folder, "behaviour"),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=rows,
        processing_class=make_tokenizer(),
    )


def answer(kind: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Return a trainer's advantages, and its loss and metrics under the policy that is trained."""
    import torch

    batch = draw_batch()
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(kind, batch, folder, settings)
        if trainer.ref_model is not None:
            trainer.ref_model.load_state_dict(load(folder, "reference").state_dict())
        trainer.model.eval()
        trainer._metrics["eval"] = trainer._metrics["train"]
        trainer.num_generations_eval = GROUP
        rows = [{"prompt": " ".join(map(str, p))} for p in batch["prompts"] for _ in range(GROUP)]
        inputs = trainer._generate_and_score_completions(rows)
        trainer.model.load_state_dict(load(folder, "policy").state_dict())
        loss = trainer._compute_loss(trainer.model, inputs)
        loss.backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in trainer.model.parameters() if p.grad is not None))
        metrics = {name: values[-1] for name, values in trainer._metrics["train"].items() if name in METRICS}
    return {
        "advantages": inputs["advantages"].tolist(),
        "loss": loss.item(),
        "gradient_norm": norm.item(),
        "metrics": metrics,
    }


def main() -> None:
    """Write the fixture."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    origin = f"trl {version('trl')}, transformers {version('transformers')}, torch {version('torch')}"
    cases = {name: answer(kind, settings) for name, (kind, settings) in CASES.items()}
    FIXTURE.write_text(json.dumps({"origin": origin, "cases": cases}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
