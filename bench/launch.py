"""Rings: one mpiexec serves all jobs of a world size until a fault; then a new one goes on with the rest."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from bench import guard
from bench.files import read_json
from bench.worker import status_of

_POLL_S = 0.02
_RAISED = re.compile(r"^(\[rank\d+\]: )?[\w.]+(Error|Exception|Unsupported|Interrupt)\b")  # a traceback's last line
_CONSEQUENCE = re.compile(r"gloo|closed by peer|remote worker", re.IGNORECASE)  # what the other ranks then say


def why_not() -> str | None:
    """Why no ranks can be started here, in one line."""
    if find_mpiexec() is None:
        return "no mpiexec beside this python nor on PATH: pip install mpich"
    if importlib.util.find_spec("mpi4py") is None:
        return "needs the package mpi4py, which is not installed"
    return None


def find_mpiexec() -> str | None:
    """The mpiexec of this environment (the mpich wheel puts it beside python), else of PATH."""
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def run(
    task: str,
    jobs: list[dict[str, Any]],
    world_size: int,
    *,
    deadline_s: float,
    memory_bytes: int = 0,
    where: Path | None = None,
    environment: dict[str, str] | None = None,
) -> Iterator[dict[str, Any]]:
    """The results of the jobs, in order, each as soon as it is there.

    where: the folder whose attn and bench the ranks import; the current one where nothing is said. environment: what
    their environment has besides ours.
    """
    reason = why_not()
    if reason:
        yield from ({"status": "unsupported", "reason": reason} for _ in jobs)
        return
    done = 0
    while done < len(jobs):
        with _Launch(task, jobs[done:], world_size, deadline_s, memory_bytes, where, environment) as launch:
            for result, alive in launch.results():
                yield result
                done += 1
                if not alive:
                    break


class _Launch:
    """One mpiexec with a folder for what goes in and comes out."""

    def __init__(
        self,
        task: str,
        jobs: list[dict[str, Any]],
        world_size: int,
        deadline_s: float,
        memory_bytes: int,
        where: Path | None,
        environment: dict[str, str] | None,
    ) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="attn-bench-ring-"))
        self.count, self.world_size, self.deadline_s = len(jobs), world_size, deadline_s
        asked = {
            "task": task, "jobs": jobs, "world_size": world_size, "deadline_s": deadline_s,
            "memory_bytes": memory_bytes // world_size,
        }  # fmt: skip
        (self.folder / "jobs.json").write_text(json.dumps(asked), encoding="utf-8")
        self.log = (self.folder / "log").open("wb")
        mpiexec = find_mpiexec()
        assert mpiexec is not None
        command = [mpiexec, "-n", str(world_size), sys.executable, "-m", "mpi4py", "-m", "bench.ring_worker"]
        self.process = subprocess.Popen(
            [*command, str(self.folder)],
            cwd=where,
            env=os.environ | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=partial(guard.die_with_parent, os.getpid()),  # noqa: PLW1509  # only a prctl call, no lock is taken
        )

    def __enter__(self) -> _Launch:
        return self

    def __exit__(self, *_: object) -> None:
        """End every rank and leave no file behind."""
        if self.process.poll() is None:
            try:
                self.process.wait(5 if self._finished() else 0)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)
                self.process.wait()
        _end_ranks(self.folder)
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def results(self) -> Iterator[tuple[dict[str, Any], bool]]:
        """(result, whether this launch can go on) of each job."""
        for index in range(self.count):
            path, start = self.folder / f"{index}.json", time.monotonic()
            while not path.exists():
                if self.process.poll() is not None and not path.exists():
                    yield self._death(), False
                    return
                if time.monotonic() - start > self.deadline_s:
                    reason = f"no result of {self.world_size} ranks within their deadline of {self.deadline_s:g} s"
                    yield {"status": "timeout", "reason": reason}, False
                    return
                time.sleep(_POLL_S)
            yield read_json(path), True

    def _finished(self) -> bool:
        return (self.folder / f"{self.count - 1}.json").exists()

    def _death(self) -> dict[str, Any]:
        text = (self.folder / "log").read_text(encoding="utf-8", errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        raised = [line for line in lines if _RAISED.match(line)]
        cause = [line for line in raised if not _CONSEQUENCE.search(line)] or raised
        exit_code = self.process.returncode
        if not raised and not list(self.folder.glob("ready-*")):  # the row was not loaded yet: it is not to blame
            said = " ".join(line for line in lines if any(map(str.isalpha, line)))[:300]
            reason = f"{self.world_size} ranks could not be started here (exit code {exit_code}): {said or 'no word'}"
            return {"status": "unsupported", "reason": reason}
        said = cause[0] if cause else f"a rank was killed or exited; last output: {lines[-1] if lines else 'none'}"
        status = status_of(RuntimeError(said))["status"]
        return {"status": status, "reason": f"{self.world_size} ranks ended with exit code {exit_code}: {said[:300]}"}


def _end_ranks(folder: Path) -> None:
    """End ranks that outlived their mpiexec, and remove the shared memory that a killed MPI leaves behind.

    Each rank wrote both into the folder: its process id, then the segments that it has mapped.
    """
    for path in folder.glob("rank-*.txt"):
        pid, *segments = path.read_text(encoding="utf-8").splitlines()
        with suppress(OSError):
            if str(folder) in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8"):
                os.kill(int(pid), signal.SIGKILL)
        for segment in segments:
            with suppress(OSError):
                Path(segment).unlink(missing_ok=True)
