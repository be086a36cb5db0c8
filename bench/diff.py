"""Recorded results of two revisions, cell by cell: how much slower, how sure, and what cannot be told.

A row's time is compared as a ratio to its yardstick, taken in turns in the same process, wherever that is
the same yardstick at both: what slows both alike does not count.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from bench import noise, stats, tables
from bench.recorded import Case, Cell, Measured, Side
from bench.records import NOT_KEPT, Record
from bench.revision import CannotCompare

Verdict = Literal["slower", "faster", "same", "inconclusive", "machine"]
BEYOND, WITHIN = 1.0, 3.0  # %: an interval that lies wholly beyond is a change, one around 0 and within is none
GREW = 1.5
OTHER_MEMORY = "freed memory was kept at one of both only (protocol.keep_memory)"
LOST = ("incorrect", "crashed", "timeout", "out_of_memory")  # what a cell that was ok must not become


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Change(_Frozen):
    """A cell with figures at both; `why_time` says why its time is compared and not its ratio.

    The verdict `machine`: it moved though the row's code is the same, so it was the machine's moment.
    """

    cell: Cell
    workload: dict[str, Any]
    oversubscribed: bool
    base_ms: float
    head_ms: float
    by: Literal["ratio", "time"]
    why_time: str | None
    change_percent: float
    low_percent: float
    high_percent: float
    verdict: Verdict


class StatusChange(_Frozen):
    """Of a cell, of a row's check, or of one of its cases; a reason is None where the status is ok."""

    implementation: str
    where: str
    was: str
    was_reason: str | None
    now: str
    now_reason: str | None


class Growth(_Frozen):
    """An error, as a share of its budget, that grew by more than half."""

    implementation: str
    where: str
    tensor: str
    base: float
    head: float


class Told(_Frozen):
    """Which results were compared; `noise` says how many of those compared are too noisy, and why the widest is."""

    revision: str
    commit: str | None
    measured_at: str | None
    noise: list[str]


class Difference(_Frozen):
    """All that `python -m bench diff` tells; the largest change first."""

    schema_version: Literal[1] = 1
    machine: str
    base: Told
    head: Told
    changes: list[Change]
    not_measured_anew: list[Cell]
    appeared: list[Cell]
    went: list[Cell]
    statuses: list[StatusChange]
    errors: list[Growth]
    exit_code: Literal[0, 1, 2, 3]


def compare(base: Side, head: Side) -> Difference:
    """What changed from base to head.

    Raises:
        CannotCompare: they were measured on two machines.
    """
    _refuse_another_machine(base, head)
    both = [cell for cell in base.cells if cell in head.cells]
    anew = [cell for cell in both if base.cells[cell].record != head.cells[cell].record]
    with_figures = [cell for cell in both if base.cells[cell].times and head.cells[cell].times]
    same_code = _SameCode(base, head)
    changes = [_change(base.cells[c], head.cells[c], c, same_code) for c in with_figures if c in anew]
    statuses = _statuses(base, head, both)
    lost = any(one.was == "ok" and one.now in LOST for one in statuses)
    return Difference(
        machine=base.machine,
        base=_told(base, [one.cell for one in changes]),
        head=_told(head, [one.cell for one in changes]),
        changes=sorted(changes, key=lambda one: -abs(one.change_percent)),
        not_measured_anew=[cell for cell in with_figures if cell not in anew],
        appeared=[cell for cell in head.cells if cell not in base.cells],
        went=[cell for cell in base.cells if cell not in head.cells],
        statuses=statuses,
        errors=_errors(base, head, both),
        exit_code=_exit_code([one.verdict for one in changes], lost=lost, nothing=not with_figures),
    )


def ratio_of_medians(base: list[list[float]], head: list[list[float]], seed: int = 0) -> stats.Estimate:
    """Median of process medians, head over base; its interval is bootstrapped over the processes of both."""
    rng = np.random.default_rng(seed)
    drawn = stats.drawn(head, rng) / stats.drawn(base, rng)
    tail = 100 * (1 - stats.LEVEL) / 2
    low, high = np.percentile(drawn, [tail, 100 - tail])
    value = stats.middle(head) / stats.middle(base)
    return stats.Estimate(value, min(float(low), value), max(float(high), value))


def verdict(low_percent: float, high_percent: float) -> Verdict:
    """What an interval allows to say."""
    if low_percent > BEYOND:
        return "slower"
    if high_percent < -BEYOND:
        return "faster"
    around_zero = low_percent <= 0 <= high_percent
    return "same" if around_zero and max(-low_percent, high_percent) < WITHIN else "inconclusive"


class _SameCode:
    """Whether a row's code is known to be the same at both: as dvc.lock recorded it, else by the files."""

    def __init__(self, base: Side, head: Side) -> None:
        self._base, self._head = base, head
        self._known: dict[str, bool] = {}

    def __call__(self, implementation: str) -> bool:
        if implementation not in self._known:
            sides = (self._base, self._head)
            codes = [side.revision.recorded_code(side.machine, implementation) for side in sides]
            if None in codes:
                codes = [side.revision.code(implementation) for side in sides]
            self._known[implementation] = None not in codes and codes[0] == codes[1]
        return self._known[implementation]


