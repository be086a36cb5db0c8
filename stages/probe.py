"""Stage `probe`: params.yaml is right, and which machine is this. Runs always."""

import sys
from pathlib import Path

from bench import grid, guard, machine, mend, placement, stage_log
from bench.files import write_json


def main() -> int:
    """Exit 2, with one line a fault, before anything else runs or is touched."""
    stage_log.note()
    guard.die_with_dvc()
    mend.keep()
    try:
        params = grid.load()
        placement.refuse_unknown(params.launch)
        found = machine.identity(params)
        path = Path("results") / params.machine / "machine.json"
        machine.refuse_other_machine(params.machine, found, path)
    except grid.InvalidParams as error:
        print(error, file=sys.stderr)
        return 2
    except machine.OtherMachine as error:
        print(error, file=sys.stderr)
        return 2
    write_json(path, found)
    write_json(path.with_name("packages.json"), machine.packages())
    write_json(path.with_name("launch.json"), params.launch.model_dump())
    print(machine.in_words(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
