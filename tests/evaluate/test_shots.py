"""Prompts: what stands in them, which examples, and what a budget leaves out."""

from pathlib import Path

import pytest

from jaxrl_align.data import ChatTemplate, Tokenizer, byte_tokenizer, load_tokenizer, train_bpe
from jaxrl_align.evaluate.tasks import shots
from jaxrl_align.evaluate.tasks.shots import draw_examples, make_prompts
from jaxrl_align.evaluate.tasks.task_format import Options, Task, Thoughts
from jaxrl_align.evaluate.tasks.task_items import Item
from jaxrl_align.evaluate.tasks.task_rows import RowFile

TOKENIZER = byte_tokenizer()
TASK = Task(
    "films",
    "choice",
    "ours",
    "CC0",
    ("accuracy",),
    (RowFile("jsonl", "rows"),),
    description="Judge.",
    template="Review: {text}\nIt is",
    options=Options(choices={"0": "bad", "1": "good"}),
    thoughts=Thoughts("why", stop=("\n\n",)),
)
TEMPLATE = ChatTemplate(
    "<stop>{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def make_items(texts, kind="test", answers=(0, 1)):
    return [
        Item(
            {"why": f"W{i}."},
            f"Review: {text}\nIt is",
            ("bad", "good"),
            answers[i % len(answers)],
            f"{kind}:{i}",
            None,
        )
        for i, text in enumerate(texts, 1)
    ]


ITEMS = make_items(["a", "bb"])
EXAMPLES = make_items(["one", "two", "three"], "examples")


def write(items=ITEMS, examples=(), room=10_000, task=TASK, tokenizer=TOKENIZER, **how):
    return make_prompts(task, items, list(examples), tokenizer, room=room, **how)


def test_a_prompt_of_no_example_is_the_description_and_the_question():
    prompts = write()
    assert [prompt.text for prompt in prompts.prompts] == [
        "Judge.\n\nReview: a\nIt is",
        "Judge.\n\nReview: bb\nIt is",
    ]
    assert prompts.shared == "Judge.\n\n" and prompts.prompts[0].continuations == (" bad", " good")
    assert (
        write(task=TASK.__class__(**{**vars(TASK), "description": ""})).prompts[0].text == "Review: a\nIt is"
    )


def test_examples_stand_between_the_description_and_the_question_with_their_answers():
    prompts = write(examples=EXAMPLES[:2])
    shown = "Judge.\n\nReview: one\nIt is good\n\nReview: two\nIt is bad\n\n"
    assert [prompt.text for prompt in prompts.prompts] == [
        shown + "Review: a\nIt is",
        shown + "Review: bb\nIt is",
    ]
    assert prompts.shared == shown


def test_the_tokens_are_those_of_the_text_and_the_options():
    tokenizer = train_bpe(["Review: good bad It is a bb good bad Judge."] * 5, 280)
    prompt = write(tokenizer=tokenizer).prompts[0]
    assert tokenizer.decode(prompt.tokens.context) == prompt.text
    assert [tokenizer.decode(option) for option in prompt.tokens.options] == [" bad", " good"]


def test_a_budget_drops_whole_examples_the_oldest_first():
    texts = [
        len(prompt.tokens.context) for n in range(4) for prompt in write(ITEMS[:1], EXAMPLES[n:]).prompts
    ]
    longest = len(" good") - 1
    for dropped, length in enumerate(texts):
        kept = "".join(f"Review: {e.input[8:]} {e.options[e.answer]}\n\n" for e in EXAMPLES[dropped:])
        (prompt,) = write(ITEMS[:1], EXAMPLES, room=length + longest).prompts
        assert prompt.dropped == dropped and prompt.text == f"Judge.\n\n{kept}Review: a\nIt is"
        if dropped < 3:
            assert write(ITEMS[:1], EXAMPLES, room=length + longest - 1).prompts[0].dropped == dropped + 1
    one, two = write(examples=EXAMPLES, room=texts[0] + longest).prompts
    assert (one.dropped, two.dropped) == (0, 1), "each item by its own length"
    with pytest.raises(
        ValueError, match=rf"test:1: the question alone must fit the {texts[3]} tokens .* got {texts[3] + 4}"
    ):
        write(ITEMS[:1], EXAMPLES, room=texts[3])


def test_examples_are_drawn_by_the_seed_and_smaller_counts_are_part_of_larger_ones():
    pool = make_items([f"row {i}" for i in range(50)], "examples")
    draw = lambda count, seed=0: draw_examples(pool, ITEMS, count, seed=seed).examples
    assert draw(4) == draw(4) and draw(4) != draw(4, 1) and draw(0) == []
    assert draw(8)[-4:] == draw(4), "next to the question stand the same"
    assert len({item.place for item in draw(50)}) == 50
    with pytest.raises(ValueError, match="51 examples must be drawn .* got 50 of 50"):
        draw(51)
    with pytest.raises(ValueError, match="at least 0; got -1"):
        draw(-1)


def test_a_balanced_draw_takes_labels_in_turn():
    pool = make_items([f"row {i}" for i in range(40)], "examples", answers=(0, 0, 0, 1))
    for count in (2, 4, 8):
        drawn = draw_examples(pool, ITEMS, count, seed=3, balanced=True).examples
        assert sorted(item.answer for item in drawn) == [0] * (count // 2) + [1] * (count // 2)
    assert len(draw_examples(pool, ITEMS, 40, seed=3, balanced=True).examples) == 40
    plain = [sum(i.answer for i in draw_examples(pool, ITEMS, 4, seed=s).examples) for s in range(20)]
    assert len(set(plain)) > 1, "without it, as they come"
    first = {draw_examples(pool, ITEMS, 1, seed=s, balanced=True).examples[0].answer for s in range(20)}
    assert first == {0, 1}, "no label always stands next to the question"


def test_a_test_item_is_never_drawn_and_the_exclusion_is_counted():
    pool = make_items(["A", " bb ", "c", "b b"], "examples")
    for seed in range(5):
        drawn = draw_examples(pool, ITEMS, 2, seed=seed)
        assert drawn.excluded == 2 and {item.place for item in drawn.examples} == {"examples:3", "examples:4"}
    with pytest.raises(
        ValueError, match="examples:1: an example must be no test item; its input is that of test:1"
    ):
        write(examples=pool[:1])


def test_chain_of_thought_shows_solutions_and_opens_one():
    prompt = write(ITEMS[:1], EXAMPLES[:1], thoughts=True).prompts[0]
    assert prompt.text == (
        "Judge.\n\nReview: one\nIt is Let's think step by step. W1. So the answer is good.\n\n"
        "Review: a\nIt is Let's think step by step."
    )
    assert prompt.continuations == () and prompt.tokens.options == ()
    assert list(prompt.tokens.context) == TOKENIZER.encode(prompt.text)
    with pytest.raises(ValueError, match="must have a table .thoughts."):
        write(thoughts=True, task=Task(**{**vars(TASK), "thoughts": None}))


def test_a_chat_has_a_turn_for_each_example_and_one_token_that_starts_it():
    tokenizer = Tokenizer(TOKENIZER._backend, chat_template=TEMPLATE)
    prompts = write(examples=EXAMPLES[:1], tokenizer=tokenizer, chat=True)
    assert prompts.prompts[0].text == (
        "<stop><user>Judge.\n\nReview: one\nIt is<assistant>good<user>Review: a\nIt is<assistant>"
    )
    assert prompts.shared == "<stop><user>Judge.\n\nReview: one\nIt is<assistant>good<user>"
    assert prompts.prompts[0].continuations == ("bad", "good")
    context = list(prompts.prompts[0].tokens.context)
    assert context[0] == tokenizer.stop_token and context.count(tokenizer.stop_token) == 1
    with pytest.raises(ValueError, match="no chat template"):
        write(chat=True)


def test_a_start_token_that_template_and_tokenizer_both_put_stands_once():
    """As in Llama's folders."""
    from tokenizers import processors

    backend = byte_tokenizer()._backend
    backend.post_processor = processors.TemplateProcessing(single="<stop> $A", special_tokens=[("<stop>", 1)])
    tokenizer = Tokenizer(backend, chat_template=TEMPLATE)
    assert tokenizer.encode("a")[0] == 1
    for thoughts in (False, True):
        context = write(tokenizer=tokenizer, chat=True, thoughts=thoughts).prompts[0].tokens.context
        assert context.count(1) == 1


def test_a_pair_is_its_texts_alone():
    task = Task(**{**vars(TASK), "kind": "pair", "template": "", "description": ""})
    prompt = write([ITEMS[0]._replace(input="")], task=task).prompts[0]
    assert prompt.text == "" and prompt.continuations == ("bad", "good")
    assert list(prompt.tokens.context) == [TOKENIZER.stop_token]
    with pytest.raises(ValueError, match="compares whole texts: it takes no examples"):
        write(examples=EXAMPLES, task=task)


def test_the_answer_of_an_example_is_an_option_a_number_or_a_text():
    numbers = Task(**{**vars(TASK), "options": Options(numbers=(0, 1, 2))})
    item = ITEMS[0]
    assert shots.right_text(TASK, item._replace(answer=(1, 0))) == "good"
    assert shots.right_text(numbers, item._replace(answer=1.6)) == "2"
    assert shots.right_text(TASK, item._replace(answer=("x", "y"))) == "x"
    assert shots.right_text(TASK, item._replace(answer="x")) == "x"


def test_content_free_inputs_keep_the_form():
    written = shots.content_free_inputs(TASK)
    assert written == ["Review: N/A\nIt is", "Review: [MASK]\nIt is", "Review: \nIt is"]


def test_instruction_prompts_are_tagged_by_their_kind():
    assert shots.plain_prompt("List three ideas.") == ("plain", "List three ideas.", "")
    few = shots.few_shot_prompt("Classify.", [("q1", "a1"), ("q2", "a2")], "q3")
    assert few == ("few-shot", "Classify.\n\nq1\na1\n\nq2\na2\n\nq3\n", "")
    user = shots.user_based_prompt("brainstorming", "Names for a cat?")
    assert user == ("user-based", "Names for a cat?", "brainstorming")
    with pytest.raises(ValueError, match="must show at least one pair"):
        shots.few_shot_prompt("Classify.", [], "q")
    with pytest.raises(ValueError, match="must not be among the pairs"):
        shots.few_shot_prompt("Classify.", [("Q 1", "a")], "q  1")
    with pytest.raises(ValueError, match="must name its use case"):
        shots.user_based_prompt(" ", "x")


def test_options_without_tokens_name_the_row():
    with pytest.raises(ValueError, match="test:1: options must differ"):
        write([ITEMS[0]._replace(options=("bad", "bad"))])


MODEL = Path("models/smollm2-135m-instruct")


@pytest.mark.skipif(not MODEL.is_dir(), reason="reads a published tokenizer")
def test_a_published_template_writes_the_conversation():
    prompts = write(examples=EXAMPLES[:1], tokenizer=load_tokenizer(MODEL), chat=True)
    text = prompts.prompts[1].text
    assert text.endswith(
        "<|im_start|>user\nJudge.\n\nReview: one\nIt is<|im_end|>\n<|im_start|>assistant\ngood<|im_end|>\n"
        "<|im_start|>user\nReview: bb\nIt is<|im_end|>\n<|im_start|>assistant\n"
    )
    tokens = prompts.prompts[1].tokens
    # The template's last newline counts to every option, as spaces before options do.
    assert load_tokenizer(MODEL).decode(tokens.options[1]) == "\ngood" and tokens.context.count(1) == 5
