"""Answering against continuing: every rule by a text made for it, the data, and a whole run in miniature."""

import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.data.probes import ASSISTANCE_PROMPTS
from jaxrl_align.nets.transformer import TransformerConfig, make_transformer
from jaxrl_align.runtime import Interval
from jaxrl_align.types import PaddedTokens
from tests.experiments.loading import load

rules, data, tables = load("assistants_rules"), load("assistants_data"), load("assistants_report")
published, stages, experiment = load("assistants_model"), load("assistants_stages"), load("assistants")
MOON, FROG = ASSISTANCE_PROMPTS
LISTED = (
    "Explain gravity to a 6 year old. Explain the big bang to a 6 year old. Explain rain to a 6 year old."
)
POEM = "There was a frog, and he was wise.\nHe watched the moon with golden eyes.\nHe never spoke."
STEPS = "Landing on the moon took three steps:\n1. Write a plan.\n2. Find a rocket.\n- Use it."
CASES = [
    (MOON, " ... !", True, "empty"),
    (MOON, "Explain the moon landing to my son.", True, "copy"),
    ("Go on!", "Go on, my friend, for the moon is far.", True, "copy"),
    (MOON, LISTED, False, "instruction"),
    (MOON, "1. Describe gravity to a 6 year old.", True, "instruction"),
    (MOON, 'Question 2: "Who was first on the moon?"', True, "instruction"),
    (MOON, "What happened on the moon? Who was there?", True, "instruction"),
    (MOON, "What happened on the moon is that people landed.", True, "answer"),
    (MOON, "Input: the moon.", True, "instruction"),
    (MOON, "What happened on the moon\nIs it far?", True, "answer"),
    (MOON, "What happened on the moon is a landing. Is it far?", True, "answer"),
    (MOON, "Is the moon far? People have landed there.", True, "answer"),
    (MOON, "Name: the moon landing of 1969.", True, "answer"),
    (MOON, "People landed on the moon.\nExplain gravity.", True, "next"),
    (MOON, "People landed on the moon.\nInput: 6", True, "next"),
    (MOON, STEPS, True, "answer"),
    (MOON, ", and to his little sister on the moon.", True, "mid-sentence"),
    (MOON, ", Ann, and to me.", True, "mid-sentence"),
    (MOON, "of the moon landing.", True, "mid-sentence"),
    (MOON, "Of the moon landing.", True, "answer"),
    (MOON, "the moon is a big rock. " * 4, True, "loop"),
    (MOON, "the moon is a big rock. " * 3, True, "answer"),
    (MOON, "people landing on the moon and people landing", False, "unfinished"),
    (MOON, "people landing on the moon and people landing", True, "answer"),
    (MOON, "the moon\na landing", False, "answer, cut"),
    (MOON, "People landed on the moon. They", False, "answer, cut"),
    (MOON, "The cat sat there all day long.", True, "off topic"),
    (MOON, "The cat sat all day.", True, "answer"),
    (FROG, POEM, True, "answer"),
    (FROG, POEM, False, "answer, cut"),
    (FROG, POEM.replace("frog", "toad").replace("wise", "old"), True, "answer"),
    (FROG, "A wise frog is a frog\nthat has read.", True, "no poem"),
    (FROG, POEM + "\nWrite a poem about a dog.", True, "next"),
    ("Name a poem.", "The Waste Land is a poem of Eliot.", True, "answer"),
]


@pytest.mark.parametrize(("prompt", "text", "stopped", "rule"), CASES)
def test_rule(prompt, text, stopped, rule):
    verdicts = dict.fromkeys(("empty", "loop", "no poem", "off topic"), "neither")
    verdicts |= dict.fromkeys(("answer", "answer, cut"), "answers")
    assert rules.judge_text(prompt, text, stopped) == (verdicts.get(rule, "continues"), rule)


def test_every_rule_is_tried_and_in_the_table():
    assert {case[-1] for case in CASES} == set(rules.RULES)
    named = [line.split("|")[1].strip() for line in rules.__doc__.splitlines() if line.startswith("| ")]
    assert tuple(named[1:]) == rules.RULES


def test_content_by_hand():
    assert rules.content_of("What are the 3 boiling points, with synonyms of x2?") == {
        "3",
        "boili",
        "point",
        "synon",
        "x2",
    }


