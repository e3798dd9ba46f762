"""Over-optimisation: the laws and peaks by hand, every run with its own models, and a run in miniature."""

import dataclasses
import itertools
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.experiments.loading import load, read_result
from tests.experiments.test_answers import FakeFolder, make_tiny_pool
from tests.experiments.test_rlhf import CORPUS
from tests.tiny import LM

load("rlhf_setup").SAMPLES = 8
over = load("overoptimisation")
laws = load("overoptimisation_report")
SMALL = {
    "seeds": 2,
    "tuning_seeds": 1,
    "vocab_size": 280,
    "width": 16,
    "heads": 2,
    "pretrain_steps": 4,
    "sft_steps": 2,
    "prompts": 8,
    "comparisons": (2, 8),
    "test_prompts": 2,
    "test_answers": 16,
    "reward_steps": 4,
    "learning_rates": (1e-2,),
    "policy_rates": (1e-3,),
    "policy_steps": 20,
    "prompts_per_step": 4,
    "kl_coefs": (0.0, 0.5),
}


@pytest.mark.parametrize(("form", "other"), [("best of n", "PPO"), ("PPO", "best of n")])
def test_each_law_is_found_in_its_own_points(form, other):
    d = np.array([0.0, 0.5, 1.0, 2.0, 4.0])
    shape = {"best of n": d, "PPO": np.log(np.maximum(d, 1e-9))}[form]
    reward = d * (2.0 - 0.5 * shape)
    np.testing.assert_allclose(laws.fit(d, reward, form), (2.0, 0.5, 1.0), rtol=1e-9)
    assert laws.fit(d, reward, other).r2 < 0.999


def test_a_members_peak_is_chosen_by_the_others():
    """Two members: each one's peak is where the other's gold reward is largest."""
    gold = np.array([[0.0, 0.0], [3.0, 1.0], [1.0, 2.0], [-1.0, 0.5]])
    curve = laws.Curve(np.arange(8.0).reshape(4, 2), gold, np.full((4, 2), 4.0) * np.arange(4)[:, None])
    peak = laws.find_peak(curve)
    np.testing.assert_array_equal(peak["peak at sqrt KL"], [4.0, 3.0])
    np.testing.assert_array_equal(peak["gold there"], [1.0, 1.0])
    np.testing.assert_array_equal(peak["share real"], [1 / 8, 1 / 4])
    np.testing.assert_array_equal(peak["gold, end - peak"], [-2.0, -0.5])


def test_a_run_is_held_against_the_free_one_as_far_away():
    free = laws.Curve(np.array([[0.0], [4.0], [2.0]]), np.array([[0.0], [1.0], [3.0]]), np.zeros((3, 1)))
    held = laws.Curve(np.array([[0.0], [3.0]]), np.array([[0.0], [2.5]]), np.zeros((2, 1)))
    np.testing.assert_allclose(laws.off_path(held, free), [0.5])


def make_models(pool, count):
    """Return reward models of random heads, leaves [count, M, ...], of different gains."""
    keys = jax.random.split(jax.random.key(0), (count, 3))
    draw = lambda key, params: over.rm.init_reward_params(key, LM, params)
    params = jax.vmap(jax.vmap(draw), (0, None))(keys, pool.params)
    return over.rm.RewardModel(params, 1.0 + jnp.arange(3.0 * count).reshape(count, 3), jnp.ones((count, 3)))


def test_the_best_of_two_by_enumeration():
    """Over all pairs of 4 answers: gold reward and score of the better scored, for each model and member."""
    pool = make_tiny_pool()
    models, config = make_models(pool, 2), over.Config(**SMALL | {"test_answers": 4})
    found = over.choose_best(config, pool, models)
    pairs = list(itertools.combinations(range(4), 2))
    for c, m in itertools.product(range(2), range(2)):
        params = jax.tree.map(lambda x, c=c, m=m: x[c, m][None], models.params)
        scores = over.score_answers(LM, params, pool.test, np.array([m]))[0] * float(models.gain[c, m])
        gold = pool.test.gold[m] / pool.test.gold[m].std()
        best = [[max(pair, key=lambda i, row=row: row[i]) for pair in pairs] for row in scores]
        for values, curve in ((gold, found[c].gold), (scores, found[c].proxy)):
            expected = np.take_along_axis(values, np.array(best), 1).mean() - values.mean()
            np.testing.assert_allclose(curve[0, m], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[0].root_kl[:, 0] ** 2, [np.log(2) - 1 / 2, np.log(4) - 3 / 4], rtol=1e-5)


def test_the_smaller_sets_begin_the_larger_and_prefer_the_better(monkeypatch):
    pool, config = make_tiny_pool(), over.Config(**SMALL | {"annotator_temperature": 1e-9})
    few, many = (over.annotate(config, pool, 1, count) for count in config.comparisons)
    for a, b in zip(jax.tree.leaves(few), jax.tree.leaves(many), strict=True):
        np.testing.assert_array_equal(a, np.tile(b[:2], (4, 1)))
    better = pool.train.gold[1, :8, :2].argmax(1)
    texts = pool.train.completions.tokens[1, np.arange(8), better]
    np.testing.assert_array_equal(many.chosen.tokens, texts)


