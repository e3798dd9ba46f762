"""Filters by hand, prompts of any length, and what reaches people."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from jaxrl_align.text.completion import bucket_length, make_completer, stream
from jaxrl_align.text.generation import (
    BARRED,
    Filters,
    TextConfig,
    filter_logits,
    first_largest,
    generate,
    invert_sum,
    penalise,
    sample_token,
)
from jaxrl_align.types import PaddedTokens
from tests.tiny import BIGRAM, VOCAB, favour

PAD, STOP, T = 0, 1, 6
LM = make_transformer(TransformerConfig(VOCAB, width=16, layers=1, heads=2, context=48))
PARAMS = jax.tree.map(lambda x: 5.0 * x, jax.jit(LM.init)(jax.random.key(0)))
RNG = np.random.default_rng(0)
PROMPTS = [RNG.integers(2, VOCAB, n).tolist() for n in (3, 1, 7)]
PROMPTS[2][1:4] = PAD, STOP, PAD  # a prompt may hold any token
PROBABILITY = np.array([0.4, 0.3, 0.15, 0.1, 0.05])


def kept(filters, probability=PROBABILITY):
    """Return the probabilities after the filter."""
    return np.asarray(jax.nn.softmax(filter_logits(jnp.log(jnp.asarray(probability)), filters)))


@pytest.mark.parametrize(
    "share, index", [(0.0, 1), (0.19, 1), (0.21, 3), (0.49, 3), (0.51, 4), (1 - 2**-23, 4)]
)
def test_a_share_of_the_whole_finds_its_index(share, index):
    """Weights 0, 1, 0, 1.5, 2.5, 0: what weighs nothing is passed over, at either end too."""
    assert int(invert_sum(jnp.array([0.0, 1.0, 0.0, 1.5, 2.5, 0.0]), jnp.float32(share))) == index


def test_tokens_are_drawn_as_often_as_their_probability_says():
    """300 logits in three blocks, one of them barred whole, the last one short: a chi-squared test."""
    logits = np.random.default_rng(0).normal(size=300)
    logits[128:256], logits[7] = BARRED, BARRED
    probability = np.exp(logits) / np.exp(logits).sum()
    count = 200_000
    draw = jax.jit(jax.vmap(sample_token, (0, None)))
    drawn = draw(jax.random.split(jax.random.key(0), count), jnp.asarray(logits, jnp.float32))
    found = np.bincount(drawn, minlength=300)
    possible = probability > 0
    assert found.shape == (300,) and not found[~possible].any()
    expected = count * probability[possible]
    statistic = np.sum((found[possible] - expected) ** 2 / expected)
    free = possible.sum() - 1
    assert abs(statistic - free) < 4 * np.sqrt(2 * free)


@pytest.mark.parametrize(
    "filters, count",
    [
        (Filters(), 5),
        (Filters(top_k=1), 1),
        (Filters(top_k=3), 3),
        (Filters(top_k=9), 5),
        (Filters(top_p=0.39), 1),  # the likeliest always stays
        (Filters(top_p=0.41), 2),
        (Filters(top_p=0.69), 2),
        (Filters(top_p=0.71), 3),
        (Filters(min_p=0.2), 4),  # at least 0.08
        (Filters(min_p=0.3), 3),  # at least 0.12
        (Filters(min_p=1.0), 1),
        (Filters(top_k=4, top_p=0.5, min_p=0.9), 1),
        (Filters(top_k=2, top_p=0.58), 2),  # of the renormalised 4/7 and 3/7
        (Filters(top_k=2, top_p=0.57), 1),
    ],
)
def test_filters_keep_the_likeliest_and_renormalise(filters, count):
    """Probabilities 0.4, 0.3, 0.15, 0.1, 0.05, in another order too."""
    expected = np.where(np.arange(5) < count, PROBABILITY, 0.0)
    np.testing.assert_allclose(kept(filters), expected / expected.sum(), rtol=1e-5, atol=1e-7)
    order = np.array([3, 0, 4, 2, 1])
    np.testing.assert_allclose(kept(filters, PROBABILITY[order]), kept(filters)[order], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("filters", [Filters(top_k=2), Filters(top_p=0.5), Filters(min_p=0.5)])
def test_what_is_left_out_stays_out_at_any_temperature(filters):
    """Logits of about -1e8 to -1e10, where those that are left out must be lower still."""
    cold = filter_logits(jnp.log(jnp.asarray(PROBABILITY[::-1])) / 1e-8 - 1e10, filters)
    assert int(jnp.argmax(cold)) == 4 and np.isfinite(cold).all()
    np.testing.assert_array_equal(jax.nn.softmax(cold), [0, 0, 0, 0, 1])


def test_equally_likely_tokens_stay_together():
    np.testing.assert_allclose(kept(Filters(top_k=1), [0.25, 0.25, 0.25, 0.25]), 0.25)


def test_the_repetition_penalty_by_hand():
    logits, seen = jnp.array([2.0, -2.0, 3.0, -3.0]), jnp.array([True, True, False, False])
    np.testing.assert_allclose(penalise(logits, seen, 2.0), [1.0, -4.0, 3.0, -3.0])


@pytest.fixture(scope="module")
def greedy():
    return make_completer(
        LM, response_length=T, stop_tokens=(STOP, 2), pad_token=PAD, filters=Filters(top_k=1)
    )


@pytest.fixture(scope="module")
def next_logits():
    """Return `tokens -> logits` of the next token, by an uncached pass over a fixed length."""

    @jax.jit
    def padded(tokens, count):
        hidden, _ = LM.encode(PARAMS, tokens, (jnp.arange(32) < count).astype(jnp.float32))
        return LM.logits(PARAMS, hidden[count - 1])

    return lambda tokens: np.asarray(padded(jnp.asarray(tokens + [0] * (32 - len(tokens))), len(tokens)))


def test_greedy_completions_are_those_of_uncached_passes(greedy, next_logits):
    """For prompts of three lengths in one batch: argmax after argmax until one of two stop tokens."""
    completions = greedy(PARAMS, PROMPTS, jax.random.key(0))
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        tokens, stopped = list(prompt), False
        while len(tokens) < len(prompt) + T and not stopped:
            token = int(np.delete(next_logits(tokens), PAD).argmax()) + 1
            stopped = token in (STOP, 2)
            tokens += [] if stopped else [token]
        assert completion.tokens == tokens[len(prompt) :] and completion.stopped == stopped
        np.testing.assert_allclose(completion.log_prob, 0.0, atol=1e-6)


def test_twenty_lengths_compile_once_per_bucket(greedy):
    """1 to 20 tokens lie in the buckets of 16 and 32; longer batches would be other programs."""
    before = greedy.program._cache_size()
    completions = [greedy(PARAMS, [[3] * n] * 2, jax.random.key(0)) for n in range(1, 21)]
    assert len(completions) == 20
    assert greedy.program._cache_size() - before == 2
    assert [bucket_length(n) for n in (1, 16, 17, 32, 33)] == [16, 16, 32, 32, 64]


def test_a_completion_does_not_depend_on_its_bucket_or_its_neighbours(greedy):
    alone = greedy(PARAMS, PROMPTS[:1], jax.random.key(0))[0]
    beside = greedy(PARAMS, [PROMPTS[0], [5] * 20], jax.random.key(0))[0]
    assert alone.tokens == beside.tokens


FILTERS = Filters(top_k=8, top_p=0.95, min_p=0.05, repetition_penalty=1.5)


@pytest.fixture(scope="module")
def filtered():
    return make_completer(LM, response_length=T, stop_tokens=(STOP,), filters=FILTERS)


def test_log_probabilities_are_those_of_the_distribution_that_was_sampled(filtered, next_logits):
    """Penalty, temperature and filters are redone in NumPy's order on uncached logits; nothing is barred."""
    completions = filtered(PARAMS, PROMPTS, jax.random.key(3), 0.7)
    assert sum(len(c.tokens) for c in completions) > T
    for prompt, completion in zip(PROMPTS, completions, strict=True):
        tokens = list(prompt)
        for token, log_prob in zip(completion.tokens, completion.log_prob, strict=True):
            logits = next_logits(tokens).astype(np.float64)
            for old in set(tokens):
                logits[old] = logits[old] / 1.5 if logits[old] > 0 else logits[old] * 1.5
            logits = logits / 0.7
            order = np.argsort(-logits)
            logits[order[8:]] = -np.inf
            probability = np.exp(logits - logits.max())
            probability /= probability.sum()
            before = np.cumsum(probability[order]) - probability[order]
            probability[order[before >= 0.95]] = 0.0
            probability /= probability.sum()
            probability[probability < 0.05 * probability.max()] = 0.0
            probability /= probability.sum()
            np.testing.assert_allclose(log_prob, np.log(probability[token]), atol=1e-4)
            tokens.append(token)


