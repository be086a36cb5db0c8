"""A process beside each rank, which outlives it: ends it in time, says how it ended, and removes what it leaves.

A rank that hangs in MPI cannot help itself, and a launcher cannot reach a host whose link is down. So each rank has a
warden on its own host. The launcher asks it over TCP to end the rank; without being asked it does so at the rank's
deadline, or when the rank is gone.
"""

from __future__ import annotations

import faulthandler
import json
import os
import re
import select
import signal
import socket
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from bench import guard

_GRACE_S = 2.0  # the launcher has the first word at a deadline
_LOOK_S = 0.05  # how often the rank's memory is looked at until it is ready
_STACK_S = 0.5  # how long a rank may take to say where it is
_FRAME = re.compile(r'File "(?P<path>[^"]+)", line (?P<line>\d+) in (?P<name>\S+)')
_SEGMENT = re.compile(r"/dev/shm/(mpich|ucx|psm|torch|nccl)\S*$")  # noqa: S108  # of MPI, torch and NCCL, not ours to make


@dataclass
class Ward:
    """The rank's end: what it tells its warden. `name` is that of its files in the folder."""

    folder: Path
    name: str
    host: str
    address: tuple[str, int]
    _pipe: int
    rank: int | None = None
    warden: int = 0

    def end_children(self) -> None:
        """What a row has started and left behind; the warden stays."""
        guard.kill(guard.descendants(os.getpid()) - {self.warden})

    def ready(self, rank: int) -> None:
        """All ranks have found each other; this one is `rank`, and from here on the row is at fault.

        The deadline goes on: that of the first job begins when ranks are started.
        """
        self.rank = rank
        self._note("warden", address=self.address, ready=True)
        self._tell(rank=rank, segments=_segments(os.getpid()))

    def next_job(self) -> None:
        """The deadline begins anew."""
        self._tell(job=True)

    def done(self) -> None:
        """The rank's end is no fault any more."""
        self._tell(done=True)

    def raised(self, status: dict[str, Any]) -> None:
        """How it failed, while it still can say so."""
        self._note("raised", **status)
        self._tell(segments=_segments(os.getpid()))

    def _tell(self, **what: Any) -> None:
        os.write(self._pipe, (json.dumps(what) + "\n").encode())

    def _note(self, kind: str, **what: Any) -> None:
        note(self.folder / f"{kind}-{self.name}.json", name=self.name, rank=self.rank, host=self.host, **what)


def note(path: Path, **what: Any) -> None:
    """A file that appears whole; a folder that is gone is not made again, for nobody reads it."""
    partial = path.with_name(f".{path.name}.partial")
    with suppress(FileNotFoundError):
        partial.write_text(json.dumps({**what, "time": time.time()}), encoding="utf-8")
        partial.replace(path)


def start(folder: Path, host: str, address: str, token: str, deadline_s: float) -> Ward:
    """Begin to be watched: fork a warden that listens at our address. To be called before MPI is there."""
    server = socket.create_server((address, 0))
    reader, writer = os.pipe()
    stack = tempfile.TemporaryFile()  # noqa: SIM115  # it is written as long as this process lives
    faulthandler.register(signal.SIGUSR1, stack, all_threads=False)
    ward = Ward(folder, f"{host}-{os.getpid()}", host, server.getsockname()[:2], writer)
    ward._note("warden", address=ward.address, ready=False)
    _KEPT.append(stack)
    rank, starter = os.getpid(), os.getppid()
    ward.warden = os.fork()
    if ward.warden == 0:
        try:
            os.setsid()
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # whoever ends the rank lets us clean up
            _keep_only(reader, server.fileno(), stack.fileno())
            _Warden(ward, rank, starter, reader, server, stack, token, deadline_s).watch()
        finally:
            os._exit(0)
    server.close()
    os.close(reader)
    return ward


_KEPT: list[IO[bytes]] = []


def _keep_only(*files: int) -> None:
    """Of what the rank had open: its pipes to mpiexec must end with it."""
    nothing = os.open(os.devnull, os.O_RDWR)
    for standard in range(3):
        os.dup2(nothing, standard)
    low = 3
    for file in sorted(files):
        os.closerange(low, file)
        low = file + 1
    os.closerange(low, 1 << 20)


