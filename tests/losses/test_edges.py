"""The edges: certain and impossible events, huge ratios, empty masks, bfloat16 and integer inputs."""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import losses as L

HUGE, ZERO = jnp.full(4, 1e4), jnp.zeros(4)
CERTAIN = jnp.array([0.0, -jnp.inf, -jnp.inf, -jnp.inf])
TOKENS, HUGE_LOGITS = jnp.array([0, 1]), jnp.array([[1e4, -1e4, 0.0], [1e4, -1e4, 0.0]])
EMPTY = jnp.zeros(4)

EDGES = {
    "certain entropy": (L.entropy, CERTAIN),
    "saturated entropy": (L.entropy, HUGE_LOGITS),
    "certain kl": (L.categorical_kl, CERTAIN, jnp.array([0.0, 1.0, -jnp.inf, -jnp.inf])),
    "saturated kl": (L.categorical_kl, HUGE_LOGITS, -HUGE_LOGITS),
    "token of probability 0 or 1": (L.token_log_prob, HUGE_LOGITS, TOKENS),
    "token among forbidden ones": (L.token_log_prob, jnp.stack([CERTAIN, CERTAIN]), jnp.array([0, 0])),
    "next token of probability 0 or 1": (
        partial(L.next_token_loss, label_smoothing=0.1, z_loss=1e-4),
        HUGE_LOGITS,
        TOKENS,
    ),
    "perfect reconstruction": (L.reconstruction_error, ZERO, ZERO),
    "saturated reconstruction": (partial(L.reconstruction_error, kind="bernoulli"), ZERO, HUGE),
    "saturated label": (L.binary_label, -HUGE, jnp.ones(4)),
    "orpo at probability 1": (partial(L.orpo, beta=0.1), ZERO, -HUGE),
    "orpo at probability 0": (partial(L.orpo, beta=0.1), -HUGE, ZERO),
    "kto far above": (partial(L.kto, beta=1.0), HUGE, -HUGE, ZERO, ZERO),
    "kto far below": (partial(L.kto, beta=1.0), -HUGE, HUGE, jnp.ones(4), ZERO),
    "distant gaussians": (L.gaussian_kl, HUGE, ZERO, -HUGE, ZERO),
    "rho 0 and huge": (L.vtrace, *[jnp.ones(4)] * 5, jnp.array([0.0, 1e30, 1e30, 0.0])),
    "c51 saturated": (
        lambda logits: L.categorical_q_loss(logits, 0, 1e6, 0.9, logits, jnp.array([-1.0, 0.0, 1.0])),
        HUGE_LOGITS,
    ),
    "mean of nothing": (L.masked_mean, HUGE, EMPTY),
    "mean without nan": (L.masked_mean, jnp.array([1.0, jnp.nan]), jnp.array([1.0, 0.0])),
    "whitening nothing": (L.whiten, HUGE, EMPTY),
    "whitening a constant": (L.whiten, HUGE),
    "ranking nothing": (L.plackett_luce, HUGE, jnp.arange(4.0), EMPTY),
    "pairs of nothing": (L.all_pairs, HUGE, jnp.arange(4.0), EMPTY),
    "ranking of one": (L.plackett_luce, jnp.ones(1)),
    "ranking far apart": (L.plackett_luce, jnp.array([-1e4, 0.0, 1e4])),
    "pairs far apart": (L.all_pairs, jnp.array([-1e4, 0.0, 1e4])),
}
PAIRS = {
    "bradley_terry": (partial(L.bradley_terry, label_smoothing=0.1), 1),
    "dpo": (partial(L.dpo, beta=1.0), 3),
    "ipo": (partial(L.ipo, beta=0.1), 3),
    "simpo": (partial(L.simpo, beta=2.0, margin=1.0), 1),
    "slic": (partial(L.slic, delta=1.0, target_weight=1.0), 2),
    "k1": (partial(L.kl_estimate, kind="k1"), 1),
    "k2": (partial(L.kl_estimate, kind="k2"), 1),
    "k3": (partial(L.kl_estimate, kind="k3"), 1),
    "ratio": (L.importance_ratio, 1),
    "drift": (partial(L.drift_stabilised_loss, exploration_coef=0.1, drift_coef=0.1), 3),
}
SURROGATES = {
    "surrogate": L.surrogate,
    "clipped_surrogate": partial(L.clipped_surrogate, clip=0.2),
    "kl_penalty_surrogate": lambda *args: L.kl_penalty_surrogate(*args, args[0], kl_coef=1.0),
}
ANSWERS = {f.__name__: partial(f, clip=0.2) for f in (L.grpo, L.dr_grpo, L.gspo, L.rloo)}
for side, extreme in (("huge", HUGE), ("zero", -HUGE)):
    EDGES |= {f"{name}, {side}": (f, extreme, *[ZERO] * num) for name, (f, num) in PAIRS.items()}
    for sign in (1.0, -1.0, 0.0):
        advantage = jnp.full(4, sign)
        EDGES |= {f"{name}, {side}, {sign}": (f, extreme, ZERO, advantage) for name, f in SURROGATES.items()}
        for name, f in ANSWERS.items():
            EDGES[f"{name}, {side}, {sign}"] = f, extreme, ZERO, advantage[0], jnp.ones(4)
            EDGES[f"{name} of nothing, {side}, {sign}"] = f, extreme, ZERO, advantage[0], EMPTY


