import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers.processors import TemplateProcessing

from jaxrl_align.data.tokens.padding import left_pad, right_pad
from jaxrl_align.data.tokens.tokenizer_files import load_tokenizer, save_tokenizer
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.data.tokens.vocabularies import byte_tokenizer, character_tokenizer, train_bpe

TEXTS = ["the cat sees the dog", "the dog sees the cat there", "then the cats see dogs"] * 4
TOKENIZER = train_bpe(TEXTS, 270)
BYTES = byte_tokenizer()


def test_padding_and_stop_are_the_first_two_tokens():
    assert (TOKENIZER.pad_token, TOKENIZER.stop_token, TOKENIZER.vocab_size) == (0, 1, 270)
    assert len(TOKENIZER.encode("the cat sees the dog")) < len("the cat sees the dog")


@settings(max_examples=200, deadline=None)
@given(st.text() | st.sampled_from(["<pad>", "<stop>", "a<stop>b", " <pad> ", "日本 ü\x00\n"]))
def test_every_text_comes_back_and_none_writes_a_special_token(text):
    ids = TOKENIZER.encode(text)
    assert not set(ids) & {TOKENIZER.pad_token, TOKENIZER.stop_token}
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.decode([0, 0, *ids, 1, 0]) == text


def test_batches_equal_one_by_one():
    assert TOKENIZER.encode_batch(TEXTS) == [TOKENIZER.encode(text) for text in TEXTS]
    assert TOKENIZER.decode(np.array(TOKENIZER.encode("the dog"), np.int32)) == "the dog"


def test_the_same_texts_give_the_same_tokenizer(tmp_path):
    for name in ("a", "b"):
        train_bpe(TEXTS, 270).save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_saved_tokenizer_comes_back(tmp_path):
    TOKENIZER.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    text = "the cats <stop> <pad> ü"
    assert loaded.encode(text) == TOKENIZER.encode(text) and loaded.decode(loaded.encode(text)) == text
    assert loaded.vocab_size == 270


def test_files_that_hold_no_tokenizer_of_ours_are_refused(tmp_path):
    path = tmp_path / "tokenizer.json"
    with pytest.raises(ValueError, match="cannot read a tokenizer from .*tokenizer.json"):
        Tokenizer.load(path)
    path.write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="cannot read a tokenizer from"):
        Tokenizer.load(path)
    TOKENIZER.save(path)
    content = json.loads(path.read_text(encoding="utf-8"))
    content["added_tokens"] = []
    content["model"]["vocab"]["<other>"] = content["model"]["vocab"].pop("<pad>")
    path.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="must be <pad> and <stop>; got <other> and <stop>"):
        Tokenizer.load(path)


@pytest.mark.parametrize(
    ("texts", "vocab_size", "message"),
    [
        ([], 300, "corpus is empty: .*give a file with text"),
        (["", "  \n"], 300, "corpus is empty"),
        (TEXTS, 257, r"vocab_size must be at least 258 \(256 bytes, padding, stop\); got 257"),
        (TEXTS, 5000, r"fills a vocabulary of \d+; got vocab_size=5000; ask for less or give more text"),
    ],
)
def test_vocabularies_that_cannot_be_learned_are_refused(texts, vocab_size, message):
    with pytest.raises(ValueError, match=message):
        train_bpe(texts, vocab_size)


def test_bytes_alone_are_a_vocabulary():
    assert train_bpe(["a"], 258).encode("ü") != train_bpe(["a"], 258).encode("u")
    assert len(train_bpe(["a"], 258).encode("ü")) == 2


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_every_byte_is_a_token(text):
    ids = BYTES.encode(text)
    assert len(ids) == len(text.encode()) and BYTES.decode(ids) == text
    assert (BYTES.vocab_size, BYTES.pad_token, BYTES.stop_token) == (258, 0, 1)
    assert not set(ids) & {0, 1}


def test_characters_are_numbered_by_code_point_and_strangers_are_named(tmp_path):
    tokenizer = character_tokenizer("cab\n日 a")
    assert tokenizer.encode("a\nb日") == [4, 2, 5, 7] and tokenizer.vocab_size == 8
    assert tokenizer.decode([0, 4, 2, 5, 3, 7, 1]) == "a\nb 日"
    tokenizer.save(tmp_path / "tokenizer.json")
    for each in (tokenizer, Tokenizer.load(tmp_path / "tokenizer.json")):
        assert each.encode("c a") == [6, 3, 4] and each.encode("") == []
        with pytest.raises(ValueError, match=r"not in the vocabulary: \['<', '>', 'd', 'p'\]; remove them"):
            each.encode_batch(["ab", "<pad>"])
    with pytest.raises(ValueError, match="the text is empty: .*give a file with text"):
        character_tokenizer("")


def published(path, *, special=None, **config):
    """Write what a published model brings: its own special tokens, a start before every text, other files."""
    path.mkdir(exist_ok=True)
    backend = train_bpe(TEXTS, 270)._backend
    backend.add_special_tokens(["<s>", "</s>"])
    start = backend.token_to_id("<s>")
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    backend.enable_padding(length=32)
    backend.enable_truncation(4)
    backend.save(str(path / "tokenizer.json"))
    for name, values in (("tokenizer_config.json", config), ("special_tokens_map.json", special)):
        if values:
            (path / name).write_text(json.dumps(values), encoding="utf-8")
    return path


