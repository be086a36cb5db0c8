"""All cases of one implementation, in one process or one launch of ranks each world size."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import deterministic

from attn import registry
from attn.contract import Unsupported, Workload
from bench import cases, solved
from bench.calls import CoreCall, identical, make
from bench.cases import Case
from bench.jobs import CheckJob
from bench.judge import Verdict, anywhere, judge, judge_call
from bench.solved import Solved, Tensors
from bench.spent import Spent
from bench.team import Solo, Team


def check(fields: dict[str, Any], team: Team | None = None) -> dict[str, Any]:
    """Judge every case; `cases` has one entry each, with `status` ok, incorrect, unsupported or not_measured.

    `spent_s`: reading (or solving) truths, and judging, which is all else.
    """
    spent = Spent()
    job, team = CheckJob(**fields), team or Solo()
    torch.set_num_threads(job.threads)
    implementation = registry.read(Path(job.implementation))
    named = [case for case in cases.cases(implementation) if case.world_size == job.world_size]
    chosen = [case for case in named if re.search(job.only, case.name)]
    asked = (Workload.from_dict(fields) for fields in job.workloads)
    chosen += [
        Case(w, world_size=job.world_size, precision=implementation.precision)
        for w in asked
        if not implementation.why_not(w, job.device)
    ]
    found = []
    with spent.during("judging"):
        for case in chosen:
            found.append(_named(implementation, case, job, team, spent))
            _tell(job, team, found[-1])
    return {"status": "ok", "cases": found, "spent_s": spent.seconds()}


def _named(
    implementation: registry.Implementation, case: Case, job: CheckJob, team: Team, spent: Spent
) -> dict[str, Any]:
    """A case; what it raises says which one it was."""
    print(f"case {case.name}", file=sys.stderr, flush=True)  # the last line of a crash
    w = case.workload
    found = {"case": case.name, "variant": case.variant, "world_size": case.world_size, **w.as_dict()}
    _tell(job, team, found)
    if case.variant.startswith("real") and not job.truths and not Path(job.real).exists():
        return {**found, "status": "not_measured", "reason": job.no_real}
    try:
        kept = Path(job.truths) if job.truths else None
        with spent.during("truth"):
            problem = cases.solve(case, implementation.kind, job.seed, kept, Path(job.real))
        return {**found, **_judged(implementation, case, problem, job.device, team)}
    except Unsupported as error:
        return {**found, "status": "unsupported", "reason": str(error)}
    except Exception as error:
        error.add_note(f"in case {case.name}")
        raise


def _tell(job: CheckJob, team: Team, found: dict[str, Any]) -> None:
    """Add a case to what outlives this process; it has no status yet where it has only begun."""
    if job.so_far and team.rank == 0:
        with Path(job.so_far).open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")


def _judged(
    implementation: registry.Implementation, case: Case, problem: Solved, device: str, team: Team
) -> dict[str, Any]:
    """Four calls: into poisoned memory; the same twice as it will be timed; and on other inputs in the same buffers."""
    call = make(implementation, case.workload, problem.inputs, device, team)
    for name, x in call.buffers.items():
        call.buffers[name] = case.placed(name, x.detach()).requires_grad_(x.requires_grad)
    around = {name: _whole_memory(x).clone() for name, x in call.buffers.items()}
    with registry.third_party():
        with _poisoned():
            call()
            verdict = judge_call(call, problem, team, call.results() | call.without_gradients())
        earlier = [(call.computed(), call.returned)]
        call()
        first = call.results()
        second = judge_call(call, problem, team, first)
        call()
        again = call.results()
        earlier.append((call.computed(), call.returned))
        beside = [name for name, x in call.buffers.items() if not torch.equal(_whole_memory(x), around[name])]
        later = None if case.has_nan else _on_other_inputs(implementation, call, problem, team, earlier).reason
    written = anywhere({"memory beside its inputs ({}) was written to": beside}, team)
    if team.rank:
        return {}
    spread = _spread(first, again)
    reason = verdict.reason or "; ".join(written) or (second.reason and f"in its second call: {second.reason}")
    if spread and implementation.deterministic and not reason:
        words = ", ".join(f"{name} by up to {value:.1e}" for name, value in spread.items())
        reason = f"two runs on the same inputs differ: {words}"
    if spread and not reason:
        third = judge(again, problem, case.workload.dtype, call.held).reason
        reason = third and f"in its third call: {third}"
    if later and not reason:
        reason = f"on other inputs in the same buffers: {later}"
    return {
        "status": "incorrect" if reason else "ok",
        "reason": reason,
        **_told(verdict),
        "spread": spread,
    }


def _told(verdict: Verdict) -> dict[str, Any]:
    return {
        "over_budget": verdict.over_budget,
        "max_abs_error": verdict.max_abs_error,
        "ranks": verdict.ranks,
        "nan_leaks": verdict.leaked,
        "sampled": verdict.sampled,
    }


def _on_other_inputs(
    implementation: registry.Implementation,
    call: CoreCall,
    problem: Solved,
    team: Team,
    earlier: list[tuple[Tensors, Tensors]],
) -> Verdict:
    """Outputs that were kept from before, by address or by torch's count of changes, are wrong now.

    So is an earlier output that this call writes to: it belongs to the caller. `earlier`: what calls have returned,
    and copies of it from then.
    """
    other = solved.mirrored(implementation.kind, problem, call.workload.mask)
    call.refill(other.inputs)
    call()
    changed = {n for now, then in earlier for n, x in now.items() if not identical(x.detach().cpu(), then[n])}
    overwritten = anywhere({"{} of a call before was overwritten": sorted(changed)}, team)
    verdict = judge_call(call, other, team)
    return replace(verdict, right=False, reason="; ".join(overwritten)) if overwritten else verdict


def _spread(one: Tensors, other: Tensors) -> dict[str, float]:
    """Largest difference of each tensor that is not, bit for bit, the same in two runs; NaN counts as 0."""
    return {
        name: float((x.double() - other[name].double()).nan_to_num().abs().max())
        for name, x in one.items()
        if name in other and not identical(x, other[name])
    }


def _whole_memory(x: Tensor) -> Tensor:
    """Every byte of the memory that a tensor lies in, also those that are not its own."""
    return torch.empty(0, dtype=torch.uint8, device=x.device).set_(x.untyped_storage())


@contextmanager
def _poisoned() -> Iterator[None]:
    """Memory that torch hands out unwritten holds NaN, so that an output left unwritten shows.

    Torch offers that with its deterministic algorithms only, which are not those that are timed.
    """
    before, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]  # set by its module class
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before, warn_only=warned)
