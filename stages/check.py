"""Stage `check_FAMILY@machine-impl`: judge one implementation on all cases. A wrong one is a result, not a failure."""

import sys
from pathlib import Path

from attn import registry
from bench import checking, grid, guard, mend, records
from bench.files import read_json, write_json


def main(machine: str, name: str) -> None:
    """A report with figures, and a verdict without any."""
    guard.die_with_dvc()
    mend.keep()
    results = Path("results") / machine
    report = checking.check(registry.IMPL_DIR / f"{name}.py", grid.load(), read_json(results / "machine.json"))
    write_json(records.check_path(results, name), report)
    write_json(records.verdict_path(results, name), checking.verdict(report))
    print(f"{name}: {report['status']}{': ' + report['reason'] if report['reason'] else ''}")


if __name__ == "__main__":
    main(*sys.argv[1:])
