"""All readers: the `READERS` of every module here whose name ends in `_readers`."""

import importlib
import pkgutil
from pathlib import Path

from tests.fuzz.readers import Reader


def all_readers() -> dict[str, Reader]:
    """Return the readers by name.

    Raises:
      ValueError: two have one name.
    """
    readers: dict[str, Reader] = {}
    for module in pkgutil.iter_modules([str(Path(__file__).parent)]):
        if module.name.endswith("_readers"):
            for reader in importlib.import_module(f"tests.fuzz.{module.name}").READERS:
                if reader.name in readers:
                    raise ValueError(f"readers must have names of their own; {reader.name} is there twice")
                readers[reader.name] = reader
    return readers