def _segments(pid: int) -> list[str]:
    """What a process has mapped of shared memory; what has lost its name already leaves nothing behind."""
    with suppress(OSError), open(f"/proc/{pid}/maps", encoding="utf-8") as maps:
        return sorted({found.group() for line in maps if (found := _SEGMENT.search(line.rstrip("\n")))})
    return []


def _how(pid: int) -> str:
    """How a process ended, if whoever started it has not yet asked: the last number of its line in /proc tells."""
    with suppress(OSError, ValueError, IndexError):
        status = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").split()[-1])
        code = os.waitstatus_to_exitcode(status)
        return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    return "was killed or exited"


class _Warden:
    def __init__(
        self,
        ward: Ward,
        pid: int,
        starter: int,
        pipe: int,
        server: socket.socket,
        stack: IO[bytes],
        token: str,
        deadline_s: float,
    ) -> None:
        self.ward, self.pid, self.starter, self.token = ward, pid, starter, token
        self.pipe, self.server, self.stack = pipe, server, stack
        self.allowed_s = deadline_s + _GRACE_S
        self.deadline = time.monotonic() + self.allowed_s
        self.segments: set[str] = set()
        self.ready = self.done = False
        self.process = os.pidfd_open(pid)

    def watch(self) -> None:
        """Until the rank is gone, be it by itself, because someone asked, or because its time is over."""
        told, open_files = b"", {self.pipe, self.process, self.server.fileno()}
        while (left := self.deadline - time.monotonic()) > 0:
            readable, _, _ = select.select(open_files, [], [], left if self.ready else min(left, _LOOK_S))
            self._look()
            if self.pipe in readable:
                told += (news := os.read(self.pipe, 1 << 16))
                *lines, told = told.split(b"\n")
                for line in lines:
                    self._hear(json.loads(line))
                if not news:
                    open_files.discard(self.pipe)
            if self.process in readable:
                return self._gone()
            if self.server.fileno() in readable and self._asked_to_end():
                return None
        self._end("ended by itself at its deadline: nobody had ended it")
        return self._end_starter()

    def _hear(self, told: dict[str, Any]) -> None:
        if "rank" in told:
            self.ward.rank, self.ready = told["rank"], True
        self.segments |= set(told.get("segments", []))
        self.done = self.done or "done" in told
        if "segments" not in told:
            self.deadline = time.monotonic() + self.allowed_s

    def _look(self) -> None:
        self.segments |= set(_segments(self.pid))

    def _gone(self) -> None:
        if not self.done:
            self.ward._note("ended", reason=_how(self.pid))
        self._clean()

    def _end(self, why: str) -> None:
        self._look()
        if not self.done:
            self.ward._note("ended", reason=why)
        left_behind = guard.descendants(self.pid) - {os.getpid()}
        signal.pidfd_send_signal(self.process, signal.SIGKILL)
        guard.kill(left_behind)
        select.select([self.process], [], [], 1)
        self._clean()

    def _clean(self) -> None:
        for segment in self.segments:
            with suppress(OSError):
                Path(segment).unlink()

    def _asked_to_end(self) -> bool:
        """Whoever knows the token gets the answer where the rank was, once it is gone."""
        client, _ = self.server.accept()
        with client, suppress(OSError):
            client.settimeout(1)
            if client.recv(256).decode(errors="replace").strip() != self.token:
                return False
            where = self._where()
            self._end("ended by the launcher")
            client.sendall(json.dumps(where).encode())
            return True
        return False

    def _where(self) -> list[dict[str, str]]:
        """Path, line and name of the functions that the rank is in, the innermost first; none: it does not answer."""
        end = time.monotonic() + _STACK_S
        signal.pidfd_send_signal(self.process, signal.SIGUSR1)
        while time.monotonic() < end:
            text = os.pread(self.stack.fileno(), 1 << 16, 0).decode(errors="replace")
            if " <module>\n" in text:  # the last of them
                return [frame.groupdict() for frame in _FRAME.finditer(text)]
            time.sleep(0.01)
        return []

    def _end_starter(self) -> None:
        """On a host that is cut off, hydra's proxy would wait for an answer for ever."""
        end = time.monotonic() + 1
        while time.monotonic() < end and self._is_proxy():
            time.sleep(0.05)
        if self._is_proxy():
            with suppress(OSError):
                os.kill(self.starter, signal.SIGKILL)

    def _is_proxy(self) -> bool:
        with suppress(OSError):
            return b"hydra_pmi_proxy" in Path(f"/proc/{self.starter}/cmdline").read_bytes()
        return False
