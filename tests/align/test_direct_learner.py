"""Each objective against its formula of log-probabilities from a table; the learner; parity with trl."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxrl_align import nets
from jaxrl_align.align import (
    DirectHParams,
    PairLosses,
    answer_log_probs,
    dpo_objective,
    ipo_objective,
    kto_objective,
    make_direct_learner,
    orpo_objective,
    pair_objective,
    simpo_objective,
    slic_objective,
    with_reference,
)
from jaxrl_align.align.reward_model import stack_pair
from jaxrl_align.data.tokens.padding import left_pad, right_pad
from jaxrl_align.learner import train
from jaxrl_align.nets.transformer import make_transformer
from jaxrl_align.pretrain.lm import predict_row, sample_rows
from jaxrl_align.types import Comparisons, PaddedTokens, Ratings, TokenBatch
from tests.align import make_trl_fixtures as trl
from tests.tiny import BIGRAM, LM, PARAMS, VOCAB, bits, disturb, primitives

KEY = jax.random.key(0)
TABLE = BIGRAM.init(jax.random.key(1))
"""The reference's: logits of each token by the last one."""
POLICY = disturb(TABLE, jax.random.key(9), 0.5)
ROWS, WIDTH = 6, 5
HPARAMS = DirectHParams(
    beta=0.3, label_smoothing=0.2, margin=0.7, target_weight=0.4, desirable_weight=1.5, undesirable_weight=0.6
)


def make_texts(seed, left=False):
    """Return texts [6, 5] of one to five tokens, padded on one side."""
    rng = np.random.default_rng(seed)
    mask = np.arange(WIDTH) < rng.integers(1, WIDTH + 1, (ROWS, 1))
    mask = mask[:, ::-1] if left else mask
    tokens = np.where(mask, rng.integers(2, VOCAB, (ROWS, WIDTH)), 0)
    return PaddedTokens(jnp.asarray(tokens, jnp.int32), jnp.asarray(mask, jnp.float32))


PROMPT, A, B = make_texts(0, left=True), make_texts(1), make_texts(2)
FLIP, VALUE = jnp.array([0.0, 0.1, 0.3, 0.5, 0.0, 0.2]), jnp.array([1.0, 0.0, 1.0, 1.0, 0.0, 0.25])
OTHERS = np.array([2, 3, 4, 5, 0, 1])
PAIRS = Comparisons(PROMPT, A, B)
REFERENCED = with_reference(BIGRAM, TABLE, PAIRS._replace(flip_chance=FLIP), batch_size=4)
PLAIN = REFERENCED._replace(rows=PAIRS)
LABELLED = with_reference(BIGRAM, TABLE, Ratings(PROMPT, A, VALUE), others=OTHERS)


def count_steps(prompt, text):
    """Return how often each token follows each other one, [6, V, V], in texts behind their prompts."""
    found = np.zeros((ROWS, VOCAB, VOCAB), np.float32)
    for i in range(ROWS):
        before, after = (np.asarray(t.tokens[i])[np.asarray(t.real[i]) > 0] for t in (prompt, text))
        for last, token in zip([before[-1], *after[:-1]], after, strict=True):
            found[i, last, token] += 1
    return found


STEPS = {"a": count_steps(PROMPT, A), "b": count_steps(PROMPT, B)}
STEPS["other"] = count_steps(PROMPT, jax.tree.map(lambda x: x[OTHERS], A))
nats = lambda table, steps: jnp.einsum("rij,ij->r", steps, jax.nn.log_softmax(table))
NEW, OLD = (
    {k: np.asarray(nats(table, x), np.float64) for k, x in STEPS.items()} for table in (POLICY, TABLE)
)
LENGTH = {"a": np.asarray(A.real.sum(-1)), "b": np.asarray(B.real.sum(-1))}
RATIO = {name: NEW[name] - OLD[name] for name in NEW}
Z = RATIO["other"].mean() + 3.0
FAR = LABELLED._replace(log_prob=LABELLED.log_prob - jnp.array([[0.0, 3.0]]))
"""z is above 0: held there it would tell nothing."""
MEAN = {name: NEW[name] / LENGTH[name] for name in LENGTH}
nls = lambda d: np.log1p(np.exp(-np.asarray(d)))
sigmoid = lambda d: 1 / (1 + np.exp(-np.asarray(d)))


