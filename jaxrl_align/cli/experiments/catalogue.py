"""The experiments: where their scripts lie, and what each says of itself without being run."""

import ast
import importlib
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from jaxrl_align.cli.config_files import suggest

PACKAGE = Path(__file__).parents[2]
LANDMARK = "ppo_cartpole.py"
"""A script that the folder of the experiments holds, and no other folder of that name."""


class Experiment(NamedTuple):
    """A script that can be run."""

    name: str
    path: Path
    claim: str
    """What it is to show; of a tool, what it does."""
    minutes: float | None
    """On two idle CPU cores, as it comes; None where it does not say."""
    tool: bool
    """Whether it claims nothing."""


def find_scripts() -> Path:
    """Return the folder of the experiments: a checkout's, or the copy inside an installed package.

    Raises:
      ValueError: there is none.
    """
    for folder in (PACKAGE / "experiments", PACKAGE.parent / "experiments"):
        if (folder / LANDMARK).is_file():
            return folder
    raise ValueError(f"no experiments lie in or beside {PACKAGE}; install jaxrl-align again, from its wheel")


def read_experiments(folder: Path) -> dict[str, Experiment]:
    """Return the experiments in a folder by name, read from their sources; none is imported.

    Raises:
      ValueError: a script is no Python; it names the file.
    """
    found = {}
    for path in sorted(folder.glob("*.py")):
        try:
            source = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError) as error:
            raise ValueError(f"{path} is no Python script ({' '.join(str(error).split())})") from error
        if any(isinstance(node, ast.FunctionDef) and node.name == "main" for node in source.body):
            found[path.stem] = _describe(path, source)
    return found


def _describe(path: Path, source: ast.Module) -> Experiment:
    doc = ast.get_docstring(source) or ""
    claims = list(_stated_claims(source))
    text = " ".join(claim.get("text", "") for claim in claims) or doc.partition("\n")[0]
    minutes = sum(claim.get("minutes", 0) for claim in claims) or None
    return Experiment(path.stem, path, text, minutes, tool=not claims)


def _stated_claims(source: ast.Module) -> Iterator[dict[str, Any]]:
    """Yield the literals of `CLAIM = Claim(text, ..., minutes=...)`, or those in `CLAIMS`.

    Of `CLAIMS`, a dict by part, those of the parts that the configuration has by default.
    """
    parts = _default_parts(source)
    for node in source.body:
        names = [getattr(x, "id", None) for x in node.targets] if isinstance(node, ast.Assign) else []
        value = node.value if isinstance(node, ast.Assign) else None
        if names == ["CLAIMS"] and isinstance(value, ast.Dict):
            named = zip(value.keys, value.values, strict=True)
            calls = [call for key, call in named if parts is None or getattr(key, "value", None) in parts]
        else:
            calls = [value] if names == ["CLAIM"] and value is not None else []
        for call in calls:
            if isinstance(call, ast.Call):
                given = dict(zip(("text", "rows", "minutes"), call.args, strict=False))
                given |= {word.arg: word.value for word in call.keywords if word.arg}
                yield {name: x.value for name, x in given.items() if isinstance(x, ast.Constant)}


def _default_parts(source: ast.Module) -> tuple[str, ...] | None:
    """Return the literal with which a class of the script sets its field `parts`."""
    for node in ast.walk(source):
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", None) == "parts":
            return tuple(str(getattr(x, "value", "")) for x in getattr(node.value, "elts", ()))
    return None


def first_sentence(text: str) -> str:
    """Return the first sentence of a text."""
    return re.split(r"(?<=[.?!])\s+(?=[A-Z])", text, maxsplit=1)[0]


def choose_experiment(name: str) -> Experiment:
    """Return the experiment of a name, with or without ".py".

    Raises:
      ValueError: there is none; it says the likest.
    """
    known = read_experiments(find_scripts())
    name = Path(name).name.removesuffix(".py")
    if name not in known:
        raise ValueError(f"{name[:80]} is no experiment{suggest(name, known)}")
    return known[name]


def import_script(path: Path) -> ModuleType:
    """Import a script as its own folder's scripts see each other.

    Raises:
      ValueError: another module of that name was imported before.
    """
    sys.path.insert(0, str(path.parent))
    try:
        module = importlib.import_module(path.stem)
    finally:
        sys.path.remove(str(path.parent))
    if Path(module.__file__ or "").resolve() != path.resolve():
        raise ValueError(f"{path.stem} is imported from {module.__file__}; run it as python {path}")
    return module
