"""One side of a duel: a server that forks fresh workers, `python -m bench.duel_side FD BYTES` in the side's folder.

It has imported torch and all that a worker needs, but no implementation, and has run no parallel region. Whoever
started it asks over a socket (the file descriptor FD): for a worker, handing over the socket that it shall speak
through, or for its end. A worker may allocate so many bytes (0: as many as there are).
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import socket
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from attn import registry
from attn.contract import Unsupported, Workload
from bench import guard, solved
from bench.calls import make
from bench.device import open_device
from bench.duel_pairs import MESSAGE, READY, START
from bench.jobs import Job
from bench.judge import judge_call
from bench.team import Solo
from bench.timing import warm_up
from bench.worker import status_of


class Contestant:
    """A row on one cell, in a process of its own."""

    def __init__(self, fields: dict[str, Any]) -> None:
        self.job = Job(**fields)
        torch.set_num_threads(self.job.threads)
        torch.manual_seed(self.job.protocol["seed"] + self.job.process)
        self.device = open_device(self.job.device)
        self.workload = Workload.from_dict(self.job.workload)
        self.implementation = registry.read(Path(self.job.implementation))
        self.first = solved.read(Path(self.job.oracle))
        with registry.third_party():
            self.call = make(self.implementation, self.workload, self.first.inputs, self.job.device)

    def prepare(self) -> dict[str, Any]:
        """Judge, warm up; milliseconds of a call. From here on nothing is collected."""
        with registry.third_party():
            self.call()
        verdict = judge_call(self.call, self.first, Solo())
        if not verdict.right:
            return {"status": "incorrect", "reason": verdict.reason}
        self.call.forget()
        calls = warm_up(lambda n: self.device.elapsed_ms(self.call, n), self.job.protocol, lambda x: x)
        gc.collect()
        gc.disable()
        return {"status": "ok", "ms_per_call": self.device.elapsed_ms(self.call, calls) / calls}

    def answer(self, asked: dict[str, Any]) -> dict[str, Any]:
        """Do what is asked."""
        match asked["do"]:
            case "prepare":
                return self.prepare()
            case "slice":
                return self.slice(asked["calls"])
            case _:
                return self.end()

    def slice(self, calls: int) -> dict[str, Any]:
        """So many calls in a row: wall milliseconds, and processor milliseconds of all threads."""
        self.device.flush()
        before = time.process_time_ns()
        wall_ms = self.device.elapsed_ms(self.call, calls)
        return {"status": "ok", "wall": wall_ms, "cpu": (time.process_time_ns() - before) / 1e6}

    def end(self) -> dict[str, Any]:
        """Judge again, on other inputs in the same buffers."""
        again = solved.mirrored(self.implementation.kind, self.first, self.workload.mask)
        self.call.refill(again.inputs)
        self.call()
        verdict = judge_call(self.call, again, Solo())
        if not verdict.right:
            return {"status": "incorrect", "reason": f"after timing, on fresh inputs: {verdict.reason}"}
        return {"status": "ok"}


def serve(connection: Connection) -> None:
    """What a worker does: answer until it is told to end, or until nobody is there to ask."""
    contestant: Contestant | None = None
    while True:
        asked = json.loads(connection.recv_bytes())
        try:
            if asked["do"] == "prepare":
                contestant = Contestant(asked["job"])
            assert contestant is not None
            result = contestant.answer(asked)
        except Unsupported as error:
            result = {"status": "unsupported", "reason": str(error)}
        except Exception as error:  # whatever an implementation raises is a status, not our end
            traceback.print_exc()
            result = status_of(error)
        connection.send_bytes(json.dumps(result).encode())


def main(descriptor: int, memory_bytes: int) -> None:
    """One worker at a time, until whoever asks is gone."""
    guard.die_with_parent()
    guard.adopt_orphans()
    assert registry.IMPL_DIR.is_relative_to(Path.cwd()), f"another attn was imported: {registry.IMPL_DIR}"
    control = socket.socket(fileno=descriptor)
    control.sendall(MESSAGE.pack(READY, os.getpid()))
    while True:
        message, given, *_ = socket.recv_fds(control, MESSAGE.size, 1)
        if not message:
            guard.kill(guard.descendants(os.getpid()))
            return
        what, pid = MESSAGE.unpack(message)
        if what == START:
            answer = _fork(control, given[0], memory_bytes)
            os.close(given[0])
        else:
            answer = _end(pid)
        control.sendall(MESSAGE.pack(what, answer))


def _fork(control: socket.socket, descriptor: int, memory_bytes: int) -> int:
    """A worker; its process id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        guard.die_with_parent()
        control.close()
        if memory_bytes:
            resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
        serve(Connection(descriptor))
    except (EOFError, OSError):  # nobody asks any more
        pass
    except BaseException:  # as `sys.exit` in an implementation
        traceback.print_exc()
        os._exit(1)
    finally:
        sys.stdout.flush()
        os._exit(0)


def _end(pid: int) -> int:
    """End a worker and all that it started; its exit code, negative where a signal ended it."""
    started = guard.descendants(pid)
    os.kill(pid, signal.SIGKILL)  # of one that has ended, and is not waited for yet, nothing changes
    _, status = os.waitpid(pid, 0)
    guard.kill(started | guard.descendants(os.getpid()))
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
