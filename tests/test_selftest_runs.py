"""Real self-tests of the tiny repository: what is recorded, and what a killed one leaves."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import Repo, processes_of

RECORD = "results/local/selftest.jsonl"
SHORTER = {"bench/duel_pairs.py": "\n\nSLICE_MS, BLOCKS = 2.0, 2\n", "bench/duel.py": "\n\nLEAST = 8\nLOOKS = (8,)\n"}
DUELS = 3


@pytest.fixture
def repo(source: Repo, tmp_path: Path) -> Repo:
    """The tiny repository, in which a duel has 8 pairs of short slices; and a folder for its temporary files."""
    copy = source.copied_to(tmp_path.resolve() / "repo")
    for name, text in SHORTER.items():
        with (copy.path / name).open("a", encoding="utf-8") as file:
            file.write(text)
    copy.commit("shorter")
    (tmp_path / "tmp").mkdir()
    return copy


def asked(kind: str, *more: str) -> list[str]:
    return [sys.executable, "-m", "bench", "selftest", kind, "--duels", str(DUELS), "--budget", "1", *more]


def lines(repo: Repo) -> list[bytes]:
    """Whole lines of the record, its header first."""
    path = repo.path / RECORD
    return path.read_bytes().split(b"\n")[:-1] if path.exists() else []


def left(repo: Repo) -> list[str]:
    """Worktrees besides the main one, their folders, and processes."""
    worktrees = repo.git("worktree", "list").splitlines()[1:]
    folders = [path.name for path in (repo.path.parent / "tmp").glob("attn-bench-duel-*")]
    return worktrees + folders + processes_of(repo.path.parent)


@pytest.mark.pipeline
def test_it_goes_on_where_it_was_killed_and_no_duel_is_fought_twice(repo: Repo) -> None:
    environment = repo.environment(TMPDIR=str(repo.path.parent / "tmp"))
    drawn, kills, before = random.Random(), 0, list[bytes]()
    while len(lines(repo)) < 2:  # once in its first duel, once after it
        process = subprocess.Popen(
            asked("aa"), cwd=repo.path, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        wanted, end = len(lines(repo)) + 1, time.monotonic() + 300
        while len(lines(repo)) < wanted and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(drawn.uniform(0, 2))  # somewhere in the next duel
        process.kill()
        process.wait()
        kills += 1
        assert lines(repo)[: len(before)] == before
        before = lines(repo)
        gone = time.monotonic() + 10
        while processes_of(repo.path.parent) and time.monotonic() < gone:
            time.sleep(0.02)
        assert processes_of(repo.path.parent) == []
    with (repo.path / RECORD).open("ab") as file:
        file.write(b'{"condition":{"extra":[0,1],"bud')  # what a writer killed within a line leaves
    done = repo.run(*asked("aa"), TMPDIR=str(repo.path.parent / "tmp"))
    assert done.returncode == 0, done.stdout
    assert lines(repo)[: len(before)] == before
    found = [json.loads(line) for line in lines(repo)[1:]]
    assert [one["number"] for one in found] == list(range(DUELS))
    assert [one["busy"] for one in found] == [False, True, False]
    assert len({one["threads"] for one in found}) == 1, "params.yaml says 1"
    assert all(one["wall"]["pairs"] == len(one["samples"]) == 8 for one in found), found
    assert "3 duels of one small cell, 1 of them beside a busy process" in done.stdout
    assert left(repo) == []
    assert kills >= 2


@pytest.mark.pipeline
def test_injected_work_is_found_and_an_interrupt_keeps_what_was_measured(repo: Repo) -> None:
    environment = repo.environment(TMPDIR=str(repo.path.parent / "tmp"))
    process = subprocess.Popen(
        asked("power", "--injection", "100"), cwd=repo.path, env=environment, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, text=True,
    )  # fmt: skip
    end = time.monotonic() + 300
    while len(lines(repo)) < 2 and time.monotonic() < end:
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=30)
    assert process.returncode == 143, said
    assert "Traceback" not in said
    found = [json.loads(line) for line in lines(repo)[1:]]
    assert found
    assert {one["wall"]["verdict"] for one in found} == {"slower"}, found
    assert {one["cpu"]["verdict"] for one in found if one["cpu"]} <= {"slower"}
    assert left(repo) == []
