import functools
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_align.actors.text import Frozen, make_text_actor
from jaxrl_align.align.rlhf import RLHFHParams, init_policy, make_rlhf_learner
from jaxrl_align.losses import whiten
from jaxrl_align.nets import init_lora, merge, overlay
from jaxrl_align.pretrain.lm import sample_rows
from jaxrl_align.rl.actor_critic import Batch, gae_advantages, make_actor_critic, ppo_loss
from jaxrl_align.runtime.folder import open_run
from jaxrl_align.runtime.loop import run
from jaxrl_align.text.generation import TextConfig
from jaxrl_align.types import Actor, Evaluation, PaddedTokens, Trajectory
from tests.tiny import BIGRAM, LM, PARAMS, VOCAB, bits, disturb, favour, primitives

P, T, B, STOP, LIKED = 6, 8, 16, 1, 3
STOPPING = favour(LIKED, 1.0, favour(STOP, 1.0))
CONFIG = TextConfig(P, T, missing_stop="keep")
RNG = np.random.default_rng(0)
PROMPTS = RNG.integers(2, VOCAB, (32, P))
REAL = np.arange(P) >= RNG.integers(0, P - 1, (32, 1))
PROMPTS = PaddedTokens(jnp.asarray(np.where(REAL, PROMPTS, 0), jnp.int32), jnp.asarray(REAL, jnp.float32))
SAMPLE = sample_rows(PROMPTS, batch_size=B)
ADAPTER, CONSTANTS = init_lora(jax.random.key(2), PARAMS, rank=2, alpha=4)
BASE = overlay(PARAMS, CONSTANTS)
FROZEN = Frozen(BASE, jnp.float32(1.0))


def count_liked(weight, tokens, mask):
    """Pay for every liked token of the response."""
    return weight * jnp.sum((tokens[P:] == LIKED) * mask[P:])


make = functools.partial(make_rlhf_learner, STOPPING, count_liked, CONFIG, SAMPLE)
LEARNER = make(epochs=2, minibatches=2, total_steps=200)
BRIEF = favour(STOP, 1.8, STOPPING)
"""Stops sooner."""


def make_single(config):
    """Return one gradient step on the whole batch: its metrics are those before the first update."""
    return make_rlhf_learner(
        BRIEF, count_liked, config, SAMPLE, epochs=1, minibatches=1, optimizer=optax.identity()
    )


SINGLE = make_single(CONFIG)
single_step = jax.jit(lambda state, frozen=FROZEN: SINGLE.step(state, None, frozen))


def start(learner=LEARNER, *, key=0, policy=None, **hparams):
    policy = init_policy(STOPPING, PARAMS) if policy is None else policy
    return learner.init(jax.random.key(key), RLHFHParams(**hparams), policy)


@pytest.fixture(scope="module")
def trained():
    """200 steps under JAX's check for reused keys: (jitted step, states, metrics [200])."""
    step = jax.jit(LEARNER.step)
    states = [start(learning_rate=3e-3, kl_coef=0.02, kl_target=4.0)]
    history = []
    with jax.debug_key_reuse(True):
        for _ in range(200):
            state, metrics = step(states[-1], None, FROZEN)
            states = [*states[:2], state]
            history.append(metrics)
    return step, states, {name: np.array([row[name] for row in history]) for name in history[0]}


def test_rlhf_raises_a_toy_reward(trained):
    """It writes the liked token."""
    _, _, history = trained
    score = history["objective/scores"]
    assert score[:5].mean() < 1.0 and score[-10:].mean() > 4.0, (score[:5], score[-10:])
    assert history["objective/kl"][-10:].mean() > 1.0
    assert all(np.isfinite(values).all() for values in history.values())


def test_200_steps_compile_once(trained):
    step, states, _ = trained
    assert states[-1].step == 200
    assert step._cache_size() == 1


def test_the_optimiser_remembers_every_gradient_step(trained):
    """200 steps of 2 epochs with 2 minibatches, over which Adam's moments are carried."""
    assert optax.tree.get(trained[1][-1].opt_state, "count") == 800


def test_the_learning_rate_falls_linearly_to_0(trained):
    """From 3e-3, over the run's 200 steps."""
    np.testing.assert_allclose(trained[2]["learning_rate"], 3e-3 * (200 - np.arange(200)) / 200, rtol=1e-5)