def test_counts_and_the_check_of_the_rules():
    pairs = [
        data.Pair("Name the capital of France.", "The capital of France is Paris."),
        data.Pair("What is the colour of snow?", "The colour of snow is white."),
        data.Pair("Add 2 and 3.", "5."),
    ]
    found = rules.check_rules(pairs)
    assert found["the human answer"]["verdicts"] == {"answers": 3, "continues": 0, "neither": 0}
    assert found["another instruction"]["verdicts"] == {"answers": 0, "continues": 3, "neither": 0}
    other = found["another's human answer"]
    assert other["verdicts"] == {"answers": 1, "continues": 0, "neither": 2} and other["ended"] == 3
    assert other["rules"]["off topic"] == 2 and sum(other["rules"].values()) == 3


def test_no_prompt_stands_in_two_parts():
    pairs = [data.Pair(f"Say {i % 350}.", f"{i}") for i in range(400)]
    split = data.split_pairs(pairs)
    assert (len(split.test), len(split.validation)) == (200, 100)
    parts = [{pair.prompt for pair in part} for part in split]
    assert not parts[0] & parts[1] and not parts[0] & parts[2] and not parts[1] & parts[2]
    assert split == data.split_pairs(pairs)
    assert all(pair in pairs for part in split for pair in part) and split.train


def test_lists_hold_every_instruction_equally_often_and_nothing_else():
    prompts = [f"Say {i}." for i in range(24)]
    lists = data.make_lists(prompts)
    lines = [line for text in lists for line in text.split("\n")]
    assert {line: lines.count(line) for line in prompts} == dict.fromkeys(prompts, data.COPIES)
    assert len(lines) == 24 * data.COPIES and {len(text.split("\n")) for text in lists} == {data.LIST}
    assert lists[:3] != lists[3:6]


class Letters:
    """A tokenizer of single characters; 0 pads, 1 stops."""

    pad_token, stop_token = 0, 1

    def encode(self, text):
        return [ord(c) for c in text]


def test_pairs_as_rows_by_hand():
    """A stop token begins a document and ends an answer; a long prompt is cut, a long answer left out."""
    pairs = [data.Pair("ab", "c"), data.Pair("d", "efg"), data.Pair("hijk", "lm")]
    rows = data.encode_pairs(Letters(), pairs, 4, 3)
    a = [ord(c) for c in "abchijklm\n"]
    end = a[-1]
    np.testing.assert_array_equal(rows.prompt.tokens, [[1, a[0], a[1], end], [*a[4:7], end]])
    np.testing.assert_array_equal(rows.answer.tokens, [[a[2], 1, 0], [*a[7:9], 1]])
    np.testing.assert_array_equal(rows.answer.real, [[1, 1, 0], [1, 1, 1]])
    short = data.encode_prompts(Letters(), ["a"], 5)
    np.testing.assert_array_equal(short.real, [[0, 0, 1, 1, 1]])


def test_humans_are_preferred_over_all_that_was_written():
    text = lambda *values: PaddedTokens(np.array([[v] for v in values]), np.ones((len(values), 1)))
    rows = data.Rows(text(1, 2), text(3, 4))
    found = data.prefer_humans(rows, text(5, 6), text(7, 8))
    read = lambda part: np.asarray(part.tokens)[:, 0].tolist()
    assert read(found.prompt) == [1, 2, 1, 2]
    assert read(found.chosen) == [3, 4, 3, 4] and read(found.rejected) == [5, 6, 7, 8]


def test_the_tables_judge_held_out_prompts_alone():
    """The lecture's two prompts come first, and count nowhere; a published model may be asked fewer."""
    prompts = ["Name the colour of snow.", "Name a bird."]
    first = [("x", True), ("y", True), ("White.", True), ("Name a fish.", True)]
    second = [("x", True), ("y", True), ("White.", False), ("A crow.", False)]
    texts = tables.gather_texts(
        {"scratch": {"written": {"SFT": [first, second]}}, "published": {"bare prompt": first[:3]}}
    )
    judged = tables.judge_texts(texts, prompts)
    scratch, asked = judged["from scratch, SFT"], judged["published, bare prompt"]
    assert [one["verdicts"]["answers"] for one in scratch] == [1, 2] and scratch[1]["ended"] == 0
    assert asked == [rules.judge_all(prompts[:1], texts["published, bare prompt"][0][2:])]
    np.testing.assert_array_equal(tables.shares(scratch, "verdicts")["answers"], [0.5, 1.0])
    np.testing.assert_array_equal(tables.shares(scratch, "verdicts")["continues"], [0.5, 0.0])
    verdicts, decided = tables.tabulate(judged).values()
    row = verdicts["from scratch, SFT"]
    assert row["answers"] == (75, 0, 100, "t") and row["ended by itself"].value == 50
    assert verdicts["published, bare prompt"]["answers"][:3] == pytest.approx((100, 20.7, 100), abs=0.1)
    assert decided["published, bare prompt"]["answer"] == 100


