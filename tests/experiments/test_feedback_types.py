"""What the crowd is asked for each kind of feedback, and a run in miniature."""

import dataclasses

import numpy as np
import pytest

from jaxrl_align.runtime import Interval
from jaxrl_align.types import PaddedTokens
from tests.experiments.loading import load, read_result
from tests.experiments.test_answers import FakeFolder, Miniature, answers, make_tiny_pool

types, report = load("feedback_types"), load("feedback_types_report")
EXACT = types.Config(noise=0.0, prompts=12, answers=4, offset_deviation=0.0, scale_deviation=0.0)
GOLD = np.random.default_rng(0).permuted(np.tile([1.0, 2.0, 3.0, 4.0], (12, 1)), axis=1)[None]


def texts(*shape):
    """Return texts whose only token is their number."""
    return PaddedTokens(np.arange(np.prod(shape)).reshape(*shape, 1), np.ones((*shape, 1)))


POOL = answers.Answers(texts(1, 12), texts(1, 12, 4), GOLD, [])


def ask(kind, config=EXACT, **job):
    job = types.Job(kind, **{"noise": 0.0, "spread": 1.0, "rate": 0.0} | job)
    return types.ask(config, POOL, 0, len, job)


def gold_of(completions):
    return GOLD.reshape(-1)[completions.tokens[..., 0]]


def test_comparisons_and_corrections_of_an_exact_crowd():
    pairs = ask("comparison")
    better = GOLD[0, :, :2].max(1)
    np.testing.assert_array_equal(gold_of(pairs.chosen), better)
    np.testing.assert_array_equal(gold_of(pairs.rejected), GOLD[0, :, :2].min(1))
    np.testing.assert_array_equal(pairs.prompt.tokens[:, 0], np.arange(12))
    fixed = ask("correction")
    assert len(fixed.prompt.tokens) == 12 and (gold_of(fixed.chosen) == 4.0).all()
    np.testing.assert_array_equal(gold_of(fixed.rejected), GOLD[0, fixed.prompt.tokens[:, 0], 0])
    assert set(fixed.prompt.tokens[:, 0]) == set(np.flatnonzero(GOLD[0, :, 0] < 4.0))


@pytest.mark.parametrize(
    ("kind", "asked"), [("ranking", 12), ("ranking, K - 1", 4), ("ranking, K log2 K", 1)]
)
def test_rankings_cost_what_they_say(kind, asked):
    """Of K = 4 answers, 12 units buy 12, 12 / 3 and 12 / 8 rankings; the rows are repeated in turn."""
    found = ask(kind)
    np.testing.assert_array_equal(found.prompt.tokens[:, 0], np.arange(12) % asked)
    np.testing.assert_array_equal(5 - found.ranks, gold_of(found.completions))
    assert found.mask.shape == (12, 4) and found.mask.all()


def test_ratings_labels_and_remarks_follow_the_gold_reward():
    """The exact crowd's points are 5.5 + 2 (gold - 2.5) = 2.5, 4.5, 6.5, 8.5, rounded to even ones."""
    points = np.array([2.0, 4.0, 6.0, 8.0])[GOLD[0, :, 0].astype(int) - 1]
    z = (points - points.mean()) / points.std()
    found = ask("rating")
    np.testing.assert_allclose(found.value, np.tile(z, 2), rtol=1e-5)
    np.testing.assert_array_equal(gold_of(found.completion), np.tile(GOLD[0, :, 0], 2))
    twice = ask("the same, two for one", dataclasses.replace(EXACT, annotators=1))
    np.testing.assert_array_equal(gold_of(twice.completion), GOLD[0, :, :2].T.reshape(-1))
    assert np.corrcoef(twice.value, gold_of(twice.completion))[0, 1] > 0.99
    np.testing.assert_array_equal(ask("label").value[:12], GOLD[0, :, 0] > 2.5)
    scores = ask("text", dataclasses.replace(EXACT, annotators=1)).value[:12]
    assert abs(scores.mean()) < 1e-6 and abs(scores.std() - 1) < 1e-5


def test_a_crowd_differs_in_noise_and_spread_alone():
    config = types.Config()
    crowds = [
        types.make_crowd(config, GOLD[0], 0, types.Job("", n, s, 0.0)) for n, s in ((1, 1), (2, 1), (1, 0))
    ]
    scales = [[(a.offset, a.scale) for a in crowd.annotators] for crowd in crowds]
    assert scales[0] == scales[1] and set(scales[2]) == {(0.5, 2.0)}
    offset, log = np.array(scales[0])[:, 0], np.log(np.array(scales[0])[:, 1] / 2.0)
    centre = offset + 2.5 * np.array(scales[0])[:, 1]
    assert 0.3 < log.std() < 0.7 and 1.2 < centre.std() < 2.8 and abs(centre.mean() - 5.5) < 1.5
    assert {a.noise for a in crowds[1].annotators} == {2}


