"""What one rank runs: `mpiexec -n N python -m mpi4py -m bench.ring_worker FOLDER` (started by bench.launch)."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import guard, warden, wire
from bench.files import read_json, write_json

if TYPE_CHECKING:
    from bench.warden import Ward


def main(folder: Path) -> None:
    """All jobs of the folder in order; rank 0 writes each result. An exception ends all ranks (mpi4py's runner)."""
    guard.die_with_parent()
    asked = read_json(folder / "jobs.json")
    address = _address(asked)
    ward = warden.start(folder, wire.host_name(), address, asked["token"], asked["deadline_s"])
    guard.adopt_orphans()
    if asked["memory_bytes"]:
        resource.setrlimit(resource.RLIMIT_DATA, (asked["memory_bytes"],) * 2)
    log = os.open(folder / f"log-{ward.name}", os.O_WRONLY | os.O_CREAT)
    for standard in (1, 2):
        os.dup2(log, standard)
    try:
        _all(asked, folder, ward, address)
    except BaseException as error:
        from bench.worker import status_of

        ward.raised(status_of(error))
        raise
    finally:
        ward.end_children()


def _address(asked: dict[str, Any]) -> str:
    """Where this host can be reached by the launcher; Slurm says where that is."""
    if asked["interface"]:
        return wire.address_of(asked["interface"])
    launcher = os.environ.get("SLURM_LAUNCH_NODE_IPADDR") or asked["launcher"]
    return wire.address_towards(launcher)


def _all(asked: dict[str, Any], folder: Path, ward: Ward, address: str) -> None:
    """Torch and MPI come here: the number of threads must be known before, and who watches must be there."""
    os.environ["OMP_NUM_THREADS"] = str(asked["jobs"][0]["threads"])
    from bench.team import Ranks
    from bench.worker import task

    team = Ranks(
        asked["world_size"], asked["jobs"][0]["device"], asked["deadline_s"],
        address=address, transport=asked["transport"], ulysses_size=asked["ulysses_size"],
    )  # fmt: skip
    ward.ready(team.rank)
    run = task(asked["task"])
    for index, job in enumerate(asked["jobs"]):
        if index:
            ward.next_job()
        result = run({**job, "threads": min(job["threads"], team.threads)}, team)
        if team.rank == 0:
            write_json(folder / f"{index}.json", result)
    team.close()
    ward.done()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
