"""Stage `bench_FAMILY@machine-impl-grid`: measure one implementation on one grid. Exits 0 whatever a cell's status."""

import sys
from pathlib import Path

from bench import grid, guard, kept, mend, records, runner, spent, stage_log
from bench import machine as machines


def main(family: str, machine: str, name: str, grid_name: str) -> int:
    """Goes on where an interrupted run stopped."""
    clock = spent.Spent.of_process()
    stage_log.note()
    guard.die_with_dvc()
    mend.keep()
    results = Path("results") / machine
    params = grid.load()
    try:
        identity = machines.recorded(results)
    except machines.OtherMachine as error:
        print(error, file=sys.stderr)
        return 1
    campaign = runner.Campaign.recorded(params, identity, results, family, name, grid_name)
    try:
        measured = runner.run(campaign, clock)
    except KeyboardInterrupt:
        print("interrupted; what was measured is kept, run `dvc repro` to go on", file=sys.stderr)
        return 130
    except kept.Damaged as error:
        print(error, file=sys.stderr)
        return 1
    path = records.bench_path(results, name, grid_name)
    records.write(path, measured)
    runner.finish(campaign, path)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
