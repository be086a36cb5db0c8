"""All cases of one implementation -> a report with figures, and a verdict without any."""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from attn import registry
from attn.contract import Workload
from bench import launch, machine, placement, truths, worker
from bench.grid import Params
from bench.jobs import CHECKED_WORLD_SIZES, CheckJob
from bench.progress import steps
from bench.spent import Spent, total

_DEADLINE_FACTOR = 3  # all cases of an implementation, against one cell of a table
_SHOWN = 3


def check(
    path: Path,
    params: Params,
    identity: dict[str, Any],
    workloads: Sequence[Workload] = (),
    only: str = "",
    truths_in: Path | None = None,
    spent: Spent | None = None,
) -> dict[str, Any]:
    """Judge an implementation file, also one outside the repository; `workloads` are judged besides its cases.

    only: a regular expression that the names of cases match. truths_in: a folder of solved cases, where those of the
    pipeline are not to be asked. spent: the clock of whoever asks, if what it did before belongs to this too.

    Returns `status`, `reason` (with the case and the error), `summary`, `cases` (where a worker fell, those until
    then, the last with the status of the whole), `no_ranks`, why numbers of ranks cannot be had here, and `spent_s`,
    seconds by phase (bench.spent).

    Raises:
        Damaged: kept cases or real inputs are not what was written.
    """
    spent, of_workers = spent or Spent(), list[dict[str, float]]()
    report = _checked(registry.read(path), params, identity, workloads, only, truths_in, spent, of_workers)
    return {**report, "spent_s": total([spent.seconds(), *of_workers])}


def _checked(
    implementation: registry.Implementation,
    params: Params,
    identity: dict[str, Any],
    workloads: Sequence[Workload],
    only: str,
    truths_in: Path | None,
    spent: Spent,
    of_workers: list[dict[str, float]],
) -> dict[str, Any]:
    refused = implementation.fault
    if not refused and identity["device"] not in implementation.devices:
        refused = f"device {identity['device']} is not among {', '.join(implementation.devices)}"
    if refused:
        return _report(implementation, {"status": "unsupported", "reason": refused})
    with spent.during("truth"):
        job = _job(implementation, params, identity, workloads, only, truths_in)
    sizes = CHECKED_WORLD_SIZES if implementation.kind == "ring" else (1,)
    found: list[dict[str, Any]] = []
    no_ranks: dict[str, str] = {}
    with steps(f"check {implementation.name}", len(sizes)) as progress:
        for world_size in sizes:
            result = spent.of_worker(partial(_run, job, implementation.kind, params, identity, world_size))
            of_workers.append(result["spent_s"])
            found += result.get("cases", [])
            progress.step(_outcome(result))
            if result["status"] == "unsupported":
                no_ranks[str(world_size)] = result["reason"]
            elif result["status"] != "ok":
                return _report(implementation, result, found, no_ranks)
    return _report(implementation, _conclusion(found, no_ranks), found, no_ranks)


def _report(
    implementation: registry.Implementation,
    outcome: dict[str, Any],
    found: Sequence[dict[str, Any]] = (),
    no_ranks: dict[str, str] | None = None,
) -> dict[str, Any]:
    return {
        "implementation": implementation.name,
        "kind": implementation.kind,
        "status": outcome["status"],
        "reason": outcome["reason"],
        "summary": summary(found),
        "no_ranks": no_ranks or {},
        "cases": list(found),
    }


def verdict(report: dict[str, Any]) -> dict[str, Any]:
    """What bench stages depend on: status and reason, the failed cases by name, no figure."""
    failed = [one["case"] for one in report["cases"] if one["status"] == "incorrect"]
    reason = report["reason"]
    if report["status"] == "incorrect":
        reason = f"wrong in {len(failed)} of {len(report['cases'])} cases, the first {failed[0]}"
    return {"status": report["status"], "reason": reason, "failed": failed}