def test_a_stream_is_the_completion_token_by_token(filtered):
    tokens = stream(
        LM,
        PARAMS,
        PROMPTS[2],
        jax.random.key(5),
        response_length=T,
        stop_tokens=(STOP,),
        temperature=0.9,
        filters=FILTERS,
    )
    assert iter(tokens) is tokens
    (completion,) = filtered(PARAMS, PROMPTS[2:], jax.random.key(5), 0.9)
    assert list(tokens) == completion.tokens


def test_filters_and_stop_tokens_change_nothing_where_they_are_off():
    """What RLHF samples: the defaults give the bits of a filter that keeps everything."""
    config = TextConfig(4, T, STOP, PAD)
    prompt = PaddedTokens(jnp.array([0, 3, 4, 5]), jnp.array([0.0, 1.0, 1.0, 1.0]))
    plain, kept_all = (
        jax.jit(lambda key, f=filters: generate(LM, PARAMS, prompt, key, config, filters=f))(
            jax.random.key(0)
        )
        for filters in (Filters(), Filters(top_k=VOCAB, top_p=1.0, min_p=0.0))
    )
    assert all(map(np.array_equal, plain, kept_all))


def count_steps(room):
    """Return the answers [M, B, room] of 2 members to 3 prompts, and how often a prompt's token was drawn."""
    drawn = []
    counted = lambda params, hidden: (
        jax.debug.callback(drawn.append, hidden[0]),
        BIGRAM.logits(params, hidden),
    )[1]
    lm = favour(STOP, 2.0, BIGRAM._replace(logits=counted))
    tables = jax.vmap(BIGRAM.init)(jax.random.split(jax.random.key(0), 2))
    prompts = PaddedTokens(jnp.array([[3], [4], [5]]), jnp.ones((3, 1)))
    config = TextConfig(1, room, STOP, PAD)
    write = lambda table, prompt, key: generate(lm, table, prompt, key, config)
    keys = jax.random.split(jax.random.key(9), 3)
    response = jax.jit(jax.vmap(jax.vmap(write, (None, 0, 0)), (0, None, None)))(tables, prompts, keys)
    jax.block_until_ready(response)
    jax.effects_barrier()
    return response, len(drawn)


