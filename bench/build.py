"""Every configuration of a kernel compiled ahead of time, on all cores, for GPUs that need not be here.

What is compiled is kept by the code and the versions that it came from: a configuration is compiled again only when
one of those changes, and a build that was interrupted goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
import queue
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from attn.kernels.flash import candidates
from attn.kernels.flash.configs import Config
from bench import build_peers, build_sass, build_triton, closure, machine
from bench.files import read_json, write_json
from bench.progress import steps
from bench.worker import tail

FOLDER = Path("data/build")
REPORT = Path("results/build.json")
_DEADLINE_S = 300
_DYING_S = 10
_COMPILER = (sys.executable, "-m", "bench.build_compile")
_SOURCES = closure.ROOT / "attn" / "kernels" / "flash"
_BENCH = closure.ROOT / "bench"
_TRITONS = "flash_attention.py"
_NOT_KEPT = ("cubin", "figures", "source", "missing")


def build(kernel: str, folder: Path = FOLDER) -> list[dict[str, Any]]:
    """Compile what is not there yet; one file of figures and one cubin each in folder/kernel, and nothing else.

    Returns what was compiled now. One that does not compile has the status `failed`, with the compiler's last lines;
    `lost`, and tried again when this is next called, where the compiler died or took too long.

    Raises:
        ValueError: there is no such kernel.
    """
    allowed = (*candidates.KERNELS, build_peers.PEERS)
    if kernel not in allowed:
        raise ValueError(f"no kernel {kernel}, allowed: {', '.join(allowed)}")
    target = folder / kernel
    target.mkdir(parents=True, exist_ok=True)
    jobs = _jobs(kernel, target)
    todo = [job for job in jobs if not _is_there(job)]
    missing = build_triton.fetch(target / _TRITONS) if any("source" in job for job in todo) else None
    todo = [job | ({"missing": missing} if missing and "source" in job else {}) for job in todo]
    kept = {Path(job[which]).name for job in jobs for which in ("cubin", "figures", "source") if which in job}
    for path in sorted(target.iterdir()):
        if path.name not in kept:
            path.unlink()
    found = []
    cores = min(machine.cpu_count(), len(todo))
    with ExitStack() as stack, steps(f"build {kernel}", len(todo)) as progress:
        compilers: queue.SimpleQueue[_Compiler] = queue.SimpleQueue()
        for _ in range(cores):
            compilers.put(stack.enter_context(_Compiler()))
        pool = stack.enter_context(ThreadPoolExecutor(max(1, cores)))
        for done in as_completed([pool.submit(_compile, job, compilers) for job in todo]):
            found.append(done.result())
            progress.step(f"{found[-1]['key']}/{found[-1]['config']} {found[-1]['status']}")
    return found


def report(folder: Path = FOLDER) -> dict[str, list[dict[str, Any]]]:
    """`configurations`: all that is built, in the order of the candidates, each with `verdict`: passed, or why not.

    `others`: what is compiled beside them; `comparison`: those against these.

    Raises:
        FileNotFoundError: something was never built.
    """
    ours = [entry | {"verdict": verdict(entry)} for kernel in candidates.KERNELS for entry in _figures(kernel, folder)]
    others = _figures(build_peers.PEERS, folder)
    return {"configurations": ours, "others": others, "comparison": build_peers.comparison(ours, others)}


def verdict(entry: dict[str, Any]) -> str:
    """`passed`, or what speaks against choosing a configuration on its architecture, with numbers."""
    if entry["status"] != "compiled":
        return f"{'was lost' if entry['status'] == 'lost' else 'does not compile'}: {entry['reason']}"
    arch, limit = entry["arch"], build_sass.LIMITS[entry["arch"]].shared_per_block
    if entry["shared_bytes"] > limit:
        return f"{entry['shared_bytes']} bytes of shared memory, sm_{arch} has {limit}"
    if entry["kernel"] in candidates.WITHOUT_PRODUCT:
        return f"{entry['stack_bytes']} bytes of local memory" if entry["stack_bytes"] else "passed"
    return _main_loop(entry, Config.parse(entry["config"])) or "passed"


def needed(entry: dict[str, Any], config: Config) -> int:
    """Multiply-adds of one tile in the main loop: products x block_m x block_n x head_dim."""
    return build_peers.PRODUCTS.get(entry["kernel"], 2) * config.block_m * config.block_n * int(entry["head_dim"])


def passed(found: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Of every key, the names of the configurations that can be chosen, in the order of the candidates."""
    names: dict[str, list[str]] = {}
    for entry in found:
        if entry["kernel"] not in candidates.WITHOUT_PRODUCT:
            names.setdefault(entry["key"], [])
            names[entry["key"]] += [entry["config"]] if entry["verdict"] == "passed" else []
    return names


def _main_loop(entry: dict[str, Any], config: Config) -> str | None:
    if not entry["loops"]:
        return "no loop with products found"
    if entry["loop_local"]:
        return f"{entry['loop_local']} accesses to local memory in a main loop"
    return None if entry["dtype"] == "float32" else _tensor_cores(entry, config)


