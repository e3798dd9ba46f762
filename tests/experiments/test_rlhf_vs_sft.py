"""The judge and the behavioural cloning in miniature: measures by hand, who learns from whom, a whole run."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxrl_align.runtime import Interval
from jaxrl_align.types import PaddedTokens
from tests.experiments.loading import load, read_result
from tests.experiments.test_answers import FakeFolder, make_tiny_pool
from tests.experiments.test_rlhf import CORPUS, SMALL

load("rlhf_setup").SAMPLES = 8
experiment, measures = load("rlhf_vs_sft"), load("rlhf_vs_sft_report")
SIZE = SMALL | {"seeds": 3, "tuning_seeds": 1, "comparisons": 10, "rlhf_steps": 2, "measured": (0, 2)}
BEST_AND_WORST = (np.argmax, np.argmin)
SIZE |= {"sft_rates": (1e-3,), "rlhf_rates": (1e-3,), "reward_rates": (1e-3,), "longer": 2}


def test_the_divergence_of_token_frequencies_by_hand():
    """Frequencies (1/2, 1/2) and (0, 1), whose middle is (1/4, 3/4); no common token; the same ones."""
    text = lambda *tokens: PaddedTokens(np.array([tokens]), np.array([[1.0, 1.0, 0.0]]))
    half = 0.5 * np.log(2.0) + 0.5 * np.log(0.5 / 0.75)
    rest = np.log(1.0 / 0.75)
    assert measures.token_divergence(text(0, 1, 2), text(1, 1, 0), 4) == pytest.approx((half + rest) / 2)
    assert measures.token_divergence(text(0, 0, 2), text(1, 1, 0), 4) == pytest.approx(np.log(2.0))
    assert measures.token_divergence(text(0, 1, 3), text(1, 0, 2), 4) == pytest.approx(0.0)


def test_format_is_a_stop_after_a_full_stop():
    """Of "a." that stops, "a" that stops, "a." that does not, and a stop token that is padding."""
    words = {5: "a", 6: ".", 1: "", 0: ""}
    tokenizer = SimpleNamespace(decode=lambda row: "".join(words[int(token)] for token in row))
    setup = SimpleNamespace(tokenizer=tokenizer, text=SimpleNamespace(stop_token=1))
    tokens = np.array([[[5, 6, 1], [5, 1, 0], [5, 5, 6], [5, 6, 1]]])
    real = np.array([[[1, 1, 1], [1, 1, 0], [1, 1, 1], [1, 1, 0]]])
    shares = measures.format_shares(setup, PaddedTokens(tokens, real))
    np.testing.assert_array_equal(shares["stops"], [0.5])
    np.testing.assert_array_equal(shares["sentence"], [0.25])


def test_wins_by_hand():
    """Stage 1 scores 3 and 0 against stage 0's 1 and 0: of four pairs two and a half are won."""
    scores = np.array([[[[1.0, 0.0], [3.0, 0.0]]]])
    np.testing.assert_array_equal(measures.win_rate(scores, 1, 0), [2.5 / 4])
    np.testing.assert_array_equal(measures.win_rate(scores, 0, 1), [1.5 / 4])


def test_annotators_compare_the_two_answers_that_they_are_given():
    pool = make_tiny_pool().train
    rng = np.random.default_rng(0)
    pair = rng.permuted(np.broadcast_to(np.arange(4), pool.gold.shape), axis=-1)[..., :2]
    rows = experiment.compare_pair(pool, pair, rng, 1e-6)
    gold = np.take_along_axis(pool.gold, pair, 2)
    take = lambda side: np.take_along_axis(pool.completions.tokens, side[:, :, None, None], 2)[:, :, 0]
    better, worse = (
        np.take_along_axis(pair, f(gold, -1)[..., None], 2)[..., 0] for f in (np.argmax, np.argmin)
    )
    np.testing.assert_array_equal(rows.chosen.tokens, take(better))
    np.testing.assert_array_equal(rows.rejected.tokens, take(worse))


def test_half_of_the_rows_are_of_each():
    a, b = (SimpleRows(np.full((2, 5), value)) for value in (0, 1))
    np.testing.assert_array_equal(experiment.halves(a, b).prompt.tokens, [[0, 0, 1, 1, 1]] * 2)


def SimpleRows(values):
    text = PaddedTokens(values, np.ones(values.shape))
    return experiment.Comparisons(text, text, text)


def test_a_judge_is_another_seeds(monkeypatch):
    """Rows and first weights of the last reported member's judge are the first member's."""
    pool, given = make_tiny_pool(), {}
    config = experiment.Config(**SIZE | {"comparisons": 20})
    setup = SimpleNamespace(config=config, lm=pool.lm, draw_prompts=lambda count, source, purpose: None)

    def fit(own, config, folder, members, data, objective, rates):
        given.update(params=own.params, members=list(members), rows=data[0])
        return np.zeros((1, *pool.test.gold[1:].shape))

    monkeypatch.setattr(experiment, "answer", lambda *_: pool.train)
    monkeypatch.setattr(experiment, "fit_and_score", fit)
    experiment.judge(setup, FakeFolder(), pool.params, [None] * 4, pool.test, None)
    assert given["members"] == [1, 2]
    leaf, own = (jax.tree.leaves(x)[0] for x in (given["params"], pool.params))
    np.testing.assert_array_equal(leaf[[0, 1, 2]], own[np.array([1, 2, 0])])
    for rows, member in zip(given["rows"], (2, 0), strict=True):
        np.testing.assert_array_equal(rows.prompt.tokens, [*pool.train.prompts.tokens[member]] * 2)


