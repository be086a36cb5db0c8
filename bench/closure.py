"""What code a result depends on: hashes over the syntax trees of all files that one file imports, transitively.

Comments and docstrings are left out, so that words re-run nothing.
"""

from __future__ import annotations

import ast
import hashlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("attn", "bench", "stages")


def fingerprint(*paths: Path) -> str:
    """A hash of these files and of everything of ours that they import, wherever in the file."""
    files: set[Path] = set()
    todo = [path.resolve() for path in paths]
    while todo:
        path = todo.pop()
        if path not in files:
            files.add(path)
            todo += _imports(path)
    lines = sorted(
        f"{path.relative_to(ROOT) if path.is_relative_to(ROOT) else path.name} {_digest(path)}" for path in files
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


@cache
def _imports(path: Path) -> list[Path]:
    tree = _parse(path)
    if tree is None:
        return []
    found = []
    for module in _modules(tree, path):
        base = ROOT.joinpath(*module.split("."))
        for candidate in (base.with_suffix(".py"), base / "__init__.py"):
            if candidate.exists():
                found.append(candidate)
    return found


def _modules(tree: ast.Module, path: Path) -> Iterator[str]:
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(filter(None, (_package(path, node.level), node.module)))
            names = [package, *(f"{package}.{alias.name}" for alias in node.names)]
        yield from (name for name in names if name.split(".")[0] in PACKAGES)


def _package(path: Path, level: int) -> str:
    """Where a relative import with that many dots begins; nothing for an absolute one."""
    if not level or not path.is_relative_to(ROOT):
        return ""
    return ".".join(path.relative_to(ROOT).parts[:-level])


@cache
def _digest(path: Path) -> str:
    tree = _parse(path)
    text = (
        ast.dump(_without_docstrings(tree)) if tree is not None else path.read_text(encoding="utf-8", errors="replace")
    )
    return hashlib.sha256(text.encode()).hexdigest()


def _parse(path: Path) -> ast.Module | None:
    """None for a file that is not Python: it is then hashed as text."""
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError):
        return None


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return tree
