"""Records -> tables that people read, and the few figures of metrics.json."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import Any

from tabulate import tabulate

from bench import check_tables, noise, stats
from bench.records import Figure, Figures, Record

OK, CROSS, NOTHING = "✓", "✗", "N/A"
MOVED = 10.0  # %: so far may the yardstick's times beside two rows of one shape lie apart without a word
_SEED_HEADERS = [
    "Implementation", "Batch", "Seq Len", "Heads", "Time (ms)", "Memory (MB)", "Throughput (tok/s)", "Status",
]  # fmt: skip
_SEED_ALIGN = ("left", "right", "right", "right", "left", "left", "left", "left")
_AXES = ("batch", "seq_len", "n_heads", "n_kv_heads", "head_dim", "dtype", "mask", "pass")


def seed_grid(rows: list[list[Any]]) -> str:
    """Rows of the seed table's eight columns, laid out exactly as it was."""
    return tabulate(rows, _SEED_HEADERS, tablefmt="grid", colalign=_SEED_ALIGN, disable_numparse=True)


def seed_table(records: list[Record], device: str, references: Iterable[str]) -> str:
    """The table that started this project, from records of its grid, without yardsticks and what params leave out."""
    shown = [record for record in records if record.implementation not in references and not record.left_out]
    stamp = max((record.measured_at for record in shown if record.measured_at), default="nothing measured yet")
    dtypes = dict.fromkeys(record.workload["dtype"] for record in shown)
    lines = [f"Benchmark Results - {stamp}", f"Device: {device}, Dtype: {', '.join(f'torch.{d}' for d in dtypes)}", ""]
    lines += [seed_grid([_seed_row(record) for record in shown]), "", *_seed_notes(shown)]
    return "\n".join(lines) + "\n"


def explained(records: list[Record], reports: dict[str, check_tables.Report]) -> list[Record]:
    """Records, those of wrong rows with the error in the case that they name.

    A record has it from the verdict, which holds no figure so that none re-runs a measurement; the check report does.
    """
    found = []
    for record in records:
        report = reports.get(record.implementation)
        case, error = check_tables.first_error(report) if report else ("", "")
        named = record.status == "incorrect" and case and (record.reason or "").endswith(f"the first {case}")
        found.append(record.model_copy(update={"reason": f"{record.reason}: {error}"}) if named else record)
    return found


def grid_table(records: list[Record], ceiling: dict[str, Any], reports: dict[str, check_tables.Report]) -> str:
    """One line a cell: time and relative time with intervals, share of the ceiling, error, memory, backend.

    `reports`: check reports by row, for its error on real inputs.
    """
    axes, family = varying(records), records[0].family
    ranks, sent = (["ranks"], ["sent MiB"]) if family == "ring" else ([], [])
    headers = ["implementation", *axes, *ranks, "time ms", f"/ {records[0].reference}", "first ms", "TFLOP/s"]
    headers += ["of ceiling", "error (of budget)", "on real inputs", "MiB net", "MiB", *sent, "backend"]
    align = ("left", *["right"] * (len(headers) - 2), "left")
    rows = [[*head(record, axes), *_cells(record, ceiling, reports)] for record in records]
    table = tabulate(rows, headers, tablefmt="simple", disable_numparse=True, colalign=align)
    fixed = _fixed_axes(records[0], axes, alone=_alone(records))
    return "\n".join([table, "", *fixed, *noise.notes(records), *moved(records), *_notes(records)]) + "\n"


def metrics(records: list[Record]) -> dict[str, Any]:
    """Few enough figures for `dvc metrics diff` to fit a screen: the seed's times, and one ratio a row and grid.

    `relative` is the geometric mean over a grid's cells of the time relative to the family's yardstick.
    """
    found: dict[str, Any] = {"cells_ok": 0, "cells_left_out": 0, "cells_not_ok": 0, "seed_ms": {}, "relative": {}}
    for record in records:
        found[{"ok": "cells_ok", "not_measured": "cells_left_out"}.get(record.status, "cells_not_ok")] += 1
        if record.grid == "seed" and record.figures and record.implementation != record.reference:
            name = f"{record.implementation}_h{record.workload['n_heads']:02d}"
            found["seed_ms"][name] = _rounded(record.figures.time_ms.value)
    for (family, grid, name), ratios in _ratios(records).items():
        found["relative"].setdefault(f"{grid}_{family}", {})[name] = _rounded(stats.geometric_mean(ratios))
    return found