def test_writing_ends_when_every_answer_has_ended():
    """The longest of the 6 answers says how often they are drawn from, the last place once more."""
    (short, calls), (long, more) = count_steps(30), count_steps(60)
    longest = int(short.mask.sum(-1).max())
    assert 2 < longest < 29 and (short.mask[..., -1] == 0).all()
    assert len(set(short.mask.sum(-1).ravel().tolist())) > 2
    assert calls == more == 6 * (longest + 1)
    for a, b in zip(short, long, strict=True):
        np.testing.assert_array_equal(a, b[..., :30])
    assert (long.tokens[..., 30:] == PAD).all() and not long.mask[..., 30:].any()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"top_k": 0}, "top_k must be at least 1"),
        ({"top_p": 0.0}, r"top_p must lie in \(0, 1\]"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_p": -0.1}, "min_p"),
        ({"repetition_penalty": 0.0}, "above 0"),
        ({"repetition_penalty": float("nan")}, "above 0"),
    ],
)
def test_filters_that_are_none_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Filters(**arguments)


def test_prompts_that_cannot_be_completed_are_refused(greedy):
    complete = lambda *prompts, temperature=1.0: greedy(PARAMS, prompts, jax.random.key(0), temperature)
    before = greedy.program._cache_size()
    for call, message in (
        (lambda: complete([3] * 43), "fit the context of 48 tokens; got a prompt of 43"),
        (lambda: complete([3], []), "at least one token"),
        (lambda: complete(), "at least one token"),
        (lambda: complete([VOCAB]), f"from 0 to {VOCAB - 1}"),
        (lambda: complete([3], temperature=0.0), r"above 0; got 0.0; for greedy take Filters\(top_k=1\)"),
        (lambda: next(_stream([3], 0.0)), "above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
    assert greedy.program._cache_size() == before, "refused after a compilation"


def _stream(prompt, temperature):
    return itertools.islice(
        stream(
            LM,
            PARAMS,
            prompt,
            jax.random.key(0),
            response_length=T,
            stop_tokens=(STOP,),
            pad_token=PAD,
            temperature=temperature,
        ),
        T,
    )


def test_the_first_of_the_likeliest_tokens_is_found():
    rows = jnp.array([[1.0, 3.0, 3.0, 2.0], [5.0, 1.0, 2.0, 5.0], [-2.0, -3.0, -1.0, -1.0], [0.0] * 4])
    found = jax.vmap(first_largest)(rows)
    np.testing.assert_array_equal(found, jnp.argmax(rows, -1))
    assert found.dtype == jnp.int32
    assert first_largest(jnp.array([1.0, jnp.nan, 0.0])) == 2  # one that exists


def test_of_equally_likely_tokens_the_first_is_written_whatever_the_key():
    lm = make_transformer(TransformerConfig(5, width=4, layers=1, heads=1, context=8))
    params = jax.tree.map(jnp.zeros_like, lm.init(jax.random.key(0)))
    prompt = PaddedTokens(jnp.array([2, 3]), jnp.ones(2))
    write = lambda key: generate(
        lm, params, prompt, key, TextConfig(2, 3), filters=Filters(top_k=1), stop_tokens=()
    )
    tokens = jax.vmap(write)(jax.random.split(jax.random.key(0), 8)).tokens
    np.testing.assert_array_equal(tokens, 1)  # 0 pads, and is never written
