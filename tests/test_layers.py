"""The arrows between the rooms hold, and this test sees a breach."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

BELOW = {
    "types": set(),
    "learner": {"types"},
    "losses": {"types"},
    "nets": {"types"},
    "data": {"types"},
    "actors": {"types", "losses", "nets"},
    "rl": {"types", "learner", "losses"},
    "pretrain": {"types", "learner", "losses", "nets", "data", "rl"},
    "align": {"types", "learner", "losses", "nets", "data", "rl", "actors", "pretrain"},
    "evaluate": {"types", "learner", "losses", "nets", "data", "actors", "rl", "pretrain", "align"},
    "runtime": {"types", "nets", "data"},
}
"""What each room may import besides itself; experiments and tests may import everything."""

GUARDED = {"flax": "nets", "gymnax": "actors/gym.py"}
"""Packages that one place alone may import."""


def imported(source: str) -> set[str]:
    """Return the dotted names of every module that a source imports, wherever in it."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            names |= {f"{base}.{alias.name}" for alias in node.names}
    return names


def breaches(path: str, source: str) -> list[str]:
    """Return what a file, named relative to the package, imports against the arrows."""
    room = Path(path).parts[0].removesuffix(".py")
    found = []
    for name in sorted(imported(source)):
        parts = name.split(".")
        if name.startswith("."):
            found.append(f"{path}: write the import of {name!r} absolutely")
        elif parts[0] == "jaxrl_align" and parts[1] not in BELOW[room] | {room}:
            found.append(f"{path}: {room} must not import {parts[1]} ({name})")
        elif not path.startswith(GUARDED.get(parts[0], "")):
            found.append(f"{path}: only {GUARDED[parts[0]]} imports {parts[0]}")
    return found


def test_no_file_breaks_the_arrows():
    package = ROOT / "jaxrl_align"
    files = [path for path in sorted(package.rglob("*.py")) if path.parent != package or path.stem in BELOW]
    assert len(files) > 40
    assert [b for p in files for b in breaches(p.relative_to(package).as_posix(), p.read_text())] == []
    assert imported((package / "__init__.py").read_text()) == set()


@pytest.mark.parametrize(
    "path, source",
    [
        ("rl/dqn.py", "from jaxrl_align.actors.gym import make_actor"),
        ("actors/gym.py", "from jaxrl_align.rl import dqn"),
        ("losses/values.py", "def f():\n    import jaxrl_align.nets.mlp"),
        ("align/rlhf.py", "from jaxrl_align import runtime"),
        ("types.py", "from jaxrl_align.learner import train"),
        ("rl/dqn.py", "import flax.linen as nn"),
        ("actors/text.py", "from gymnax.environments import spaces"),
        ("losses/values.py", "from . import masking"),
    ],
)
def test_a_breach_is_seen(path, source):
    assert len(breaches(path, source)) == 1


def test_what_the_arrows_allow_passes():
    assert breaches("actors/gym.py", "import gymnax\nfrom jaxrl_align.losses import gae") == []
    assert breaches("nets/mlp.py", "import flax.linen as nn\nimport jax") == []
