"""Instruction tuning in miniature: what is read, drawn and judged, by hand, and a whole run."""

import collections
import io
import json
import tarfile

import jax
import numpy as np
import pytest

from jaxrl_align.data import byte_tokenizer
from jaxrl_align.data.tokens.chat import ChatTemplate
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.nets import transformer
from jaxrl_align.runtime import Interval
from tests.experiments.loading import load
from tests.tiny import draw_params

sets = load("instruction_tuning_sets")
rows_room = load("instruction_tuning_rows")
ask = load("instruction_tuning_ask")
world = load("instruction_tuning_world")
published = load("instruction_tuning_model")
shares, reports = load("instruction_tuning_shares"), load("instruction_tuning_report")
experiment = load("instruction_tuning")
TOKENIZER = byte_tokenizer()


def write_archive(path, files):
    """Write templates {name: [(prompt, completion)]} as T0's archive holds them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:xz") as archive:
        for name, pairs in files.items():
            lines = [json.dumps({"prompt": p, "completion": c + sets.END}) for p, c in pairs]
            text = ("\n".join(lines) + "\n").encode()
            member = tarfile.TarInfo(f"t0/{name}.jsonl")
            member.size = len(text)
            archive.addfile(member, io.BytesIO(text))
    return path


def make_row(own="sciq", template="a", prompt="Q\n", completion="yes", place=0):
    return sets.Row(own, template, prompt, completion, place)


def test_every_set_has_one_family_and_is_learnt_asked_or_neither():
    assert len(sets.SETS) == len(set(sets.SETS)) == 37
    assert len(sets.POOL) == 18
    assert not set(sets.POOL) & set(sets.TESTS)
    learnt = {family for family, own in sets.FAMILIES.items() if set(own) & set(sets.POOL)}
    assert not learnt & set(sets.UNSEEN_FAMILIES)
    assert "samsum" not in sets.POOL and "rotten_tomatoes" not in sets.POOL
    assert len(sets.WIDE_POOL) == 30 and set(sets.POOL) < set(sets.WIDE_POOL)
    assert not set(sets.WIDE_POOL) & set(sets.HELD_OUT)


def test_a_template_belongs_to_the_longest_name_it_begins_with(monkeypatch):
    assert sets.split_name("glue_qqp_same_thing") == ("glue_qqp", "same_thing")
    assert sets.split_name("duorc_SelfRC_answer_question") == ("duorc_SelfRC", "answer_question")
    monkeypatch.setattr(sets, "SETS", ("quartz", "quartz_b"))
    assert sets.split_name("quartz_b_x") == ("quartz_b", "x")
    assert sets.split_name("quartz_by") == ("quartz", "by")
    with pytest.raises(ValueError, match="quar_x must begin with the name of a set"):
        sets.split_name("quar_x")


def test_an_archive_is_read_without_empty_completions(tmp_path, monkeypatch):
    files = {"trec_trec1": [("Who?\n", "")], "glue_qqp_answer": [("Same?\n", "yes"), ("So?\n", " no ")]}
    path = write_archive(tmp_path / sets.ARCHIVE, files)
    expected = [
        sets.Row("glue_qqp", "answer", "Same?\n", "yes", 0),
        sets.Row("glue_qqp", "answer", "So?\n", "no", 1),
    ]
    assert sets.read_mixture(path) == expected
    monkeypatch.setenv("JAXRL_ALIGN_DATA", str(tmp_path))
    assert sets.find_archive() == path
    monkeypatch.setenv("JAXRL_ALIGN_DATA", str(tmp_path / "none"))
    with pytest.raises(FileNotFoundError, match=r"data_per_template.tar.xz is not in .*self-instruct"):
        sets.find_archive()
    for name, limit in {"LARGEST_FILE": 10, "LARGEST_ARCHIVE": 100}.items():
        with monkeypatch.context() as patch:
            patch.setattr(sets, name, limit)
            with pytest.raises(ValueError, match="must hold files of at most .* bytes"):
                sets.read_mixture(path)
    with pytest.raises(ValueError, match=r"qqp_answer.jsonl:2: must have prompt and completion"):
        sets._read_template("glue_qqp_answer", ['{"prompt": "a", "completion": "b"}', '{"prompt": "a"}'])


def test_questions_read_their_options_from_the_table_or_the_prompt():
    listed = "Facts.\nAnswer choices:\n- Red\n - blue sky\n - green\n"
    bracketed = "Fact.\nRead it (choices are hot or very cold ):\n\nWhen?\n"
    comma = "X.\n\nGiven the context: How?\n\nPossible answers: glad, 1,000 times, mad\n"
    given = [
        make_row("qasc", "qa_with_combined_facts_1", listed, "blue sky"),
        make_row("quartz", "having_read_above_passage", bracketed, "very cold"),
        make_row("social_i_qa", "Show_choices_and_generate_answer", comma, "glad"),
        make_row("quartz", "having_read_above_passage", bracketed, "40 cm"),
        make_row("glue_qqp", "meaning", "Same?\n", "No", 7),
        make_row("glue_qqp", "meaning", "Same?\n", "Yes", 8),
        make_row("glue_qqp", "meaning", "So?\n", "No", 9),
        make_row("glue_qqp", "no such template", "So?\n", "No"),
        make_row("sciq", "a", "So?\n", "No"),
    ]
    found = rows_room.make_questions(given)
    assert [(q.set, q.options, q.answer) for q in found] == [
        ("qasc", ("Red", "blue sky", "green"), 1),
        ("quartz", ("hot", "very cold"), 1),
        ("social_i_qa", ("glad", "1,000 times", "mad"), 0),
        ("glue_qqp", ("Yes", "No"), 1),
        ("glue_qqp", ("Yes", "No"), 0),
        ("glue_qqp", ("Yes", "No"), 1),
    ]
    np.testing.assert_allclose([q.constant for q in found], [0, 0, 0, 2 / 3, 2 / 3, 2 / 3])
    assert found[-1].place == 9
    with pytest.raises(ValueError, match="glue_qqp_meaning allows .*; got 'perhaps'"):
        rows_room.make_questions([make_row("glue_qqp", "meaning", "Same?\n", "perhaps")])
    told = rows_room.describe(found[:1] + found[3:4])
    assert [(q["answer"], q["uniform"], q["constant"]) for q in told] == [
        ("blue sky", 1 / 3, 1 / 3),
        ("No", 0.5, 2 / 3),
    ]


def test_rows_are_drawn_from_sets_and_templates_in_turn():
    many = [make_row("sciq", f"t{i % 2}", place=i) for i in range(20)]
    few = [make_row("dream", "t", place=i) for i in range(3)]
    drawn = rows_room.draw_in_turn(many + few, np.random.default_rng(0))
    assert sorted(drawn) == sorted(many + few)
    assert [row.set for row in drawn[:7]] == ["sciq", "dream"] * 3 + ["sciq"]
    assert collections.Counter(row.template for row in drawn if row.set == "sciq") == {"t0": 10, "t1": 10}
    own = [row.template for row in drawn if row.set == "sciq"]
    assert own == ["t0", "t1"] * 10
    again = rows_room.draw_in_turn(many + few, np.random.default_rng(1))
    assert again != drawn


def test_orders_of_sets_begin_apart_and_with_enough_rows():
    sizes = {"a": 5, "b": 50, "c": 60, "d": 2, "e": 50}
    orders = rows_room.draw_orders(sizes, 50, 3, 0)
    assert all(sorted(order) == sorted(sizes) for order in orders)
    assert sorted(order[0] for order in orders) == ["b", "c", "e"]
    assert orders == rows_room.draw_orders(sizes, 50, 3, 0) != rows_room.draw_orders(sizes, 50, 3, 1)
    with pytest.raises(ValueError, match="4 orders must begin with sets of 50 rows each; got 3"):
        rows_room.draw_orders(sizes, 50, 4, 0)


def make_pool(each=4):
    return [
        make_row(own, f"t{i % 2}", f"{own} {i}?\n", f"yes {i}", i) for own in sets.POOL for i in range(each)
    ]


def test_completions_alone_are_learnt_and_long_ones_do_not_end():
    given = [
        *make_pool(1),
        make_row("dream", "t0", "d?\n", "a long answer", 5),
        make_row("sciq", "t0", "x" * 58),
    ]
    found = rows_room.encode_examples(TOKENIZER, [*given, make_row("samsum")], sets.POOL, length=60, answer=6)
    assert found.rows == given[:-1]
    assert found.sizes() == dict.fromkeys(sets.POOL, 1) | {"dream": 2}
    ids, said = found.shown[-1]
    assert TOKENIZER.decode(ids) == "d?\na long" and TOKENIZER.stop_token not in ids
    assert TOKENIZER.decode(np.array(ids)[said]) == "a long"
    ids, said = found.shown[0]
    assert np.array(ids)[said].tolist() == [*TOKENIZER.encode("yes 0"), TOKENIZER.stop_token]
    with pytest.raises(ValueError, match=r"must have a row of 60 tokens; \['sciq'\] have none"):
        rows_room.encode_examples(
            TOKENIZER, [r for r in given[:-2] if r.set != "sciq"], sets.POOL, length=60, answer=6
        )


def test_a_batch_holds_the_chosen_sets_and_as_many_rows_at_every_breadth():
    examples = rows_room.encode_examples(TOKENIZER, make_pool(), sets.POOL, length=60, answer=8)
    for chosen in (["sciq"], ["sciq", "dream", "wiqa"]):
        batch = rows_room.draw_batch(examples, chosen, 8, 60, 0)
        assert batch.tokens.shape == (8, 60)
        texts = [TOKENIZER.decode(row[real > 0]) for row, real in zip(batch.tokens, batch.real, strict=True)]
        own = collections.Counter(text.split()[0] for text in texts)
        assert set(own) == set(chosen) and max(own.values()) - min(own.values()) <= 1
        assert max(collections.Counter(texts).values()) == (2 if len(chosen) == 1 else 1)
        said = TOKENIZER.decode(batch.tokens[0][batch.predict[0] > 0])
        assert said.startswith("yes ") and len(said) == 5


def test_pilots_and_records_ask_other_rows(tmp_path, monkeypatch):
    pairs = [(f"Is it {i}?\n", "yes") for i in range(200)]
    write_archive(tmp_path / sets.ARCHIVE, {"glue_qqp_answer": pairs, "sciq_Direct_Question": pairs})
    monkeypatch.setenv("JAXRL_ALIGN_DATA", str(tmp_path))
    places = [{row.place for row in rows_room.Mixture(pilot).asked} for pilot in (False, True)]
    assert places == [set(range(150)), set(range(150, 200))]
    drawn = rows_room.draw_questions(TOKENIZER, rows_room.Mixture().asked, 5, 9, 0)
    assert len(drawn) == 5 and all(q.set == "glue_qqp" and q.place < 10 for q in drawn)
    assert not rows_room.Mixture(hold="sets").asked  # glue_qqp is learnt there


QUESTIONS = [
    {"set": own, "uniform": 0.5, "constant": c}
    for own, c in (("qasc", 0.5), ("glue_qqp", 0.7), ("ag_news", 0.5), ("glue_qqp", 0.7))
]


def test_shares_count_every_set_alike():
    asked = [{"format": [1, 1, 0, 0]}, {"format": [0, 1, 1, 1]}]
    names = shares.names_of(QUESTIONS, True)
    assert names == ["glue_qqp", "ag_news"] and shares.names_of(QUESTIONS, False) == ["qasc"]
    np.testing.assert_allclose(shares.set_shares(QUESTIONS, asked, "format", names), [[0.5, 0.0], [1.0, 1.0]])
    assert shares.chance(QUESTIONS, "constant", names) == pytest.approx(0.6)
    before = {"0": [{"format": [0, 0, 1, 0]}], "18": asked}
    np.testing.assert_allclose(
        shares.gains(QUESTIONS, before, "format", names, "0", "18"), [[50.0, -100.0], [100.0, 0.0]]
    )
    before = {"0": [{"format": [0, 1, 0, 0]}, {"format": [0, 1, 0, 1]}], "18": asked}
    np.testing.assert_allclose(
        shares.gains(QUESTIONS, before, "format", names, "0", "18"), [[0.0, 0.0], [0.0, 100.0]]
    )
    form, right = np.array([[0.5, 0.5], [0.0, 0.0]]), np.array([[0.5, 0.0], [0.0, 0.0]])
    np.testing.assert_allclose(shares.right_given_format(right, form), [0.5, np.nan])


def near(value, half=1.0):
    return Interval(value, value - half, value + half, "t")


def test_seeds_without_a_share_are_left_out():
    found = reports.over_seeds(np.array([50.0, np.nan, 60.0, 100.0]))
    assert found.value == 70 and (found.low, found.high) == (pytest.approx(4.28, abs=0.01), 100)
    assert reports.over_seeds(np.array([np.nan])).kind == "none"
    assert reports.per_cent([1, 0, 0, 0])[:3] == pytest.approx((25, 4.56, 69.9), abs=0.1)


def test_the_verdicts_read_the_intervals():
    up, down = near(5), near(0.5)
    judged = lambda *x: list(reports.judge_world(*x).values())
    assert judged(near(88), [up, up], up, up) == [True] * 4
    assert judged(near(20.5), [up, down], down, down) == [False] * 4
    measures = lambda form, ranked: {"format": form, "ranked": ranked}
    judged = lambda *x: list(reports.judge_part("p", *x).values())
    assert judged(measures(up, up), measures(up, up)) == [True] * 4
    assert judged(measures(up, down), measures(down, up)) == [True, False, False, True]
    assert list(reports.judge_examples(up, down).values()) == [True, False]
    assert list(reports.judge_examples(down, up).values()) == [False, True]


def test_the_world_is_reported_in_pairs():
    """Three numbers of tasks, two seeds, two unseen tasks, of which the middle has taught one's words."""
    row = lambda right, known: {
        "known": np.array([known] * 2),
        "unseen": {m: np.array([[right, 0.0]] * 2) for m in ("format", "right")},
        "learnt": {m: np.ones((2, 4)) for m in ("format", "right")},
    }
    found = {"1": row(0.0, [0, 0]), "2": row(0.5, [1, 0]), "4": row(1.0, [1, 1])}
    described = reports.describe_world(found)
    (headline,) = described["headline"].items()
    assert headline[0] == "world: unseen tasks right, 4 less 1 tasks, paired [points]"
    assert headline[1].value == 50
    rows, gains = described["tables"].values()
    assert list(rows) == ["1 tasks", "2 tasks", "4 tasks"]
    assert rows["2 tasks"]["unseen, right"].value == 25 and rows["2 tasks"]["these, right"].value == 50
    assert list(gains) == ["2 less 1 tasks", "4 less 2 tasks", "4 less 1 tasks"]
    assert gains["4 less 2 tasks"][f"right{reports.MET}"].value == 50
    assert gains["4 less 2 tasks"]["right"].value == 25
    assert gains["2 less 1 tasks"][f"right{reports.MET}"].kind == "none"
    assert list(described["checks"].values()) == [True, True, True, True]
    assert reports.describe_world({"1": found["1"]})["headline"]


