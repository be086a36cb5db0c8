"""Which rank runs on which host, and the command that starts them: mpiexec, or srun inside an allocation of Slurm."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from bench import wire
from bench.grid import InvalidParams, Launch

_SHARED = Path(".scratch/launch")  # all hosts see the repository; a folder of /tmp is each host's own


def why_not(launch: Launch | None = None) -> str | None:
    """Why no ranks can be started here, or on the hosts of `launch`, in one line."""
    if not inside_slurm() and find_mpiexec() is None:
        return "no mpiexec beside this python nor on PATH: pip install mpich"
    if importlib.util.find_spec("mpi4py") is None:
        return "needs the package mpi4py, which is not installed"
    try:
        launcher_address(launch or Launch())
    except ValueError as error:
        return f"params.yaml, launch: {error}"
    return None


def refuse_unknown(launch: Launch) -> None:
    """Hosts and the interface must be known here, from where ranks are started; of hosts Slurm knows more than we do.

    Raises:
        InvalidParams: one line each that is not.
    """
    faults, asked = list[str](), list[tuple[str, str, Callable[[str], str]]]()
    asked += (
        [] if inside_slurm() else [(f"hosts[{i}]", host, wire.address_towards) for i, host in enumerate(launch.hosts)]
    )
    asked += [("interface", launch.interface, wire.address_of)] if launch.interface else []
    for where, name, find in asked:
        try:
            find(name)
        except ValueError as error:
            faults.append(f"params.yaml: launch.{where} = {name}: {error}")
    if faults:
        raise InvalidParams(faults)


def find_mpiexec() -> str | None:
    """The mpiexec of this environment (the mpich wheel puts it beside python), else of PATH."""
    beside = Path(sys.executable).parent / "mpiexec"
    return str(beside) if beside.exists() else shutil.which("mpiexec")


def inside_slurm() -> bool:
    """Whether this is an allocation of Slurm: there srun starts ranks, and ends them all when one has died."""
    return "SLURM_JOB_ID" in os.environ and shutil.which("srun") is not None


def blocks(world_size: int, hosts: Sequence[str]) -> dict[str, int]:
    """How many ranks each host gets: neighbours stay together, and no host has two more than another.

    Hosts that get none are left out; without hosts nothing is dealt.
    """
    count = len(hosts)
    dealt = {host: world_size // count + (i < world_size % count) for i, host in enumerate(hosts)}
    return {host: ranks for host, ranks in dealt.items() if ranks}


def most_on_a_host(world_size: int, launch: Launch) -> int:
    """Ranks that share the cores of a host, where most of them are."""
    return -(-world_size // (len(launch.hosts) or _nodes()))


def command(world_size: int, launch: Launch) -> list[str]:
    """What starts that many ranks of the program that follows."""
    dealt = blocks(world_size, launch.hosts)
    if inside_slurm():
        nodes = min(world_size, len(dealt) or _nodes())
        srun = ["srun", "--mpi=pmi2", "--overlap", "--overcommit", "--kill-on-bad-exit=1", "--distribution=block"]
        where = [f"--nodelist={','.join(dealt)}"] if dealt else []
        return [*srun, *where, f"--nodes={nodes}", f"--ntasks={world_size}"]
    mpiexec = find_mpiexec()
    assert mpiexec is not None
    where = ["-hosts", ",".join(f"{host}:{ranks}" for host, ranks in dealt.items())] if dealt else []
    return [mpiexec, *where, "-n", str(world_size)]


def environment(launch: Launch) -> dict[str, str]:
    """What MPI's network layers read, where an interface is named; torch.distributed's are set by the ranks."""
    name = launch.interface
    return {"FI_TCP_IFACE": name, "UCX_NET_DEVICES": name} if name else {}


def launcher_address(launch: Launch) -> str:
    """Our address as the hosts see it.

    Raises:
        ValueError: a host's name is not known here, or an interface is not there.
    """
    if launch.interface:
        return wire.address_of(launch.interface)
    found = (wire.address_towards(host) for host in launch.hosts)
    return next((address for address in found if not address.startswith("127.")), "127.0.0.1")


def folder_for_all(launch: Launch) -> Path | None:
    """Where files lie that all ranks read and write; None: the temporary folder will do."""
    if not launch.hosts and not inside_slurm():
        return None
    _SHARED.mkdir(parents=True, exist_ok=True)
    return _SHARED.absolute()


def _nodes() -> int:
    """Nodes of our allocation."""
    return int(os.environ.get("SLURM_JOB_NUM_NODES", "1")) if inside_slurm() else 1
