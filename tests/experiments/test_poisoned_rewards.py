"""Labels of an attacked crowd, best-of-n by hand, and a run in miniature."""

import numpy as np
import pytest

from tests.experiments.loading import load, read_result
from tests.experiments.test_answers import FakeFolder, Miniature, make_tiny_pool

poisoned, report = load("poisoned_rewards"), load("poisoned_rewards_report")


def test_a_pair_differs_in_its_gold_reward():
    gold = np.array([[1.0, 1.0, 2.0], [2.0, 2.0, 1.0], [3.0, 2.0, 1.0], [1.0, 1.0, 1.0]])
    np.testing.assert_array_equal(poisoned.choose_pairs(gold), [[0, 2], [0, 2], [0, 1], [0, 1]])


def test_hard_and_soft_labels_by_hand():
    probs = np.array([0.9, 0.5, 0.2])
    for soft, doubt in ((True, [0.1, 0.5, 0.2]), (False, [0.0, 0.5, 0.0])):
        chosen, flips = poisoned.label(probs, soft)
        np.testing.assert_array_equal(chosen, [0, 0, 1])
        np.testing.assert_allclose(flips, doubt)


def test_best_of_n_by_hand():
    """Pairs (2, 1), (0, 5) and (4, 3), (7, 8): chosen are the rewards 10, 40, 50 and 80."""
    scores = np.array([[2.0, 1.0, 0.0, 5.0], [4.0, 3.0, 7.0, 8.0]])
    reward = np.array([[10.0, 20.0, 30.0, 40.0], [50.0, 60.0, 70.0, 80.0]])
    assert report.best_of(scores, reward, 1) == 45.0
    assert report.best_of(scores, reward, 2) == 45.0
    assert report.best_of(scores, reward, 4) == 60.0
    np.testing.assert_array_equal(report.best_of(np.stack([scores, -scores]), reward, 4), [60.0, 45.0])


def test_rewards_have_mean_0_and_deviation_1_over_a_members_answers():
    pool = make_tiny_pool()
    judged = poisoned.rate_answers(pool.train)
    for x in judged:
        np.testing.assert_allclose([x.mean((1, 2)), x.std((1, 2))], [[0] * 3, [1] * 3], atol=1e-12)
    lengths = [[len(text) for text in member] for member in pool.train.texts]
    rank = lambda x: np.argsort(np.argsort(x, kind="stable"), kind="stable")
    np.testing.assert_array_equal(rank(judged.popularity[1].reshape(-1)), rank(np.array(lengths[1])))


def test_rows_prefer_what_the_crowd_prefers():
    """An exact crowd that agrees chooses the better answer; one of liars is believed by the majority."""
    pool = make_tiny_pool()
    judged = poisoned.rate_answers(pool.train)
    judged.gold[0, :5, 1] = judged.gold[0, :5, 0]
    config = poisoned.Config(
        noise=0.0, tie_width=0.0, annotators=3, votes=3, known=1.0, **Miniature()._asdict()
    )
    pair = poisoned.choose_pairs(judged.gold[0])
    gold = np.take_along_axis(judged.gold[0], pair, 1)
    better = pair[np.arange(10), gold.argmax(1)]
    expected = pool.train.completions.tokens[0, np.arange(10), better]
    made = poisoned.ask(config, pool.train, judged, 0, "honest")
    assert list(made) == list(poisoned.LABELS)
    for row in made.values():
        assert row.accuracy == 1.0
        np.testing.assert_array_equal(row.rows.chosen.tokens, expected)
        assert row.rows.flip_chance.max() < 0.2
    assert made["majority"].rows.flip_chance.max() == 0.0 < made["Dawid-Skene, soft"].rows.flip_chance.min()
    popular = poisoned.ask(config, pool.train, judged, 0, "popular 60%")
    assert popular["majority"].accuracy < 1.0


