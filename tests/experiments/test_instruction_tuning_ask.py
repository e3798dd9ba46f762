"""What `instruction_tuning.py` asks a model, and how answers, letters and summaries are read, by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_align.data import byte_tokenizer
from jaxrl_align.evaluate import Choices, Item
from tests.experiments.loading import load
from tests.tiny import make_bigram

sets = load("instruction_tuning_sets")
rows_room = load("instruction_tuning_rows")
ask = load("instruction_tuning_ask")
published = load("instruction_tuning_model")
TOKENIZER = byte_tokenizer()


def make_question(options=("Yes", "No"), answer=1):
    return rows_room.Question("glue_qqp", "meaning", "Same?\n", options, answer, 0.5, 0)


def test_an_answer_has_the_format_only_if_it_says_nothing_else():
    judged = lambda text: tuple(ask.judge(make_question(), text).values())
    assert list(ask.judge(make_question(), "")) == ["format", "right", "named"]
    assert judged(" no.\nBecause they differ.") == (1, 1, 1)
    assert judged("\n\nYES") == (1, 0, 0)
    assert judged("No, they are not: yes") == (0, 0, 1)
    assert judged("They are not") == judged("") == (0, 0, 0)
    assert ask.judge(make_question(("40 cm", "30 cm"), 0), "40 CM")["right"] == 1


def test_an_answer_is_named_first_and_whole():
    assert ask.find_named(("equivalent", "not equivalent"), "They are not equivalent.") == 1
    assert ask.find_named(("increase", "decrease"), "It decreases; an INCREASE") == 0
    assert ask.find_named(("A", "B"), "a good answer is B") == 1
    assert ask.find_named(("\u2605", "\u2605\u2605"), "\u2605\u2605") == 1
    assert ask.find_named(("yes", "no"), "none") is None and ask.find_named(("yes", "no"), "piano") is None


def test_texts_come_back_in_the_order_of_their_prompts():
    """Under this model the letter after a is b, and so on: a prompt's last letter decides what is written."""
    letters = [TOKENIZER.encode(letter)[0] for letter in "abcdefghi"]
    params = np.full((258, 258), -9.0)
    params[letters[:-1], letters[1:]] = 9.0
    params[letters[-1], TOKENIZER.stop_token] = 9.0
    lm = make_bigram(258, context=64)
    reader = ask.make_reader_of_instructions(lm, TOKENIZER, [TOKENIZER.stop_token], short=3, batch_size=2)
    prompts = ["xxxxa", "g", "xxb", "xxxxxf", "c"]
    assert reader.write(jnp.array(params), prompts, False) == ["bcd", "hi", "cde", "ghi", "def"]


def test_letters_are_read_up_to_the_next_question():
    assert ask.read_letters(" It is (A) or (B). So (C).\nQ: next (A)") == ["(A)", "(B)", "(C)"]
    assert ask.read_letters("A, or (D)") == []


def test_closed_questions_are_asked_as_they_stand_and_ranked_by_likelihood():
    asked = []

    def write(params, prompts, marked):
        asked.append((prompts, marked))
        return [" Yes\n", "no, never"]

    def score(params, items):
        return [Choices(item.context, item.options) for item in items] and [
            type("S", (), {"log_prob": np.array([-1.0, -2.0])})() for _ in items
        ]

    reader = ask.Reader(TOKENIZER, write, write, score)
    found = ask.ask_closed(reader, None, [make_question(answer=0), make_question(answer=1)])
    assert asked == [(["Same?\n", "Same?\n"], False)]
    assert found["said"] == ["yes", "no, never"]
    assert found["format"] == [1, 0] and found["right"] == [1, 0]
    assert found["named"] == [1, 1] and found["ranked"] == [1, 0]


def test_pronouns_are_asked_with_and_without_a_chain_of_thought():
    task = published.load_task(published.PRONOUNS)
    options = ("(A)", "(B)", "(C)")
    items = [Item({}, "Q: Who? (A) (B) (C)\nA:", options, 1, "x:1", None)] * 2
    asked = []

    def write(params, prompts, marked):
        asked.append(prompts)
        return [" (B), yes (B)", " (A), no, (B)"] if len(asked) == 1 else [" Let me see", " (A), no, (B)"]

    score = lambda params, items: [type("S", (), {"log_prob": np.array([0.0, 1.0, -1.0])})()] * len(items)
    found = ask.ask_pronouns(ask.Reader(TOKENIZER, None, write, score), None, task, items, 500)
    assert [prompt.endswith("A: Let's think step by step.") for prompt in (asked[0][0], asked[1][0])] == [
        0,
        1,
    ]
    assert asked[0][0].endswith("Q: Who? (A) (B) (C)\nA:")
    assert found["plain"]["names"] == [1, 1] and found["step by step"]["names"] == [0, 1]
    assert found["plain"]["format"] == [1, 0] and found["step by step"]["format"] == [0, 0]
    assert found["plain"]["right"] == [1, 0] and found["step by step"]["right"] == [0, 1]
    assert found["ranked"] == [1, 1]


def make_dialogue(template, prompt, completion="yes", place=0):
    return sets.Row("samsum", template, prompt, completion, place)


def test_dialogues_their_first_lines_and_rouge_by_hand():
    prompts = [f"Summarize this dialogue: A: hello {i}\nB: bye\n" for i in range(4)]
    given = [make_dialogue(ask.DIALOGUE, p, "A says hello.", i) for i, p in enumerate(prompts)]
    given += [
        make_dialogue("To_sum_up_this_dialog", "A: hello\n"),
        make_dialogue(ask.DIALOGUE, "x" * 90),
    ]
    chosen = ask.choose_dialogues(TOKENIZER, given, 3, 60)
    assert len(chosen) == 3 and all(row.prompt in prompts for row in chosen)
    assert ask.choose_dialogues(TOKENIZER, given, 9, 60) == given[:4]
    assert ask.first_utterance(chosen[0]) == f"A: hello {chosen[0].place}"
    write = lambda params, prompts, marked: ["\n A says hello.\nYes.\n \nMore", "bye", ""]
    texts = ask.sum_up(ask.Reader(TOKENIZER, None, write, None), None, chosen)
    assert texts == ["A says hello.\nYes.", "bye", ""]
    found = ask.rate_summaries(texts, chosen)
    np.testing.assert_allclose(found["ROUGE-1"], [6 / 7, 0, 0])
    np.testing.assert_allclose(found["ROUGE-2"], [4 / 5, 0, 0])
    np.testing.assert_allclose(found["ROUGE-L"], [6 / 7, 0, 0])
    told = published.describe_dialogues(chosen)
    assert told["lead_rouge"]["ROUGE-1"][0] == pytest.approx(4 / 6)
