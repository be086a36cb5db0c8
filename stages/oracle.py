"""Stage `oracle_FAMILY@grid`: inputs, float64 results and error budgets of a grid, into data/oracle/FAMILY/GRID/."""

import shutil
import sys
from pathlib import Path

from bench import grid, guard, mend, stage_log, truths


def main(family: str, name: str) -> None:
    """One file a workload, written whole or not at all."""
    stage_log.note()
    guard.die_with_dvc()
    mend.keep()
    folder = Path("data/oracle") / family / name
    shutil.rmtree(folder, ignore_errors=True)
    truths.write_all(grid.load(), family, name, folder)


if __name__ == "__main__":
    main(*sys.argv[1:])
