"""Ranks that really start: the ring's results, what it sends, and what becomes of a rank that fails."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, measure_job, processes_of

from attn import registry
from attn.contract import Workload
from bench import cases, launch

pytestmark = pytest.mark.mpi

RING = registry.IMPL_DIR / "ring_v2_collective.py"
DEADLINE_S = 20
NO_REAL = "^(?!.*real)"  # a fresh clone has captured nothing yet
SHARED = Path("/dev/shm")  # where MPICH keeps its segments

FAULTY = '''"""Right, after a fault of rank 1."""
import os, signal, time
from attn.contract import Mask
from attn.impl.ring_v2_collective import attention as right

KIND, DEVICES, DTYPES, MASKS, BACKWARD = "ring", ("cpu",), ("float32",), ("full",), False


def attention(q, k, v, *, softmax_scale, mask, comm):
    if comm.rank == 1:
        {fault}
    return right(q, k, v, softmax_scale=softmax_scale, mask=mask, comm=comm)
'''
FAULTS = {
    "raise": ("raise ValueError('rank 1 has enough')", "crashed", "ValueError: rank 1 has enough"),
    "exit": ("os._exit(3)", "crashed", "2 ranks ended with exit code"),
    "kill": ("os.kill(os.getpid(), signal.SIGKILL)", "crashed", "2 ranks ended with exit code"),
    "hang": ("time.sleep(600)", "timeout", f"within their deadline of {DEADLINE_S} s"),
}


def check_job(path: Path, world_size: int, *workloads: Workload) -> dict[str, Any]:
    asked = [workload.as_dict() for workload in workloads]
    job = {"implementation": str(path), "device": "cpu", "threads": 1, "seed": 7, "only": NO_REAL}
    return {**job, "world_size": world_size, "workloads": asked}


@pytest.fixture(scope="module")
def truths(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Every case of rings but those of real inputs, solved once for all numbers of ranks."""
    folder = tmp_path_factory.mktemp("truths")
    made_up = [case for case in cases.all_cases("ring") if re.search(NO_REAL, case.name)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "all_cases", lambda _: iter(made_up))
        cases.solve_cases({"kind": "ring", "folder": str(folder), "seed": 7, "threads": 1})
    return str(folder)


def segments() -> set[str]:
    return {path.name for path in SHARED.glob("mpich*")}


@pytest.mark.parametrize("world_size", [1, 2, pytest.param(4, marks=pytest.mark.slow)])
def test_the_collective_ring_is_right_in_every_case(world_size: int, truths: str) -> None:
    job = {**check_job(RING, world_size), "truths": truths}
    (result,) = launch.run("check", [job], world_size, deadline_s=300)
    assert result["status"] == "ok", result
    wrong = [case for case in result["cases"] if case["status"] != "ok"]
    assert not wrong
    assert len(result["cases"]) > 30


