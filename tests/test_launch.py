"""Ranks that really start: where they are placed, what becomes of one that fails, what its warden does alone."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT, processes_of
from hosts import runs
from ranks import FAULTS, RING, faulty, job, one_of, wait_until

from bench import grid, launch, placement, wire
from bench.grid import Launch

DEADLINE_S = 20
SHARED = Path("/dev/shm")  # where MPICH keeps its segments


def segments() -> set[str]:
    """Shared memory of MPI and torch."""
    return {path.name for path in SHARED.glob("*") if path.name.startswith(("mpich", "ucx", "psm", "torch"))}


def left_segments() -> set[str]:
    """Of these, what no process has mapped: others may run ranks on this machine too."""
    mapped = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        with suppress(OSError):
            mapped |= {line.rsplit("/", 1)[-1] for line in maps.read_text().splitlines() if "/dev/shm/" in line}
    return segments() - mapped


@pytest.fixture(scope="module")
def after_faults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Of each fault: its result, its seconds and what was left; each is also the next job of the one before."""
    folder, before = tmp_path_factory.mktemp("ranks"), left_segments()
    rows = {name: faulty(folder, name, fault) for name, (fault, *_) in FAULTS.items()}
    rows["healthy"] = faulty(folder, "healthy", "pass")
    found: dict[str, Any] = {}
    results = launch.run("check", [job(path, 2) for path in rows.values()], 2, deadline_s=DEADLINE_S)
    for name in rows:
        start = time.monotonic()
        result = next(results)
        found[name] = (result, time.monotonic() - start, processes_of(folder) + orphans(), left_segments() - before)
    results.close()
    return {**found, "end": ({}, 0.0, orphans(), left_segments() - before)}


@pytest.mark.mpi
@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_rank_is_a_status_that_names_it_within_the_deadline(fault: str, after_faults: Any) -> None:
    result, seconds, *_ = after_faults[fault]
    _, status, words = FAULTS[fault]
    assert result["status"] == status, result
    assert one_of(words, result["reason"]), result
    assert f"rank 1 of 2 on {os.uname().nodename}" in result["reason"]
    assert "\n" not in result["reason"]
    assert seconds < DEADLINE_S + 5


@pytest.mark.mpi
def test_after_all_faults_the_next_job_is_right(after_faults: Any) -> None:
    result = after_faults["healthy"][0]
    assert result["status"] == "ok", result
    assert {case["status"] for case in result["cases"]} == {"ok"}


@pytest.mark.mpi
@pytest.mark.parametrize("fault", [*FAULTS, "end"])
def test_failed_ranks_have_left_nothing_when_their_status_is_told(fault: str, after_faults: Any) -> None:
    _, _, processes, shared = after_faults[fault]
    assert processes == []
    assert shared == set()


@pytest.mark.mpi
def test_a_world_of_another_size_is_an_error_and_no_result(tmp_path: Path) -> None:
    asked = {
        "task": "check", "jobs": [job(RING, 2)], "world_size": 2, "deadline_s": 60, "memory_bytes": 0,
        "transport": "auto", "interface": "", "ulysses_size": 0, "launcher": "127.0.0.1", "token": "t",
    }  # fmt: skip
    (tmp_path / "jobs.json").write_text(json.dumps(asked), encoding="utf-8")
    command = [*placement.command(1, Launch()), sys.executable, "-m", "mpi4py", "-m", "bench.ring_worker"]
    done = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, timeout=120, check=False)
    assert done.returncode != 0
    (note,) = tmp_path.glob("raised-*.json")
    raised = json.loads(note.read_text(encoding="utf-8"))
    assert "mpiexec started a world of 1 ranks, asked for 2" in raised["reason"]
    assert not (tmp_path / "0.json").exists()