def _change(base: Measured, head: Measured, cell: Cell, same_code: _SameCode) -> Change:
    why_time = _why_time(base, head, same_code)
    if why_time or base.ratios is None or head.ratios is None:
        found = ratio_of_medians(base.times, head.times)
    else:
        found = ratio_of_medians(base.ratios, head.ratios)
    value, low, high = (100 * (factor - 1) for factor in (found.value, found.low, found.high))
    alone = min(len(base.times), len(head.times)) < 2  # one process says nothing of how processes differ
    said = "inconclusive" if alone else verdict(low, high)
    moved = said in ("slower", "faster") or (why_time and said == "inconclusive")
    if moved and (why_time == OTHER_MEMORY or same_code(cell.implementation)):
        said = "machine"
    return Change(
        cell=cell,
        workload=head.record.workload,
        oversubscribed=head.record.oversubscribed,
        base_ms=stats.middle(base.times),
        head_ms=stats.middle(head.times),
        by="time" if why_time else "ratio",
        why_time=why_time,
        change_percent=value,
        low_percent=low,
        high_percent=high,
        verdict=said,
    )


def _why_time(base: Measured, head: Measured, same_code: _SameCode) -> str | None:
    """What keeps two ratios from being compared."""
    was, now = base.record.reference, head.record.reference
    if len({one.record.state.get("freed_memory", NOT_KEPT) for one in (base, head)}) > 1:
        return OTHER_MEMORY
    if head.record.implementation in (was, now):
        return "it is the yardstick itself"
    if was != now:
        return f"its yardstick was {was} and is {now}"
    for one, when in ((base, "base"), (head, "head")):
        if one.ratios is None:
            return f"not compared with {now} at {when}: {one.record.not_compared or 'no reason recorded'}"
    return None if same_code(now) else f"the code of {now} changed, or is not known"


def _statuses(base: Side, head: Side, both: list[Cell]) -> list[StatusChange]:
    pairs: list[tuple[str, str, Record | Case, Record | Case]] = []
    for cell in both:
        was, now = base.cells[cell].record, head.cells[cell].record
        pairs.append((cell.implementation, f"{cell.grid} {tables.where(now)}", was, now))
    for name, report in head.reports.items():
        if name in base.reports:
            before = base.reports[name]
            pairs.append((name, "check", before.verdict, report.verdict))
            pairs += [(name, f"case {case}", *ends) for case, ends in _pairs(before.by_name, report.by_name).items()]
    return [
        StatusChange(
            implementation=name,
            where=where,
            was=was.status,
            was_reason=was.reason,
            now=now.status,
            now_reason=now.reason,
        )
        for name, where, was, now in pairs
        if was.status != now.status
    ]


def _errors(base: Side, head: Side, both: list[Cell]) -> list[Growth]:
    """The largest first."""
    found = []
    for cell in both:
        was, now = base.cells[cell].record, head.cells[cell].record
        found += _grown(cell.implementation, f"{cell.grid} {tables.where(now)}", was.over_budget, now.over_budget)
    for name, report in head.reports.items():
        cases = _pairs(base.reports[name].by_name, report.by_name) if name in base.reports else {}
        for case, (before, after) in cases.items():
            found += _grown(name, f"case {case}", before.over_budget, after.over_budget)
    return sorted(found, key=lambda one: -one.head)


def _pairs(base: dict[str, Case], head: dict[str, Case]) -> dict[str, tuple[Case, Case]]:
    return {name: (base[name], case) for name, case in head.items() if name in base}


def _grown(implementation: str, where: str, base: dict[str, float], head: dict[str, float]) -> list[Growth]:
    return [
        Growth(implementation=implementation, where=where, tensor=tensor, base=base[tensor], head=share)
        for tensor, share in head.items()
        if tensor in base and share > GREW * base[tensor]
    ]


def _refuse_another_machine(base: Side, head: Side) -> None:
    fields = [f for f in {**base.identity, **head.identity} if base.identity.get(f) != head.identity.get(f)]
    if fields:
        values = "; ".join(
            f"{f} {base.identity.get(f)!r} at {base.revision.name}, {head.identity.get(f)!r} at {head.revision.name}"
            for f in fields
        )
        raise CannotCompare(
            f"two machines are never compared, and results/{base.machine}/machine.json differs: {values}"
        )


def _told(side: Side, compared: list[Cell]) -> Told:
    stamps = [one.record.measured_at for one in side.cells.values() if one.record.measured_at]
    return Told(
        revision=side.revision.name,
        commit=side.revision.commit,
        measured_at=max(stamps, default=None),
        noise=noise.notes([side.cells[cell].record for cell in compared]),
    )


def _exit_code(verdicts: list[Verdict], *, lost: bool, nothing: bool) -> Literal[0, 1, 2, 3]:
    if lost or "slower" in verdicts:
        return 1
    if nothing:
        return 3
    return 2 if "inconclusive" in verdicts else 0
