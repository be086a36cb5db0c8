"""All cases of one implementation -> a report with figures, and a verdict without any."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from attn import registry
from attn.contract import Workload
from bench import launch, machine, truths, worker
from bench.grid import Params
from bench.jobs import CHECKED_WORLD_SIZES, CheckJob
from bench.progress import steps

_DEADLINE_FACTOR = 3  # all cases of an implementation, against one cell of a table
_SHOWN = 3


def check(
    path: Path, params: Params, identity: dict[str, Any], workloads: Sequence[Workload] = (), only: str = ""
) -> dict[str, Any]:
    """Judge an implementation file, also one outside the repository; `workloads` are judged besides its cases.

    only: a regular expression that the names of cases match.

    Returns `status`, `reason` (with the case and the error), and `cases`.
    """
    implementation = registry.read(path)
    report: dict[str, Any] = {"implementation": implementation.name, "kind": implementation.kind}
    if implementation.fault:
        return {**report, "status": "unsupported", "reason": implementation.fault, "cases": []}
    if identity["device"] not in implementation.devices:
        reason = f"device {identity['device']} is not among {', '.join(implementation.devices)}"
        return {**report, "status": "unsupported", "reason": reason, "cases": []}
    sizes = CHECKED_WORLD_SIZES if implementation.kind == "ring" else (1,)
    found: list[dict[str, Any]] = []
    with steps(f"check {implementation.name}", len(sizes)) as progress:
        for world_size in sizes:
            if no_ranks := machine.why_no_ranks(identity, world_size):
                progress.step(f"unsupported: {no_ranks}")
                continue
            result = _run(implementation, params, identity, world_size, workloads, only)
            found += result.get("cases", [])
            progress.step(_summary(result))
            if result["status"] != "ok":
                return {**report, "status": result["status"], "reason": result["reason"], "cases": found}
    return {**report, **_conclusion(found), "summary": summary(found), "cases": found}


def verdict(report: dict[str, Any]) -> dict[str, Any]:
    """What bench stages depend on: status and reason, the failed cases by name, no figure."""
    failed = [one["case"] for one in report["cases"] if one["status"] == "incorrect"]
    reason = report["reason"]
    if failed:
        reason = f"wrong in {len(failed)} of {len(report['cases'])} cases, the first {failed[0]}"
    return {"status": report["status"], "reason": reason, "failed": failed}


def summary(found: list[dict[str, Any]]) -> dict[str, Any]:
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


def _run(
    implementation: registry.Implementation,
    params: Params,
    identity: dict[str, Any],
    world_size: int,
    workloads: Sequence[Workload],
    only: str,
) -> dict[str, Any]:
    job = asdict(
        CheckJob(
            implementation=str(implementation.path),
            device=identity["device"],
            threads=machine.threads_per_rank(identity["threads"], world_size),
            seed=params.protocol.seed,
            world_size=world_size,
            workloads=[workload.as_dict() for workload in workloads],
            truths=truths.kept_cases(params, implementation.kind),
            real=truths.real_inputs(),
            only=only,
        )
    )
    limits: dict[str, Any] = {
        "deadline_s": params.protocol.deadline_s * _DEADLINE_FACTOR,
        "memory_bytes": worker.memory_limit(params.protocol.memory_limit_gib),
    }
    if implementation.kind == "ring":
        return next(launch.run("check", [job], world_size, **limits))
    return worker.isolated("check", job, **limits)


def _conclusion(found: list[dict[str, Any]]) -> dict[str, Any]:
    wrong = [one for one in found if one["status"] == "incorrect"]
    if wrong:
        shown = "; ".join(f"{one['case']}: {one['reason']}" for one in wrong[:_SHOWN])
        return {"status": "incorrect", "reason": f"wrong in {len(wrong)} of {len(found)} cases: {shown}"}
    if all(one["status"] in ("unsupported", "not_measured") for one in found):
        return {"status": "unsupported", "reason": found[0]["reason"] if found else "no case fits what it declares"}
    return {"status": "ok", "reason": None}


def _summary(result: dict[str, Any]) -> str:
    if result["status"] != "ok":
        return f"{result['status']}: {result['reason']}"
    statuses = [one["status"] for one in result["cases"]]
    return ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses))
