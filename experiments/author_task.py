"""The passages of `author.py`, their tokens, and the n-gram classifier to compare with."""

from typing import Any, NamedTuple

import numpy as np

from jaxrl_align.data.books import childrens_books, hold_out_first, passages, read_books
from jaxrl_align.data.corpora import python_topics
from jaxrl_align.data.tokens.padding import right_pad
from jaxrl_align.data.tokens.tokenizers import Tokenizer
from jaxrl_align.pretrain.text_classification import LabelledText


class Task(NamedTuple):
    """Passages by author, and the texts to pre-train on; no held-out book has a word in `train` or them."""

    train: list[list[str]]
    test: list[list[str]]
    unrelated: str
    related: str


def make_task(config: Any) -> Task:
    """Cut the books into passages and write the training books and the others' one behind the other."""
    library = childrens_books() if config.books is None else read_books(config.books)
    train, test, others = hold_out_first(library)
    found = [passages(books, config.words) for books in train.values()]
    if (fewest := min(map(len, found))) < max(config.labels):
        author = list(train)[[len(texts) for texts in found].index(fewest)]
        raise ValueError(
            f"every author needs {max(config.labels)} passages to learn from; {author} has {fewest}; "
            "lower --labels or --words"
        )
    tested = [passages(books, config.words) for books in test.values()]
    if not all(tested):
        raise ValueError(
            f"a held-out book is shorter than one passage of {config.words} words; lower --words"
        )
    spread = lambda texts: np.linspace(0, len(texts) - 1, min(len(texts), config.test_passages)).astype(int)
    books = [words for part in (train, others) for titles in part.values() for words in titles.values()]
    return Task(
        found,
        [[texts[i] for i in spread(texts)] for texts in tested],
        " ".join(python_topics().split()),
        " ".join(" ".join(words) for words in books),
    )


def choose(train: list[list[str]], num: int, seed: int) -> tuple[list[str], np.ndarray]:
    """Draw `num` passages an author; a seed's fewer passages are among its more."""
    rng = np.random.default_rng(seed)
    texts = [texts[i] for texts in train for i in rng.permutation(len(texts))[:num]]
    return texts, np.repeat(np.arange(len(train), dtype=np.int32), num)


def tokenize(tokenizer: Tokenizer, texts: list[str], label: np.ndarray, context: int) -> LabelledText:
    """Return texts as padded rows; every text is cut to the context."""
    rows = [row[:context] for row in tokenizer.encode_batch(texts)]
    return LabelledText(*right_pad(rows, context, tokenizer.pad_token), label)


def n_gram_accuracy(texts: list[str], label: np.ndarray, test: list[str], truth: np.ndarray) -> float:
    """Return the test accuracy in per cent of a linear SVM on tf-idf of 2 to 4 characters within words."""
    try:
        from sklearn.feature_extraction.text import TfidfVectorizer
        from sklearn.svm import LinearSVC
    except ImportError as error:
        raise ImportError("the n-gram line needs scikit-learn: pip install jaxrl-align[data]") from error
    features = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), sublinear_tf=True)
    found = LinearSVC().fit(features.fit_transform(texts), label).predict(features.transform(test))
    return 100 * float(np.mean(found == truth))


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("author")
