"""Each fault of simulated annotators by its frequency, and what a crowd's answers become."""

import numpy as np
import pytest

from jaxrl_align.feedback import (
    TIE,
    Annotator,
    Comment,
    Comparison,
    Correction,
    Crowd,
    Judgements,
    Label,
    Ranking,
    Rating,
    Votes,
    as_rows,
    dawid_skene,
    fit_sentiment,
    log_odds,
    majority,
    rate_comments,
    read_feedback,
    soft_labels,
)
from jaxrl_align.feedback.sentiment import REMARKS
from jaxrl_align.losses import bradley_terry

N = 20_000
PAIR = np.tile([1.3, 1.0], (N, 1))
"""The first answer is better by 0.3."""


def crowd(*annotators, seed=0):
    return Crowd(annotators, np.random.default_rng(seed))


def one(seed=0, **faults):
    """Return a crowd of one annotator."""
    return crowd(Annotator(**faults), seed=seed)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def near(hits, probability):
    """Check a frequency within 4 standard errors."""
    hits = np.asarray(hits)
    assert abs(hits.mean() - probability) < 4 * (probability * (1 - probability) / hits.size) ** 0.5


@pytest.mark.parametrize(
    ("faults", "gap"),
    [
        ({"noise": 1.0}, 0.3),
        ({"noise": 0.3, "position_bias": 0.2}, 0.5 / 0.3),
        ({"noise": 0.5, "position_bias": -0.7}, -0.4 / 0.5),
        ({"noise": 2.0, "length_bias": 0.1}, (0.3 - 0.1 * 12) / 2),
        ({"noise": 1.0, "offset": 5.0, "scale": 3.0}, 0.3),
    ],
)
def test_choices_are_logistic_in_the_perceived_gap(faults, gap):
    """The second answer is 12 tokens longer; an own scale of ratings changes no comparison."""
    votes = one(**faults).compare(PAIR, lengths=np.tile([30, 42], (N, 1)))
    near(votes.label == 0, sigmoid(gap))
    assert set(votes.label.tolist()) == {0, 1}


def test_ties_are_those_of_rao_and_kupper():
    label = one(noise=0.4, tie_width=0.5).compare(PAIR).label
    near(label == 0, sigmoid((0.3 - 0.5) / 0.4))
    near(label == 1, sigmoid((-0.3 - 0.5) / 0.4))
    near(label == TIE, 1 - sigmoid(-0.2 / 0.4) - sigmoid(-0.8 / 0.4))


def test_without_noise_the_width_is_sharp():
    gold = np.array([[0.0, 0.25], [0.5, 0.0], [0.0, 0.5], [0.0, 0.75]])
    assert one(tie_width=0.5).compare(gold).label.tolist() == [TIE, 0, 1, 1]


def test_equal_answers_are_chosen_by_lot_where_nobody_says_tie():
    near(one().compare(np.zeros((N, 2))).label == 0, 0.5)


def test_the_lazy_answer_without_reading():
    """A share L of coins, the rest right; or of the answer shown first. They never say tie."""
    near(one(laziness=0.3).compare(PAIR).label == 0, 0.7 + 0.15)
    near(one(laziness=0.3, habit="first").compare(PAIR[:, ::-1]).label == 0, 0.3)
    near(one(laziness=0.3, habit="first", tie_width=9.0).compare(PAIR).label == TIE, 0.7)
    shuffled = one(laziness=1.0, habit="first").compare(PAIR, shuffle=True).label
    near(shuffled == 0, 0.5)


def test_an_order_of_their_own_cancels_the_bias_of_position():
    label = one(noise=0.5, position_bias=0.8).compare(PAIR, shuffle=True).label
    near(label == 0, (sigmoid(1.1 / 0.5) + sigmoid(-0.5 / 0.5)) / 2)


def test_random_malice_reverses_each_judgement_on_its_own():
    near(one(malice=0.3).compare(PAIR).label == 0, 0.7)
    near(one(malice=0.2, noise=0.5).compare(PAIR).label == 0, 0.8 * sigmoid(0.6) + 0.2 * sigmoid(-0.6))
    assert (one(malice=1.0, tie_width=1.0).compare(PAIR).label == TIE).all()
    liar = one(malice=1.0)
    assert liar.rank([[3.0, 1.0, 2.0]]).value.tolist() == [[3, 1, 2]]
    assert liar.correct([[3.0, 1.0, 2.0]]).label.tolist() == [1]
    assert liar.rate([2.0, 9.0], low=1, high=10).label.tolist() == [9, 2]
    assert liar.label([2.0, 9.0], 5.0).label.tolist() == [1, 0]


