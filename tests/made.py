"""Made-up records for tests: legal ones, which a test then changes."""

from pathlib import Path

from attn.contract import Workload
from bench import grid
from bench.records import Figure, Figures, Record

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
        "processes": [{"status": "ok"}],
        "measured_at": "20260102_030405",
    }
    return Record(**{**fields, **changes})


def failed(status="crashed", reason="it fell over", **changes):
    """A record without figures."""
    nothing = {"figures": None, "processes": [], "measured_at": None, "max_abs_error": {}, "over_budget": {}}
    return record(**{"status": status, "reason": reason, **nothing, **changes})


def records_of(params, grids=None):
    """One ok record for every cell that params.yaml asks for."""
    return [
        record(
            implementation=cell.implementation,
            family=family,
            grid=cell.grid,
            workload=cell.workload.as_dict(),
            world_size=cell.world_size,
            reference=params.reference_of(family),
        )
        for family in grid.FAMILIES
        for name in params.family(family).implementations
        for chosen in params.family(family).grids
        if grids is None or chosen in grids
        for cell in grid.cells(params, family, name, chosen)
    ]