class Chatting(Letters):
    """Turns are put in brackets; every text ends in a token of its own."""

    chat_template = "one"

    def encode(self, text):
        return [2 + ord(c) % 20 for c in text]

    def encode_chat(self, messages, add_generation_prompt):
        assert add_generation_prompt
        ((role, text),) = (message.values() for message in messages)
        assert role == "user"
        return [22, *self.encode(text), 23]

    def decode(self, tokens):
        return " ".join(str(token) for token in tokens)

    def special_token(self, text):
        return {"<|endoftext|>": 24}.get(text)


def test_the_published_model_is_asked_in_batches_of_one_size_and_in_both_ways(monkeypatch):
    """What is filled up is dropped again; texts keep their prompts' order."""
    tokenizer, asked = Chatting(), []
    model = SimpleNamespace(lm="model", params="weights", stop_tokens=(1,), tokenizer=tokenizer)
    monkeypatch.setattr(published, "load_published", lambda folder: model)
    monkeypatch.setattr(published, "BATCH", 2)

    def make(lm, **options):
        assert options.pop("filters").top_k == 1
        assert (lm, options) == ("model", {"response_length": 3, "stop_tokens": [1, 24]})

        def complete(params, prompts, key):
            asked.append(len(prompts))
            return [SimpleNamespace(tokens=prompt[::-1], stopped=len(prompt) % 2 > 0) for prompt in prompts]

        return complete

    monkeypatch.setattr(published, "make_completer", make)
    found = published.write_published(SimpleNamespace(model="here", model_tokens=3), ["ab", "c", "d"])
    line = str(tokenizer.encode("\n")[0])
    a, b, c, d = (str(token) for token in tokenizer.encode("abcd"))
    assert found["bare prompt"] == [(f"{b} {a}", False), (c, True), (d, True)]
    assert found["bare prompt and line break"][1] == (f"{line} {c}", False)
    assert found["chat template"] == [
        (f"23 {b} {a} 22", False),
        (f"23 {c} 22", True),
        (f"23 {d} 22", True),
    ]
    assert asked == [2] * 6 and list(found)[1] == "bare prompt and line break"


class FakeFolder:
    """Keeps nothing."""

    def sub(self, name):
        return name

    def once(self, name, make, *args):
        return make(*args)


