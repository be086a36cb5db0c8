"""The oracle's files of a whole grid, one worker a workload: what one cannot compute is a reason, not an end."""

from __future__ import annotations

import sys
from pathlib import Path

from bench import worker
from bench.files import write_json
from bench.grid import Params
from bench.progress import steps

DEADLINE_S = 3600  # float64 is slow at great lengths, but it is done once


def write_all(params: Params, family: str, grid: str, folder: Path) -> None:
    """`<workload>.safetensors` each, or `<workload>.json` with the status and reason that its cells will have."""
    kind = "module" if family == "module" else "core"
    workloads = list(dict.fromkeys(params.grids[grid].workloads()))
    with steps(f"oracle {family} {grid}", len(workloads)) as progress:
        for workload in workloads:
            path = folder / f"{workload.key}.safetensors"
            job = {"path": str(path), "kind": kind, "workload": workload.as_dict(), "seed": params.protocol.seed}
            result = worker.isolated(
                "solve_and_write",
                job,
                deadline_s=DEADLINE_S,
                memory_bytes=worker.memory_limit(params.protocol.memory_limit_gib),
            )
            if result["status"] != "ok":
                path.with_suffix(".partial").unlink(missing_ok=True)
                write_json(path.with_suffix(".json"), result)
                print(f"{workload.key}: {result['status']}: {result['reason']}", file=sys.stderr)
            progress.step(workload.key)
