"""Rings over hosts: namespaces with a network, a name and a /dev/shm each. Every row, every fault, every byte."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hosts as namespaces
import pytest
from conftest import ROOT, measure_job, processes_of
from hosts import SWITCH, THIS, Hosts
from ranks import FAULTS, RING, faulty, job, one_of, wait_until

from attn import registry
from attn.contract import Workload
from attn.ring import formulas

pytestmark = pytest.mark.hosts

BETWEEN = ROOT / ".scratch/launch"
DEADLINE_S = 45  # also of the start of ranks, on a machine that does other things
ROWS = sorted(name for name in registry.find() if name in formulas.SCHEDULES)  # others send for themselves
WORKLOAD = Workload(1, 256, 4, 2, 16, "float32", "causal", "forward_backward")

PROGRAM = """
import json, sys, time
from bench import launch
from bench.grid import Launch
asked = json.loads(sys.stdin.readline())
start = time.monotonic()
for result in launch.run(asked["task"], asked["jobs"], asked["world_size"], deadline_s=asked["deadline_s"],
                         on=Launch(hosts=asked["hosts"])):
    print(json.dumps([result, time.monotonic() - start]), flush=True)
    if not sys.stdin.readline():  # whoever asked is gone: the other jobs are not wanted
        break
    start = time.monotonic()
"""


@pytest.fixture(scope="module")
def two() -> Iterator[Hosts]:
    if reason := namespaces.why_not():
        pytest.skip(reason)
    with namespaces.hosts(2) as made:
        yield made


@dataclass
class Launcher:
    """A launch on the first host, which waits after each result until it is told to go on."""

    up: Hosts
    process: subprocess.Popen[str] = field(init=False)

    def start(
        self, task: str, jobs: list[dict[str, Any]], world_size: int, names: list[str], deadline_s: float = 120
    ) -> None:
        on_h0 = [sys.executable, THIS, "--kept", str(self.up.folder), "exec", "h0", "--"]
        self.process = subprocess.Popen(
            [*on_h0, sys.executable, "-c", PROGRAM], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        asked = {"task": task, "jobs": jobs, "world_size": world_size, "deadline_s": deadline_s, "hosts": names}
        self.tell(json.dumps(asked))

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def go_on(self) -> None:
        self.tell("")

    def result(self) -> tuple[dict[str, Any], float]:
        """The next result, and its seconds."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "the launcher has ended"
        result, seconds = json.loads(line)
        return result, seconds


@pytest.fixture
def launcher(two: Hosts) -> Iterator[Launcher]:
    with _launcher(two) as one:
        yield one


class _launcher:  # a context manager for fixtures of two scopes
    def __init__(self, up: Hosts) -> None:
        self.one = Launcher(up)

    def __enter__(self) -> Launcher:
        return self.one

    def __exit__(self, *_: object) -> None:
        try:
            self.one.process.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self.one.process.kill()
            self.one.process.communicate()
            for host in self.one.up.names:
                self.one.up.read(host, "sh", "-c", "kill -9 -1 || true")  # number 1 is spared


def left(up: Hosts, host: str, *, launcher: bool = False) -> list[str]:
    """What runs, listens or lies in shared memory on a host, besides what holds it and, if so, the launcher."""
    lines = up.read(host, "sh", "-c", LOOK).splitlines()
    return [line for line in lines if not (launcher and "from bench import launch" in line)]


LOOK = r"""
for p in /proc/[0-9]*; do
  n=${p#/proc/}
  [ $n = 1 ] || [ $n = $$ ] || [ ! -s $p/cmdline ] || { tr '\0\n' '  ' < $p/cmdline; echo; }
done
ls /dev/shm
while read -r _ where _ state _; do
  [ "$state" != 0A ] || [ "${where#*:}" = 0016 ] || echo "port $where"
done < /proc/net/tcp
"""


# The hosts themselves.


