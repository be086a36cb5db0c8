"""All cells of one implementation on one grid -> records. What a bench stage and `python -m bench run` do."""

from __future__ import annotations

import math
import random
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from attn import registry
from bench import closure, kept, launch, machine, noise, outcomes, placement, records, store, worker
from bench.files import read_json
from bench.grid import Cell, Params, cells
from bench.jobs import Job
from bench.lock import device_lock
from bench.progress import Steps, steps
from bench.records import KEPT, NOT_KEPT, Record
from bench.spent import Spent, total

ORACLE = Path("data/oracle")
NOT_REACHED: tuple[records.Status, str] = ("not_measured", "not reached: the time that was given was over")


@dataclass(frozen=True)
class Campaign:
    """What is measured, where, and what is known of it beforehand.

    verdict: of the check stage; anything but ok keeps its cells from being measured at all.
    reference_verdict: of the yardstick; anything but ok and nothing is compared with it.
    scratch: where samples of an unfinished run are kept. until: of time.monotonic, after which no cell begins and the
    one that runs is ended; what was not reached says so.
    """

    params: Params
    identity: dict[str, Any]
    family: str
    implementation: str
    grid: str
    oracle: Path
    verdict: dict[str, Any]
    reference_verdict: dict[str, Any]
    scratch: Path = store.FOLDER
    until: float = math.inf

    @classmethod
    def recorded(
        cls,
        params: Params,
        identity: dict[str, Any],
        results: Path,
        family: str,
        implementation: str,
        grid: str,
        scratch: Path = store.FOLDER,
    ) -> Campaign:
        """With the truth and the verdicts that the pipeline has put down, these in `results`."""
        row, reference = (
            read_json(records.verdict_path(results, name)) for name in (implementation, params.reference_of(family))
        )
        return cls(params, identity, family, implementation, grid, ORACLE / family / grid, row, reference, scratch)

    def deadline_s(self) -> float:
        """Of a process or launch that begins now; 0 and less where none is to begin."""
        return min(self.params.protocol.deadline_s, self.until - time.monotonic())

    @property
    def store(self) -> store.Store:
        """The samples of this campaign that an interruption left."""
        return store.Store(self.depends_on, self.scratch)

    @property
    def depends_on(self) -> dict[str, Any]:
        """Everything that samples depend on, for the scratch store."""
        path = registry.IMPL_DIR / f"{self.implementation}.py"
        return {
            "cells": [self.implementation, self.grid, self.params.grids[self.grid].model_dump()],
            "code": closure.fingerprint(path, self.reference_path, *HARNESS),
            "protocol": self.params.protocol.model_dump(),
            "identity": self.identity,
            **({"launch": self.params.launch.model_dump()} if self.family == "ring" else {}),
        }

    @property
    def reference_path(self) -> Path:
        """The file of the row that every cell is paired with."""
        return registry.IMPL_DIR / f"{self.params.reference_of(self.family)}.py"


HARNESS = tuple(closure.ROOT / "bench" / f"{name}.py" for name in ("runner", "measure", "ring_worker"))


def run(campaign: Campaign, spent: Spent | None = None) -> list[Record]:
    """Measure every cell that can be, in random order, each in several processes.

    spent: the clock of whoever asks, where what it did before belongs to this too.

    Raises:
        Damaged: a file of the oracle is not what was written.
    """
    spent = spent or Spent()
    with spent.during("truth"):
        kept.refuse_damaged(campaign.oracle, f"oracle_{campaign.family}@{campaign.grid}")
    store.sweep(campaign.scratch)
    todo = cells(campaign.params, campaign.family, campaign.implementation, campaign.grid)
    known = {cell.key: reason for cell in todo if (reason := _why_not(campaign, cell))}
    results: dict[str, list[dict[str, Any]]] = defaultdict(list)
    jobs = [
        (cell, process)
        for process in range(campaign.params.protocol.processes)
        for cell in todo
        if cell.key not in known
    ]
    with steps(f"bench {campaign.implementation} {campaign.grid}", len(jobs)) as progress, ExitStack() as held:
        with spent.during("waiting"):
            held.enter_context(device_lock(campaign.identity["device"]))
        state = machine.state() | (noise.before() if jobs else {})
        state["freed_memory"] = KEPT if campaign.params.protocol.keep_memory and machine.can_keep_memory() else NOT_KEPT
        noise.warn(state)
        for cell, result in _results(campaign, jobs, progress, spent):
            results[cell.key].append(result)
    known |= {cell.key: NOT_REACHED for cell in todo if cell.key not in known and not results[cell.key]}
    found = [outcomes.record(campaign, cell, known.get(cell.key), results[cell.key], state) for cell in todo]
    noise.warn_of(found)
    return _with_shares(found, spent.seconds())


def _with_shares(found: list[Record], of_stage: dict[str, float]) -> list[Record]:
    """What the stage itself has taken, dealt out equally: its cells then add up to it."""
    share = total([of_stage], 1 / len(found))
    return [one.model_copy(update={"spent_s": total([one.spent_s, share])}) for one in found]


def finish(campaign: Campaign, record: Path) -> None:
    """The record is on disk: what was kept for an interruption is forgotten when DVC knows it too."""
    campaign.store.recorded(record)


