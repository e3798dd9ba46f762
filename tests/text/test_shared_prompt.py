"""Completions that stand side by side behind one prompt, against each read alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from jaxrl_align.text import completion_log_probs, encode_completions
from jaxrl_align.types import PaddedTokens
from tests.tiny import LM, PARAMS, VOCAB, disturb

WINDOWED = TransformerConfig(VOCAB, 16, 2, 2, 80, positions="rotary", window=4, window_layers=(1,))
PROMPT = [3, 9, 4]
TEXTS = [[5, 6, 7, 8], [7], [2, 2, 3], [19, 4], [11, 5, 5, 6, 1]]


def place(ids, places, width, fill=0):
    """Return one text whose tokens stand at the given places."""
    tokens, real = np.full(width, fill), np.zeros(width, np.float32)
    tokens[places], real[places] = ids, 1.0
    return PaddedTokens(jnp.asarray(tokens, jnp.int32), jnp.asarray(real))


def stack(texts):
    return PaddedTokens(*(jnp.stack(leaf) for leaf in zip(*texts, strict=True)))


def alone(lm, params, prompts, texts):
    """Return the log-probabilities of each text's tokens behind its prompt, nothing before or between."""
    width = max(len(prompt) + len(text) for prompt, text in zip(prompts, texts, strict=True))
    read = jax.jit(lambda row: jax.nn.log_softmax(lm.logits(params, lm.encode(params, row)[0])))
    found = []
    for prompt, text in zip(prompts, texts, strict=True):
        ids = [*prompt, *text, *[0] * (width - len(prompt) - len(text))]  # what follows is not read
        table = np.asarray(read(jnp.array(ids)))
        found.append([table[i - 1, ids[i]] for i in range(len(prompt), len(prompt) + len(text))])
    return found


RIGHT = [place(t, range(len(t)), 6) for t in TEXTS]
LEFT = [place(t, range(6 - len(t), 6), 6, fill=7) for t in TEXTS]
HOLES = [place(t, [0, 2, 3, 5, 6][-len(t) :], 7) for t in TEXTS]
PROMPTS = [place(PROMPT, [0, 1, 2], 3), place(PROMPT, [2, 3, 4], 5), place(PROMPT, [0, 1, 2], 6, fill=9)]


@pytest.mark.parametrize("config", [LM.config, WINDOWED], ids=["gpt2", "window"])
def test_log_probs_are_those_of_each_text_behind_the_prompt_alone(config):
    """Prompts and completions are padded on the left, on the right or in between, with any tokens."""
    lm = make_transformer(config)
    params = disturb(lm.init(jax.random.key(5)), jax.random.key(6), 0.3)
    expected = alone(lm, params, [PROMPT] * 5, TEXTS)
    read = jax.jit(lambda p, c: completion_log_probs(lm, params, p, c))
    for prompt, texts in zip(PROMPTS, (RIGHT, LEFT, HOLES), strict=True):
        got, texts = read(prompt, stack(texts)), stack(texts)
        assert got.shape == texts.real.shape
        for row, real, wanted in zip(np.asarray(got), np.asarray(texts.real), expected, strict=True):
            np.testing.assert_allclose(row[real > 0], wanted, atol=1e-5)
            assert not row[real == 0].any()


def test_one_completion_is_read_without_segments():
    got = jax.jit(lambda p, c: completion_log_probs(LM, PARAMS, p, c))(PROMPTS[1], stack(LEFT[:1]))
    np.testing.assert_allclose(got[:, 2:], alone(LM, PARAMS, [PROMPT], TEXTS[:1]), atol=1e-5)


def test_logits_are_computed_for_completions_alone():
    seen = []
    spy = LM._replace(logits=lambda params, hidden: seen.append(hidden.shape) or LM.logits(params, hidden))
    long = PaddedTokens(jnp.ones(40, jnp.int32), jnp.ones(40))
    jax.eval_shape(lambda p, c: completion_log_probs(spy, PARAMS, p, c), long, stack(RIGHT))
    assert seen == [(5 * 6, 16)]
    hidden = jax.eval_shape(lambda p, c: encode_completions(LM, PARAMS, p, c), long, stack(RIGHT))
    assert hidden.shape == (40 + 5 * 6, 16)