def test_each_host_has_a_name_a_network_processes_and_memory_of_its_own(two: Hosts) -> None:
    for host in two.names:
        assert two.read(host, "hostname") == f"{host}\n"
        assert left(two, host) == []
        two.read(host, "touch", f"/dev/shm/of-{host}")
    assert [two.read(host, "ls", "/dev/shm") for host in two.names] == ["of-h0\n", "of-h1\n"]
    assert not list(Path("/dev/shm").glob("of-h*"))
    for host in two.names:
        two.read(host, "rm", f"/dev/shm/of-{host}")
    links = json.loads(two.read("h1", "ip", "-j", "address"))
    assert {link["ifname"] for link in links} == {"lo", "eth0"}


def test_a_command_on_a_host_hands_back_its_exit_code_and_output(two: Hosts) -> None:
    done = two.run("h1", ["sh", "-c", "cat; echo no >&2; exit 7"], input="in")
    assert (done.returncode, done.stdout, done.stderr) == (7, "in", "no\n")
    assert two.run("h1", ["no-such-program"]).returncode == 127


def test_a_host_whose_link_is_down_cannot_be_reached_until_it_is_up(two: Hosts) -> None:
    reach = [str(two.folder / "shell"), "-x", "h1", "echo", "$(hostname)"]
    assert two.read("h0", *reach) == "h1\n"
    two.link("h1", "down")
    try:
        cut = two.run("h0", reach)
        assert (cut.returncode, cut.stdout) == (255, "")
        assert cut.stderr.startswith("connect to host h1 port 22: ")
    finally:
        two.link("h1", "up")
    assert wait_until(lambda: two.run("h0", reach).stdout == "h1\n", 20)


def test_hosts_of_two_runs_do_not_meet_and_go_with_what_made_them(two: Hosts) -> None:
    """Also when it is killed: nothing but processes holds them."""
    program = "import hosts, time\nwith hosts.hosts(3, '1gbit') as up: print(up.folder, flush=True); time.sleep(600)"
    maker = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT / "tests", stdout=subprocess.PIPE, text=True)
    try:
        assert maker.stdout is not None
        other = Hosts(Path(maker.stdout.readline().strip()))
        assert other.names == ["h0", "h1", "h2"]
        assert "rate 1Gbit" in other.read("h2", "tc", "qdisc", "show", "dev", "eth0")
        assert "tbf" not in two.read("h1", "tc", "qdisc", "show", "dev", "eth0")
        other.read("h1", "touch", "/dev/shm/theirs")
        assert two.read("h1", "ls", "/dev/shm") == ""
        assert len(holders(other.folder)) > 3
    finally:
        maker.send_signal(signal.SIGKILL)
        maker.communicate()
    assert wait_until(lambda: not holders(other.folder), 10), holders(other.folder)
    namespaces.down(other.folder)  # what is left is a folder
    namespaces.down(other.folder)
    assert not other.folder.exists()


def test_by_hand_hosts_stay_up_until_they_are_taken_down() -> None:
    if reason := namespaces.why_not():
        pytest.skip(reason)
    up = by_hand("up", "2")
    kept = up.stdout.strip()
    try:
        assert by_hand("--kept", kept, "exec", "h1", "--", "hostname").stdout == "h1\n"
        unknown = by_hand("--kept", kept, "exec", "h7", "--", "hostname")
        assert (unknown.returncode, unknown.stderr) == (1, "host h7: not there, allowed: h0, h1, switch\n")
        assert by_hand("--kept", kept, "cut", "h1").returncode == 0
        state = json.loads(Hosts(Path(kept)).read(SWITCH, "ip", "-j", "link", "show", "h1"))
        assert "UP" not in state[0]["flags"]
    finally:
        down = by_hand("--kept", kept, "down")
    assert down.returncode == 0, down.stderr
    assert not holders(Path(kept))
    assert not Path(kept).exists()
    assert by_hand("--kept", kept, "down").returncode == 0, "a second time"


