"""Libraries that write and train language models, as `peers.py` measures them.

Only the standard library is imported here outside of functions; see `peers.py`.
"""

import contextlib
import json
import random
import time
from pathlib import Path
from typing import Any

from peers import Round


def _gpt2(vocab: int, width: int, layers: int, heads: int, context: int, threads: int) -> Any:
    """Return a random GPT-2 in evaluation mode, for `threads` torch threads."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    torch.set_num_threads(threads)
    config = GPT2Config(
        vocab_size=vocab,
        n_embd=width,
        n_layer=layers,
        n_head=heads,
        n_positions=context,
        resid_pdrop=0.0,
        embd_pdrop=0.0,
        attn_pdrop=0.0,
        bos_token_id=None,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config).eval()


def _load(model: dict[str, int] | str, threads: int) -> Any:
    """Return GPT-2's layout of a shape, or what a folder holds, in float32 and in evaluation mode."""
    if not isinstance(model, str):
        return _gpt2(**model, threads=threads)
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(threads)
    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


def transformers_generate(
    model: dict[str, int] | str, batch: int, prompt: int, new: int, sample: bool, repeats: int, threads: int
) -> Round:
    """Generate `new` tokens after each of `batch` prompts with the cache, no early stop, `repeats` times.

    The model is GPT-2's layout of a shape, or what a folder holds, in float32.
    """
    import torch

    whole = _load(model, threads)
    tokens = torch.randint(2, whole.config.vocab_size, (batch, prompt))
    arguments = {
        "min_new_tokens": new,
        "attention_mask": torch.ones_like(tokens),
        "max_new_tokens": new,
        "do_sample": sample,
        "top_k": 0 if sample else None,
        "use_cache": True,
        "pad_token_id": 0,
    }

    @torch.inference_mode()
    def measure() -> float:
        begin = time.perf_counter()
        for _ in range(repeats):
            written = whole.generate(tokens, **arguments)
        seconds = time.perf_counter() - begin
        if written.shape != (batch, prompt + new):
            raise RuntimeError(f"expected {(batch, prompt + new)} tokens, got {tuple(written.shape)}")
        return repeats * batch * new / seconds

    measure()
    return measure


Item = tuple[list[int], list[list[int]]]
"""Token ids of a context, and of its options."""


def draw_items(
    vocab: list[int], count: int, shared: int, context: tuple[int, int], option: tuple[int, int], options: int
) -> list[Item]:
    """Draw multiple-choice items of random tokens; lengths are uniform between the two ends.

    `shared` tokens, the same for all, stand before every context.
    """
    draw = random.Random(0)
    tokens = lambda ends: draw.choices(vocab, k=draw.randint(*ends))
    before = tokens((shared, shared))
    return [(before + tokens(context), [tokens(option) for _ in range(options)]) for _ in range(count)]


def plain_words(model: dict[str, int] | str) -> list[int]:
    """Return the tokens that items are drawn from: a shape's but for two, a folder's words of letters."""
    if not isinstance(model, str):
        return list(range(2, model["vocab"]))
    vocab = json.loads((Path(model) / "tokenizer.json").read_text())["model"]["vocab"]
    plain = lambda word: word.isalpha() and word.isascii() and len(word) > 2
    return sorted(i for piece, i in vocab.items() if piece[0] == "Ġ" and plain(piece[1:]))


