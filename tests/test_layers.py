"""The arrows between the rooms hold, and this test sees a breach."""

import ast
import collections
import importlib
import importlib.metadata
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import jaxrl_align

PACKAGE = Path(jaxrl_align.__file__).parent

BELOW = {
    "types": set(),
    "atomic": set(),
    "typed": set(),
    "checks": set(),
    "finite": {"types"},
    "placement": set(),
    "learner": {"types", "checks", "placement"},
    "losses": {"types"},
    "nets": {"types", "typed", "checks", "placement"},
    "data": {"types", "typed", "atomic"},
    "feedback": {"types", "typed", "data"},
    "envs": {"types", "checks", "placement", "losses"},
    "text": {"types", "checks", "losses", "nets", "data"},
    "actors": {"types", "checks", "placement", "losses", "nets", "envs", "text"},
    "rl": {"types", "checks", "placement", "learner", "losses"},
    "pretrain": {"types", "learner", "losses", "nets", "data"},
    "align": {
        "types",
        "checks",
        "placement",
        "learner",
        "losses",
        "nets",
        "feedback",
        "rl",
        "actors",
        "text",
        "pretrain",
    },
    "evaluate": {"types", "typed", "checks", "losses", "nets", "data", "text", "pretrain", "runtime"},
    "runtime": {"types", "typed", "atomic", "checks", "finite", "placement", "nets", "data"},
}
"""What each room may import besides itself; experiments and tests may import everything."""
BELOW["align"] |= {"text", "pretrain"}
BELOW["evaluate"] |= {"envs", "actors", "atomic"}  # policies are played
BELOW["cli"] = set(BELOW)

GUARDED = {"flax": "nets", "gymnax": "envs/registry.py"}
"""Packages that one place alone may import."""

LONGEST = 60
"""Lines of a function without its docstring."""


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


def modules():
    """Return every module of the rooms, relative to the package, with its source."""
    files = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.stem in BELOW]
    return {path.relative_to(PACKAGE).as_posix(): path.read_text() for path in files}


def test_no_file_breaks_the_arrows():
    assert len(modules()) > 40
    assert [breach for path, source in modules().items() for breach in breaches(path, source)] == []


def test_no_module_and_no_public_definition_has_a_namesake():
    """A name says which thing is meant, wherever it is imported from."""
    named = collections.Counter(Path(path).name for path in modules() if not path.endswith("__init__.py"))
    defined = collections.Counter(
        node.name
        for source in modules().values()
        for node in ast.parse(source).body
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
    )
    assert [name for name, count in (named + defined).items() if count > 1] == []


def test_functions_are_short():
    long = []
    for path, source in modules().items():
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.FunctionDef):
                doc = node.body[0] if ast.get_docstring(node) else None
                lines = node.end_lineno - node.lineno + 1
                lines -= doc.end_lineno - doc.lineno + 1 if doc else 0
                long += [f"{path}:{node.name} {lines}"] if lines > LONGEST else []
    assert long == []


@pytest.mark.parametrize("room", sorted(room for room in BELOW if (PACKAGE / room).is_dir()))
def test_a_room_exports_what_it_says(room):
    module = importlib.import_module(f"jaxrl_align.{room}")
    assert module.__all__ == sorted(module.__all__), "in order"
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        thing = getattr(module, name)
        assert not inspect.isfunction(thing) or name.isupper() or thing.__doc__, (
            f"{room}.{name}: no docstring"
        )


def test_no_room_starts_jax_when_it_is_imported():
    """After that no script could ask for one device a core, or join other processes."""
    script = (
        "import importlib, sys, jaxrl_align as package;"
        "[importlib.import_module(f'jaxrl_align.{name}') for name in package.__all__ if name[0] != '_'];"
        "from jax._src import xla_bridge; assert not xla_bridge._backends and 'gymnax' not in sys.modules;"
        "package.envs.num_actions('CartPole-v1'); assert xla_bridge._backends and 'gymnax' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=PACKAGE.parent)


def test_the_package_gives_its_rooms_and_its_version():
    assert set(jaxrl_align.__all__) == {*BELOW, "__version__"} - {"atomic", "checks", "typed"}
    assert jaxrl_align.losses.gae is importlib.import_module("jaxrl_align.losses").gae
    assert jaxrl_align.__version__ == importlib.metadata.version("jaxrl-align")
    with pytest.raises(AttributeError, match="no attribute 'rooms'"):
        jaxrl_align.rooms  # noqa: B018


@pytest.mark.parametrize(
    "path, source",
    [
        ("rl/dqn.py", "from jaxrl_align.actors.gym import make_actor"),
        ("actors/gym.py", "from jaxrl_align.rl import dqn"),
        ("losses/values.py", "def f():\n    import jaxrl_align.nets.mlp"),
        ("align/rlhf.py", "from jaxrl_align import runtime"),
        ("types.py", "from jaxrl_align.learner import train"),
        ("rl/dqn.py", "import flax.linen as nn"),
        ("envs/tabular.py", "from gymnax.environments import spaces"),
        ("envs/rollout.py", "from jaxrl_align.actors import gym"),
        ("text/generation.py", "from jaxrl_align.actors import text"),
        ("losses/values.py", "from . import masking"),
    ],
)
def test_a_breach_is_seen(path, source):
    assert len(breaches(path, source)) == 1


def test_what_the_arrows_allow_passes():
    assert breaches("envs/registry.py", "import gymnax\nfrom jaxrl_align.losses import gae") == []
    assert breaches("actors/gym.py", "from jaxrl_align.envs.rollout import unroll") == []
    assert breaches("nets/mlp.py", "import flax.linen as nn\nimport jax") == []
