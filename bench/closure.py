"""What code a result depends on: hashes over the syntax trees of all files that one file imports, transitively.

Comments and docstrings are left out, so that words re-run nothing.
"""

from __future__ import annotations

import ast
import hashlib
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("attn", "bench", "stages")


def fingerprint(*paths: Path, packages: dict[str, str] | None = None, root: Path | None = None) -> str:
    """A hash of these files and of everything of ours that they import, wherever in the file.

    With `packages` (name -> version), the versions of those that they import count too. `root`: of another tree of
    ours than this one (its links resolved).
    """
    root = root or ROOT
    files = _closure(paths, root)
    names = [path.relative_to(root) if path.is_relative_to(root) else path.name for path in files]
    lines = sorted(f"{name} {_digest(path)}" for name, path in zip(names, files, strict=True))
    lines += [f"{name} {(packages or {}).get(name)}" for name in third_party(*paths) if name in (packages or {})]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


def alone(*paths: Path) -> str:
    """A hash of these files and of nothing that they import."""
    return hashlib.sha256("\n".join(f"{path.name} {_digest(path)}" for path in paths).encode()).hexdigest()[:16]


def third_party(*paths: Path) -> list[str]:
    """Top-level names of the packages, neither ours nor Python's own, that these files import, transitively."""
    trees = [(_parse(path), path) for path in _closure(paths, ROOT)]
    found = {name.split(".")[0] for tree, path in trees if tree for name in _names(tree, path, ROOT)}
    return sorted(found - set(PACKAGES) - sys.stdlib_module_names - {""})


def _closure(paths: tuple[Path, ...], root: Path) -> list[Path]:
    files: set[Path] = set()
    todo = [path.resolve() for path in paths]
    while todo:
        path = todo.pop()
        if path not in files:
            files.add(path)
            todo += _imports(path, root)
    return sorted(files)


@cache
def _imports(path: Path, root: Path) -> list[Path]:
    tree = _parse(path)
    if tree is None:
        return []
    found = []
    for module in (name for name in _names(tree, path, root) if name.split(".")[0] in PACKAGES):
        base = root.joinpath(*module.split("."))
        packages = [parent / "__init__.py" for parent in (base, *base.parents) if parent.is_relative_to(root)]
        found += [candidate for candidate in (base.with_suffix(".py"), *packages) if candidate.exists()]
    return found


def _names(tree: ast.Module, path: Path, root: Path) -> Iterator[str]:
    """Every dotted name that a file imports, and what it takes from it, which may be a module too."""
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = ".".join(filter(None, (_package(path, node.level, root), node.module)))
            names = [package, *(f"{package}.{alias.name}" for alias in node.names)]
        yield from names


def _package(path: Path, level: int, root: Path) -> str:
    """Where a relative import with that many dots begins; nothing for an absolute one."""
    if not level or not path.is_relative_to(root):
        return ""
    return ".".join(path.relative_to(root).parts[:-level])


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
