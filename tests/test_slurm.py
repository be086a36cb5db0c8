"""Slurm for real: a controller and two nodes on this machine, the files of cluster/ submitted as a user does."""

import json
import os
import re
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import PARAMS, Repo

pytestmark = [pytest.mark.slow, pytest.mark.slurm]

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "scancel")
CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket
SlurmctldPort={port}
ReturnToService=2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=pmi2
KillOnBadExit=1
KillWait=2
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={port1} CPUs=8 RealMemory=4000
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={port2} CPUs=8 RealMemory=4000
PartitionName=main Nodes=node1,node2 Default=YES MaxTime=INFINITE State=UP
"""

ROW = '''"""A ring that {what} on every rank but the first, in a world of more than one."""

import os
import time

from attn.impl import ring_v2_collective

KIND, DEVICES, DTYPES, MASKS, BACKWARD = "ring", ("cpu",), ("float32",), ("full", "causal"), True
LAYOUT = "contiguous"


def attention(q, k, v, *, softmax_scale, mask, comm):
    if comm.rank:
        {does}
    return ring_v2_collective.attention(q, k, v, softmax_scale=softmax_scale, mask=mask, comm=comm)
'''
ROWS = {"ring_dies": ("dies", "os._exit(7)"), "ring_hangs": ("hangs", "time.sleep(3600)")}


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on at this moment."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    found = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return found


@dataclass(frozen=True)
class Slurm:
    """A controller and two nodes."""

    folder: Path

    def environment(self) -> dict[str, str]:
        return {"SLURM_CONF": str(self.folder / "slurm.conf")}

    def ask(self, *command: str) -> str:
        """What a program of Slurm's prints; it must succeed."""
        done = subprocess.run(
            command, env={**os.environ, **self.environment()}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self) -> None:
        """Everything, until both nodes are idle."""
        host = socket.gethostname()
        ports = dict(zip(("port", "port1", "port2"), free_ports(3), strict=True))
        for name in ("munge", "run", "state", "log", "spool-node1", "spool-node2"):
            (self.folder / name).mkdir()
        (self.folder / "munge").chmod(0o700)
        (self.folder / "slurm.conf").write_text(CONFIG.format(host=host, folder=self.folder, **ports))
        key = self.folder / "munge" / "munge.key"
        key.write_bytes(secrets.token_bytes(128))
        key.chmod(0o400)
        munge = [f"--{what}-file={self.folder}/munge/munge.{what}" for what in ("key", "log", "seed")]
        self.ask(
            "munged",
            "--force",
            f"--socket={self.folder}/run/munge.socket",
            f"--pid-file={self.folder}/run/munged.pid",
            *munge,
        )
        self.ask("slurmctld", "-c")
        for node in ("node1", "node2"):
            self.ask("slurmd", "-N", node)
        until(lambda: self.ask("sinfo", "--noheader", "--format=%D %t").split() == ["2", "idle"], 60, "two idle nodes")

    def stop(self) -> None:
        """Nothing of it stays."""
        for name in ("slurmd-node1", "slurmd-node2", "slurmctld", "munged"):
            try:
                pid = int((self.folder / "run" / f"{name}.pid").read_text())
                os.kill(pid, 15)
            except (OSError, ValueError):
                continue
            until(lambda pid=pid: ended(pid), 30, f"the end of {name}")

    def submit(self, repo: Repo, *arguments: str) -> str:
        """The number of a job of cluster/slurm.sbatch."""
        done = repo.run("sbatch", "--parsable", *arguments, **self.environment())
        assert done.returncode == 0, done.stdout
        return done.stdout.strip().splitlines()[-1]

    def job(self, number: str) -> dict[str, str]:
        """What the controller knows of a job."""
        return dict(re.findall(r"(\w+)=(\S*)", self.ask("scontrol", "show", "job", number)))

    def wait(self, number: str, seconds: float) -> dict[str, str]:
        """The same, once it has ended."""
        busy = ("PENDING", "RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED")
        until(lambda: self.job(number)["JobState"] not in busy, seconds, f"the end of job {number}")
        return self.job(number)


