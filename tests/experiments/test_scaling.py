"""Fits of a law of loss that is known, and the experiment in miniature."""

import json
from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from jaxrl_align.runtime import Interval
from tests.experiments.loading import load

scaling, law = load("scaling"), load("scaling_law")
SIZES, TOKENS = np.array([1e3, 8e3, 6e4, 5e5]), np.array([3e4, 1e5, 5e5])


def losses_of(offset=1.2, a=20.0, alpha=0.34, b=40.0, beta=0.28):
    n, d = law.cells_of(SIZES, TOKENS)
    return offset + a * n**-alpha + b * d**-beta


def test_cells_are_in_the_order_of_a_table():
    n, d = law.cells_of([1, 2], [5, 6, 7])
    assert n.tolist() == [1, 1, 1, 2, 2, 2] and d.tolist() == [5, 6, 7, 5, 6, 7]


def test_a_law_is_found_again():
    """Without noise exactly, weights or not; without an offset it is 0, and so where it would be negative."""
    n, d = law.cells_of(SIZES, TOKENS)
    true = np.stack([losses_of(), losses_of(offset=0.0), losses_of(offset=-1.0)])
    found = law.fit_law(n, d, true, np.array([np.ones(12), np.arange(1.0, 13), np.ones(12)]))
    np.testing.assert_allclose(found.offset, [1.2, 0, 0], atol=1e-6)
    np.testing.assert_allclose(found.size_exponent[:2], 0.34)
    np.testing.assert_allclose(found.token_exponent[:2], 0.28)
    np.testing.assert_allclose(found.size_factor[:2], 20, rtol=1e-4)
    np.testing.assert_allclose(found.token_factor[:2], 40, rtol=1e-4)
    assert min(found.size_factor[2], found.token_factor[2]) >= 0
    np.testing.assert_allclose(law.predict(found, n, d)[:2], true[:2], rtol=1e-6)


def test_a_cell_without_weight_does_not_count():
    n, d = law.cells_of(SIZES, TOKENS)
    wrong = losses_of() + 3.0 * (np.arange(12) == 4)
    found = law.fit_law(n, d, wrong[None], 1.0 - (np.arange(12) == 4)[None])
    assert found.size_exponent == pytest.approx(0.34) and found.offset == pytest.approx(1.2, abs=1e-4)


def test_cells_are_drawn_and_the_runs_within():
    losses = np.arange(6.0).reshape(3, 2)
    means, weights = law.resample(losses, 500)
    assert means.shape == weights.shape == (500, 3) and (weights.sum(1) == 3).all()
    assert weights.max() == 3 and weights.min() == 0
    assert [set(column) for column in means.T] == [{0, 0.5, 1}, {2, 2.5, 3}, {4, 4.5, 5}]


def test_intervals_hold_the_exponents():
    noise = 1 + 0.002 * np.random.default_rng(1).normal(size=(12, 4))
    found = law.bootstrap_law(*law.cells_of(SIZES, TOKENS), losses_of()[:, None] * noise, 50)
    assert list(found) == ["alpha", "beta", "offset [nats]"]
    for key, true in (("alpha", 0.34), ("beta", 0.28), ("offset [nats]", 1.2)):
        assert found[key].low <= true <= found[key].high and found[key].low < found[key].high
        assert found[key].low <= found[key].value <= found[key].high


def test_straight_lines_by_hand():
    """Losses 8, 4, 2 at 1, 4, 16: log L falls by log 2 for each log 4."""
    found = law.slopes(np.array([1, 4, 16]), np.array([[8.0, 80], [4, 40], [2, 20]]))
    assert found.value == pytest.approx(0.5) and found.high == pytest.approx(0.5)


def test_extrapolation_is_to_the_largest_width():
    table = losses_of().reshape(4, 3, 1).repeat(2, 2)
    assert law.fit_error(table, SIZES, TOKENS) < 1e-6
    bent = table.copy()
    bent[-1, 1] *= 1.5
    assert law.extrapolation_error(table, SIZES, TOKENS) < 1e-6
    assert law.extrapolation_error(bent, SIZES, TOKENS) == pytest.approx(1 / 3, rel=1e-4)
    assert law.fit_error(bent, SIZES, TOKENS) > 0.05


