"""All cases of one implementation, in one process or one launch of ranks each world size."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils import deterministic

from attn import registry
from attn.contract import Unsupported, Workload
from bench import cases, oracle
from bench.calls import make
from bench.cases import Case
from bench.jobs import CheckJob
from bench.judge import judge
from bench.team import Solo, Team


def check(fields: dict[str, Any], team: Team | None = None) -> dict[str, Any]:
    """Judge every case; `cases` has one entry each, with `status` ok, incorrect or unsupported."""
    job, team = CheckJob(**fields), team or Solo()
    torch.set_num_threads(job.threads)
    implementation = registry.read(Path(job.implementation))
    chosen = [case for case in cases.cases(implementation) if case.world_size == job.world_size]
    asked = (Workload.from_dict(fields) for fields in job.workloads)
    chosen += [Case(w, world_size=job.world_size) for w in asked if not implementation.why_not(w, job.device)]
    return {"status": "ok", "cases": [_named(implementation, case, job, team) for case in chosen]}


def _named(implementation: registry.Implementation, case: Case, job: CheckJob, team: Team) -> dict[str, Any]:
    """A case; what it raises says which one it was."""
    try:
        return _one(implementation, case, job, team)
    except Exception as error:
        error.add_note(f"in case {case.name}")
        raise


def _one(implementation: registry.Implementation, case: Case, job: CheckJob, team: Team) -> dict[str, Any]:
    print(f"case {case.name}", file=sys.stderr, flush=True)  # the last line of a crash
    given = cases.inputs(case, implementation.kind, job.seed)
    found: dict[str, Any] = {"case": case.name}
    try:
        call = make(implementation, case.workload, given, job.device, team)
        if case.variant == "strided":
            for name in call.leaves:
                call.buffers[name] = cases.strided(call.buffers[name].detach()).requires_grad_(case.workload.backward)
        with registry.third_party(), _Poisoned():
            call()
    except Unsupported as error:
        return {**found, "status": "unsupported", "reason": str(error)}
    changed = call.changed_inputs(given)
    changed_anywhere = any(any(values) for values in team.gather([float(bool(changed))]))
    results = call.results()
    if team.rank:
        return found
    verdict = judge(results, oracle.solve(implementation.kind, case.workload, given, job.seed), case.workload.dtype)
    reason = verdict.reason
    if changed_anywhere:
        reason = f"its inputs ({', '.join(changed) or 'on another rank'}) were changed by the call"
    return {
        **found,
        "status": "incorrect" if reason else "ok",
        "reason": reason,
        "over_budget": verdict.over_budget,
        "max_abs_error": verdict.max_abs_error,
    }


class _Poisoned:
    """Memory that torch hands out unwritten holds NaN, so that an output left unwritten shows."""

    def __enter__(self) -> None:
        torch.use_deterministic_algorithms(True, warn_only=True)
        deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]  # set by its module class

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(False)
