"""What the model of rings is compared with: rates of ranks and link, and real calls of each schedule, all in turns."""

from __future__ import annotations

import random
from typing import Any

import torch

from attn import registry
from attn.contract import Workload
from bench import calibration, calls, device
from bench.device import Do
from bench.team import Team

SCHEDULES = ("ring_v1_p2p", "ring_v2_collective", "ring_zigzag", "ring_ulysses")
RTOL, ATOL = 1e-4, 1e-5  # of float32 against sdpa; errors of rows are judged elsewhere, this keeps wrong ones untimed


def measure_model(job: dict[str, Any], team: Team) -> dict[str, Any]:
    """Rounds of one call each, in random order, all ranks lined up before each; the first round warms up.

    job: workloads (float32, forward), rounds, seed, threads, device. On rank 0 `ms`: by name the samples of each rank,
    and `processor_ms`: of messages. Names: those of `calibration.calls`, `message BYTES`, `SCHEDULE WORKLOAD`.

    Raises:
        ValueError: a schedule computes something else than PyTorch's own attention.
    """
    torch.set_num_threads(job["threads"])
    clock = device.open_device(job["device"])
    workloads = [Workload.from_dict(one) for one in job["workloads"]]
    cells = _cells(workloads, job, team)
    messages = {
        f"message {size}": calibration.Message(next(iter(cells.values())).comm, size)
        for size in calibration.MESSAGE_BYTES
    }
    everything: dict[str, Do] = {**calibration.calls(workloads[0], clock.name), **messages, **cells}
    order = random.Random(job["seed"])
    ms: dict[str, list[float]] = {name: [] for name in everything}
    processor: dict[str, list[float]] = {name: [] for name in messages}
    with torch.no_grad():
        for taken in range(job["rounds"] + 1):
            for name in order.sample(list(everything), len(everything)):
                spent = clock.elapsed_ms(everything[name], 1, team.line_up)
                if taken:
                    ms[name].append(spent)
                if taken and name in messages:
                    processor[name].append(1e3 * messages[name].processor_s)
    return {
        "status": "ok",
        "transport": team.transport.name if team.transport else "none",
        "hosts": list(team.hosts),
        "ms": {name: team.gather(samples) for name, samples in ms.items()},
        "processor_ms": {name: team.gather(samples) for name, samples in processor.items()},
    }


def _cells(workloads: list[Workload], job: dict[str, Any], team: Team) -> dict[str, calls.RingCall]:
    """By `SCHEDULE WORKLOAD`, each called once and right."""
    found, rows = {}, registry.find()
    for w in workloads:
        torch.manual_seed(job["seed"])
        given = {
            name: torch.randn(w.batch, w.seq_len, heads, w.head_dim)
            for name, heads in (("q", w.n_heads), ("k", w.n_kv_heads), ("v", w.n_kv_heads))
        }
        truth = calls.make(rows["sdpa"], w, given, job["device"])
        truth()
        for schedule in SCHEDULES:
            call = calls.RingCall(rows[schedule], w, given, job["device"], team)
            call()
            whole, due = call.results()["out"], truth.results(with_lse=False)["out"]
            right = team.agree(float(torch.allclose(whole, due, RTOL, ATOL)) if team.rank == 0 else 0.0)
            if not right:
                raise ValueError(f"{schedule} {w.key}: not what sdpa computes, within rtol {RTOL:g}, atol {ATOL:g}")
            found[f"{schedule} {w.key}"] = call
    return found