def test_every_stage_starts_from_the_one_before_at_the_rate_that_other_seeds_chose(monkeypatch):
    """Six members, of which the last two choose: the least mean cross-entropy, then the most answers."""
    made, six = [], np.arange(6)
    config = experiment.Config()
    setup = SimpleNamespace(keys=lambda purpose, count=6: (purpose, count))
    fakes = {
        "Setup": lambda *_: setup,
        "pretrain": lambda *_: 100 + six,
        "choose_cloning": lambda *_: {"rates": [1, 2, 3], "nats": [[1, 13], [4, 6], [6, 6]]},
        "fine_tune": lambda _, folder, params, *how: made.append((folder, params[0], *how)) or 200 + six,
        "learn_reward": lambda _, folder, base, sft: (base + sft, {"SFT": six / 10}),
        "choose_alignment": lambda *_: {"rates": [4, 5, 6], "answers": [[0.5, 0.5], [0, 0.9], [0.6, 0.7]]},
        "align": lambda _, folder, sft, model, *how: made.append((folder, sft, model, *how)) or 300 + six[:4],
        "ask": lambda _, params, prompts, purpose: [params.tolist(), prompts],
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(experiment, name, fake)
    split = data.Split([], [], [data.Pair("held out", "x")])
    found = experiment.train(config, FakeFolder(), split)
    cloned, (folder, sft, model, *how) = made
    assert cloned == ("sft", 100, 2, (1, 6)) and (folder, how) == ("rlhf", [6, (8, 4)])
    np.testing.assert_array_equal(sft, 200 + six[:4])
    np.testing.assert_array_equal(model, 300 + 2 * six[:4])
    starts = {"pre-trained": 100, "SFT": 200, "RLHF": 300}
    asked = [*ASSISTANCE_PROMPTS, "held out"]
    assert found["written"] == {n: [[s, s + 1, s + 2, s + 3], asked] for n, s in starts.items()}
    np.testing.assert_array_equal(found["reward"]["SFT"], six[:4] / 10)


def test_who_chooses_rates_and_what_another_prompts_answer_is():
    setup = SimpleNamespace(config=SimpleNamespace(seeds=2))
    np.testing.assert_array_equal(stages.repeat_tuning(setup, np.arange(4), 2), [2, 3, 2, 3])
    rows = data.Rows(None, PaddedTokens(np.array([[1], [2], [3]]), np.array([[4.0], [5.0], [6.0]])))
    found = stages.anothers(rows)
    np.testing.assert_array_equal(found.tokens, [[3], [1], [2]])
    np.testing.assert_array_equal(found.real, [[6], [4], [5]])


def test_a_text_is_read_up_to_its_stop_token():
    """The second text is cut; what stands behind a stop token is padding."""
    tokens = np.array([[[5, 1, 0], [6, 7, 8]]])
    real = np.array([[[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]]])
    setup = SimpleNamespace(
        tokenizer=Chatting(),
        config=SimpleNamespace(prompt_length=4),
        text=SimpleNamespace(stop_token=1),
        keys=lambda purpose, count: (purpose, count),
        write=lambda params, rows, keys: PaddedTokens(tokens, real),
    )
    assert stages.ask(setup, {"a": np.zeros((1, 2))}, ["x", "y"], 3) == [[("5 1", True), ("6 7 8", False)]]


@pytest.mark.slow
def test_the_published_model_is_asked_greedily(monkeypatch):
    """Each text is the likeliest token after the likeliest token, whatever is asked beside it."""
    config = TransformerConfig(25, 8, 1, 2, 64)
    lm = make_transformer(config)
    params = jax.tree.map(lambda x: 3.0 * x, lm.init(jax.random.key(0)))
    model = SimpleNamespace(lm=lm, params=params, stop_tokens=(1,), tokenizer=Chatting())
    monkeypatch.setattr(published, "load_published", lambda folder: model)
    monkeypatch.setattr(published, "BATCH", 2)
    prompts = ["abc", "def", "cba"]
    found = published.write_published(SimpleNamespace(model="somewhere", model_tokens=3), prompts)

    @jax.jit
    def likeliest(tokens, length):
        hidden, _ = lm.encode(params, tokens, (jnp.arange(8) < length).astype(jnp.float32))
        return lm.logits(params, hidden).argmax(-1)

    asked = {"bare prompt": Chatting().encode("cba"), "chat template": [22, *Chatting().encode("cba"), 23]}
    for way, tokens in asked.items():
        said: list[int] = []
        while len(said) < 3 and not (said and said[-1] in (1, 24)):
            read = tokens + said
            said.append(int(likeliest(np.resize(read, 8), len(read))[len(read) - 1]))
        stopped = said[-1] in (1, 24)
        assert len(found[way]) == 3
        assert found[way][2] == (Chatting().decode(said[: len(said) - stopped]), stopped)
    model.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="chat template"):
        published.write_published(SimpleNamespace(model="somewhere", model_tokens=3), prompts)


