"""Duels that really run: workers and what becomes of them, verdicts of the command, signals."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, Repo, measure_job, processes_of
from made import PARAMS
from ranks import wait_until

from attn.contract import Workload
from bench import duel_pairs, grid
from bench.duel import Duel
from bench.duel_pairs import Failed, Server, Slices, Whole, Worker, alone, launched
from bench.worktrees import Side

WORKLOAD = Workload(1, 8, 2, 2, 16, "float32", "full", "forward")
DEADLINE_S = 5.0
FAULTS = {
    "segfault": ("ctypes.string_at(0)", "crashed", "killed by SIGSEGV"),
    "exit": ("os._exit(7)", "crashed", "ended with exit code 7 and no result; last output: the tank is"),
    "raise": ("raise ValueError('enough')", "crashed", "ValueError: enough (faulty.py:"),
    "hang": ("time.sleep(600)", "timeout", "no result within its deadline of 5 s"),
    "unsupported": ("raise Unsupported('not today')", "unsupported", "not today"),
    "wrong": ("v = v * 1.01", "incorrect", "out is off by"),
    "changes": ("v.mul_(1.0)[0, 0] += 1", "incorrect", "its inputs (v) were changed by the call"),
    "cached": ("v = KEPT[0] if KEPT else (KEPT.append(v.clone()) or v)", "incorrect", "in a timed call: out is off"),
    "memory": ("torch.ones(3 << 28)", "out_of_memory", "memory"),
}


def faulty(folder: Path, line: str) -> Path:
    """A right implementation that first does something else."""
    lines = [
        '"""Right, but for one line."""',
        "import ctypes, os, subprocess, time, torch",
        "from torch.nn.functional import scaled_dot_product_attention",
        "from attn.contract import Unsupported",
        'KIND, DEVICES, DTYPES, MASKS, BACKWARD = "core", ("cpu",), ("float32",), ("full",), False',
        "KEPT = []",
        "def attention(q, k, v, *, softmax_scale, mask):",
        "    print('the tank is', flush=True)",
        f"    {line}",
        "    q, k, v = (x.transpose(1, 2) for x in (q, k, v))",
        "    return scaled_dot_product_attention(q, k, v, scale=softmax_scale).transpose(1, 2)",
    ]
    path = folder / "faulty.py"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Side, Side]:
    """Two sides with the attn and the bench of this work tree."""
    made = []
    for name in ("base", "head"):
        overlay = tmp_path_factory.mktemp(name).resolve()
        for package in ("attn", "bench"):
            (overlay / package).symlink_to(ROOT / package)
        made.append(Side(name, name, "", overlay, ROOT))
    return made[0], made[1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, both: tuple[Side, Side]) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("server"), DEADLINE_S, memory_bytes=2 << 30) as one:
        yield one
    assert processes_of(both[0].overlay) + processes_of(both[1].overlay) == []


@pytest.fixture
def short_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duel_pairs, "SLICE_MS", 1.0)


def job(folder: Path, side: Side, number: int) -> dict[str, Any]:
    path = side.overlay / "attn" / "impl" / "sdpa.py"
    return {**measure_job(path, WORKLOAD, folder), "process": number}


def whole_life(server: Server, side: Side, told: dict[str, Any]) -> None:
    with Worker(server, side) as one:
        one.ask("prepare", job=told)
        one.ask("slice", calls=2)
        one.ask("end")


def test_a_duel_keeps_freed_memory_whatever_the_tables_do(both: tuple[Side, Side]) -> None:
    params = grid.load(PARAMS)
    params = params.model_copy(update={"protocol": params.protocol.model_copy(update={"keep_memory": False})})
    duel = Duel(params, {"device": "cpu", "threads": 2}, both, 40, "wall")
    told = duel.job(grid.cells(params, "core", "sdpa", "seed")[0], both[0], 0)
    assert told["protocol"]["keep_memory"] is True


@pytest.mark.usefixtures("short_slices")
@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_a_worker_does_is_a_reason_and_the_next_one_works(
    fault: str, server: Server, both: tuple[Side, Side], tmp_path: Path
) -> None:
    line, status, words = FAULTS[fault]
    told = measure_job(faulty(tmp_path, line), WORKLOAD, tmp_path)
    with pytest.raises(Failed) as failed:
        whole_life(server, both[1], told)
    assert failed.value.status == status
    assert str(failed.value).startswith(f"head (head): {status}: ")
    assert words in str(failed.value)
    assert "\n" not in str(failed.value)
    assert alone(server, both[1], partial(job, tmp_path), "wall", 1) > 0


def test_a_fault_of_one_worker_leaves_the_other_side_alone(
    server: Server, both: tuple[Side, Side], tmp_path: Path
) -> None:
    with Worker(server, both[0]) as healthy:
        healthy.ask("prepare", job=job(tmp_path, both[0], 1))
        with pytest.raises(Failed):
            whole_life(server, both[1], measure_job(faulty(tmp_path, "os._exit(1)"), WORKLOAD, tmp_path))
        assert healthy.ask("slice", calls=1)["wall"] > 0
        healthy.ask("end")


def test_a_process_that_a_worker_leaves_behind_is_gone_with_it(
    server: Server, both: tuple[Side, Side], tmp_path: Path
) -> None:
    def asleep() -> list[str]:
        return [found for found in processes_of(both[0].overlay) if "sleep" in found]

    line = "subprocess.Popen(['setsid', 'sleep', '600'])"
    with Worker(server, both[0]) as one:
        one.ask("prepare", job=measure_job(faulty(tmp_path, line), WORKLOAD, tmp_path))
        assert asleep()
    assert wait_until(lambda: not asleep(), 5)


@pytest.mark.usefixtures("short_slices")
@pytest.mark.parametrize("clock", ["wall", "cpu"])
def test_a_pair_takes_turns_in_balanced_blocks_of_the_same_number_of_calls(
    clock: str, server: Server, both: tuple[Side, Side], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duel_pairs, "BLOCKS", 4)
    slices = Slices(server, both, partial(job, tmp_path), clock, random.Random(0))
    assert slices.calibrate(10) > 0
    found = slices(1)
    assert len(found.blocks) == 4
    assert {order for order, *_ in found.blocks} <= {"ABBA", "BAAB"}
    assert all(len(times) == 4 and min(times) > 0 for _, *both_clocks in found.blocks for times in both_clocks)
    assert found.base_ms > 0 < found.head_ms


@pytest.mark.usefixtures("short_slices")
def test_injected_calls_are_really_made_on_one_side_only(
    server: Server, both: tuple[Side, Side], tmp_path: Path
) -> None:
    """Each call writes a letter into the file of its process."""
    told = measure_job(
        faulty(tmp_path, f"open({str(tmp_path)!r} + f'/{{os.getpid()}}', 'a').write('.')"), WORKLOAD, tmp_path
    )
    slices = Slices(server, both, lambda side, n: {**told, "process": n}, "wall", random.Random(0), extra=(3, 4))
    slices.calibrate(10)
    assert slices.calls % 4 == 0
    for path in tmp_path.glob("[0-9]*"):
        path.unlink()
    with ExitStack() as stack:
        workers, _ = slices._prepared(stack, 1)
        before = written(tmp_path)
        slices._block(workers)
        grown = sorted(after - before[pid] for pid, after in written(tmp_path).items())
    assert grown == [2 * slices.calls, 2 * slices.calls * 7 // 4]


def written(folder: Path) -> dict[str, int]:
    """Letters in the files that are named by process ids."""
    return {path.name: path.stat().st_size for path in folder.glob("[0-9]*")}


def test_a_slow_call_makes_fewer_blocks(
    server: Server, both: tuple[Side, Side], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duel_pairs, "PAIR_S", 1.5)
    told = measure_job(faulty(tmp_path, "time.sleep(0.1)"), WORKLOAD, tmp_path)
    slices = Slices(server, both, lambda _, number: {**told, "process": number}, "wall", random.Random(0))
    assert slices.calibrate(100) > 0.8
    assert slices.calls == 1
    assert len(slices(1).blocks) in (2, 3)
    slices.calibrate(0.1)
    assert len(slices(2).blocks) == 2


def test_each_side_imports_its_own_attn(server: Server, both: tuple[Side, Side], tmp_path: Path) -> None:
    """A row asks where its kernels come from; only the other side's are wrong."""
    line = "from attn.kernels import block; assert '/base' in block.__file__, block.__file__"
    told = measure_job(faulty(tmp_path, line), WORKLOAD, tmp_path)
    whole_life(server, both[0], told)
    with pytest.raises(Failed, match=r"head \(head\): crashed: AssertionError: .*/attn/kernels/block\.py"):
        whole_life(server, both[1], told)