def test_breadths_rise_within_the_pool():
    with pytest.raises(ValueError, match="breadths must rise to at most 18 sets"):
        experiment.Config(breadths=(4, 1))
    with pytest.raises(ValueError, match="breadths must rise to at most 18 sets"):
        experiment.Config(breadths=(1, 19))
    with pytest.raises(ValueError, match="world_breadths must divide 48"):
        experiment.Config(world_breadths=(1, 5))


@pytest.mark.slow
def test_lora_learns_every_row_once_and_leaves_the_base_alone():
    lm = transformer.make_transformer(transformer.TransformerConfig(258, 8, 1, 2, 60))
    model = published.Published(lm, draw_params(lm), TOKENIZER)
    config = experiment.Config(model_steps=3, model_batch=2, model_rate=0.1, rank=2)
    untuned, tune = published.make_tuner(config, model)
    examples = rows_room.encode_examples(TOKENIZER, make_pool(), sets.POOL, length=60, answer=8)
    batch = rows_room.draw_batch(examples, ["sciq", "dream"], 6, 60, 0)
    tuned, losses = tune(batch)
    row = jax.tree.map(lambda x: x[0], batch)
    hidden = lambda params: np.asarray(lm.encode(params, row.tokens, row.real)[0])
    np.testing.assert_array_equal(hidden(untuned), hidden(model.params))
    assert np.abs(hidden(tuned) - hidden(untuned)).max() > 1e-3
    assert len(losses) == 3
    other = batch._replace(tokens=np.concatenate([batch.tokens[:4], batch.tokens[:2]]))
    _, changed = tune(other)
    assert changed[:2] == losses[:2] and changed[2] != losses[2]


