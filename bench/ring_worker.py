"""What one rank runs: `mpiexec -n N python -m mpi4py -m bench.ring_worker FOLDER` (started by bench.launch)."""

from __future__ import annotations

import faulthandler
import os
import resource
import sys
from pathlib import Path

from bench import guard
from bench.files import read_json, write_json, write_text
from bench.team import Ranks
from bench.worker import task


def main(folder: Path) -> None:
    """All jobs of the folder in order; rank 0 writes each result. An exception ends all ranks (mpi4py's runner)."""
    guard.die_with_parent()
    asked = read_json(folder / "jobs.json")
    write_text(folder / f"rank-{os.getpid()}.txt", f"{os.getpid()}\n")
    if asked["memory_bytes"]:
        resource.setrlimit(resource.RLIMIT_DATA, (asked["memory_bytes"],) * 2)
    faulthandler.dump_traceback_later(asked["deadline_s"] + 1, exit=True)
    team = Ranks(asked["world_size"], asked["jobs"][0]["device"], asked["deadline_s"])
    write_text(folder / f"rank-{os.getpid()}.txt", "\n".join([str(os.getpid()), *_shared_memory()]))
    write_text(folder / f"ready-{team.rank}", "")  # all ranks have found each other; from here on the row is at fault
    run = task(asked["task"])
    for index, job in enumerate(asked["jobs"]):
        faulthandler.dump_traceback_later(asked["deadline_s"] + 1, exit=True)  # a rank's own deadline
        result = run(job, team)
        if team.rank == 0:
            write_json(folder / f"{index}.json", result)
    faulthandler.cancel_dump_traceback_later()
    team.close()


def _shared_memory() -> list[str]:
    """MPI's segments, which nobody removes when a rank is killed."""
    with open("/proc/self/maps", encoding="utf-8") as maps:
        return sorted({line.split()[-1] for line in maps if "/dev/shm/mpich" in line and "deleted" not in line})  # noqa: S108  # not ours to make


if __name__ == "__main__":
    main(Path(sys.argv[1]))