def plot_rows(records: list[Record]) -> list[dict[str, Any]]:
    """One flat row a measured cell, for `dvc plots`."""
    return [
        {
            "implementation": record.implementation,
            "grid": f"{record.family}-{record.grid}",
            "panel": ", ".join(str(record.workload[axis]) for axis in ("dtype", "mask", "pass")),
            **{axis: record.workload[axis] for axis in _AXES},
            "world_size": record.world_size,
            "time_ms": _rounded(record.figures.time_ms.value),
            "tflops": _rounded(record.figures.tflops),
        }
        for record in records
        if record.figures
    ]


def peak_tflops(ceiling: dict[str, Any], dtype: str) -> float:
    """The machine's best matrix-product rate for a dtype; a kernel is free to compute in float32."""
    rates = ceiling["matrix_product"]
    return float(max(rates[dtype]["tflops"], rates["float32"]["tflops"]))


def interval(figure: Figure | stats.Estimate | None, digits: int = 3) -> str:
    """`1.23 [1.20, 1.31]`."""
    if figure is None:
        return "-"
    return f"{short(figure.value, digits)} [{short(figure.low, digits)}, {short(figure.high, digits)}]"


def _seed_row(record: Record) -> list[Any]:
    w, f = record.workload, record.figures
    figures = [NOTHING] * 3
    if f:
        figures = [f"{f.time_ms.value:.2f}", f"{f.peak_with_inputs_mib:.2f}", f"{f.throughput_tok_per_s:.0f}"]
    return [record.implementation, w["batch"], w["seq_len"], w["n_heads"], *figures, OK if f else CROSS]


def _seed_notes(records: list[Record]) -> list[str]:
    rings = [record for record in records if record.family == "ring"]
    notes = [
        "Every row was judged against float64, and every call of it that was timed. Time: median of process medians.",
        "Memory (MB): peak of one call with its inputs and weights, in MiB. Throughput: batch x seq_len / time.",
    ]
    if any(record.family == "module" for record in records):
        notes.append("multihead_* include their projections: compare them with each other only.")
    if rings:
        sizes = ", ".join(str(n) for n in sorted({record.world_size for record in rings}))
        notes.append(f"ring_* rows: world_size {sizes}, so nothing is sent; the grid `ring` has more ranks.")
    apart = [f"{line} `python -m bench table seed --details` has them." for line in moved(records)]
    return notes + noise.notes(records) + apart + _reasons(records)


def moved(records: list[Record]) -> list[str]:
    """A line where the machine was not the same for all rows: on one shape, the yardstick took longer beside some.

    Only rows of one grid, family, yardstick and number of ranks are held against each other.
    """
    beside: dict[tuple[Any, ...], list[tuple[float, Record]]] = {}
    for record in records:
        if record.figures and record.figures.relative_time:
            shape = (record.family, record.grid, record.reference, record.world_size, *record.workload.values())
            beside.setdefault(shape, []).append((_yardstick_ms(record), record))
    ends = [(min(times, key=_first), max(times, key=_first)) for times in beside.values() if len(times) > 1]
    apart = [(low, high) for low, high in ends if _first(high) > _first(low) * (1 + MOVED / 100)]
    if not apart:
        return []
    (low, fast), (high, slow) = max(apart, key=lambda both: _first(both[1]) / _first(both[0]))
    return [
        f"The machine moved: {slow.reference} took {low:.3g} ms beside {fast.implementation} and {high:.3g} ms beside "
        f"{slow.implementation} {where(slow)}; over {MOVED:g} % apart on {len(apart)} of {len(ends)} shapes. "
        "Milliseconds of these rows do not compare; relative times do, as far as both slowed alike."
    ]


def _yardstick_ms(record: Record) -> float:
    """In the processes of this row: the median of their medians."""
    return float(statistics.median(statistics.median(one["series"]["reference_ms"]) for one in record.processes))


def _first(timed: tuple[float, Record]) -> float:
    return timed[0]


def _reasons(records: list[Record]) -> list[str]:
    return [
        f"{CROSS} {record.implementation} {where(record)}: {record.status}: {record.reason}"
        for record in records
        if record.status != "ok"
    ]


def where(record: Record) -> str:
    """Which cell of its grid a record is, in words."""
    w = record.workload
    ranks = f" ranks {record.world_size}" if record.family == "ring" else ""
    return f"({w['n_heads']} heads, seq_len {w['seq_len']}, {w['dtype']}, {w['mask']}, {w['pass']}{ranks})"


