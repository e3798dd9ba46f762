import numpy as np
import pytest
from tokenizers.processors import TemplateProcessing

from jaxrl_align.data.prompts import cut_sentences
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.data.tokens.vocabularies import train_bpe

SENTENCES = [
    f"The {a} {b} a {c} again." for a in ("cat", "dog") for b in ("sees", "hears") for c in ("cow", "man")
]
TOKENIZER = train_bpe(SENTENCES, 270)
SIZES = {"prompt_length": 20, "response_length": 30}


def cut(sentences=SENTENCES, seed=0, **options):
    return cut_sentences(sentences, TOKENIZER, np.random.default_rng(seed), **(SIZES | options))


def test_prompt_and_response_are_the_sentence_and_a_stop_token():
    shown = cut()
    assert shown.prompt.tokens.shape == (8, 20) and shown.response.tokens.shape == (8, 30)
    for sentence, prompt, asked, response, answered in zip(
        SENTENCES, *shown.prompt, *shown.response, strict=True
    ):
        asked, answered = prompt[asked > 0], response[answered > 0]
        np.testing.assert_array_equal(prompt, np.append(np.zeros(20 - len(asked)), asked))
        np.testing.assert_array_equal(response, np.append(answered, np.zeros(30 - len(answered))))
        assert answered[-1] == TOKENIZER.stop_token and (answered == TOKENIZER.stop_token).sum() == 1
        assert 2 <= len(TOKENIZER.decode(asked).split()) <= 4
        assert TOKENIZER.decode(asked) + TOKENIZER.decode(answered) == sentence
        # Cut before a space, where no token reaches across: the boundary is that of the whole sentence.
        assert [*asked, *answered[:-1]] == TOKENIZER.encode(sentence)


def test_a_start_token_stands_before_the_prompt_alone_and_padding_may_be_the_stop_token():
    """As published tokenizers do: a post-processor `<s> $A`, and pad = eos."""
    backend = train_bpe(SENTENCES, 270)._backend
    backend.add_special_tokens(["<s>"])
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 270)])
    tokenizer = Tokenizer(backend, {"pad_token": "<stop>", "eos_token": "<stop>"})
    shown = cut_sentences(SENTENCES, tokenizer, np.random.default_rng(0), **SIZES | {"prompt_length": 21})
    plain = cut()
    np.testing.assert_array_equal(shown.response.real, plain.response.real)
    answered = plain.response.real > 0
    np.testing.assert_array_equal(shown.response.tokens, np.where(answered, plain.response.tokens, 1))
    np.testing.assert_array_equal(shown.prompt.real.sum(1), plain.prompt.real.sum(1) + 1)
    for tokens, real in zip(*shown.prompt, strict=True):
        assert tokens[real > 0].tolist().index(270) == 0 and (tokens[real > 0] == 270).sum() == 1
        assert (tokens[real == 0] == 1).all()


def test_every_number_of_words_is_drawn_and_no_other():
    counts = {len(TOKENIZER.decode(row).split()) for row in cut(SENTENCES * 10, words=(1, 3)).prompt.tokens}
    assert counts == {1, 2, 3}


def test_the_generator_decides():
    first, again, other = (cut(seed=seed).prompt.tokens for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_sentences_that_do_not_fit_are_left_out():
    long_answer = "The cat sees " + "a man " * 30 + "again."
    long_prompt = "T" * 30 + " the cat sees a man again."
    nothing_left = "The cat."
    shown = cut([long_answer, SENTENCES[0], long_prompt, nothing_left])
    assert len(shown.prompt.tokens) == 1
    assert "".join(TOKENIZER.decode(part.tokens[0]) for part in shown) == SENTENCES[0]


@pytest.mark.parametrize(
    ("sentences", "sizes"), [([], {}), (SENTENCES, {"prompt_length": 1}), (SENTENCES, {"response_length": 2})]
)
def test_a_corpus_of_which_no_sentence_fits_is_refused(sentences, sizes):
    expected = SIZES | sizes
    with pytest.raises(
        ValueError,
        match=f"no sentence of the corpus fits prompt_length={expected['prompt_length']} and "
        f"response_length={expected['response_length']}; allow more tokens or give more text",
    ):
        cut(sentences, **sizes)