def test_beta_follows_the_kl_of_every_step(trained):
    """By hand from the logged KL; n = 16 episodes, horizon 10,000."""
    beta = 0.02
    for kl, logged in zip(*(trained[2][f"objective/{name}"] for name in ("kl", "kl_coef")), strict=True):
        np.testing.assert_allclose(logged, beta, rtol=1e-5)
        beta *= 1 + np.clip(kl / 4.0 - 1, -0.2, 0.2) * 16 / 10_000
    np.testing.assert_allclose(trained[1][-1].env_state.coef, beta, rtol=1e-5)


def test_no_metric_of_a_run_is_out_of_its_range(trained):
    """Entropies and approximate KL are >= 0, fractions in [0, 1]."""
    history = trained[2]
    for name in ("objective/entropy", "policy/entropy_avg", "policy/approxkl_avg", "loss/value_avg"):
        assert (history[name] >= 0).all(), name
    for name in ("policy/clipfrac_avg", "val/clipfrac_avg"):
        assert (history[name] >= 0).all() and (history[name] <= 1).all(), name


@pytest.mark.parametrize("temperature", [0.7, *(pytest.param(t, marks=pytest.mark.slow) for t in (1.0, 1.3))])
@pytest.mark.parametrize("lora", [pytest.param(False, marks=pytest.mark.slow), True])
def test_before_the_first_update_nothing_has_moved(temperature, lora):
    """Ratio 1, approximate KL 0, KL to the reference 0, at every temperature."""
    policy = init_policy(STOPPING, ADAPTER) if lora else None
    _, metrics = single_step(start(SINGLE, policy=policy, temperature=temperature))
    assert metrics["val/ratio"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["policy/approxkl_avg"] == pytest.approx(0.0, abs=1e-6)
    assert metrics["policy/clipfrac_avg"] == 0.0
    assert metrics["objective/kl"] == pytest.approx(0.0, abs=1e-5)


@pytest.mark.slow
def test_50_more_pads_change_neither_metrics_nor_gradient():
    """The room for answers grows from 8 to 58, and every answer stops before."""
    wide = make_single(TextConfig(P, T + 50, missing_stop="keep"))
    state = start(SINGLE, key=1, entropy_coef=0.1, learning_rate=1.0)
    wide_step = jax.jit(lambda state: wide.step(state, None, FROZEN))
    states, metrics = zip(*(step(state) for step in (single_step, wide_step)), strict=True)
    assert metrics[0]["val/num_eos_tokens"] == B, "an answer did not stop: favour the stop token more"
    assert metrics[0]["response_length"] > 1.5
    assert metrics[0].keys() == metrics[1].keys()
    for name in metrics[0]:
        np.testing.assert_allclose(metrics[1][name], metrics[0][name], atol=1e-5, err_msg=name)
    moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), states[0].params["lm"], PARAMS)
    assert max(jax.tree.leaves(moved)) > 0.05
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), states[0].params, states[1].params)


@functools.cache
def make_batch():
    """Return an actor, policy parameters, their frozen tree and a batch to update on."""
    actor = make_text_actor(favour(STOP, 0.5, BIGRAM), count_liked, CONFIG)
    table = BIGRAM.init(jax.random.key(1))
    params = init_policy(BIGRAM, disturb(table, jax.random.key(2), 0.1))
    frozen = Frozen(table, jnp.float32(1.0))
    hparams = jax.tree.map(jnp.float32, RLHFHParams())
    start = actor.init_env(None, hparams), jax.random.key(3), hparams
    trajectory = jax.jit(actor.rollout)(params, frozen, *start, jax.tree.map(lambda x: x[:4], PROMPTS))[1]
    return actor, params, frozen, Batch(trajectory, *gae_advantages(trajectory))


