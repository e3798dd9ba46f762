import numpy as np
import pytest

from jaxrl_align.data.tokens.streams import open_tokens, stream_rows, write_tokens

PIECES = [[3, 1, 4], [], [1, 5, 9, 2, 6], np.arange(10)]
LONG = b"\x93NUMPY\1\0" + (20_000).to_bytes(2, "little")
LONG += b"{'descr': '<u2', 'fortran_order': False, 'shape': (2,), }".ljust(20_000) + b"\1\0\1\0"
TOKENS = np.concatenate([np.asarray(piece, int) for piece in PIECES])


@pytest.mark.parametrize(("vocab_size", "dtype"), [(10, np.uint16), (2**16, np.uint16), (2**17, np.int32)])
def test_what_is_written_is_read_without_loading_it(tmp_path, vocab_size, dtype):
    path = tmp_path / "text.npy"
    assert write_tokens(path, iter(PIECES), vocab_size=vocab_size) == len(TOKENS)
    tokens = open_tokens(path, vocab_size=vocab_size)
    assert isinstance(tokens, np.memmap) and tokens.dtype == dtype
    np.testing.assert_array_equal(tokens, TOKENS)
    assert [p.name for p in tmp_path.iterdir()] == ["text.npy"]


def test_a_file_that_cannot_be_finished_leaves_the_old_one(tmp_path):
    path = tmp_path / "text.npy"
    write_tokens(path, [[1, 2]], vocab_size=10)
    for pieces, message in (
        ([[3], [10]], "from 0 to 9; got 10 to 10"),
        ([[-1]], "got -1"),
        ([[3], [1.5]], "whole numbers; got float64"),
        ([[]], "no tokens"),
    ):
        with pytest.raises(ValueError, match=message):
            write_tokens(path, pieces, vocab_size=10)
        np.testing.assert_array_equal(open_tokens(path, vocab_size=10), [1, 2])
        assert [p.name for p in tmp_path.iterdir()] == ["text.npy"]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-1]), "truncated or no .npy file"),
        (lambda path: path.write_bytes(path.read_bytes()[:40]), "truncated or no .npy file"),
        (lambda path: path.write_bytes(b""), "truncated or no .npy file"),
        (lambda path: path.write_text("to be or not to be"), "truncated or no .npy file"),
        (lambda path: path.unlink(), "found none"),
        (lambda path: path.write_bytes(LONG), "its header of 20000 bytes describes no array of numbers"),
        (lambda path: path.write_bytes(LONG.replace(b"u2", b"f3")[:99]), "truncated or no .npy file"),
        (lambda path: np.save(path, np.ones(3)), "integer tokens"),
        (lambda path: np.save(path, np.ones((3, 2), int)), r"integer tokens \[N\]; got int64 \[3, 2\]"),
        (lambda path: np.save(path, np.zeros(0, int)), "truncated or no .npy file|integer tokens"),
        (lambda path: np.save(path, np.array([None]), allow_pickle=True), "truncated or no .npy file"),
        (lambda path: np.save(path, np.array([1, 10])), "from 0 to 9; got 1 to 10; was another tokenizer"),
    ],
)
def test_files_that_hold_no_tokens_are_refused(tmp_path, spoil, message):
    path = tmp_path / "text.npy"
    write_tokens(path, PIECES, vocab_size=10)
    spoil(path)
    with pytest.raises(ValueError, match=message):
        open_tokens(path, vocab_size=10)


@pytest.mark.parametrize("dtype", [">u2", "<i8", "i1"])
@pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
def test_arrays_of_others_are_read(tmp_path, dtype, version):
    with open(tmp_path / "text.npy", "wb") as file:
        np.lib.format.write_array(file, TOKENS.astype(dtype), version)
    tokens = open_tokens(tmp_path / "text.npy", vocab_size=10)
    assert tokens.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(tokens, TOKENS)


def test_rows_are_windows_from_everywhere():
    rows = stream_rows(np.arange(30), batch_size=50, length=4, seed=0)(0, 10)
    assert rows.shape == (10, 50, 5) and rows.dtype == np.int32
    np.testing.assert_array_equal(rows - rows[..., :1], np.broadcast_to(np.arange(5), rows.shape))
    assert set(rows[..., 0].ravel().tolist()) == set(range(26))


def test_a_steps_rows_depend_on_the_seed_and_the_step_alone():
    rows = stream_rows(np.arange(1000), batch_size=8, length=4, seed=1)
    whole = rows(0, 6)
    np.testing.assert_array_equal(np.concatenate([rows(0, 1), rows(1, 3), rows(4, 2)]), whole)
    assert len({step.tobytes() for step in whole}) == 6
    assert (stream_rows(np.arange(1000), batch_size=8, length=4, seed=2)(0, 6) != whole).any()


def test_a_text_shorter_than_a_window_is_refused():
    assert stream_rows(np.arange(5), batch_size=1, length=4, seed=0)(0, 1).shape == (1, 1, 5)
    with pytest.raises(ValueError, match="at least one window of 6 tokens; got 5"):
        stream_rows(np.arange(5), batch_size=1, length=5, seed=0)
