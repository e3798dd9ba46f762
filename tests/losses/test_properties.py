"""Laws for any input (hypothesis), and laws of expectation (enumerated, or tested with an interval)."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jaxrl_align import losses as L

from . import small_mdp as mdp

T, PAD = 6, 4
settings.register_profile("losses", max_examples=30, deadline=None, derandomize=True)
settings.load_profile("losses")


def floats(low: float, high: float, shape: tuple[int, ...] = (T,)) -> st.SearchStrategy:
    return arrays(np.float32, shape, elements=st.floats(low, high, width=32))


streams = st.tuples(
    floats(-5, 5),
    floats(0, 1) | arrays(np.float32, T, elements=st.sampled_from([0.0, 0.5, 1.0])),
    floats(0, 1) | arrays(np.float32, T, elements=st.sampled_from([0.0, 1.0])),
    floats(-5, 5),
    floats(-5, 5),
)
close = lambda got, want, **kwargs: np.testing.assert_allclose(
    got, want, **({"rtol": 1e-4, "atol": 1e-4} | kwargs)
)
pad = lambda x: np.concatenate([x, np.zeros(PAD, x.dtype)])
rubbish = lambda x: np.concatenate([x, np.full(PAD, 1e6, np.float32)])
MASK = pad(np.ones(T, np.float32))
gae, gae_associative, whiten = map(jax.jit, (L.gae, L.gae_associative, L.whiten))
plackett_luce, all_pairs = jax.jit(L.plackett_luce), jax.jit(L.all_pairs)


RECURSIONS = {
    jax.jit(f): arguments
    for f, arguments in (
        (L.gae, lambda *stream: stream),
        (L.gae_associative, lambda *stream: stream),
        (L.vtrace, lambda *stream: (*stream, np.abs(stream[-1]))),
        (L.discounted_returns, lambda r, discount, *_: (r, discount)),
        (L.reward_to_go, lambda r, *_: (r,)),
        (L.lambda_returns, lambda r, discount, lambda_, _, v: (r, discount, ended(lambda_), v)),
        (partial(L.n_step_returns, n=3), lambda r, discount, lambda_, _, v: (r, discount, ended(lambda_), v)),
    )
}


def ended(lambda_t: np.ndarray) -> np.ndarray:
    """Return the trace of a stream whose last real step ends its episode, as padding implies."""
    return np.append(lambda_t[:-1], np.float32(0.0))


@given(streams)
def test_padding_changes_no_recursion(stream):
    for f, select in RECURSIONS.items():
        arguments = select(*stream)
        padded = f(*map(pad, arguments))
        jax.tree.map(lambda got, want: close(got[:T], want), padded, f(*arguments))
        jax.tree.map(lambda got: close(got[T:], 0.0, atol=0), padded)


@given(floats(-5, 5), floats(-1, 1), floats(-1, 1))
def test_padding_changes_no_masked_loss(x, log_prob, behaviour):
    close(L.masked_mean(rubbish(x), MASK), np.mean(x, dtype=np.float64))
    for keep_mean in (False, True):
        got = L.whiten(rubbish(x), MASK, keep_mean=keep_mean)
        close(got[:T], L.whiten(x, keep_mean=keep_mean), rtol=1e-3, atol=1e-3)
    for f in (L.grpo, L.gspo, L.rloo):
        padded = f(rubbish(log_prob), rubbish(behaviour), 0.7, MASK, clip=0.2)
        close(padded, f(log_prob, behaviour, 0.7, np.ones(T, np.float32), clip=0.2))
    ranks = np.arange(T + PAD)
    close(plackett_luce(rubbish(x), ranks, MASK), plackett_luce(x, ranks[:T], np.ones(T, np.float32)))
    close(all_pairs(rubbish(x), ranks, MASK), all_pairs(x, ranks[:T], np.ones(T, np.float32)))


@given(streams)
def test_gae_at_its_ends(stream):
    r_t, discount_t, _, v_tm1, _ = stream
    v_t = np.append(v_tm1[1:], np.float32(0.7))
    monte_carlo = jax.jit(L.discounted_returns)(r_t, discount_t, np.float32(0.7))
    close(gae(r_t, discount_t, np.ones(T), v_tm1, v_t), monte_carlo - v_tm1)
    close(gae(r_t, discount_t, np.zeros(T), v_tm1, v_t), r_t + discount_t * v_t - v_tm1)


@given(streams)
def test_gae_is_the_same_by_either_scan(stream):
    close(gae_associative(*stream), gae(*stream))


@given(floats(-20, 20, (2,)))
def test_two_ranked_answers_are_bradley_terry(scores):
    expected = L.bradley_terry(*scores)
    close(L.plackett_luce(scores), expected, rtol=1e-6, atol=1e-6)
    close(L.all_pairs(scores), expected, rtol=1e-6, atol=1e-6)


@given(floats(-5, 5, (4,)), floats(-5, 5, (4,)))
def test_divergences_are_not_negative_and_k3_never_is(p, q):
    assert L.categorical_kl(p, q) >= -1e-6
    assert np.all(L.kl_estimate(p, q, kind="k3") >= -1e-6)
    assert -1e-6 <= L.entropy(p) <= np.log(4) + 1e-6


def test_kl_estimates_in_expectation():
    """k1 and k3 are unbiased. As losses on fixed samples only k2 has the KL's gradient."""
    p, q = jnp.array([0.5, -1.0, 0.2]), jnp.array([-0.3, 0.4, 1.0])
    exact, exact_gradient = jax.value_and_grad(L.categorical_kl)(p, q)
    weights = jax.nn.softmax(p)

    def expectation(logits, kind):
        estimate = L.kl_estimate(jax.nn.log_softmax(logits), jax.nn.log_softmax(q), kind=kind)
        return jnp.sum(weights * estimate)

    value, gradient = {}, {}
    for kind in ("k1", "k2", "k3"):
        value[kind], gradient[kind] = jax.value_and_grad(expectation)(p, kind)
    close(value["k1"], exact, rtol=1e-5)
    close(value["k3"], exact, rtol=1e-5)
    assert abs(value["k2"] - exact) > 1e-3
    close(gradient["k2"], exact_gradient, atol=1e-6)
    close(gradient["k1"], 0.0, atol=1e-6)
    close(gradient["k3"], jax.grad(L.categorical_kl, argnums=1)(q, p), atol=1e-6)
    assert np.linalg.norm(gradient["k3"] - exact_gradient) > 0.1 * np.linalg.norm(exact_gradient)