def run(objective, batch, hparams=HPARAMS, params=POLICY, **options):
    """Return an objective's value and metrics."""
    value, metrics = jax.jit(lambda p, b: objective(BIGRAM, **options)(p, None, b, KEY, hparams))(
        params, batch
    )
    return float(value), {name: float(x) for name, x in metrics.items()}


def close(got, expected, tolerance=1e-5):
    np.testing.assert_allclose(got, expected, rtol=tolerance, atol=tolerance)


def check_pairs(metrics, rewards, log_prob):
    """Compare the metrics of pairs with rewards and log-probabilities of both sides."""
    (chosen, rejected), gap = rewards, rewards[0] - rewards[1]
    close([metrics["rewards/chosen"], metrics["rewards/rejected"]], [chosen.mean(), rejected.mean()])
    close([metrics["rewards/margins"], metrics["rewards/accuracies"]], [gap.mean(), (gap > 0).mean()])
    close([metrics["logps/chosen"], metrics["logps/rejected"]], [x.mean() for x in log_prob])


def test_the_reference_is_read_once_for_all_rows():
    """Two columns, as each answer read apart; a rating's second one is of another row's answer."""
    close(REFERENCED.log_prob, np.stack([OLD["a"], OLD["b"]], 1))
    close(LABELLED.log_prob, np.stack([OLD["a"], OLD["other"]], 1))
    np.testing.assert_array_equal(LABELLED.other.tokens, A.tokens[OTHERS])
    assert np.abs(RATIO["a"]).mean() > 0.1 and len({*LENGTH["a"]}) > 2


def test_every_rating_lends_its_answer_to_one_other_row():
    """One round through all rows, so that none keeps its own."""
    data = with_reference(BIGRAM, TABLE, Ratings(PROMPT, numbered(), VALUE))
    other = np.asarray(data.other.tokens[:, 0]) - 2
    seen, row = [], 0
    for _ in range(ROWS):
        seen.append(row)
        row = other[row]
    assert sorted(seen) == list(range(ROWS)) and row == 0
    assert len({*((other - np.arange(ROWS)) % ROWS)}) > 1, "not all from the row before"
    again = with_reference(BIGRAM, TABLE, Ratings(PROMPT, numbered(), VALUE))
    assert bits(again) == bits(data)


numbered = lambda: PaddedTokens(jnp.arange(2, 2 + ROWS)[:, None], jnp.ones((ROWS, 1)))


def test_dpo_by_hand():
    """A row's doubt and the learner's are two flips in turn; without both it is the paper's equation 7."""
    gap = HPARAMS.beta * (RATIO["a"] - RATIO["b"])
    flip = np.asarray(FLIP) * 0.8 + (1 - np.asarray(FLIP)) * 0.2
    value, metrics = run(dpo_objective, REFERENCED)
    close(value, ((1 - flip) * nls(gap) + flip * nls(-gap)).mean())
    check_pairs(metrics, [HPARAMS.beta * RATIO[x] for x in "ab"], [NEW["a"], NEW["b"]])
    value, _ = run(dpo_objective, PLAIN, HPARAMS._replace(label_smoothing=0.0))
    close(value, nls(gap).mean())


def test_a_margin_is_not_read():
    rows = PAIRS._replace(margin=jnp.full(ROWS, 3.0), flip_chance=FLIP)
    assert run(dpo_objective, REFERENCED._replace(rows=rows)) == run(dpo_objective, REFERENCED)


def test_ipo_by_hand():
    """The loss averages over an answer's tokens, the rewards that are told do not."""
    value, metrics = run(ipo_objective, PLAIN)
    h = RATIO["a"] / LENGTH["a"] - RATIO["b"] / LENGTH["b"]
    close(value, ((h - 1 / (2 * HPARAMS.beta)) ** 2).mean())
    check_pairs(metrics, [HPARAMS.beta * RATIO[x] for x in "ab"], [NEW["a"], NEW["b"]])