def _notes(records: list[Record]) -> list[str]:
    sampled = [f"- {r.implementation} {where(r)}: judged on {r.sampled}" for r in records if r.sampled]
    low = dict.fromkeys((r.implementation, r.workload["dtype"], r.precision) for r in records if r.precision != "dtype")
    chosen: dict[str, dict[str, str]] = {r.implementation: {} for r in records if r.configurations}
    for r in records:
        chosen.get(r.implementation, {}).update(r.configurations)
    declared = [
        f"- {name}: {dtype} in memory, products in {precision}; judged by what that precision costs plain attention"
        for name, dtype, precision in low
    ]
    return [*_reasons(records), *_not_compared(records), *sampled, *declared, *_configurations(chosen)]


def _configurations(chosen: dict[str, dict[str, str]]) -> list[str]:
    """Of our kernels, what ran: chosen among those that passed the build."""
    return [f"- {name}: {', '.join(f'{key} {one}' for key, one in keys.items())}" for name, keys in chosen.items()]


def _not_compared(records: list[Record]) -> list[str]:
    rows = [r for r in records if r.not_compared and not r.oversubscribed]
    return [f"- {r.implementation} {where(r)}: not compared, {r.not_compared}" for r in rows]


def head(record: Record, axes: list[str]) -> list[Any]:
    """Row, axes, and for a ring its ranks."""
    ranks = f"{record.world_size}*" if record.oversubscribed else str(record.world_size)
    shown = [record.implementation, *(record.workload[axis] for axis in axes)]
    return [*shown, ranks] if record.family == "ring" else shown


def varying(records: list[Record]) -> list[str]:
    """Axes that take several values; n_kv_heads only where it is not simply n_heads."""
    grouped = any(record.workload["n_kv_heads"] != record.workload["n_heads"] for record in records)
    axes = [axis for axis in _AXES if len({record.workload[axis] for record in records}) > 1]
    return [axis for axis in axes if axis != "n_kv_heads" or grouped]


def _alone(records: list[Record]) -> bool:
    return all(record.world_size == 1 for record in records)


def _fixed_axes(record: Record, varying: list[str], *, alone: bool) -> list[str]:
    shown = [axis for axis in _AXES if axis not in varying and (axis != "n_kv_heads" or "n_heads" not in varying)]
    fixed = ", ".join(f"{axis} {record.workload[axis]}" for axis in shown)
    lines = [f"All: {fixed}. Intervals: 95 %, bootstrapped over processes. MiB net: peak of a call without its inputs."]
    if record.family == "ring":
        lines += ["One rank everywhere: nothing is sent."] if alone else []
        lines.append(
            f"Time: the slowest rank's. / {record.reference}: to one process on all cores. "
            "*: more ranks than cores, oversubscribed, not compared."
        )
    return lines


def _cells(record: Record, ceiling: dict[str, Any], reports: dict[str, check_tables.Report]) -> list[str]:
    """Of one record, from `time ms` on."""
    f, dtype = record.figures, record.workload["dtype"]
    worst = "-"
    if record.over_budget:
        name = max(record.over_budget, key=lambda tensor: record.over_budget[tensor])
        worst = f"{name} {record.max_abs_error[name]:.1e} ({record.over_budget[name]:.2f})"
    errors = [worst, check_tables.on_real_inputs(reports.get(record.implementation), dtype)]
    times = [f"{CROSS} {record.status}", *["-"] * 4]
    memory, sent = ["-", "-"], "-"
    if f:
        share = f"{100 * f.tflops / peak_tflops(ceiling, dtype):.0f} %"
        times = [interval(f.time_ms), interval(f.relative_time), short(f.first_call_ms), short(f.tflops), share]
        memory, sent = [f"{f.peak_mib:.1f}", f"{f.peak_with_inputs_mib:.1f}"], _sent(f)
    return [*times, *errors, *memory, *([sent] if record.family == "ring" else []), record.backend or "-"]


def _sent(figures: Figures) -> str:
    return "-" if figures.payload_bytes is None else f"{figures.payload_bytes / 2**20:.1f}"


def _ratios(records: list[Record]) -> dict[tuple[str, str, str], list[float]]:
    found: dict[tuple[str, str, str], list[float]] = {}
    for record in records:
        if record.figures and record.figures.relative_time and record.implementation != record.reference:
            key = (record.family, record.grid, record.implementation)
            found.setdefault(key, []).append(record.figures.relative_time.value)
    return found


def short(value: float, digits: int = 3) -> str:
    """With so many significant digits, never as a power of ten."""
    text = f"{value:.{digits}g}"
    return f"{value:.0f}" if "e+" in text else text


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")