def summary(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What people ask first of a row's cases.

    worst: the case and tensor nearest to its budget. real: worst error on real inputs, by dtype.
    nan_leaks: cases in which a NaN in v reached rows that do not see it. spread: cases in which two runs differ.
    """
    judged = [one for one in found if one.get("over_budget")]
    real: dict[str, dict[str, Any]] = {}
    for one in judged:
        if one["variant"].startswith("real"):
            real[one["dtype"]] = max(real.get(one["dtype"], _worst(one)), _worst(one), key=_over_budget)
    return {
        "worst": max((_worst(one) for one in judged), key=_over_budget, default=None),
        "real": real,
        "nan_leaks": [one["case"] for one in judged if one["nan_leaks"]],
        "spread": {one["case"]: one["spread"] for one in judged if one["spread"]},
    }


def _over_budget(worst: dict[str, Any]) -> float:
    return float(worst["over_budget"])


def _worst(one: dict[str, Any]) -> dict[str, Any]:
    tensor = max(one["over_budget"], key=one["over_budget"].__getitem__)
    found = {"case": one["case"], "tensor": tensor, "over_budget": one["over_budget"][tensor]}
    return {**found, "max_abs_error": one["max_abs_error"][tensor]}


def _job(
    implementation: registry.Implementation,
    params: Params,
    identity: dict[str, Any],
    workloads: Sequence[Workload],
    only: str,
    truths_in: Path | None,
) -> CheckJob:
    """On one rank, with all threads."""
    real, no_real = truths.real_inputs()
    if no_real:
        print(no_real, file=sys.stderr)
    return CheckJob(
        implementation=str(implementation.path),
        device=identity["device"],
        threads=identity["threads"],
        seed=params.protocol.seed,
        world_size=1,
        workloads=[workload.as_dict() for workload in workloads],
        truths=str(truths_in) if truths_in else truths.kept_cases(params, implementation.kind),
        real=real,
        only=only,
        no_real=no_real,
    )


def _run(job: CheckJob, kind: str, params: Params, identity: dict[str, Any], world_size: int) -> dict[str, Any]:
    """The cases of one number of ranks; `unsupported` where that many cannot be had here."""
    sharing = placement.most_on_a_host(world_size, params.launch)
    no_ranks = machine.why_no_ranks(identity, sharing)
    if no_ranks:
        return {"status": "unsupported", "reason": no_ranks}
    limits: dict[str, Any] = {
        "deadline_s": params.protocol.deadline_s * _DEADLINE_FACTOR,
        "memory_bytes": worker.memory_limit(params.protocol.memory_limit_gib),
    }
    threads = machine.threads_per_rank(identity["threads"], sharing)
    shared = placement.folder_for_all(params.launch) if kind == "ring" else None
    with tempfile.NamedTemporaryFile(prefix="attn-bench-", suffix=".jsonl", dir=shared) as so_far:
        fields = asdict(replace(job, world_size=world_size, threads=threads, so_far=so_far.name))
        if kind == "ring":
            result = next(launch.run("check", [fields], world_size, **limits, on=params.launch))
        else:
            result = worker.isolated("check", fields, **limits)
        return result if result["status"] == "ok" else _unfinished(result, Path(so_far.name))


def _unfinished(result: dict[str, Any], so_far: Path) -> dict[str, Any]:
    """Of a worker that fell: the cases it told of; the one that it was at has its status, and is in its reason."""
    cases: dict[str, dict[str, Any]] = {}
    for line in so_far.read_text(encoding="utf-8").splitlines():
        with suppress(ValueError):  # the last line, where it died while it wrote
            one = json.loads(line)
            cases[one["case"]] = one
    reason = result["reason"]
    for name in (name for name, one in cases.items() if "status" not in one and name not in reason):
        reason += f", in case {name}"
    fallen = {"status": result["status"], "reason": reason}
    return {**fallen, "cases": [{**one, **({} if "status" in one else fallen)} for one in cases.values()]}


def _conclusion(found: list[dict[str, Any]], no_ranks: dict[str, str]) -> dict[str, Any]:
    wrong = [one for one in found if one["status"] == "incorrect"]
    if wrong:
        shown = "; ".join(f"{one['case']}: {one['reason']}" for one in wrong[:_SHOWN])
        return {"status": "incorrect", "reason": f"wrong in {len(wrong)} of {len(found)} cases: {shown}"}
    if all(one["status"] in ("unsupported", "not_measured") for one in found):
        reasons = [*(one["reason"] for one in found), *no_ranks.values(), "no case fits what it declares"]
        return {"status": "unsupported", "reason": reasons[0]}
    return {"status": "ok", "reason": None}


def _outcome(result: dict[str, Any]) -> str:
    if result["status"] != "ok":
        return f"{result['status']}: {result['reason']}"
    statuses = [one["status"] for one in result["cases"]]
    return ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
