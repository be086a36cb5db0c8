"""One cell in one process (or one launch of ranks): judge, time the first call, memory, pairs, judge again."""

from __future__ import annotations

import re
import resource
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from attn import registry
from attn.contract import Unsupported, Workload
from attn.kernels.flash import configs
from attn.ring import formulas
from attn.ring.communicator import Sent
from bench import breakdown, machine, oracle, solved
from bench.calls import CoreCall, RingCall, make
from bench.device import Cpu, open_device
from bench.jobs import Job
from bench.judge import Verdict, judge_call
from bench.solved import Solved, Tensors
from bench.spent import Spent
from bench.team import Solo, Team
from bench.timing import Throttled, sample_pairs
from bench.watch import Watch, WrongResult

MIB = 1 << 20
_WIRE_CALLS = 3
_MOST_CPUS = 1024  # that are told of


def measure(fields: dict[str, Any], team: Team | None = None) -> dict[str, Any]:
    """Run a job. Returns status `ok` with samples, or `incorrect` or `unsupported` with a reason; and `spent_s`.

    Anything else that goes wrong is raised: whoever isolates this process says what it means.
    """
    spent = Spent()
    found = _measured(Job(**fields), team or Solo(), spent)
    return {**found, "spent_s": spent.seconds()}


def _measured(job: Job, team: Team, spent: Spent) -> dict[str, Any]:
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.protocol["seed"] + job.process)
    device = open_device(job.device, keep_memory=job.protocol["keep_memory"])
    with spent.during("truth"):
        problem = solved.read(Path(job.oracle))
        first = oracle.in_precision(problem, job)
    try:
        call, found = _first_call(job, first.inputs, device, team, spent)
    except Unsupported as error:
        return {"status": "unsupported", "reason": str(error)}
    with spent.during("judging"):
        before = judge_call(call, first, team)
    found["before"] = asdict(before)
    if not before.right:
        return {"status": "incorrect", "reason": before.reason, **found}
    if job.process == 0:
        with spent.during("memory"):
            found |= _memory(call, device, team)
    with spent.during("warm_up"):
        yardstick = _Yardstick(job, problem, device, team, spent)
    try:
        found |= _series(job, call, device, first, team, yardstick)
    except Throttled as error:
        return {"status": "not_measured", "reason": str(error), **found}
    except WrongResult as wrong:
        return {"status": "incorrect", "reason": f"in a timed call: {wrong}", **found, "after": asdict(wrong.verdict)}
    if isinstance(call, RingCall):
        with spent.during("breakdown"):
            found |= _sent(call, team)
            if job.process == 0:
                found["breakdown"] = breakdown.measure(call, device, team, yardstick.sample, job.protocol)
    with spent.during("judging"):
        after = _after(call, first, team)
    found["after"] = asdict(after)
    if not after.right:
        return {"status": "incorrect", "reason": f"after timing, on fresh inputs: {after.reason}", **found}
    return {"status": "ok", **found, **({"configurations": configs.CHOSEN} if configs.CHOSEN else {})}


def _first_call(job: Job, inputs: Tensors, device: Cpu, team: Team, spent: Spent) -> tuple[CoreCall, dict[str, Any]]:
    """Timed apart: compile, autotune, allocate.

    Raises:
        Unsupported: by the implementation, in words.
    """
    call = make(registry.read(Path(job.implementation)), Workload.from_dict(job.workload), inputs, job.device, team)
    rss_before = _peak_rss()
    with registry.third_party():
        team.line_up()
        with spent.during("sampling"):
            milliseconds = spent.called(device.elapsed_ms(call, 1))
        first_call_ms = max(max(times) for times in team.gather([milliseconds]) or [[0.0]])
    return call, {"first_call_ms": first_call_ms, "rss_growth_mib": (_peak_rss() - rss_before) / MIB}


def _after(call: CoreCall, first: Solved, team: Team) -> Verdict:
    """On other inputs than before timing."""
    again = solved.mirrored(call.implementation.kind, first, call.workload.mask)
    call.refill(again.inputs)
    call()
    return judge_call(call, again, team)


def _memory(call: CoreCall, device: Cpu, team: Team) -> dict[str, Any]:
    """Peak of one call net of its inputs and of anything else that was there, in a call that is not timed.

    Of a ring, that of the rank with the highest, and what its transport holds that the allocator does not know of.
    """
    call.forget()
    peak, operators = device.peak_bytes(call)
    peak += team.transport.memory_bytes() if team.transport else 0
    ranks = [peak_mib for (peak_mib,) in team.gather([peak / MIB])] or [0.0]
    return {
        "peak_mib": max(ranks),
        "peak_with_inputs_mib": max(ranks) + call.input_bytes() / MIB,
        "rank_peak_mib": ranks,
        "backend": backend(operators, device.name),
    }


_FUSED = {
    "flash_attention": "aten flash",
    "efficient_attention": "aten efficient",
    "cudnn_attention": "aten cudnn",
    "native_multi_head_attention": "aten native multi-head",
}
_PRODUCTS = ("aten::bmm", "aten::baddbmm", "aten::mm", "aten::addmm", "aten::_softmax")


def backend(operators: list[str], device: str) -> str:
    """What really ran, from the profile: a fused kernel by name, else the products it is made of."""
    for part, name in _FUSED.items():
        if any(part in operator for operator in operators):
            return f"{name} {device}"
    triton = sorted({name for name in operators if re.search(r"triton|_kernel$", name)})
    if triton:
        return f"triton {triton[0]} {device}"
    found = [name.removeprefix("aten::").lstrip("_") for name in _PRODUCTS if name in operators]
    return f"aten {'+'.join(found) or 'eager'} {device}"


