"""The safetensors files of a model's folder: what they hold, read from their headers, and their content."""

import contextlib
import glob
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrl_align.atomic import is_running, named_shortage, sync, writes
from jaxrl_align.runtime.huggingface.entries import IndexEntries
from jaxrl_align.typed import brief, read_object, short

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
_FLOATS = ("F32", "BF16", "F16")


class Stored(NamedTuple):
    """A tensor's file, its name there, its shape, and its dtype by safetensors' name."""

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def require_safetensors() -> Any:
    """Return the `safetensors` package.

    Raises:
      ImportError: naming the extra that brings it.
    """
    try:
        import safetensors.numpy
    except ImportError as error:
        raise ImportError("safetensors is not installed; pip install 'jaxrl-align[hf]'") from error
    return safetensors


def stored_tensors(folder: Path, file: str = SINGLE) -> dict[str, Stored]:
    """Return what the folder's `model.safetensors`, or the files of its index, or another file hold.

    Only headers are read; each is checked against its file's size.

    Raises:
      ValueError: for a folder without safetensors, a damaged file, or an index that disagrees with its files.
    """
    if (folder / file).is_file():
        return _headers(folder / file)
    if file != SINGLE or not (folder / INDEX).is_file():
        pickled = sorted(p.name for end in ("*.bin", "*.pt", "*.pth") for p in folder.glob(end))
        if pickled:
            raise ValueError(
                f"{folder} holds pickled weights ({pickled[0]}), which could run any code and are never "
                "opened; have transformers save them as safetensors (model.save_pretrained)"
            )
        wanted = f"neither {SINGLE} nor {INDEX}" if file == SINGLE else f"no {file}"
        raise ValueError(f"{folder} holds {wanted}; give the folder of a saved model")
    return _indexed(folder)


def _indexed(folder: Path) -> dict[str, Stored]:
    path = folder / INDEX
    places = read_object(path, IndexEntries).get("weight_map")
    if places is None:
        raise ValueError(f"{path} is damaged (it has no weight_map); download it again")
    found: dict[str, Stored] = {}
    for name in sorted(set(places.values())):
        own = Path(name).name == name and name.endswith(".safetensors") and len(name) < 200
        if not own:
            raise ValueError(f"{path} must name safetensors files of its own folder; got {short(name)}")
        if not (folder / name).is_file():
            raise ValueError(f"{path} names {name}, which is missing; download it too")
        found |= _headers(folder / name)
    wrong = [n for n in {**places, **found} if n not in found or places.get(n) != found[n].path.name]
    if wrong:
        raise ValueError(
            f"{path} and its files disagree about {_some(wrong)}; they belong to different models, or a file "
            "is damaged: download them again"
        )
    return found


def _headers(path: Path) -> dict[str, Stored]:
    found = {}
    with _open(path) as file:
        for name in file.keys():  # noqa: SIM118, the library's object is no mapping
            header = file.get_slice(name)
            found[name] = Stored(path, name, tuple(header.get_shape()), header.get_dtype())
    return found


def check_floats(stored: Mapping[str, Stored]) -> None:
    """Raise ValueError for a tensor that is not floating point."""
    for name, tensor in stored.items():
        if tensor.dtype not in _FLOATS:
            raise ValueError(
                f"{name} in {tensor.path} is of dtype {tensor.dtype}; expected {', '.join(_FLOATS)}: "
                "save the model unquantised, in one of them"
            )


def _open(path: Path) -> Any:
    safetensors = require_safetensors()
    try:
        return safetensors.safe_open(str(path), framework="numpy")
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} is truncated or no safetensors file ({brief(error)}); download it again"
        ) from error


def read_tensors(stored: Mapping[str, Stored], names: Iterable[str]) -> Iterator[tuple[str, np.ndarray]]:
    """Yield `(name, array)` as float32, one tensor in memory at a time.

    Raises:
      ValueError: at a tensor that holds NaN or infinity.
    """
    for name in names:
        path = stored[name].path
        with _open(path) as file:  # anew for each: what was read of an open file stays in memory
            array = file.get_tensor(stored[name].name).astype(np.float32, copy=False)
        if not np.isfinite(array).all():
            raise ValueError(
                f"{name} in {path} holds {np.sum(~np.isfinite(array))} NaN or infinite values; "
                "the model is broken: take another checkpoint"
            )
        yield name, array


def read_metadata(path: Path) -> dict[str, str]:
    """Return the texts that a safetensors file holds beside its tensors."""
    with _open(path) as file:
        return file.metadata() or {}


def write_tensors(path: Path, tensors: Mapping[str, np.ndarray], **metadata: str) -> None:
    """Write contiguous arrays as a safetensors file, marked as torch reads them.

    Raises:
      OSError: it could not be written; it names the file.
    """
    marks, safetensors = {"format": "pt"} | metadata, require_safetensors()
    path.touch()
    mode = path.stat().st_mode
    try:
        safetensors.numpy.save_file(dict(tensors), str(path), metadata=marks)
        path.chmod(mode)  # the package lets nobody else read what it writes, whatever the umask
    except safetensors.SafetensorError as error:
        raise OSError(f"could not write {path}: {error}") from error


@contextlib.contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `folder` at the end, or nothing if the block raises.

    Its files reach the disk before it has its name. What a killed process has left of its own is removed.
    """
    if not writes():
        with tempfile.TemporaryDirectory() as nowhere:
            yield Path(nowhere)
        return
    folder = folder.resolve() if folder.is_symlink() else folder  # no folder can take a link's place
    name = f".{folder.name}.tmp"
    for left in folder.parent.glob(f"{glob.escape(name)}*"):
        number = left.name.removeprefix(name)
        if number.isdecimal() and not is_running(int(number)):
            shutil.rmtree(left, ignore_errors=True)
    temporary = folder.with_name(f"{name}{os.getpid()}")
    try:
        with named_shortage(folder):
            temporary.mkdir()
            yield temporary
            sync(temporary)
            os.replace(temporary, folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _some(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
