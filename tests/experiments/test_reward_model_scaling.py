"""Reward models on judged arguments: tables, folds, batches by hand, and a run in miniature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.align import RewardHParams, RewardModel, score
from jaxrl_align.data.tokens.vocabularies import byte_tokenizer
from jaxrl_align.feedback import Comparison
from jaxrl_align.nets.transformer import init_scalar_head
from tests.experiments.loading import load, read_result
from tests.tiny import LM, PARAMS, disturb

ukp, scaling = load("reward_model_data"), load("reward_model_scaling")
report = load("reward_model_scaling_report")


def make_debates(count=4, texts=6, words=False):
    """Return debates with one side each, whose longer argument always convinces more."""
    debates = {}
    for d in range(count):
        said = [" ".join(["so"] * (1 + i)) if words else chr(97 + d) * (2 + i) for i in range(texts)]
        pairs = [(i, j) for i in range(texts) for j in range(i)]
        debates[f"d{d}"] = [Comparison(f"{d}:", said[i], said[j], source=f"{i}>{j}") for i, j in pairs]
    return debates


@pytest.fixture
def arguments(monkeypatch):
    monkeypatch.setattr(ukp, "load_convincing_arguments", make_debates)
    return ukp.read_arguments()


def test_the_tables_hold_what_was_judged(arguments):
    assert arguments.prompts == ["0:", "1:", "2:", "3:"] and [len(t) for t in arguments.texts] == [6] * 4
    assert arguments.pairs.shape == (60, 3) and np.bincount(arguments.debate).tolist() == [15] * 4
    for side, better, worse in arguments.pairs:
        assert len(arguments.texts[side][better]) > len(arguments.texts[side][worse])
    table = ukp.pair_table(arguments, np.array([0, 20]))
    assert table.sum() == 2 and table[tuple(arguments.pairs[20])] == 1
    fold = ukp.make_folds(arguments, 2)
    assert np.bincount(fold).tolist() == [30, 30]
    assert all(len(set(fold[arguments.debate == d])) == 1 for d in range(4))
    chosen = scaling.choose(fold, 1, 10, 3)
    assert len(chosen) == 10 and (fold[chosen] == 0).all()
    assert set(chosen) < set(scaling.choose(fold, 1, 20, 3)) < set(scaling.choose(fold, 1, 0, 3))
    scores = np.arange(24.0).reshape(4, 6) ** 2
    s, a, b = arguments.pairs.T
    np.testing.assert_array_equal(ukp.margins_of(arguments, scores), scores[s, a] - scores[s, b])


def test_a_long_argument_keeps_its_end_or_is_left_out(arguments):
    tokenizer = byte_tokenizer()
    tokens, real = ukp.encode(arguments, tokenizer, 9)
    longest = max(range(6), key=lambda i: len(arguments.texts[2][i]))
    expected = [*tokenizer.encode(":" + arguments.texts[2][longest]), tokenizer.stop_token]
    assert tokens[2, longest].tolist() == expected and real[2, longest].sum() == 9
    with pytest.raises(ValueError, match="length must hold the longest argument of 8 tokens; got 8"):
        ukp.encode(arguments, tokenizer, 8)
    _, real = ukp.encode(arguments, tokenizer, 8, drop=True)
    assert (real.sum(-1) == 0).sum() == 4 and real[2, longest].sum() == 0


def test_a_batch_holds_one_side_and_the_pairs_among_its_arguments(arguments):
    tokens, real = (jnp.asarray(x) for x in ukp.encode(arguments, byte_tokenizer(), 8, drop=True))
    table = jnp.asarray(ukp.pair_table(arguments, np.flatnonzero(arguments.debate > 1)))
    sample = jax.jit(ukp.sample_arguments(tokens, real, table, 3))
    seen = set()
    for key in jax.random.split(jax.random.key(0), 20):
        batch = sample(key)
        rows = zip(np.array(batch.tokens), np.array(batch.real), strict=True)
        texts = [byte_tokenizer().decode(row[there > 0]).split(":")[1] for row, there in rows]
        seen |= {text[0] for text in texts}
        assert len(set(texts)) == 3 and len({text[0] for text in texts}) == 1
        expected = [[float(len(a) > len(b)) for b in texts] for a in texts]
        np.testing.assert_array_equal(batch.better, expected)
    assert seen == {"c", "d"}


def test_the_objective_by_hand():
    """Mean over the judged pairs, here two of three."""
    head = disturb(init_scalar_head(None, 16), jax.random.key(4), 1.0)
    params = {"lm": PARAMS, "head": head}
    tokens = jnp.array([[2, 3, 4], [5, 6, 0], [7, 8, 9]])
    real = jnp.array([[1.0, 1, 1], [1, 1, 0], [1, 1, 1]])
    better = jnp.array([[0.0, 1, 0], [0, 0, 0], [0, 1, 0]])
    batch, loss = ukp.Batch(tokens, real, better), ukp.judged_pairs_objective(LM)
    value, metrics = jax.jit(lambda p: loss(p, None, batch, jax.random.key(0), RewardHParams()))(params)
    s = np.array([score(LM, RewardModel(params), t, r) for t, r in zip(tokens, real, strict=True)])
    gaps = np.array([s[0] - s[1], s[2] - s[1]])
    np.testing.assert_allclose(value, np.log1p(np.exp(-gaps)).mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["accuracy"], (gaps > 0).mean())
    assert metrics["pairs"] == 2


def test_shares_and_their_intervals():
    """Two debates of ten pairs, one right and one wrong; beside one that is all wrong the gain is a half."""
    debate = np.repeat([0, 1], 10)
    margins = np.tile(np.where(debate == 0, 1.0, -1.0), (2, 1))
    assert report.share_right(margins, debate) == (50, 0, 100, "range")
    assert report.share_right(margins, debate, -np.ones((2, 20))) == (50, 0, 100, "range")
    assert report.share_right(margins, debate, margins) == (0, 0, 0, "range")


def test_the_verdict_is_that_of_ends_of_intervals():
    """Half of the way from 75 to 85 is 80."""
    up, level = report.Interval(2.0, 1.0, 3.0, "t"), report.Interval(1.0, -1.0, 3.0, "t")
    best, over = report.Interval(83.0, 81.0, 85.0, "t"), {"tf-idf": up, "fewest": up}
    failing = lambda *found: [i for i, x in enumerate(report.judge(*found).values()) if not x]
    assert failing(best, 75.0, over) == []
    assert failing(best, 75.0, over | {"tf-idf": level}) == [0]
    assert failing(best, 75.0, over | {"fewest": level}) == [1]
    assert failing(report.Interval(83.0, 79.0, 87.0, "t"), 75.0, over) == [2]
    assert failing(report.Interval(82.0, 81.0, 84.9, "t"), 75.0, over) == [3]


@pytest.mark.slow
def test_a_run_in_miniature(monkeypatch, tmp_path):
    """The longer argument wins, which the linear baseline and a small model learn from a few pairs."""
    pytest.importorskip("sklearn")
    monkeypatch.setattr(ukp, "load_convincing_arguments", lambda: make_debates(words=True))
    text = tmp_path / "text.txt"
    text.write_text("aa bbb cccc ddddd " * 400, encoding="utf-8")
    own = {"widths": (16,), "rates": (1e-3, 3e-3), "steps": 40, "length": 32, "arguments": 4}
    small = {"vocabulary": 260, "layers": 1, "heads": 2, "pretrain_steps": 10, "held_out_tokens": 64}
    run = {"out": str(tmp_path / "run"), "text": str(text), "seeds": 2, "folds": 2, "numbers": (10, 0)}
    scaling.main(scaling.Config(**run, **own, **small, frozen=False, tuned=False))
    result = read_result(tmp_path / "run")
    accuracy, over, fewest, beside, tried = result["tables"].values()
    own, linear = accuracy["own, 16 wide"], accuracy["tf-idf"]
    assert list(linear) == ["10 pairs", "30 pairs"] and own["30 pairs"]["value"] > 80
    assert list(result["headline"].values()) == [own["30 pairs"]] and len(result["checks"]) == 4
    less = over["own, 16 wide"]["30 pairs"]["value"]
    assert less == pytest.approx(own["30 pairs"]["value"] - linear["30 pairs"]["value"])
    gain = fewest["own, 16 wide"]["gain"]["value"]
    assert gain == pytest.approx(own["30 pairs"]["value"] - own["10 pairs"]["value"])
    assert beside["own, 16 wide"]["pairs"] == 60 and tried["own, 16 wide"]["taken"] in ("0.001", "0.003")
    assert (tmp_path / "run" / "reward_model_scaling.png").stat().st_size > 5000
