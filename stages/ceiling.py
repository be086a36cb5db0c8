"""Stage `ceiling`: the best matrix-product and copy rates of this machine."""

import sys
from pathlib import Path

from bench import guard, stage_log, worker
from bench import machine as machines
from bench.files import write_json
from bench.lock import device_lock


def main(machine: str) -> int:
    """In a process of its own, as everything that is timed."""
    stage_log.note()
    guard.die_with_dvc()
    try:
        identity = machines.recorded(Path("results") / machine)
    except machines.OtherMachine as error:
        print(error, file=sys.stderr)
        return 1
    job = {"threads": identity["threads"], "device": identity["device"]}
    with device_lock(identity["device"]):
        found = worker.isolated("measure_ceiling", job, deadline_s=300)
    if found.pop("status") != "ok":
        print(f"ceiling: {found['reason']}", file=sys.stderr)
        return 1
    write_json(Path("results") / machine / "ceiling.json", found)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
