"""Rewards without a gradient in miniature: the sums by hand, hits and the best of n, and a whole run."""

from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.runtime import Interval
from jaxrl_align.types import PaddedTokens
from tests.experiments.loading import load, read_result
from tests.experiments.test_rlhf import CORPUS, SMALL

load("rlhf_setup").SAMPLES = 8
sums = load("sums")
experiment = load("non_differentiable")
report = load("non_differentiable_report")


def ask(a, b, number):
    """Return the tokens of "a+b=number" and their mask, [P + T] each."""
    tokens = [2 + a, sums.PLUS, 2 + b, sums.EQUALS, *sums.write_number(number)]
    return jnp.array(tokens), jnp.array(tokens) > 0


def test_sums_are_paid_by_hand():
    pay = lambda a, b, number: float(sums.score(jnp.array([8.0, 1.2]), *ask(a, b, number)))
    assert [pay(3, 4, n) for n in (6, 7, 8, 9)] == pytest.approx([0.0, 8.0, 1.2, 0.0])
    assert [pay(9, 9, n) for n in (18, 19, 1)] == pytest.approx([8.0, 1.2, 0.0])
    tokens, mask = ask(0, 1, 1)
    unfinished = tokens.at[5].set(2), mask  # "0+1=10", without a stop token
    assert float(sums.score(jnp.array([8.0, 1.2]), *unfinished)) == 0.0
    assert sums.read_answer(tokens.tolist()) == "0+1=1"


