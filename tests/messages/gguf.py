"""GGUF files that are damaged, of another kind, or contradict themselves."""

import functools
import tempfile
from pathlib import Path

import numpy as np

from jaxrl_align.runtime.huggingface import load_gguf
from tests.runtime.gguf_files import KINDS, TOKENS, write_gguf


def read(damage=lambda data: data, dtype="float32", **written):
    """Load a file with entries changed, or its bytes damaged."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_gguf(Path(folder) / "m.gguf", **written)
        path.write_bytes(damage(path.read_bytes()))
        load_gguf(path, dtype=dtype)


def entry(name, value):
    """Return the call that reads a file with one entry or tensor changed; None removes it."""
    return functools.partial(read, changed={name: value})


def token(name, value):
    return entry(f"tokenizer.ggml.{name}", value)


def unread():
    """Read a file of a type that the package has a name for and no dequantiser."""
    return read(changed={"output_norm.weight": np.zeros(32, np.int32)})


def nan():
    return entry("blk.1.attn_v.weight", np.full((32, 32), np.nan, np.float32))


ONES = np.ones(32, np.float32)
ROWS = {
    "no file": (lambda: load_gguf("nowhere.gguf"), "nowhere.gguf is missing; give a GGUF file"),
    "half precision": (lambda: read(dtype="float16"), "dtype must be float32 or bfloat16; got 'float16'"),
    "another magic": (lambda: read(lambda data: b"GGML" + data[4:]), r"no GGUF file \(GGUF magic invalid\)"),
    "another version": (lambda: read(lambda data: data[:4] + b"\x09" + data[5:]), "appears to be version 9"),
    "cut within the weights": (
        lambda: read(lambda data: data[:-99]),
        r"no GGUF file \(it must go on to byte \d+; got",
    ),
    "cut within the metadata": (lambda: read(lambda data: data[:999]), r"is truncated .*; download it again"),
    "empty": (lambda: read(lambda data: b""), "is truncated or no GGUF file .*empty file"),
    "big-endian": (lambda: read(big_endian=True), "is of the other byte order, which is not supported"),
    "Gemma": (
        entry("general.architecture", "gemma3"),
        "general.architecture must be llama, qwen2, qwen3; got 'gemma3', which is not supported; take the",
    ),
    "an adapter": (entry("general.type", "adapter"), "general.type must be model; got 'adapter'; give the"),
    "one of several": (entry("split.count", 3), "is one of several .split.count.; merge them with llama-gg"),
    "experts": (entry("llama.expert_count", 8), "the metadata llama.expert_count are not supported"),
    "no width": (entry("llama.embedding_length", None), "llama.embedding_length is missing or null"),
    "no epsilon": (entry("llama.attention.layer_norm_rms_epsilon", None), "rms_epsilon is missing or null"),
    "heads in words": (entry("llama.attention.head_count", "4"), "head_count must be of type int; got '4'"),
    "no heads": (entry("llama.attention.head_count", 0), "head_count must be at least 1; got 0"),
    "a context of 4 billion": (entry("llama.context_length", 2**32 - 1), r"must be below 2\^31; got 4294967"),
    "heads by layer": (entry("llama.attention.head_count_kv", [2, 2]), r"must be of type int; got \[2, 2\]"),
    "more layers than there are": (
        entry("llama.block_count", 3),
        "llama.block_count is 3, but there is no tensor of the last layer",
    ),
    "fewer layers": (entry("llama.block_count", 1), "9 unexpected: blk.1.attn_k.weight, blk.1.attn_norm.we"),
    "half-rotated heads": (
        entry("llama.rope.dimension_count", 8),
        "llama.rope.dimension_count must be a head's width 16; got 8",
    ),
    "wider values": (entry("llama.attention.value_length", 8), "value_length must be a head's width 16; go"),
    "YaRN": (entry("llama.rope.scaling.type", "yarn"), "rope_type must be one of .*; got 'yarn', which is"),
    "linear by nothing": (entry("llama.rope.scaling.type", "linear"), "rope.scaling.factor is missing or n"),
    "two rope scalings": (
        functools.partial(
            read,
            changed={
                "llama.rope.scaling.type": "linear",
                "llama.rope.scaling.factor": 2.0,
                "rope_freqs.weight": np.ones(8, np.float32),
            },
        ),
        "the tensors do not fit the metadata: 1 unexpected: rope_freqs.weight; the file is damaged, or a var",
    ),
    "YaRN beside factors": (
        functools.partial(
            read, changed={"llama.rope.scaling.type": "yarn", "rope_freqs.weight": np.ones(8, np.float32)}
        ),
        "rope_type must be one of .*; got 'yarn', which is not supported",
    ),
    "other factors": (entry("rope_freqs.weight", ONES[:8] / 2), "must hold the rope scaling of Llama 3; oth"),
    "missing": (entry("blk.1.ffn_up.weight", None), "do not fit the metadata: 1 missing: blk.1.ffn_up.weig"),
    "left over": (entry("blk.1.attn_sinks", ONES), "do not fit the metadata: 1 unexpected: blk.1.attn_sinks"),
    "mis-shaped": (
        entry("blk.0.attn_k.weight", np.ones((32, 16), np.float32)),
        r"blk.0.attn_k.weight expected \(32, 32\), got \(32, 16\)",
    ),
    "another vocabulary": (
        entry("llama.vocab_size", 39),
        r"token_embd.weight expected \(39, 32\), got \(40, 32\)",
    ),
    "integers": (
        unread,
        "output_norm.weight is quantised as I32, which the gguf package cannot dequantise; t",
    ),
    "NaN": (nan(), "blk.1.attn_v.weight holds NaN or infinite values; the model is broken: take another f"),
    "SentencePiece": (token("model", "llama"), "tokenizer.ggml.model must be gpt2 .*; got 'llama': not supp"),
    "another splitter": (
        token("pre", "tekken"),
        "tokenizer.ggml.pre must be gpt-2, llama-bpe, qwen2, smollm; got 'tekken', which is not supported",
    ),
    "no splitter": (token("pre", None), "tokenizer.ggml.pre is missing or null"),
    "no tokens": (token("tokens", None), "tokenizer.ggml.tokens is missing or null"),
    "numbers for tokens": (token("tokens", [1, 2]), "tokenizer.ggml.tokens must be a list of str; got an"),
    "more tokens than rows": (
        functools.partial(
            read,
            changed={
                "tokenizer.ggml.tokens": [*TOKENS, "é"],
                "tokenizer.ggml.token_type": [*KINDS, 1],
                "llama.vocab_size": 40,
            },
        ),
        "the tokenizer has 41 tokens, but the embedding 40 rows; take both from the same model",
    ),
    "a token twice": (token("tokens", [*TOKENS[:39], "a"]), "must all differ; got 40, of which 39 differ"),
    "fewer types": (token("token_type", KINDS[1:]), "token_type must have 40 entries, as tokens; got 39"),
    "a merge of one": (token("merges", ["a b", "ab"]), "merges must be two tokens each, .*; got 'ab'"),
    "a merge of what is no token": (token("merges", ["a q"]), "tokens and merges make no tokenizer: .*`aq`"),
    "a stop token outside": (token("eos_token_id", 40), "eos_token_id must be below the 40 tokens; got 40"),
    "another stop token outside": (token("eot_token_id", 40), r"in the vocabulary of 40; got \[40\]"),
    "a BOS that is not named": (
        functools.partial(
            read, changed={"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None}
        ),
        "tokenizer.ggml.bos_token_id is missing; tokenizer.ggml.add_bos_token puts it around every text",
    ),
    "a template that is no text": (entry("tokenizer.chat_template", 3), "chat_template must be of type str"),
}
CASES = {f"GGUF: {name}": (call, ValueError, says) for name, (call, says) in ROWS.items()}
