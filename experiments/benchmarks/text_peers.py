"""Libraries that write, score and tune language models, as `peers.py` measures them.

Only the standard library is imported here outside of functions; see `peers.py`.
"""

import contextlib
import json
import random
import time
from pathlib import Path
from typing import Any

from peers import Round


def gpt2_model(vocab: int, width: int, layers: int, heads: int, context: int, threads: int) -> Any:
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


def torch_model(model: dict[str, int] | str, threads: int) -> Any:
    """Return GPT-2's layout of a shape, or what a folder holds, in float32 and in evaluation mode."""
    if not isinstance(model, str):
        return gpt2_model(**model, threads=threads)
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

    whole = torch_model(model, threads)
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

    made = Tokenizer(WordLevel({word(i): i for i in range(vocab)}, unk_token=word(1)))
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

    whole = torch_model(model, threads)
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
        words = fast_tokenizer(PreTrainedTokenizerFast, model["vocab"])
        peer = HFLM(gpt2_model(**model, threads=threads), tokenizer=words, batch_size=batch)
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

    base = torch_model(model, threads)
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


def fast_tokenizer(kind: Any, vocab: int, **settings: Any) -> Any:
    """Return a tokenizer of `vocab` words, which trl wants even for rows that are tokens already."""
    return kind(tokenizer_object=word_tokenizer(vocab), pad_token=word(0), eos_token=word(1), **settings)


def word(token: int) -> str:
    """Return a token's word; none begins another, for special tokens are found within words too."""
    return f"w{token:05}"


def random_texts(count: int, length: int, vocab: int) -> list[str]:
    """Return random texts of that many tokens."""
    import torch

    return [" ".join(map(word, row)) for row in torch.randint(2, vocab, (count, length)).tolist()]
