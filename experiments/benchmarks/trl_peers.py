"""trl's trainers, as `peers.py` measures them.

Only the standard library is imported here outside of functions; see `peers.py`.
"""

import contextlib
import time
from typing import Any

from peers import Round
from text_peers import fast_tokenizer, gpt2_model, random_texts, torch_model, word


def trl_sft(shape: dict[str, int], batch: int, length: int, steps: int, threads: int) -> Round:
    """Fine-tune by trl's SFTTrainer with AdamW on rows of `length` tokens, `steps` steps a round."""
    import torch
    from trl import SFTConfig, SFTTrainer

    rows = torch.randint(2, shape["vocab"], (batch * (steps + 2), length)).tolist()
    model = gpt2_model(**shape, threads=threads)
    rate = _trl_round(SFTTrainer, SFTConfig, model, {"input_ids": rows}, batch, steps, {"max_length": length})
    return lambda: rate() * length


def trl_reward(
    model: dict[str, int] | str,
    targets: list[str] | None,
    rank: int,
    batch: int,
    prompt: int,
    completion: int,
    steps: int,
    threads: int,
) -> Round:
    """Train a reward model by trl's RewardTrainer with AdamW, `steps` steps a round, pairs a second.

    The model is GPT-2's layout of a shape, or what a folder holds, in float32; with targets LoRA is trained.
    """
    import torch
    from transformers import AutoModelForSequenceClassification
    from trl import RewardConfig, RewardTrainer

    torch.set_num_threads(threads)
    if isinstance(model, str):
        kind = AutoModelForSequenceClassification
        whole = kind.from_pretrained(model, dtype=torch.float32, num_labels=1)
    else:
        whole = AutoModelForSequenceClassification.from_config(gpt2_model(**model, threads=threads).config)
        whole.config.num_labels = 1
        whole.score = torch.nn.Linear(whole.config.hidden_size, 1, bias=False)
    whole.config.pad_token_id = 0
    lora = None
    if targets is not None:
        from peft import LoraConfig

        lora = LoraConfig(task_type="SEQ_CLS", r=rank, lora_alpha=rank, target_modules=targets)
    count, vocab = batch * (steps + 2), whole.config.vocab_size
    first = torch.randint(2, vocab, (count, prompt))
    side = lambda: torch.cat([first, torch.randint(2, vocab, (count, completion))], 1).tolist()
    rows = {"chosen_ids": side(), "rejected_ids": side()}
    settings = {"max_length": prompt + completion}
    return _trl_round(RewardTrainer, RewardConfig, whole, rows, batch, steps, settings, peft_config=lora)


def trl_dpo(
    model: dict[str, int], batch: int, prompt: int, completion: int, steps: int, threads: int
) -> Round:
    """Train by trl's DPOTrainer with AdamW, `steps` steps a round, pairs a second.

    The reference's log-probabilities are computed before, once for all rows.
    """
    from trl import DPOConfig, DPOTrainer

    count = batch * (steps + 2)
    answers = lambda: [f" {text} {word(1)}" for text in random_texts(count, completion - 1, model["vocab"])]
    prompts = random_texts(count, prompt, model["vocab"])
    rows = {"prompt": prompts, "chosen": answers(), "rejected": answers()}
    settings = {"max_length": prompt + completion, "precompute_ref_log_probs": True}
    whole = gpt2_model(**model, threads=threads)
    return _trl_round(DPOTrainer, DPOConfig, whole, rows, batch, steps, settings)


def trl_grpo(
    model: dict[str, int] | str,
    targets: list[str] | None,
    rank: int,
    prompts: int,
    group: int,
    prompt: int,
    new: int,
    steps: int,
    threads: int,
) -> Round:
    """Train by trl's GRPOTrainer with AdamW and no KL penalty, `steps` updates a round, updates a second.

    The model is GPT-2's layout of a shape, or what a folder holds, in float32; with targets LoRA is trained.
    """
    from trl import GRPOConfig, GRPOTrainer

    whole = torch_model(model, threads)
    whole.generation_config.eos_token_id = 1
    options = {}
    if targets is not None:
        from peft import LoraConfig

        options["peft_config"] = LoraConfig(r=rank, lora_alpha=rank, target_modules=targets)
    settings = {
        "num_generations": group,
        "max_completion_length": new,
        "generation_kwargs": {"min_new_tokens": new},
    }
    even = lambda completion_ids, **_: [float(sum(i % 2 == 0 for i in ids)) for ids in completion_ids]
    rows = {"prompt": random_texts(prompts * (steps + 2), prompt, whole.config.vocab_size)}
    batch = prompts * group
    rate = _trl_round(
        GRPOTrainer, GRPOConfig, whole, rows, batch, steps, settings, reward_funcs=even, **options
    )
    return lambda: rate() / batch