@lru_cache
def value_and_gradients(f, wrt):
    """Compile once for each loss, however many edges it is tried at."""
    total = lambda *xs: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(f(*xs)))
    return jax.jit(jax.value_and_grad(total, wrt))


@pytest.mark.parametrize("name", EDGES)
def test_value_and_gradient_are_finite(name):
    f, *arguments = EDGES[name]
    wrt = tuple(i for i, x in enumerate(arguments) if jnp.issubdtype(x.dtype, jnp.floating))
    value, grads = value_and_gradients(f, wrt)(*arguments)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(g)) for g in grads)


def test_what_q_forbids_and_p_allows_is_infinitely_far():
    for little in (0.0, -200.0):  # exp(-200) is 0 in float32
        assert L.categorical_kl(jnp.array([0.0, little]), jnp.array([0.0, -jnp.inf])) == jnp.inf


@pytest.mark.parametrize("f", [L.grpo, L.dr_grpo, L.gspo, L.rloo])
def test_an_answer_without_tokens_costs_nothing(f):
    assert f(ZERO, ZERO, 1.0, EMPTY, clip=0.2) == 0.0


BF16_CASES = {
    "gae": (L.gae, 5),
    "gae_associative": (L.gae_associative, 5),
    "lambda_returns": (L.lambda_returns, 4),
    "n_step_returns": (partial(L.n_step_returns, n=3), 4),
    "discounted_returns": (L.discounted_returns, 2),
    "reward_to_go": (L.reward_to_go, 1),
    "vtrace": (L.vtrace, 6),
    "masked_mean": (L.masked_mean, 2),
    "whiten": (L.whiten, 1),
    "entropy": (L.entropy, 1),
    "categorical_kl": (L.categorical_kl, 2),
    "huber": (L.huber, 1),
    "squared": (L.squared, 1),
    "clipped_value_loss": (partial(L.clipped_value_loss, clip=0.2), 3),
    "clipped_surrogate": (partial(L.clipped_surrogate, clip=0.2), 3),
    "kl_estimate": (L.kl_estimate, 2),
    "dpo": (partial(L.dpo, beta=0.1), 4),
    "bradley_terry": (L.bradley_terry, 2),
    "plackett_luce": (L.plackett_luce, 1),
    "reconstruction_error": (L.reconstruction_error, 2),
    "group_advantages": (L.group_advantages, 1),
    "gaussian_kl": (L.gaussian_kl, 4),
}


