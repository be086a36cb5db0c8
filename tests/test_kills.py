"""kill -9 of any process of a running pipeline, at any moment: at most one cell is lost each time, none is measured
twice, nobody is left behind, and what is written can be read."""

import json
import os
import random
import re
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Repo, processes_of

from bench import guard

TARGETS = [
    "bench_core@local-improved-seed",
    "bench_core@local-improved-scaling",
    "bench_ring@local-ring_v2_collective-seed",
]
PROCESSES, CELLS = 3, 6
_MEASURED = re.compile(r"(\S+) process (\d): [\d.e-]+ ms$", re.MULTILINE)


class Pipeline:
    """`dvc repro`, started again whenever it has ended, with all that it ever printed."""

    def __init__(self, repo: Repo) -> None:
        self.repo, self.log, self.rounds = repo, repo.path.parent / "log", 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Of what is not measured yet; where all is, of everything under another seed."""
        assert self.repo.bench("validate").returncode == 0  # as `make bench` begins
        if self._all_measured():
            self.rounds += 1
            self.repo.edit("params.yaml", f"seed: {2306 + self.rounds}", f"seed: {2307 + self.rounds}")
            with self.log.open("a", encoding="utf-8") as log:
                log.write(f"round {self.rounds}\n")
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ["dvc", "repro", *TARGETS], cwd=self.repo.path, env=self.repo.environment(), stdin=subprocess.DEVNULL,
                stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip

    def processes(self) -> list[int]:
        """Of it, itself included; none where it has ended."""
        if self.process is None or self.process.poll() is not None:
            return []
        return sorted({self.process.pid, *guard.descendants(self.process.pid)})

    def wait_for_a_stage(self) -> None:
        """Until one runs that measures, or all has ended."""
        while pids := self.processes():
            if {"server or worker", "rank"} & {_name(pid) for pid in pids}:
                return
            time.sleep(0.02)

    def ended(self) -> bool:
        return not self.processes()

    def _all_measured(self) -> bool:
        return not self.repo.run("dvc", "status", *TARGETS, "--quiet").returncode


@pytest.fixture
def pipeline(tiny: Repo) -> Iterator[Pipeline]:
    """On which nothing runs yet: each stage has 2 cells, each cell 3 processes of about a second."""
    for old, new in (
        ("processes: 1", f"processes: {PROCESSES}"),
        ("sample_ms: 1", "sample_ms: 10"),
        (": 5\n", ": 40\n"),
    ):
        tiny.edit("params.yaml", old, new)
    made = Pipeline(tiny)
    yield made
    if made.process and made.process.poll() is None:
        os.killpg(made.process.pid, signal.SIGKILL)
        made.process.wait()


@pytest.mark.pipeline
@pytest.mark.mpi
@pytest.mark.parametrize("kills", [5, pytest.param(30, marks=pytest.mark.slow)])
def test_a_random_kill_loses_one_cell_at_most(kills: int, pipeline: Pipeline, count: Callable[[str], None]) -> None:
    seed = random.SystemRandom().randrange(1 << 32)
    drawn, victims = random.Random(seed), Counter[str]()
    while victims.total() < kills:
        if pipeline.ended():
            pipeline.start()
        if drawn.random() < 0.7:  # dvc alone would be most of the time
            pipeline.wait_for_a_stage()
        time.sleep(drawn.uniform(0, 4))
        named = {pid: name for pid in pipeline.processes() if (name := _name(pid))}
        if not named:
            continue
        kind = drawn.choice(sorted(set(named.values())))
        victim = drawn.choice([pid for pid, name in named.items() if name == kind])
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
        victims[named[victim]] += 1
        _assert_nothing_is_left_and_all_can_be_read(pipeline)
    count(f"random kills (seed {seed}): {', '.join(f'{n} x {name}' for name, n in victims.most_common())}")
    _finish(pipeline)
    _assert_none_was_measured_twice(pipeline)
    lost = [record for record in _records(pipeline.repo) if record["status"] != "ok"]
    assert len(lost) <= kills, "more than one cell a kill"
    assert all(record["reason"] for record in lost)
    assert pipeline.repo.bench("table", "seed").returncode == 0


def _name(pid: int) -> str:
    """What it is, for the count; nothing for one that has ended, and nobody has waited for."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return ""
    known = {"dvc": "dvc", "stages": "stage", "forkserver": "server or worker", "ring_worker": "rank"}
    known |= {"mpiexec": "mpiexec", "hydra": "mpi's proxy", "resource_tracker": "resource tracker"}
    return next((name for word, name in known.items() if any(word in one for one in words)), Path(words[0]).name)


def _assert_nothing_is_left_and_all_can_be_read(pipeline: Pipeline) -> None:
    end = time.monotonic() + 5
    assert pipeline.process is not None
    if pipeline.process.poll() is None:
        time.sleep(0.2)  # a dvc that was killed is dead by now; one that was not goes on
    if pipeline.ended():
        while processes_of(pipeline.repo.path) and time.monotonic() < end:
            time.sleep(0.02)
        assert processes_of(pipeline.repo.path) == []
    for path in pipeline.repo.path.glob("results/**/*.json"):
        json.loads(path.read_text(encoding="utf-8"))


def _finish(pipeline: Pipeline) -> None:
    """Nobody kills any more: it ends well, if not at once, then when it is started again."""
    if pipeline.process is not None and not pipeline.ended():
        pipeline.process.wait(300)
    assert pipeline.repo.bench("validate").returncode == 0
    again = pipeline.repo.repro(*TARGETS)
    with pipeline.log.open("a", encoding="utf-8") as log:
        log.write(again.output)
    assert again.code == 0, again.output


def _assert_none_was_measured_twice(pipeline: Pipeline) -> None:
    for number, text in enumerate(re.split(r"^round \d+\n", pipeline.log.read_text(encoding="utf-8"), flags=re.M)):
        measured = Counter(_MEASURED.findall(text))
        twice = {one: n for one, n in measured.items() if n > 1}
        assert not twice, f"round {number}: {twice}\n{text}"
        assert len(measured) <= PROCESSES * CELLS


def _records(repo: Repo) -> list[dict[str, object]]:
    found = []
    for name in ("improved-seed", "improved-scaling", "ring_v2_collective-seed"):
        found += json.loads(repo.read(f"results/local/bench/{name}.json"))
    assert len(found) == CELLS
    return found
