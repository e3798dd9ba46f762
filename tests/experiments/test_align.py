"""Who is preferred, what the reward head learns, what the table says, and a whole run in miniature."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from jaxrl_align import nets
from jaxrl_align.runtime import Interval
from jaxrl_align.types import PaddedTokens
from tests.cli.conftest import config as tiny_config
from tests.cli.conftest import tokenizer
from tests.experiments.loading import load, read_result

reward, report, task = load("align_reward"), load("align_report"), load("align_task")
experiment = load("align")
TOPICS, ANSWERS, LENGTH = 5, 6, 3


def make_written(seed=0):
    """Return answers whose only token, first feature and VADER score tell which they are."""
    rng = np.random.default_rng(seed)
    number = np.arange(TOPICS * ANSWERS).reshape(TOPICS, ANSWERS)
    vader = rng.permutation(number.size).reshape(number.shape) / number.size
    features = rng.normal(size=(TOPICS, ANSWERS, 4))
    features[..., 0] = number
    features[..., 1] = vader
    tokens = np.repeat(number[..., None], LENGTH, -1)
    zeros = np.zeros(number.shape)
    return task.Written(tokens, np.ones(tokens.shape), features, zeros, vader, zeros, [])


def test_annotators_without_noise_prefer_the_more_cheerful_of_one_topic():
    written = make_written()
    prompt = np.repeat(np.arange(TOPICS)[:, None], 2, 1)
    asked = SimpleNamespace(prompts=PaddedTokens(prompt, np.ones(prompt.shape)))
    rows, features = reward.compare_sentences(asked, written, np.random.default_rng(1), 3, 1e-6)
    assert features.shape == (TOPICS * 3 * ANSWERS // 2, 2, 4)
    chosen, rejected = (np.asarray(side.tokens)[:, 0] for side in (rows.chosen, rows.rejected))
    np.testing.assert_array_equal(features[:, :, 0], np.stack([chosen, rejected], 1))
    topic = np.asarray(rows.prompt.tokens)[:, 0]
    np.testing.assert_array_equal(chosen // ANSWERS, topic)
    np.testing.assert_array_equal(rejected // ANSWERS, topic)
    assert (written.vader.ravel()[chosen] > written.vader.ravel()[rejected]).all()
    # Every answer is compared three times.
    np.testing.assert_array_equal(np.bincount(np.concatenate([chosen, rejected])), [3] * TOPICS * ANSWERS)
    assert len(set(topic[: TOPICS * 2])) > 2  # in random order


def test_the_head_finds_the_feature_that_decides_and_its_scores_are_normalised():
    written = make_written()
    flat = written.features.reshape(-1, 4)
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, len(flat), (2, 400))
    first = flat[a, 1] > flat[b, 1]
    pairs = np.stack(
        [np.where(first[:, None], flat[a], flat[b]), np.where(first[:, None], flat[b], flat[a])], 1
    )
    head = reward.fit_head(pairs, flat, reward.HeadHParams())
    score = np.asarray(task.score_features(head, written.features))
    np.testing.assert_allclose([score.mean(), score.std()], [0, 1], atol=1e-5)
    assert np.corrcoef(score.ravel(), written.vader.ravel())[0, 1] > 0.95


def test_agreement_and_gains_by_hand():
    """Topic one: 2 of 3 pairs; two: 1 of the 2 that VADER orders, the other tied; three: it orders none."""
    vader = np.array([[0.1, 0.2, 0.3], [0.0, 0.0, 1.0], [0.5, 0.5, 0.5]])
    score = np.array([[1.0, 3.0, 2.0], [0.0, 1.0, 1.0], [1.0, 2.0, 3.0]])
    np.testing.assert_allclose(report.agreement(score, vader), [2 / 3, 1 / 2])
    start = {"vader": vader, "happy": vader, "score": score, "kl": 0 * vader}
    row = {"vader": vader + [[0.1], [0.2], [0.3]], "happy": vader, "score": score - 1, "kl": 0 * vader + 4}
    found = report.gains(row, start)
    half = 0.1 * 4.302653 / 3**0.5  # Student's t, two degrees of freedom, deviation 0.1
    np.testing.assert_allclose(found["vader"][:3], [0.2, 0.2 - half, 0.2 + half], rtol=1e-5)
    assert [found[name].value for name in ("happy", "score", "kl")] == [0.0, -1.0, 4.0]
    score[1] = [0.0, 2.0, 1.0]
    best = report.best_of({"vader": vader, "score": score})
    assert list(best) == [1, 2]
    # The better of two, by topic: 0.3, 0.2, 0.2; 0, 1, 0; 0.5 thrice.
    gain = np.mean([0.7, 1.0, 1.5]) / 3 - vader.mean()
    np.testing.assert_allclose([cell.value for cell in best.values()], [0, gain], atol=1e-6)
    orders = report.read_orders(start | {"score": score, "happy": 1 - vader})
    assert orders["the reward model [deviations]"]["share of pairs"].value == pytest.approx(7 / 12)
    assert orders["the start, asked"]["share of pairs"].value == 0
    assert orders["the start, asked"]["correlation with VADER"] == pytest.approx(-1)


def test_the_verdict_is_that_of_gains_that_no_interval_leaves_open():
    up, level = Interval(0.3, 0.1, 0.5, "t"), Interval(0.3, -0.1, 0.7, "t")
    ends = {name: {"vader": up, "happy": up} for name in ("PPO", "GRPO")}
    assert list(report.judge(ends, ends).values()) == [True] * 6
    assert len(report.judge(ends, {})) == 4
    one = ends | {"PPO": {"vader": level, "happy": up}}
    assert list(report.judge(one, ends).values()) == [False] + [True] * 5
    assert list(report.judge(ends, one).values()) == [True] * 4 + [False, True]
    other = ends | {"GRPO": {"vader": up, "happy": level}}
    assert list(report.judge(other, ends).values()) == [True] * 3 + [False, True, True]


@pytest.mark.parametrize(
    "change, message", [({"labels": "mr"}, "vader or sst2"), ({"ppo_steps": 3}, "evaluations must divide")]
)
def test_what_would_fail_after_minutes_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        experiment.Config(**change)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model of bytes with random weights."""
    from jaxrl_align.runtime.huggingface import save_model

    pytest.importorskip("safetensors")
    pytest.importorskip("vaderSentiment")
    shape = dataclasses.replace(tiny_config(), context=160, layers=2)
    path = tmp_path_factory.mktemp("align") / "model"
    params = nets.make_transformer(shape).init(jax.random.key(0))
    save_model(path, shape, params, stop_tokens=[1], tokenizer=tokenizer())
    return path


