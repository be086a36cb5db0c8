"""How much others disturb a measurement: before it begins, and by what its samples tell. And what that does to it."""

from __future__ import annotations

import statistics
import sys
import time
from dataclasses import dataclass
from typing import Any

from bench.records import Figure, Record

PROMISED = 3.0  # %: comparisons need intervals within this on both sides (`same`, in diff and duel)
BUSY = 0.05  # of processors, samples or time: what others may take without being named
_LOOK_S = 0.25
_SHORT = 0.9  # of the processor time that the process's best sample had, for its length
_STEADY = ("performance", "unavailable")  # governors that do not change the clock, or that nobody tells of


@dataclass(frozen=True)
class Spread:
    """Of a right cell, in %: how far samples lie apart inside a process, and processes from each other.

    inside: the interquartile range of a process's samples, the median over processes. between: from the lowest to the
    highest of the processes' medians. Both of the median. None with one process. interval: the longer side of the 95 %
    interval. Of the relative time where there is one, else of the time.
    """

    inside: float
    between: float | None
    interval: float
    inside_time: float
    between_time: float | None


@dataclass(frozen=True)
class Disturbance:
    """Of all samples of a cell; None where the machine, or an older record, does not tell.

    All are of whole samples, with what is done around their calls. short: the share that had less than nine tenths of
    the processor time of their process's best sample. preempted: a sample, the mean. steal, stalled: of the time of the
    samples, taken by the hypervisor, and with a task waiting for a processor. outliers: samples far out. throttled:
    samples that count for nothing.
    """

    samples: int
    short: float | None
    preempted: float | None
    steal: float | None
    stalled: float | None
    outliers: int
    throttled: int


def spread(record: Record) -> Spread:
    """Of a record with figures."""
    assert record.figures is not None
    series = [process["series"] for process in record.processes]
    times = [one["samples_ms"] for one in series]
    relative = record.figures.relative_time
    ratios = [
        [a / b for a, b in zip(one["samples_ms"], one["reference_ms"], strict=True)] for one in series if relative
    ]
    compared = ratios or times
    return Spread(
        _inside(compared),
        _between(compared),
        reach(relative or record.figures.time_ms),
        _inside(times),
        _between(times),
    )


def reach(figure: Figure) -> float:
    """% of the value to the farther end of its interval."""
    return 100 * max(figure.high / figure.value - 1, 1 - figure.low / figure.value)


def disturbance(record: Record) -> Disturbance:
    """Of a record with figures."""
    series = [process["series"] for process in record.processes]
    wall_ms = sum(ms for one in series for ms in one.get("wall_ms", []))
    processor = [one.get("cpu_per_wall", []) for one in series]
    shares = [x / max(samples) for samples in processor for x in samples if max(samples)]
    preempted = [x for one in series for x in one.get("preempted", [])]
    return Disturbance(
        samples=sum(len(one["samples_ms"]) for one in series),
        short=sum(share < _SHORT for share in shares) / len(shares) if shares else None,
        preempted=statistics.mean(preempted) if preempted else None,
        steal=_share(series, "steal_ms", wall_ms),
        stalled=_share(series, "stalled_ms", wall_ms),
        outliers=sum(len(one.get("outliers", [])) for one in series),
        throttled=sum(len(one.get("throttled_ms", [])) for one in series),
    )


def too_wide(record: Record) -> str | None:
    """Why a cell's interval is wider than what comparisons need, in words; None where it is not, or has no figures."""
    if record.figures is None:
        return None
    found = spread(record)
    if found.interval <= PROMISED:
        return None
    signs = _signs(record, disturbance(record))
    between = "of one process" if found.between is None else f"{found.between:.1f} % between processes"
    why = "; ".join(signs) or "nothing shows that others ran: rather where memory lies, or the clock"
    return f"± {found.interval:.1f} % ({found.inside:.1f} % inside a process, {between}): {why}"


def before(seconds: float = _LOOK_S) -> dict[str, float | str]:
    """What others do while this process sleeps: `others_busy` and `steal`, shares of all processors."""
    then = _ticks()
    time.sleep(seconds)
    now = _ticks()
    if then is None or now is None:
        return {"others_busy": "unavailable", "steal": "unavailable"}
    total = max(sum(now.values()) - sum(then.values()), 1)
    busy, steal = (sum(now[name] - then[name] for name in names) / total for names in (_WORK, ("steal",)))
    return {"others_busy": round(busy, 3), "steal": round(steal, 3)}


