"""Labelled images as flat float vectors: scikit-learn's digits, MNIST, and any folder in its IDX format."""

import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

from jaxrl_align.data.files import GZIP_DAMAGE, DataFile, find_file, unpack_pieces

NUM_CLASSES = 10

_MNIST_SHA256 = {
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}
_MNIST_URL = "https://storage.googleapis.com/cvdf-datasets/mnist/"

_IDX_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


class Images(NamedTuple):
    """Images with their labels, on the host."""

    x: np.ndarray
    """[N, D] float32 in [0, 1], each image row by row."""
    y: np.ndarray
    """[N] int32 in [0, 10)."""


class Split(NamedTuple):
    """A data set's two parts."""

    train: Images
    test: Images


def read_idx(path: str | Path) -> np.ndarray:
    """Read one file in the IDX format of MNIST's authors, gzipped or plain.

    Two zero bytes, one for the element type, one for the rank, each dimension as a big-endian int32, then the
    elements in row-major order.

    Args:
      path: the file; a name that ends in `.gz` is decompressed.

    Raises:
      ValueError: if it is not IDX, or holds fewer or more bytes than its header says.
    """
    path, content = Path(path), bytearray()
    try:
        for piece in unpack_pieces(path):
            content += piece
    except GZIP_DAMAGE as error:
        raise ValueError(f"{path} is truncated or no gzip file ({error}); fetch it again") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _IDX_TYPES:
        raise ValueError(
            f"{path} must be an IDX file (0, 0, type, rank); its first bytes are {bytes(content[:4])!r}"
        )
    dtype, rank = np.dtype(_IDX_TYPES[content[2]]), content[3]
    start = 4 + 4 * rank
    if len(content) < start:
        raise ValueError(f"{path} is truncated inside its header of {start} bytes; fetch it again")
    shape = tuple(int(n) for n in np.frombuffer(content, ">i4", rank, 4))
    if rank > 8 or min(shape, default=0) < 0:
        raise ValueError(f"{path} must have at most 8 dimensions, none below 0; got {list(shape)[:9]}")
    expected = math.prod(shape) * dtype.itemsize
    if len(content) - start != expected:
        raise ValueError(
            f"{path} must hold {expected} bytes after its header, for shape {list(shape)}; "
            f"it holds {len(content) - start}; fetch it again"
        )
    return np.frombuffer(memoryview(content)[start:], dtype).reshape(shape)


def to_images(pixels: np.ndarray, labels: np.ndarray, *, largest: float, source: str = "the data") -> Images:
    """Check and flatten images.

    Args:
      pixels: [N, H, W] or [N, D], from 0 to `largest`.
      labels: [N] integers in [0, 10).
      largest: the brightest pixel's value, which becomes 1.
      source: what the messages call the data.

    Raises:
      ValueError: if there are no images, their number differs from the labels', a pixel or a label is out of
        range, or labels are not integers.
    """
    if pixels.ndim not in (2, 3) or labels.ndim != 1 or not pixels.size:
        raise ValueError(
            f"{source} must be images [N, H, W] or [N, D] and labels [N], with N > 0; "
            f"got {list(pixels.shape)} and {list(labels.shape)}"
        )
    if len(pixels) != len(labels):
        raise ValueError(f"{source} has {len(pixels)} images but {len(labels)} labels; they must be one each")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= NUM_CLASSES:
        raise ValueError(
            f"labels of {source} must be integers from 0 to {NUM_CLASSES - 1}; "
            f"got {labels.dtype} from {labels.min()} to {labels.max()}"
        )
    if not (pixels.min() >= 0 and pixels.max() <= largest):
        raise ValueError(
            f"pixels of {source} must lie from 0 to {largest:g}; got {pixels.min():g} to {pixels.max():g}"
        )
    x = pixels.reshape(len(pixels), -1).astype(np.float32) / np.float32(largest)
    return Images(x, labels.astype(np.int32))


def load_digits(*, test_share: float = 0.2, seed: int = 0) -> Split:
    """Return scikit-learn's 1,797 digits, 8 x 8 with 17 grey levels: the data set that needs no file.

    Args:
      test_share: held out, in (0, 1), after a shuffle.
      seed: of the shuffle.

    Raises:
      ImportError: scikit-learn is not installed.
      ValueError: if a part would be empty.
    """
    try:
        from sklearn.datasets import load_digits as load
    except ImportError as error:
        raise ImportError("the digits come with scikit-learn: pip install jaxrl-align[data]") from error
    raw = load()
    images = to_images(raw.data, raw.target, largest=16.0, source="scikit-learn's digits")
    num_test = round(test_share * len(images.y))
    if not 0 < num_test < len(images.y):
        raise ValueError(f"test_share must leave both parts some of {len(images.y)} digits; got {test_share}")
    order = np.random.default_rng(seed).permutation(len(images.y))
    test, train = order[:num_test], order[num_test:]
    return Split(Images(images.x[train], images.y[train]), Images(images.x[test], images.y[test]))


