"""The lectures' printed errors that concern a loss: each printed form is shown wrong and ours right.

H1: the sign of the squared TD error's gradient. H2: max for argmax, and a lost minus. H4: a state-dependent
baseline summed over the path. H5: a critic's target without discount, terminal mask or on-policy action.
H6: a baseline that knows the answer. H8: an expectation divided once more by N. H9: a penalty added to a
gradient. H13: the clip as a bound.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_align import losses as L

from . import small_mdp as mdp

GAMMA = 0.9


def test_h1_the_gradient_needs_its_minus():
    """Printed: 2 (y - Q) grad Q with a descent step. It climbs the error; ours, by autodiff, descends."""
    features, target, rate = jnp.array([1.0, -0.5]), 2.0, 0.1

    @jax.jit
    def loss(theta):
        q = jnp.stack([theta @ features, 0.0])
        return 2.0 * L.squared(L.q_learning_error(q, 0, target, 0.0, jnp.zeros(2)))

    ours = printed = jnp.array([0.1, 0.1])
    np.testing.assert_allclose(jax.grad(loss)(ours), -2 * (target - ours @ features) * features, rtol=1e-6)
    gradient = jax.jit(jax.grad(loss))
    for _ in range(50):
        ours = ours - rate * gradient(ours)
        printed = printed - rate * 2 * (target - printed @ features) * features
    assert loss(ours) < 1e-3
    assert loss(printed) > 1e3


def test_h2_the_action_is_the_argmax_and_the_error_a_difference():
    """Printed: a = max_a Q, a number that is no action; and (Q_new (r + gamma max Q)) without its minus."""
    q_select, q_value = jnp.array([0.1, 0.7, 0.3]), jnp.array([5.0, -1.0, 2.0])
    error = L.double_q_error(jnp.zeros(3), 0, 1.0, GAMMA, q_value, q_select)
    np.testing.assert_allclose(error, 1.0 + GAMMA * q_value[jnp.argmax(q_select)])
    as_index = int(jnp.max(q_select))
    assert as_index != jnp.argmax(q_select)
    target = L.td_target(1.0, GAMMA, q_value)
    at_target = jnp.full(3, target)
    assert L.squared(L.q_learning_error(at_target, 0, 1.0, GAMMA, q_value)) == 0
    for printed in (lambda q: jnp.square(q * target), lambda q: jnp.square(q + target)):
        assert abs(jax.grad(printed)(target)) > 1.0


@jax.jit
def expected_gradients(logits, paths, probability, baselines):
    """Sum over every path: the expectations of two REINFORCE estimates, each [B, S, A].

    `baselines` is [B, S]. Printed: sum_t grad log pi_t times sum_t (R_t - b(s_t)); ours: the sum from t on.
    """

    def expectation(ret):
        objective = lambda logits: probability @ -L.reinforce_loss(mdp.log_probs(logits, paths), ret).sum(1)
        return jax.grad(objective)(logits)

    def both(baseline):
        b = baseline[paths.state]
        whole = jnp.broadcast_to((paths.reward - b).sum(1, keepdims=True), b.shape)
        return expectation(whole), expectation(jax.vmap(L.reward_to_go)(paths.reward) - b)

    return jax.lax.map(both, baselines)


def test_h4_a_state_baseline_belongs_inside_the_sum_over_steps():
    """Printed: the baselines summed over the path too. Later b(s_t') depend on a_t: biased, or constant."""
    with jax.enable_x64(True):
        logits, of_state_and_constant = jnp.asarray(mdp.LOGITS), jnp.asarray([[0.8, -0.5, 0.3], [0.8] * 3])
        exact = np.asarray(jax.grad(mdp.expected_return)(logits))
        gradients = expected_gradients(logits, *mdp.all_paths(logits), of_state_and_constant)
        bias_printed, bias_ours = (np.abs(np.asarray(x) - exact[None]).max(axis=(1, 2)) for x in gradients)
    assert np.abs(exact).max() > 0.1
    assert bias_printed[0] > 1e-2
    assert max(bias_printed[1], *bias_ours) < 1e-10


def fitted_values(target, sweeps=400):
    """Fit Q on a two-state chain by its target: action 0 ends the episode with 1, action 1 moves on with 0.

    State 0 leads to state 1, and state 1's action 1 back to state 0; both behave uniformly.
    """
    q = np.zeros((2, 2))
    for _ in range(sweeps):
        q = np.array([[target(1.0, 0.0, q[1 - s]), target(0.0, 1.0, q[1 - s])] for s in range(2)])
    return q


def test_h5_the_critic_discounts_stops_at_the_end_and_follows_the_policy():
    """Printed: r + max Q_old for Q^pi. Without discount or mask it diverges; with both it is Q*, not Q^pi."""
    uniform = jnp.array([0.5, 0.5])
    error_at_zero = jax.jit(
        lambda alive, r, q: L.expected_sarsa_error(jnp.zeros(2), 0, r, GAMMA * alive, q, uniform)
    )
    td_target = jax.jit(L.td_target)
    on_policy = fitted_values(lambda r, alive, q: float(error_at_zero(alive, r, q)), sweeps=60)
    optimal = fitted_values(lambda r, alive, q: float(td_target(r, GAMMA * alive, q)), sweeps=60)
    printed = fitted_values(lambda r, alive, q: r + q.max())
    value = 0.5 / (1 - 0.5 * GAMMA)  # V^pi = (1 + gamma V^pi) / 2
    np.testing.assert_allclose(on_policy, [[1.0, GAMMA * value]] * 2, rtol=1e-4)
    np.testing.assert_allclose(optimal, [[1.0, GAMMA]] * 2, rtol=1e-4)
    assert printed.min() > 100
    assert np.abs(on_policy - optimal).max() > 0.05


def test_h6_a_baseline_that_knows_the_answer_removes_the_gradient():
    """Printed: A = obj - q(x, y). If q is right A is 0 for every answer; V(x) leaves the gradient whole."""
    logits, reward = jnp.array([0.5, -0.2, 0.1]), jnp.array([1.0, 0.0, 2.0])
    weight = jax.nn.softmax(logits)

    def gradient(baseline):
        loss = lambda x: jnp.sum(weight * L.reinforce_loss(jax.nn.log_softmax(x), reward - baseline))
        return jax.grad(loss)(logits)

    exact = jax.grad(lambda x: -jax.nn.softmax(x) @ reward)(logits)
    np.testing.assert_array_equal(gradient(reward), 0.0)
    np.testing.assert_allclose(gradient(weight @ reward), exact, atol=1e-6)
    assert np.abs(exact).max() > 0.1


def test_h6_a_value_of_each_prefix_keeps_the_gradient():
    """Two tokens, enumerated: V(x, y_<t) differs by prefix, and still leaves the expected gradient alone."""
    logits = jnp.array([[0.3, -0.4], [0.9, 0.0], [-0.5, 0.2]])  # first token; second after 0; second after 1
    reward = jnp.array([[1.0, 0.0], [-1.0, 3.0]])
    p = jax.nn.softmax(logits)
    value_of_prefix = jnp.sum(p[1:] * reward, axis=1)
    joint = p[0][:, None] * p[1:]

    def loss(x, baselines):
        log_p = jax.nn.log_softmax(x)
        first = L.reinforce_loss(jnp.broadcast_to(log_p[0][:, None], (2, 2)), reward - baselines[0])
        second = L.reinforce_loss(log_p[1:], reward - baselines[1])
        return jnp.sum(joint * (first + second))

    value_of_prompt = jnp.full((2, 2), p[0] @ value_of_prefix)
    baselines = value_of_prompt, jnp.broadcast_to(value_of_prefix[:, None], (2, 2))
    objective = lambda x: -jnp.sum(jax.nn.softmax(x)[0][:, None] * jax.nn.softmax(x)[1:] * reward)
    ours, exact = jax.jit(lambda x, b: (jax.grad(loss)(x, b), jax.grad(objective)(x)))(logits, baselines)
    np.testing.assert_allclose(ours, exact, atol=1e-6)


def test_h8_a_prompt_weighs_the_same_whatever_the_number_of_pairs_or_prompts():
    """Printed: -1/N E[...]: the mean divided again, so that twice the data halves the gradient."""
    scores = jnp.array([[1.0, 0.2, -0.3], [0.4, 0.5, 0.1]])
    twice = jnp.concatenate([scores, scores])
    ours = jax.jit(lambda s: jnp.mean(jax.vmap(L.all_pairs)(s)))
    printed = lambda s: ours(s) / s.shape[0]
    np.testing.assert_allclose(ours(twice), ours(scores), rtol=1e-6)
    np.testing.assert_allclose(printed(twice), printed(scores) / 2, rtol=1e-6)
    pairs = [(0, 1), (0, 2), (1, 2)]
    by_hand = np.mean([[np.logaddexp(0.0, s[j] - s[i]) for i, j in pairs] for s in np.asarray(scores)])
    np.testing.assert_allclose(ours(scores), by_hand, rtol=1e-6)
    tied = [jnp.zeros((1, k)) for k in (2, 9)]
    np.testing.assert_allclose([ours(s) for s in tied], np.log(2), rtol=1e-6)


def test_h9_exploration_is_a_term_of_the_objective():
    """Printed: E[(G - b) grad log pi - beta pi(a)]: a number added to every logit changes no policy."""
    start, reward, beta = jnp.array([1.0, 0.0, -1.0]), jnp.array([1.0, 0.5, 0.2]), 0.5

    @jax.jit
    def step(plain, printed, ours):
        gradient = jax.grad(lambda x: jax.nn.softmax(x) @ reward)
        penalty = beta * jnp.sum(jnp.square(jax.nn.softmax(printed)))
        weight = jax.nn.softmax(ours)
        loss = lambda x: (
            weight
            @ L.exploration_stabilised_loss(
                jax.nn.log_softmax(x), reward, jnp.zeros(3), exploration_coef=beta
            )
        )
        return (
            plain + 0.5 * gradient(plain),
            printed + 0.5 * (gradient(printed) - penalty),
            ours - 0.5 * jax.grad(loss)(ours),
        )

    plain = printed = ours = start
    for _ in range(300):
        plain, printed, ours = step(plain, printed, ours)
    np.testing.assert_allclose(jax.nn.softmax(printed), jax.nn.softmax(plain), atol=1e-3)
    np.testing.assert_allclose(jax.nn.softmax(ours), jax.nn.softmax(reward / beta), atol=1e-2)
    assert L.entropy(ours) > L.entropy(printed) + 0.5


def test_h9_the_ratio_is_offered_by_token_and_by_sequence():
    """At sequence level 64 tokens of ratio 1.05 multiply to 22.7; by token none is clipped."""
    log_prob, old = jnp.full(64, np.log(1.05)), jnp.zeros(64)
    np.testing.assert_allclose(L.importance_ratio(log_prob.sum(), old.sum()), 1.05**64, rtol=1e-4)
    np.testing.assert_allclose(L.grpo(log_prob, old, 1.0, jnp.ones(64), clip=0.2), -1.05, rtol=1e-5)
    np.testing.assert_allclose(L.gspo(log_prob, old, 1.0, jnp.ones(64), clip=0.2), -1.05, rtol=1e-5)
    sequence = L.clipped_surrogate(log_prob.sum(), old.sum(), 1.0, clip=0.2)
    np.testing.assert_allclose(sequence, -1.2, rtol=1e-6)


def test_h13_the_clip_bounds_neither_ratio_nor_kl():
    """Claimed: it limits the change. Two states share a weight, and the unclipped one drags the other."""
    features = jnp.array([5.0, 0.3])
    logits = lambda theta: jnp.stack([theta * features, jnp.zeros(2)], axis=1)
    log_prob = lambda theta: jax.nn.log_softmax(logits(theta))[:, 0]
    loss = lambda theta: jnp.mean(L.clipped_surrogate(log_prob(theta), log_prob(0.0), jnp.ones(2), clip=0.2))
    step = jax.jit(lambda theta: theta - 0.5 * jax.grad(loss)(theta))
    theta = jnp.float32(0.0)
    for _ in range(200):
        theta = step(theta)
    ratio = jnp.exp(log_prob(theta) - log_prob(0.0))
    assert ratio[0] > 1.5
    assert L.categorical_kl(logits(0.0), logits(theta))[0] > 0.5
    gradient = jax.grad(lambda x: L.clipped_surrogate(x, log_prob(0.0)[0], 1.0, clip=0.2))(log_prob(theta)[0])
    assert gradient == 0.0