def test_a_clique_agrees_on_another_reward():
    """Two by popularity, one by the gold: all three answer every item."""
    rng = np.random.default_rng(3)
    gold, popularity = rng.normal(size=(2, 500, 2))
    fan = Annotator(target="popularity")
    votes = crowd(fan, Annotator(), fan).compare(gold, votes=3, others={"popularity": popularity})
    for annotator, reward in enumerate((popularity, gold, popularity)):
        mine = votes.annotator == annotator
        np.testing.assert_array_equal(votes.item[mine], np.arange(500))
        np.testing.assert_array_equal(votes.label[mine], reward[:, 1] > reward[:, 0])


def test_every_item_has_different_annotators_and_queries_are_counted():
    asked = crowd(*[Annotator(noise=i / 5) for i in range(5)])
    votes = asked.compare(PAIR[:2000], votes=3)
    np.testing.assert_array_equal(votes.item, np.repeat(np.arange(2000), 3))
    assert all(len(set(three)) == 3 for three in votes.annotator.reshape(-1, 3).tolist())
    np.testing.assert_array_equal(asked.queries, np.bincount(votes.annotator, minlength=5))
    for annotator in range(5):
        near(votes.annotator[: 3 * 2000 : 3] == annotator, 0.2)
        near((votes.annotator == annotator).reshape(-1, 3).any(1), 0.6)
    before = asked.queries.copy()
    asked.rank(np.zeros((3, 4)), who=[[4, 4], [0, 4], [4, 1]])
    asked.comment([1.0, 2.0], who=[[2], [2]])
    asked.label([1.0], votes=5)
    asked.rate([1.0], votes=5)
    np.testing.assert_array_equal(asked.queries - before, [3, 3, 4, 2, 6])


def test_who_is_asked_judges():
    votes = crowd(Annotator(), Annotator(malice=1.0)).compare(PAIR[:3], who=[[1, 0], [0, 0], [1, 1]])
    assert votes.annotator.tolist() == [1, 0, 0, 0, 1, 1]
    assert votes.label.tolist() == [1, 0, 0, 0, 1, 1]


def test_rankings_are_plackett_and_luces():
    gold = np.array([0.5, 0.0, 1.0])
    places = one(noise=0.7).rank(np.tile(gold, (N, 1))).value
    strength = np.exp(gold / 0.7)
    for order in ([2, 0, 1], [0, 1, 2], [1, 2, 0]):
        first, second, third = strength[order]
        chance = first / strength.sum() * second / (second + third)
        near((places.argsort(1) == order).all(1), chance)


def test_neighbours_in_the_order_share_a_place():
    gold = [[0.0, 5.0, 0.5, 3.0, 4.5], [9.0, 8.75, 8.5, 0.0, 0.0]]
    assert one(tie_width=0.75).rank(gold).value.tolist() == [[3, 1, 3, 2, 1], [1, 1, 1, 2, 2]]
    lazy = one(tie_width=0.75, laziness=1.0, habit="first").rank(gold).value
    assert lazy.tolist() == [[1, 2, 3, 4, 5]] * 2
    places = one(laziness=1.0).rank(np.tile(gold[0], (N, 1))).value
    assert set(places.sum(1)) == {15}
    for column in range(5):
        near(places[:, column] == 1, 0.2)


def test_a_correction_is_the_best_perceived_text():
    gold = np.tile([0.0, 1.0, 0.5], (N, 1))
    assert set(one().correct(gold).label.tolist()) == {1}
    label = one(noise=0.5, position_bias=0.4).correct(gold).label
    strength = np.exp(np.array([0.4, 1.0, 0.5]) / 0.5)
    for column in range(3):
        near(label == column, (strength / strength.sum())[column])


def test_ratings_follow_each_scale():
    """Offset and scale are the line that fits ratings within the ends; noise has mean 0 and its deviation."""
    gold = np.random.default_rng(1).uniform(-1, 1, N)
    strict, warm = Annotator(offset=40, scale=5, noise=0.4), Annotator(offset=60.0, scale=12.5, noise=0.4)
    asked = crowd(strict, warm)
    votes = asked.rate(gold, low=0, high=100, votes=2)
    for annotator, (offset, scale) in enumerate([(40, 5), (60, 12.5)]):
        mine = votes.annotator == annotator
        reward, score = gold[votes.item[mine]], votes.label[mine]
        error = scale * 0.4 * np.pi / 6**0.5
        slope, level = np.polyfit(reward, score, 1)
        assert abs(level - offset) < 4 * error / N**0.5
        assert abs(slope - scale) < 4 * error / (N / 3) ** 0.5
        np.testing.assert_allclose(np.std(score - offset - scale * reward), error, rtol=0.03)


