"""Files of a revision, from git and DVC's cache without a checkout; or of the work tree, as they are."""

from __future__ import annotations

import ast
import configparser
import hashlib
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import BaseModel, Field

LOCK, PLAN = "dvc.lock", "results/plan.json"
_Loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


class CannotCompare(Exception):
    """One sentence says what cannot be compared, where it is, and what to do."""

    def __str__(self) -> str:
        """One line."""
        return " ".join(super().__str__().split())


class _Out(BaseModel):
    path: str
    md5: Annotated[str, Field(pattern=r"^[0-9a-f]{32}(\.dir)?$")] | None = None


class _Stage(BaseModel):
    outs: list[_Out] = []
    params: dict[str, dict[str, Any]] = {}


class _Lock(BaseModel):
    stages: dict[str, _Stage] = {}


@dataclass(frozen=True)
class Revision:
    """A state of the repository whose root is the working directory.

    name: as it was asked for. commit: its hash, None for the work tree.
    """

    name: str
    commit: str | None

    def paths(self, folder: str) -> list[str]:
        """Files below a folder, those that only dvc.lock names included."""
        if self.commit is None:
            return sorted(path.as_posix() for path in Path(folder).rglob("*") if path.is_file())
        return sorted(path for path in {*self._blobs, *self._locked} if path.startswith(f"{folder}/"))

    def read(self, path: str) -> bytes | None:
        """A file, None where the revision has none.

        Raises:
            CannotCompare: dvc.lock names it, and neither git nor DVC's cache has it.
        """
        found = self._plain(path)
        if found is not None or self.commit is None or path not in self._locked:
            return found
        digest = self._locked[path]
        kept = _cache() / "files" / "md5" / digest[:2] / digest[2:]
        if not kept.is_file():
            raise CannotCompare(
                f"{self.name}:{path} is named in dvc.lock there, but neither git nor DVC's cache has it: "
                f"`dvc pull`, or commit the results of that revision"
            )
        return kept.read_bytes()

    def recorded_code(self, machine: str, implementation: str) -> str | None:
        """The hash of a row's code that its measurements on a machine depended on, where dvc.lock tells."""
        ours = f"{machine}-{implementation}"
        found = {
            str(stage.params[PLAN][key])
            for name, stage in self._lock.stages.items()
            if name.startswith("bench_") and f"{name.partition('@')[2]}-".startswith(f"{ours}-")
            for key in stage.params.get(PLAN, {})
            if key == f"closure.{implementation}"
        }
        return " ".join(sorted(found)) or None

    def code(self, implementation: str) -> str | None:
        """A hash of a row's file and of what it imports of ours, as they stand in this revision."""
        todo, files = [f"attn/impl/{implementation}.py"], dict[str, bytes]()
        while todo:
            path = todo.pop()
            text = None if path in files else self._plain(path)
            if text is not None:
                files[path] = text
                todo += _imports(text)
        lines = [f"{path} {hashlib.sha256(text).hexdigest()}" for path, text in sorted(files.items())]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest() if lines else None

    def _plain(self, path: str) -> bytes | None:
        if self.commit is None:
            return Path(path).read_bytes() if Path(path).is_file() else None
        return _git("cat-file", "blob", self._blobs[path]) if path in self._blobs else None

    @cached_property
    def _blobs(self) -> dict[str, str]:
        """Path -> git's name of its content."""
        lines = _git("ls-tree", "-r", "-z", str(self.commit)).decode(errors="surrogateescape").split("\0")
        entries = (line.partition("\t") for line in lines if line.startswith("100"))  # neither links nor modules
        return {path: about.split()[2] for about, _, path in entries}

    @cached_property
    def _lock(self) -> _Lock:
        text = self._plain(LOCK)
        try:
            return _Lock.model_validate(yaml.load(text, Loader=_Loader) if text else {})  # noqa: S506  # a safe loader
        except (yaml.YAMLError, ValueError) as error:
            raise CannotCompare(f"{self.name}:{LOCK} cannot be read ({_first(str(error))})") from None

    @cached_property
    def _locked(self) -> dict[str, str]:
        """Path -> DVC's name of its content."""
        outs = (out for stage in self._lock.stages.values() for out in stage.outs)
        return {out.path: out.md5 for out in outs if out.md5}


def find(name: str | None) -> Revision:
    """What git calls by that name; None is the work tree.

    Raises:
        CannotCompare: there is no git, no repository, or no such revision.
    """
    if name is None:
        return Revision("the work tree", None)
    _git("rev-parse", "--git-dir")  # where there is no repository, git says so itself
    try:
        commit = _git("rev-parse", "--verify", "--end-of-options", f"{name}^{{commit}}")
    except CannotCompare:
        raise CannotCompare(f"git knows no revision {name!r}; `git log --oneline --all` shows what there is") from None
    return Revision(name, commit.decode().strip())


def _git(*arguments: str) -> bytes:
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, check=False)
    except FileNotFoundError:
        raise CannotCompare("git is not installed; results of a revision are read with it") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace") or f"exit {done.returncode}"
        raise CannotCompare(f"git {arguments[0]}: {_first(said)}")
    return done.stdout


def _cache() -> Path:
    """DVC's cache: .dvc/cache, or where its settings put it."""
    settings = configparser.ConfigParser(interpolation=None)
    try:
        settings.read([".dvc/config", ".dvc/config.local"], encoding="utf-8")
        return Path(".dvc") / settings.get("cache", "dir", fallback="cache")
    except (configparser.Error, ValueError) as error:
        raise CannotCompare(f".dvc/config cannot be read ({_first(str(error))})") from None


def _imports(text: bytes) -> Iterator[str]:
    """Files that an import of ours may mean."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            if name.split(".")[0] == "attn":
                path = name.replace(".", "/")
                yield from (f"{path}.py", f"{path}/__init__.py")


def _first(text: str) -> str:
    return " ".join(text.split())[:200]