@jax.jit
def path_gradients(paths: mdp.Paths, ret: jax.Array) -> jax.Array:
    """Return each path's REINFORCE gradient of the *return*, [N, S * A]."""
    loss = lambda logits, path, ret: -jnp.sum(L.reinforce_loss(mdp.log_probs(logits, path), ret))
    (logits,) = mdp.fresh(mdp.LOGITS)
    return jax.vmap(jax.grad(loss), (None, 0, 0))(logits, paths, ret).reshape(ret.shape[0], -1)


@pytest.fixture(scope="module")
def exact():
    """Return the exact gradient [S * A] and the values V_t(s) [T, S]."""
    both = lambda logits: (jax.grad(mdp.expected_return)(logits).ravel(), mdp.state_values(logits))
    return [np.asarray(x) for x in jax.jit(both)(*mdp.fresh(mdp.LOGITS))]


def test_paths_sum_to_one_and_give_the_exact_return():
    paths, probability = mdp.all_paths(mdp.LOGITS)
    close(probability.sum(), 1.0, rtol=1e-6)
    close(probability @ paths.reward.sum(1), mdp.expected_return(mdp.LOGITS), rtol=1e-5)


def test_reinforce_is_exact_in_expectation(exact):
    """Enumerated: whole return, reward-to-go, and that minus b or V all give jax.grad through the process."""
    paths, probability = mdp.all_paths(mdp.LOGITS)
    whole = jnp.broadcast_to(paths.reward.sum(1, keepdims=True), paths.reward.shape)
    to_go = jax.vmap(L.reward_to_go)(paths.reward)
    values = exact[1][jnp.arange(mdp.HORIZON), paths.state]
    for ret in (whole, to_go, to_go - 3.0, to_go - values):
        close(probability @ path_gradients(paths, ret), exact[0], atol=1e-6)


@pytest.fixture(scope="module")
def samples():
    return jax.jit(mdp.sample_paths, static_argnums=2)(jax.random.key(0), mdp.LOGITS, 40_000)


def test_reinforce_converges_to_the_exact_gradient(samples, exact):
    """40,000 paths: all 6 coordinates within 4 standard errors (99.96% jointly); error ~ 1/sqrt(N)."""
    gradients = np.asarray(path_gradients(samples, jax.vmap(L.reward_to_go)(samples.reward)))
    error = gradients.mean(0) - exact[0]
    assert np.all(np.abs(error) < 4 * gradients.std(0, ddof=1) / np.sqrt(len(gradients)) + 1e-6)
    rms = [np.sqrt(np.mean((gradients.reshape(-1, n, 6).mean(1) - exact[0]) ** 2)) for n in (100, 1600)]
    assert 3.0 < rms[0] / rms[1] < 5.0


def test_a_baseline_keeps_the_mean_and_lowers_the_variance(samples, exact):
    """Paired differences within 4 standard errors of 0; variance ratio's 99% bootstrap interval below 1."""
    to_go = jax.vmap(L.reward_to_go)(samples.reward)
    values = exact[1][jnp.arange(mdp.HORIZON), samples.state]
    average = L.average_baseline(to_go)
    plain = np.asarray(path_gradients(samples, to_go))[:10_000]
    rng = np.random.default_rng(0)
    for baseline in (average, values):
        better = np.asarray(path_gradients(samples, to_go - baseline))[:10_000]
        difference = better - plain
        standard_error = difference.std(0, ddof=1) / np.sqrt(len(difference))
        assert np.all(np.abs(difference.mean(0)) < 4 * standard_error + 1e-6)
        ratios = []
        for _ in range(200):
            index = rng.integers(len(plain), size=len(plain))
            ratios.append(better[index].var(0).sum() / plain[index].var(0).sum())
        assert np.quantile(ratios, 0.995) < 1.0


def test_an_average_that_includes_its_own_return_shrinks_the_gradient():
    """Two streams, enumerated: the plain mean halves the expected gradient, `average_baseline` keeps it."""
    logits, reward = jnp.array([0.2, -0.4, 0.1]), jnp.array([1.0, 0.0, -2.0])
    first, second = (x.ravel() for x in jnp.meshgrid(jnp.arange(3), jnp.arange(3)))
    actions = jnp.stack([first, second], axis=1)
    weight = jax.nn.softmax(logits)[first] * jax.nn.softmax(logits)[second]
    exact = jax.grad(lambda x: -jax.nn.softmax(x) @ reward)(logits)

    def gradient(baseline):
        loss = lambda x: (
            weight
            @ jnp.mean(L.reinforce_loss(jax.nn.log_softmax(x)[actions], reward[actions] - baseline), axis=1)
        )
        return jax.grad(loss)(logits)

    close(gradient(jax.vmap(L.average_baseline)(reward[actions])), exact, atol=1e-6)
    close(gradient(jnp.mean(reward[actions], axis=1, keepdims=True)), exact / 2, atol=1e-6)
