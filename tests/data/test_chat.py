import json

import pytest
from tokenizers.processors import ByteLevel

from jaxrl_align.data.tokens.chat import ChatTemplate
from jaxrl_align.data.tokens.tokenizer_files import load_tokenizer, save_tokenizer
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.data.tokens.vocabularies import train_bpe
from jaxrl_align.pretrain.lm import chat_batch
from tests.runtime.make_huggingface_fixtures import CHATS, FIXTURE, MARKED, chat_tokenizer

pytest.importorskip("jinja2")

SOURCE = """{{ bos_token }}{% for message in messages %}
    {% if loop.first and message.role == 'assistant' %}
        {{ raise_exception('the user speaks first') }}
    {% endif %}
<turn>{{ message['role'] }}
{{ message['content'] | trim }}{{ eos_token }}
{% endfor %}
{% if add_generation_prompt %}<turn>assistant
{% endif %}"""
SPECIAL = {"bos_token": "<s>", "eos_token": "<stop>"}
EXPECTED = json.loads(FIXTURE.read_text(encoding="utf-8"))["chats"]
CHAT = [{"role": "user", "content": " hi there\n"}, {"role": "assistant", "content": "the <cat> & 日"}]


def test_a_conversation_by_hand():
    template = ChatTemplate(SOURCE, SPECIAL)
    text = "<s><turn>user\nhi there<stop>\n<turn>assistant\nthe <cat> & 日<stop>\n"
    assert template.render(CHAT) == text
    assert template.render(CHAT, add_generation_prompt=True) == text + "<turn>assistant\n"


def test_loop_controls_json_and_dates_are_what_published_templates_expect():
    source = (
        "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m | tojson }}{% endfor %}"
    )
    assert ChatTemplate(source).render(CHAT) == json.dumps(CHAT[0], ensure_ascii=False)
    assert ChatTemplate("{{ messages[1].content | tojson }}").render(CHAT) == '"the <cat> & 日"'
    assert len(ChatTemplate("{{ strftime_now('%Y-%m-%d') }}").render(CHAT)) == 10


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__init__.__globals__ }}",
        "{{ raise_exception.__globals__['json'].loads('1') }}",
        "{{ messages.append(1) }}",
        "{% set _ = messages[0].update({'content': 'changed'}) %}",
        "{% for i in range(10000000000) %}{% endfor %}",
        "{{ messages[7].content.x }}",
        "{% include 'other' %}",
        "{{ 1 / 0 }}",
    ],
)
def test_a_template_cannot_leave_its_sandbox(source):
    chat = [dict(message) for message in CHAT]
    with pytest.raises(ValueError, match="the chat template failed on this conversation: "):
        ChatTemplate(source, SPECIAL).render(chat)
    assert chat == CHAT


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "the conversation is empty; give at least one message"),
        ([{"content": "a"}], r"message 0 must have a role; got \{'content': 'a'\}"),
        ([CHAT[0], "hi"], "message 1 must have a role; got 'hi'"),
        ([CHAT[0] | {"image": len}], "must be JSON data; got others .*write tools as JSON schemas"),
        (CHAT[1:], "failed on this conversation: the user speaks first"),
    ],
)
def test_conversations_that_cannot_be_written_are_refused(messages, message):
    with pytest.raises(ValueError, match=message):
        ChatTemplate(SOURCE, SPECIAL).render(messages)


def test_a_source_that_is_no_template_is_refused_when_it_is_used():
    template = ChatTemplate("{% for %}")
    with pytest.raises(ValueError, match="the chat template is no Jinja template"):
        template.render(CHAT)


def test_tools_and_other_variables_reach_the_template():
    """What is not given is none; null entries of a message are missing; functions are no data."""
    source = "{{ tools is none }} {{ documents is none }} {{ mood }} {{ messages[0].content is defined }}"
    turn = [{"role": "assistant", "content": None}]
    assert ChatTemplate(source).render(turn) == "True True  False"
    said = ChatTemplate(source).render(turn, tools=[{"name": "add"}], mood="good", documents=[])
    assert said == "False False good False"
    with pytest.raises(ValueError, match="must be JSON data; .* write tools as JSON schemas"):
        ChatTemplate(source).render(turn, tools=[len])


def test_conversations_equal_those_of_transformers():
    """Texts with `tojson`'s arguments, ids, and which of them the assistant says, call and stop included."""
    tokenizer = Tokenizer(chat_tokenizer(), SPECIAL, ChatTemplate(MARKED, SPECIAL))
    for (messages, variables), expected in zip(CHATS, EXPECTED, strict=True):
        assert tokenizer.chat_template.render(messages, **variables) == expected["text"]
        assert tokenizer.encode_chat(messages, **variables) == expected["ids"]
        assert tokenizer.encode_demonstration(messages, **variables) == (expected["ids"], expected["said"])
        assert 0 < sum(expected["said"]) < len(expected["ids"])