def word_tokenizer(vocab: int) -> Any:
    """Return the `tokenizers` backend of a shape's words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit

    made = Tokenizer(WordLevel({_word(i): i for i in range(vocab)}, unk_token=_word(1)))
    made.pre_tokenizer = WhitespaceSplit()
    return made


def as_texts(decode: Any, items: list[Item]) -> list[tuple[str, str]]:
    """Return every option as a pair of texts; the space between them begins the option."""
    text = lambda ids: " " + decode(ids).lstrip()
    return [(text(context), text(option)) for context, options in items for option in options]


def transformers_choices(
    model: dict[str, int] | str, items: dict[str, Any], batch: int, threads: int
) -> Round:
    """Score every option behind its context, in padded batches of like length, items a second."""
    import torch

    whole = _load(model, threads)
    drawn = draw_items(plain_words(model), **items)
    rows = [(context, option) for context, options in drawn for option in options]

    @torch.inference_mode()
    def measure() -> float:
        begin = time.perf_counter()
        scores = [0.0] * len(rows)
        order = sorted(range(len(rows)), key=lambda i: -len(rows[i][0]) - len(rows[i][1]))
        for start in range(0, len(order), batch):
            part = order[start : start + batch]
            ids = [rows[i][0] + rows[i][1] for i in part]
            width = max(map(len, ids))
            tokens = torch.tensor([row + [0] * (width - len(row)) for row in ids])
            real = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in ids])
            logits = whole(input_ids=tokens, attention_mask=real).logits
            for j, i in enumerate(part):
                first, last = len(rows[i][0]), len(ids[j])
                log_prob = logits[j, first - 1 : last - 1].log_softmax(-1)
                scores[i] = float(log_prob.gather(1, tokens[j, first:last, None]).sum())
        return len(drawn) / (time.perf_counter() - begin)

    measure()
    return measure


def lm_eval_choices(model: dict[str, int] | str, items: dict[str, Any], batch: int, threads: int) -> Round:
    """Ask lm-evaluation-harness's Hugging Face backend for every option's likelihood, items a second."""
    import os
    from types import SimpleNamespace

    os.environ["HF_HUB_OFFLINE"] = os.environ["TQDM_DISABLE"] = "1"
    import torch
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

    torch.set_num_threads(threads)
    if isinstance(model, str):
        peer = HFLM(model, device="cpu", dtype="float32", batch_size=batch)
    else:
        words = _tokenizer(PreTrainedTokenizerFast, model["vocab"])
        peer = HFLM(_gpt2(**model, threads=threads), tokenizer=words, batch_size=batch)
    drawn = draw_items(plain_words(model), **items)
    pairs = as_texts(peer.tokenizer.decode, drawn)
    requests = [SimpleNamespace(args=pair, task_name="") for pair in pairs]

    def measure() -> float:
        begin = time.perf_counter()
        with open(os.devnull, "w") as silent, contextlib.redirect_stderr(silent):
            peer.loglikelihood(requests, disable_tqdm=True)
        return len(drawn) / (time.perf_counter() - begin)

    measure()
    return measure


def trl_sft(shape: dict[str, int], batch: int, length: int, steps: int, threads: int) -> Round:
    """Fine-tune by trl's SFTTrainer with AdamW on rows of `length` tokens, `steps` steps a round."""
    import torch
    from trl import SFTConfig, SFTTrainer

    rows = torch.randint(2, shape["vocab"], (batch * (steps + 2), length)).tolist()
    model = _gpt2(**shape, threads=threads)
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
        whole = AutoModelForSequenceClassification.from_config(_gpt2(**model, threads=threads).config)
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
    answers = lambda: [f" {text} {_word(1)}" for text in _texts(count, completion - 1, model["vocab"])]
    prompts = _texts(count, prompt, model["vocab"])
    rows = {"prompt": prompts, "chosen": answers(), "rejected": answers()}
    settings = {"max_length": prompt + completion, "precompute_ref_log_probs": True}
    whole = _gpt2(**model, threads=threads)
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

    whole = _load(model, threads)
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
    rows = {"prompt": _texts(prompts * (steps + 2), prompt, whole.config.vocab_size)}
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

    policy, reference = (_gpt2(**model, threads=threads) for _ in range(2))
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
        processing_class=_tokenizer(PreTrainedTokenizerFast, model["vocab"], padding_side="left"),
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
        processing_class=_tokenizer(PreTrainedTokenizerFast, model.config.vocab_size),
        callbacks=[watch],
        **options,
    )

    def measure() -> float:
        with open(os.devnull, "w") as silent, contextlib.redirect_stdout(silent):
            made.train()
        return steps * batch / (watch.end - watch.begin)

    measure()
    return measure


def peft_lora(
    model: dict[str, int] | str,
    targets: list[str],
    rank: int,
    batch: int,
    length: int,
    steps: int,
    threads: int,
) -> Round:
    """Train peft's LoRA by AdamW behind a clipped norm, `steps` steps a round, tokens a second.

    The model is GPT-2's layout of a shape, or what a folder holds, in float32.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    base = _load(model, threads)
    tuned = get_peft_model(base, LoraConfig(r=rank, lora_alpha=rank, target_modules=targets)).train()
    trained = [p for p in tuned.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.0)
    rows = torch.randint(2, base.config.vocab_size, (batch, length))

    def measure() -> float:
        begin = time.perf_counter()
        for _ in range(steps):
            tuned(input_ids=rows, labels=rows).loss.backward()
            torch.nn.utils.clip_grad_norm_(trained, 1.0)
            optimizer.step()
            optimizer.zero_grad()
        return steps * batch * length / (time.perf_counter() - begin)

    measure()
    return measure


def _tokenizer(kind: Any, vocab: int, **settings: Any) -> Any:
    """Return a tokenizer of `vocab` words, which trl wants even for rows that are tokens already."""
    return kind(tokenizer_object=word_tokenizer(vocab), pad_token=_word(0), eos_token=_word(1), **settings)


def _word(token: int) -> str:
    """Return a token's word; none begins another, for special tokens are found within words too."""
    return f"w{token:05}"


def _texts(count: int, length: int, vocab: int) -> list[str]:
    """Return random texts of that many tokens."""
    import torch

    return [" ".join(map(_word, row)) for row in torch.randint(2, vocab, (count, length)).tolist()]
