"""Signs, variances and importance sampling in miniature; what is called exact equals what differentiates."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.runtime import Interval

from .loading import load

SMALL = {"seeds": 3, "paths": 400, "horizon": 6, "states": 3, "actions": 2}


@pytest.fixture(scope="module")
def estimators():
    return load("estimators")


@pytest.fixture(scope="module")
def importance():
    return load("importance_sampling")


def process_of(module, config):
    return module.make_process(jax.random.key(3), config)


def test_the_exact_expectation_is_the_gradient_without_a_discount_and_differs_with_one(estimators):
    process = process_of(estimators, estimators.Config(states=4, actions=3))
    exact = jax.grad(estimators.expected_return)(process.logits, process, 7)
    got = estimators.expected_estimate(process, 7, 1.0)
    np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-5)
    assert np.abs(estimators.expected_estimate(process, 7, 0.5) - exact).max() > 1e-3


def test_the_exact_expectation_is_the_mean_of_many_discounted_estimates(estimators):
    config = estimators.Config(states=3, actions=2, horizon=5, paths=100_000)
    process = process_of(estimators, config)
    paths = estimators.sample_paths(jax.random.key(1), process, config)
    discount = jnp.full(5, 0.6)
    weight = jax.vmap(estimators.losses.discounted_returns, (0, None))(paths.reward, discount)
    mean, variance = estimators.gradient_moments(process.logits, paths, weight)
    away = np.sum(np.square(mean - estimators.expected_estimate(process, 5, 0.6)))
    assert away < 5 * variance / config.paths


def test_the_variance_of_paths_is_about_their_mean(estimators):
    """The scores of actions 0 and 1 under a uniform policy are (+-1/2, -+1/2), weighed by 1 and by 3."""
    paths = estimators.Paths(jnp.zeros((2, 1), int), jnp.array([[0], [1]]), jnp.zeros((2, 1)))
    mean, variance = estimators.gradient_moments(jnp.zeros((1, 2)), paths, jnp.array([[1.0], [3.0]]))
    np.testing.assert_allclose(mean, [[-0.5, 0.5]])
    np.testing.assert_allclose(variance, 2 * 1.0)


def test_small_steps_have_the_sign_of_the_return(estimators):
    config = estimators.Config(rates=(1e-3,), states=3, actions=2, horizon=5, paths=500)
    process = process_of(estimators, config)
    paths = estimators.sample_paths(jax.random.key(1), process, config)
    np.testing.assert_allclose(estimators.signs(config, process, paths), [[1.0, 1.0]], atol=0.01)


def test_growth_is_the_power_of_the_horizon(estimators):
    horizons = (5, 10, 40)
    found = np.stack([3.0 * np.array(horizons) ** 2.5, np.array(horizons) ** 1.0], -1)[None]
    np.testing.assert_allclose(estimators.growth(horizons, found), [[2.5, 1.0]])


def test_moments_of_weights_by_enumeration(importance):
    """Two steps of a process of two states: 32 paths, each with its probability under both policies."""
    process = process_of(importance, importance.Config(states=2, actions=2))
    other = process.logits + jnp.array([[0.5, -0.3], [0.1, 0.9]])
    p, q = jax.nn.softmax(process.logits), jax.nn.softmax(other)
    kl = square = 0.0
    for s, a, t, b in np.ndindex(2, 2, 2, 2):
        world = process.start[s] * process.transition[s, a, t]
        by_p, by_q = world * p[s, a] * p[t, b], world * q[s, a] * q[t, b]
        kl += by_p * np.log(by_p / by_q)
        square += by_p**2 / by_q
    np.testing.assert_allclose(importance.moments(process, other, 2), (kl, square), rtol=1e-5)


def test_weighted_returns_of_another_policy_estimate_this_one(importance):
    config = importance.Config(states=3, actions=2, horizon=5, paths=20_000)
    process = process_of(importance, config)
    kl, exact, sampled, error, variance = importance.weigh(config, process, jax.random.key(0), 0.3)
    assert 0.01 < kl < 1 and abs(sampled - exact) < 0.1 and abs(error) < 4 and variance > 1
    kl, exact, sampled, error, variance = importance.weigh(config, process, jax.random.key(0), 0.0)
    np.testing.assert_allclose([kl, exact, sampled], [0, 1, 1], atol=1e-5)
    assert abs(error) < 4 and 0.9 < variance < 1.1


def test_the_best_return_is_that_of_all_deterministic_plans(importance):
    process = process_of(importance, importance.Config(states=2, actions=2))
    plans = np.ndindex(2, 2, 2, 2)  # the action in each state, at the first step and at the second

    def value(plan):
        first, second = np.reshape(plan, (2, 2))
        later = process.reward[np.arange(2), second]
        now = process.reward[np.arange(2), first] + process.transition[np.arange(2), first] @ later
        return process.start @ now

    np.testing.assert_allclose(importance.best_return(process, 2), max(map(value, plans)), rtol=1e-6)


def test_one_step_is_the_same_from_old_paths_with_and_without_the_ratio(importance):
    config = importance.Config(states=3, actions=2, horizon=5, old_paths=50, steps=(1, 20))
    process = process_of(importance, config)
    gains = [importance.reuse(config, process, jax.random.key(0), name) for name in importance.LOSSES]
    first, later = np.array(gains).T
    np.testing.assert_allclose(first[2:], first[1], rtol=1e-4)
    assert len(set(later)) == 4 and np.all(later <= 1) and np.all(later[:3] > first[:3])


def near(value, half=0.1):
    return Interval(value, value - half, value + half, "t")


def test_the_estimators_verdict_is_that_of_their_tables(estimators):
    config = estimators.Config(rates=(0.1, 1.0), batches=(2, 9), discounts=(1.0, 0.5, 0.0))
    above, below = estimators.ABOVE, estimators.BELOW

    def tables(rate=99.9, power=1.0, relative=1.0, variance=0.5, bias=2.0, few=0.5, many=2.0):
        row = {"over the one above's": near(variance), "over the one above's bias": near(bias)}
        row |= {"error of 2 paths": near(few), "error of 9 paths": near(many)}
        powers = dict(zip(estimators.NAMES, (power, power, 2, relative, relative), strict=True))
        return {
            estimators.SIGNS: {
                "rate 0.1": {above: near(99.9), below: near(99.9)},
                "rate 1": {above: near(rate), below: near(100)},
            },
            estimators.POWERS: {name: {"power": near(x)} for name, x in powers.items()},
            estimators.DISCOUNTS: {"1": {}, "0.5": row, "0": row},
        }

    judged = lambda **change: list(estimators.judge(config, tables(**change)).values())
    assert judged() == [True] * 8
    worse = {"rate": 99.05, "power": 0, "relative": 0, "variance": 1, "bias": 1, "few": 1, "many": 1}
    for place, (name, value) in enumerate(worse.items(), start=1):
        assert judged(**{name: value}) == [True] * place + [False] + [True] * (7 - place)
    low = tables()
    low[estimators.SIGNS]["rate 0.1"][below] = near(99.0)
    assert list(estimators.judge(config, low).values())[:3] == [False, False, True]


def test_the_estimators_tables_are_those_of_the_processes(estimators):
    """Two processes that agree: intervals of no width, each ratio as it is made."""
    config = estimators.Config(rates=(0.1,), horizons=(1, 10), discounts=(1.0, 0.5, 0.0), batches=(10,))
    found = {
        "signs": np.array([[[1.0, 0.5]]]),
        "horizon": np.array([[[2.0, 3.0, 1.0], [2000.0, 300.0, 10.0]]]),
        "discount": np.array([[[8.0, 0.0], [4.0, 0.1], [1.0, 0.3]]]),
    }
    tables = estimators.tabulate(config, {name: np.repeat(x, 2, 0) for name, x in found.items()})
    value = lambda table: {
        row: {c: round(x.value, 9) for c, x in cells.items()} for row, cells in table.items()
    }
    signs, powers, discounts = (value(table) for table in tables.values())
    assert signs == {"rate 0.1": {estimators.ABOVE: 100, estimators.BELOW: 50}}
    assert [row["power"] for row in powers.values()] == [3, 2, 1, 2, 1]
    assert discounts == {
        "1": {"variance over none's": 1, "error of 10 paths": 1},
        "0.5": {
            "variance over none's": 0.5,
            "over the one above's": 0.5,
            "squared bias / |gradient|^2": 0.1,
            "error of 10 paths": 0.625,
        },
        "0": {
            "variance over none's": 0.125,
            "over the one above's": 0.25,
            "squared bias / |gradient|^2": 0.3,
            "over the one above's bias": 3,
            "error of 10 paths": 0.5,
        },
    }


def test_the_verdict_on_importance_sampling_is_that_of_its_tables(importance):
    config = importance.Config(steps=(1, 9))

    def tables(trusted=0.0, less=0.0, lost=1.0, own=2.0, behind=1.0, mended=1.0, missing=0.0):
        row = {importance.LOST: near(lost), importance.OWN: near(own)}
        pairs = {"fresh less none": behind, "ratio less none": mended, "fresh less ratio": missing}
        return {
            importance.WEIGHTS: {"0": {}, "0.1": row, "0.2": row},
            importance.MISSES: {"10% or more": {"misses": near(trusted)}, "less": {"misses": near(less)}},
            importance.PAIRED: {name: {"1 steps": None, "9 steps": near(x)} for name, x in pairs.items()},
        }

    judged = lambda **change: list(importance.judge(config, tables(**change)).values())
    assert judged() == [True] * 7
    worse = {"trusted": 20, "less": 20, "lost": 0, "own": 1, "behind": 0, "mended": 0, "missing": 9.95}
    for place, (name, value) in enumerate(worse.items()):
        assert judged(**{name: value}) == [True] * place + [False] + [True] * (6 - place)


def test_the_tables_of_importance_sampling_are_those_of_the_processes(importance):
    config = importance.Config(shifts=(0.0, 1.0), steps=(1, 9))
    weights = np.array([[[0.0, 1.0, 1.0, 0.5, 1.0], [2.0, 0.05, 0.07, 3.0, 4.0]]])
    gains = np.array([[[0.1, 0.9], [0.1, 0.5], [0.1, 0.8], [0.1, 0.2]]])
    tables = importance.tabulate_weights(config, np.repeat(weights, 2, 0))
    own, other = tables[importance.WEIGHTS].values()
    assert importance.LOST not in own and other[importance.LOST].value == pytest.approx(95)
    assert other[importance.SHARE].value == pytest.approx(5) and other[importance.OWN].value == pytest.approx(
        4
    )
    assert other["as the sample tells it"].value == pytest.approx(7)
    misses = {name: row["misses"].value for name, row in tables[importance.MISSES].items()}
    assert misses == {"10% or more": 0, "less": 100}
    tables = importance.tabulate_gains(config, np.repeat(gains, 2, 0))
    assert tables[importance.GAINS][importance.RATIO]["9 steps"].value == pytest.approx(80)
    last = [row["9 steps"].value for row in tables[importance.PAIRED].values()]
    np.testing.assert_allclose(last, [40, 30, 10])


@pytest.mark.slow
@pytest.mark.parametrize("name", ["estimators", "importance_sampling"])
def test_it_runs_to_its_figure_and_resumes(name, tmp_path, capsys):
    module = load(name)
    extra = {"horizons": (3, 6)} if name == "estimators" else {"steps": (1, 4), "old_paths": 20}
    module.main(module.Config(out=str(tmp_path), **SMALL, **extra))
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert len(result["tables"]) > 2 and len(result["checks"]) > 5
    assert (tmp_path / f"{name}.png").stat().st_size > 5_000
    (tmp_path / "process_2.json").unlink()  # as if interrupted in the last process
    module.main(module.Config(out=str(tmp_path), resume=True, **SMALL, **extra))
    again = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert again | {"run": None} == result | {"run": None}


@pytest.mark.parametrize("name", ["estimators", "importance_sampling"])
def test_refuses_before_a_folder_is_made(name, tmp_path):
    module, out = load(name), tmp_path / "run"
    with pytest.raises(ValueError, match="seeds must be at least 2; got seeds=1"):
        module.main(module.Config(out=str(out), seeds=1))
    assert not out.exists()