@pytest.mark.parametrize("batch", [PAIRS, PLAIN], ids=["pairs", "referenced"])
def test_orpo_by_hand(batch):
    value, metrics = run(orpo_objective, batch)
    odds = {x: MEAN[x] - np.log1p(-np.exp(MEAN[x])) for x in "ab"}
    ratio = odds["a"] - odds["b"]
    close(value, (-MEAN["a"] + HPARAMS.beta * nls(ratio)).mean())
    close(metrics["nll_loss"], -MEAN["a"].mean())
    close([metrics["log_odds_chosen"], metrics["log_odds_ratio"]], [ratio.mean(), -nls(ratio).mean()])
    check_pairs(metrics, [HPARAMS.beta * MEAN[x] for x in "ab"], [MEAN["a"], MEAN["b"]])


def test_simpo_by_hand():
    value, metrics = run(simpo_objective, PAIRS)
    close(value, nls(HPARAMS.beta * (MEAN["a"] - MEAN["b"]) - HPARAMS.margin).mean())
    check_pairs(metrics, [HPARAMS.beta * MEAN[x] for x in "ab"], [MEAN["a"], MEAN["b"]])


def test_slic_by_hand():
    value, metrics = run(slic_objective, PAIRS)
    hinge = np.maximum(0, HPARAMS.margin - NEW["a"] + NEW["b"])
    close(value, (hinge - HPARAMS.target_weight * NEW["a"]).mean())
    check_pairs(metrics, [NEW["a"], NEW["b"]], [NEW["a"], NEW["b"]])


def test_kto_by_hand():
    """z is measured by other rows' answers; a share of the votes weighs both sides."""
    beta, good = HPARAMS.beta, np.asarray(VALUE)
    gain = beta * (RATIO["a"] - Z)
    value, metrics = run(kto_objective, FAR)
    close(value, (good * 1.5 * sigmoid(-gain) + (1 - good) * 0.6 * sigmoid(gain)).mean())
    close(metrics["kl"], Z)
    side = lambda x, weight: (x * weight).sum() / weight.sum()
    chosen, rejected = (side(beta * RATIO["a"], weight) for weight in (good, 1 - good))
    close([metrics["rewards/chosen"], metrics["rewards/rejected"]], [chosen, rejected])
    close(metrics["rewards/margins"], chosen - rejected)
    close(metrics["logps/chosen"], side(NEW["a"], good))
    close(metrics["logps/rejected"], side(NEW["a"], 1 - good))


def test_kto_holds_z_at_0_and_says_what_a_batch_has_none_of():
    back = LABELLED._replace(
        log_prob=LABELLED.log_prob + 5.0, rows=LABELLED.rows._replace(value=jnp.ones(ROWS))
    )
    value, metrics = run(kto_objective, back)
    close(value, (1.5 * sigmoid(-HPARAMS.beta * (RATIO["a"] - 5.0))).mean())
    assert metrics["kl"] == 0.0 and np.isfinite(metrics["rewards/chosen"])
    assert np.isnan(
        [metrics[f"{x}"] for x in ("rewards/rejected", "rewards/margins", "logps/rejected")]
    ).all()


def written_dpo(params):
    new, flip = {name: nats(params, STEPS[name]) for name in "ab"}, 0.2 + 0.6 * FLIP
    gap = 5.0 * ((new["a"] - OLD["a"]) - (new["b"] - OLD["b"]))
    return jnp.mean((1 - flip) * jax.nn.softplus(-gap) + flip * jax.nn.softplus(gap))


def written_kto(params):
    gain = 0.3 * (nats(params, STEPS["a"]) - OLD["a"] - Z)
    return jnp.mean(1.5 * VALUE * jax.nn.sigmoid(-gain) + 0.6 * (1 - VALUE) * jax.nn.sigmoid(gain))


