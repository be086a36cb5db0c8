"""Rings: one mpiexec serves all jobs of a world size until a fault; then a new one goes on with the rest."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from bench import guard, placement
from bench.files import read_json
from bench.grid import Launch

_POLL_S = 0.02
_ANSWER_S = 1.5  # a warden that has not answered by then is cut off
_LAST_WORDS_S = 0.5  # between a first sign of a fault and the others' words
_WORDS_S = 5.0  # after mpiexec has ended, for the first word of why
_END_S = 1.0  # mpiexec ends by itself, then when asked to, within this each
_NAMED = 4  # ranks that a reason names
_CUT_OFF = "cannot be reached"
_CONSEQUENCE = re.compile(  # what the other ranks then say
    r"gloo|closed by peer|remote worker|TimeoutError|MPI_ERR|mpi4py", re.IGNORECASE
)
_WAITS = re.compile(r"/(torch/distributed|attn/ring)/|/bench/team\.py$")  # who is there waits for the other ranks


def run(
    task: str,
    jobs: list[dict[str, Any]],
    world_size: int,
    *,
    deadline_s: float,
    memory_bytes: int = 0,
    where: Path | None = None,
    environment: dict[str, str] | None = None,
    on: Launch | None = None,
) -> Iterator[dict[str, Any]]:
    """The results of the jobs, in order, each as soon as it is there.

    where: the folder whose attn and bench the ranks import; the current one where nothing is said. environment: what
    their environment has besides ours. on: hosts and transport, as in params.yaml; this machine where nothing is said.
    Where ranks cannot be started, or a host or an interface of `on` is not known here, all jobs are unsupported.
    """
    on = on or Launch()
    if reason := placement.why_not(on):
        yield from ({"status": "unsupported", "reason": reason} for _ in jobs)
        return
    done = 0
    while done < len(jobs):
        asked = {
            "task": task, "jobs": jobs[done:], "world_size": world_size, "deadline_s": deadline_s,
            "memory_bytes": memory_bytes // placement.most_on_a_host(world_size, on), "transport": on.transport,
            "ulysses_size": on.ulysses_size, "interface": on.interface,
            "launcher": placement.launcher_address(on), "token": secrets.token_hex(),
        }  # fmt: skip
        with _Launch(asked, on, where, environment or {}) as launch:
            for result, alive in launch.results():
                yield result
                done += 1
                if not alive:
                    break


class _Launch:
    """One mpiexec with a folder for what goes in and comes out."""

    def __init__(self, asked: dict[str, Any], on: Launch, where: Path | None, environment: dict[str, str]) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="attn-bench-ring-", dir=placement.folder_for_all(on)))
        self.count, self.world_size, self.deadline_s = len(asked["jobs"]), asked["world_size"], asked["deadline_s"]
        self.token: str = asked["token"]
        self.ended = False
        (self.folder / "jobs.json").write_text(json.dumps(asked), encoding="utf-8")
        self.log = (self.folder / "log").open("wb")
        command = placement.command(self.world_size, on)
        self.process = subprocess.Popen(
            [*command, sys.executable, "-m", "mpi4py", "-m", "bench.ring_worker", str(self.folder)],
            cwd=where,
            env=os.environ | placement.environment(on) | environment,
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
        if self.process.poll() is None and (self.folder / f"{self.count - 1}.json").exists():
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(5)
        self._end()
        self.log.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    def results(self) -> Iterator[tuple[dict[str, Any], bool]]:
        """(result, whether this launch can go on) of each job."""
        for index in range(self.count):
            path, start = self.folder / f"{index}.json", time.monotonic()
            while not path.exists():
                if (self._failed() or self.process.poll() is not None) and not path.exists():
                    yield self._death(), False
                    return
                if time.monotonic() - start > self.deadline_s:
                    yield self._timeout(), False
                    return
                time.sleep(_POLL_S)
            yield read_json(path), True

    def _failed(self) -> bool:
        return any(name.startswith(("ended-", "raised-")) for name in os.listdir(self.folder))

    def _wait_for_words(self) -> None:
        """The launch may have ended before a warden has seen its rank die; every warden that there is will say so."""
        end = time.monotonic() + _WORDS_S
        while not self._failed() and self._notes("warden") and time.monotonic() < end:
            time.sleep(_POLL_S)

    def _notes(self, kind: str) -> list[dict[str, Any]]:
        """What ranks and their wardens have written, the earliest first."""
        return sorted((read_json(path) for path in self.folder.glob(f"{kind}-*.json")), key=lambda one: one["time"])

    def _death(self) -> dict[str, Any]:
        """Of ranks that ended by themselves: which was the first, where, and what it said."""
        self._wait_for_words()
        first = self._notes("ended")[:1]
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_LAST_WORDS_S)
        raised, ended = self._notes("raised"), first or self._notes("ended")[:1]
        ready = any(one["ready"] for one in self._notes("warden"))
        self._end()
        refused = [one["reason"] for one in raised if one["reason"].startswith("ValueError")]
        if not ready and (refused or not raised):  # the row was not loaded yet: it is not to blame
            words = refused[:1] or [line for line in self._said("log*") if any(map(str.isalpha, line))]
            return {"status": "unsupported", "reason": self._not_started(" ".join(words)[:300])}
        for one in raised:
            if not _CONSEQUENCE.search(one["reason"]):
                return {"status": one["status"], "reason": f"{self._who(one)}: {one['reason']}"}
        silent = [one for one in ended if one["name"] not in {other["name"] for other in raised}]
        for one in [*silent, *raised][:1]:
            said = (self._said(f"log-{one['name']}") or ["none"])[-1]
            return {"status": "crashed", "reason": f"{self._who(one)} {one['reason']}; last output: {said[:300]}"}
        said = (self._said("log") or ["none"])[-1][:300]
        return {"status": "crashed", "reason": f"one of {self.world_size} ranks was ended; last output: {said}"}

    def _not_started(self, said: str) -> str:
        code = self.process.returncode
        return f"{self.world_size} ranks could not be started here (exit code {code}): {said or 'no word'}"

    def _timeout(self) -> dict[str, Any]:
        """Of ranks that are late: who is cut off, who is busy with something else than waiting, or where all wait."""
        answers = self._end()
        odd = [one for one in answers if not one["waits"]]
        odd.sort(key=lambda one: one["is"] != _CUT_OFF)
        told = "; ".join(f"{self._who(one)} {one['is']}" for one in (odd or answers)[:_NAMED]) or "none has begun"
        reason = f"no result of {self.world_size} ranks within their deadline of {self.deadline_s:g} s: {told}"
        waiting = len(answers) - len(odd)
        return {"status": "timeout", "reason": f"{reason}; {waiting} wait for others" if odd and waiting else reason}

    def _who(self, one: dict[str, Any]) -> str:
        rank = "a rank" if one["rank"] is None else f"rank {one['rank']} of {self.world_size}"
        return f"{rank} on {one['host']}"

    def _said(self, logs: str) -> list[str]:
        """The lines of logs, without the banner that mpiexec adds when a rank has died."""
        texts = [path.read_text(encoding="utf-8", errors="replace") for path in sorted(self.folder.glob(logs))]
        lines = [line.strip() for text in texts for line in text.partition("\n====")[0].splitlines()]
        return [line for line in lines if line]

    def _end(self) -> list[dict[str, Any]]:
        """End all that runs: the wardens end their ranks, then mpiexec ends, or is ended. What became of each rank."""
        if self.ended:
            return []
        self.ended, wardens = True, self._notes("warden")
        with ThreadPoolExecutor(32) as at_once:
            answers = list(at_once.map(self._ask_to_end, wardens))
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_S if wardens else 0)
        if self.process.poll() is None:
            self._kill()
        return answers

    def _kill(self) -> None:
        """End mpiexec or srun, and what it has started here: remote shells to hosts that are cut off wait for ever."""
        family = guard.descendants(self.process.pid)
        os.killpg(self.process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(_END_S)
        guard.kill(family | {self.process.pid})
        self.process.wait()

    def _ask_to_end(self, warden: dict[str, Any]) -> dict[str, Any]:
        """The warden's note, what its rank `is` doing in words, and whether it `waits` for others."""
        host, port = warden["address"]
        try:
            with socket.create_connection((host, port), _ANSWER_S) as answering:
                answering.sendall(self.token.encode())
                frames = json.loads(b"".join(iter(partial(answering.recv, 4096), b"")) or b"[]")
        except ConnectionError:  # nobody listens: it has ended its rank and is gone
            return {**warden, "is": "has ended", "waits": False}
        except OSError:
            return {**warden, "is": _CUT_OFF, "waits": False}
        if not frames:
            return {**warden, "is": "does not say where it is", "waits": False}
        waiting = [frame for frame in frames if _WAITS.search(frame["path"])]
        at = (waiting or frames)[0]
        place = f"{Path(at['path']).name}:{at['line']} ({at['name']})"
        return {**warden, "is": f"is at {place}", "waits": bool(waiting)}