def test_any_tokenizer_is_read_with_its_special_tokens(tmp_path):
    folder = published(tmp_path / "a", eos_token={"content": "</s>", "lstrip": False}, bos_token="<s>")
    tokenizer = load_tokenizer(folder)
    assert (tokenizer.vocab_size, tokenizer.pad_token, tokenizer.stop_token) == (272, None, 271)
    text = "the cat sees the dog there <s>"
    ids = tokenizer.encode(text)
    assert ids == [270, *TOKENIZER.encode(text)], "all of the text, its start, and no padding"
    assert tokenizer.encode(text, special=False) == ids[1:]
    assert tokenizer.encode_batch([text, ""], special=False) == [ids[1:], []]
    assert tokenizer.decode([*ids, 271]) == text
    named = load_tokenizer(folder, pad_token="<pad>", stop_token="<stop>")
    assert (named.pad_token, named.stop_token) == (0, 1)
    mapped = load_tokenizer(published(tmp_path / "b", special={"eos_token": "</s>", "pad_token": "<pad>"}))
    assert (mapped.pad_token, mapped.stop_token) == (0, 271)
    (tmp_path / "c").mkdir()
    save_tokenizer(tmp_path / "c", named)
    again = load_tokenizer(tmp_path / "c")
    assert again.encode(text) == ids and again.special == named.special
    assert (again.pad_token, again.stop_token) == (0, 1)


def test_a_published_tokenizer_that_does_not_fit_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot read a tokenizer from .*tokenizer.json"):
        load_tokenizer(tmp_path)
    folder = published(tmp_path / "a", eos_token="</s>")
    with pytest.raises(ValueError, match="a: pad_token must be in the vocabulary; got '<padding>'"):
        load_tokenizer(folder, pad_token="<padding>")
    for text, message in {
        "{": "tokenizer_config.json is no JSON .*; download it again",
        "3": "tokenizer_config.json must hold an object; got int",
        '{"eos_token": 3}': "tokenizer_config.json: eos_token must be of type str or an object; got 3",
        '{"chat_template": [{"name": "a"}]}': "chat_template must be of type str or a list of objects",
    }.items():
        (folder / "tokenizer_config.json").write_text(text, encoding="utf-8")
        with pytest.raises(ValueError, match=message):
            load_tokenizer(folder)


def changed(folder, **parts):
    """Return a published tokenizer's folder with parts of `tokenizer.json` changed."""
    path = published(folder, eos_token="</s>") / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | parts), encoding="utf-8")
    return folder


def test_what_fails_in_rust_is_an_ordinary_error_at_every_call(tmp_path):
    """An expression that backtracks without end makes the library panic, which is no `Exception`."""
    split = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
    tokenizer = load_tokenizer(changed(tmp_path / "t", pre_tokenizer=split))
    text = "a" * 40 + "!"
    for call in (lambda: tokenizer.encode(text), lambda: tokenizer._encode_marked(text)):
        with pytest.raises(ValueError, match="^.*t: Onig: Regex search error: retry-limit-in-match over"):
            call()
    assert tokenizer._backend.encode_special_tokens, "a failure must not leave the door open"
    with pytest.raises(ValueError, match="t: number too large to fit"):
        tokenizer.decode([2**40])


def test_a_tokenizer_that_blows_texts_up_or_writes_ids_of_no_token_is_refused(tmp_path):
    step = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 11}
    for part, key in (("normalizer", "normalizers"), ("decoder", "decoders")):
        folder = changed(tmp_path / part, **{part: {"type": "Sequence", key: [step, step]}})
        with pytest.raises(ValueError, match="more than 100 times longer; its Replace .* one character 121"):
            load_tokenizer(folder)
    load_tokenizer(changed(tmp_path / "once", normalizer=step))
    ends = {"type": "BertProcessing", "sep": ["a", 2**31], "cls": ["b", 0]}
    with pytest.raises(ValueError, match=r"post_processor writes ids of no token, \[2147483648\]"):
        load_tokenizer(changed(tmp_path / "ends", post_processor=ends))
    words = {"type": "WordLevel", "vocab": {"</s>": 2**31, "?": 0}, "unk_token": "?"}
    with pytest.raises(ValueError, match="ids must be below 2.31; got 2147483648"):
        load_tokenizer(changed(tmp_path / "ids", model=words, added_tokens=[], post_processor=None))


def test_padding_left_and_right():
    rows = [[5, 6], [], [7, 8, 9]]
    left, right = left_pad(rows, 3, 6), right_pad(rows, 4, 2)
    np.testing.assert_array_equal(left.tokens, [[6, 5, 6], [6, 6, 6], [7, 8, 9]])
    np.testing.assert_array_equal(left.real, [[0, 1, 1], [0, 0, 0], [1, 1, 1]])
    np.testing.assert_array_equal(right.tokens, [[5, 6, 2, 2], [2, 2, 2, 2], [7, 8, 9, 2]])
    np.testing.assert_array_equal(right.real, [[1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 0]])
    assert (left.tokens.dtype, left.real.dtype) == (np.int32, np.float32)
    assert [x.shape for x in right_pad([], 3, 0)] == [(0, 3), (0, 3)]
    for pad in (left_pad, right_pad):
        with pytest.raises(ValueError, match="row 2 has 3 tokens, more than 2; cut it or allow more tokens"):
            pad(rows, 2, 0)
