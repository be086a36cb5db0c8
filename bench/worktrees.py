"""Two revisions side by side: for each a folder with its attn and the bench of the current work tree.

    FOLDER/alive             locked as long as its owner lives
    FOLDER/base, head        git worktrees of the revisions
    FOLDER/base-side/        attn -> the revision's    bench -> the current one
    FOLDER/head-side/        the same; of the work tree as it is, attn is a copy: an edit meanwhile changes nothing
    FOLDER/truths/           what the duel writes; gone with the rest

What a killed run has left is removed by the next: a folder of our name that nobody holds.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from attn import registry
from attn.registry import Implementation
from bench import closure

PREFIX = "attn-bench-duel-"


class NoSuchRevision(Exception):
    """A side cannot be put up; the message says which, and why."""


@dataclass(frozen=True)
class Side:
    """One side of a duel. `overlay` is where its processes run; `root` is where its attn really is.

    commit: the full hash; of the work tree as it is, nothing.
    """

    name: str
    revision: str
    commit: str
    overlay: Path
    root: Path

    @property
    def words(self) -> str:
        """`main (1a2b3c4)`, `the work tree`."""
        return f"{self.revision} ({self.commit[:7]})" if self.commit else self.revision

    def row(self, name: str) -> Implementation | None:
        """What its file of that row declares; None where it has none."""
        path = self.overlay / "attn" / "impl" / f"{name}.py"
        return registry.read(path) if path.exists() else None

    def fingerprint(self, name: str, family: str) -> str:
        """Of all code in its attn on which that row's time depends."""
        files = [f"impl/{name}.py", *(["ring/communicator.py", "ring/layouts.py"] if family == "ring" else [])]
        paths = [path for file in files if (path := self.root / "attn" / file).exists()]
        return closure.fingerprint(*paths, root=self.root)


@contextmanager
def sides(base: str, head: str | None) -> Iterator[tuple[Side, Side]]:
    """Both sides, gone afterwards, whatever happens. Without `head`: the work tree as it is.

    Raises:
        NoSuchRevision: git does not know one, or it has no attn.
    """
    commits = [_commit(base), _commit(head) if head is not None else ""]
    remove_leftovers()
    folder = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
    with ExitStack() as stack:
        stack.callback(_remove, folder)
        alive = FileLock(folder / "alive")
        alive.acquire()
        stack.callback(alive.release)
        names = [("base", base, commits[0]), ("head", head or "the work tree", commits[1])]
        made = [_side(folder, *one) for one in names]
        yield made[0], made[1]


def remove_leftovers() -> None:
    """What killed runs have left: worktrees of ours, whose owner is gone."""
    listed = _git("worktree", "list", "--porcelain").stdout.splitlines()
    named = [Path(line.removeprefix("worktree ")) for line in listed if line.startswith("worktree ")]
    for folder in {path.parent for path in named if path.parent.name.startswith(PREFIX)}:
        if not _held(folder):
            _remove(folder)


def _held(folder: Path) -> bool:
    try:
        with FileLock(folder / "alive", timeout=0):
            return False
    except Timeout:
        return True
    except OSError:  # the folder itself is gone
        return False


def _side(folder: Path, name: str, revision: str, commit: str) -> Side:
    overlay = folder / f"{name}-side"
    overlay.mkdir()
    (overlay / "bench").symlink_to(closure.ROOT / "bench")
    if not commit:
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(closure.ROOT / "attn", overlay / "attn", ignore=ignored)
        return Side(name, revision, commit, overlay, overlay)
    worktree = folder / name
    done = _git("-c", "core.hooksPath=/dev/null", "worktree", "add", "--detach", "--quiet", str(worktree), commit)
    if done.returncode:
        raise NoSuchRevision(f"{revision}: git worktree add: {_last_line(done.stderr)}")
    root = worktree / _git("rev-parse", "--show-prefix").stdout.strip()
    if not (root / "attn").is_dir():
        raise NoSuchRevision(f"{revision} has no folder attn")
    (overlay / "attn").symlink_to(root / "attn")
    return Side(name, revision, commit, overlay, root)


def _commit(revision: str) -> str:
    done = _git("rev-parse", "--verify", "--end-of-options", f"{revision}^{{commit}}")
    if done.returncode:
        raise NoSuchRevision(f"no revision {revision!r} here: {_last_line(done.stderr)}")
    return done.stdout.strip()


def _remove(folder: Path) -> None:
    """The worktrees of a folder and the folder, and nobody else's: `git worktree prune` could take those too."""
    with _undisturbed():
        for name in ("base", "head"):
            _git("worktree", "remove", "--force", "--force", str(folder / name))
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Another Ctrl-C waits until this is over."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.signal(one, signal.SIG_IGN) for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for one, handler in before.items():
            signal.signal(one, handler)


def _git(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In the root of the repository, whatever hook we may run in; Ctrl-C does not reach it."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_") or "CONFIG" in name}
    try:
        return subprocess.run(
            ["git", "-C", str(closure.ROOT), *arguments],
            env={**kept, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
            start_new_session=True,
        )
    except FileNotFoundError:
        raise NoSuchRevision("there is no git on PATH") from None


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].removeprefix("fatal: ") if lines else "git said nothing"
