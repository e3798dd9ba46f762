import json

import pytest

from jaxrl_align.data.chat import ChatTemplate
from jaxrl_align.data.tokenizers import Tokenizer, load_tokenizer, save_tokenizer, train_bpe

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
        ([{"role": "user"}], r"message 0 must have a role and a content; got \{'role': 'user'\}"),
        ([CHAT[0], "hi"], "message 1 must have a role and a content; got 'hi'"),
        (CHAT[1:], "failed on this conversation: the user speaks first"),
    ],
)
def test_conversations_that_cannot_be_written_are_refused(messages, message):
    with pytest.raises(ValueError, match=message):
        ChatTemplate(SOURCE, SPECIAL).render(messages)


def test_a_source_that_is_no_template_is_refused():
    with pytest.raises(ValueError, match="the chat template is no Jinja template"):
        ChatTemplate("{% for %}")


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
