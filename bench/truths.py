"""The oracle's files of a whole grid, one worker a workload: what one cannot compute is a reason, not an end.

And those of the named cases, which every check of a kind uses.
"""

from __future__ import annotations

import hashlib
import shutil
import sys
from pathlib import Path
from typing import Any

from bench import closure, machine, worker
from bench.files import read_json, write_json
from bench.grid import Params
from bench.jobs import REAL
from bench.progress import steps

CASES = Path("data/oracle/cases")
CAPTURED = Path(".scratch/real/minilm.safetensors")  # where a check without DVC puts them

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


def write_cases(params: Params, kind: str) -> None:
    """Solve every named case of a kind (core serves rings too) into data/oracle/cases/KIND.

    Raises:
        RuntimeError: it could not be done, with the worker's status and reason.
    """
    folder = CASES / kind
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    threads = params.threads or machine.cpu_count()
    job = {"kind": kind, "folder": str(folder), "seed": params.protocol.seed, "threads": threads}
    limit = worker.memory_limit(params.protocol.memory_limit_gib)
    result = worker.isolated("solve_cases", job, deadline_s=DEADLINE_S, memory_bytes=limit)
    if result["status"] != "ok":
        raise RuntimeError(f"the cases of kind {kind}: {result['status']}: {result['reason']}")
    write_json(folder / "index.json", _made_from(params.protocol.seed))


def kept_cases(params: Params, kind: str) -> str:
    """The folder of the solved cases of a kind, or nothing where it is not there or of another seed or code."""
    folder = CASES / ("core" if kind == "ring" else kind)
    index = folder / "index.json"
    if index.exists() and read_json(index) == _made_from(params.protocol.seed):
        return str(folder.resolve())
    return ""


def real_inputs() -> str:
    """The file of real inputs; made first, in a folder that git ignores, where the stage `capture` has not run."""
    if Path(REAL).exists():
        return REAL
    if not CAPTURED.exists():
        result = worker.isolated("capture_into", {"path": str(CAPTURED)}, deadline_s=300)
        if result["status"] != "ok":
            print(f"no real inputs: {result['reason']}", file=sys.stderr)
    return str(CAPTURED)


def _made_from(seed: int) -> dict[str, Any]:
    real = Path(REAL)
    return {
        "seed": seed,
        "code": closure.fingerprint(closure.ROOT / "bench" / "cases.py"),
        "real": hashlib.sha256(real.read_bytes()).hexdigest() if real.exists() else None,
    }