@pytest.mark.mpi
def test_a_transport_that_cannot_serve_is_unsupported_and_no_fault_of_the_row() -> None:
    before = left_segments()
    (result,) = launch.run("check", [job(RING, 2)], 2, deadline_s=60, on=Launch(transport="nccl"))
    assert result["status"] == "unsupported", result
    assert result["reason"].startswith("2 ranks could not be started here (exit code ")
    assert "ValueError: launch.transport = nccl on device cpu, allowed: auto, gloo, mpi, shm" in result["reason"]
    assert left_segments() <= before, "ranks that had only just begun leave nothing either"


def test_without_mpiexec_every_job_is_unsupported_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(placement, "find_mpiexec", lambda: None)
    results = list(launch.run("check", [job(RING, 2)] * 3, 2, deadline_s=5))
    reason = "no mpiexec beside this python nor on PATH: pip install mpich"
    assert results == [{"status": "unsupported", "reason": reason}] * 3


PROGRAM = """
import json, sys
from bench import launch
print(*launch.run("check", json.load(sys.stdin), 2, deadline_s=300))
"""


@pytest.mark.mpi
def test_a_launcher_that_is_killed_takes_its_ranks_and_their_memory_along(tmp_path: Path) -> None:
    before = segments()
    path = faulty(tmp_path, "hang", f"pathlib.Path({str(tmp_path / 'there')!r}).touch(); time.sleep(600)")
    asked = tmp_path / "asked"
    asked.write_text(json.dumps([job(path, 2)]), encoding="utf-8")
    with asked.open("rb") as file:
        environment = os.environ | {"TMPDIR": str(tmp_path)}
        process = subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, stdin=file)
    try:
        assert wait_until((tmp_path / "there").exists, 60)
        made = segments() - before
        assert made
    finally:
        process.kill()
        process.wait()
    assert wait_until(lambda: not processes_of(tmp_path), 10), processes_of(tmp_path)
    assert wait_until(lambda: not made & left_segments(), 10)


# Placement, without starting anything.


@pytest.mark.parametrize(
    ("world_size", "hosts", "dealt", "most"),
    [
        (4, ["a", "b"], {"a": 2, "b": 2}, 2),
        (3, ["a", "b"], {"a": 2, "b": 1}, 2),
        (4, ["a", "b", "c"], {"a": 2, "b": 1, "c": 1}, 2),
        (1, ["a", "b"], {"a": 1}, 1),
        (8, [], {}, 8),
    ],
)
def test_ranks_are_dealt_in_blocks(world_size: int, hosts: list[str], dealt: dict[str, int], most: int) -> None:
    assert placement.blocks(world_size, hosts) == dealt
    assert placement.most_on_a_host(world_size, Launch(hosts=hosts)) == most


def test_mpiexec_is_told_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.setattr(placement, "find_mpiexec", lambda: "/mpiexec")
    assert placement.command(3, Launch(hosts=["a", "b"])) == ["/mpiexec", "-hosts", "a:2,b:1", "-n", "3"]
    assert placement.command(3, Launch()) == ["/mpiexec", "-n", "3"]


@pytest.mark.parametrize(
    ("world_size", "hosts", "words"),
    [
        (4, [], ["--nodes=3", "--ntasks=4"]),
        (2, [], ["--nodes=2", "--ntasks=2"]),
        (4, ["a", "b"], ["--nodelist=a,b", "--nodes=2", "--ntasks=4"]),
    ],
)
def test_inside_an_allocation_srun_starts_ranks_on_its_nodes(
    world_size: int, hosts: list[str], words: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "srun").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "3")
    command = placement.command(world_size, Launch(hosts=hosts))
    assert command[:2] == ["srun", "--mpi=pmi2"]
    assert [word for word in command if word.startswith(("--node", "--ntasks"))] == words
    assert placement.most_on_a_host(world_size, Launch(hosts=hosts)) == (2 if world_size == 4 else 1)