@pytest.mark.slow
def test_assistants_in_miniature(tmp_path, monkeypatch, capsys):
    """All stages, on another file: every seed is judged on every held-out prompt."""
    pairs = [data.Pair(f"Name the number behind {i}.", f"It is {i + 1}.") for i in range(340)]
    monkeypatch.setattr(experiment, "read_pairs", lambda: pairs)
    words = [f"word{i % 50}" for i in range(400)]
    monkeypatch.setattr(data, "childrens_books", lambda: {"author": {"book": words}})
    size = {
        "seeds": 2,
        "tuning_seeds": 1,
        "width": 16,
        "layers": 1,
        "vocab_size": 300,
        "words": 300,
        "prompt_length": 16,
    }
    size |= {"response_length": 16, "pretrain_steps": 2, "pretrain_batch": 2, "sft_steps": 2, "batch_size": 2}
    size |= {"reward_steps": 2, "rlhf_steps": 1, "prompts_per_step": 2, "group_size": 2}
    size |= {"sft_rates": (1e-3, 2e-3), "rlhf_rates": (1e-3, 2e-3), "parts": ("scratch",)}
    config = experiment.Config(out=str(tmp_path / "run"), **size)
    experiment.main(config)
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    verdicts, decided, added, tried, ordered = result["tables"].values()
    stages = [f"from scratch, {name}" for name in ("pre-trained", "SFT", "RLHF")]
    assert list(verdicts)[:2] == ["the human answer", "another instruction"]
    assert list(verdicts)[3:] == list(decided)[3:] == stages
    assert sum(verdicts[stages[1]][v]["value"] for v in rules.VERDICTS) == pytest.approx(100)
    assert sum(decided[stages[1]].values()) == pytest.approx(100)
    less = lambda v, a, b: verdicts[stages[a]][v]["value"] - verdicts[stages[b]][v]["value"]
    for name, a, b in (("SFT less pre-trained", 1, 0), ("RLHF less SFT", 2, 1)):
        assert all(added[name][v]["value"] == pytest.approx(less(v, a, b)) for v in rules.VERDICTS)
    assert list(tried) == ["sft, 0.001", "sft, 0.002", "rlhf, 0.001", "rlhf, 0.002", "before RLHF"]
    assert len(ordered) == 3 and len(result["checks"]) == 5
    (headline,) = result["headline"].values()
    assert headline == added["SFT less pre-trained"]["answers"]
    first, second = result["baselines"].values()
    assert first == verdicts[stages[0]]["answers"] and second == added["RLHF less SFT"]["answers"]
    texts = json.loads((tmp_path / "run" / "texts.json").read_text())
    assert texts["prompts"][:2] == list(ASSISTANCE_PROMPTS) and len(texts["prompts"]) == 202
    assert (tmp_path / "run" / "assistants.png").stat().st_size > 0
    assert ASSISTANCE_PROMPTS[1] in capsys.readouterr().out


def near(value, half=1.0):
    return Interval(value, value - half, value + half, "t")


def test_the_verdicts_read_the_intervals():
    assert list(tables.judge_rules(near(97), near(97)).values()) == [True]
    assert list(tables.judge_rules(near(97), near(95.5)).values()) == [False]
    assert list(tables.judge_rules(near(95.5), near(97)).values()) == [False]
    judged = lambda *x: list(tables.judge_scratch(*x).values())
    assert judged(near(70), near(50), near(-60), near(5)) == [True] * 4
    assert judged(near(50.5), near(0.5), near(-0.5), near(0.5)) == [False] * 4
    assert judged(near(70), near(-50), near(60), near(-5)) == [True, False, False, False]
    judged = lambda *x: list(tables.judge_published(*x).values())
    assert judged(near(60), near(70)) == [True] * 2 and judged(near(0.5), near(10)) == [False] * 2


def test_the_published_model_is_compared_prompt_by_prompt():
    """Of two held-out prompts the bare one answers one, the line none, the template both."""
    good, bad = rules.Written("It is blue.", True), rules.Written("", True)
    ways = {"bare prompt": [good, bad], "bare prompt and line break": [bad, bad], "chat template": [good] * 2}
    texts = {f"published, {way}": [[bad, bad, *rows]] for way, rows in ways.items()}
    prompts = ["Say which it is, blue or red.", "Name what is blue."]
    described = tables.describe_published(texts, tables.judge_texts(texts, prompts), prompts)
    (table,) = described["tables"].values()
    found = {name: row["answers"].value for name, row in table.items()}
    line, bare, template = "bare prompt and line break", "bare prompt", "chat template"
    expected = {f"{line} less {bare}": -50, f"{template} less {line}": 100, f"{template} less {bare}": 50}
    assert found == expected
    (headline,), (baseline,) = described["headline"].values(), described["baselines"].values()
    assert headline.value == 50 and (baseline.value, baseline.kind) == (50, "wilson")


def test_a_configuration_that_cannot_work_is_refused():
    with pytest.raises(ValueError, match="lists must be at least 0 and below 1; got 1.0"):
        experiment.Config(lists=1.0)
    with pytest.raises(ValueError, match="group_size must be at least 2"):
        experiment.Config(group_size=1)