def test_a_side_that_does_not_fit_this_bench_says_so(server: Server, tmp_path: Path) -> None:
    (tmp_path / "attn").mkdir()
    old = Side("base", "old", "1" * 40, tmp_path.resolve(), tmp_path)
    words = r"base \(old \(1111111\)\): crashed: its attn does not fit the bench of the work tree: ImportError"
    with pytest.raises(Failed, match=words):
        whole_life(server, old, job(tmp_path, old, 1))


def test_a_server_that_cannot_start_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duel_pairs.closure, "ROOT", tmp_path)
    with pytest.raises(Failed, match=r"the server of workers: crashed: it is gone; last output: .*No module named"):
        Server(tmp_path, DEADLINE_S, 0).__enter__()


@pytest.mark.mpi
def test_rings_are_compared_in_whole_launches(both: tuple[Side, Side], tmp_path: Path) -> None:
    def ring_job(side: Side, number: int) -> dict[str, Any]:
        path = side.overlay / "attn" / "impl" / "ring_v2_collective.py"
        told = {"process": number, "reference": str(tmp_path / "none.py")}
        return {**measure_job(path, Workload(1, 33, 2, 2, 16, "float32", "full", "forward"), tmp_path), **told}

    base, head = (partial(launched, side, ring_job, deadline_s=60, memory_bytes=0) for side in both)
    found = Whole(base, head, random.Random(0))(1)
    assert found.base_ms > 0 < found.head_ms
    assert found.blocks[0][0] in ("AB", "BA")


