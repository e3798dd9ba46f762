"""The commands `reward` and `score`, and where rewards come from."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align import align, data, nets
from jaxrl_align.cli import judges, run_command, scoring
from jaxrl_align.cli.judges import hint_form
from jaxrl_align.cli.runs.online import open_scene
from jaxrl_align.cli.runs.online_methods import PPO
from jaxrl_align.cli.scoring import count_characters
from jaxrl_align.data.tokens.tokenizers import STOP
from jaxrl_align.runtime.cli import parse
from jaxrl_align.runtime.huggingface import load_model, load_reward_model
from tests.cli.conftest import PROMPTS, TEMPLATE, WORDS, config, tokenizer, write_rows

RUN = "reward --model tiny --steps 4 --every 2 --batch-size 2 --rank 2 --learning-rate 0.05"
OTHERS = WORDS[1:] + WORDS[:1]


@pytest.fixture(scope="module")
def judge(workshop, tmp_path_factory):
    """The folder of a reward model."""
    out = tmp_path_factory.mktemp("reward") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workshop)
        run_command([*f"{RUN} --data pairs.jsonl --held-out pairs.jsonl --out".split(), str(out)])
    return out


@jax.jit
def scores_of(params, tokens, real):
    lm = nets.make_transformer(config())
    return jax.vmap(lambda t, m: align.score(lm, align.RewardModel(params), t, m))(tokens, real)


def read_scores(folder, words):
    """Return the scores of prompts with words, each text alone."""
    tokens, real = np.zeros((2, 6, 20))
    for row, (prompt, word) in enumerate(zip(PROMPTS, words, strict=True)):
        ids = [*tokenizer().encode(prompt), *tokenizer().encode(f" {word}"), 1]
        tokens[row, : len(ids)], real[row, : len(ids)] = ids, 1.0
    params = load_reward_model(folder).params
    return np.asarray(scores_of(params, jnp.array(tokens, jnp.int32), jnp.array(real)))


def test_scores_are_normalised_over_the_rows_and_order_the_pairs(judge):
    chosen, rejected = read_scores(judge, WORDS), read_scores(judge, OTHERS)
    both = np.concatenate([chosen, rejected])
    np.testing.assert_allclose([both.mean(), both.std()], [0.0, 1.0], atol=1e-4)
    found = json.loads((judge / "run" / "held_out.json").read_text())
    best = min(("2", "4"), key=lambda step: found[step]["loss"])
    assert found[best]["accuracy"] == np.mean(chosen > rejected)
    assert found[best]["loss"] < found["0"]["loss"]


def test_what_fills_up_a_shorter_ranking_is_not_normalised_over(road, tmp_path):
    """Three answers of one prompt and two of the others: their scores alone have mean 0 and deviation 1."""
    rows = [
        {
            "prompt": p,
            "completions": [f" {a}", f" {b}", " red"][: 2 + (i == 2)],
            "ranking": [1, 2, 3][: 2 + (i == 2)],
        }
        for i, (p, a, b) in enumerate(zip(PROMPTS, WORDS, OTHERS, strict=True))
    ]
    write_rows(tmp_path / "rankings.jsonl", rows)
    ending = "--held-out none --steps 1 --every 1 --tuning head --data"
    road(f"{RUN} {ending}", tmp_path / "rankings.jsonl", "--out", tmp_path / "out")
    first, second = (read_scores(tmp_path / "out", words) for words in (WORDS, OTHERS))
    third = read_scores(tmp_path / "out", ["red"] * len(WORDS))[2:3]
    scores = np.concatenate([first, second, third])
    np.testing.assert_allclose([scores.mean(), scores.std()], [0.0, 1.0], atol=1e-4)


def test_padding_ends_no_text_where_the_stop_token_pads(judge):
    pad = json.loads((judge / "config.json").read_text())["pad_token_id"]
    assert pad not in (1, *tokenizer().encode(" ".join([*PROMPTS, *WORDS])))
    assert load_reward_model(judge).tokenizer.pad_token == pad


def test_the_base_is_merged_and_its_head_over_words_left_out(judge, monkeypatch, workshop):
    monkeypatch.chdir(workshop)
    start, params = load_model("tiny").params, load_reward_model(judge).params["lm"]
    same = {
        name: np.array_equal(leaf["kernel"], params["layers"][name]["kernel"])
        for name, leaf in start["layers"].items()
        if "kernel" in leaf
    }
    assert [name for name, equal in same.items() if not equal] == ["query", "value"]


def test_score_reads_pairs_and_single_answers(judge, road, tmp_path, capsys):
    road("score --data pairs.jsonl --reward", judge, "--out", tmp_path / "pairs.jsonl")
    said = capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    np.testing.assert_allclose([row["chosen_score"] for row in rows], read_scores(judge, WORDS), atol=1e-5)
    np.testing.assert_allclose([row["rejected_score"] for row in rows], read_scores(judge, OTHERS), atol=1e-5)
    share = 100 * np.mean(read_scores(judge, WORDS) > read_scores(judge, OTHERS))
    assert "6 rows" in said and f"{share:.1f}% [" in said
    road("score --data sft.jsonl --reward", judge, "--out", tmp_path / "single.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "single.jsonl").read_text().splitlines()]
    assert rows[0].keys() == {"prompt", "completion", "score"}
    np.testing.assert_allclose([row["score"] for row in rows], read_scores(judge, WORDS), atol=1e-5)


def test_a_judge_reads_a_rows_tools(tmp_path, monkeypatch):
    read = []
    score = lambda judge, texts: read.extend(texts) or np.zeros(len(texts))
    monkeypatch.setattr(scoring, "score_tokens", score)
    template = data.ChatTemplate("{% if tools %}{{ tools[0] }}{% endif %}" + TEMPLATE, {"eos_token": STOP})
    reads = data.Tokenizer(tokenizer()._backend, {"eos_token": STOP}, template)
    row = {"prompt": [{"role": "user", "content": "say"}], "completion": "x"}
    write_rows(tmp_path / "rows.jsonl", [row | {"tools": ["add"]}, row])
    rows, _ = scoring.read_answers(str(tmp_path / "rows.jsonl"), False)
    scoring.score_answers(judges.Judge("j", None, tokenizer=reads), rows)
    assert read[0] == [*reads.encode("add"), *read[1]]


def test_score_calls_a_function_of_the_working_directory(road, tmp_path, capsys):
    road("score --data sft.jsonl --reward own_rewards:spaces --out", tmp_path / "out.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["score"] for row in rows] == [1.0 + (1 + len(word)) / 10 for word in WORDS]


def test_score_refuses_a_field_that_the_function_would_get_as_what_is_scored(fails, tmp_path):
    write_rows(tmp_path / "rows.jsonl", [{"prompt": "say", "completion": "x", "prompts": 1}])
    code, said = fails(f"score --data {tmp_path / 'rows.jsonl'} --reward own_rewards:spaces")
    assert code == 2 and "called neither prompts nor completions; got prompts, which reward" in said


@pytest.mark.parametrize("flag", ["", " --chat"])
def test_every_command_calls_a_function_with_rows_as_the_file_holds_them(road, tmp_path, flag, monkeypatch):
    """Texts stay texts, also with --chat; of messages both are lists, and no column is forced upon it."""
    got = []

    def see(prompts, completions, word):
        got.append((prompts, completions, word))
        return [0.0] * len(prompts)

    monkeypatch.setattr(judges, "_import_function", lambda *names: see)
    turn = [{"role": "user", "content": "tell"}]
    rows = [{"prompt": "say", "word": 1, "id": 5}, {"prompt": turn, "word": 2, "id": 6}]
    write_rows(tmp_path / "asked.jsonl", rows)
    write_rows(tmp_path / "answered.jsonl", [row | {"completion": "x"} for row in rows])
    road(f"score --reward m:see --data {tmp_path / 'answered.jsonl'}{flag}")
    best = f"best-of-n --reward m:see --model tiny --n 1 --tokens 2 --data {tmp_path / 'asked.jsonl'}{flag}"
    road(f"{best} --out {tmp_path / 'best'}")
    line = f"--model tiny --data {tmp_path / 'asked.jsonl'} --reward m:see --held-out None --out x{flag}"
    scene = open_scene(parse(PPO, line.split(), prog="ppo"), "ppo", 1)
    prompts = scene.encoded.train
    after = np.ones((2, 2))
    whole = np.concatenate([prompts.tokens, after], 1), np.concatenate([prompts.real, after], 1)
    jax.vmap(lambda t, m: scene.score(None, t, m))(*map(jnp.array, whole))
    assert [(asked, word) for asked, _, word in got] == [(["say", turn], [1, 2])] * 3
    for _, (text, (message,)), _ in got:
        assert isinstance(text, str) and message == {"role": "assistant", "content": message["content"]}
        assert isinstance(message["content"], str)


def test_margins_against_length_count_the_characters_of_messages(road, tmp_path, capsys):
    """A conversation says the same as its texts."""
    said = []
    messages = lambda text: [{"role": "assistant", "content": text}]
    for form in (str, messages):
        pairs = [("yes", "no way"), ("a", "abcdef"), ("ok ok", "never ever")]
        write_rows(
            tmp_path / "pairs.jsonl",
            [{"prompt": "q", "chosen": form(a), "rejected": form(b)} for a, b in pairs],
        )
        road("score --reward own_rewards:counts --data", tmp_path / "pairs.jsonl")
        said.append(capsys.readouterr().out)
    assert said[0] == said[1]
    assert count_characters([{"role": "assistant", "content": [{"type": "text", "text": "ab"}, {}]}]) == 2


@pytest.mark.parametrize(
    ("function", "line"),
    [
        ("spaaces", "own_rewards has no such function; did you mean spaces?"),
        ("raises", "reward 'own_rewards:raises' must not raise; got KeyError: 'blue'"),
        ("nan", "one finite number for each of 6 completions; got 6, not finite at sft.jsonl:1"),
        ("short", "one finite number for each of 6 completions; got 1"),
        ("single", "must return a list of one number for each of 6 completions; got 1.0"),
    ],
)
def test_a_function_that_fails_is_named(fails, function, line):
    code, said = fails(f"score --data sft.jsonl --reward own_rewards:{function}")
    assert code == 2 and line in said


def test_a_judge_that_learnt_of_prompts_in_another_form_is_told(tmp_path):
    assert hint_form("own_rewards:spaces", True) == hint_form(str(tmp_path), True) == ""
    (tmp_path / "run").mkdir()
    for own, chat, said in (
        (False, True, "trained without --chat and"),
        (True, False, "trained with --chat"),
    ):
        (tmp_path / "run" / "config.json").write_text(json.dumps({"command": "reward", "chat": own}))
        assert said in hint_form(str(tmp_path), chat) and hint_form(str(tmp_path), own) == ""
    for other in ("{}", "[]", '{"chat": "yes"}', "[" * 9000, "no JSON"):
        (tmp_path / "run" / "config.json").write_text(other)
        assert hint_form(str(tmp_path), True) == ""


def test_score_says_that_the_judge_learnt_of_plain_prompts(road, judge, capsys):
    for flag, hints in (("", 0), (" --chat", 1)):
        road(f"score --data pairs.jsonl --reward {judge}{flag}")
        assert capsys.readouterr().out.count("6 rows; it was trained without --chat") == hints


def test_what_is_no_reward_is_refused(fails):
    assert (
        "must be a reward model's folder, or module:function" in fails("score --data x --reward nowhere")[1]
    )
    assert "no module absent in" in fails("score --data x --reward absent:f")[1]
    assert "must hold a sequence classifier; got LlamaForCausalLM" in fails("score --data x --reward tiny")[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "row", "metric"),
    [
        ("rankings", {"completions": [" a", " b", " c"], "ranking": [1, 2, 2]}, "accuracy"),
        ("ratings", {"completion": " a", "score": 3}, "rmse"),
        ("labels", {"completion": " a", "label": True}, "accuracy"),
        ("corrections", {"completion": " a", "correction": " b"}, "accuracy"),
    ],
)
def test_every_kind_of_feedback_trains(road, tmp_path, kind, row, metric):
    write_rows(tmp_path / "rows.jsonl", [{"prompt": prompt} | row for prompt in PROMPTS])
    road(f"{RUN} --tuning head --data", tmp_path / "rows.jsonl", "--out", tmp_path / "out")
    lines = (tmp_path / "out" / "run" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 4 and metric in json.loads(lines[0])
    load_reward_model(tmp_path / "out")
