"""The oracle's files of a whole grid, one worker a workload: what one cannot compute is a reason, not an end.

And those of the named cases, which every check of a kind uses.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

from bench import closure, kept, machine, worker
from bench.files import write_json
from bench.grid import Params
from bench.jobs import REAL
from bench.progress import steps

CASES = Path("data/oracle/cases")
CAPTURED = Path(".scratch/real/minilm.safetensors")  # where a check without DVC puts them

DEADLINE_S = 3600  # float64 is slow at great lengths, but it is done once


def write_all(
    params: Params, family: str, grid: str, folder: Path, device: str = "cpu", deadline_s: float = DEADLINE_S
) -> None:
    """`<workload>.safetensors` each, or `<workload>.json` with the status and reason that its cells will have."""
    kind = "module" if family == "module" else "core"
    workloads = list(dict.fromkeys(params.grids[grid].workloads()))
    with steps(f"oracle {family} {grid}", len(workloads)) as progress:
        for workload in workloads:
            path = folder / f"{workload.key}.safetensors"
            job = {"path": str(path), "kind": kind, "workload": workload.as_dict(), "seed": params.protocol.seed}
            job["device"] = device
            result = worker.isolated(
                "solve_and_write",
                job,
                deadline_s=deadline_s,
                memory_bytes=worker.memory_limit(params.protocol.memory_limit_gib),
            )
            if result["status"] != "ok":
                path.with_suffix(".partial").unlink(missing_ok=True)
                write_json(path.with_suffix(".json"), result)
                print(f"{workload.key}: {result['status']}: {result['reason']}", file=sys.stderr)
            progress.step(workload.key)
    kept.write_index(folder)


def write_cases(params: Params, kind: str) -> None:
    """Solve every named case of a kind (core serves rings too) into data/oracle/cases/KIND.

    Raises:
        RuntimeError: it could not be done, with the worker's status and reason.
        Damaged: the real inputs are not what was captured.
    """
    kept.refuse_damaged(Path(REAL).parent, "capture")
    folder = CASES / kind
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    threads = params.threads or machine.cpu_count()
    job = {"kind": kind, "folder": str(folder), "seed": params.protocol.seed, "threads": threads}
    limit = worker.memory_limit(params.protocol.memory_limit_gib)
    result = worker.isolated("solve_cases", job, deadline_s=DEADLINE_S, memory_bytes=limit)
    if result["status"] != "ok":
        raise RuntimeError(f"the cases of kind {kind}: {result['status']}: {result['reason']}")
    kept.write_index(folder, **_made_from(params.protocol.seed))


def kept_cases(params: Params, kind: str) -> str:
    """The folder of the solved cases of a kind; nothing where it is not there, or of another seed or code.

    Raises:
        Damaged: one of its files is not what was written.
    """
    kind = "core" if kind == "ring" else kind
    folder = CASES / kind
    if not folder.exists():
        return ""
    index, wanted = kept.read_index(folder), _made_from(params.protocol.seed)
    if {name: index.get(name) for name in wanted} != wanted:
        print(f"{folder} is of another seed or code, or incomplete: its cases are solved anew", file=sys.stderr)
        return ""
    kept.refuse_damaged(folder, f"cases@{kind}")
    return str(folder.resolve())


def real_inputs() -> tuple[str, str]:
    """The file of real inputs, and, where there is none, why.

    Where the stage `capture` has not run, they are caught here, into a folder that git ignores.

    Raises:
        Damaged: what the stage wrote is no longer what it was.
    """
    if _captured(Path(REAL)):
        kept.refuse_damaged(Path(REAL).parent, "capture")
        return str(Path(REAL).resolve()), ""
    path = CAPTURED.resolve()
    if not _captured(path) or kept.first_damaged(path.parent):
        path.unlink(missing_ok=True)
        result = worker.isolated("capture_into", {"path": str(path)}, deadline_s=300)
        if result["status"] != "ok":
            return str(path), f"no real inputs: {result['reason']}"
    return str(path), ""


def _captured(path: Path) -> bool:
    """Whether the file is there, with its digest beside it."""
    return path.name in kept.read_index(path.parent).get("files", {})


def _made_from(seed: int) -> dict[str, Any]:
    real = Path(REAL)
    return {
        "seed": seed,
        "code": closure.fingerprint(closure.ROOT / "bench" / "cases.py"),
        "real": kept.digest(real) if real.exists() else None,
    }