def test_teachers_rates_are_chosen_on_the_tuning_seeds(monkeypatch):
    """The second rate is right there, and wrong on the others."""
    pool, asked = make_tiny_pool(), []
    config = experiment.Config(**SIZE | {"reward_rates": (0.1, 0.2)})

    def fit(own, config, folder, members, data, objective, rates):
        asked.append((list(members), list(rates), [setting[0].prompt.tokens[0] for setting in data]))
        gold = pool.test.gold[list(members)]
        return np.stack([gold * (rate - 0.15) * (1 if 0 in members else -1) for rate in rates])

    monkeypatch.setattr(experiment, "fit_and_score", fit)
    rows = {name: SimpleRows(np.full((3, 4), i)) for i, name in enumerate(("a", "b"))}
    setup = SimpleNamespace(config=config, lm=None)
    scores, tried = experiment.teach(setup, FakeFolder(), None, rows, pool.test)
    assert tried["a"]["0.2"] == 100 and tried["b"]["taken"] == "0.2"
    assert asked == [([0], [0.1, 0.2] * 2, [0, 0, 1, 1]), ([1, 2], [0.2, 0.2], [0, 1])]
    assert list(scores) == ["a", "b"] and scores["a"].shape == (2, 3, 4)


def test_the_verdict_is_that_of_intervals_that_leave_nothing_open():
    high, even = Interval(80, 60, 100, "t"), Interval(55, 45, 65, "t")
    up, down, open_up, open_down = (Interval(x, x - 1, x + 1, "t") for x in (2.0, -2.0, 0.5, -0.5))
    wins = {
        pair: {"judge": high, "gold": high}
        for pair in ("SFT > pre-trained", "RLHF > SFT", "RLHF > SFT, longer")
    }
    moved = {"divergence": down, "loss": down, "sentence": up}
    gains = {"SFT": up, "all three": up, "RLHF": up}
    failing = lambda *found: [i for i, x in enumerate(measures.judge_claim(*found).values()) if not x]
    assert failing(wins, moved, gains) == []
    for i, (pair, row) in enumerate(wins.items()):
        assert failing(wins | {pair: row | {"judge": even}}, moved, gains) == [i]
        assert failing(wins | {pair: row | {"gold": even}}, moved, gains) == [i + 3]
    for i, name in enumerate(moved):
        wide = open_up if name == "sentence" else open_down
        assert failing(wins, moved | {name: wide}, gains) == [6 + i]
    for i, name in enumerate(gains):
        assert failing(wins, moved, gains | {name: open_up}) == [9 + i]


def test_what_fine_tuning_moved_is_its_end_less_its_start():
    start = {key: np.array([0.1, 0.2]) for key in measures.PATH}
    moved = measures.follow({0: start, 5: start, 10: {key: x + 0.3 for key, x in start.items()}})
    assert [x.value for x in moved.values()] == pytest.approx([0.3] * 5)


def test_no_percentage_is_drawn_beyond_what_it_can_be(monkeypatch):
    figures, seeds = [], np.array([0.0, 1.0])
    monkeypatch.setattr(measures.plots, "save_figure", lambda fig, path: figures.append(fig))
    path = {step: dict.fromkeys(("loss", "divergence", "stops", "sentence"), seeds) for step in (0, 1)}
    measures.draw_cloning(SimpleNamespace(path=Path("nowhere")), {"SFT": {"RLHF": seeds}}, path, 0.1)
    _, _, form, lessons = figures[0].axes
    bands = [band.get_paths()[0].vertices[:, 1] for band in form.collections]
    bars = [segment[:, 1] for bar in lessons.collections for segment in bar.get_segments()]
    assert [(x.min(), x.max()) for x in bands] == [(0.0, 1.0)] * 2
    assert [(x.min(), x.max()) for x in bars] == [(0.0, 100.0)]


@pytest.mark.slow
def test_a_run_in_miniature_continues_to_the_same_result(tmp_path, capsys):
    (tmp_path / "corpus.txt").write_text(CORPUS, encoding="utf-8")
    config = experiment.Config(out=str(tmp_path / "run"), corpus=str(tmp_path / "corpus.txt"), **SIZE)
    experiment.main(config)
    out = Path(config.out)
    first = read_result(out)
    tables = first["tables"]
    assert list(tables["answers to held-out prompts"]) == list(measures.STAGES)
    right = tables["right by the gold reward [%], on test pairs of answers of"]
    assert [name for name in right if name.startswith("taught")] == [
        f"taught by {name}" for name in experiment.SOURCES
    ]
    less = right["SFT less pre-trained [points]"]["SFT"]
    gap = (right[f"taught by {name}"]["SFT"]["value"] for name in ("SFT", "pre-trained"))
    assert less["value"] == pytest.approx(np.subtract(*gap))
    wins = tables["wins [%]"]["RLHF > SFT"]["the judge"]
    assert list(first["headline"].values()) == [wins, less] and len(first["checks"]) == 12
    loss = [row["held-out demonstrations"]["value"] for row in tables["along fine-tuning"].values()]
    assert len(loss) == 2 and loss[1] < loss[0]
    for name in ("judged", "cloning"):
        assert (out / f"{name}.png").stat().st_size > 5_000
    experiment.main(dataclasses.replace(config, resume=True))
    assert read_result(out) == first
    assert "the judge" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"comparisons": 11}, "comparisons must be even"),
        ({"seeds": 2}, "seeds must be at least 3; got seeds=2"),
        ({"longer": 1}, "longer must be at least 2"),
    ],
)
def test_what_leaves_nothing_to_report_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        experiment.Config(**SIZE | change)