def test_what_cannot_be_made_is_said_in_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        namespaces, "_UNSHARE", ["sh", "-c", "echo unshare failed: Operation not permitted >&2; exit 1"]
    )
    assert namespaces.why_not() == "namespaces are not permitted here: unshare failed: Operation not permitted"
    monkeypatch.setenv("PATH", "")
    assert namespaces.why_not() == "needs unshare and ip and tc and mount: install util-linux and iproute2"


def by_hand(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, THIS, *words], capture_output=True, text=True, timeout=60, check=False)


def holders(folder: Path) -> list[str]:
    """Processes that hold hosts of a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if f"{folder} hold " in command:
            found.append(f"{process.name} {command}")
    return found


# Ranks on them.

FACTS = """
import json, sys
from bench import wire
from bench.team import Ranks
team = Ranks(4, "cpu", 60, address=wire.address_of("eth0"))
before = team.wire_bytes()
team.gather([0.0] * (1 << 17))
crossed = team.wire_bytes() - before
facts = [team.rank, team.node_of_rank, team.hosts, team.interface, team.nodes, crossed]
open(f"{sys.argv[1]}/{team.rank}", "w").write(json.dumps(facts))
team.close()
"""


def test_the_ring_is_in_the_order_of_nodes_however_ranks_are_placed(two: Hosts, tmp_path: Path) -> None:
    """mpiexec deals them out in turns here; memory is shared within a node and only there."""
    command = [str(Path(sys.executable).parent / "mpiexec"), "-hosts", "h0,h1", "-ppn", "1", "-n", "4"]
    done = two.run("h0", [*command, sys.executable, "-m", "mpi4py", "-c", FACTS, str(tmp_path)], cwd=ROOT)
    assert done.returncode == 0, done.stderr
    facts = [json.loads((tmp_path / str(rank)).read_text(encoding="utf-8")) for rank in range(4)]
    crossed = facts[0][-1]
    assert facts == [[rank, [0, 0, 1, 1], ["h0", "h0", "h1", "h1"], "eth0", 2, crossed] for rank in range(4)]
    assert crossed >= 2 * 8 * (1 << 17), "a mebibyte from each of two ranks of the other node"
    assert crossed < 2 * 2 * 8 * (1 << 17), "the ranks of rank 0's own node sent theirs through memory"


@pytest.mark.parametrize(("world_size", "names"), [(2, ["h0", "h1"]), (4, ["h0", "h1"]), (2, ["h1", "h0"])])
def test_every_ring_is_right_over_hosts(world_size: int, names: list[str], launcher: Launcher) -> None:
    """Of every row a few cases. In the other order rank 0 is not where the launcher is."""
    rows = ROWS if names[0] == "h0" else [RING.stem]
    launcher.start("check", [job(registry.IMPL_DIR / f"{row}.py", world_size) for row in rows], world_size, names)
    for row in rows:
        before = [launcher.up.tx_bytes(host) for host in names]
        result, _ = launcher.result()
        assert result["status"] == "ok", (row, result)
        wrong = [case for case in result["cases"] if case["status"] not in ("ok", "unsupported")]
        assert not wrong, row
        assert "ok" in {case["status"] for case in result["cases"]}, (row, result["cases"])
        assert all(now > was for now, was in zip(map(launcher.up.tx_bytes, names), before, strict=True)), row
        launcher.go_on()


@pytest.mark.parametrize("world_size", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_what_rings_send_has_crossed_the_link(world_size: int, launcher: Launcher, tmp_path: Path) -> None:
    """In every schedule all ranks together send over the link at least what one of them hands over."""
    jobs = [measure_job(registry.IMPL_DIR / f"{row}.py", WORKLOAD, tmp_path, world_size) for row in ROWS]
    before = {host: launcher.up.tx_bytes(host) for host in launcher.up.names}
    launcher.start("measure", jobs, world_size, launcher.up.names)
    least = 0
    for row in ROWS:
        result, _ = launcher.result()
        launcher.go_on()
        if result["status"] == "unsupported":  # one query token is another workload
            continue
        assert result["status"] == "ok", (row, result)
        assert result["wire_bytes"] >= result["payload_bytes"] > 0, row
        assert result["threads"] == [1] * world_size
        calls = len(result["series"]["samples_ms"])
        least += calls * result["payload_bytes"]
    assert least > 0
    crossed = sum(launcher.up.tx_bytes(host) - before[host] for host in launcher.up.names)
    assert crossed >= least


FAULTS_OVER_HOSTS = {**FAULTS, "cut": ("", "timeout", "rank 1 of 2 on h1 cannot be reached; 1 wait for others")}


@pytest.fixture(scope="module")
def after_faults(two: Hosts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of each fault its result, its seconds, and what was left of it on each host when its time was over."""
    folder, found = tmp_path_factory.mktemp("faults"), dict[str, Any]()
    before = set(BETWEEN.glob("*"))
    there = folder / "there"
    rows = {name: faulty(folder, name, fault) for name, (fault, *_) in FAULTS.items()}
    rows["cut"] = folder / "cut.py"
    rows["cut"].write_text(TALKS.format(there=str(there)), encoding="utf-8")
    rows["healthy"] = faulty(folder, "healthy", "pass")
    with _launcher(two) as launcher:
        launcher.start("check", [job(path, 2) for path in rows.values()], 2, two.names, DEADLINE_S)
        for name in rows:
            start = time.monotonic()
            if name == "cut":
                assert wait_until(there.exists, 60)
                two.link("h1", "down")
            result, seconds = launcher.result()
            wait_until(lambda: not any(left(two, host, launcher=True) for host in two.names), DEADLINE_S + 5 - seconds)
            left_over = {host: left(two, host, launcher=True) for host in two.names}
            found[name] = (result, seconds, left_over, time.monotonic() - start)
            two.link("h1", "up")
            if name == "cut":
                assert wait_until(lambda: two.run("h0", [str(two.folder / "shell"), "h1", "true"]).returncode == 0, 20)
            launcher.go_on()
    files = [path for path in set(BETWEEN.glob("*")) - before if not processes_of(path)]
    return {**found, "files": files}


