"""One task in a process of its own, forked from a server that has imported torch once.

Whatever that process does (raise, crash, hang, exhaust memory, print a megabyte, leave threads or
children behind) becomes a status with a reason, within its deadline.
"""

from __future__ import annotations

import gc
import importlib
import json
import multiprocessing
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from typing import Any

from bench import guard

_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOAD = [
    "bench.forkserver",
    "torch",
    "bench.measure",
    "bench.check",
    "bench.roofline",
    "bench.runner",
    "bench.checking",
]
_TASKS = {
    "measure": "measure",
    "check": "check",
    "measure_ceiling": "roofline",
    "solve_and_write": "oracle",
    "solve_cases": "cases",
    "capture_into": "capture",
    "measure_model": "model_cells",
    "tune": "tune",
}  # task -> its module of bench
_LAST_LINES = 3
SERVER_OF = "ATTN_BENCH_SERVER_OF"  # read by bench.forkserver


def isolated(name: str, job: dict[str, Any], *, deadline_s: float, memory_bytes: int = 0) -> dict[str, Any]:
    """Run a task by name; its result, or a status with a reason."""
    _CONTEXT.set_forkserver_preload(_PRELOAD)
    guard.adopt_orphans()
    os.environ[SERVER_OF] = str(os.getpid())
    forkserver.ensure_running()
    known = guard.descendants(os.getpid())
    receiver, sender = _CONTEXT.Pipe(duplex=False)
    killed_before = oom_kills()
    with tempfile.NamedTemporaryFile(prefix="attn-bench-", suffix=".log") as log:
        process = _CONTEXT.Process(
            target=_child, args=(sender, log.name, name, json.dumps(job), memory_bytes), daemon=False
        )
        process.start()
        sender.close()
        try:
            result = _receive(receiver, deadline_s)
            if result is None:
                return {"status": "timeout", "reason": f"no result within its deadline of {deadline_s:g} s"}
            if result:
                return result
            process.join(5)
            return death(process.exitcode, tail(log.name), oom=oom_kills() > killed_before)
        finally:
            _end(process, known)
            receiver.close()


def task(name: str) -> Callable[..., dict[str, Any]]:
    """What a worker can be asked to do. By name, so that a change of one is no change of the others' code."""
    module = importlib.import_module(f"bench.{_TASKS[name]}")
    return getattr(module, name)  # type: ignore[no-any-return]


def memory_limit(gib: int) -> int:
    """Bytes that a worker may allocate; 0 stands for nine tenths of the machine."""
    if gib:
        return gib << 30
    return int(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") * 0.9)


def status_of(error: BaseException) -> dict[str, Any]:
    """The status that an exception stands for, with the reason's last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    if isinstance(error, MemoryError) or "out of memory" in str(error) or "can't allocate memory" in str(error):
        return {"status": "out_of_memory", "reason": lines[0][:300]}
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({os.path.basename(frame[0].filename)}:{frame[0].lineno})" if frame else ""
    where += "".join(f", {note}" for note in getattr(error, "__notes__", []))
    return {"status": "crashed", "reason": f"{type(error).__name__}: {lines[-1][:300]}{where}"}


def death(exit_code: int | None, last_output: str, *, oom: bool) -> dict[str, Any]:
    """The status of a process that ended without a result."""
    said = f"; last output: {last_output}" if last_output else ""
    if oom:
        return {"status": "out_of_memory", "reason": f"killed by the kernel for want of memory{said}"}
    if exit_code is not None and exit_code < 0:
        return {"status": "crashed", "reason": f"killed by {signal.Signals(-exit_code).name}{said}"}
    return {"status": "crashed", "reason": f"ended with exit code {exit_code} and no result{said}"}


def tail(path: str) -> str:
    """The last lines of a log, in one."""
    with open(path, "rb") as file:
        file.seek(max(0, os.path.getsize(path) - 4096))
        lines = file.read().decode(errors="replace").split("\n")
    return " | ".join([line.strip() for line in lines if line.strip()][-_LAST_LINES:])[:400]


def oom_kills() -> int:
    """How often the kernel has killed for want of memory since it started; 0 where it does not tell."""
    try:
        with open("/proc/vmstat", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
    except (OSError, StopIteration):
        return 0


def _child(sender: Connection, log: str, name: str, job: str, memory_bytes: int) -> None:
    os.setsid()
    guard.die_with_parent()
    descriptor = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    if memory_bytes:
        resource.setrlimit(resource.RLIMIT_DATA, (memory_bytes, memory_bytes))
    gc.freeze()  # what the server has imported is nobody's garbage: looking for some takes 0.07 s each time
    ours, copies = os.getpid(), list[bool]()
    os.register_at_fork(after_in_parent=lambda: copies.append(True))  # a subprocess is none: it runs something else
    try:
        result = task(name)(json.loads(job))
    except Exception as error:  # whatever an implementation raises is a status, not our end
        traceback.print_exc()
        result = status_of(error)
    if os.getpid() != ours:  # a copy that went on has nothing to say
        os._exit(0)
    if copies and result["status"] == "ok":
        result = {"status": "incorrect", "reason": f"forked: copies of its process ran beside it ({len(copies)})"}
    sender.send_bytes(json.dumps(result).encode())
    sender.close()
    sys.stdout.flush()
    os._exit(0)  # threads that an implementation left behind do not hold us up


def _receive(receiver: Connection, deadline_s: float) -> dict[str, Any] | None:
    """The result; empty where the process died without one; None where it did not answer in time."""
    if not receiver.poll(deadline_s):
        return None
    try:
        return json.loads(receiver.recv_bytes())  # type: ignore[no-any-return]
    except (EOFError, OSError):
        return {}


def _end(process: Any, known: set[int]) -> None:
    """Kill the process and all that it started, also what has left its session or outlived it."""
    guard.kill(guard.descendants(process.pid) | {process.pid})
    process.join(5)
    guard.kill(guard.descendants(os.getpid()) - known)
