"""`python -m bench gpu`: judge and measure what gpu.yaml asks for in the time that is given, without DVC.

The stages' own parts, called one after another: identity, ceiling, choice of configurations, and then grid by grid, in
the order of the file, truth, verdicts and cells. What an interruption or the end of the time leaves is whole: records
are written row by row, a run that follows goes on, and what was not reached says so.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attn import registry
from attn.contract import DEVICES
from attn.kernels.flash import configs
from bench import checking, closure, grid, kept, machine, records, report, runner, store, truths, worker
from bench.commands import RESULTS, BadInput
from bench.files import read_json, write_json, write_text
from bench.grid import FAMILIES, Params
from bench.lock import device_lock

FILE, SCRATCH = Path("gpu.yaml"), Path(".scratch/gpu")
BUDGET_S, TABLE = 520, "gpu.txt"
HELP = """\
Judge and measure what gpu.yaml asks for, grid by grid in its order, in the time that is given, without DVC and with
the torch that is installed; into results/GPU, which `table --params gpu.yaml --machine GPU` reads. What was not reached
says so; the same command goes on where it stopped, with --fresh it begins anew."""
_NEEDED = ("torch", "triton", "safetensors")  # without the rest this file cannot be imported
_SOLVING_S, _CEILING_S = 200, 120
_NOT_JUDGED = {"status": runner.NOT_REACHED[0], "reason": runner.NOT_REACHED[1], "failed": []}


@dataclass
class Session:
    """One run: what it measures, where, until when (of time.monotonic), and what it has judged so far."""

    params: Params
    identity: dict[str, Any]
    results: Path
    until: float
    only: str
    scratch: Path
    verdicts: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def device(self) -> str:
        """Where rows run, and their truth is computed."""
        return str(self.identity["device"])

    def left_s(self, most: float) -> float:
        """Seconds that something may take which takes no more than `most`."""
        return max(0.0, min(most, self.until - time.monotonic()))


def gpu(_: Params, asked: Namespace) -> int:
    """Exit 0 whatever the cells' statuses, 130 interrupted; what was recorded before stays."""
    session = _begin(asked)
    print(f"{machine.in_words(session.identity)}; {asked.budget} s; into {session.results}", file=sys.stderr)
    try:
        _prepare(session)
        for family, grid_name, name in _campaigns(session.params):
            _measure(session, family, grid_name, name)
    except KeyboardInterrupt:
        print(f"interrupted; {session.results} has what was measured, the same command goes on", file=sys.stderr)
        return 130
    text = (
        f"{machine.in_words(session.identity)}\n\n{report.table(session.params, session.results, None, details=True)}"
    )
    write_text(session.results / TABLE, text)
    print(text, end="")
    return 0


def arguments(sub: ArgumentParser) -> None:
    """Options of the command."""
    sub.add_argument("--grid", metavar="FILE", default=str(FILE), help="another file with the keys of params.yaml")
    sub.add_argument("--device", choices=DEVICES, help="instead of the file's; cpu to try it out")
    sub.add_argument("--machine", help="a folder of results/; named after the GPU when left out")
    sub.add_argument("--budget", type=float, default=BUDGET_S, metavar="S", help="seconds (default: %(default)s)")
    sub.add_argument("--fresh", action="store_true", help="measure all anew")


def _begin(asked: Namespace) -> Session:
    """Everything that can be refused is, before anything is written."""
    missing = [name for name in _NEEDED if find_spec(name) is None]
    if missing:
        raise BadInput(f"{sys.executable} lacks {', '.join(missing)}: install what is missing, or `make gpu-packages`")
    params = grid.load(Path(asked.grid))
    if asked.device:
        params = params.model_copy(update={"device": asked.device})
    identity = machine.identity(params)
    name = asked.machine or _name_of(identity["gpu_model"])
    if not grid.valid_name(name) or name == "local":
        raise BadInput(
            f"--machine {name}, allowed: letters, digits, _ and -, and not local; needed where no GPU has one"
        )
    results = RESULTS / name
    try:
        machine.refuse_other_machine(name, identity, results / "machine.json")
    except machine.OtherMachine as error:
        raise BadInput(str(error)) from None
    code = closure.fingerprint(*(closure.ROOT / "bench" / f"{one}.py" for one in ("oracle", "cases")))
    session = Session(params, identity, results, time.monotonic() + asked.budget, _cases_of(params), SCRATCH / code)
    if asked.fresh:
        shutil.rmtree(SCRATCH, ignore_errors=True)
    os.environ[configs.TUNED] = str((results / "configurations.json").resolve())  # before the first worker is there
    return session


def _name_of(gpu_model: str) -> str:
    """A folder's name: `NVIDIA H100 80GB HBM3` is `nvidia-h100-80gb-hbm3`."""
    return "local" if gpu_model == machine.UNAVAILABLE else re.sub(r"[^a-z0-9]+", "-", gpu_model.lower()).strip("-")