def trl_ppo(
    model: dict[str, int], batch: int, prompt: int, new: int, epochs: int, steps: int, threads: int
) -> Round:
    """Train by trl's experimental PPOTrainer, `epochs` epochs of one minibatch, episodes a second.

    Policy, reference, value model and reward model are of one shape. trl 1.12 still has this trainer.
    """
    import os
    import tempfile

    os.environ["HF_HUB_OFFLINE"] = os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import torch
    from datasets import Dataset
    from transformers import AutoModelForSequenceClassification, PreTrainedTokenizerFast
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    policy, reference = (gpt2_model(**model, threads=threads) for _ in range(2))
    policy.generation_config.eos_token_id = None

    def classifier() -> Any:
        made = AutoModelForSequenceClassification.from_config(policy.config)
        made.score = torch.nn.Linear(made.config.hidden_size, 1, bias=False)
        made.config.num_labels, made.config.pad_token_id = 1, 0
        return made

    rows = torch.randint(2, model["vocab"], (batch * (steps + 1), prompt)).tolist()
    made = PPOTrainer(
        args=PPOConfig(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=batch,
            local_rollout_forward_batch_size=batch,
            num_mini_batches=1,
            num_ppo_epochs=epochs,
            total_episodes=batch * steps,
            num_sample_generations=0,
            response_length=new,
            learning_rate=1e-4,
            **_QUIET,
        ),
        processing_class=fast_tokenizer(PreTrainedTokenizerFast, model["vocab"], padding_side="left"),
        model=policy,
        ref_model=reference,
        reward_model=classifier(),
        value_model=classifier(),
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        eval_dataset=Dataset.from_dict({"input_ids": rows[:batch]}),
    )

    def measure() -> float:
        begin = time.perf_counter()
        with open(os.devnull, "w") as silent, contextlib.redirect_stdout(silent):
            made.train()
        return steps * batch / (time.perf_counter() - begin)

    measure()
    return measure


_QUIET = {
    "bf16": False,
    "fp16": False,
    "use_cpu": True,
    "gradient_checkpointing": False,
    "save_strategy": "no",
    "logging_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
}
"""Settings of trl's trainers that leave nothing but the training."""


def _trl_round(
    trainer: Any,
    config: Any,
    model: Any,
    rows: dict,
    batch: int,
    steps: int,
    settings: dict[str, Any],
    **options: Any,
) -> Round:
    """Return the rate, rows a second, of one of trl's trainers from its second step to its last."""
    import os
    import tempfile

    os.environ["HF_HUB_OFFLINE"] = "1"
    from datasets import Dataset
    from transformers import PreTrainedTokenizerFast, TrainerCallback

    class Watch(TrainerCallback):
        """Notes when the second and the last step begin and end."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                self.begin = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.end = time.perf_counter()

    watch = Watch()
    made = trainer(
        model=model,
        args=config(
            output_dir=tempfile.mkdtemp(),
            per_device_train_batch_size=batch,
            max_steps=steps + 1,
            learning_rate=1e-3,
            optim="adamw_torch",
            weight_decay=0.01,
            **_QUIET,
            **settings,
        ),
        train_dataset=Dataset.from_dict(rows),
        processing_class=fast_tokenizer(PreTrainedTokenizerFast, model.config.vocab_size),
        callbacks=[watch],
        **options,
    )

    def measure() -> float:
        with open(os.devnull, "w") as silent, contextlib.redirect_stdout(silent):
            made.train()
        return steps * batch / (watch.end - watch.begin)

    measure()
    return measure
