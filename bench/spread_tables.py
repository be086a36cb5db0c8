"""How far samples and processes lie apart, and who disturbed them: what a reader needs to trust an interval."""

from __future__ import annotations

import statistics
from typing import Any

from tabulate import tabulate

from bench import noise, tables
from bench.records import Figure, Record

UNAVAILABLE = "unavailable"
_HEADERS = [
    "inside %", "between %", "± %", "time inside %", "time between %", "samples", "short %", "preempted", "steal %",
    "stalled %", "outliers",
]  # fmt: skip
_HOW_TO_READ = f"""\
inside: interquartile range of a process's samples, the median over processes; between: from the lowest to the highest
median of processes; ±: the farther end of the 95 % interval; all in % of the relative time (of the time, where a cell
is not compared), then the same of the time. Signs of others: short: samples with less than nine tenths of the processor
time of their process's best; preempted: involuntary switches a sample; steal, stalled: of the samples' time, taken by
the hypervisor, and with a task waiting for a processor; outliers: beyond Tukey's outer fences, never dropped.
Comparisons need ± {noise.PROMISED:g} % or less; `!` marks what is wider."""


def text(found: list[Record]) -> str:
    """A table a family and grid, then what the machine was like."""
    parts = []
    for family, grid in dict.fromkeys((record.family, record.grid) for record in found):
        chosen = [r for r in found if (r.family, r.grid) == (family, grid) and r.figures]
        if chosen:
            parts.append(f"{family}-{grid}\n\n{_table(chosen)}\n")
    measured = [record for record in found if record.figures]
    notes = [*noise.notes(measured), *tables.moved(measured), *_moments(measured), *_machine(measured)]
    return "\n".join([*parts, _HOW_TO_READ, *notes]) + "\n"


def _moments(found: list[Record]) -> list[str]:
    """A line where a cell that several grids have came out differently in them: an interval is of its moment."""
    cells: dict[tuple[Any, ...], list[tuple[Figure, Record]]] = {}
    for record in found:
        if record.figures and record.figures.relative_time and record.implementation != record.reference:
            cell = (record.implementation, record.reference, record.world_size, *record.workload.values())
            cells.setdefault(cell, []).append((record.figures.relative_time, record))
    ends = [(min(ones, key=_value), max(ones, key=_value)) for ones in cells.values() if len(ones) > 1]
    apart = [(low, high) for low, high in ends if low[0].high < high[0].low]
    if not apart:
        return []
    low, high = max(apart, key=lambda both: both[1][0].value / both[0][0].value)
    return [
        f"An interval is of its moment: {low[1].implementation} {tables.where(low[1])} took "
        + " and ".join(f"{tables.interval(ratio)} in the grid {record.grid}" for ratio, record in (low, high))
        + f" of the time of {low[1].reference}; intervals lie apart in {len(apart)} of {len(ends)} cells of several "
        "grids."
    ]


def _value(measured: tuple[Figure, Record]) -> float:
    return measured[0].value


def _table(found: list[Record]) -> str:
    axes = tables.varying(found)
    ranks = ["ranks"] if found[0].family == "ring" else []
    rows = [[*tables.head(record, axes), *_cells(record)] for record in found]
    headers = ["implementation", *axes, *ranks, *_HEADERS]
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(rows, headers, tablefmt="simple", disable_numparse=True, colalign=align)


def _cells(record: Record) -> list[str]:
    spread, seen = noise.spread(record), noise.disturbance(record)
    mark = "!" if spread.interval > noise.PROMISED else ""
    return [
        f"{spread.inside:.1f}",
        _shown(spread.between),
        f"{mark}{spread.interval:.1f}",
        f"{spread.inside_time:.1f}",
        _shown(spread.between_time),
        str(seen.samples),
        _shown(seen.short, 100),
        _shown(seen.preempted),
        _shown(seen.steal, 100),
        _shown(seen.stalled, 100),
        str(seen.outliers),
    ]


def _shown(value: float | None, times: float = 1.0) -> str:
    return UNAVAILABLE if value is None else f"{times * value:.1f}"


def _machine(found: list[Record]) -> list[str]:
    """Which processors, whether pinned, and how busy it was before each stage."""

    def said(field: str) -> str:
        values = dict.fromkeys(str(record.state.get(field, "not recorded")) for record in found)
        return " or ".join(values) or "not recorded"

    def range_of(field: str) -> str:
        known = [x for record in found if isinstance(x := record.state.get(field), int | float)]
        values: list[Any] = [min(known), statistics.median(known), max(known)] if known else []
        return " / ".join(f"{100 * x:.0f} %" for x in values) or said(field)

    return [
        f"Processors: {said('cpus')}, pinned: {said('pinned')}; threads bound: {said('binding')}; "
        f"governor: {said('governor')}; freed memory: {said('freed_memory')}.",
        f"Before a stage began (least / median / most): others took {range_of('others_busy')} of the processors, "
        f"the hypervisor {range_of('steal')}.",
    ]