def _why_not(campaign: Campaign, cell: Cell) -> tuple[records.Status, str] | None:
    """What keeps a cell from being measured: the grid, a declaration, or the verdict of the check."""
    device = campaign.identity["device"]
    excluded = campaign.params.grids[cell.grid].why_excluded(cell.workload, device, cell.implementation)
    if excluded:
        return "not_measured", f"{records.LEFT_OUT}{excluded}"
    if campaign.verdict["status"] != "ok":
        return campaign.verdict["status"], campaign.verdict["reason"]
    implementation = registry.read(registry.IMPL_DIR / f"{cell.implementation}.py")
    reason = implementation.why_not(cell.workload, device) or machine.why_no_ranks(
        campaign.identity, placement.most_on_a_host(cell.world_size, campaign.params.launch)
    )
    if reason:
        return "unsupported", reason
    failed = campaign.oracle / f"{cell.workload.key}.json"
    if failed.exists():  # the truth itself could not be computed
        result = read_json(failed)
        return result["status"], f"its oracle: {result['reason']}"
    return None


def _results(
    campaign: Campaign, jobs: list[tuple[Cell, int]], progress: Steps, spent: Spent
) -> Iterator[tuple[Cell, dict[str, Any]]]:
    """Kept ones first; then cells in random order, alone or by launches of ranks."""
    rest, dead, kept_before = [], set(), campaign.store
    for cell, process in jobs:
        result = kept_before.get(cell.key, process)
        if result is None:
            rest.append((cell, process))
            continue
        progress.step(f"{cell.key} kept from before")
        if result["status"] != "ok":
            dead.add(cell.key)
        yield cell, result
    random.Random(campaign.params.protocol.seed).shuffle(rest)
    runner = _in_launches if campaign.family == "ring" else _one_by_one
    for cell, process, result in runner(campaign, rest, dead, spent):
        kept_before.put(cell.key, process, result)
        progress.step(f"{cell.key} process {process}: {_outcome(result)}")
        yield cell, result


def _one_by_one(
    campaign: Campaign, jobs: list[tuple[Cell, int]], dead: set[str], spent: Spent
) -> Iterator[tuple[Cell, int, dict[str, Any]]]:
    protocol = campaign.params.protocol
    for cell, process in jobs:
        deadline_s = campaign.deadline_s()
        if cell.key in dead or deadline_s <= 0:  # one process of it has failed: the others would only repeat it
            continue
        measured = partial(
            worker.isolated,
            "measure",
            asdict(_job(campaign, cell, process)),
            deadline_s=deadline_s,
            memory_bytes=worker.memory_limit(protocol.memory_limit_gib),
        )
        result = spent.of_worker(measured)
        if result["status"] == "timeout" and deadline_s < protocol.deadline_s:
            continue  # its time was cut short: it was not reached
        if result["status"] != "ok":
            dead.add(cell.key)
        yield cell, process, result


def _in_launches(
    campaign: Campaign, jobs: list[tuple[Cell, int]], dead: set[str], spent: Spent
) -> Iterator[tuple[Cell, int, dict[str, Any]]]:
    """One launch a world size and process number serves all cells of that world size."""
    protocol = campaign.params.protocol
    launches: dict[tuple[int, int], list[tuple[Cell, int]]] = defaultdict(list)
    for cell, process in jobs:
        launches[process, cell.world_size].append((cell, process))
    for (_, world_size), served in sorted(launches.items()):
        deadline_s = campaign.deadline_s()
        alive = [(cell, process) for cell, process in served if cell.key not in dead and deadline_s > 0]
        if not alive:
            continue
        results = launch.run(
            "measure",
            [asdict(_job(campaign, cell, process)) for cell, process in alive],
            world_size,
            deadline_s=deadline_s,
            memory_bytes=worker.memory_limit(protocol.memory_limit_gib),
            on=campaign.params.launch,
        )
        for cell, process in alive:
            result = spent.of_worker(partial(next, results))
            if result["status"] == "timeout" and deadline_s < protocol.deadline_s:
                continue
            if result["status"] != "ok":
                dead.add(cell.key)
            yield cell, process, result
        with spent.during("start"):
            next(results, None)  # the launch ends


def _job(campaign: Campaign, cell: Cell, process: int) -> Job:
    threads = campaign.identity["threads"]
    return Job(
        implementation=str(registry.IMPL_DIR / f"{cell.implementation}.py"),
        reference=str(campaign.reference_path),
        oracle=str(campaign.oracle / f"{cell.workload.key}.safetensors"),
        workload=cell.workload.as_dict(),
        world_size=cell.world_size,
        device=campaign.identity["device"],
        threads=machine.threads_per_rank(threads, placement.most_on_a_host(cell.world_size, campaign.params.launch)),
        all_threads=threads,
        protocol=campaign.params.protocol.model_dump(),
        process=process,
    )


def _outcome(result: dict[str, Any]) -> str:
    if result["status"] != "ok":
        return f"{result['status']}: {result['reason']}"
    return f"{statistics.median(result['series']['samples_ms']):.3g} ms"