@pytest.mark.slow
def test_a_run_in_miniature_continues_to_the_same_result(folder, tmp_path, capsys):
    small = {"prompt_length": 100, "response_length": 4, "answers": 4, "comparisons": 48, "judged": 2}
    steps = {"ppo_steps": 2, "grpo_steps": 2, "dpo_steps": 2, "evaluations": 1}
    config = experiment.Config(out=str(tmp_path / "run"), model=str(folder), **small, **steps)
    experiment.main(config)
    out = Path(config.out)
    first = read_result(out)
    gains = first["tables"]["gain over the start on held-out topics, paired by topic"]
    assert list(gains) == [f"{name}, step 2" for name in ("PPO", "GRPO", "DPO")]
    assert all(row["KL [nats]"]["value"] != 0 for row in gains.values())
    assert list(first["headline"].values()) == [
        gains["PPO, step 2"][j] for j in ("VADER", "the start, asked")
    ]
    assert len(first["checks"]) == 6  # no evaluation before the last
    assert (out / "align.png").stat().st_size > 5_000
    for path in [*(out / "dpo").iterdir(), out / "result.json"]:
        path.unlink()
    experiment.main(dataclasses.replace(config, resume=True))
    assert read_result(out) == first
    assert "start  '" in capsys.readouterr().out


@pytest.fixture(scope="module")
def tiny(folder):
    """The task of a tiny model whose vocabulary is bytes, and a part that has moved."""
    made = task.Task(str(folder), 2, 100, 4, 0)
    part = jax.tree.map(lambda x: x + 0.3, made.lora)
    return made, part, made.write(part, ["rain", "the sea"], jax.random.key(1), 3)


def read_row(prompt, answer):
    """Return the real tokens of a prompt and of its answer, in turn."""
    keep = lambda text: np.asarray(text.tokens)[np.asarray(text.real) > 0]
    return keep(prompt), keep(answer)


def test_what_is_written_is_judged_by_hand(tiny):
    """Row by row without padding: divergence, features of the answer alone after one of two layers, score."""
    made, part, written = tiny
    head = {"kernel": np.arange(8.0), "bias": 0.5}
    policy = nets.merge(nets.overlay(made.base, part))
    half = nets.make_transformer(dataclasses.replace(made.lm.config, layers=1))
    shallow = made.base | {"layers": jax.tree.map(lambda x: x[:1], made.base["layers"])}
    prompts = made.ask(["rain", "the sea"])
    for topic in range(2):
        prompt = jax.tree.map(lambda x, i=topic: x[i], prompts)
        for i in range(3):
            answer = PaddedTokens(written.tokens[topic, i], written.real[topic, i])
            asked, said = read_row(prompt, answer)
            row = np.concatenate([asked, said])
            gap = (
                log_prob(made.lm, policy, row)[-len(said) :] - log_prob(made.lm, made.base, row)[-len(said) :]
            )
            np.testing.assert_allclose(written.kl[topic, i], gap.sum(), atol=1e-4)
            mean = np.mean(half.encode(shallow, row)[0][len(asked) :], 0)
            np.testing.assert_allclose(written.features[topic, i], mean, atol=1e-4)
            text = PaddedTokens(*(np.concatenate(pair) for pair in zip(prompt, answer, strict=True)))
            score = made.score(made.reward_model(head), text.tokens, text.real)
            np.testing.assert_allclose(score, mean @ head["kernel"] + 0.5, atol=1e-3)
    assert np.abs(written.kl).max() > 1e-3 and len(set(written.texts[0])) > 1
    assert all(text.startswith("The sea") for text in written.texts[1])


def log_prob(lm, params, row):
    """Return the log-probability of each token of a row after the first."""
    logits = jax.nn.log_softmax(lm.logits(params, lm.encode(params, row)[0]))
    return np.take_along_axis(np.asarray(logits)[:-1], row[1:, None], 1)[:, 0]


def test_the_start_is_asked_whether_a_sentence_makes_it_happy(tiny):
    made = tiny[0]
    said = made.feel_happy(["Rain falls.", "I sing!"])
    for sentence, found in zip(["Rain falls.", "I sing!"], said, strict=True):
        asked = made.tokenizer.encode(task.ASKED.format(sentence))
        words = [made.tokenizer.encode(word, special=False) for word in (" happy", " sad")]
        each = [log_prob(made.lm, made.base, np.array(asked + word))[-len(word) :].sum() for word in words]
        np.testing.assert_allclose(found, 1 / (1 + np.exp(each[1] - each[0])), atol=1e-5)
    assert said[0] != said[1]