@pytest.mark.parametrize(
    ("objective", "batch", "written", "beta"),
    [(dpo_objective, REFERENCED, written_dpo, 5.0), (kto_objective, FAR, written_kto, 0.3)],
    ids=["dpo", "kto"],
)
def test_a_step_by_hand(objective, batch, written, beta):
    """Adam's first step behind a global norm of 1, at a rate that rises; KTO's z has no gradient.

    In four parts, one in memory at a time, the step is the same.
    """
    gradient = jax.jit(jax.grad(written))(POLICY)
    norm = np.sqrt(sum(float(jnp.sum(g**2)) for g in jax.tree.leaves(gradient)))
    scale = min(1.0, 1.0 / norm)
    assert (norm > 1.5) == (beta > 1.0), "one of the two is clipped"
    for parts in (1, 3):
        learner = make_direct_learner(BIGRAM, objective=objective(BIGRAM, microbatches=parts), warmup_steps=3)
        state = learner.init(KEY, HPARAMS._replace(learning_rate=0.04, beta=beta), POLICY)
        state, metrics = jax.jit(learner.step)(state, batch)
        close(metrics["grad_norm"], norm, 1e-4)
        close(metrics["learning_rate"], 0.01)
        moment = state.opt_state
        for got, g in zip(jax.tree.leaves(moments(moment)), jax.tree.leaves(gradient), strict=True):
            np.testing.assert_allclose(got, 0.1 * scale * g, rtol=1e-4, atol=1e-6)

        def moved(old, new, g):
            clear = np.abs(scale * g) > 1e-4  # the sign of what is nearly 0 is rounding's
            np.testing.assert_allclose((new - old)[clear], -0.01 * np.sign(g)[clear], rtol=2e-3)

        jax.tree.map(moved, POLICY, state.params, gradient)


def moments(opt_state):
    """Return Adam's first moment out of an optimiser's state."""
    is_adam = lambda x: isinstance(x, optax.ScaleByAdamState)
    return next(x for x in jax.tree.leaves(opt_state, is_leaf=is_adam) if is_adam(x)).mu


def test_a_lora_starts_at_the_reference_and_the_base_stays():
    """The reference is the base without the part; the state holds the part alone; dropout is by row."""
    part, constants = nets.init_lora(jax.random.key(3), PARAMS, rank=2, dropout=0.5)
    base = nets.overlay(PARAMS, constants)
    rows = with_reference(LM, base, PAIRS)
    learner = make_direct_learner(LM)
    state = learner.init(KEY, DirectHParams(0.05, beta=1.0), part)
    step = jax.jit(learner.step)
    state, metrics = step(state, rows, base)
    close(metrics["loss"], np.log(2), 1e-6)
    assert metrics["rewards/margins"] == pytest.approx(0.0, abs=1e-5)
    assert jax.tree.structure(state.params) == jax.tree.structure(part)
    held = sum(x.size for x in jax.tree.leaves((state.params, state.opt_state)))
    assert held < 4 * sum(x.size for x in jax.tree.leaves(part))
    before = bits(base)
    for _ in range(8):
        state, metrics = step(state, rows, base)
    assert metrics["rewards/margins"] > 1.0 and bits(base) == before
    other, _ = step(state._replace(key=jax.random.key(77)), rows, base)
    one, _ = step(state, rows, base)
    assert bits(one.params) != bits(other.params), "the key draws what is dropped"
    thrice = jax.tree.map(lambda x: jnp.stack([x[0]] * 3), (PROMPT, stack_pair(PAIRS)))
    read = jax.jit(lambda params, rows: answer_log_probs(LM, params, *rows, KEY))
    assert np.ptp(read(nets.overlay(base, state.params), thrice), 0).min() > 1e-3