def test_the_verdict_is_that_of_losses_and_exponents():
    spread = np.array([0.0, 0.001, 0.002])
    table = losses_of().reshape(4, 3, 1) + spread
    near = lambda x: Interval(x, x - 0.01, x + 0.01, "t")
    laws = {
        name: {"alpha": near(alpha), "beta": near(beta), "offset [nats]": near(1.0)}
        for name, (alpha, beta) in scaling.PUBLISHED.items()
    }
    judge = lambda losses, laws: list(scaling.judge_laws(losses, SIZES, TOKENS, laws).values())
    assert judge(table, laws) == [True] * 7
    shifted = {name: of | {"beta": near(0.5)} for name, of in laws.items()}
    assert judge(table, shifted) == [True] * 4 + [False, True, False]
    assert judge(table[::-1], laws)[:3] == [False, True, False]
    assert judge(table[:, ::-1], laws)[:3] == [True, False, False]
    one = table.copy()
    one[-1, 0] = one[0, 0]
    assert judge(one, laws)[0] is False
    one = table.copy()
    one[1, -1] = one[1, 0]
    assert judge(one, laws)[1] is False


def test_weights_are_counted_without_embeddings():
    """Two layers: 4 projections, up and down of 4 widths, biases and norms; a last norm."""
    lm = make_transformer(TransformerConfig(65, 16, 2, 2, 65))
    layer = 4 * (16 * 16 + 16) + 16 * 64 + 64 + 64 * 16 + 16 + 2 * 2 * 16
    assert scaling.count_weights(lm) == 2 * layer + 2 * 16


def test_one_rate_is_chosen_for_all_numbers_of_tokens():
    """Means 3, 2.5, 2 and one that is not finite; the lowest single loss is not what counts."""
    losses = np.array([[3.0, 1.0, 2.0, np.nan], [3.0, 4.0, 2.0, 0.0]])
    assert scaling.choose_rate(losses) == 2
    assert (
        len({str(jax.random.key_data(k)) for i in (0, 1) for k in scaling.member_keys(scaling.Config(), i)})
        == 20
    )


@pytest.mark.slow
def test_the_rate_rises_and_falls_to_zero(monkeypatch):
    """With steps of one size, the weights move by the sum of the rates: of 40 steps, 3 in the rise."""
    Moved = namedtuple("Moved", "params hparams")

    class Learner:
        init = staticmethod(lambda key, hparams: Moved(jnp.zeros(()), hparams))
        step = staticmethod(
            lambda state: (state._replace(params=state.params + state.hparams.learning_rate), {})
        )

    monkeypatch.setattr(scaling, "make_lm_learner", lambda *args, **options: Learner)
    monkeypatch.setattr(scaling, "make_text_loss", lambda *args, **options: lambda params: (params, 1.0))
    config = scaling.Config(context=4, batch_size=2)
    train = scaling.make_train(config, None, np.arange(20), np.arange(9))
    moved = train(jax.random.split(jax.random.key(0), 2), jnp.array([1.0, 2.0]), jnp.int32(40))
    factors = [min((i + 1) / 3, 1 - i / 40) for i in range(40)]
    np.testing.assert_allclose(moved, [sum(factors), 2 * sum(factors)], rtol=1e-5)


@pytest.mark.slow
def test_scaling_in_miniature(tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("the quick brown fox jumps over the lazy dog. " * 60, encoding="utf-8")
    sizes = {"widths": (2, 4, 6, 8), "tokens": (16, 32, 64, 128), "rates": (1e-3, 1e-2), "held_out": 200}
    shape = {"layers": 1, "context": 8, "batch_size": 2, "seeds": 2, "draws": 3}
    config = scaling.Config(corpus=str(text), out=str(tmp_path / "run"), **sizes, **shape)
    scaling.main(config)
    result = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["rows"] == ["C13"] and (tmp_path / "run" / "loss.png").stat().st_size > 5_000
    read = lambda name: json.loads(
        (tmp_path / "run" / f"width_8_tokens_{name}.json").read_text(encoding="utf-8")
    )
    cells = [read(n) for n in config.tokens] + [read(f"{n}_rates") for n in config.tokens]
    assert all(len(cell) == 2 for cell in cells) and len(set(sum(cells, []))) == 16, "no two runs share a key"
    name = next(title for title in result["tables"] if "by learning rate" in title)
    row = list(result["tables"][name].values())[-1]
    mean = np.mean(cells[4:], 0)
    assert row["chosen"] == f"{config.rates[int(mean.argmin())]:g}"
    assert [row["0.001"], row["0.01"]] == pytest.approx(mean)
    with pytest.raises(ValueError, match="the text must hold 4096 tokens to read once and 200 held out"):
        scaling.main(scaling.Config(**vars(config) | {"tokens": (1, 2, 4, 4096), "out": str(tmp_path / "a")}))
    with pytest.raises(ValueError, match="widths must be four or more in rising order"):
        scaling.main(scaling.Config(**vars(config) | {"widths": (2, 4, 8), "out": str(tmp_path / "a")}))
