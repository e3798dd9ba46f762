"""Which results of record are older than the code that they ran through: by imports and by git."""

import ast
import functools
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "jaxrl_align"


def files_behind(script: Path, root: Path = ROOT) -> set[Path]:
    """Return the files of the repository whose code a script uses, directly or not, and itself.

    Of a package only those modules count whose names are taken from it, `losses.gae` or `from a import b`:
    that others are imported beside them changes no result.
    """
    found: set[Path] = set()
    waiting = [script.resolve()]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            tree = ast.parse(file.read_text(encoding="utf-8"))
            waiting += [path for name in used_names(tree) for path in _files_of(name, file.parent, root)]
    return found


def used_names(tree: ast.Module) -> set[str]:
    """Return the dotted names that a module takes from others; of an imported module, its attributes."""
    used, aliases = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {alias.asname or alias.name: alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in aliases:
            used.add(f"{aliases[node.value.id]}.{node.attr}")
    return used | set(aliases.values())


def _files_of(name: str, beside: Path, root: Path) -> list[Path]:
    """Return the file that defines a dotted name, if it is of the repository."""
    first, *rest = name.split(".")
    at = (root if first == PACKAGE else beside) / first
    for part in rest:
        if at.with_suffix(".py").is_file() or not at.is_dir():
            break
        source = _exported(at / "__init__.py", part)
        if not (at / part).is_dir() and not (at / part).with_suffix(".py").is_file():
            return _files_of(source, beside, root) if source else [(at / "__init__.py").resolve()]
        at = at / part
    file = at.with_suffix(".py")
    return [file.resolve()] if file.is_file() else []


@functools.cache
def _exports(init: Path) -> dict[str, str]:
    tree = ast.parse(init.read_text(encoding="utf-8"))
    nodes = [node for node in tree.body if isinstance(node, ast.ImportFrom) and node.module]
    return {
        alias.asname or alias.name: f"{node.module}.{alias.name}" for node in nodes for alias in node.names
    }


def _exported(init: Path, name: str) -> str | None:
    """Return the dotted name under which a package's `__init__` has imported a name."""
    return _exports(init).get(name) if init.is_file() else None


def same_code(old: str, new: str) -> bool:
    """Return whether two sources differ in comments, docstrings and layout alone."""
    return _bare(old) == _bare(new)


def _bare(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [x for x in body if not _is_text(x)]  # type: ignore[attr-defined]
    return ast.dump(tree)


def _is_text(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def changed_since(commit: str, script: Path, root: Path = ROOT) -> list[str]:
    """Return the files behind a script whose code is not that of `commit`, relative to the repository.

    Raises:
      ValueError: the repository does not hold the commit, as a shallow clone may not.
    """
    diff = _git(root, "diff", "--name-only", commit, "--", "*.py")
    if diff is None:
        raise ValueError(f"the repository has no commit {commit}; fetch its history")
    behind = {path.relative_to(root.resolve()).as_posix() for path in files_behind(script, root)}
    return [path for path in sorted(behind & set(diff.split())) if not _is_same(commit, path, root)]


def _is_same(commit: str, path: str, root: Path) -> bool:
    old = _git(root, "show", f"{commit}:{path}")
    return old is not None and same_code(old, (root / path).read_text(encoding="utf-8"))


def _git(root: Path, *words: str) -> str | None:
    told = subprocess.run(("git", "-C", root, *words), capture_output=True, text=True)
    return told.stdout if told.returncode == 0 else None


if __name__ == "__main__":
    from jaxrl_align.runtime import cli

    cli.point_to("record")
