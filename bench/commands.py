"""What each command of `python -m bench` does; returns its exit code."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tabulate import tabulate

from attn import registry
from attn.registry import Implementation
from bench import check_tables, closure, faults, machine, mend, placement, tables
from bench import docs as generated
from bench import grid as grids
from bench.grid import Params

RESULTS = Path("results")


class BadInput(Exception):
    """What was asked for cannot be; one sentence says what, where, and what is allowed."""


def validate(params: Params, _: Namespace) -> int:
    """That we got here says it all; what a killed dvc has torn is mended, since `make bench` begins with this."""
    machine.device_of(params)
    placement.refuse_unknown(params.launch)
    for line in mend.mend():
        print(line)
    rows, chosen = len(params.implementations()), len(params.grids)
    print(f"params.yaml is valid: {rows} implementations, {chosen} grids")
    return 0


def list_(params: Params, asked: Namespace) -> int:
    """Every file of attn/impl, listed in params.yaml or not."""
    here = machine.device_of(params)
    listed = params.implementations()
    rows = [_listed(one, here, one.name in listed) for one in registry.find().values()]
    if asked.json:
        print(json.dumps(rows, indent=1))
    else:
        print(
            tabulate(rows, headers="keys", tablefmt="simple", maxcolwidths=[None, None, None, 22, None, None, 22, 48])
        )
    return 0


def check(params: Params, asked: Namespace) -> int:
    """Exit 0 right, 1 wrong or broken."""
    from bench import checking

    implementation = _implementation(asked.implementation)
    workloads = _grid(params, asked.grid).workloads() if asked.grid else []
    _only(implementation, asked.only, any_grid=bool(workloads))
    report = checking.check(implementation.path, params, machine.identity(params), workloads, asked.only)
    if asked.json:
        print(json.dumps(report, indent=1))
    else:
        print(_verdict_in_words(report))
    return 0 if report["status"] == "ok" else 1


def run(params: Params, asked: Namespace) -> int:
    """Check, then measure into a table or JSON; nothing under results/ is touched. Exit 1 when a cell failed."""
    from bench import checking, records, ring_tables, roofline, runner, truths, worker

    implementation = _implementation(asked.implementation)
    _grid(params, asked.grid)
    if implementation.path.parent != registry.IMPL_DIR:
        raise BadInput(f"{asked.implementation}: only rows in attn/impl can be measured; `check` judges any file")
    if implementation.fault:
        raise BadInput(implementation.fault)
    family, reference = implementation.kind, params.reference_of(implementation.kind)
    identity = machine.identity(params)
    reports = {
        name: checking.check(registry.IMPL_DIR / f"{name}.py", params, identity)
        for name in (implementation.name, reference)
    }
    with tempfile.TemporaryDirectory(prefix="attn-bench-") as scratch:
        campaign = runner.Campaign(
            params=params,
            identity=identity,
            family=family,
            implementation=implementation.name,
            grid=asked.grid,
            oracle=Path(scratch) / "oracle",
            verdict=checking.verdict(reports[implementation.name]),
            reference_verdict=checking.verdict(reports[reference]),
            scratch=Path(scratch) / "cells",
        )
        truths.write_all(params, family, asked.grid, campaign.oracle)
        measured = tables.explained(runner.run(campaign), reports)
    if asked.json:
        print(json.dumps([record.model_dump() for record in measured], indent=1))
    else:
        job = {"threads": identity["threads"], "device": identity["device"]}
        ceiling = worker.isolated(roofline.measure_ceiling.__name__, job, deadline_s=300)
        if ceiling["status"] != "ok":
            raise BadInput(f"the machine's ceiling: {ceiling['reason']}")
        print(ring_tables.text(measured, ceiling, reports))
    return 1 if any(record.status in records.FAILED for record in measured) else 0


def table(params: Params, asked: Namespace) -> int:
    """Exit 2 where nothing is recorded."""
    from bench import report

    if asked.grid not in (None, *faults.TABLES):
        _grid(params, asked.grid, faults.TABLES)
    with _readable():
        print(report.table(params, _results(params, asked), asked.grid, details=asked.details), end="")
    return 0


def publish(params: Params, asked: Namespace) -> int:
    """Copy results/local to results/NAME, whole or not at all."""
    from bench import model_tables, report, selftest_records

    source, target = RESULTS / "local", RESULTS / asked.name
    if asked.name == "local" or not grids.valid_name(asked.name):
        raise BadInput(f"name {asked.name}, allowed: letters, digits, _ and -, and not local")
    if target.exists() and not asked.replace:
        raise BadInput(f"{target} is there already; choose another name, or add --replace")
    with _readable():
        report.load(params, source)
        unfinished = report.missing(params, source) or report.stale(source)
    if unfinished:
        raise BadInput(f"{source} is not finished; run `make bench` first: {unfinished[0]}")
    partial, old = RESULTS / f".{asked.name}.partial", RESULTS / f".{asked.name}.old"
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    shutil.copytree(source, partial)
    for name in (selftest_records.NAME, model_tables.NAME):
        tested, ours = target / name, partial / name
        if tested.exists() and not ours.exists():  # work of its own, and it names its machine itself
            shutil.copy2(tested, ours)
    if target.exists():
        target.rename(old)
    partial.rename(target)
    shutil.rmtree(old, ignore_errors=True)
    print(f"{source} copied to {target}; add it to git to keep it")
    return 0


def gate(params: Params, asked: Namespace) -> int:
    """Exit 1 with one line a cell that is incorrect, crashed, timed out, or missing."""
    from bench import records, report

    results = _results(params, asked)
    with _readable():
        found = report.load(params, results)
        missing = report.missing(params, results)
    failed = [
        f"{record.implementation} {record.grid} {tables.where(record)}: {record.status}: {record.reason}"
        for record in found
        if record.status in records.FAILED
    ] + missing
    for line in failed:
        print(line)
    print(f"{len(found)} cells, {sum(record.status == 'ok' for record in found)} ok, {len(failed)} do not pass")
    return 1 if failed else 0


def docs(_: Params, asked: Namespace) -> int:
    """Exit 1 with --check where something is out of date."""
    try:
        stale = generated.fill(write=not asked.check)
    except FileNotFoundError as error:
        raise BadInput(str(error)) from None
    for path in stale:
        print(f"{path} {'is out of date: run `make docs`' if asked.check else 'written'}")
    return 1 if stale and asked.check else 0


def diff(params: Params, asked: Namespace) -> int:
    """Exit 0 nothing slower, 1 something is, 2 not every cell could be told, 3 could not compare."""
    from bench import diff as differences
    from bench import diff_tables, recorded, revision

    results = _results(params, asked)
    try:
        base, head = (recorded.load(revision.find(name), results) for name in (asked.base, asked.head))
        found = differences.compare(base, head)
    except revision.CannotCompare as error:
        raise BadInput(str(error)) from None
    print(found.model_dump_json(indent=1) if asked.json else diff_tables.text(found), end="\n" if asked.json else "")
    return found.exit_code


@contextmanager
def _readable() -> Iterator[None]:
    """Results that are not there, or that cannot be what we wrote, are one sentence."""
    try:
        yield
    except (FileNotFoundError, ValueError) as error:
        raise BadInput(" ".join(str(error).split())) from None


def _results(params: Params, asked: Namespace) -> Path:
    name = asked.machine or params.machine
    if not grids.valid_name(name):
        raise BadInput(f"machine {name}, allowed: letters, digits, _ and -")
    return RESULTS / name


def _implementation(asked: str) -> Implementation:
    path = Path(asked)
    if path.suffix == ".py":
        if not path.is_file():
            raise BadInput(f"{asked}: no such file")
        return registry.read(path.resolve())
    known = registry.find()
    if asked not in known:
        raise BadInput(f"no implementation {asked}, allowed: {', '.join(known)}, or a path to a .py file")
    return known[asked]


def _grid(params: Params, name: str, besides: Iterable[str] = ()) -> grids.Grid:
    if name not in params.grids:
        raise BadInput(f"no grid {name}, allowed: {', '.join([*params.grids, *besides])}")
    return params.grids[name]


def _only(implementation: Implementation, only: str, *, any_grid: bool) -> None:
    """Refuse what is no regular expression, and what leaves nothing to judge."""
    from bench import cases

    try:
        pattern = re.compile(only)
    except re.error as error:
        raise BadInput(f"--only {only}: not a regular expression: {error}") from None
    if implementation.fault or not only or any_grid:
        return
    names = [case.name for case in cases.cases(implementation)]
    if names and not any(map(pattern.search, names)):
        raise BadInput(f"--only {only}: matches none of the {len(names)} cases, the first is {names[0]}")


def _listed(one: Implementation, device: str, in_params: bool) -> dict[str, Any]:
    return {
        "implementation": one.name,
        "kind": one.kind or "-",
        "listed": "yes" if in_params else "no",
        "dtypes": (", ".join(one.dtypes) or "-") + (f" (products {one.precision})" if one.precision != "dtype" else ""),
        "masks": ", ".join(one.masks) or "-",
        "backward": "yes" if one.backward else "no",
        "here": _why_not_here(one, device) or "runs",
        "what": one.summary,
    }


def _why_not_here(one: Implementation, device: str) -> str | None:
    if one.fault:
        return one.fault
    reasons = [f"only on {', '.join(one.devices)}"] if device not in one.devices else []
    if "cpu" not in one.devices:  # others import what only a GPU needs where they need it
        reasons += [f"needs {name}" for name in closure.third_party(one.path) if find_spec(name) is None]
    if reasons:
        return ", ".join(reasons)
    try:
        registry.entry_point(one, registry.load(one))
    except (Exception, SystemExit) as error:  # a list shows what is broken, it does not break
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return placement.why_not() if one.kind == "ring" else None


def _verdict_in_words(report: dict[str, Any]) -> str:
    statuses = [one["status"] for one in report["cases"]]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)) or "no case ran"
    lines = [f"{report['implementation']}: {report['status']} ({counts})"]
    if report["reason"]:
        lines.append(report["reason"])
    lines += check_tables.not_judged(report)
    summary = report["summary"]
    if summary["worst"]:
        lines.append(f"worst error (of its budget): {check_tables.worst(summary['worst'])}, {summary['worst']['case']}")
    lines += [f"on real inputs, {dtype}: {check_tables.worst(found)}" for dtype, found in summary["real"].items()]
    if summary["nan_leaks"]:
        lines.append("a NaN in v reaches earlier rows of a causal mask")
    lines += [f"two runs differ in {case}" for case in summary["spread"]]
    left = {
        (one["status"], one["reason"]) for one in report["cases"] if one["status"] in ("unsupported", "not_measured")
    }
    return "\n".join(lines + [f"{status}: {reason}" for status, reason in sorted(left)])