def test_agreement_by_hand():
    """Gaps 0, which does not count, and log 3, log 4 at temperature 1: chances 3 / 4 and 4 / 5."""
    gold = np.array([[[2.0, 2.0], [0.0, np.log(3.0)], [np.log(4.0), 0.0]]])
    pool = SimpleNamespace(train=SimpleNamespace(gold=gold))
    np.testing.assert_allclose(over.agreement(over.Config(**SMALL), pool), [0.775])


def test_every_run_has_its_own_models_coefficient_and_seed(monkeypatch):
    """Rows [comparisons, seed] of the models; the reference is the seed's; all runs of a seed share keys."""
    seen, pool = {}, make_tiny_pool()

    def train_members(learner, hparams, config, steps, **how):
        seen.update(how, hparams=hparams)

    rows = {0: {name: np.zeros(3) for name in ("kl", "gold", "score")}}
    monkeypatch.setattr(over, "train_members", train_members)
    monkeypatch.setattr(over, "make_rlhf_learner", lambda *_, **__: None)
    monkeypatch.setattr(over.rlhf, "read_steps", lambda *_: rows)
    samples = SimpleNamespace(kl=np.zeros((3, 8)), gold=np.zeros((3, 8)))
    setup = SimpleNamespace(
        lm=LM,
        text=over.rlhf_setup.TextConfig(2, 3),
        prompts=jax.tree.map(lambda x: x[0], pool.train.prompts),
        test_prompts=None,
        keys=lambda purpose: jax.random.split(jax.random.key(purpose), 3),
        draw_prompts=lambda count, source, purpose: pool.test.prompts,
        write=lambda *_: samples,
        score_answers=lambda *_: np.zeros((3, 8)),
    )
    folder = SimpleNamespace(path=SimpleNamespace(name="x"), write_json=lambda *_: None)
    runs = [over.Run(1, 0.0, 0.1, 2), over.Run(0, 0.3, 0.2, 2), over.Run(1, 0.5, 0.3, 0)]
    models = make_models(pool, 2)
    over.optimise(over.Config(**SMALL), folder, setup, pool, models, runs)
    np.testing.assert_allclose(seen["hparams"].kl_coef, [0.0, 0.3, 0.5], rtol=1e-6)
    np.testing.assert_allclose(seen["hparams"].learning_rate, [0.1, 0.2, 0.3], rtol=1e-6)
    np.testing.assert_array_equal(seen["frozen"].reward_model.gain, models.gain[[1, 0, 1], [2, 2, 0]])
    for mine, leaf in zip(*map(jax.tree.leaves, (seen["frozen"].reference, pool.params)), strict=True):
        np.testing.assert_array_equal(mine, leaf[np.array([2, 2, 0])])
    keys = np.asarray(jax.random.key_data(seen["keys"]))
    assert (keys[0] == keys[1]).all() and (keys[0] != keys[2]).any()


def test_the_rate_is_chosen_by_the_score_of_other_members(monkeypatch):
    config = over.Config(**SMALL | {"policy_rates": (0.1, 0.2, 0.3), "tuning_seeds": 2})

    def optimise(config, folder, setup, pool, models, runs):
        assert {run.seed for run in runs} == {2, 3} and {run[:2] for run in runs} == {(0, 0.0)}
        proxy = np.array([[0.0] * 6, [1.0, 1.0, 4.0, 2.0, 6.1, 0.0]])
        return laws.Curve(proxy, -proxy, proxy)

    monkeypatch.setattr(over, "optimise", optimise)
    rate, tried = over.tune(config, FakeFolder(), None, None, None)
    assert rate == 0.2 and tried["PPO"] == pytest.approx(
        {"0.1": 1.0, "0.2": 3.0, "0.3": 3.05, "taken": "0.2"}
    )


def test_the_verdict_is_that_of_intervals_that_leave_nothing_open():
    up, down, open_up, open_down = (laws.Interval(x, x - 1, x + 1, "t") for x in (2.0, -2.0, 0.5, -0.5))
    few = {"score, end - peak": up, "gold, end - peak": down, laws.GAP: up}
    better = {"peak at sqrt KL": up, "gold at end": up}
    kept = {16: up, 1024: up}
    forms = {"best of n": laws.Law({}, 0.95, open_up), "PPO": laws.Law({}, 0.5, up)}
    failing = lambda *found: [i for i, x in enumerate(laws.judge(laws.Decided(*found)).values()) if not x]
    assert failing(few, better, kept, forms) == []
    for i, key in enumerate(few):
        wide = open_down if key == "gold, end - peak" else open_up
        assert failing(few | {key: wide}, better, kept, forms) == [i]
    for i, key in enumerate(better):
        assert failing(few, better | {key: open_up}, kept, forms) == [3 + i]
    for i, key in enumerate(kept):
        assert failing(few, better, kept | {key: open_up}, forms) == [5 + i]
    assert failing(few, better, kept, forms | {"best of n": laws.Law({}, 0.85, up)}) == [7]
    assert failing(few, better, kept, forms | {"PPO": laws.Law({}, 0.95, open_up)}) == [8]


