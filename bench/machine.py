"""Which machine this is (identity: what figures depend on and does not change by itself) and how busy it is (state).

What a machine does not tell is "unavailable", never blank.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import shutil
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

from attn import registry
from bench import closure
from bench.files import read_json
from bench.grid import InvalidParams, Params

UNAVAILABLE = "unavailable"
SCHEMA_VERSION = 1
_BINDING = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY")
_HARDWARE = ("cpu_model", "cpu_count", "memory_gib", "gpu_model", "gpu_count", "gpu_memory_gib")


class OtherMachine(Exception):
    """Results of a named machine would be overwritten by those of another; the message says what to do."""


def identity(params: Params) -> dict[str, Any]:
    """Hardware, versions, device and threads. No time, no load: a second call gives the same."""
    return {
        "schema_version": SCHEMA_VERSION,
        **_hardware(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": version("torch"),
        "triton": version("triton"),
        "mpi": f"mpich {version('mpich')}" if version("mpich") != UNAVAILABLE else UNAVAILABLE,
        "mpi4py": version("mpi4py"),
        "device": device_of(params),
        "threads": params.threads or cpu_count(),
        "image": os.environ.get("ATTN_BENCH_IMAGE") or UNAVAILABLE,
    }


def device_of(params: Params) -> str:
    """`cpu` or `cuda`; `auto` is cuda where torch sees a device.

    Raises:
        InvalidParams: cuda is asked for where there is none.
    """
    if params.device == "cpu":
        return "cpu"
    import torch

    here = torch.cuda.is_available()
    if params.device == "cuda" and not here:
        raise InvalidParams(["params.yaml: device = 'cuda': torch sees no CUDA device here, allowed: auto, cpu"])
    return "cuda" if here else "cpu"


def packages() -> dict[str, str]:
    """Versions of the third-party packages that rows import, `unavailable` where one is not installed."""
    distributions = metadata.packages_distributions()
    names = closure.third_party(*(one.path for one in registry.find().values()))
    return {name: version(distributions.get(name, [name])[0]) for name in names}


def state() -> dict[str, Any]:
    """Load, clocks, and which processors are ours at this moment; goes into records, not into the identity.

    cpus: those that this process may use, as `0-3,8`. pinned: whether there are others. binding: what the environment
    asks of OpenMP; `none` where it does not.
    """
    return {
        "load_1min": round(os.getloadavg()[0], 2),
        "cpu_mhz": _cpu_mhz(),
        "governor": _governor(),
        "cpus": cpu_list(sorted(affinity())) or UNAVAILABLE,
        "pinned": len(affinity()) < (os.cpu_count() or 1) if affinity() else UNAVAILABLE,
        "binding": " ".join(f"{name}={os.environ[name]}" for name in _BINDING if name in os.environ) or "none",
    }


def can_keep_memory() -> bool:
    """Whether the C library can be told to keep what is freed (glibc's mallopt)."""
    return hasattr(ctypes.CDLL(None), "mallopt")


def affinity() -> set[int]:
    """Processors that this process may use; none where the system does not tell."""
    return os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()


def cpu_list(cpus: list[int]) -> str:
    """Ascending numbers as taskset takes them: `0-3,8`."""
    runs: list[list[int]] = []
    for cpu in cpus:
        if runs and cpu == runs[-1][-1] + 1:
            runs[-1].append(cpu)
        else:
            runs.append([cpu])
    return ",".join(f"{run[0]}-{run[-1]}" if run[1:] else str(run[0]) for run in runs)


def cpu_count() -> int:
    """Processors that this process may use."""
    return len(affinity()) or os.cpu_count() or 1


def threads_per_rank(threads: int, world_size: int) -> int:
    """The machine's threads shared out, at least one each."""
    return max(1, threads // world_size)


def why_no_ranks(identity: dict[str, Any], world_size: int) -> str | None:
    """Why that many ranks cannot run: on CUDA every rank needs a device of its own."""
    if identity["device"] == "cuda" and world_size > max(1, identity["gpu_count"]):
        return f"{world_size} ranks need {world_size} CUDA devices, {identity['gpu_count']} here"
    return None


def version(package: str) -> str:
    """Of an installed package, without importing it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return UNAVAILABLE


def refuse_other_machine(name: str, found: dict[str, Any], recorded: Path) -> None:
    """A named machine's folder takes no figures from other hardware or versions.

    Raises:
        OtherMachine: naming the fields that differ.
    """
    if name == "local" or not recorded.exists():
        return
    before = read_json(recorded)
    fields = [key for key in {**before, **found} if before.get(key) != found.get(key)]
    if fields:
        first = ", ".join(f"{key} {before.get(key)!r} there, {found.get(key)!r} here" for key in fields[:3])
        raise OtherMachine(
            f"params.yaml: machine = {name}: {recorded} was measured on another machine ({first}); "
            f"set machine: local, or a new name"
        )


def recorded(results: Path) -> dict[str, Any]:
    """The identity that `probe` wrote, for a stage that measures; stages may run on nodes that probe has not seen.

    Raises:
        OtherMachine: the hardware here is not what it saw.
    """
    found, here = read_json(results / "machine.json"), _hardware()
    differs = [f"{key} {found[key]!r} there, {here[key]!r} here" for key in _HARDWARE if found[key] != here[key]]
    if differs:
        raise OtherMachine(
            f"{results}/machine.json: probe saw other hardware than this stage ({', '.join(differs[:3])}); "
            f"run both on nodes of one kind, or `dvc repro` as a whole"
        )
    return found  # type: ignore[no-any-return]


def in_words(found: dict[str, Any]) -> str:
    """One line for the head of a table."""
    gpu = f", {found['gpu_count']} x {found['gpu_model']}" if found["gpu_model"] != UNAVAILABLE else ""
    return (
        f"{found['cpu_model']}, {found['cpu_count']} cores, {found['memory_gib']} GiB{gpu}; "
        f"{found['threads']} threads on {found['device']}; torch {found['torch']}, python {found['python']}"
    )


def _hardware() -> dict[str, Any]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {"cpu_model": _cpu_model(), "cpu_count": cpu_count(), "memory_gib": round(memory / 2**30), **_gpu()}


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or UNAVAILABLE
    fields = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    numbers = " ".join(f"{key} {fields[key]}" for key in ("cpu family", "model", "stepping") if key in fields)
    return f"{fields.get('model name', UNAVAILABLE)} ({numbers})" if numbers else fields.get("model name", UNAVAILABLE)


def _gpu() -> dict[str, Any]:
    nothing = {"gpu_model": UNAVAILABLE, "gpu_count": 0, "gpu_memory_gib": UNAVAILABLE, "driver": UNAVAILABLE}
    tool = shutil.which("nvidia-smi")
    if not tool:
        return nothing
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits"]
    answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=False)
    rows = [line.split(", ") for line in answer.stdout.splitlines() if line.count(", ") == 2]
    if answer.returncode or not rows:
        return nothing
    model, memory_mib, driver = rows[0]
    return {
        "gpu_model": model,
        "gpu_count": len(rows),
        "gpu_memory_gib": round(float(memory_mib) / 1024),
        "driver": driver,
    }


def _cpu_mhz() -> float | str:
    try:
        found = re.findall(r"cpu MHz\s*:\s*([\d.]+)", Path("/proc/cpuinfo").read_text(encoding="utf-8"))
    except OSError:
        found = []
    return round(sum(map(float, found)) / len(found), 1) if found else UNAVAILABLE


def _governor() -> str:
    try:
        return Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").read_text(encoding="ascii").strip()
    except OSError:
        return UNAVAILABLE