def ended(pid: int) -> bool:
    """A zombie counts: whoever adopted it will see to it."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def until(true, seconds: float, what: str) -> None:
    """Fail where something does not come about."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"no sign of {what} within {seconds:g} s"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Slurm]:
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(
            f"{', '.join(missing)} are not installed here: `make test-slurm` installs Debian's slurm-wlm, as root"
        )
    if os.geteuid():
        pytest.skip("a controller of one's own is started as root here")
    cluster = Slurm(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture(scope="module")
def repo(source: Repo, tmp_path_factory: pytest.TempPathFactory) -> Repo:
    """One good ring and two bad ones, checked and measured on 2 ranks."""
    copy = source.copied_to(tmp_path_factory.mktemp("cluster") / "repo")
    text = PARAMS.replace("improved: true, sdpa", "sdpa").replace("seed: true, scaling: true", "seed: true")
    text = text.replace(
        "{ring_v2_collective: true}\n    grids: {seed: true}",
        f"{{ring_v2_collective: true, {', '.join(f'{name}: true' for name in ROWS)}}}\n    grids: {{ranks: true}}",
    )
    text = text.replace(
        "\nprotocol:", "\n  ranks:\n    seq_len: [64]\n    n_heads: [2]\n    world_size: [2]\nprotocol:"
    )
    text += "launch: {interface: lo}\n"  # both nodes are this machine, which knows neither by name
    (copy.path / "params.yaml").write_text(text.replace("deadline_s: 60", "deadline_s: 20"), encoding="utf-8")
    copy.edit("bench/jobs.py", "CHECKED_WORLD_SIZES = (1,)", "CHECKED_WORLD_SIZES = (2,)")
    for name, (what, does) in ROWS.items():
        (copy.path / f"attn/impl/{name}.py").write_text(ROW.format(what=what, does=does), encoding="utf-8")
    copy.commit("rings")
    return copy


@pytest.fixture(scope="module")
def first(slurm: Slurm, repo: Repo) -> str:
    """What the job printed that ran the pipeline on both nodes."""
    number = slurm.submit(repo, "--time=15", "cluster/slurm.sbatch")
    job = slurm.wait(number, 800)
    said = repo.read(f"attn-bench-{number}.log")
    assert (job["JobState"], job["ExitCode"], job["NumNodes"]) == ("COMPLETED", "0:0", "2"), said
    return said


def checked(repo: Repo, row: str) -> dict:
    return json.loads(repo.read(f"results/local/check/{row}.json"))


def test_a_ring_over_two_nodes_is_judged_and_measured(first: str, repo: Repo) -> None:
    report = checked(repo, "ring_v2_collective")
    assert report["status"] == "ok", report["reason"]
    assert {case["world_size"] for case in report["cases"] if case["status"] == "ok"} == {2}
    [record] = json.loads(repo.read("results/local/bench/ring_v2_collective-ranks.json"))
    assert (record["status"], record["world_size"]) == ("ok", 2), record["reason"]
    assert record["figures"]["time_ms"]["value"] > 0


@pytest.mark.parametrize(("row", "status"), [("ring_dies", "crashed"), ("ring_hangs", "timeout")])
def test_a_rank_that_dies_or_hangs_on_the_other_node_is_a_status(first: str, repo: Repo, row: str, status: str) -> None:
    report = checked(repo, row)
    assert report["status"] == status, report["reason"]
    [record] = json.loads(repo.read(f"results/local/bench/{row}-ranks.json"))
    assert (record["status"], record["figures"]) == (status, None)
    assert "rank 1 of 2 on node2 " in record["reason"]
    assert f"{row} ranks (2 heads, seq_len 64, float32, full, forward" in repo.bench("gate").stdout


def test_nothing_of_a_job_outlives_it(first: str, repo: Repo) -> None:
    from conftest import processes_of

    until(lambda: processes_of(repo.path) == [], 30, "the end of every process of the job")


def test_a_job_that_is_interrupted_says_so_and_the_next_goes_on(slurm: Slurm, first: str, repo: Repo) -> None:
    repo.edit("params.yaml", "n_heads: [2, 4]", "n_heads: [2, 4, 6]")
    number = slurm.submit(repo, "--time=15", "cluster/slurm.sbatch")
    log = repo.path / f"attn-bench-{number}.log"
    until(lambda: log.exists() and "Running stage 'bench_core" in log.read_text(), 400, "a bench stage")
    slurm.ask("scancel", "--signal=INT", "--batch", number)
    job = slurm.wait(number, 120)
    assert job["JobState"] == "FAILED", job
    assert "interrupted, by the time limit or by someone; what was measured is kept" in log.read_text()
    test_nothing_of_a_job_outlives_it(first, repo)
    number = slurm.submit(repo, "--time=15", "cluster/slurm.sbatch")
    assert slurm.wait(number, 800)["JobState"] == "COMPLETED"
    assert "Running stage 'probe@local'" in (said := repo.read(f"attn-bench-{number}.log"))
    assert "Running stage 'oracle_core@seed'" not in said
    assert len(json.loads(repo.read("results/local/bench/sdpa-seed.json"))) == 3


def test_one_job_a_stage_gives_what_one_job_gives(slurm: Slurm, first: str, repo: Repo, tmp_path: Path) -> None:
    """cluster/many.sh, on a change that two stages of measuring and no other depend on."""
    many = repo.copied_to(tmp_path / "many")
    many.edit("params.yaml", "    seq_len: [64]\n    n_heads: [2]", "    seq_len: [64]\n    n_heads: [4]")
    done = many.run("cluster/many.sh", "--time=10", **slurm.environment())
    assert done.returncode == 0, done.stdout
    numbers = dict(reversed(line.split(": ", 1)) for line in done.stdout.splitlines())
    assert "bench_ring@local-ring_v2_collective-ranks" in numbers
    states = {name: slurm.wait(number, 900)["JobState"] for name, number in numbers.items()}
    assert set(states.values()) == {"COMPLETED"}, states
    [record] = json.loads(many.read("results/local/bench/ring_v2_collective-ranks.json"))
    assert (record["status"], record["workload"]["n_heads"]) == ("ok", 4)
    again = many.repro()
    assert (again.code, again.stages) == (0, ["probe@local"]), again.output


def test_outside_a_clone_the_job_says_where_to_submit(slurm: Slurm, repo: Repo, tmp_path: Path) -> None:
    shutil.copy(repo.path / "cluster/slurm.sbatch", tmp_path)
    number = slurm.submit(Repo(tmp_path), "slurm.sbatch")
    assert slurm.wait(number, 60)["ExitCode"] == "2:0"
    said = (tmp_path / f"attn-bench-{number}.log").read_text()
    assert said == f"attn-bench: there is no dvc.yaml in {tmp_path}: submit from the root of a clone\n"