def test_what_decides_is_of_the_free_runs_by_hand():
    """The fewest comparisons end at a score of 4 and a gold reward of 1, 2 with a penalty; the most at 3."""
    curve = lambda *gold: laws.Curve(
        *(
            np.array(x)[:, None] + np.array([0.0, 0.01])
            for x in ([0.0, 1.0, 2.0], [0.0, *gold], [0.0, 2.0, 4.0])
        )
    )
    zero = curve(0.5, 0.5)
    found = {
        many: laws.Found(None, zero, {0.0: curve(2.0, gold), 0.1: curve(1.0, 2.0), 0.3: zero})
        for many, gold in ((16, 1.0), (64, 3.0))
    }
    decided, penalty = laws.decide(found)
    assert penalty == 0.1 and decided.few[laws.GAP].value == pytest.approx(3.0)
    assert decided.better["gold at end"].value == pytest.approx(2.0)
    assert {many: round(x.value, 6) for many, x in decided.kept.items()} == {16: 1.0, 64: -1.0}


@pytest.mark.parametrize("method", laws.METHODS)
def test_a_law_is_described_by_its_own_form(method):
    d = np.array([[0.0], [0.5], [1.0], [2.0], [4.0]]) * np.array([1.0, 1.5])
    shape = {"best of n": d, "PPO": np.log(np.maximum(d, 1e-9))}[method]
    law = laws.describe_law(laws.Curve(d, d * (2.0 - 0.5 * shape), d), method)
    own = law.rows[laws.LAWS[method]]
    assert [own[key].value for key in ("alpha", "beta", "R^2")] == pytest.approx([2.0, 0.5, 1.0])
    assert law.lowest == own["lowest R^2"] == pytest.approx(1.0)
    assert (law.gap.value > 0) == (method == "PPO")


@pytest.mark.slow
def test_a_run_in_miniature_continues_to_the_same_result(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(over, "tune", lambda config, *_: (config.policy_rates[0], {}))
    corpus, out = tmp_path / "corpus.txt", tmp_path / "run"
    corpus.write_text(CORPUS, encoding="utf-8")
    config = over.Config(out=str(out), corpus=str(corpus), **SMALL)
    over.main(config)
    first = read_result(out)
    found = json.loads((out / "values.json").read_text(encoding="utf-8"))
    for row in found.values():
        proxy = np.array(row["best of n"]["proxy"])
        assert proxy.shape == (4, 2) and (proxy[0] > 0).all() and (np.diff(proxy, axis=0) > -1e-5).all()
        np.testing.assert_allclose([row["0"][name][0] for name in row["0"]], 0.0, atol=1e-3)
        assert row["0"]["root_kl"][-1] != row["0.5"]["root_kl"][-1]
    ends = first["tables"]["PPO's last step, by coefficient of the KL penalty"]
    free = ends["8 comparisons, coefficient 0"]
    assert free["gold less the free run's as far away"]["value"] == pytest.approx(0.0, abs=1e-6)
    assert free["gold"]["value"] == pytest.approx(np.mean(found["8"]["0"]["gold"][-1]))
    gap, better = (cell["value"] for cell in first["headline"].values())
    end = {key: np.array(found["2"]["0"][key][-1]) for key in ("proxy", "gold")}
    assert gap == pytest.approx(np.mean(end["proxy"] - end["gold"]))
    assert better == pytest.approx(free["gold"]["value"] - np.mean(end["gold"]))
    kept = first["tables"]["gold reward at the end, coefficient 0.5 less none"]["2 comparisons"]["difference"]
    assert kept["value"] == pytest.approx(np.mean(np.array(found["2"]["0.5"]["gold"][-1]) - end["gold"]))
    right = first["tables"]["pairs ordered rightly [%]"]
    assert right["2 comparisons"] != right["8 comparisons"] and len(first["checks"]) == 9
    assert (out / "overoptimisation.png").stat().st_size > 20_000
    (out / "result.json").unlink()
    over.main(dataclasses.replace(config, resume=True))
    assert read_result(out) == first
    assert "log d less d" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kl_coefs": (0.1,)}, "kl_coefs must hold 0"),
        ({"policy_rates": (1e-3, 1e-4)}, "policy_rates must be in rising order"),
        ({"comparisons": (8, 16)}, "prompts must be at least 16"),
        ({"minibatches": 3}, "minibatches must divide prompts_per_step"),
    ],
)
def test_what_would_leave_nothing_to_report_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        over.Config(**SMALL | change)