@pytest.mark.parametrize("name", BF16_CASES)
def test_bfloat16_is_computed_in_float32(name):
    """bfloat16 inputs give what the same numbers in float32 give, to the compiler's rounding."""
    f, num = BF16_CASES[name]
    keys = jax.random.split(jax.random.key(0), num)
    arguments = [jnp.abs(jax.random.normal(key, (8,))).astype(jnp.bfloat16) for key in keys]

    @jax.jit
    def both(*arguments):
        total = lambda *xs: sum(jnp.sum(leaf) for leaf in jax.tree.leaves(f(*xs)))
        return f(*arguments), jax.grad(total, tuple(range(num)))(*arguments)

    got, gradients = both(*arguments)
    wide, _ = both(*(x.astype(jnp.float32) for x in arguments))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(got))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=2e-6, atol=1e-6), got, wide)
    assert all(np.all(np.isfinite(g)) for g in gradients)


X, INDEX = jax.ShapeDtypeStruct((8,), jnp.bfloat16), jnp.zeros(8, jnp.int32)
MATRIX = jax.ShapeDtypeStruct((8, 4), jnp.bfloat16)
SCALAR = jax.ShapeDtypeStruct((), jnp.bfloat16)
STEP = X, 0, SCALAR, SCALAR, X
BF16_TYPES = {
    L.td_target: STEP[2:],
    L.td_error: (SCALAR,) * 4,
    L.q_learning_error: STEP,
    L.double_q_error: (*STEP, X),
    L.sarsa_error: (*STEP, 0),
    L.expected_sarsa_error: (*STEP, X),
    L.categorical_projection: (X, X, X),
    L.categorical_q_loss: (MATRIX, 0, SCALAR, SCALAR, MATRIX, jax.ShapeDtypeStruct((4,), jnp.bfloat16)),
    L.quantile_regression_loss: (X, X, X),
    L.lambda_error: (X,) * 5,
    partial(L.n_step_error, n=3): (X,) * 5,
    L.trajectory_return: (X, X),
    L.importance_ratio: (X, X),
    L.reinforce_loss: (X, X),
    L.surrogate: (X,) * 3,
    partial(L.kl_penalty_surrogate, kl_coef=0.1): (X,) * 4,
    L.q_advantage: (MATRIX, MATRIX, INDEX),
    L.average_baseline: (X,),
    L.variance_stabilised_loss: (X,) * 3,
    partial(L.exploration_stabilised_loss, exploration_coef=0.1): (X,) * 3,
    partial(L.drift_stabilised_loss, exploration_coef=0.1, drift_coef=0.1): (X,) * 4,
    partial(L.ipo, beta=0.1): (X,) * 4,
    partial(L.kto, beta=0.1): (X,) * 4,
    partial(L.orpo, beta=0.1): (X, X),
    L.log_odds_ratio: (X, X),
    partial(L.simpo, beta=0.1, margin=0.1): (X, X),
    partial(L.slic, delta=0.1, target_weight=0.1): (X,) * 3,
    partial(L.grpo, clip=0.2): (X, X, SCALAR, X),
    partial(L.dr_grpo, clip=0.2): (X, X, SCALAR, X),
    partial(L.gspo, clip=0.2): (X, X, SCALAR, X),
    partial(L.rloo, clip=0.2): (X, X, SCALAR, X),
    L.leave_one_out_advantages: (X,),
    L.all_pairs: (X,),
    L.reward_centring: (X, X),
    L.score_regression: (X, X),
    L.binary_label: (X, X),
    L.best_of_n_kl: (X,),
    L.gaussian_entropy: (X,),
    L.token_log_prob: (MATRIX, INDEX),
    L.next_token_loss: (MATRIX, INDEX),
}


