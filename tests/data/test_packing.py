import numpy as np
import pytest

from jaxrl_align.data.tokens.packing import pack


def documents_of(packed):
    """Read the documents back out of the rows."""
    found = []
    for tokens, segments in zip(packed.tokens, packed.segments, strict=True):
        found += [tuple(tokens[segments == s]) for s in range(1, segments.max() + 1)]
    return found


def test_documents_fit_side_by_side():
    """Of 3, 5, 2 and 6 tokens in rows of 8: 6 + 2 and 5 + 3 leave no padding at all."""
    documents = [[1] * 3, [2] * 5, [3] * 2, [4] * 6]
    packed = pack(documents, 8)
    np.testing.assert_array_equal(packed.tokens, [[4] * 6 + [3] * 2, [2] * 5 + [1] * 3])
    np.testing.assert_array_equal(packed.segments, [[1] * 6 + [2] * 2, [1] * 5 + [2] * 3])


def test_nothing_is_lost_and_padding_is_marked():
    rng = np.random.default_rng(0)
    documents = [rng.integers(1, 100, rng.integers(1, 20)).tolist() for _ in range(200)]
    packed = pack(documents, 19)
    assert sorted(documents_of(packed)) == sorted(map(tuple, documents))
    assert not packed.tokens[packed.segments == 0].any()
    share = (packed.segments > 0).mean()
    assert share > 0.97, f"best fit leaves little padding, but only {share:.3f} is text"


def test_long_documents_are_cut_into_pieces_of_their_own():
    packed = pack([list(range(1, 12))], 4)
    assert sorted(documents_of(packed)) == [(1, 2, 3, 4), (5, 6, 7, 8), (9, 10, 11)]


@pytest.mark.parametrize(
    "documents, length, message",
    [([], 8, "at least one document"), ([[1], []], 8, "document 1 is empty"), ([[1]], 1, "at least 2")],
)
def test_what_cannot_be_packed_is_refused(documents, length, message):
    with pytest.raises(ValueError, match=message):
        pack(documents, length)
