"""Search for data files: the user's own folder, then a cache, then a download with a checksum."""

import os
from pathlib import Path
from typing import NamedTuple

DATA_VARIABLE = "JAXRL_ALIGN_DATA"


class DataFile(NamedTuple):
    """A file that the library can read, and where the world keeps it."""

    name: str
    """Path below the data folder, with forward slashes."""
    url: str
    sha256: str
    """Of the file behind `url`; a user's own file is read as it is."""


def cache_folder() -> Path:
    """Return the folder of downloads: `$XDG_CACHE_HOME/jaxrl_align`, by default under `~/.cache`."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "jaxrl_align"


def find_own_file(name: str) -> Path | None:
    """Return the path of a file in the user's own folder, `$JAXRL_ALIGN_DATA`, or None."""
    own = os.environ.get(DATA_VARIABLE)
    return path if own and (path := Path(own) / name).is_file() else None


def find_file(file: DataFile) -> Path:
    """Return the file's path, from `$JAXRL_ALIGN_DATA`, the cache or its URL, whichever has it first.

    A download is kept only if its checksum is right, and a cached file is checked again at every use.

    Args:
      file: name, address and checksum.

    Raises:
      FileNotFoundError: nobody has the file; the message says where it was sought and how to provide it.
      ImportError: a download needs the `data` extra.
    """
    own = os.environ.get(DATA_VARIABLE)
    if (path := find_own_file(file.name)) is not None:
        return path
    target = cache_folder() / file.name
    try:
        import pooch
    except ImportError as error:
        raise ImportError(
            f"{file.name} is not in ${DATA_VARIABLE} ({own or 'unset'}), and downloads need pooch: "
            "pip install jaxrl-align[data]"
        ) from error
    try:
        # pooch checks a file that is there, and moves a new one into place only after its check.
        pooch.retrieve(file.url, f"sha256:{file.sha256}", target.name, target.parent, progressbar=False)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"{file.name} is neither in ${DATA_VARIABLE} ({own or 'unset'}) nor in {cache_folder()}, and "
            f"downloading {file.url} failed ({error}); put the file in a folder and name it "
            f"in ${DATA_VARIABLE}"
        ) from error
    return target