def test_files_between_hosts_lie_in_the_repository(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    monkeypatch.chdir(tmp_path)
    assert placement.folder_for_all(Launch()) is None
    assert placement.folder_for_all(Launch(hosts=["a"])) == tmp_path / ".scratch/launch"


# params.yaml.


def with_launch(folder: Path, text: str) -> Path:
    shipped = (ROOT / "params.yaml").read_text(encoding="utf-8").split("\nlaunch:")
    after = shipped[1].split("\n\n", 1)[1]
    path = folder / "params.yaml"
    path.write_text(f"{shipped[0]}\n{text}\n{after}", encoding="utf-8")
    return path


def test_params_without_launch_are_valid_and_mean_this_machine(tmp_path: Path) -> None:
    assert grid.load(with_launch(tmp_path, "")).launch == Launch(hosts=[], transport="auto", interface="")
    assert grid.load(ROOT / "params.yaml").launch == Launch()


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("hosts: [a, a]", "launch.hosts = ['a', 'a']: a is given twice, allowed: once"),
        ("hosts: [a b]", "launch.hosts[0] = 'a b', allowed: letters, digits, dots and -"),
        ("hosts: a", "launch.hosts = 'a', allowed: a list"),
        ("transport: rdma", "launch.transport = 'rdma', allowed: auto, nccl, gloo, mpi or shm"),
        ("interface: eth 0", "launch.interface = 'eth 0', allowed: the name of an interface, or \"\" to find it"),
        ("host: [a]", "launch.host: unknown key, allowed: hosts, transport, interface, ulysses_size"),
    ],
)
def test_what_is_wrong_with_launch_is_one_sentence(text: str, fault: str, tmp_path: Path) -> None:
    with pytest.raises(grid.InvalidParams) as caught:
        grid.load(with_launch(tmp_path, f"launch: {{{text}}}"))
    assert caught.value.faults == [f"{tmp_path}/params.yaml: {fault}"]


def test_rings_and_only_rings_depend_on_where_they_are_launched() -> None:
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
    dependent = {name for name, stage in stages.items() if any("launch.json" in dep for dep in stage.get("deps", []))}
    assert dependent == {"check_ring", "bench_ring"}


# The network's counters.


def test_what_is_sent_over_the_loopback_is_counted() -> None:
    before = wire.sent_bytes("lo")
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()) as sender:
        receiver, _ = server.accept()
        with receiver:
            sender.sendall(bytes(1 << 20))
            received = 0
            while received < 1 << 20:
                received += len(receiver.recv(1 << 20))
    assert wire.sent_bytes("lo") - before >= 1 << 20


def test_an_interface_that_is_not_there_is_named_with_those_that_are() -> None:
    with pytest.raises(ValueError, match=r"interface nope has no address on \S+, allowed: .*lo"):
        wire.address_of("nope")
    with pytest.raises(ValueError, match=r"interface nope is not on \S+, allowed: .*lo"):
        wire.sent_bytes("nope")
    with pytest.raises(ValueError, match=r"no interface of \S+ has the address 192\.0\.2\.1"):
        wire.interface_of("192.0.2.1")
    with pytest.raises(ValueError, match=r"no way from \S+ to host no\.such\.host\.invalid: "):
        wire.address_towards("no.such.host.invalid")


def test_the_loopback_has_its_address() -> None:
    assert wire.address_of("lo") == wire.address_towards("127.0.0.1") == "127.0.0.1"
    assert wire.interface_of("127.0.0.1") == "lo"


# A warden alone: its rank needs neither MPI nor torch.

RANK = """
import mmap, pathlib, sys, time
from bench import warden
folder = pathlib.Path(sys.argv[1])
ward = warden.start(folder, "here", "127.0.0.1", "secret", float(sys.argv[2]))
segment = open(sys.argv[3], "w+b")
segment.truncate(4096)
kept = mmap.mmap(segment.fileno(), 4096)
ward.ready(5)
def hangs():
    print("there", flush=True)
    time.sleep(600)
hangs()
"""