def test_a_resumed_condition_is_not_tuned_again(tmp_path):
    """What a folder has, `once` returns; the run in miniature counts on it."""
    config = experiment.Config(out=str(tmp_path / "run"))
    folder = config.open_folder()
    calls = []
    make = lambda: calls.append(1) or {"asked": 1}
    assert folder.once("1_sets_draw_0", make) == folder.once("1_sets_draw_0", make) == {"asked": 1}
    assert calls == [1]


CHAT = (
    "{% for m in messages %}<u>{{ m['content'] }}</u>{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


@pytest.fixture
def data(tmp_path, monkeypatch):
    """A data folder with a small mixture, and questions about pronouns."""
    files = {}
    for k, own in enumerate(sets.POOL):
        pairs = [(f"What {own[:4]} is number {i}?\n", f"it is {(i + k) % 7}") for i in range(40)]
        files |= {f"{own}_one": pairs[:20], f"{own}_two": pairs[20:]}
    for own, templates in sets.TESTS.items():
        for template, allowed in templates.items():
            if not isinstance(allowed, str):
                n = len(allowed)
                files[f"{own}_{template}"] = [(f"Say {i}?\n", allowed[i % n]) for i in range(160)]
    talk = [(f"{ask.BEFORE_DIALOGUE}A: hi {i}\nB: bye\n", "A says hi to B.") for i in range(6)]
    files[f"samsum_{ask.DIALOGUE}"] = talk
    write_archive(tmp_path / "data" / sets.ARCHIVE, files)
    asked = [{"input": f"Who {i}?\nOptions:\n(A) x\n(B) y\n(C) z", "target": "(B)"} for i in range(5)]
    path = tmp_path / "data" / "reasoning" / "bbh" / "disambiguation_qa.json"
    path.parent.mkdir(parents=True)
    path.write_text(json.dumps({"canary": "", "examples": asked}))
    monkeypatch.setenv("JAXRL_ALIGN_DATA", str(tmp_path / "data"))


def check_result(result, told):
    """The numbers of the published model's tables are those of its answers."""
    assert result["rows"] == ["E4", "E5", "E8"] and len(result["headline"]) == 3
    assert len(result["checks"]) == 4 + 2 * 4 + 2
    tables = result["tables"]
    part = "unseen families"
    names = shares.names_of(told["questions"], True)
    rows = tables[f"{part} ({len(names)} sets) [%], means over draws"]
    assert list(rows)[:4] == ["untuned, as a chat", "untuned", "1 set", "3 sets"]
    share = lambda c, m: 100 * shares.set_shares(told["questions"], told["asked"][c], m, names).mean()
    assert rows["3 sets"]["ranked right"]["value"] == pytest.approx(share("3", "ranked"))
    assert rows["untuned"]["format"]["value"] == pytest.approx(share("0", "format"))
    gains = tables[f"{part}: gains [points], t intervals over the sets"]
    assert list(gains) == ["3 sets less untuned", "3 sets less 1 set"]
    assert gains["3 sets less untuned"]["ranked right"]["kind"] == rows["untuned"]["format"]["kind"] == "t"
    ranked = share("3", "ranked") - share("0", "ranked")
    assert gains["3 sets less untuned"]["ranked right"]["value"] == pytest.approx(ranked)
    assert len(gains["3 sets less 1 set"]["format, by draw"]) == 2
    of = f"right answer ranked first in {part}: 3 sets less untuned [points]"
    assert result["headline"][of] == gains["3 sets less untuned"]["ranked right"]
    assert (
        result["baselines"][of.replace("right answer ranked first", "answers in the format")]
        == (gains["3 sets less untuned"]["format"])
    )
    said = told["examples"]["3"]
    pronouns = tables["pronouns [%], Wilson's intervals"]
    assert pronouns["3 sets, plain"]["right"]["value"] == 100 * np.mean(said["pronouns"]["plain"]["right"])
    less = tables["summaries, paired by dialogue [points]"]["3 sets less untuned"]["ROUGE-L"]["value"]
    rouge = lambda c: 100 * np.mean(told["examples"][c]["rouge"]["ROUGE-L"])
    assert less == pytest.approx(rouge("3") - rouge("0"))
    assert len(tables["one dialogue"]) == 5 and "\n" not in str(tables["one dialogue"])


@pytest.mark.slow
def test_a_run_in_miniature(data, tmp_path, monkeypatch):
    lm = transformer.make_transformer(transformer.TransformerConfig(258, 8, 1, 2, 400))
    chatting = Tokenizer(TOKENIZER._backend, TOKENIZER.special, ChatTemplate(CHAT, {}))
    model = published.Published(lm, draw_params(lm), chatting)
    monkeypatch.setattr(published, "load_published", lambda folder: model)
    drawn, closed, examples = [], [], []
    real = {name: getattr(published, name) for name in ("draw_batch", "ask_closed", "sum_up", "ask_pronouns")}
    tuned = lambda params: bool(np.any(params["layers"]["query"]["lora"]["b"]))

    def spy(name, seen, note):
        monkeypatch.setattr(published, name, lambda *a: seen.append(note(*a)) or real[name](*a))

    spy("draw_batch", drawn, lambda rows, chosen, *_: chosen)
    spy("ask_closed", closed, lambda reader, params, questions, chat: (chat, tuned(params)))
    spy("sum_up", examples, lambda reader, params, rows, chat: (chat, tuned(params)))
    spy("ask_pronouns", examples, lambda reader, params, task, items, room, chat: (chat, tuned(params)))
    small = {"seeds": 2, "world_breadths": (1, 48), "width": 32, "layers": 1, "lists": 8, "world_steps": 500}
    small |= {"breadths": (1, 3), "length": 64, "model_length": 64, "model_draws": 2, "model_steps": 2}
    small |= {
        "model_batch": 3,
        "model_questions": 3,
        "items": 4,
        "dialogues": 3,
        "rank": 2,
        "long_answer": 16,
    }
    config = experiment.Config(out=str(tmp_path / "run"), parts=("world", "model"), **small)
    given, report = [], experiment.report
    monkeypatch.setattr(experiment, "report", lambda *a: given.append(a[-1]) or report(*a))
    experiment.main(config)
    (found,) = given
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    one, all_of_them = (found["world"][n] for n in ("1", "48"))
    assert np.shape(one["unseen"]["right"]) == (2, 16) and np.shape(one["learnt"]["right"]) == (2, 48)
    form = [np.mean(row["learnt"]["format"], 1) for row in (one, all_of_them)]
    assert (np.array(one["learnt"]["format"])[:, 0] > 0.9).all()  # the task that was learnt
    assert form[0].max() < 0.5 and np.mean(one["unseen"]["format"]) < 0.5
    assert form[1].min() > form[0].max()
    assert np.all(all_of_them["known"]) and not np.any(one["known"])
    told = found["model"]
    assert list(told["asked"]) == ["chat", "0", "1", "3"] and len(told["asked"]["3"]) == 2
    assert list(told["examples"]) == ["chat", "0", "3"]
    assert len(told["examples"]["3"]["pronouns"]["plain"]["said"]) == 4
    assert len(told["examples"]["3"]["rouge"]["ROUGE-L"]) == 3
    assert drawn == [told["sets"][i][:n] for n in (1, 3) for i in (0, 1)]
    assert closed == [(True, False), (False, False)] + 4 * [(False, True)]
    assert examples == 2 * [(True, False)] + 2 * [(False, False)] + 2 * [(False, True)]
    check_result(result, told)
    for part in ("world", "model"):
        assert (tmp_path / "run" / f"instruction_tuning_{part}.png").stat().st_size > 10_000
    monkeypatch.setattr(published.Asked, "closed", None)  # a continued run asks nothing again
    experiment.main(experiment.Config(**(vars(config) | {"resume": True})))
    again = json.loads((tmp_path / "run" / "result.json").read_text())
    assert again.pop("run")["continued"] and result.pop("run") and again == result