TALKS = '''"""Talks for ever."""
import pathlib
from attn.impl.ring_v2_collective import attention as right

KIND, DEVICES, DTYPES, MASKS, BACKWARD = "ring", ("cpu",), ("float32",), ("full",), False


def attention(q, k, v, *, softmax_scale, mask, comm):
    while True:
        right(q, k, v, softmax_scale=softmax_scale, mask=mask, comm=comm)
        pathlib.Path({there!r}).touch()
'''


@pytest.mark.slow  # minutes, most of them waiting for deadlines; `make test-hosts` runs it
@pytest.mark.parametrize("fault", FAULTS_OVER_HOSTS)
def test_a_fault_is_a_status_that_names_rank_and_host_within_the_deadline(fault: str, after_faults: Any) -> None:
    result, seconds, *_ = after_faults[fault]
    _, status, words = FAULTS_OVER_HOSTS[fault]
    assert result["status"] == status, result
    assert one_of(words, result["reason"]), result
    assert "rank 1 of 2 on h1" in result["reason"]
    assert "\n" not in result["reason"]
    assert seconds < DEADLINE_S + 5


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS_OVER_HOSTS)
def test_a_fault_leaves_nothing_on_any_host(fault: str, after_faults: Any) -> None:
    """No process, no segment of memory, no port, also where the link is still down."""
    assert after_faults[fault][2] == {"h0": [], "h1": []}


@pytest.mark.slow
def test_after_every_fault_the_next_job_is_right(after_faults: Any) -> None:
    result = after_faults["healthy"][0]
    assert result["status"] == "ok", result
    assert {case["status"] for case in result["cases"]} == {"ok"}
    assert after_faults["files"] == [], "files between hosts are gone"