def test_rows_take_their_reference_along_when_they_are_sampled():
    """Twenty of six rows, in any order, and all is as the rows themselves say."""
    batch = sample_rows(LABELLED, batch_size=20)(KEY)
    drawn, prompts = np.asarray(batch.rows.prompt.tokens), np.asarray(PROMPT.tokens)
    where = [int(np.flatnonzero((prompts == row).all(-1))[0]) for row in drawn]
    assert len({*where}) > 3
    close(batch.log_prob, LABELLED.log_prob[np.array(where)])
    np.testing.assert_array_equal(batch.other.tokens, A.tokens[OTHERS[where]])


@pytest.mark.parametrize("side", [(6, 0), (0, 6), (3, 3)])
def test_padding_changes_nothing(side):
    """More of it before and behind prompts and answers, with tokens in it."""
    pad = lambda text: PaddedTokens(
        jnp.pad(text.tokens, ((0, 0), side), constant_values=7), jnp.pad(text.real, ((0, 0), side))
    )
    wide = with_reference(BIGRAM, TABLE, Comparisons(pad(PROMPT), pad(A), pad(B), flip_chance=FLIP))
    got, expected = run(dpo_objective, wide), run(dpo_objective, REFERENCED)
    close(got[0], expected[0])
    assert got[1] == pytest.approx(expected[1], abs=1e-5)


def test_8_vmapped_members_equal_8_single_runs():
    """Seeds and hyperparameters side by side: rates, beta and doubts are traced."""
    learner = make_direct_learner(BIGRAM, sample_rows(PLAIN, batch_size=4), total_steps=8)
    run = train(learner, 4)

    @jax.jit
    def one(key, spread):
        return run(key, DirectHParams(0.1 * spread, spread, 0.4 * spread), POLICY)

    keys, spreads = jax.random.split(KEY, 8), jnp.linspace(0.1, 1.0, 8)
    members, metrics = jax.jit(jax.vmap(one))(keys, spreads)
    for i in range(8):
        state, history = one(keys[i], spreads[i])
        close(members.params[i], state.params)
        for name in history:
            close(metrics[name][i], history[name])
    assert np.ptp(members.params, 0).max() > 0.1, "the members must differ"
    fall = 0.1 * np.array([1.0, 7 / 8, 6 / 8, 5 / 8])
    close(metrics["learning_rate"], np.asarray(spreads)[:, None] * fall)


def test_a_step_compiles_once_and_leaves_the_device_never():
    learner = make_direct_learner(BIGRAM, sample_rows(PLAIN, batch_size=4))
    step = jax.jit(learner.step, donate_argnums=0)
    state = learner.init(KEY, DirectHParams(), TABLE)
    assert not any("callback" in name for name in primitives(jax.make_jaxpr(learner.step)(state)))
    for _ in range(200):
        state, _ = step(state)
    assert step._cache_size() == 1


def test_another_loss_of_pairs():
    """TRL's hinge, in a line."""
    loss = lambda read, hparams: PairLosses(
        jax.nn.relu(1.0 - (read.log_prob - read.reference) @ jnp.array([1.0, -1.0])),
        read.log_prob - read.reference,
        read.log_prob,
        {"longest": jnp.max(read.lengths)},
    )
    value, metrics = run(lambda lm: pair_objective(lm, loss, referenced=True), PLAIN)
    close(value, np.maximum(0.0, 1 - (RATIO["a"] - RATIO["b"])).mean())
    assert metrics["longest"] == WIDTH


def test_a_batch_that_no_number_of_parts_divides_is_refused():
    with pytest.raises(ValueError, match="microbatches must divide rows; got rows=6, microbatches=4; try"):
        dpo_objective(BIGRAM, microbatches=4)(TABLE, None, REFERENCED, KEY, HPARAMS)


def test_a_learner_starts_from_nothing_and_uses_keys_once():
    learner = make_direct_learner(BIGRAM, sample_rows(PAIRS, batch_size=4), objective=orpo_objective(BIGRAM))
    with jax.debug_key_reuse(True):
        state, metrics = jax.jit(learner.step)(jax.jit(learner.init)(KEY, DirectHParams()))
    assert np.isfinite(metrics["loss"])


