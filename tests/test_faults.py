"""Real faults: whatever an implementation does to its process, and whatever happens to a running pipeline."""

import ctypes
import json
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import Repo, measure_job, processes_of
from filelock import FileLock
from hosts import runs
from ranks import wait_until

from attn.contract import Workload
from bench import worker
from bench.lock import LOCK

WORKLOAD = Workload(1, 8, 2, 2, 16, "float32", "full", "forward")
HEALTHY = "pass"
GIB = 1 << 30
LARGE = 3 * GIB // 2


def implementation(folder: Path, name: str, *before: str) -> Path:
    """A right implementation that first does something else."""
    lines = [
        "import ctypes, os, pathlib, signal, subprocess, sys, threading, time, torch",
        "from torch.nn.functional import scaled_dot_product_attention",
        'KIND, DEVICES, DTYPES = "core", ("cpu",), ("float32",)',
        'MASKS, BACKWARD = ("full",), False',
        "KEPT = []",
        "def attention(q, k, v, *, softmax_scale, mask):",
        *(f"    {line}" for line in before),
        "    q, k, v = (x.transpose(1, 2) for x in (q, k, v))",
        "    return scaled_dot_product_attention(q, k, v, scale=softmax_scale).transpose(1, 2)",
    ]
    path = folder / f"{name}.py"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def checked(path: Path, **limits: Any) -> dict[str, Any]:
    """The task `check` in a process of its own, on one workload; its status if it got that far."""
    job = {"implementation": str(path), "device": "cpu", "threads": 1, "seed": 7, "world_size": 1}
    asked = {**job, "workloads": [WORKLOAD.as_dict()], "only": "no named case"}
    result = worker.isolated("check", asked, **{"deadline_s": 60, **limits})
    if result["status"] != "ok":
        return result
    assert result["cases"][-1]["case"] == WORKLOAD.key
    return dict(result["cases"][-1])


def assert_healthy_next(folder: Path) -> None:
    """The worker's server still serves."""
    assert checked(implementation(folder, "healthy", HEALTHY))["status"] == "ok"


def assert_one_line(reason: str) -> None:
    assert reason.strip()
    assert "\n" not in reason
    assert len(reason) < 600


