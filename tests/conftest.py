"""A copy of this repository in a folder of its own, with a tiny params.yaml, on which DVC really runs.

Only the copy is made smaller: a few cases instead of seventy, one size of matrix product. What is tested
there (what runs again, what is written, what survives a fault) does not hang on how many there are.
"""

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import torch
from history import history, says, tells  # noqa: F401  # fixtures

from attn import registry
from attn.contract import Workload
from bench import oracle
from bench.jobs import Job

ROOT = Path(__file__).parent.parent
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # in the background of a shell; programs inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)
_NOT_COPIED = ("results/", "data/", "dvc.lock", ".dvc/cache/", ".dvc/tmp/")

PARAMS = """\
machine: local
device: cpu
threads: 1
reference: {core: sdpa, module: multihead_improved}
families:
  core:
    implementations: {improved: true, sdpa: true}
    grids: {seed: true, scaling: true}
  module:
    implementations: {multihead_improved: true}
    grids: {seed: true}
  ring:
    implementations: {ring_v2_collective: true}
    grids: {seed: true}
grids:
  seed:
    seq_len: [64]
    n_heads: [2, 4]
  scaling:
    seq_len: [32, 64]
protocol:
  seed: 2307
  processes: 1
  samples: 5
  min_samples: 2
  sample_ms: 1
  warmup_ms: 1
  warmup_calls: 1
  budget_s: 1
  deadline_s: 60
  memory_limit_gib: 0
"""

_FEWER = {
    "bench/cases.py": """

_every_case = all_cases


def all_cases(kind: str) -> Iterator[Case]:
    yield from list(_every_case(kind))[::18]
""",
    "bench/jobs.py": "\n\nCHECKED_WORLD_SIZES = (1,)\n",
    "bench/roofline.py": "\n\nSIZES = (64,)\nCOPY_BYTES = 1 << 20\n",
}


_COUNTS = pytest.StashKey[list[str]]()