def _tensor_cores(entry: dict[str, Any], config: Config) -> str | None:
    """Whether every product of the main loop is a tensor-core instruction, of the newest kind from 64 rows on."""
    rows = config.block_n if entry["kernel"] == "dkdv" else config.block_m
    kinds = {opcode.split(".")[0] for opcode in entry["loop_tensor"]}
    newest = {90: "HGMMA", 100: "UTCHMMA"}.get(entry["arch"], "HMMA")
    if not kinds:
        return "no tensor-core instruction in the main loop"
    if rows >= 64 and kinds != {newest}:  # the least that those take
        return f"{', '.join(sorted(kinds))} in the main loop, {newest} is due from 64 rows on"
    done, due = build_sass.products(entry["loop_tensor"], config.num_warps), needed(entry, config)
    return f"tensor cores do {done} multiply-adds of {due}" if done is not None and done < due else None


def _figures(kernel: str, folder: Path) -> list[dict[str, Any]]:
    found = (read_json(Path(job["figures"])) for job in _jobs(kernel, folder / kernel))
    return [{name: value for name, value in entry.items() if name != "code"} for entry in found]


def _jobs(kernel: str, target: Path) -> list[dict[str, Any]]:
    """What is compiled into a folder; `code`: by what it is kept."""
    jobs = []
    for job in build_peers.all_jobs() if kernel == build_peers.PEERS else _ours(kernel):
        names = (f"sm_{job['arch']}", job["dtype"], f"d{job['head_dim']}")
        stem = "-".join((*names, job["config"]))
        if "mask" in job:
            stem = f"{job['kernel']}-{stem}-{job['mask']}"
        job["key"] = "/".join((job["kernel"], *names))
        if job["kernel"].startswith("triton"):
            job["source"] = str(target / _TRITONS)
        made_by = hashlib.sha256(json.dumps([job, _code(job["kernel"])]).encode()).hexdigest()[:16]
        jobs.append(job | {"code": made_by, "cubin": str(target / f"{stem}.cubin"), "figures": f"{target / stem}.json"})
    return jobs


def _ours(kernel: str) -> Iterator[dict[str, Any]]:
    for arch, dtype, head_dim, config in candidates.all_candidates(kernel):
        yield {"kernel": kernel, "arch": arch, "dtype": dtype, "head_dim": head_dim, "config": config}


def _code(kernel: str) -> list[str | None]:
    """Hash of what a kernel is made from, and versions of what makes it."""
    whose = kernel.partition("_")[0]
    own = _BENCH / f"build_{whose}.py" if kernel in build_peers.KERNELS else _SOURCES / f"{kernel}.py"
    made_from = closure.fingerprint(own, _BENCH / "build_compile.py")
    return [made_from, machine.version("triton"), machine.version("torch") if whose == "flex" else None]


def _is_there(job: dict[str, Any]) -> bool:
    try:
        found = read_json(Path(job["figures"]))
    except (FileNotFoundError, ValueError):
        return False
    if not isinstance(found, dict) or "status" not in found:  # not of ours
        return False
    whole = found["status"] == "failed" or (found["status"] == "compiled" and Path(job["cubin"]).exists())
    return found.get("code") == job["code"] and whole


def _compile(job: dict[str, Any], compilers: queue.SimpleQueue[_Compiler]) -> dict[str, Any]:
    if "missing" in job:
        found = {"status": "lost", "reason": job["missing"]}
    else:
        compiler = compilers.get()
        try:
            found = compiler.ask(job)
        finally:
            compilers.put(compiler)
    entry = {name: value for name, value in job.items() if name not in _NOT_KEPT} | found
    if entry["status"] != "compiled":
        Path(job["cubin"]).unlink(missing_ok=True)
    write_json(Path(job["figures"]), entry)
    return entry


class _Compiler:
    """A process that compiles, one job at a time; a new one where it has died of a job. Gone after its `with`."""

    def __enter__(self) -> _Compiler:
        self._process: subprocess.Popen[str] | None = None
        self._log = tempfile.NamedTemporaryFile(prefix="attn-bench-", suffix=".log")
        self._scratch = tempfile.TemporaryDirectory(prefix="attn-bench-")  # its own, which it cannot remove when killed
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._log.close()
        self._scratch.cleanup()

    def ask(self, job: dict[str, Any]) -> dict[str, Any]:
        """What the process answers, or that it died, or did not answer in time."""
        if self._process is None:
            self._log.seek(0)
            self._log.truncate()
            pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self._log}
            environment = os.environ | {"TMPDIR": self._scratch.name}
            self._process = subprocess.Popen(_COMPILER, text=True, env=environment, **pipes)
        assert self._process.stdin
        assert self._process.stdout
        with suppress(BrokenPipeError):  # one that is dead does not answer
            self._process.stdin.write(json.dumps(job) + "\n")
            self._process.stdin.flush()
        ready, _, _ = select.select([self._process.stdout], [], [], _DEADLINE_S)
        answer = self._process.stdout.readline() if ready else ""
        if answer:
            return json.loads(answer)  # type: ignore[no-any-return]
        code = self._end(_DYING_S if ready else 0)
        how = f"ended with exit code {code}" if ready else f"did not end within {_DEADLINE_S} s"
        return {"status": "lost", "reason": f"the compiler {how}: {tail(self._log.name)}"}

    def _end(self, patience_s: float = 0) -> int | None:
        """Kill the process if there is one that does not end by itself; its exit code."""
        process, self._process = self._process, None
        if process is None:
            return None
        with suppress(subprocess.TimeoutExpired):
            process.wait(patience_s)
        process.kill()
        with suppress(BrokenPipeError):
            process.communicate()
        return process.returncode
