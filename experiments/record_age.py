"""Which results of record are older than the code that they ran through: by imports and by git."""

import ast
import subprocess
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = "jaxrl_align"


def files_behind(script: Path, root: Path = ROOT) -> set[Path]:
    """Return the files of the repository that a script imports, directly or not, and itself.

    A name taken from a package stands for its module where there is one, else for the package's `__init__`.
    """
    found: set[Path] = set()
    waiting = [script.resolve()]
    while waiting:
        file = waiting.pop()
        if file not in found:
            found.add(file)
            tree = ast.parse(file.read_text(encoding="utf-8"))
            waiting += [path for name in imported_names(tree) for path in _modules(name, file.parent, root)]
    return found


def imported_names(tree: ast.AST) -> Iterator[str]:
    """Yield every dotted name that a module imports, and for `from a import b` also "a.b"."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _modules(name: str, beside: Path, root: Path) -> list[Path]:
    """Return the files that importing a dotted name runs: each package's `__init__`, and the module."""
    base, parts = (root, name.split(".")) if name.split(".")[0] == PACKAGE else (beside, [name])
    found = []
    for depth in range(1, len(parts) + 1):
        path = base.joinpath(*parts[:depth])
        found += [p.resolve() for p in (path / "__init__.py", path.with_suffix(".py")) if p.exists()]
    return found


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
