"""Hosts made of namespaces on this machine: each has a network, a name, process ids and a /dev/shm of its own.

    python tests/hosts.py up 2 --rate 1gbit       two hosts, h0 and h1, on a bridge; says where they are kept
    python tests/hosts.py exec h0 -- python -m bench run ring_v2_collective --grid ring
    python tests/hosts.py cut h1                  its link goes down; `mend h1` brings it up
    python tests/hosts.py down                    all is gone, as it is when the processes that hold it are killed

A host is held by one process, number 1 of its namespaces, which runs what it is asked to, as a server of a remote
shell does. Nothing else holds it: no named namespace, no file in /etc; with that process ends all that runs there.
File systems are shared, as hosts that share their home directories do; /dev/shm is not, so memory cannot be.
"""

from __future__ import annotations

import argparse
import array
import ctypes
import itertools
import json
import os
import secrets
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

THIS = str(Path(__file__).resolve())
SUBNET, PORT = "10.77.0", 22  # a network that only these hosts see; the port tells whether one can be reached
SWITCH, MOST = "switch", 4
KEPT = "attn-bench-hosts-"  # folder of the temporary directory: what holds a set of hosts
SETTINGS = {
    "HYDRA_LAUNCHER": "ssh",
    "MPIR_CVAR_CH4_NETMOD": "ofi",  # UCX finds out that the hosts are one machine and goes around the network
    "FI_PROVIDER": "tcp",
    "FI_TCP_IFACE": "eth0",
}


def why_not() -> str | None:
    """Why no hosts can be made here, in one line."""
    missing = [tool for tool in ("unshare", "ip", "tc", "mount") if not shutil.which(tool)]
    if missing:
        return f"needs {' and '.join(missing)}: install util-linux and iproute2"
    command = [*_UNSHARE, "ip", "link", "add", "type", "bridge"]
    tried = subprocess.run(command, capture_output=True, text=True, check=False)
    if tried.returncode:
        return f"namespaces are not permitted here: {(tried.stderr.strip().splitlines() or ['no word'])[-1]}"
    return None


_UNSHARE = ["unshare", "--net", "--uts", "--mount", "--ipc", "--pid", "--fork", "--kill-child", "--mount-proc"]