FAULTS = {
    "segfault": ("ctypes.string_at(0)", "killed by SIGSEGV"),
    "abort": ("os.abort()", "killed by SIGABRT"),
    "kill": ("os.kill(os.getpid(), signal.SIGKILL)", "killed by SIGKILL"),
    "_exit": ("os._exit(7)", "ended with exit code 7 and no result"),
    "_exit_0": ("os._exit(0)", "ended with exit code 0 and no result"),
    "sys_exit": ("sys.exit(3)", "ended with exit code 3 and no result"),
    "raise": ("raise ValueError('one\\ntwo')", r"ValueError: two \(faulty\.py:7\)"),
    "raise_nothing": ("assert False", r"AssertionError: AssertionError \(faulty\.py:7\)"),
    "interrupt": ("raise KeyboardInterrupt", "KeyboardInterrupt"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_crashed_with_its_cause_and_the_next_job_runs(fault: str, tmp_path: Path) -> None:
    line, words = FAULTS[fault]
    result = checked(implementation(tmp_path, "faulty", line))
    assert result["status"] == "crashed"
    assert re.search(words, result["reason"]), result["reason"]
    assert_one_line(result["reason"])
    assert_healthy_next(tmp_path)


def test_the_last_output_before_a_death_is_in_its_reason(tmp_path: Path) -> None:
    result = checked(implementation(tmp_path, "faulty", "print('the tank is', flush=True)", "os._exit(1)"))
    assert result["reason"].startswith("ended with exit code 1 and no result; last output: case b01_h02_s000008")
    assert result["reason"].endswith("| the tank is")


def test_a_hang_is_a_timeout_at_its_deadline(tmp_path: Path) -> None:
    start = time.monotonic()
    line = "signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    result = checked(implementation(tmp_path, "faulty", line), deadline_s=3)
    assert result == {"status": "timeout", "reason": "no result within its deadline of 3 s"}
    assert 3 <= time.monotonic() - start < 30
    assert_healthy_next(tmp_path)


@pytest.mark.parametrize("line", [f"bytearray({LARGE})", f"torch.empty({LARGE}, dtype=torch.int8)"])
def test_more_memory_than_allowed_is_out_of_memory(line: str, tmp_path: Path) -> None:
    path = implementation(tmp_path, "faulty", line)
    result = checked(path, memory_bytes=GIB)
    assert result["status"] == "out_of_memory", result
    assert_one_line(result["reason"])
    assert_healthy_next(tmp_path)
    modest = implementation(tmp_path, "modest", line.replace(str(LARGE), "9"))
    assert checked(modest, memory_bytes=GIB)["status"] == "ok", "the limit itself kills"


_HEAP = (
    "size = ctypes.c_size_t * 10  # struct mallinfo2 of malloc.h: 0 is the heap, 4 what is mapped apart",
    "info = ctypes.CDLL(None).mallinfo2",
    "info.restype = type('Info', (ctypes.Structure,), {'_fields_': [('all', size)]})",
    "before, mapped = list(info().all), []",
    "def take():",
    "    x = torch.empty(64 << 18)",
    "    mapped.append(info().all[4] - before[4])",
    "thread = threading.Thread(target=take)",
    "thread.start() if in_thread else take()",
    "in_thread and thread.join()",
    "raise ValueError(f'mapped {mapped[0] >> 20}, heap grown by {info().all[0] - before[0] >> 20} MiB')",
)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="no glibc, or one before 2.33")
@pytest.mark.parametrize("in_thread", [False, True])
@pytest.mark.parametrize("keep", [True, False])
def test_a_timed_process_takes_memory_from_its_heap_and_keeps_it_there(
    keep: bool, in_thread: bool, tmp_path: Path
) -> None:
    row = implementation(tmp_path, "faulty", f"in_thread = {in_thread}", *_HEAP)
    job = measure_job(row, WORKLOAD, tmp_path)
    job["protocol"] = {**job["protocol"], "keep_memory": keep}
    reason = worker.isolated("measure", job, deadline_s=60)["reason"]
    found = re.search(r"mapped (\d+), heap grown by (\d+) MiB", reason)
    assert found, reason
    mapped, grown = map(int, found.groups())
    assert (mapped, grown >= 32) == ((0, True) if keep else (64, False))


def test_memory_that_no_limit_forbids_is_no_fault(tmp_path: Path) -> None:
    path = implementation(tmp_path, "large", f"bytearray({LARGE})")  # zeros that nobody touches take no memory
    assert checked(path)["status"] == "ok"


def test_a_megabyte_of_output_holds_nothing_up(tmp_path: Path) -> None:
    lines = ("for _ in range(1000): print('x' * 1000); print('y' * 1000, file=sys.stderr)",)
    assert checked(implementation(tmp_path, "talker", *lines))["status"] == "ok"
    died = checked(implementation(tmp_path, "died", *lines, "os._exit(1)"))
    assert died["status"] == "crashed"
    assert_one_line(died["reason"])


def test_a_thread_left_behind_is_incorrect_and_holds_nothing_up(tmp_path: Path) -> None:
    start = time.monotonic()
    line = "threading.Thread(target=time.sleep, args=(600,), name='late').start()"
    result = checked(implementation(tmp_path, "threads", line))
    assert (result["status"], result["reason"]) == ("incorrect", "still at work after it returned: thread late")
    assert time.monotonic() - start < 60
    assert_healthy_next(tmp_path)


@pytest.mark.parametrize("end", [HEALTHY, "os._exit(1)", "time.sleep(600)"])
def test_a_child_process_left_behind_is_gone_afterwards(end: str, tmp_path: Path) -> None:
    note = tmp_path / "child"
    line = f"pathlib.Path({str(note)!r}).write_text(str(subprocess.Popen(['sleep', '600']).pid))"
    checked(implementation(tmp_path, "parent", line, end), deadline_s=5)
    child = int(note.read_text(encoding="ascii"))
    assert wait_until(lambda: not runs(child), 5), "it still runs"
    assert_healthy_next(tmp_path)


@pytest.mark.parametrize("child", ["", "if not KEPT[0]: os._exit(0)"])
def test_a_fork_is_incorrect_and_its_copy_answers_nobody(child: str, tmp_path: Path) -> None:
    """The copy runs all that its parent does, up to the result that it would hand in as well; or it ends at once."""
    path = implementation(tmp_path, "forks", "if not KEPT: KEPT.append(os.fork())", child or HEALTHY)
    reason = "forked: copies of its process ran beside it (1)"
    result = worker.isolated("measure", measure_job(path, WORKLOAD, tmp_path), deadline_s=60)
    assert (result["status"], result.get("reason")) == ("incorrect", reason)
    result = checked(path)
    assert (result["status"], result.get("reason")) == ("incorrect", reason)
    assert_healthy_next(tmp_path)


def test_a_subprocess_is_no_fork(tmp_path: Path) -> None:
    path = implementation(tmp_path, "starts", "subprocess.run(['true'])")
    assert checked(path)["status"] == "ok"


def test_changed_inputs_are_incorrect(tmp_path: Path) -> None:
    result = checked(implementation(tmp_path, "changes", "k.mul_(1.0001)"))
    assert result["status"] == "incorrect"
    assert result["reason"].startswith("its inputs (k) were changed by the call; out is off")


@pytest.mark.parametrize("key", ["0", "q.data_ptr()", "(q._version, v._version)"])
def test_an_output_kept_from_the_first_call_is_incorrect_when_timed(key: str, tmp_path: Path) -> None:
    path = implementation(
        tmp_path,
        "keeps",
        f"found = [out for kept, out in KEPT if kept == {key}]",
        "if found: return found[0]",
        f"KEPT.append(({key}, _compute(q, k, v, softmax_scale)))",
        "return KEPT[-1][1]",
    )
    with path.open("a", encoding="utf-8") as file:
        file.write(
            "def _compute(q, k, v, scale):\n    q, k, v = (x.transpose(1, 2) for x in (q, k, v))\n"
            "    return scaled_dot_product_attention(q, k, v, scale=scale).transpose(1, 2)\n"
        )
    assert checked(path)["reason"].startswith("on other inputs in the same buffers: out is off")
    result = worker.isolated("measure", measure_job(path, WORKLOAD, tmp_path), deadline_s=60)
    assert result["status"] == "incorrect", result
    assert result["reason"].startswith("in a timed call: out is off by")
    honest = measure_job(implementation(tmp_path, "honest", HEALTHY), WORKLOAD, tmp_path)
    assert worker.isolated("measure", honest, deadline_s=60)["status"] == "ok"


TARGET = "bench_core@local-improved-seed"


@pytest.fixture
def amid_bench(tiny: Repo) -> Iterator[subprocess.Popen[bytes]]:
    """A `dvc repro` that has measured one of the two cells of a bench stage and takes 8 s for the other."""
    for old, new in (("  samples: 5", "  samples: 100000"), ("sample_ms: 1", "sample_ms: 20"), ("_s: 1\n", "_s: 8\n")):
        tiny.edit("params.yaml", old, new)
    with (tiny.path.parent / "log").open("wb") as log:
        process = subprocess.Popen(
            ["dvc", "repro", TARGET], cwd=tiny.path, env=tiny.environment(), stdin=subprocess.DEVNULL, stdout=log,
            stderr=log, start_new_session=True,
        )  # fmt: skip
    try:
        kept = wait_until(lambda: list(tiny.path.glob(".scratch/cells/*/*.json")), 600)
        log_text = (tiny.path.parent / "log").read_text(encoding="utf-8")
        assert kept, log_text
        assert process.poll() is None, log_text
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@pytest.mark.pipeline
def test_a_killed_pipeline_leaves_no_process_and_goes_on_with_what_was_measured(
    amid_bench: subprocess.Popen[bytes], tiny: Repo
) -> None:
    assert len(processes_of(tiny.path)) >= 3, "dvc, its stage and the stage's worker"
    amid_bench.kill()
    amid_bench.wait()
    assert wait_until(lambda: not processes_of(tiny.path), 5), processes_of(tiny.path)
    assert not (tiny.path / "results/local/bench/improved-seed.json").exists(), "half a record"
    again = tiny.repro(TARGET)
    assert again.code == 0, again.output
    assert again.stages == ["probe@local", TARGET]
    assert len(re.findall(r"improved-seed-\S+ kept from before", again.output)) == 1, again.output
    assert tiny.repro(TARGET).stages == ["probe@local"]
    forced = tiny.repro("--force", "--single-item", TARGET)
    assert "kept from before" not in forced.output, "what was kept is used once"


@pytest.mark.pipeline
def test_a_pipeline_killed_before_it_knows_a_record_measures_nothing_twice(tiny: Repo) -> None:
    """The stage has written its record; dvc, which would note it down, is gone."""
    tiny.edit("params.yaml", "  samples: 5", "  samples: 6")
    stage = (sys.executable, "-m", "stages.bench", "core", "local", "improved", "seed")
    measured = re.compile(r"improved-seed-\S+ process 0: ")
    assert len(measured.findall(tiny.run(*stage).stdout)) == 2
    before = tiny.read("results/local/bench/improved-seed.json")
    again = tiny.repro(TARGET)
    assert again.stages == ["probe@local", TARGET]
    assert len(re.findall(r"improved-seed-\S+ kept from before", again.output)) == 2, again.output
    assert not measured.search(again.output)
    samples = [record["processes"][0]["series"] for record in json.loads(before)]
    now = json.loads(tiny.read("results/local/bench/improved-seed.json"))
    assert [record["processes"][0]["series"] for record in now] == samples
    forced = tiny.repro("--force", "--single-item", TARGET)
    assert len(measured.findall(forced.output)) == 2, "dvc knows the record: a run that is asked for measures"


@pytest.mark.pipeline
def test_an_interrupted_pipeline_leaves_no_process(amid_bench: subprocess.Popen[bytes], tiny: Repo) -> None:
    os.killpg(amid_bench.pid, signal.SIGINT)  # as Ctrl-C does: dvc and its stage
    assert amid_bench.wait(15) != 0
    assert wait_until(lambda: not processes_of(tiny.path), 5), processes_of(tiny.path)
    assert "interrupted; what was measured is kept, run `dvc repro` to go on" in (tiny.path.parent / "log").read_text(
        encoding="utf-8"
    )


@pytest.mark.pipeline
def test_a_second_measurement_waits_for_the_first_and_says_so(tiny: Repo) -> None:
    lock = FileLock(LOCK.format(device="cpu"), mode=0o666)
    with lock.acquire(timeout=600):
        second = subprocess.Popen(
            [sys.executable, "-m", "stages.ceiling", "local"], cwd=tiny.path, env=tiny.environment(),
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            assert second.stderr is not None
            said = select.select([second.stderr], [], [], 60)[0]
            line = second.stderr.readline() if said else "nothing within 60 s"
            assert line == f"another measurement holds {lock.lock_file}; waiting for it to end\n"
            assert second.poll() is None
        except BaseException:
            second.kill()
            second.communicate()
            raise
    assert second.communicate(timeout=600)[0] == ""
    assert second.returncode == 0


@pytest.mark.parametrize("asked", ["stages.plan", "bench.forkserver"])
def test_who_is_started_by_one_that_is_gone_ends_at_once(asked: str) -> None:
    """Between its start and its asking to die with whoever started it, that one may be killed."""
    gone = {"DVC_STAGE": "plan", "ATTN_BENCH_SERVER_OF": "1" if os.getppid() != 1 else "2"}
    done = subprocess.run(
        [sys.executable, "-c", f"import {asked} as it; it.main()"], env=os.environ | gone, timeout=60, check=False,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