FIXTURE = json.loads(trl.FIXTURE.read_text(encoding="utf-8"))
TRL_LM = make_transformer(trl.CONFIG)
WEIGHTS = [jax.tree.map(jnp.asarray, params) for params in trl.draw_models()]
TRL_HPARAMS = DirectHParams(1.0, trl.BETA, 0.0, trl.MARGIN, 0.0, *trl.WEIGHTS)


def of_trl(rows, *names):
    """Return texts of the fixture's rows, wider than any."""
    pads = (left_pad if name == "prompt" else right_pad for name in names)
    return [pad([row[name] for row in rows], 9, 0) for pad, name in zip(pads, names, strict=True)]


@functools.cache
def referenced():
    rows = Comparisons(*of_trl(trl.draw_rows(), "prompt", "chosen", "rejected"))
    return with_reference(TRL_LM, WEIGHTS[0], rows)


def rated(reference):
    rows = trl.unpair(trl.draw_rows())
    labels = jnp.array([float(row["label"]) for row in rows])
    before = np.roll(np.arange(len(rows)), 1)
    return with_reference(
        TRL_LM, reference, Ratings(*of_trl(rows, "prompt", "completion"), labels), others=before
    )


def bare():
    return Comparisons(*of_trl(trl.draw_rows(trl.BARE), "prompt", "chosen", "rejected"))


CASES = {
    "dpo": (dpo_objective, referenced, 0.0),
    "cdpo": (dpo_objective, referenced, trl.SMOOTHING),
    "ipo": (ipo_objective, referenced, 0.0),
    "simpo": (simpo_objective, referenced, 0.0),
    "orpo": (orpo_objective, referenced, 0.0),
    "orpo_bare": (orpo_objective, bare, 0.0),
    "kto": (kto_objective, lambda: rated(WEIGHTS[1]), 0.0),
    "kto_clamped": (kto_objective, lambda: rated(WEIGHTS[0]), 0.0),
}


def answer(name):
    """Return our loss and metrics of the batch that trl's trainer got."""
    objective, make_batch, smoothing = CASES[name]
    hparams, policy = TRL_HPARAMS._replace(label_smoothing=smoothing), WEIGHTS[0 if name == "kto" else 1]
    loss, metrics = jax.jit(lambda p, b: objective(TRL_LM)(p, None, b, KEY, hparams))(policy, make_batch())
    return {"loss": float(loss)} | {k: float(x) for k, x in metrics.items()}


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"orpo"}))
def test_losses_and_metrics_are_those_of_trl(name):
    """End to end: tokens, padding, positions, logits and sums, on weights that trl read from our folder."""
    assert FIXTURE["rows"] == trl.draw_rows()
    theirs, ours = FIXTURE["answers"][name], answer(name)
    shared = ours.keys() & theirs.keys()
    assert {"loss", "rewards/margins", "logps/chosen"} <= shared
    for metric in shared:
        np.testing.assert_allclose(ours[metric], theirs[metric], atol=1e-5, rtol=1e-6, err_msg=metric)


def test_trl_s_orpo_differs_by_what_it_imitates():
    """Its likelihood is of prompts too, over all tokens at once; the odds ratio is the same."""
    theirs, ours = FIXTURE["answers"]["orpo"], answer("orpo")
    for metric in theirs.keys() - {"loss", "nll_loss"}:
        close(ours[metric], theirs[metric])
    close(ours["loss"] - ours["nll_loss"], theirs["loss"] - theirs["nll_loss"])
    rows = [[*row["prompt"], *row["chosen"]] for row in trl.draw_rows()]
    tokens, real = right_pad(rows, 12, 0)
    found, _, counts = jax.jit(jax.vmap(lambda row: predict_row(TRL_LM, WEIGHTS[1], row)))(
        TokenBatch(jnp.asarray(tokens), jnp.asarray(real), jnp.asarray(real))
    )
    close(jnp.sum(found * counts) / jnp.sum(counts), theirs["nll_loss"])
    assert abs(ours["nll_loss"] - theirs["nll_loss"]) > 0.05
