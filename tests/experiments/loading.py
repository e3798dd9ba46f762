"""Import an experiment as its own folder's scripts see each other."""

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

EXPERIMENTS = Path(__file__).parents[2] / "experiments"


def load(name: str) -> ModuleType:
    """Return the module of `experiments/<name>.py`."""
    sys.path.insert(0, str(EXPERIMENTS))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(EXPERIMENTS))


def read_result(folder: Path) -> dict[str, Any]:
    """Return a run's result without what differs between two runs of one command: seconds and machine."""
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    return {key: value for key, value in result.items() if key != "run"}