def warnings(state: dict[str, Any]) -> list[str]:
    """Why a machine in this state will hardly give the promised intervals; none where it may."""
    reasons = []
    for name, words in (
        ("others_busy", "others take {:.0f} % of its processors"),
        ("steal", "its hypervisor takes {:.0f} %"),
    ):
        if isinstance(state.get(name), float) and state[name] > BUSY:
            reasons.append(words.format(100 * state[name]))
    if state.get("governor", "unavailable") not in _STEADY:
        reasons.append(f"its governor is {state['governor']}, which changes the clock, allowed: performance")
    return reasons


def warn(state: dict[str, Any]) -> None:
    """One line on stderr where a measurement begins on a machine that is too noisy for it."""
    if reasons := warnings(state):
        told = "; ".join(reasons)
        print(
            f"warning: intervals within {PROMISED:g} % are not to be expected here: {told}", file=sys.stderr, flush=True
        )


def warn_of(found: list[Record]) -> None:
    """One line on stderr a cell whose interval is wider than promised."""
    for record in found:
        if why := too_wide(record):
            print(f"warning: {_cell(record)}: interval {why}", file=sys.stderr, flush=True)


def notes(found: list[Record]) -> list[str]:
    """Below a table: how many intervals are wider than promised, and why the widest is."""
    measured = [record for record in found if record.figures]
    wide = [record for record in measured if too_wide(record)]
    if not wide:
        return []
    worst = max(wide, key=lambda record: spread(record).interval)
    return [
        f"Too noisy: {len(wide)} of {len(measured)} intervals are wider than ± {PROMISED:g} %, which comparisons need "
        "(`python -m bench table spread`).",
        f"The widest, {_cell(worst)}: {too_wide(worst)}.",
    ]


def _cell(record: Record) -> str:
    w = record.workload
    ranks = f", {record.world_size} ranks" if record.family == "ring" else ""
    return f"{record.implementation} ({w['n_heads']} heads, seq_len {w['seq_len']}, {w['dtype']}, {w['mask']}{ranks})"


def _signs(record: Record, found: Disturbance) -> list[str]:
    """What shows that others ran meanwhile."""
    signs = []
    if found.short and found.short > BUSY:
        signs.append(f"{100 * found.short:.0f} % of the samples got less processor time than the best")
    if found.stalled and found.stalled > BUSY:
        signs.append(f"tasks waited for a processor {100 * found.stalled:.0f} % of the time")
    if found.steal and found.steal > BUSY / 5:
        signs.append(f"the hypervisor took {100 * found.steal:.0f} %")
    if found.throttled:
        signs.append(f"{found.throttled} samples at too low a clock")
    return signs + warnings(record.state)


def _inside(processes: list[list[float]]) -> float:
    shares = []
    for samples in processes:
        low, middle, high = statistics.quantiles(samples, n=4, method="inclusive") if samples[1:] else samples * 3
        shares.append(100 * (high - low) / middle)
    return statistics.median(shares)


def _between(processes: list[list[float]]) -> float | None:
    medians = [statistics.median(samples) for samples in processes]
    return 100 * (max(medians) - min(medians)) / statistics.median(medians) if len(medians) > 1 else None


def _share(series: list[dict[str, Any]], field: str, wall_ms: float) -> float | None:
    """Of the samples' wall time; None where that, or one of the values, was not recorded."""
    values = [x for one in series for x in one.get(field, [])]
    if not values or None in values or not wall_ms:
        return None
    return float(sum(values)) / wall_ms


_FIELDS = ("user", "nice", "system", "idle", "iowait", "irq", "softirq", "steal")
_WORK = ("user", "nice", "system", "irq", "softirq", "steal")


def _ticks() -> dict[str, int] | None:
    try:
        with open("/proc/stat", encoding="ascii") as file:
            return dict(zip(_FIELDS, map(int, file.readline().split()[1:9]), strict=True))
    except (OSError, ValueError):
        return None