class Hosts:
    """A set of hosts that is up: `names`, and what can be done with them. Kept in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = json.loads((folder / "names.json").read_text(encoding="utf-8"))

    def run(self, host: str, command: Sequence[str], **more: Any) -> subprocess.CompletedProcess[str]:
        """A command on a host, as subprocess.run does; it ends with the hosts when nobody waits for it any more."""
        asked = [sys.executable, THIS, "--kept", str(self.folder), "exec", host, "--", *command]
        return subprocess.run(asked, check=False, **{"text": True, "capture_output": True, "timeout": 300, **more})

    def read(self, host: str, *command: str) -> str:
        """What a command on a host prints; it must succeed."""
        done = self.run(host, command)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def link(self, host: str, state: str) -> None:
        """`down`: as when the cable is pulled out of the switch; `up`."""
        self.read(SWITCH, "ip", "link", "set", host, state)

    def tx_bytes(self, host: str) -> int:
        """What the host has sent over its link so far."""
        return int(self.read(host, "cat", "/sys/class/net/eth0/statistics/tx_bytes"))


@contextmanager
def hosts(count: int, rate: str = "", *, outlive: bool = False) -> Iterator[Hosts]:
    """Hosts while the block runs. They also go when this process is killed, unless they are to outlive it."""
    folder = Path(tempfile.mkdtemp(prefix=KEPT))
    holding: list[subprocess.Popen[bytes]] = []
    done = False
    try:
        _make(folder, count, rate, outlive, holding)
        yield Hosts(folder)
        done = True
    finally:
        if not (outlive and done):
            down(folder)
            for process in holding:
                process.wait()


def _make(folder: Path, count: int, rate: str, outlive: bool, holding: list[subprocess.Popen[bytes]]) -> None:
    names = [f"h{i}" for i in range(count)]
    (folder / "names.json").write_text(json.dumps(names), encoding="utf-8")
    table = [f"{SUBNET}.{i + 1} {name}" for i, name in enumerate(names)]
    (folder / "hosts").write_text("\n".join(["127.0.0.1 localhost", *table]) + "\n", encoding="utf-8")
    shell = folder / "shell"
    ours = f'"{sys.executable}" "{THIS}" --kept "{folder}"'
    shell.write_text(f'#!/bin/sh\nexec {ours} shell -- "$@"\n', encoding="utf-8")
    shell.chmod(0o700)
    for name in (SWITCH, *names):
        holding.append(_start(folder, name, outlive))
        _wait_until_it_listens(folder, name, holding[-1])
    set_up = Hosts(folder)
    set_up.read(SWITCH, "sh", "-ec", "ip link add bridge type bridge && ip link set bridge up")
    for i, name in enumerate(names):
        _plug_in(set_up, name, f"{SUBNET}.{i + 1}/24", rate)


def _start(folder: Path, name: str, outlive: bool) -> subprocess.Popen[bytes]:
    """The process that holds a host."""
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*_UNSHARE, sys.executable, THIS, "--kept", str(folder), "hold", name],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            preexec_fn=None if outlive else partial(ctypes.CDLL(None).prctl, 1, signal.SIGKILL),  # noqa: PLW1509  # a prctl
        )  # fmt: skip
    (folder / f"{name}.pid").write_text(str(process.pid), encoding="ascii")
    return process


def _wait_until_it_listens(folder: Path, name: str, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 20
    while not (folder / f"{name}.sock").exists():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"host {name} did not start: {(folder / f'{name}.log').read_text(encoding='utf-8')}")
        time.sleep(0.01)


def _plug_in(set_up: Hosts, name: str, address: str, rate: str) -> None:
    """A cable from the host to the switch, its address, and what it may send a second."""
    inside = _children(int((set_up.folder / f"{name}.pid").read_text(encoding="ascii")))[0]
    switch = _children(int((set_up.folder / f"{SWITCH}.pid").read_text(encoding="ascii")))[0]
    cable = f"ab{secrets.token_hex(4)}"  # it lies in our own network for a moment, where names must differ
    _ip("link", "add", cable, "type", "veth", "peer", "name", f"{cable}p")
    _ip("link", "set", f"{cable}p", "netns", str(inside), "name", "eth0")
    _ip("link", "set", cable, "netns", str(switch), "name", name)
    set_up.read(SWITCH, "sh", "-ec", f"ip link set {name} master bridge && ip link set {name} up")
    shaped = f"tc qdisc add dev eth0 root tbf rate {rate} burst 256kb latency 50ms" if rate else "true"
    up = f"ip address add {address} dev eth0 && ip link set eth0 up && ip link set lo up && {shaped}"
    set_up.read(name, "sh", "-ec", up)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


def _children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text(encoding="ascii").split()]


def down(folder: Path) -> None:
    """Take hosts away: kill what holds them, wait until it is gone. A second time does nothing."""
    for note in folder.glob("*.pid"):
        pid = int(note.read_text(encoding="ascii"))
        with suppress(OSError):
            if str(folder) in Path(f"/proc/{pid}/cmdline").read_text(encoding="utf-8"):
                held = _children(pid)
                os.kill(pid, signal.SIGKILL)
                _wait_for(held)
    shutil.rmtree(folder, ignore_errors=True)


def _wait_for(pids: list[int]) -> None:
    end = time.monotonic() + 10
    while any(map(runs, pids)) and time.monotonic() < end:
        time.sleep(0.01)


def runs(pid: int) -> bool:
    """There, and not just waiting for whoever is to take its exit status, which not every init does at once."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


# The process that holds a host.