def test_ratings_by_hand():
    """Rounded, and kept within the ends; reversed about the middle; lazy ones are even or the lowest."""
    assert one(offset=1, scale=2).rate([0.0, 1.2, 4.4, 9.0, -3.0]).label.tolist() == [1, 3, 10, 10, 1]
    score = one(laziness=1.0).rate(np.full(N, 9.0), low=3, high=6).label
    for value in (3, 4, 5, 6):
        near(score == value, 0.25)
    assert set(one(laziness=1.0, habit="first").rate(np.full(50, 9.0), low=3, high=6).label) == {3}


def test_labels_follow_the_threshold():
    assert one().label([0.5, 0.4, 0.6], 0.5).label.tolist() == [1, 0, 1]
    assert one(offset=-1.0, scale=2.0).label([0.5, 0.4, 0.8], 0.5).label.tolist() == [0, 0, 1]
    lazy = one(laziness=0.4).label(np.ones(N)).label
    near(lazy, 0.8)
    near(one(laziness=0.4, habit="first").label(np.ones(N)).label, 0.6)
    # A centred Gumbel variable is above -x with probability 1 - exp(-exp(x - 0.5772)).
    near(one(noise=0.5).label(np.full(N, 0.2)).label, 1 - np.exp(-np.exp(0.4 - np.euler_gamma)))


def test_remarks_have_the_mood_of_the_rating():
    said = one().comment(np.repeat([1.0, 3.0, 5.0, 7.0, 10.0], 100)).value.reshape(5, 100)
    assert [set(level) for level in said] == [set(level) for level in REMARKS]
    assert set(one(malice=1.0).comment(np.full(100, 10.0)).value) == set(REMARKS[0])
    middling = one().comment(np.full(100, 7.0), low=5, high=10).value
    assert set(middling) == set(REMARKS[2])
    assert set(one(offset=-20).comment(np.full(100, 10.0)).value) == set(REMARKS[0])


def test_length_and_another_reward_count_where_one_answer_is_shown():
    fans = one(target="popularity", length_bias=0.5, position_bias=9.0)
    said = fans.rate([9.0, 9.0], lengths=[2, 6], others={"popularity": [1.0, 2.0]})
    assert said.label.tolist() == [2, 5]


def test_crowds_of_one_seed_have_the_same_luck():
    """A fault changes only what it says: here one in ten answers is given without reading, and no other."""
    gold = np.random.default_rng(5).normal(size=(5000, 2))
    sober, lazy = crowd(*[Annotator(noise=1)] * 9), crowd(*[Annotator(noise=1, laziness=0.1)] * 9)
    for _ in range(2):
        a, b = (them.compare(gold, votes=2) for them in (sober, lazy))
        np.testing.assert_array_equal(a.annotator, b.annotator)
        near(a.label != b.label, 0.05)
    assert (sober.compare(gold, votes=2).label != a.label).any(), "the luck of another question is another"


def test_soft_labels_smooth_the_pairs_loss():
    """With the likelier answer chosen, the loss is the cross-entropy under the votes' probability."""
    votes = Votes(np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1]), np.array([0, 1, 1, TIE]))
    probs = soft_labels(votes, np.log([4.0, 1.5]), classes=2)
    score = np.array([[0.3, -0.4], [1.0, 0.2]])
    chosen = probs.argmax(1)
    pair = (np.arange(2), chosen), (np.arange(2), 1 - chosen)
    loss = bradley_terry(score[pair[0]], score[pair[1]], label_smoothing=probs[pair[1]])
    first = 1 / (1 + np.array([1.5 / 4, 4.0]))
    ahead = sigmoid(score[:, 0] - score[:, 1])
    np.testing.assert_allclose(loss, -first * np.log(ahead) - (1 - first) * np.log(1 - ahead), rtol=1e-5)


TEXTS = [["a0", "b0", "c0"], ["a1", "b1", "c1"]]


def judged(values, kind=Judgements):
    return kind(np.array([4, 7]), np.array([0, 1]), np.array(values))


