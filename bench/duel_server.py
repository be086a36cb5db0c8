"""The server that forks the workers of a duel, of both sides: `python -m bench.duel_server FD BYTES`.

One server for both, so that they begin as equals: what a heap looks like by the luck of a start alone makes a row
up to twice as slow, and all forks of a server inherit it. It has imported torch, but nothing of attn, and has run no
parallel region. Whoever started it asks over a socket (the file descriptor FD): for a worker, handing over the
socket that it shall speak through, or for its end. A worker may allocate so many bytes (0: as many as there are).
"""

from __future__ import annotations

import importlib
import json
import os
import random
import resource
import signal
import socket
import struct
import sys
import traceback
from multiprocessing.connection import Connection

from bench import guard

MESSAGE = struct.Struct("<cq")  # to the server: what is asked, and of which process; back: the same, with its answer
READY, START, END = b"r", b"s", b"e"
_BALLAST_BLOCKS, _BALLAST_BYTES = 16, 1 << 16
_PRELOADED = ("numpy", "torch", "torch.distributed", "safetensors.torch")


def main(descriptor: int, memory_bytes: int) -> None:
    """Serve until whoever asks is gone."""
    guard.die_with_parent()
    guard.adopt_orphans()
    for name in _PRELOADED:
        importlib.import_module(name)
    assert "attn" not in sys.modules
    control = socket.socket(fileno=descriptor)
    control.sendall(MESSAGE.pack(READY, os.getpid()))
    workers: set[int] = set()
    while True:
        message, given, *_ = socket.recv_fds(control, MESSAGE.size, 1)
        if not message:
            guard.kill(guard.descendants(os.getpid()))
            return
        what, pid = MESSAGE.unpack(message)
        if what == START:
            answer = _fork(control, given[0], memory_bytes)
            workers.add(answer)
            os.close(given[0])
        else:
            workers.remove(pid)
            answer = _end(pid, workers)
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
        _work(Connection(descriptor))
    except (EOFError, OSError):  # nobody asks any more
        pass
    except BaseException:  # as `sys.exit` in an implementation
        traceback.print_exc()
        os._exit(1)
    finally:
        sys.stdout.flush()
        os._exit(0)


def _work(connection: Connection) -> None:
    """Be of the side whose folder comes first. Where things lie in memory is drawn anew for each worker."""
    drawn = random.SystemRandom()
    ballast = [bytearray(drawn.randrange(_BALLAST_BYTES)) for _ in range(_BALLAST_BLOCKS)]
    folder = connection.recv_bytes().decode()
    os.chdir(folder)
    sys.path[0] = folder
    log = os.open("log", os.O_WRONLY | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    try:
        side = importlib.import_module("bench.duel_side")
    except Exception as error:  # whatever its attn lacks
        words = " ".join(f"{type(error).__name__}: {error}".split())
        reason = f"its attn does not fit the bench of the work tree: {words}"
        connection.send_bytes(json.dumps({"status": "crashed", "reason": reason}).encode())
        raise
    side.serve(connection)
    del ballast


def _end(pid: int, others: set[int]) -> int:
    """End a worker and all that it started; its exit code, negative where a signal ended it."""
    started = guard.descendants(pid)
    os.kill(pid, signal.SIGKILL)  # of one that has ended, and is not waited for yet, nothing changes
    _, status = os.waitpid(pid, 0)
    theirs = others.union(*(guard.descendants(one) for one in others))
    guard.kill((started | guard.descendants(os.getpid())) - theirs)
    return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