def test_what_is_trained_and_whose_rate_it_takes(monkeypatch):
    """The second rate is best for standardised ratings, and for comparisons in the mean over the noises."""
    config = types.Config(noises=(0.5, 2.0), learning_rates=(0.1, 0.2))
    jobs = types.list_jobs(config)
    assert len(jobs) == len(set(jobs)) == 10 + 5
    comparisons = {(0.5, 0.1): 0.6, (0.5, 0.2): 0.5, (2.0, 0.1): 0.5, (2.0, 0.2): 0.8}

    def quality(job):
        if job.kind == "comparison":
            return comparisons[job.noise, job.rate]
        return float((job.kind == "rating, standardised") == (job.rate == 0.2))

    def measure(pool, config, folder, members, jobs, scorer):
        assert list(members) == [6, 7]
        return {job: np.array([quality(job)] * 2) for job in jobs}

    monkeypatch.setattr(types, "measure", measure)
    tuned, tried = types.tune(None, config, FakeFolder(), None)
    assert tried["comparison"]["taken"] == tried["rating, standardised"]["taken"] == "0.2"
    assert [job._replace(rate=0.0) for job in tuned] == jobs
    assert {job[:3] for job in tuned if job.rate == 0.2} == {
        ("comparison", 0.5, 1.0),
        ("comparison", 2.0, 1.0),
        ("rating, standardised", 0.5, 1.0),
        ("rating, standardised", 2.0, 1.0),
        ("the same, two for one", 0.5, 1.0),
        ("rating", 0.5, 0.0),
        ("rating", 2.0, 0.0),
    }


@pytest.mark.slow
def test_a_run_in_miniature(tmp_path, capsys, monkeypatch):
    words = (["good fine best", "bad poor awful"], [1, 0])
    monkeypatch.setattr(types, "load_sst2", lambda: type("Splits", (), {"train": words}))
    monkeypatch.setattr(types, "make_pool", lambda *_: make_tiny_pool())
    types.main(types.Config(out=str(tmp_path / "run"), noises=(0.5, 1.0), **Miniature()._asdict()))
    assert "ranking, K log2 K" in capsys.readouterr().out
    result = read_result(tmp_path / "run")
    six, noises = (list(result["tables"].values())[i] for i in (0, 1))
    assert set(six) == {*types.KINDS, "the shorter answer"}
    assert list(noises) == [
        "comparisons",
        *(f"{name}{end}" for name in list(report.CURVES)[1:] for end in ("", ", less comparisons")),
    ]
    (raw,) = result["headline"].values()
    assert raw == noises["ratings, less comparisons"]["0.5"] == six["rating"]["less comparisons"]
    gap = six["rating"]["accuracy"]["value"] - six["comparison"]["accuracy"]["value"]
    assert raw["value"] == pytest.approx(gap) and len(result["checks"]) == 5
    assert (tmp_path / "run" / "feedback_types.png").stat().st_size > 5_000


def test_the_verdict_is_that_of_intervals_that_leave_nothing_open():
    up, down, level, open_down = (Interval(x, x - 2, x + 2, "t") for x in (4.0, -4.0, 0.5, -0.5))
    kinds, raw = {"rating": up, "label": up}, {0.5: down, 2.0: down}
    failing = lambda *found: [i for i, x in enumerate(report.judge(report.Decided(*found)).values()) if not x]
    assert failing(kinds, raw, level, up) == []
    assert failing(kinds | {"label": level}, raw, level, up) == [0]
    assert failing(kinds, raw | {2.0: open_down}, level, up) == [2]
    assert failing(kinds, raw, Interval(-1.5, -3.5, 0.5, "t"), up) == [3] == failing(kinds, raw, up, up)
    assert failing(kinds, raw, level, level) == [4]


def test_what_decides_by_hand():
    """Comparisons have .8, raw ratings .7, standardised ones .75, on one scale .9, the shorter answer .5."""
    accuracy = dict(zip(report.CURVES.values(), (0.8, 0.7, 0.75, 0.9), strict=True))
    seeds = np.array([0.0, 0.02])
    found = {
        types.Job(kind, noise, spread): x + seeds
        for noise in (0.5, 2.0)
        for (kind, spread), x in accuracy.items()
    }
    decided = report.decide(types.Config(noises=(0.5, 2.0)), found, 0.5 + seeds)
    value = lambda x: round(x.value, 6)
    assert {kind: value(x) for kind, x in decided.over_short.items()} == {
        "comparison": 30.0, "rating": 20.0, "rating, standardised": 25.0
    }  # fmt: skip
    assert [value(x) for x in decided.raw.values()] == [-10.0, -10.0]
    assert (value(decided.level), value(decided.scale)) == (-5.0, 20.0)