def hold(folder: Path, name: str) -> None:
    """Name this host, give it memory of its own, then run what is asked for until killed."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/dev/shm"], check=True)
    subprocess.run(["mount", "--bind", str(folder / "hosts"), "/etc/hosts"], check=True)
    subprocess.run(["mount", "-t", "sysfs", "sysfs", "/sys"], check=True)
    socket.sethostname(name)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / f".{name}.sock"))
    listener.listen(64)
    door = socket.create_server(("", PORT), backlog=64)  # it is there to be reached, and says nothing
    wake, signalled = socket.socketpair()
    for one in (listener, door, wake, signalled):
        one.setblocking(False)
    signal.set_wakeup_fd(signalled.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    (folder / f".{name}.sock").rename(folder / f"{name}.sock")
    _serve(listener, door, wake, os.environ | SETTINGS | {"HYDRA_LAUNCHER_EXEC": str(folder / "shell")})


def _serve(listener: socket.socket, door: socket.socket, wake: socket.socket, environment: dict[str, str]) -> None:
    """Start what is asked for; tell whoever asked how it ended. Orphans of the host are ours to bury."""
    asking: dict[int, socket.socket] = {}
    selector = selectors.DefaultSelector()
    for one in (listener, door, wake):
        selector.register(one, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                client = listener.accept()[0]
                with suppress(OSError, ValueError):
                    asking[_begin(client, environment)] = client
            elif key.fileobj is door:
                door.accept()[0].close()
            else:
                wake.recv(4096)
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                client_of = asking.pop(ended[0], None)
                if client_of:
                    with suppress(OSError):
                        client_of.sendall(str(os.waitstatus_to_exitcode(ended[1])).encode())
                    client_of.close()


def _begin(client: socket.socket, environment: dict[str, str]) -> int:
    """The process id of a command that a client sent with its three standard files."""
    client.setblocking(True)
    head, files, _, _ = socket.recv_fds(client, 4, 3)
    asked = json.loads(_exactly(client, int.from_bytes(head, "big")))
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            for target, file in enumerate(files):
                os.dup2(file, target)
            os.closerange(3, 4096)
            signal.set_wakeup_fd(-1)
            os.chdir(asked["where"])
            os.execvpe(asked["command"][0], asked["command"], asked["environment"] | _host_settings(environment))
        except OSError as error:
            os.write(2, f"{error}\n".encode())
        finally:
            os._exit(127)
    for file in files:
        os.close(file)
    return pid


def _host_settings(environment: dict[str, str]) -> dict[str, str]:
    return {name: environment[name] for name in (*SETTINGS, "HYDRA_LAUNCHER_EXEC")}


def _exactly(client: socket.socket, count: int) -> bytes:
    found = b""
    while len(found) < count:
        more = client.recv(count - len(found))
        if not more:
            raise OSError("the client left")
        found += more
    return found


def execute(folder: Path, host: str, command: list[str]) -> int:
    """Run a command on a host with our standard files, folder and environment; its exit code."""
    asked = json.dumps({"command": command, "where": os.getcwd(), "environment": dict(os.environ)}).encode()
    with socket.socket(socket.AF_UNIX) as server:
        server.connect(str(folder / f"{host}.sock"))
        files = array.array("i", [0, 1, 2])
        server.sendmsg([len(asked).to_bytes(4, "big")], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, files)])
        server.sendall(asked)
        return int(server.recv(16) or b"255")


def shell(folder: Path, arguments: list[str]) -> int:
    """In place of ssh: `[-x] HOST WORD...`, the words for a shell there. A host that cannot be reached is an error."""
    host, *words = itertools.dropwhile(lambda word: word.startswith("-"), arguments)
    try:
        socket.create_connection((host, PORT), timeout=3).close()
    except OSError as error:
        print(f"connect to host {host} port {PORT}: {error}", file=sys.stderr)
        return 255
    return execute(folder, host, ["sh", "-c", " ".join(words)])


def _latest() -> Path:
    found = sorted(Path(tempfile.gettempdir()).glob(f"{KEPT}*"), key=lambda path: path.stat().st_mtime)
    if not found:
        sys.exit("no hosts are up: python tests/hosts.py up 2")
    return found[-1]


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kept", type=Path, help="folder of the hosts that are meant; the latest where not given")
    commands = parser.add_subparsers(dest="command", required=True)
    up = commands.add_parser("up", help="make hosts; prints the folder where they are kept")
    up.add_argument("count", type=int, choices=range(2, MOST + 1), help=f"2 to {MOST}")
    up.add_argument("--rate", default="", help="what each host may send a second, as tc writes it: 1gbit")
    for name, what in (("exec", "run a command on a host"), ("cut", "its link goes down"), ("mend", "and up again")):
        one = commands.add_parser(name, help=what)
        one.add_argument("host")
        if name == "exec":
            one.add_argument("words", nargs="+", metavar="WORD", help="after --: the command")
    commands.add_parser("down", help="take hosts away; without --kept all that this machine has")
    for name in ("hold", "shell"):
        commands.add_parser(name).add_argument("words", nargs=argparse.REMAINDER)
    asked = parser.parse_args()
    return _obey(asked)


def _obey(asked: argparse.Namespace) -> int:
    if asked.command == "up":
        reason = why_not()
        if reason:
            sys.exit(reason)
        with hosts(asked.count, asked.rate, outlive=True) as made:
            print(made.folder)
        return 0
    if asked.command == "down":
        for folder in [asked.kept] if asked.kept else Path(tempfile.gettempdir()).glob(f"{KEPT}*"):
            down(folder)
        return 0
    folder = asked.kept or _latest()
    if asked.command == "hold":
        hold(folder, asked.words[0])
    if asked.command == "shell":
        return shell(folder, asked.words)
    known = [*Hosts(folder).names, SWITCH]
    if asked.host not in known:
        sys.exit(f"host {asked.host}: not there, allowed: {', '.join(known)}")
    if asked.command == "exec":
        return execute(folder, asked.host, asked.words)
    Hosts(folder).link(asked.host, "down" if asked.command == "cut" else "up")
    return 0


if __name__ == "__main__":
    sys.exit(main())