@pytest.mark.parametrize("world_size", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_what_is_counted_as_sent_is_what_the_schedule_says(world_size: int, tmp_path: Path) -> None:
    cells = [
        Workload(2, length, 4, 2, 16, dtype, "causal", pass_)
        for length, dtype in ((64, "float32"), (65, "bfloat16"))
        for pass_ in ("forward", "forward_backward")
    ]
    jobs = [measure_job(RING, cell, tmp_path, world_size) for cell in cells]
    results = list(launch.run("measure", jobs, world_size, deadline_s=120))
    for cell, result in zip(cells, results, strict=True):
        assert result["status"] == "ok", result
        numbers = 2 * cell.batch * -(-cell.seq_len // world_size) * cell.n_kv_heads * cell.head_dim  # of k and v
        forward = (world_size - 1) * numbers * (4 if cell.dtype == "float32" else 2)
        # backward, k and v travel again, and dk and dv in float32
        backward = forward + (world_size - 1) * numbers * 4 if cell.backward else 0
        assert result["payload_bytes"] == forward + backward, cell.key
        assert result["messages"] == (world_size - 1) * (3 if cell.backward else 1), cell.key


def test_one_rank_sends_nothing(tmp_path: Path) -> None:
    cell = Workload(1, 33, 2, 2, 16, "float32", "full", "forward_backward")
    (result,) = launch.run("measure", [measure_job(RING, cell, tmp_path, 1)], 1, deadline_s=120)
    assert (result["status"], result["payload_bytes"], result["messages"]) == ("ok", 0, 0)


@pytest.fixture(scope="module")
def after_faults(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[dict[str, Any], float, dict[str, Any]]]:
    """Of each fault: its result, the seconds that it took, and the result of the healthy job after it."""
    folder, before = tmp_path_factory.mktemp("ranks"), segments()
    cell = Workload(1, 33, 2, 2, 16, "float32", "full", "forward")
    jobs = []
    for name, (fault, *_) in FAULTS.items():
        path = folder / f"{name}.py"
        path.write_text(FAULTY.format(fault=fault), encoding="utf-8")
        jobs += [check_job(path, 2, cell), check_job(RING, 2, cell)]
    for job in jobs:
        job["only"] = "_s000003_"  # few cases: a deadline is tested, not attention
    for job in jobs[1::2]:
        job["implementation"] = str(folder / "healthy.py")
    (folder / "healthy.py").write_text(FAULTY.format(fault="pass"), encoding="utf-8")
    results, seconds, start = [], [], time.monotonic()
    for result in launch.run("check", jobs, 2, deadline_s=DEADLINE_S):
        results.append(result)
        seconds.append(time.monotonic() - start)
        start = time.monotonic()
    found = {name: (results[2 * i], seconds[2 * i], results[2 * i + 1]) for i, name in enumerate(FAULTS)}
    end = time.monotonic() + 5
    while (processes_of(folder) or _ranks() or segments() - before) and time.monotonic() < end:
        time.sleep(0.05)
    left = {"ranks": _ranks() + processes_of(folder), "segments": sorted(segments() - before)}
    return {**found, "left": ({"status": "left", **left}, 0.0, {})}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failing_rank_is_a_status_within_the_deadline_and_the_next_job_runs(fault: str, after_faults: Any) -> None:
    result, seconds, following = after_faults[fault]
    _, status, words = FAULTS[fault]
    assert result["status"] == status, result
    assert words in result["reason"]
    assert "\n" not in result["reason"]
    assert seconds < DEADLINE_S + 5
    assert following["status"] == "ok", following
    assert {case["status"] for case in following["cases"]} == {"ok"}


def test_failed_ranks_leave_no_process(after_faults: Any) -> None:
    assert after_faults["left"][0]["ranks"] == []


def test_failed_ranks_leave_no_shared_memory(after_faults: Any) -> None:
    assert after_faults["left"][0]["segments"] == []


def test_a_world_of_another_size_is_an_error_and_no_result(tmp_path: Path) -> None:
    cell = Workload(1, 33, 2, 2, 16, "float32", "full", "forward")
    asked = {"task": "check", "jobs": [check_job(RING, 2, cell)], "world_size": 2, "deadline_s": 60, "memory_bytes": 0}
    (tmp_path / "jobs.json").write_text(json.dumps(asked), encoding="utf-8")
    mpiexec = launch.find_mpiexec()
    assert mpiexec is not None
    command = [mpiexec, "-n", "1", sys.executable, "-m", "mpi4py", "-m", "bench.ring_worker", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode != 0
    assert "mpiexec started a world of 1 ranks, asked for 2" in done.stdout + done.stderr
    assert not (tmp_path / "0.json").exists()


def test_without_mpiexec_every_job_is_unsupported_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "find_mpiexec", lambda: None)
    results = list(launch.run("check", [check_job(RING, 2)] * 3, 2, deadline_s=5))
    reason = "no mpiexec beside this python nor on PATH: pip install mpich"
    assert results == [{"status": "unsupported", "reason": reason}] * 3


def _ranks() -> list[str]:
    """Ranks, wherever they came from, whose folder is gone: nobody waits for them any more."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        if "bench.ring_worker" in words and not Path(words[words.index("bench.ring_worker") + 1]).exists():
            found.append(f"{process.name} {' '.join(words)}")
    return found