def _cases_of(params: Params) -> str:
    """A pattern of the named cases in the dtypes and head_dims of the grids: what is measured is what is judged."""
    from bench import cases

    kinds = {(w.dtype, w.head_dim) for one in params.grids.values() for w in one.workloads()}
    names = {
        case.name
        for kind in FAMILIES
        for case in cases.all_cases(kind)
        if (case.workload.dtype, case.workload.head_dim) in kinds and not case.variant.startswith("real")
    }
    if not names:
        raise BadInput("no named case has a dtype and head_dim of these grids, so nothing could be judged")
    return f"^({'|'.join(map(re.escape, sorted(names)))})(-tf32)?$"


def _campaigns(params: Params) -> Iterator[tuple[str, str, str]]:
    """(family, grid, row), grid by grid in the order of the file, without rows that have nothing in a grid's dtypes."""
    known = registry.find()
    for name, one in params.grids.items():
        for family in FAMILIES:
            rows = params.family(family).implementations if name in params.family(family).grids else []
            yield from ((family, name, row) for row in rows if set(known[row].dtypes) & set(one.dtype))


def _prepare(session: Session) -> None:
    results, identity = session.results, session.identity
    write_json(results / "machine.json", identity)
    write_json(results / "packages.json", machine.packages())
    if not (results / "ceiling.json").exists():
        job = {"threads": identity["threads"], "device": session.device}
        with device_lock(session.device):
            found = worker.isolated("measure_ceiling", job, deadline_s=_CEILING_S)
        if found.pop("status") != "ok":
            raise BadInput(f"the machine's ceiling: {found['reason']}")
        write_json(results / "ceiling.json", found)
    if session.device == "cuda":
        _tune(session)


def _solved_cases(session: Session, kind: str) -> Path:
    """The folder of the solved cases of a kind, which all its rows are judged by; solved when first asked for."""
    kind = "module" if kind == "module" else "core"
    folder = session.scratch / "cases" / kind
    if not kept.read_index(folder):
        job = {"kind": kind, "folder": str(folder), "seed": session.params.protocol.seed, "only": session.only}
        solved = worker.isolated("solve_cases", {**job, "threads": session.identity["threads"]}, deadline_s=_SOLVING_S)
        if solved["status"] != "ok":
            raise BadInput(f"the truth of the named cases: {solved['status']}: {solved['reason']}")
        kept.write_index(folder)
    return folder


def _tune(session: Session) -> None:
    """Time our configurations, those of the first grid first; without it the order of the candidates stands."""
    path = session.results / "configurations.json"
    rows = registry.find()
    wanted = [
        ("tf32" if rows[row].precision == "tf32" else w.dtype, w.head_dim)
        for family, name, row in _campaigns(session.params)
        if row.startswith("triton_flash")
        for w in session.params.grids[name].workloads()
    ]
    if path.exists() or not wanted:
        return
    job = {"path": str(path), "kinds": list(dict.fromkeys(wanted))}
    with device_lock(session.device):
        found = worker.isolated("tune", job, deadline_s=session.left_s(_SOLVING_S))
    if found["status"] != "ok":
        print(f"choice of configurations: {found['status']}: {found['reason']}", file=sys.stderr)


def _measure(session: Session, family: str, grid_name: str, name: str) -> None:
    oracle = session.scratch / "oracle" / family / grid_name
    if session.left_s(1) > 0 and not kept.read_index(oracle):
        deadline_s = session.left_s(truths.DEADLINE_S)
        truths.write_all(session.params, family, grid_name, oracle, session.device, deadline_s)
        if session.left_s(1) <= 0:  # cut short, so that it is no truth that could not be computed
            shutil.rmtree(oracle)
    reference = session.params.reference_of(family)
    campaign = runner.Campaign(
        params=session.params,
        identity=session.identity,
        family=family,
        implementation=name,
        grid=grid_name,
        oracle=oracle,
        verdict=_verdict(session, name),
        reference_verdict=_verdict(session, reference),
        scratch=store.FOLDER,
        until=session.until,
    )
    records.write(records.bench_path(session.results, name, grid_name), runner.run(campaign))


def _verdict(session: Session, name: str) -> dict[str, Any]:
    """Of a row, which is judged when it is first asked for; its report is written beside the records."""
    if name not in session.verdicts:
        if session.left_s(1) <= 0:
            return _NOT_JUDGED
        path = registry.IMPL_DIR / f"{name}.py"
        folder = _solved_cases(session, registry.read(path).kind)
        with device_lock(session.device):
            found = checking.check(path, _in_time(session), session.identity, (), session.only, folder)
        if session.left_s(1) <= 0 and found["status"] not in ("ok", "incorrect"):
            return _NOT_JUDGED  # cut short, which says nothing of the row
        write_json(records.check_path(session.results, name), found)
        write_json(records.verdict_path(session.results, name), checking.verdict(found))
        session.verdicts[name] = read_json(records.verdict_path(session.results, name))
    return session.verdicts[name]


def _in_time(session: Session) -> Params:
    """The parameters, in which all cases of a row take no longer than there is time."""
    protocol = session.params.protocol
    deadline_s = session.left_s(protocol.deadline_s * checking._DEADLINE_FACTOR) / checking._DEADLINE_FACTOR
    return session.params.model_copy(update={"protocol": protocol.model_copy(update={"deadline_s": deadline_s})})
