"""The command `best-of-n`: the best of several answers by a reward, without training."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from tyro.conf import OmitArgPrefixes

from jaxrl_align import align, feedback
from jaxrl_align.checks import check_counts
from jaxrl_align.cli.bases import Base, load_base, pad_of
from jaxrl_align.cli.datasets import as_chat, round_up
from jaxrl_align.cli.judges import check_tokenizers, hint_form, load_judge
from jaxrl_align.cli.runs.course import readable_rewards
from jaxrl_align.cli.serve import ReadOptions, SampleOptions, sampling, write_rows
from jaxrl_align.losses import best_of_n_kl
from jaxrl_align.text import TextConfig
from jaxrl_align.types import PaddedTokens


@dataclass(frozen=True)
class BestOfN:
    """Answer prompts n times and keep the answer that a reward scores highest (Nakano et al. 2021).

    Rows: {"prompt"} or {"messages"}, and any further fields for a reward function. What it writes,
    {"prompt", "completion", "score"}, is what `sft` reads: trained on, it is rejection-sampling fine-tuning.
    """

    source: OmitArgPrefixes[ReadOptions]
    reward: str
    """A reward model's folder, or module:function of the working directory,
    f(prompts, completions, **columns) -> one number for each; columns are the rows' further fields."""
    data: str
    """A JSONL file of prompts."""
    out: str
    """A JSONL file of the prompts with their best answers."""
    n: int = 8
    """Answers to each prompt."""
    how: OmitArgPrefixes[SampleOptions] = SampleOptions(tokens=48, temperature=1.0)
    chat: bool = False
    """Prompts that are plain texts are the user's turn in the model's chat template."""
    batch_size: int = 4
    """Prompts that are answered at once."""


def run_best_of_n(options: BestOfN, argv: Sequence[str]) -> None:
    """Answer, choose, write; say what choosing gained and how far it moved the policy."""
    begin, source = time.monotonic(), options.source
    check_counts(n=options.n, batch_size=options.batch_size)
    own = feedback.read_prompts(options.data).rows
    rows = as_chat(own, options.chat)
    judge = load_judge(options.reward)
    base = load_base(source.model, base=source.base, hub=source.hub, fold=False)
    check_tokenizers(judge, base.tokenizer)
    ids = feedback.tokenise_prompts(base.tokenizer, rows)
    room = base.config.context - options.how.tokens
    length = round_up(max(map(len, ids)), room) if room > 0 else 0
    if max(map(len, ids)) > length:
        raise ValueError(
            f"prompt and answer must fit the context of {base.config.context} tokens; got a prompt of "
            f"{max(map(len, ids))} and --tokens {options.how.tokens}; shorten one of them"
        )
    prompts = feedback.pad_prompts(ids, length, pad_of(base))
    score = judge.as_score(base.tokenizer, prompts, own)
    with readable_rewards():
        tokens, mask, scores = choose(base, options, score, judge.model, prompts)
    best = scores.max(axis=1)
    written = [
        {"prompt": row.prompt, **row.columns, "completion": decode(base, t, m), "score": float(s)}
        for row, t, m, s in zip(rows, tokens, mask, best, strict=True)
    ]
    write_rows(options.out, written)
    print(gain_text(scores) + hint_form(options.reward, options.chat))
    print(f"[{len(rows)} prompts in {options.out}; {time.monotonic() - begin:.1f} s]")


def choose(
    base: Base, options: BestOfN, score: Any, reward_model: Any, prompts: PaddedTokens
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the best answers' tokens and masks [N, T], and the scores of all answers [N, n]."""
    settings, temperature = sampling(options.how, base)
    config = TextConfig(
        prompts.tokens.shape[1], options.how.tokens, base.stop_tokens, pad_of(base), missing_stop="keep"
    )

    @jax.jit
    def answer(params: Any, reward_model: Any, prompts: PaddedTokens, keys: Any) -> align.Best:
        one = lambda prompt, key: align.best_of_n(
            base.lm,
            score,
            config,
            params,
            reward_model,
            prompt,
            key,
            n=options.n,
            temperature=temperature,
            filters=settings["filters"],
        )
        return jax.vmap(one)(prompts, keys)

    count, size = len(prompts.tokens), min(options.batch_size, len(prompts.tokens))
    keys = jax.random.split(jax.random.key(options.how.seed), count)
    found = []
    for i in range(0, count, size):
        place = np.minimum(np.arange(i, i + size), count - 1)  # the last batch is filled up
        rows = jax.tree.map(lambda x, place=place: jnp.asarray(np.asarray(x)[place]), prompts)
        best = jax.tree.map(np.asarray, answer(base.params, reward_model, rows, keys[place]))
        kept = slice(0, min(size, count - i))
        found.append((best.response.tokens[kept], best.response.mask[kept], best.scores[kept]))
    tokens, mask, scores = zip(*found, strict=True)
    return np.concatenate(tokens), np.concatenate(mask), np.concatenate(scores)


def decode(base: Base, tokens: np.ndarray, mask: np.ndarray) -> str:
    """Return the text of an answer [T]."""
    return base.tokenizer.decode(tokens[mask > 0])


def gain_text(scores: np.ndarray) -> str:
    """Return the mean score of the best of 1, 2, 4, ... answers, by scores [N, n], and the KL of choosing."""
    most = scores.shape[1]
    counts = sorted({*(2**i for i in range(most.bit_length()) if 2**i <= most), most})
    lines = []
    for n in counts:
        mean = float(np.mean(jax.vmap(lambda s, n=n: align.expected_best(s, s, n))(jnp.asarray(scores))))
        lines.append(f"best of {n}: score {mean:.4g}, at most {float(best_of_n_kl(n)):.2f} nats away")
    return "\n".join(lines)