SMALLER = {  # a difference below 30 % is none: slices are too short to tell
    "bench/duel_pairs.py": "\n\nSLICE_MS, BLOCKS = 2.0, 2\n",
    "bench/duel.py": "\n\nMATTERS, ALIKE = 30.0, 40.0\n",
}
TENFOLD = '''

_once = attention


def attention(q, k, v, *, softmax_scale, mask):
    """Ten times the work."""
    for _ in range(9):
        _once(q, k, v, softmax_scale=softmax_scale, mask=mask)
    return _once(q, k, v, softmax_scale=softmax_scale, mask=mask)
'''
WRONG = '''

_right = attention


def attention(q, k, v, *, softmax_scale, mask):
    """Off by a hundredth."""
    return 1.01 * _right(q, k, v, softmax_scale=softmax_scale, mask=mask)
'''
ONE_CELL = "^improved-seed-b01_h02"


@pytest.fixture
def repo(source: Repo, tmp_path: Path) -> Repo:
    """The tiny repository, in which a duel takes short slices; and a folder for its temporary files."""
    copy = source.copied_to(tmp_path.resolve() / "repo")
    for name, text in SMALLER.items():
        append(copy, name, text)
    copy.commit("smaller")
    (tmp_path / "tmp").mkdir()
    return copy


def append(repo: Repo, name: str, text: str) -> None:
    with (repo.path / name).open("a", encoding="utf-8") as file:
        file.write(text)