def load_idx_folder(folder: str | Path) -> Split:
    """Read the four files of MNIST, Fashion-MNIST or another set under their names and in their format.

    Args:
      folder: holds `train-images-idx3-ubyte`, `train-labels-idx1-ubyte` and the same with `t10k`, each with
        or without `.gz`.

    Raises:
      FileNotFoundError: one of the four is missing.
      ValueError: a file is broken, images and labels do not match, or the two parts differ in size.
    """

    def read(name: str) -> np.ndarray:
        for path in (Path(folder) / f"{name}.gz", Path(folder) / name):
            if path.is_file():
                return read_idx(path)
        raise FileNotFoundError(f"{folder} must hold {name} or {name}.gz; it does not")

    def part(name: str) -> Images:
        pixels, labels = read(f"{name}-images-idx3-ubyte"), read(f"{name}-labels-idx1-ubyte")
        return to_images(pixels, labels, largest=255.0, source=f"{folder}, {name}")

    split = Split(part("train"), part("t10k"))
    sizes = split.train.x.shape[1], split.test.x.shape[1]
    if sizes[0] != sizes[1]:
        raise ValueError(f"{folder} must hold images of one size; got {sizes[0]} and {sizes[1]} pixels")
    return split


def load_mnist() -> Split:
    """Return MNIST, 60,000 and 10,000 images of 28 x 28: `images/mnist/` of the data folder, or a download.

    Raises:
      FileNotFoundError, ImportError: the files are nowhere and cannot be fetched; see `data.files.find_file`.
    """
    for name, sha256 in _MNIST_SHA256.items():
        path = find_file(DataFile(f"images/mnist/{name}", _MNIST_URL + name, sha256))
    return load_idx_folder(path.parent)


def shrink_mnist(x: np.ndarray) -> np.ndarray:
    """Shrink MNIST's images to the digits' size: without their margin of 2, means of 3 x 3 pixels.

    MNIST's figures have 20 rows of 28, the digits all of their 8; more margin would shrink them further.

    Args:
      x: [N, 784] in [0, 1].

    Returns:
      [N, 64] float32 in [0, 1].

    Raises:
      ValueError: if the images are not 28 x 28.
    """
    if x.ndim != 2 or x.shape[1] != 784:
        raise ValueError(f"expected images [N, 784], 28 x 28 each; got {list(x.shape)}")
    inner = x.reshape(-1, 28, 28)[:, 2:-2, 2:-2]
    return inner.reshape(-1, 8, 3, 8, 3).mean((2, 4)).reshape(-1, 64).astype(np.float32)


def load_photo_patches(num: int, side: int, *, seed: int = 0) -> np.ndarray:
    """Cut random grey patches from scikit-learn's two photographs, each stretched to fill [0, 1].

    Args:
      num: of patches.
      side: their height and width in pixels.
      seed: of where they are cut.

    Returns:
      [num, side * side] float32.

    Raises:
      ImportError: scikit-learn or pillow is not installed.
    """
    try:
        from sklearn.datasets import load_sample_images

        photos = load_sample_images().images
    except ImportError as error:
        raise ImportError(
            "the photographs need scikit-learn and pillow: pip install jaxrl-align[data]"
        ) from error
    rng = np.random.default_rng(seed)
    patches = np.empty((num, side * side), np.float32)
    for i in range(num):
        photo = photos[rng.integers(len(photos))]
        top, left = (rng.integers(size - side + 1) for size in photo.shape[:2])
        patches[i] = photo[top : top + side, left : left + side].mean(-1).ravel()
    low, high = patches.min(1, keepdims=True), patches.max(1, keepdims=True)
    return (patches - low) / np.maximum(high - low, 1e-6)


def choose_labelled(labels: np.ndarray, num: int, *, seed: int) -> np.ndarray:
    """Choose which examples keep their label, as equally many of each class as can be.

    Args:
      labels: [N] integers.
      num: how many to choose, at least one per class.
      seed: of the choice.

    Returns:
      [num] indices into `labels`, in random order.

    Raises:
      ValueError: if `num` is below the number of classes or above N.
    """
    labels = np.asarray(labels)
    classes = np.unique(labels)
    if not len(classes) <= num <= len(labels):
        raise ValueError(
            f"num must be from {len(classes)}, one label per class, to {len(labels)}, all of them; got {num}"
        )
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(labels))
    # An example's rank within its class: taking the lowest ranks takes the classes in turn.
    rank = np.empty(len(labels), int)
    for c in classes:
        members = labels[order] == c
        rank[members] = np.arange(members.sum())
    return rng.permutation(order[np.argsort(rank, kind="stable")[:num]])
