"""Stage `oracle_FAMILY@grid`: inputs, float64 results and error budgets of a grid, into data/oracle/FAMILY/GRID/."""

import shutil
import sys
from pathlib import Path

from bench import grid, guard, oracle
from bench.progress import steps


def main(family: str, name: str) -> None:
    """One file a workload, written whole or not at all."""
    guard.die_with_dvc()
    params = grid.load()
    folder = Path("data/oracle") / family / name
    shutil.rmtree(folder, ignore_errors=True)
    workloads = list(dict.fromkeys(params.grids[name].workloads()))
    kind = "module" if family == "module" else "core"
    with steps(f"oracle {family} {name}", len(workloads)) as progress:
        for workload in workloads:
            oracle.write(folder / f"{workload.key}.safetensors", kind, workload, params.protocol.seed)
            progress.step(workload.key)


if __name__ == "__main__":
    main(*sys.argv[1:])