def test_the_rate_is_chosen_on_other_members(monkeypatch):
    """Scores of the second rate are the gold reward, those of the first its opposite."""
    pool, size = make_tiny_pool(), Miniature()
    config = poisoned.Config(known=1.0, **size._asdict() | {"learning_rates": (0.1, 0.2)})

    def fit(pool, config, folder, members, labelled, rates):
        assert list(members) == [2] and [len(setting) for setting in labelled] == [1, 1]
        return np.stack([-pool.test.gold[2:], pool.test.gold[2:]])

    monkeypatch.setattr(poisoned, "fit", fit)
    rate, tried = poisoned.tune(pool, config, FakeFolder(), poisoned.rate_answers(pool.train))
    assert rate == 0.2 and tried["majority of honest crowds"] == {"0.1": 0.0, "0.2": 100.0, "taken": "0.2"}


def test_the_verdict_is_that_of_intervals_that_leave_nothing_open():
    seeds = np.array([0.0, 0.02])
    way = lambda gold, popularity=0.5: {
        "gold": np.stack([0 * seeds, gold + seeds]),
        "popularity": np.stack([0 * seeds, popularity + seeds])
    }  # fmt: skip
    names = ("majority", "Dawid-Skene, soft", "test questions, soft")
    row = lambda *ways: dict(zip(names, ways, strict=True))
    good = {
        "honest": row(way(1), way(1), way(1)),
        "random 40%": row(way(0), way(-1), way(0)),
        "coordinated 40%": row(way(0), way(1), way(1)),
        "popular 40%": row(way(0.6), way(1), way(1)),
        "popular 60%": row(way(0), way(-1, 1.0), way(0.9)),
    }
    failing = lambda found: [i for i, holds in enumerate(report.judge(found).values()) if not holds]
    assert failing(good) == []
    change = lambda attack, name, value: good | {attack: good[attack] | {name: value}}
    assert failing(change("popular 60%", "majority", way(np.array([0.0, 1.5])))) == [0]
    assert failing(change("popular 60%", "Dawid-Skene, soft", way(np.array([-0.5, 0.1]), 1.0))) == [1]
    assert failing(change("popular 60%", "Dawid-Skene, soft", way(-1, np.array([0.4, 1.4])))) == [2]
    assert failing(change("coordinated 40%", "Dawid-Skene, soft", way(np.array([-0.1, 1.0])))) == [3]
    assert failing(change("popular 40%", "Dawid-Skene, soft", way(np.array([0.5, 1.0])))) == [4]
    for attack in report.CLIQUES:
        assert failing(change(attack, "test questions, soft", way(np.array([0.4, 1.3])))) == [5]
    assert failing(change("random 40%", "test questions, soft", way(np.array([0.0, 1.5])))) == [6]


@pytest.mark.slow
def test_a_run_in_miniature(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(poisoned, "make_pool", lambda *_: make_tiny_pool())
    poisoned.main(poisoned.Config(out=str(tmp_path / "run"), **Miniature()._asdict()))
    assert "popular 60%, majority" in capsys.readouterr().out
    result = read_result(tmp_path / "run")
    table, limits, _ = result["tables"].values()
    assert list(table) == [f"{attack}, {way}" for attack in poisoned.ATTACKS for way in poisoned.LABELS]
    gold = lambda attack: table[f"{attack}, majority"]["gold"]["value"]
    (less,) = result["headline"].values()
    assert less["value"] == pytest.approx(gold("popular 60%") - gold("honest")) and len(result["checks"]) == 7
    assert limits["best of 4 by gold itself"]["gold"]["value"] >= gold("honest")
    assert result["figures"][0] == "popular_60.png" and len(result["figures"]) == 5
    assert (tmp_path / "run" / "popular_60.png").stat().st_size > 5_000


def test_answers_that_make_no_equal_groups_are_refused():
    with pytest.raises(ValueError, match="test_answers must be a power of 2; got 12; try 32"):
        poisoned.Config(test_answers=12)