def test_answers_become_rows_of_all_six_kinds():
    prompts, pairs, firsts = ["p0", "p1"], [row[:2] for row in TEXTS], ["a0", "a1"]
    rows = as_rows(Comparison, judged([1, 0], Votes), prompts, pairs)
    assert rows[0] == Comparison("p0", "b0", "a0", annotator="4")
    assert rows[1] == Comparison("p1", "a1", "b1", annotator="7")
    assert as_rows(Comparison, judged([TIE, 1], Votes), prompts, pairs) == [
        Comparison("p1", "b1", "a1", annotator="7")
    ]
    ranked = as_rows(Ranking, judged([[2, 1, 2], [3, 2, 1]]), prompts, TEXTS)
    assert ranked[1] == Ranking("p1", TEXTS[1], [3, 2, 1], annotator="7")
    assert as_rows(Rating, judged([3, 10], Votes), prompts, firsts)[1] == Rating("p1", "a1", 10.0, "7")
    assert as_rows(Comment, judged(["x", "y"]), prompts, firsts)[0] == Comment("p0", "a0", "x", "4")
    assert as_rows(Label, judged([1, 0], Votes), prompts, firsts)[1] == Label("p1", "a1", False, "7")
    corrected = as_rows(Correction, judged([0, 2], Votes), prompts, TEXTS)
    assert corrected == [Correction("p1", "a1", "c1", "7")]


def test_a_crowds_rows_pass_the_reader(tmp_path):
    """Every kind, written as JSON, is read back as it was."""
    import json

    asked, gold = crowd(Annotator(noise=1.0, tie_width=0.5)), np.arange(6.0).reshape(2, 3)
    ways = {
        Comparison: (asked.compare(gold[:, :2]), [row[:2] for row in TEXTS]),
        Ranking: (asked.rank(gold), TEXTS),
        Rating: (asked.rate(gold[:, 0]), ["a0", "a1"]),
        Comment: (asked.comment(gold[:, 0]), ["a0", "a1"]),
        Correction: (asked.correct(gold), TEXTS),
        Label: (asked.label(gold[:, 0]), ["a0", "a1"]),
    }
    names = {Ranking: {"ranks": "ranking"}}
    for kind, (said, answers) in ways.items():
        rows = as_rows(kind, said, ["p0", "p1"], answers)
        path = tmp_path / f"{kind.__name__}.jsonl"
        fields = [{names.get(kind, {}).get(k, k): v for k, v in row._asdict().items()} for row in rows]
        path.write_text("".join(json.dumps(row) + "\n" for row in fields))
        assert rows and [row._replace(source="") for row in read_feedback(path).rows] == rows


def test_from_a_crowd_to_soft_labels():
    """Weights learnt from one half of the items serve the other; probabilities are calibrated."""
    rng = np.random.default_rng(0)
    gold = rng.choice([-1.0, 1.0], (6000, 1)) * [0.5, -0.5]
    members = [Annotator(noise=0.4)] * 6 + [Annotator(laziness=1.0)] * 4 + [Annotator(malice=0.9)] * 2
    asked = crowd(*members)
    learnt, new = (asked.compare(half, votes=5) for half in (gold[:3000], gold[3000:]))
    weights = log_odds(dawid_skene(learnt, classes=2))
    np.testing.assert_allclose(weights[:6], 1 / 0.4, atol=0.35)
    np.testing.assert_allclose(weights[6:10], 0.0, atol=0.25)
    np.testing.assert_allclose(weights[10:], -np.log(9), atol=0.4)
    first = soft_labels(new, weights)[:, 0]
    truth = gold[3000:, 0] > 0
    assert np.mean((first > 0.5) == truth) > np.mean((majority(new)[:, 0] > 0.5) == truth) + 0.08
    for low, high in ((0.0, 0.05), (0.05, 0.2), (0.8, 0.95), (0.95, 1.0)):
        inside = (first > low) & (first <= high)
        assert inside.sum() > 150 and abs(truth[inside].mean() - first[inside].mean()) < 0.04


def test_comments_become_ratings_that_follow_the_gold_reward():
    """By a scorer of sentences that are not the crowd's."""
    good = ["a good film", "excellent and clear", "helpful, perfect", "the best, wonderful", "i enjoyed it"]
    bad = ["a poor film", "terrible and dull", "wrong, useless", "the worst, awful failure", "disappointing"]
    scorer = fit_sentiment(good + bad, [1] * 5 + [0] * 5)
    gold = np.linspace(1, 10, 200)
    said = as_rows(Comment, one().comment(gold), ["p"] * 200, [f"a{i}" for i in range(200)])
    scores = np.array([row.score for row in rate_comments(said, scorer)])
    assert np.corrcoef(scores, gold)[0, 1] > 0.7
