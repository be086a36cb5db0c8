"""Made-up records for tests: legal ones, which a test then changes."""

from pathlib import Path

from attn.contract import Workload
from bench import grid
from bench.records import LEFT_OUT, Figure, Figures, Loss, Record, Ring

PARAMS = Path(__file__).parent.parent / "params.yaml"


def figure(value=2.0):
    return Figure(value=value, low=0.9 * value, high=1.1 * value)


def figures(**changes):
    fields = {
        "time_ms": figure(),
        "relative_time": figure(1.5),
        "efficiency": None,
        "throughput_tok_per_s": 256000.0,
        "flops": 10**9,
        "tflops": 0.5,
        "first_call_ms": 3.0,
        "peak_mib": 4.0,
        "peak_with_inputs_mib": 7.0,
        "rss_growth_mib": 1.0,
        "payload_bytes": None,
        "messages": None,
    }
    return Figures(**{**fields, **changes})


def ring(world_size=1, **changes):
    """What the record of a ring has besides: nothing sent by one rank, shared memory between several."""
    alone = world_size == 1
    fields = {
        "transport": None if alone else "shm",
        "node_of_rank": [0] * world_size,
        "hosts": ["here"] * world_size,
        "threads": [1] * world_size,
        "payload_formula_bytes": 0 if alone else 1 << 20,
        "wire_bytes": 0,
        "rank_ms": [2.0] * world_size,
        "rank_compute_ms": [1.5] * world_size,
        "rank_peak_mib": [4.0] * world_size,
        "rounds": 5,
        "real_ms": figure(2.0),
        "compute_ms": figure(1.5),
        "communication_ms": None if alone else figure(0.75),
        "sequence_ms": None if alone else figure(2.25),
        "hidden": None if alone else Figure(value=0.33, low=-0.1, high=1.2),
        "loss": loss(),
        "no_loss": None,
    }
    return Ring(**{**fields, **changes})


def loss(**changes):
    """A budget that adds up."""
    terms = {"ideal_ms": 1.0, "smaller_blocks_ms": 0.3, "merge_ms": 0.1, "imbalance_ms": 0.1, "exposed_ms": 0.5}
    return Loss(**{**terms, "real_ms": 2.0, **changes})


def series(ms=2.0, spread=0.01, **changes):
    """Five pairs; samples lie evenly within `spread` of their median."""
    times = [ms * (1 + spread * step / 2) for step in (-1, -0.5, 0, 0.5, 1)]
    fields = {"calls": 10, "samples_ms": times, "reference_ms": [ms / 1.5] * 5, "wall_ms": [40.0] * 5}
    signs = {
        "cpu_per_wall": [2.0] * 5,
        "preempted": [0] * 5,
        "steal_ms": [0.0] * 5,
        "stalled_ms": [0.0] * 5,
        "outliers": [],
        "throttled_ms": [],
    }
    return {**fields, **signs, **changes}


def record(**changes):
    """A record that is ok; with another `status`, give `reason` and what else belongs to it."""
    fields = {
        "implementation": "standard",
        "family": "core",
        "grid": "seed",
        "workload": Workload(1, 512, 8, 8, 64, "float32", "full", "forward").as_dict(),
        "world_size": 1,
        "threads": 2,
        "oversubscribed": False,
        "reference": "sdpa",
        "status": "ok",
        "reason": None,
        "backend": "aten bmm cpu",
        "max_abs_error": {"out": 1e-7},
        "over_budget": {"out": 0.5},
        "figures": figures(),
        "processes": [{"status": "ok", "series": series()}],
        "measured_at": "20260102_030405",
    }
    fields |= changes
    if fields["family"] == "ring" and fields["status"] == "ok":
        fields.setdefault("ring", ring(fields["world_size"]))
    return Record(**fields)


def failed(status="crashed", reason="it fell over", **changes):
    """A record without figures."""
    nothing = {"figures": None, "processes": [], "measured_at": None, "max_abs_error": {}, "over_budget": {}}
    return record(**{"status": status, "reason": reason, **nothing, **changes})


def records_of(params, grids=None):
    """One record for every cell of params.yaml: ok, or left out as it says there."""

    def made(family, cell):
        named = {"implementation": cell.implementation, "family": family, "grid": cell.grid}
        shape = {"workload": cell.workload.as_dict(), "world_size": cell.world_size}
        why = params.grids[cell.grid].why_excluded(cell.workload, "cpu", cell.implementation)
        rest = {**named, **shape, "reference": params.reference_of(family)}
        return failed("not_measured", f"{LEFT_OUT}{why}", **rest) if why else record(**rest)

    return [
        made(family, cell)
        for family in grid.FAMILIES
        for name in params.family(family).implementations
        for chosen in params.family(family).grids
        if grids is None or chosen in grids
        for cell in grid.cells(params, family, name, chosen)
    ]