class _Yardstick:
    """The reference, on rank 0 and all cores, while the other ranks wait asleep; `why_not` where there is none."""

    def __init__(self, job: Job, problem: Solved, device: Cpu, team: Team, spent: Spent) -> None:
        self._job, self._device, self._team, self.spent = job, device, team, spent
        self._watch, self.why_not = _reference(job, problem, spent) if team.rank == 0 else (None, None)

    def sample(self, calls: int) -> float:
        """Milliseconds of so many calls, each of them judged; 0 where there is none."""
        milliseconds = 0.0
        if self._watch is not None:
            torch.set_num_threads(self._job.all_threads)
            try:
                milliseconds = _sample(self._watch, self._device, calls, self.spent)
            except WrongResult as wrong:
                self._watch, self.why_not = None, f"the yardstick in a timed call: {wrong}"
            torch.set_num_threads(self._job.threads)
        self._team.line_up()
        return milliseconds


def _sample(watch: Watch, device: Cpu, calls: int, spent: Spent, *, cold: bool = True) -> float:
    """Milliseconds of so many calls; what is done around them to judge them is judging, not sampling."""
    before, after = (spent.around("judging", do) for do in (watch.before, watch.after))
    with spent.during("judging"):
        watch.new_sample()
    return spent.called(device.elapsed_ms(watch.call, calls, before, after, cold=cold))


def _series(
    job: Job, call: CoreCall, device: Cpu, problem: Solved, team: Team, yardstick: _Yardstick
) -> dict[str, Any]:
    """Samples in pairs with the reference. Of several ranks, the slowest one's time is the sample."""
    seed, spent = job.protocol["seed"] + job.process, yardstick.spent
    with spent.during("judging"):
        watch = Watch(call, problem, team, seed)
    sample = partial(_sample, watch, device, spent=spent)

    def clock_share() -> float | None:
        shares = [share for (share,) in team.gather([device.clock_share() or 0.0])]
        return team.agree(min(shares, default=0.0)) or None

    threads = team.gather([float(torch.get_num_threads())])
    ours = team.gather([float(cpu in machine.affinity()) for cpu in range(_MOST_CPUS)])
    hot = partial(sample, cold=False) if device.flushes else None
    clock = clock_share if device.clock_share() is not None else lambda: None
    with spent.during("sampling"):
        series = sample_pairs(
            sample, yardstick.sample, job.protocol, seed, team.agree, hot=hot, clock_share=clock, spent=spent
        )
    ranks = team.gather(series.samples_ms)
    if ranks:
        series.samples_ms = [max(times) for times in zip(*ranks, strict=True)]
    if hot and (hot_of_ranks := team.gather(series.hot_ms)):
        series.hot_ms = [max(times) for times in zip(*hot_of_ranks, strict=True)]
    found: dict[str, Any] = {"series": series.as_dict(), "no_reference": yardstick.why_not}
    found["threads"] = [int(count) for (count,) in threads]
    found["cpus"] = [machine.cpu_list([cpu for cpu, is_ours in enumerate(flags) if is_ours]) for flags in ours]
    return found | ({"rank_samples_ms": ranks} if isinstance(call, RingCall) else {})


def _sent(call: RingCall, team: Team) -> dict[str, Any]:
    """What one call sends: counted where it is handed over, and where it crosses the network, all hosts together.

    The least of a few calls: what others send at the same time is no part of it. Memory that is shared crosses none.
    `yardsticks`: how many processes like the yardstick's the cores or devices of all ranks make.
    """
    comm, wire = call.comm, list[int]()
    for _ in range(_WIRE_CALLS if team.transport and team.transport.name != "shm" else 1):
        comm.sent, before = Sent(), team.wire_bytes()
        call()
        wire.append(team.wire_bytes() - before)
    counted = comm.world_size == 1 or comm.messages > 0  # a row that has its own way to others is not
    name, nodes = team.transport.name if team.transport else None, list(team.node_of_rank)
    return {
        "payload_bytes": comm.payload_bytes if counted else None,
        "messages": comm.messages if counted else None,
        "payload_formula_bytes": _due_bytes(call),
        "wire_bytes": 0 if name in (None, "shm") else min(wire),
        "transport": name,
        "node_of_rank": nodes,
        "hosts": list(team.hosts),
        "yardsticks": comm.world_size if call.device == "cuda" else len(set(nodes)),
    }


def _due_bytes(call: RingCall) -> int | None:
    """What a call must hand over by the formula of its schedule; None for a row that has none."""
    name, comm = call.implementation.name, call.comm
    if name not in formulas.SCHEDULES:
        return None
    group_size = getattr(call.module, "group_size", None)  # of a schedule with two sizes, the one that it chose
    return formulas.due(name, call.workload, comm.world_size, group_size(comm) if group_size else 1).payload_bytes


def _reference(job: Job, problem: Solved, spent: Spent) -> tuple[Watch | None, str | None]:
    """The yardstick on the same problem, or why there is none."""
    try:
        workload = Workload.from_dict(job.workload)
        call = make(registry.read(Path(job.reference)), workload, problem.inputs, job.device, Solo())
        with registry.third_party():
            call()
    except Unsupported as error:
        return None, str(error)
    with spent.during("judging"):
        return Watch(call, problem, Solo(), job.protocol["seed"] + job.process), None


def _peak_rss() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