def test_demonstrators_write_each_answer_equally_often():
    read = lambda rows: [sums.read_answer(row) for row in np.reshape(rows, (-1, 7)).tolist()]
    for spread in sums.SPREADS.values():
        rows = sums.demonstrations(spread)
        expected = [f"{a}+{b}={a + b + i}" for a, b in sums.PAIRS.tolist() for i in range(spread)]
        values, counts = np.unique(read(rows.tokens), return_counts=True)
        assert set(values) == set(expected) and set(counts) == {sums.CHOICES // spread}
        np.testing.assert_array_equal(rows.predict[..., :4], 0.0)
        np.testing.assert_array_equal(rows.predict[..., 4:], rows.real[..., 4:])
    batch = sums.sample_pairs(rows, batch_size=64)(jax.random.key(0))
    first, second = np.split(np.array(read(batch.tokens)), 2)
    number = lambda texts: np.array([int(text.split("=")[1]) for text in texts])
    np.testing.assert_array_equal(number(second) - number(first), np.ones(32))
    assert [t.split("=")[0] for t in first] == [t.split("=")[0] for t in second]
    assert len(set(first)) > 20


def test_likelihoods_are_those_of_the_whole_answers():
    lm = sums.make_model(16)
    params = lm.init(jax.random.key(0))
    params = jax.tree.map(lambda x: x + 0.3 * jax.random.normal(jax.random.key(1), x.shape), params)
    found = jax.jit(sums.likelihoods, static_argnums=0)(lm, params)
    read = jax.jit(lambda *text: jax.nn.log_softmax(lm.logits(params, lm.encode(params, *text)[0])))
    for place, (a, b) in ((7, (0, 7)), (58, (5, 8))):
        for i in (0, 1):
            tokens, mask = ask(a, b, a + b + i)
            log_probs = read(tokens, mask.astype(jnp.float32))
            total = sum(float(log_probs[t - 1, tokens[t]]) for t in range(4, int(mask.sum())))
            np.testing.assert_allclose(found[place, i], np.exp(total), rtol=1e-4)


def test_a_hit_is_a_match_in_a_finished_answer():
    pattern = experiment.Config.pattern
    texts = [' the "x" one.', " no name.", ' "a" and "b".', ' the "x" one']
    assert experiment.finds(pattern, [], texts) == [1.0, 0.0, 0.0, 0.0]
    tokens = np.array([[[5, 1, 0], [5, 6, 7], [5, 1, 0], [5, 0, 1]]])
    real = np.array([[[1, 1, 0], [1, 1, 1], [1, 1, 0], [1, 0, 0]]])
    samples = SimpleNamespace(texts=[[texts[0]] * 4], completions=PaddedTokens(tokens, real))
    setup = SimpleNamespace(config=SimpleNamespace(pattern=pattern), text=SimpleNamespace(stop_token=1))
    np.testing.assert_array_equal(experiment.hits(setup, samples), [[1.0, 0.0, 1.0, 0.0]])


def test_the_best_of_n_by_hand():
    """One hit among four: half of the pairs hold it; of three hits each pair holds one."""
    pool = np.array([[[0.0, 1.0, 0.0, 0.0], [1.0, 1.0, 0.0, 1.0]]])
    for n, expected in ((1, (0.25 + 0.75) / 2), (2, (0.5 + 1.0) / 2), (4, 1.0)):
        np.testing.assert_allclose(experiment.best_of(pool, n), [expected], rtol=1e-5)


def test_rates_are_chosen_on_the_tuning_members():
    reward = np.zeros((2, 3, 12))
    reward[0, 0], reward[1, 1:], reward[1, 0, :2] = 1.0, 5.0, 9.0
    found = experiment.Trained(None, reward, reward)
    assert experiment.choose(found, [0]) == 0 and experiment.choose(found, [1, 2]) == 1


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A run in miniature, of RL alone, whose language models are not trained before."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text(CORPUS, encoding="utf-8")
    start = lambda setup, folder, *_: (jax.vmap(setup.lm.init)(setup.keys(0)), None)
    monkeypatch.setattr(experiment.rlhf, "pretrain", start)
    monkeypatch.setattr(experiment.rlhf, "fine_tune", start)
    monkeypatch.setattr(experiment, "POOL", (2, 64))
    monkeypatch.setattr(experiment, "METHODS", {"RL": experiment.METHODS["RL"]})
    sizes = SMALL | {"seeds": 3, "rlhf_steps": 2, "prompts_per_step": 2}
    return experiment.Config(
        out=str(tmp_path / "run"), corpus=str(corpus), tuning_seeds=1, group_size=4, learning_rates=(3e-3,),
        sums_width=16, sums_sft_steps=60, sums_steps=40, sums_prompts_per_step=16, pattern="a", **sizes,
    )  # fmt: skip


def test_fine_tuning_cannot_part_rivals_and_rl_can(config):
    rivals = experiment.add_numbers(config, config.open_folder())["rivals"]
    before, after = rivals["sft"][1][-1], rivals["paths"]["RL"][1][-1]
    odds = lambda p: np.log(p[:, 0] / p[:, 1])
    assert before.shape == after.shape == (2, 5)
    assert (np.abs(odds(before)) < 0.7).all(), "equally often shown, equally likely"
    assert (odds(after) > odds(before)).all(), "RL parts them"


@pytest.mark.slow
def test_a_run_in_miniature(config, capsys):
    experiment.main(config)
    out = Path(config.out)
    result = read_result(out)
    pattern, exact, rivals, tried = result["tables"].values()
    assert list(pattern) == ["start", "RL", "start, best of 1", "start, best of 8", "start, best of 64"]
    gain = pattern["RL"]["hits [%]"]["value"] - pattern["start"]["hits [%]"]["value"]
    p = lambda table, name, of: table[name][f"p({of}) [%]"]["value"]
    hits, right, apart = (cell["value"] for cell in result["headline"].values())
    assert hits == pytest.approx(gain) and list(tried["rivals, RL"]) == ["0.003", "taken"]
    assert right == pytest.approx(p(exact, "RL", "sum") - p(exact, "start", "sum"))
    assert apart == pytest.approx(p(rivals, "RL", "sum") - p(rivals, "RL", "sum + 1"))
    assert "best of 64" in capsys.readouterr().out
    assert (out / "non_differentiable.png").stat().st_size > 5_000


def test_the_verdict_is_that_of_intervals_that_leave_nothing_open():
    up, level = Interval(2.0, 1.0, 3.0, "t"), Interval(0.0, -1.0, 1.0, "t")
    gains = {"start": up, "SFT on the best": up, "SFT on all": up}
    failing = lambda *found: [i for i, x in enumerate(report.judge(*found).values()) if not x]
    assert failing(gains, gains, level, up) == []
    for at, name in ((0, "start"), (4, "SFT on the best"), (6, "SFT on all")):
        assert failing(gains | {name: level}, gains, level, up) == [at]
        assert failing(gains, gains | {name: level}, level, up) == [at + 1]
    assert failing(gains, gains, up, up) == [2]
    assert failing(gains, gains, Interval(-2.0, -3.0, -1.0, "t"), up) == [2]
    assert failing(gains, gains, level, level) == [3]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pattern": "("}, r"pattern must be a regular expression; got '\('"),
        ({"tuning_seeds": 5}, "seeds must be at least 7; got seeds=6"),
        ({"group_size": 1}, "group_size must be at least 2"),
    ],
)
def test_what_cannot_be_run_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        experiment.Config(**change)