@pytest.mark.slow
def test_microbatches_weighted_by_their_tokens_give_the_minibatchs_gradient():
    """For answers of unequal lengths, where the plain mean of the microbatches would not."""
    actor, params, frozen, batch = make_batch()

    @jax.jit
    def gradient(params, batch):
        judge = lambda p: jax.vmap(actor.evaluate, (None, None, 0))(p, frozen, batch.trajectory)
        loss = lambda p: ppo_loss(judge(p), batch, RLHFHParams(entropy_coef=0.1))[0]
        return jax.grad(loss)(params)

    counts = np.asarray(batch.trajectory.mask.sum(1))
    assert len(set(counts.tolist())) > 2
    parts = [gradient(params, jax.tree.map(lambda x, i=i: x[i : i + 1], batch)) for i in range(4)]
    together = jax.tree.map(
        lambda *g: sum(c * x for c, x in zip(counts / counts.sum(), g, strict=True)), *parts
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), together, gradient(params, batch))


def test_the_objective_by_hand():
    """Value loss 0.5 max(clipped, unclipped) at 0.1, both clips 0.2; no padding."""
    mask = jnp.array([[1.0, 1.0, 0.0]])
    zeros = jnp.zeros((1, 3))
    trajectory = Trajectory(zeros, zeros, zeros, zeros, zeros, zeros, zeros, zeros, mask)
    batch = Batch(trajectory, jnp.array([[1.0, -1.0, 5.0]]), jnp.array([[2.0, -0.1, 9.0]]))
    evaluation = Evaluation(
        jnp.array([[jnp.log(1.5), jnp.log(0.5), -1e9]]),
        jnp.array([[1.0, 3.0, 7.0]]),
        jnp.array([[1.0, 0.1, 8.0]]),
    )
    loss, metrics = ppo_loss(evaluation, batch, RLHFHParams(entropy_coef=0.01))
    expected = {
        "loss/policy_avg": (-1.2 + 0.8) / 2,
        "loss/value_avg": 0.5 * (1.8**2 + 0.2**2) / 2,
        "policy/entropy_avg": 2.0,
        "policy/approxkl_avg": (1.5 - 1 - np.log(1.5) + 0.5 - 1 - np.log(0.5)) / 2,
        "policy/clipfrac_avg": 1.0,
        "val/clipfrac_avg": 0.5,
        "val/ratio": 1.0,
        "val/ratio_var": 0.25,
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(loss, -0.2 + 0.1 * expected["loss/value_avg"] - 0.01 * 2.0, rtol=1e-5)


def test_whitening_keeps_the_mean_of_rewards_and_not_of_advantages():
    """Biased variance, rsqrt(var + 1e-8), masked."""
    x = jnp.array([[1.2, 1.3, 1.4], [1.5, 1.6, 1.7], [1.8, 1.9, 2.0]])
    kept = [[0.0508, 0.4381, 0.8254], [1.2127, 1.6, 1.9873], [2.3746, 2.7619, 3.1492]]
    np.testing.assert_allclose(whiten(x, keep_mean=True), kept, atol=1e-4)
    np.testing.assert_allclose(whiten(x), np.array(kept) - 1.6, atol=1e-4)
    trajectory = make_batch()[3].trajectory
    advantage, _ = gae_advantages(trajectory)
    real = np.asarray(trajectory.mask) > 0
    assert not advantage[~real].any()
    assert advantage[real].mean() == pytest.approx(0.0, abs=1e-6)
    assert advantage[real].std() == pytest.approx(1.0, abs=1e-4)


def test_every_epoch_has_a_fresh_permutation():
    """An optimiser that only watches sees which rows each minibatch held."""
    rows, epochs, minibatches = 8, 4, 2
    leaf = jnp.ones((rows, 1))
    reward = jax.random.normal(jax.random.key(0), (rows, 1))
    index = jnp.arange(rows)[:, None]
    trajectory = Trajectory(index, index, 0 * leaf, reward, 0 * leaf, 0 * leaf, 0 * leaf, 0 * leaf, leaf)

    def evaluate(params, frozen, trajectory):
        return Evaluation(params[trajectory.obs], jnp.zeros(1), jnp.zeros(1))

    def watch(grads, seen, params):
        return jnp.zeros(rows), (seen[0].at[seen[1]].set(grads != 0), seen[1] + 1)

    watcher = optax.GradientTransformation(
        lambda p: (jnp.zeros((epochs * minibatches, rows), bool), 0), watch
    )
    actor = Actor(lambda key: jnp.zeros(rows), lambda *_: None, lambda *_: (None, trajectory, {}), evaluate)
    learner = make_actor_critic(actor, epochs=epochs, minibatches=minibatches, optimizer=watcher)
    seen = {}
    for seed in (0, 1):
        state, _ = jax.jit(learner.step)(learner.init(jax.random.key(seed), RLHFHParams()))
        seen[seed] = np.asarray(state.opt_state[0])
        assert (seen[seed].reshape(epochs, minibatches, rows).sum(1) == 1).all(), "each row once an epoch"
        assert (seen[seed].sum(1) == rows // minibatches).all()
        assert len({halves.tobytes() for halves in seen[seed][::minibatches]}) > 1
    assert (seen[0] != seen[1]).any()


def test_the_same_key_reproduces_bit_for_bit_and_successive_rollouts_differ():
    """No randomness but the key's, and no key is used twice."""
    state = start(SINGLE, learning_rate=0.0)
    first, again = single_step(state), single_step(state)
    assert bits(first) == bits(again)
    second = single_step(first[0])
    assert second[1]["objective/entropy"] != first[1]["objective/entropy"], "with unchanged parameters"
    other = single_step(start(SINGLE, key=1, learning_rate=0.0))
    assert other[1]["objective/entropy"] != first[1]["objective/entropy"]


def test_with_lora_only_the_adapter_and_the_value_head_learn():
    """The reference is the base with the adapter off, and not a bit of it moves."""
    before = state = start(SINGLE, policy=init_policy(STOPPING, ADAPTER), learning_rate=1.0)
    leaves = lambda tree: sum(x.size for x in jax.tree.leaves(tree))
    assert leaves(state.params) == leaves(ADAPTER) + 17
    reference = bits(FROZEN)
    for _ in range(5):
        state, metrics = single_step(state)
    assert bits(FROZEN) == reference
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.params, before.params)
    assert all(jax.tree.leaves(moved))
    assert metrics["objective/kl"] > 1e-3


@pytest.mark.slow
def test_an_adapted_policy_equals_the_merged_one_against_the_base():
    adapter = disturb(ADAPTER, jax.random.key(3), 0.3)
    merged = merge(overlay(BASE, adapter))
    (_, adapted), (_, full) = (
        single_step(start(SINGLE, policy=init_policy(STOPPING, policy)), FROZEN._replace(reference=base))
        for policy, base in ((adapter, BASE), (merged, PARAMS))
    )
    assert abs(adapted["objective/kl"]) > 0.1
    for name in adapted:
        np.testing.assert_allclose(adapted[name], full[name], atol=2e-4, err_msg=name)


def test_the_step_holds_no_callback():
    """Generation, scoring, GAE and all epochs are one device program, to the last sub-jaxpr."""
    names = primitives(jax.make_jaxpr(LEARNER.step)(start(), None, FROZEN))
    assert {"scan", "dot_general", "argmax", "random_bits"} <= names
    assert not [name for name in names if "callback" in name or "host" in name or "infeed" in name]


def test_the_search_for_callbacks_would_find_one():
    def body(carry, _):
        return jax.jit(lambda x: jax.pure_callback(np.sin, x, x))(carry), None

    assert "pure_callback" in primitives(
        jax.make_jaxpr(lambda x: jax.lax.scan(body, x, None, 2))(jnp.zeros(3))
    )


@pytest.mark.slow
def test_8_vmapped_members_equal_8_single_runs(trained):
    """Seeds and learning rates side by side; the policy has left the reference, so that every batch pays."""
    keys, rates = jax.random.split(jax.random.key(0), 8), jnp.linspace(1e-4, 8e-4, 8)
    policy = init_policy(STOPPING, disturb(PARAMS, jax.random.key(1), 0.03))
    init = lambda key, rate: LEARNER.init(key, RLHFHParams(learning_rate=rate), policy)
    together = jax.jit(jax.vmap(lambda key, rate: LEARNER.step(init(key, rate), None, FROZEN)))(keys, rates)
    for i in range(8):
        member, member_metrics = jax.tree.map(lambda x, i=i: x[i], together)
        with jax.debug_key_reuse(True):
            state, metrics = trained[0](init(keys[i], rates[i]), None, FROZEN)
        assert bits(member.key) == bits(state.key)
        for name in ("params", "env_state"):
            pairs = jax.tree.map(jnp.subtract, getattr(member, name), getattr(state, name))
            assert all(jnp.abs(x).max() < 1e-5 for x in jax.tree.leaves(pairs)), (i, name)
        for name in metrics:
            np.testing.assert_allclose(
                member_metrics[name], metrics[name], rtol=1e-5, atol=1e-5, err_msg=name
            )
    spread = jax.tree.map(lambda x: jnp.ptp(x, 0).max(), together[0].params)
    assert max(jax.tree.leaves(spread)) > 5e-4, "the members must differ"


@pytest.mark.slow
def test_an_interrupted_and_resumed_run_equals_the_uninterrupted_one(tmp_path):
    """Bit for bit: parameters, optimiser, key, KL controller, step and metrics."""
    config, options = {"experiment": "toy"}, {"chunk": 2, "checkpoint_every": 2, "progress": False}
    table = BIGRAM.init(jax.random.key(1))
    learner = make_rlhf_learner(BIGRAM, count_liked, CONFIG, SAMPLE, epochs=2, minibatches=2, total_steps=6)

    options["frozen"] = Frozen(table, jnp.float32(1.0))

    def start(seed):
        return learner.init(jax.random.key(seed), RLHFHParams(kl_horizon=100.0), init_policy(BIGRAM, table))

    state = start(0)
    whole, history = run(learner.step, state, 6, folder=open_run(tmp_path / "whole", config), **options)
    # What a run leaves that was killed in its last chunk: the metrics of all steps, the checkpoint of four.
    shutil.copytree(tmp_path / "whole", tmp_path / "cut", ignore=shutil.ignore_patterns("*6.npz"))
    assert [path.name for path in (tmp_path / "cut").glob("*.npz")] == ["checkpoint_000000004.npz"]
    folder = open_run(tmp_path / "cut", config, resume=True)
    resumed, resumed_history = run(learner.step, start(99), 6, folder=folder, **options)
    for name in ("params", "opt_state", "key", "env_state", "step", "hparams"):
        assert bits(getattr(resumed, name)) == bits(getattr(whole, name)), name
    assert whole.step == 6 and whole.env_state.coef != state.env_state.coef
    assert history.keys() == resumed_history.keys()
    for name in history:
        assert history[name].tobytes() == resumed_history[name].tobytes(), name


@pytest.mark.parametrize(
    ("minibatches", "message"),
    [
        (3, r"must divide trajectories per rollout; got .*=16, minibatches=3; try minibatches=2 or 4"),
        (0, r"got .*=16, minibatches=0; try minibatches=1 or 2"),
        (32, r"got .*=16, minibatches=32; try minibatches=8 or 16"),
    ],
)
def test_minibatches_that_do_not_divide_are_refused_before_compilation(minibatches, message):
    learner = make(minibatches=minibatches)
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(learner.step, start(learner), None, FROZEN)


def test_queries_beyond_the_context_are_refused_when_the_learner_is_built():
    with pytest.raises(ValueError, match="fit the context; got prompt_length=70 .* shorten one of them"):
        make_rlhf_learner(LM, count_liked, TextConfig(70, 11))


def test_the_value_head_starts_at_0():
    assert not any(x.any() for x in jax.tree.leaves(init_policy(LM, PARAMS)["value"]))


def test_a_fresh_state_may_be_donated_and_leaves_what_it_was_given():
    """The controller's coefficient and the hparams' are two buffers; the policy is a copy."""
    policy = init_policy(BIGRAM, BIGRAM.init(jax.random.key(1)))
    before, table = bits(policy), policy["lm"]
    learner = make_rlhf_learner(BIGRAM, count_liked, CONFIG, SAMPLE, epochs=1, minibatches=1)
    state = learner.init(jax.random.key(0), jax.tree.map(jnp.float32, RLHFHParams()), policy)
    state, _ = jax.jit(learner.step, donate_argnums=0)(state, None, Frozen(table, jnp.float32(1.0)))
    jax.jit(learner.step, donate_argnums=0)(state, None, Frozen(table, jnp.float32(1.0)))
    assert bits(policy) == before