@pytest.fixture
def rank(tmp_path: Path) -> Any:
    """Starts a rank with a deadline: its process, its segment and its warden's note."""
    started: list[Any] = []

    def start(deadline_s: float) -> tuple[subprocess.Popen[str], Path, dict[str, Any]]:
        segment = SHARED / f"torch_{os.getpid()}_{len(started)}"
        command = [sys.executable, "-c", RANK, str(tmp_path), str(deadline_s), str(segment)]
        process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        started.append((process, segment))
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        (path,) = tmp_path.glob("warden-*.json")
        return process, segment, json.loads(path.read_text(encoding="utf-8"))

    yield start
    for process, segment in started:
        process.kill()
        process.communicate()
        segment.unlink(missing_ok=True)


def ended(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("ended-*.json")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def test_a_warden_ends_its_rank_at_the_deadline_when_nobody_asks(rank: Any, tmp_path: Path) -> None:
    process, segment, note = rank(0.5)
    assert note["ready"]
    assert segment.exists()
    assert process.wait(30) == -signal.SIGKILL
    assert wait_until(lambda: not segment.exists(), 10)
    assert (ended(tmp_path)["rank"], ended(tmp_path)["host"]) == (5, "here")
    assert wait_until(lambda: not processes_of(tmp_path), 10), processes_of(tmp_path)


def test_a_warden_says_where_its_rank_was_and_ends_it_when_asked_by_who_may(rank: Any, tmp_path: Path) -> None:
    process, segment, note = rank(600)
    with socket.create_connection(tuple(note["address"]), 10) as stranger:
        stranger.sendall(b"guess")
        assert stranger.recv(100) == b""
    assert process.poll() is None
    with socket.create_connection(tuple(note["address"]), 10) as launcher:
        launcher.sendall(b"secret")
        answer = json.loads(b"".join(iter(lambda: launcher.recv(4096), b"")))
    assert answer[0]["name"] == "hangs"
    assert process.wait(10) == -signal.SIGKILL
    assert not segment.exists(), "it answers when all is gone"


def test_a_warden_removes_what_a_killed_rank_leaves_and_says_so(rank: Any, tmp_path: Path) -> None:
    process, segment, _ = rank(600)
    process.kill()
    assert wait_until(lambda: not segment.exists(), 10)
    assert wait_until(lambda: not processes_of(tmp_path), 10), processes_of(tmp_path)
    assert one_of("was killed by SIGKILL|was killed or exited", ended(tmp_path)["reason"])


def orphans() -> list[str]:
    """Ranks and wardens of this tree, wherever they came from, whose folder is gone: nobody waits for them any more."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
            here = (process / "cwd").resolve() == ROOT.resolve()
        except OSError:
            continue
        if here and "bench.ring_worker" in words and not Path(words[words.index("bench.ring_worker") + 1]).exists():
            found.append(f"{process.name} {' '.join(words)}")
    return found


@pytest.mark.mpi
@pytest.mark.parametrize("then", ["None", pytest.param("time.sleep(600)", marks=pytest.mark.slow)])
def test_what_a_row_has_started_ends_with_its_rank(then: str, tmp_path: Path) -> None:
    left = f"(os.setsid(), pathlib.Path({str(tmp_path)!r}, f'{{os.getpid()}}.pid').touch(), time.sleep(600))"
    path = faulty(tmp_path, "leaves_children", f"os.fork() or {left}\n        {then}")
    deadline_s = 120 if then == "None" else 40
    (found,) = launch.run("check", [job(path, 2)], 2, deadline_s=deadline_s)
    assert found.get("status") == ("ok" if then == "None" else "timeout"), found
    started = [int(one.stem) for one in tmp_path.glob("*.pid")]
    assert started
    assert wait_until(lambda: not any(map(runs, started)), 30)


@pytest.mark.mpi
def test_a_host_that_nobody_knows_is_why_no_ranks_can_be_started(tmp_path: Path) -> None:
    on = Launch(hosts=["no.such.host.invalid"])
    (found,) = launch.run("check", [job(RING, 2)], 2, deadline_s=60, on=on)
    assert found["status"] == "unsupported"
    assert re.fullmatch(r"params\.yaml, launch: no way from \S+ to host no\.such\.host\.invalid: .+", found["reason"])
