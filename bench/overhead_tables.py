"""Where the time of stages goes: what was asked for (calls, warm-up, judging, memory), and the harness's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tabulate import tabulate

from bench.records import Record
from bench.spent import WANTED, total
from bench.stage_log import Ran

Report = dict[str, Any]
_OWN = ("start", "truth", "sampling", "rest", "failed")
_HEADERS = ["stage", "wall s", "calls", "warm-up", "judging", "memory", "breakdown", "left", "of wall", *_OWN]
_TRUTHS = ("capture", "cases", "oracle_core", "oracle_module")  # what there is to be judged by
_HOW_TO_READ = """\
Seconds of wall time; a line adds up: wall = calls + warm-up + judging + memory + breakdown (of rings) + left.
calls: the first call and the samples, of a row and of its yardstick. judging: also the change of inputs before each
call. left, the harness's own: start (and end) of interpreters, imports and processes; truth: reading it; sampling:
around calls; failed: all of a process that told nothing. Waiting for the device is no part of wall."""


@dataclass(frozen=True)
class Line:
    """A stage, or several; `spent` is empty where its time was not recorded."""

    name: str
    ring: bool
    spent: dict[str, float] = field(default_factory=dict)

    @property
    def wall(self) -> float:
        """Seconds, without waiting for the device."""
        return sum(seconds for phase, seconds in self.spent.items() if phase != "waiting")

    @property
    def left(self) -> float:
        """Seconds that nobody asked for."""
        return self.wall - sum(self.spent.get(phase, 0.0) for phase in WANTED)

    def cells(self) -> list[str]:
        """Of the table."""
        own = [f"{self.spent.get(phase, 0.0):.1f}" for phase in _OWN]
        wanted = [f"{self.spent.get(phase, 0.0):.1f}" for phase in WANTED]
        share = f"{100 * self.left / self.wall:.0f} %" if self.wall else "-"
        return [self.name, f"{self.wall:.1f}", *wanted, f"{self.left:.1f}", share, *own]


def lines(found: list[Record], reports: list[Report]) -> list[Line]:
    """One a check, and one a row and grid."""
    stages: dict[tuple[str, str, str], list[Record]] = {}
    for record in found:
        stages.setdefault((record.family, record.implementation, record.grid), []).append(record)
    checks = [
        Line(f"check {report['implementation']}", report["kind"] == "ring", report.get("spent_s", {}))
        for report in reports
    ]
    return checks + [
        Line(f"bench {name} {grid}", family == "ring", total(record.spent_s for record in of_stage))
        for (family, name, grid), of_stage in stages.items()
    ]


def text(found: list[Record], reports: list[Report], ran: list[Ran] | None = None) -> str:
    """The table, with sums, rings apart; with `ran`, what DVC ran, the share of the whole pipeline without rings."""
    every = lines(found, reports)
    known = [line for line in every if line.spent]
    sums = [
        Line(f"{what}, {who}", ring, total(line.spent for line in known if line.ring == ring and line.name[:5] == what))
        for ring, who in ((False, "without rings"), (True, "rings"))
        for what in ("check", "bench")
    ]
    rows = [line.cells() for line in (*known, *(line for line in sums if line.spent))]
    align = ("left", *["right"] * (len(_HEADERS) - 1))
    table = tabulate(rows, _HEADERS, tablefmt="simple", disable_numparse=True, colalign=align)
    unknown = len(every) - len(known)
    notes = [f"Time not recorded, of an older program: {unknown} of {len(every)} stages."] if unknown else []
    waited = sum(line.spent.get("waiting", 0.0) for line in known)
    notes += [f"Waited for the device: {waited:.0f} s."] if waited >= 1 else []
    return "\n".join([table, "", _HOW_TO_READ, *notes, *_whole(sums, ran or [])]) + "\n"


def _whole(sums: list[Line], ran: list[Ran]) -> list[str]:
    """The pipeline without rings: with what computes the truth, all else that DVC runs, and DVC itself."""
    if not ran:
        return []
    judged = {one.name: one.wall_s for one in ran if one.kind in _TRUTHS}
    other = {one.name: one.wall_s for one in ran if one.kind in ("probe", "plan", "ceiling", "render")}
    own, stages = dvc_own(ran)
    plain = [line for line in sums if not line.ring]
    wall = sum(line.wall for line in plain) + sum(judged.values()) + sum(other.values()) + own
    left = sum(line.left for line in plain) + sum(other.values()) + own
    return [
        "",
        f"The pipeline without rings: {wall:.0f} s, of which nobody asked for {left:.0f} s, {100 * left / wall:.0f} %.",
        f"In it, besides the stages above: truths to judge by {sum(judged.values()):.0f} s ({len(judged)} stages: "
        f"capture, cases, oracles); {', '.join(other) or 'no other stage'} {sum(other.values()):.0f} s;",
        f"DVC itself between the {stages} stages of its last run, rings included: {own:.0f} s.",
    ]


def dvc_own(ran: list[Ran]) -> tuple[float, int]:
    """Seconds of the last dvc from its first stage's start to its last one's end that no stage took; how many ran."""
    last = [one for one in ran if one.dvc == ran[-1].dvc]
    between = max(one.ended for one in last) - min(one.began for one in last)
    return max(0.0, between - sum(one.wall_s for one in last)), len(last)
