import gzip
import struct

import numpy as np
import pytest

from jaxrl_align.data import images as I


def idx(array: np.ndarray, code: int = 0x08) -> bytes:
    """Write the format down independently of the reader: magic number, big-endian sizes, elements."""
    return struct.pack(f">BBBB{array.ndim}i", 0, 0, code, array.ndim, *array.shape) + array.tobytes()


def write_set(folder, num_train=5, num_test=3, size=2, zipped=True):
    rng = np.random.default_rng(0)
    made = {}
    for part, num in (("train", num_train), ("t10k", num_test)):
        pixels = rng.integers(0, 256, (num, size, size), dtype=np.uint8)
        labels = rng.integers(0, 10, num, dtype=np.uint8)
        for name, array in (("images-idx3-ubyte", pixels), ("labels-idx1-ubyte", labels)):
            path = folder / (f"{part}-{name}" + (".gz" if zipped else ""))
            path.write_bytes(gzip.compress(idx(array)) if zipped else idx(array))
        made[part] = pixels, labels
    return made


@pytest.mark.parametrize("zipped", [True, False])
def test_a_folder_of_idx_files_is_read(tmp_path, zipped):
    made = write_set(tmp_path, zipped=zipped)
    split = I.load_idx_folder(tmp_path)
    for got, (pixels, labels) in ((split.train, made["train"]), (split.test, made["t10k"])):
        np.testing.assert_allclose(got.x, pixels.reshape(len(pixels), 4) / 255, rtol=1e-6)
        np.testing.assert_array_equal(got.y, labels)
        assert got.x.dtype == np.float32 and got.y.dtype == np.int32


@pytest.mark.parametrize("code, dtype", [(0x0C, ">i4"), (0x0D, ">f4"), (0x0B, ">i2")])
def test_big_endian_elements(tmp_path, code, dtype):
    array = np.array([[1, 300], [-2, 7]], dtype)
    (tmp_path / "a").write_bytes(idx(array, code))
    np.testing.assert_array_equal(I.read_idx(tmp_path / "a"), array)


@pytest.mark.parametrize("cut", [3, 6, 20, -1])
def test_truncated_files_are_refused(tmp_path, cut):
    content = idx(np.zeros((2, 3, 3), np.uint8))
    (tmp_path / "a").write_bytes(content[:cut])
    with pytest.raises(ValueError, match="a (is truncated|must)"):
        I.read_idx(tmp_path / "a")
    (tmp_path / "a.gz").write_bytes(gzip.compress(content)[:cut])
    with pytest.raises(ValueError, match="truncated or no gzip"):
        I.read_idx(tmp_path / "a.gz")


def test_bytes_past_the_end_and_other_formats_are_refused(tmp_path):
    (tmp_path / "a").write_bytes(idx(np.zeros(4, np.uint8)) + b"x")
    with pytest.raises(ValueError, match="must hold 4 bytes after its header.*holds 5"):
        I.read_idx(tmp_path / "a")
    (tmp_path / "b").write_bytes(b"\x89PNG....")
    with pytest.raises(ValueError, match="must be an IDX file"):
        I.read_idx(tmp_path / "b")


def test_a_missing_file_is_named(tmp_path):
    write_set(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte.gz").unlink()
    with pytest.raises(FileNotFoundError, match="t10k-labels-idx1-ubyte"):
        I.load_idx_folder(tmp_path)


def test_files_that_do_not_match_are_refused(tmp_path):
    write_set(tmp_path)
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros(4, np.uint8))))
    with pytest.raises(ValueError, match="5 images but 4 labels"):
        I.load_idx_folder(tmp_path)
    write_set(tmp_path)
    (tmp_path / "t10k-images-idx3-ubyte.gz").write_bytes(gzip.compress(idx(np.zeros((3, 3, 3), np.uint8))))
    with pytest.raises(ValueError, match="one size; got 4 and 9 pixels"):
        I.load_idx_folder(tmp_path)


@pytest.mark.parametrize(
    "pixels, labels, message",
    [
        (np.zeros((2, 4)), np.array([0, 10]), "from 0 to 9; got int64 from 0 to 10"),
        (np.zeros((2, 4)), np.array([0, -1]), "from 0 to 9"),
        (np.zeros((2, 4)), np.array([0.0, 1.0]), "must be integers"),
        (np.full((2, 4), 300.0), np.array([0, 1]), "from 0 to 255"),
        (np.full((2, 4), np.nan), np.array([0, 1]), "from 0 to 255"),
        (np.zeros((0, 4)), np.zeros(0, int), "N > 0"),
        (np.zeros(4), np.zeros(4, int), r"\[N, H, W\]"),
    ],
)
def test_pixels_and_labels_out_of_range_are_refused(pixels, labels, message):
    with pytest.raises(ValueError, match=message):
        I.to_images(pixels, labels, largest=255.0)


def test_the_digits_need_no_file():
    pytest.importorskip("sklearn")
    split = I.load_digits()
    assert split.train.x.shape == (1438, 64) and split.test.x.shape == (359, 64)
    assert split.train.x.min() == 0.0 and split.train.x.max() == 1.0
    rows = {row.tobytes() for row in split.train.x}
    assert sum(row.tobytes() in rows for row in split.test.x) == 0
    with pytest.raises(ValueError, match="test_share"):
        I.load_digits(test_share=1.0)


def test_mnist_shrinks_as_the_digits_were_made():
    """Of a pixel in the margin nothing is left; one at (5, 2) is a ninth of block (1, 0)."""
    x = np.zeros((1, 28, 28), np.float32)
    x[0, 5, 2] = x[0, 1, 5] = 1.0
    expected = np.zeros((8, 8))
    expected[1, 0] = 1 / 9
    np.testing.assert_allclose(I.shrink_mnist(x.reshape(1, -1)).reshape(8, 8), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="28 x 28"):
        I.shrink_mnist(np.zeros((1, 64)))


def test_photo_patches_fill_the_range():
    pytest.importorskip("sklearn")
    pytest.importorskip("PIL")
    patches = I.load_photo_patches(50, 8)
    assert patches.shape == (50, 64) and patches.dtype == np.float32
    np.testing.assert_allclose(patches.min(1), 0.0, atol=1e-6)
    np.testing.assert_allclose(patches.max(1), 1.0, atol=1e-3)
    assert len({patch.tobytes() for patch in patches}) == 50


def test_labels_are_chosen_evenly_and_anew_for_each_seed():
    labels = np.repeat([3, 5, 8], [4, 40, 2])
    chosen = I.choose_labelled(labels, 9, seed=0)
    assert len(set(chosen)) == 9
    # Three rounds over the classes; class 8 has only two members, so another class gives the ninth.
    assert sorted(np.unique(labels[chosen], return_counts=True)[1]) == [2, 3, 4]
    assert set(I.choose_labelled(labels, 9, seed=1)) != set(chosen)
    assert sorted(I.choose_labelled(labels, len(labels), seed=0)) == list(range(len(labels)))


@pytest.mark.parametrize("num", [2, 47])
def test_too_few_or_too_many_labels_are_refused(num):
    with pytest.raises(ValueError, match=f"from 3, one label per class, to 46, all of them; got {num}"):
        I.choose_labelled(np.repeat([3, 5, 8], [4, 40, 2]), num, seed=0)