@pytest.mark.parametrize("trim", [True, False])
def test_every_byte_and_every_space_of_the_assistants_is_its_own(trim):
    """A block that ends in a character of three tokens, or in spaces that the tokenizer places nowhere."""
    backend = chat_tokenizer()
    backend.post_processor = ByteLevel(trim_offsets=trim)
    source = (
        "{% for m in messages %}<turn>{% generation %}{{ m.content }}{% endgeneration %}<turn>{% endfor %}"
    )
    tokenizer = Tokenizer(backend, SPECIAL, ChatTemplate(source))
    for content in ("a 日", " a \n", "\n", "  ", "日"):
        ids, said = tokenizer.encode_demonstration([{"role": "assistant", "content": content}] * 2)
        piece = [False, *[True] * len(tokenizer.encode(content)), False]
        assert said == piece * 2, (content, said)
    across = Tokenizer(backend, SPECIAL, ChatTemplate("th{% generation %}e dog{% endgeneration %}"))
    ids, said = across.encode_demonstration(CHAT)
    assert ids == tokenizer.encode("the dog") and said == [True] * len(ids), "as transformers counts"
    with pytest.raises(
        ValueError, match="must mark what the assistant says by {% generation %}; got no such"
    ):
        Tokenizer(backend, SPECIAL, ChatTemplate(SOURCE, SPECIAL)).encode_demonstration(CHAT)


def test_fine_tuning_predicts_the_assistants_words_alone():
    tokenizer = Tokenizer(chat_tokenizer(), SPECIAL, ChatTemplate(MARKED, SPECIAL))
    (messages, variables), expected = CHATS[0], EXPECTED[0]
    batch = chat_batch(tokenizer, [messages, messages[:2]], length=70, **variables)
    count = len(expected["ids"])
    assert batch.tokens[0, :count].tolist() == expected["ids"]
    assert batch.real[0].tolist() == [1.0] * count + [0.0] * (70 - count)
    assert batch.predict[0].tolist() == expected["said"] + [0] * (70 - count)
    assert batch.predict[1].sum() == 9 < batch.real[1].sum() < count
    with pytest.raises(ValueError, match="row 0 has 62 tokens, more than 61; cut it or allow more"):
        chat_batch(tokenizer, [messages], length=61, **variables)


@pytest.fixture(scope="module")
def tokenizer():
    backend = train_bpe(["the cat sees the dog"] * 4, 265)._backend
    backend.add_special_tokens(["<turn>", "<s>"])
    special = {"pad_token": "<pad>", **SPECIAL}
    return Tokenizer(backend, special, ChatTemplate(SOURCE, special))


def test_a_conversation_is_encoded_with_special_tokens_and_text_without(tokenizer):
    turn, start = tokenizer.vocab_size - 2, tokenizer.vocab_size - 1
    ids = tokenizer.encode_chat(CHAT[:1], add_generation_prompt=True)
    assert ids == [
        start,
        turn,
        *tokenizer.encode("user\nhi there"),
        tokenizer.stop_token,
        *tokenizer.encode("\n"),
        turn,
        *tokenizer.encode("assistant\n"),
    ]
    assert not {turn, start, tokenizer.stop_token} & set(tokenizer.encode("<s><turn><stop>"))
    with pytest.raises(ValueError, match="failed on this conversation"):
        tokenizer.encode_chat(CHAT[1:])
    assert not {turn, start} & set(tokenizer.encode("<s><turn>")), "a failure must not leave the door open"


@pytest.mark.parametrize("place", ["entry", "list", "file"])
def test_a_template_is_read_from_wherever_it_is_kept(place, tokenizer, tmp_path):
    save_tokenizer(tmp_path, tokenizer)
    path = tmp_path / "tokenizer_config.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    if place == "list":
        values["chat_template"] = [
            {"name": "tools", "template": "no"},
            {"name": "default", "template": SOURCE},
        ]
    elif place == "file":
        values["chat_template"] = "the file comes first"
        (tmp_path / "chat_template.jinja").write_text(SOURCE, encoding="utf-8")
    path.write_text(json.dumps(values), encoding="utf-8")
    assert load_tokenizer(tmp_path).encode_chat(CHAT) == tokenizer.encode_chat(CHAT)


def test_a_tokenizer_without_a_template_says_so():
    with pytest.raises(ValueError, match="this tokenizer has no chat template"):
        train_bpe(["a"], 258).encode_chat(CHAT)