def duelled(repo: Repo, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`python -m bench duel ...`, stdout and stderr apart; nothing is left of it."""
    done = subprocess.run(
        [sys.executable, "-m", "bench", "duel", *arguments], cwd=repo.path, env=environment(repo), text=True,
        timeout=600, check=False, stdin=subprocess.DEVNULL, capture_output=True,
    )  # fmt: skip
    assert wait_until(lambda: not left(repo), 5), (left(repo), done.stderr)
    assert repo.git("status", "--porcelain", "--ignored", "--", "data", "results") == ""
    return done


def environment(repo: Repo) -> dict[str, str]:
    return repo.environment(TMPDIR=str(repo.path.parent / "tmp"))


def left(repo: Repo) -> list[str]:
    """Worktrees besides the main one, temporary files, and processes."""
    worktrees = repo.git("worktree", "list").splitlines()[1:]
    return worktrees + [path.name for path in (repo.path.parent / "tmp").iterdir()] + processes_of(repo.path.parent)


@pytest.mark.pipeline
def test_a_row_that_does_ten_times_the_work_is_slower(repo: Repo) -> None:
    append(repo, "attn/impl/improved.py", TENFOLD)  # not committed: the work tree is seen as it is
    done = duelled(repo, "HEAD", "--cells", ONE_CELL, "--json")
    assert done.returncode == 1, done.stderr + done.stdout
    document = json.loads(done.stdout)
    (cell,) = [one for one in document["cells"] if one["verdict"] != "skipped"]
    assert cell["verdict"] == "slower"
    assert cell["change_percent"]["low"] > 30
    assert (document["head"]["commit"], document["exit_code"]) == (None, 1)
    assert len(cell["pairs"]) >= 8
    back = duelled(repo, "HEAD", "--cells", ONE_CELL, "--clock", "cpu")
    assert back.returncode == 1, back.stderr
    assert re.search(rf"{ONE_CELL}\S+ +[\d.]+ +[\d.]+ +\+\d+\.\d \[.+\] +slower +(8|12|16) ", back.stdout, re.MULTILINE)
    assert "the work tree is slower than HEAD (" in back.stdout


@pytest.mark.pipeline
def test_a_row_that_is_wrong_on_one_side_cannot_be_compared(repo: Repo) -> None:
    append(repo, "attn/impl/improved.py", WRONG)
    repo.commit("wrong")
    done = duelled(repo, "HEAD~1", "HEAD")
    assert done.returncode == 3, done.stderr
    assert done.stdout.splitlines()[-1].startswith("Could not compare ")
    assert re.search(
        r"improved-seed-\S+: could not compare: head \(HEAD \(.{7}\)\): incorrect: out is off by", done.stdout
    )
    assert "the same code on both sides: sdpa" in done.stdout


@pytest.mark.pipeline
def test_a_revision_against_itself_is_not_slower_and_nothing_changed_is_nothing_to_measure(repo: Repo) -> None:
    done = duelled(repo, "HEAD", "HEAD", "--cells", ONE_CELL)
    assert done.returncode in (0, 2), done.stdout + done.stderr
    assert "improved-seed-b01_h02" in done.stdout
    nothing = duelled(repo, "HEAD")
    assert nothing.returncode == 0, nothing.stderr
    assert "there is nothing to measure" in nothing.stdout.splitlines()[-1]


@pytest.mark.pipeline
def test_a_base_whose_attn_does_not_fit_is_one_sentence(repo: Repo) -> None:
    text = repo.read("attn/ring/communicator.py")
    (repo.path / "attn/ring/communicator.py").unlink()
    repo.commit("before rings")
    (repo.path / "attn/ring/communicator.py").write_text(text, encoding="utf-8")
    done = duelled(repo, "HEAD", "--cells", ONE_CELL)
    assert done.returncode == 3, done.stderr
    assert re.search(
        r"^Could not compare 1 of 1 cells; improved\S+: base \(HEAD .*: its attn does not fit", done.stdout, re.M
    )
    assert "attn.ring.communicator" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.fixture
def amid_duel(repo: Repo) -> Iterator[subprocess.Popen[bytes]]:
    """A duel that has taken its first pair and would go on for long."""
    append(repo, "bench/duel_pairs.py", "\n\nSLICE_MS, BLOCKS = 40.0, 200\nPAIR_S = 1e6\n")
    with (repo.path.parent / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "bench", "duel", "HEAD", "HEAD", "--cells", ONE_CELL, "--budget", "1e5"],
            cwd=repo.path, env=environment(repo), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    try:
        workers = [f"{side}-side" for side in ("base", "head")]
        assert wait_until(lambda: all(len(in_folder(repo, one)) == 1 for one in workers), 120), said(repo)
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def in_folder(repo: Repo, name: str) -> list[str]:
    """Processes that work in a side's folder: its worker."""
    folders = list((repo.path.parent / "tmp").glob(f"*/{name}"))
    return processes_of(folders[0]) if folders else []


def said(repo: Repo) -> str:
    return (repo.path.parent / "log").read_text(encoding="utf-8")


@pytest.mark.pipeline
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_duel_leaves_nothing(
    number: signal.Signals, code: int, amid_duel: subprocess.Popen[bytes], repo: Repo
) -> None:
    os.killpg(amid_duel.pid, number)  # as a terminal does
    assert amid_duel.wait(30) == code, said(repo)
    assert "Traceback" not in said(repo)
    assert wait_until(lambda: not left(repo), 5), left(repo)


@pytest.mark.pipeline
def test_a_killed_duel_leaves_no_process_and_the_next_one_tidies_up(
    amid_duel: subprocess.Popen[bytes], repo: Repo
) -> None:
    amid_duel.kill()
    amid_duel.wait()
    assert wait_until(lambda: not processes_of(repo.path.parent), 5), processes_of(repo.path.parent)
    assert len(repo.git("worktree", "list").splitlines()) == 3
    repo.git("checkout", "-q", "--", "bench")
    done = repo.run(sys.executable, "-m", "bench", "duel", "HEAD", TMPDIR=str(repo.path.parent / "tmp"))
    assert done.returncode == 0, done.stdout
    assert len(repo.git("worktree", "list").splitlines()) == 1
    assert not list((repo.path.parent / "tmp").glob("attn-bench-duel-*"))
