"""All cases of one implementation, in one process or one launch of ranks each world size."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.utils import deterministic

from attn import registry
from attn.contract import Unsupported, Workload
from bench import cases, solved
from bench.calls import CoreCall, identical, make
from bench.cases import Case
from bench.jobs import CheckJob
from bench.judge import Verdict, anywhere, judge_call
from bench.solved import Solved, Tensors
from bench.team import Solo, Team


def check(fields: dict[str, Any], team: Team | None = None) -> dict[str, Any]:
    """Judge every case; `cases` has one entry each, with `status` ok, incorrect, unsupported or not_measured."""
    job, team = CheckJob(**fields), team or Solo()
    torch.set_num_threads(job.threads)
    implementation = registry.read(Path(job.implementation))
    named = [case for case in cases.cases(implementation) if case.world_size == job.world_size]
    chosen = [case for case in named if re.search(job.only, case.name)]
    asked = (Workload.from_dict(fields) for fields in job.workloads)
    chosen += [Case(w, world_size=job.world_size) for w in asked if not implementation.why_not(w, job.device)]
    return {"status": "ok", "cases": [_named(implementation, case, job, team) for case in chosen]}


def _named(implementation: registry.Implementation, case: Case, job: CheckJob, team: Team) -> dict[str, Any]:
    """A case; what it raises says which one it was."""
    print(f"case {case.name}", file=sys.stderr, flush=True)  # the last line of a crash
    w = case.workload
    found = {"case": case.name, "variant": case.variant, "world_size": case.world_size, **w.as_dict()}
    if case.variant.startswith("real") and not job.truths and not Path(job.real).exists():
        return {**found, "status": "not_measured", "reason": f"no real inputs, {job.real}: `dvc repro capture`"}
    try:
        kept = Path(job.truths) if job.truths else None
        problem = cases.solve(case, implementation.kind, job.seed, kept, Path(job.real))
        return {**found, **_judged(implementation, case, problem, job.device, team)}
    except Unsupported as error:
        return {**found, "status": "unsupported", "reason": str(error)}
    except Exception as error:
        error.add_note(f"in case {case.name}")
        raise


def _judged(
    implementation: registry.Implementation, case: Case, problem: Solved, device: str, team: Team
) -> dict[str, Any]:
    """Three calls: into poisoned memory; the same again; and on other inputs in the same buffers."""
    call = make(implementation, case.workload, problem.inputs, device, team)
    for name, x in call.buffers.items():
        call.buffers[name] = case.placed(name, x.detach()).requires_grad_(x.requires_grad)
    with registry.third_party(), _Poisoned():
        call()
        first = call.results()
        verdict = judge_call(call, problem, team, first | call.without_gradients())
        call()
        again = call.results()
        later = None if case.has_nan else _on_other_inputs(implementation, call, problem, team).reason
    if team.rank:
        return {}
    spread, reason = _spread(first, again), verdict.reason
    if spread and implementation.deterministic and not reason:
        words = ", ".join(f"{name} by up to {value:.1e}" for name, value in spread.items())
        reason = f"two runs on the same inputs differ: {words}"
    if later and not reason:
        reason = f"on other inputs in the same buffers: {later}"
    return {
        "status": "incorrect" if reason else "ok",
        "reason": reason,
        "over_budget": verdict.over_budget,
        "max_abs_error": verdict.max_abs_error,
        "ranks": verdict.ranks,
        "nan_leaks": verdict.leaked,
        "spread": spread,
        "sampled": verdict.sampled,
    }


def _on_other_inputs(implementation: registry.Implementation, call: CoreCall, problem: Solved, team: Team) -> Verdict:
    """Outputs that were kept from before, by address or by torch's count of changes, are wrong now.

    So is an earlier output that this call writes to: it belongs to the caller.
    """
    earlier, values = call.computed(), call.returned
    other = solved.mirrored(implementation.kind, problem, call.workload.mask)
    call.refill(other.inputs)
    call()
    changed = [name for name, x in earlier.items() if not identical(x.detach().cpu(), values[name])]
    overwritten = anywhere({"{} of the call before was overwritten": changed}, team)
    verdict = judge_call(call, other, team)
    return replace(verdict, right=False, reason="; ".join(overwritten)) if overwritten else verdict


def _spread(one: Tensors, other: Tensors) -> dict[str, float]:
    """Largest difference of each tensor that is not, bit for bit, the same in two runs (NaN equals NaN)."""
    pairs = {name: (x.double().nan_to_num(), other[name].double().nan_to_num()) for name, x in one.items()}
    return {name: float((x - y).abs().max()) for name, (x, y) in pairs.items() if not torch.equal(x, y)}


class _Poisoned:
    """Memory that torch hands out unwritten holds NaN, so that an output left unwritten shows."""

    def __enter__(self) -> None:
        torch.use_deterministic_algorithms(True, warn_only=True)
        deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]  # set by its module class

    def __exit__(self, *_: object) -> None:
        torch.use_deterministic_algorithms(False)
