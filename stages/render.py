"""Stage `render@machine`: tables, plots, metrics.json and report.md from what is recorded."""

import sys
from pathlib import Path

from bench import grid, guard, report, stage_log, store


def main(machine: str) -> None:
    """Then show the table that started this project."""
    stage_log.note()
    guard.die_with_dvc()
    results = Path("results") / machine
    report.render(grid.load(), results)
    store.sweep()  # here DVC knows every record
    print((results / "seed.txt").read_text(encoding="utf-8"))
    print(f"All tables and pictures: {results}/report.md")


if __name__ == "__main__":
    main(*sys.argv[1:])