@pytest.fixture
def count(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Say a line at the end of the run, where it is read."""
    return request.config.stash.setdefault(_COUNTS, []).append


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    for line in terminalreporter.config.stash.get(_COUNTS, []):
        terminalreporter.write_line(line, bold=True)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Many small products: a second thread would spend its time waiting."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Ran:
    """What `dvc repro` did: the stages that it ran, in order, its exit code and all that was printed."""

    stages: list[str]
    code: int
    output: str


@dataclass(frozen=True)
class Repo:
    """A repository with DVC in it, and how to run things there."""

    path: Path

    def environment(self, **more: str) -> dict[str, str]:
        """This python's programs first; no identity, hook or setting of whoever runs the tests."""
        left_out = ("GIT_", "DVC_", "ATTN_BENCH_")
        kept = {name: value for name, value in os.environ.items() if not name.startswith(left_out)}
        who = {
            f"GIT_{role}_{what}": "tests@localhost" for role in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")
        }
        return kept | {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "DVC_NO_ANALYTICS": "1",
            "DVC_SITE_CACHE_DIR": str(self.path.parent / "dvc-site"),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_NOSYSTEM": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
            "COLUMNS": "100",
            **who,
            **more,
        }

    def run(self, *command: str, timeout: float = 300, **environment: str) -> subprocess.CompletedProcess[str]:
        """A program in this repository; stdout and stderr together in `stdout`."""
        return subprocess.run(
            command, cwd=self.path, env=self.environment(**environment), text=True, timeout=timeout, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def bench(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`python -m bench ...`."""
        return self.run(sys.executable, "-m", "bench", *arguments)

    def repro(self, *targets: str, **environment: str) -> Ran:
        """`dvc repro ...`."""
        done = self.run("dvc", "repro", *targets, timeout=900, **environment)
        return Ran(re.findall(r"Running stage '([^']+)'", done.stdout), done.returncode, done.stdout)

    def git(self, *arguments: str) -> str:
        """What git prints; it must succeed."""
        done = self.run("git", *arguments)
        assert done.returncode == 0, done.stdout
        return done.stdout

    def commit(self, message: str) -> None:
        """Everything that is not ignored."""
        self.git("add", "-A")
        self.git("commit", "-q", "--allow-empty", "-m", message)

    def edit(self, name: str, old: str, new: str) -> None:
        """Replace what stands exactly once in a file."""
        path = self.path / name
        text = path.read_text(encoding="utf-8")
        assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times in {name}"
        path.write_text(text.replace(old, new), encoding="utf-8")

    def read(self, name: str) -> str:
        """A text file."""
        return (self.path / name).read_text(encoding="utf-8")

    def hashes(self, under: str = ".") -> dict[str, str]:
        """Of every file below a folder that is not git's, DVC's bookkeeping, or Python's."""
        skipped = {".git", ".dvc", "__pycache__"}
        files = (path for path in sorted((self.path / under).rglob("*")) if path.is_file())
        named = {str(path.relative_to(self.path)): path for path in files}
        return {
            name: hashlib.sha256(path.read_bytes()).hexdigest()
            for name, path in named.items()
            if not skipped & set(Path(name).parts)
        }

    def copied_to(self, path: Path) -> "Repo":
        """The same with its history, results and DVC's cache, in another folder."""
        shutil.copytree(self.path, path, symlinks=True)
        return Repo(path)


@pytest.fixture(scope="session")
def source(tmp_path_factory: pytest.TempPathFactory) -> Repo:
    """This repository's files with the tiny params.yaml, committed; nothing has run there."""
    repo = Repo(tmp_path_factory.mktemp("source") / "repo")
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, env=repo.environment(GIT_CONFIG_COUNT="1", GIT_CONFIG_KEY_0="safe.directory", GIT_CONFIG_VALUE_0="*"),
        capture_output=True, text=True, check=True,
    ).stdout.split("\0")  # fmt: skip
    for name in filter(None, listed):
        if not name.startswith(_NOT_COPIED) and (ROOT / name).is_file():
            (repo.path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, repo.path / name)
    (repo.path / "params.yaml").write_text(PARAMS, encoding="utf-8")
    for name, text in _FEWER.items():
        with (repo.path / name).open("a", encoding="utf-8") as file:
            file.write(text)
    repo.git("init", "-q", "-b", "main")
    repo.commit("source")
    return repo


@dataclass(frozen=True)
class Finished:
    """The tiny pipeline after its first `dvc repro`, which is paid once a session; copy before you change it."""

    repo: Repo
    first: Ran


@pytest.fixture(scope="session")
def finished(source: Repo, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    repo = source.copied_to(tmp_path_factory.mktemp("finished") / "repo")
    first = repo.repro()
    assert first.code == 0, first.output
    repo.commit("first run")
    return Finished(repo, first)


@pytest.fixture
def tiny(finished: Finished, tmp_path: Path) -> Repo:
    """A copy of the finished pipeline, to be changed."""
    return finished.repo.copied_to(tmp_path / "repo")


def processes_of(path: Path) -> list[str]:
    """Command lines of the processes, other than this one, that work in a folder or name it."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            inside = os.readlink(process / "cwd").startswith(str(path))
        except OSError:
            continue
        if int(process.name) != os.getpid() and (inside or str(path) in command):
            found.append(f"{process.name} {command}")
    return found


def measure_job(implementation: Path, workload: Workload, folder: Path, world_size: int = 1) -> dict[str, object]:
    """A job for the task `measure` that takes as little time as one can, with its oracle in `folder`."""
    path = folder / f"{workload.key}.safetensors"
    if not path.exists():
        oracle.write(path, "core", workload, seed=7)
    protocol = {
        "seed": 7,
        "samples": 3,
        "min_samples": 2,
        "sample_ms": 1,
        "warmup_ms": 1,
        "warmup_calls": 1,
        "keep_memory": True,
    }
    return asdict(
        Job(
            implementation=str(implementation),
            reference=str(registry.IMPL_DIR / "sdpa.py"),
            oracle=str(path),
            workload=workload.as_dict(),
            world_size=world_size,
            device="cpu",
            threads=1,
            all_threads=1,
            protocol={**protocol, "budget_s": 1},
            process=0,
        )
    )
