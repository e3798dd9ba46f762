"""Lecture 002's four updates: one gradient step of each by hand, all four in one program."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_align.actors import Frozen
from jaxrl_align.actors.answer_groups import make_group_actor
from jaxrl_align.align import DRIFT, EXPLORATION, VANILLA, VARIANCE, make_update_learner
from jaxrl_align.text.generation import TextConfig
from jaxrl_align.types import PaddedTokens
from tests.tiny import BIGRAM, VOCAB, disturb, favour

P, T, B, G, STOP, LIKED = 3, 5, 4, 3, 1, 7
CONFIG = TextConfig(P, T, missing_stop="keep")
LM = favour(STOP, 1.0, BIGRAM)
TABLE = BIGRAM.init(jax.random.key(0))
MOVED = {"lm": disturb(TABLE, jax.random.key(1), 0.5)}
FROZEN = Frozen(TABLE, None)
RNG = np.random.default_rng(0)
PROMPTS = PaddedTokens(jnp.asarray(RNG.integers(2, VOCAB, (B, P)), jnp.int32), jnp.ones((B, P)))
UPDATES = {"vanilla": VANILLA, "variance": VARIANCE, "exploration": EXPLORATION, "drift": DRIFT}
SETTINGS = jax.tree.map(lambda *x: jnp.stack([jnp.float32(v) for v in x]), *UPDATES.values())


def pay(model, tokens, mask):
    """Pay 1, and 3 for every liked token of the answer."""
    return 1.0 + 3.0 * jnp.sum((tokens[P:] == LIKED) * mask[P:])


@pytest.fixture(scope="module")
def gradients():
    """Return kind -> (what each of the four updates takes off the table [4, V, V], their metrics)."""

    def step(kind, hparams):
        plain = {"group_size": G, "optimizer": optax.identity(), "entropy": kind}
        learner = make_update_learner(LM, pay, CONFIG, **plain)
        state = learner.init(jax.random.key(3), hparams._replace(learning_rate=1.0), MOVED)
        after, metrics = learner.step(state, PROMPTS, FROZEN)
        return MOVED["lm"] - after.params["lm"], metrics

    both = lambda h: {kind: step(kind, h) for kind in ("shannon", "tsallis")}
    return jax.jit(jax.vmap(both))(SETTINGS)


@pytest.fixture(scope="module")
def answers():
    """The same step's answers and their masks [B, G, T], from the actor alone."""
    actor = make_group_actor(LM, pay, CONFIG, group_size=G)
    state = make_update_learner(LM, pay, CONFIG, group_size=G).init(jax.random.key(3), VANILLA, MOVED)
    key = jax.random.split(state.key, 3)[1]
    trajectory = jax.jit(lambda key: actor.rollout(MOVED, FROZEN, None, key, VANILLA, PROMPTS)[1])(key)
    return tuple(np.asarray(x).reshape(B, G, T) for x in (trajectory.action, trajectory.mask))


def log_probs(table, tokens):
    """Return log pi [B, G, T] of answers from the table; padding is never written."""
    first = jnp.broadcast_to(PROMPTS.tokens[:, None, -1:], (B, G, 1))
    before = jnp.concatenate([first, tokens[..., :-1]], 2)
    logits = LM.logits(table, jax.nn.one_hot(before, VOCAB)).at[..., 0].set(-1e9)
    return jnp.take_along_axis(jax.nn.log_softmax(logits), tokens[..., None], 3)[..., 0]


@pytest.mark.parametrize("kind", ["shannon", "tsallis"])
def test_a_step_of_each_update_by_hand(gradients, answers, kind):
    """Every token of an answer weighs its score, less the others' mean, less beta's cost, plus the drift."""
    tokens, mask = answers
    score = 1.0 + 3.0 * ((tokens == LIKED) * mask).sum(2)
    others = (score.sum(1, keepdims=True) - score) / (G - 1)
    assert len(set(score.ravel().tolist())) > 1 and len(set(mask.sum(2).ravel().tolist())) > 2

    @jax.jit
    def by_hand(baseline, beta, gamma):
        log_p, log_pre = log_probs(MOVED["lm"], tokens), log_probs(TABLE, tokens)
        cost = log_p if kind == "shannon" else 2.0 * jnp.exp(log_p)
        weight = (score - baseline * others)[..., None] - beta * cost + gamma * log_pre
        return jax.grad(lambda t: -jnp.sum(weight * log_probs(t, tokens) * mask) / (B * G))(MOVED["lm"])

    got = np.asarray(gradients[kind][0])
    for i, (baseline, beta, gamma) in enumerate([(0, 0, 0), (1, 0, 0), (1, 0.05, 0), (1, 0.05, 0.05)]):
        expected = by_hand(baseline, beta, gamma)
        assert np.abs(expected).max() > 0.05
        np.testing.assert_allclose(got[i], expected, atol=2e-5, err_msg=list(UPDATES)[i])
        assert i == 0 or np.abs(got[i] - got[i - 1]).max() > 1e-3, "the updates must differ"


def test_the_reported_kl_and_entropy(gradients, answers):
    """Means over tokens; every update reports its KL to the pre-trained model, whether it pays or not."""
    tokens, mask = answers
    ratio = np.asarray(log_probs(MOVED["lm"], tokens) - log_probs(TABLE, tokens))
    metrics = gradients["shannon"][1]
    np.testing.assert_allclose(metrics["kl"], np.full(4, (ratio * mask).sum() / mask.sum()), rtol=1e-4)
    assert (metrics["entropy"] > 0).all() and "val/explained_variance" not in metrics


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"group_size": 1}, "group_size must be at least 2, for a baseline; got 1"),
        ({"entropy": "renyi"}, 'entropy must be "shannon" or "tsallis"; got \'renyi\''),
    ],
)
def test_what_no_update_can_be_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_update_learner(LM, pay, CONFIG, **arguments)
