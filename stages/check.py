"""Stage `check_FAMILY@machine-impl`: judge one implementation on all cases. A wrong one is a result, not a failure."""

import sys
from pathlib import Path

from attn import registry
from bench import checking, grid, guard, kept, mend, records, spent, stage_log
from bench import machine as machines
from bench.files import write_json


def main(machine: str, name: str) -> int:
    """A report with figures, and a verdict without any; exit 1, in a sentence, where what it reads cannot be used."""
    clock = spent.Spent.of_process()
    stage_log.note()
    guard.die_with_dvc()
    mend.keep()
    results = Path("results") / machine
    try:
        identity = machines.recorded(results)
        report = checking.check(registry.IMPL_DIR / f"{name}.py", grid.load(), identity, spent=clock)
    except (kept.Damaged, machines.OtherMachine) as error:
        print(error, file=sys.stderr)
        return 1
    write_json(records.check_path(results, name), report)
    write_json(records.verdict_path(results, name), checking.verdict(report))
    print(f"{name}: {report['status']}{': ' + report['reason'] if report['reason'] else ''}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
