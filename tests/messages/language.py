"""Bad prompts, tokens, scores and temperatures."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align import actors, align, data, nets, text
from jaxrl_align.types import PaddedTokens

LM = nets.make_transformer(nets.TransformerConfig(20, width=8, layers=1, heads=1, context=32))
QUERY = text.TextConfig(prompt_length=3, response_length=2)
BPE = data.train_bpe(["a cat"], 258)


def ask(tokens, real=None, score=lambda *_: 0.0):
    """Let a text actor answer these prompts."""
    if not isinstance(tokens, str):
        tokens = np.asarray(tokens)
        tokens = PaddedTokens(tokens, np.ones(tokens.shape) if real is None else np.asarray(real))
    hparams, params = align.RLHFHParams(), jax.eval_shape(LM.init, jax.random.key(0))
    actor, policy = actors.make_text_actor(LM, score, QUERY), align.init_policy(LM, params)
    start = actor.init_env(None, hparams), jax.random.key(0), hparams
    roll = lambda params, base: actor.rollout(params, actors.Frozen(base, None), *start, tokens)
    return jax.eval_shape(roll, policy, params)


def sampled(tokens):
    return align.make_rlhf_learner(LM, None, QUERY, lambda key: PaddedTokens(tokens, jnp.ones(tokens.shape)))


def write(tool, **change):
    """Complete or stream a prompt."""
    options = {"response_length": 2, "stop_tokens": (1,), "pad_token": 0} | change
    if tool == "stream":
        return next(text.stream(LM, None, [3], jax.random.key(0), **options))
    return text.make_completer(LM, **options)


def heat(temperature):
    hparams = align.RLHFHParams(temperature=temperature)
    return align.make_rlhf_learner(LM, None, QUERY).init(jax.random.key(0), hparams, {})


ROW = [[3, 4, 5]]
CASES = {
    "prompts: a bare array": (lambda: ask("rows"), ValueError, r"prompts must be PaddedTokens.*; left_pad"),
    "prompts: rank 1": (lambda: ask(ROW[0]), ValueError, r"integers and their mask, each \[B, 3\].*\(3,\)"),
    "prompts: none": (lambda: ask(np.zeros((0, 3), int)), ValueError, r"B >= 1; got int32 \(0, 3\)"),
    "prompts: of another length": (lambda: ask([[3, 4]]), ValueError, r"got int32 \(1, 2\) .*; pad or cut"),
    "prompts: fractions": (lambda: ask([[3.0, 4.0, 5.0]]), ValueError, r"must be integers .*got float"),
    "prompts: a mask of another shape": (lambda: ask(ROW, [1, 1, 1]), ValueError, r"\(1, 3\) and \(3,\)"),
    "prompts: beyond the vocabulary": (
        lambda: ask([[3, 4, 20]]),
        ValueError,
        "from 0 to 19; got 3 to 20; was",
    ),
    "prompts: negative": (lambda: ask([[-1, 4, 5]]), ValueError, "from 0 to 19; got -1 to 5; was another"),
    "prompts: all padding": (lambda: ask(ROW, [[0, 0, 0]]), ValueError, r"at least one token; .*rows \[0\]"),
    "prompts: a hole": (lambda: ask(ROW, [[1, 0, 1]]), ValueError, r"got holes, .* in rows \[0\]; left_pad"),
    "prompts: right-padded": (lambda: ask(ROW, [[1, 1, 0]]), ValueError, r"none at its end, in rows \[0\]"),
    "prompts: sampled beyond the vocabulary": (
        lambda: sampled(jnp.full((2, 3), 20)),
        ValueError,
        "tokens of prompts must be from 0 to 19; got 20 to 20; was another tokenizer used",
    ),
    "score: of each token": (
        lambda: ask(ROW, score=lambda model, tokens, mask: mask),
        ValueError,
        r"score must return one number for a text, shape \[\]; got \[5\]; take its sum",
    ),
    "score: of length 1": (
        lambda: ask(ROW, score=lambda model, tokens, mask: mask[:1]),
        ValueError,
        r"one number for a text, shape \[\]; got \[1\]",
    ),
    "RLHF: temperature 0": (lambda: heat(0), ValueError, "temperature must be above 0; got 0; 1 leaves"),
    "RLHF: temperature -1": (lambda: heat(-1.0), ValueError, "temperature must be above 0; got -1.0; 1"),
    "RLHF: temperature NaN": (lambda: heat(np.nan), ValueError, "temperature must be a number; got nan"),
    "text: no padding token": (
        lambda: text.TextConfig(3, 2, pad_token=None),
        ValueError,
        "pad_token must be a token id; got None; one token may stop and pad",
    ),
    "text: no stop token": (
        lambda: text.TextConfig(3, 2, stop_token=None),
        ValueError,
        "stop_token must be a token id; got None",
    ),
    "text: several stop tokens, one of them none": (
        lambda: text.TextConfig(3, 2, stop_token=(1, None)),
        ValueError,
        "stop_token must be a token id; got None; one token may stop and pad, and a tuple of several stop",
    ),
    "text: an empty tuple of stop tokens": (
        lambda: text.TextConfig(3, 2, stop_token=()),
        ValueError,
        "stop_token must be a token id, or several; got none; take the tokenizer's",
    ),
    "pad: no token": (
        lambda: data.left_pad([], 3, None),
        ValueError,
        "pad_token must be a token id; got None",
    ),
    "demonstrations: no padding token": (
        lambda: data.cut_sentences(
            ["a cat"],
            data.Tokenizer(BPE._backend, {"eos_token": "<stop>"}),
            np.random.default_rng(0),
            prompt_length=2,
            response_length=2,
        ),
        ValueError,
        "must have pad and stop tokens; got None and 1; name them, .*one token may be both",
    ),
} | {
    f"{tool}: {what}": (lambda tool=tool, change=change: write(tool, **change), ValueError, says)
    for tool in ("completer", "stream")
    for what, change, says in (
        ("no stop token", {"stop_tokens": ()}, r"stop_tokens must name some token.*20; got \[\] and 0; take"),
        ("a stop token None", {"stop_tokens": (None,)}, r"stop_tokens must name .* got \[None\] and 0"),
        (
            "a stop token beyond",
            {"stop_tokens": (1, 20)},
            r"lie in the vocabulary of 20; got \[1, 20\] and 0",
        ),
        ("padding beyond", {"pad_token": -1}, r"lie in the vocabulary of 20; got \[1\] and -1; take the"),
        (
            "padding that stops",
            {"pad_token": 1},
            r"no stop token; got 1, stop_tokens=\[1\]; leave pad_token out",
        ),
    )
}