def test_every_other_loss_of_bfloat16_is_float32():
    for f, arguments in BF16_TYPES.items():
        dtypes = {leaf.dtype for leaf in jax.tree.leaves(jax.eval_shape(f, *arguments))}
        assert dtypes == {np.dtype(np.float32)}, f
    tested = {getattr(f, "func", f) for f in (*BF16_TYPES, *(f for f, _ in BF16_CASES.values()))}
    others = {
        "VTrace",
        "Categorical",
        "MultiCategorical",
        "DiagonalGaussian",
        "TanhGaussian",
        "token_log_prob_chunked",
    }
    others |= {"masking_noise", "gaussian_noise", "adapt_kl_coefficient", "proportional_kl_coefficient"}
    assert {f.__name__ for f in tested} == set(L.__all__) - others


def test_bfloat16_sums_do_not_stall():
    """In bfloat16 1 + ... + 1 stops at 256; next-token losses over a wide vocabulary would too."""
    ones = jnp.ones(4096, jnp.bfloat16)
    assert L.reward_to_go(ones)[0] == 4096
    assert L.discounted_returns(ones, ones)[0] == 4096
    assert L.masked_mean(ones * 3, ones) == 3
    logits = jnp.zeros((1, 4096), jnp.bfloat16)
    np.testing.assert_allclose(L.next_token_loss(logits, jnp.array([5])), np.log(4096), rtol=1e-6)


def test_integer_rewards_are_promoted():
    reward, half = jnp.array([1, 0, 3]), jnp.full(3, 0.5)
    for f in (L.discounted_returns, lambda r, d: L.gae(r, d, d, jnp.zeros(3), jnp.zeros(3))):
        assert jnp.issubdtype(f(reward, half).dtype, jnp.floating)
        np.testing.assert_array_equal(f(reward, half), f(reward.astype(float), half))
    np.testing.assert_allclose(L.discounted_returns(reward, half), [1.75, 1.5, 3.0])
    np.testing.assert_allclose(L.td_target(1, jnp.float32(0.9), jnp.array([1, 2])), 2.8)
    np.testing.assert_allclose(L.whiten(jnp.array([0, 1])), [-1.0, 1.0], rtol=1e-6)
    np.testing.assert_allclose(L.group_advantages(jnp.array([0, 1]), scale=False), [-0.5, 0.5])


@pytest.mark.parametrize("wide", range(5))
def test_a_series_of_mixed_floats_is_as_wide_as_its_widest(wide):
    kinds = [jnp.float32, jnp.bfloat16, jnp.int32, jnp.float32, jnp.float32]
    with jax.enable_x64(True):
        mixed = [jnp.ones(3, jnp.float64 if i == wide else kind) for i, kind in enumerate(kinds)]
        assert L.gae(*mixed).dtype == L.gae_associative(*mixed).dtype == jnp.float64
        for f in (L.lambda_returns, L.discounted_returns):
            count = 4 if f is L.lambda_returns else 2
            assert f(*mixed[:count]).dtype == (jnp.float64 if wide < count else jnp.float32)


def test_scores_survive_exactly():
    """A score paid into an integer reward array would become 0 and -1."""
    reward = jnp.zeros(4).at[3].set(0.7), jnp.zeros(4).at[3].set(-1.9)
    for r, score in zip(reward, (0.7, -1.9), strict=True):
        assert L.discounted_returns(r, jnp.ones(4))[0] == np.float32(score)


def test_complex_input_is_refused():
    with pytest.raises(ValueError, match="complex64"):
        L.squared(jnp.array([1j]))


def test_an_action_out_of_range_is_nan_not_another_action():
    for token in (-1, 3):
        assert np.isnan(L.token_log_prob(jnp.zeros((1, 3)), jnp.array([token])))[0]
        assert np.isnan(L.q_learning_error(jnp.zeros(3), token, 0.0, 0.9, jnp.zeros(3)))
        atoms = jnp.zeros((3, 2))
        assert np.isnan(L.categorical_q_loss(atoms, token, 0.0, 0.9, atoms, jnp.array([-1.0, 1.0])))


def test_nan_is_not_hidden_by_the_held_ratio():
    assert np.isnan(L.clipped_surrogate(jnp.nan, 0.0, 1.0, clip=0.2))
    assert np.isnan(L.importance_ratio(jnp.nan, 0.0))
