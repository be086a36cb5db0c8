"""Records of rings -> what they send and hide, and where their time goes, from ideal to real."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tabulate import tabulate

from bench import tables
from bench.check_tables import Report
from bench.records import Loss, Record, Ring

_MIB = 1 << 20
_TRAFFIC = [
    "transport", "sent MiB", "formula", "wire MiB", "rank ms, slowest", "mean", "compute ms", "communication",
    "in sequence", "real", "hidden",
]  # fmt: skip
_TERMS = {
    "smaller_blocks_ms": "smaller blocks", "merge_ms": "merge", "imbalance_ms": "imbalance", "exposed_ms": "exposed",
}  # fmt: skip
_HOW_TO_READ_TRAFFIC = """\
sent: what a rank hands to its communicator in one call, beside what its formula says; wire: what crossed the network,
all hosts together. Right of the samples: single calls that are not judged, the slowest rank's; hidden: the share of
communication that costs no time, 1 - (real - compute) / communication: noise where communication is short."""
_HOW_TO_READ_LOSS = """\
Read from left to right: ideal (the yardstick in one process on the same cores or devices) + smaller blocks + merge +
imbalance + exposed = real; in brackets the share of real. A term may be negative. docs/rings.md"""


def text(records: list[Record], ceiling: dict[str, Any], reports: dict[str, Report]) -> str:
    """The table of a grid; for rings, where the time of their cells goes too."""
    table = tables.grid_table(records, ceiling, reports)
    known = [(record, record.ring) for record in records if record.ring]
    return "\n".join([table, _traffic(known), _losses(known)]) if known else table


def _traffic(known: list[tuple[Record, Ring]]) -> str:
    axes = tables.varying([record for record, _ in known])
    rows = [[*tables.head(record, axes), *_sent(record, ring), *_times(ring)] for record, ring in known]
    return "\n".join([_laid_out(rows, axes, _TRAFFIC), "", _HOW_TO_READ_TRAFFIC, *_disagreements(known)]) + "\n"


def _sent(record: Record, ring: Ring) -> list[str]:
    sent = _payload(record)
    formula = "-" if ring.payload_formula_bytes is None else f"{ring.payload_formula_bytes / _MIB:.2f}"
    return [
        ring.transport or "-",
        "-" if sent is None else f"{sent / _MIB:.2f}",
        formula,
        f"{ring.wire_bytes / _MIB:.2f}",
    ]


def _times(ring: Ring) -> list[str]:
    ranks = [max(ring.rank_ms), sum(ring.rank_ms) / len(ring.rank_ms)]
    ways = (ring.compute_ms, ring.communication_ms, ring.sequence_ms, ring.real_ms)
    shown = ["-" if way is None else tables.short(way.value) for way in ways]
    return [*map(tables.short, ranks), *shown, tables.interval(ring.hidden, 2)]


def _disagreements(known: list[tuple[Record, Ring]]) -> list[str]:
    """Cells that sent other than their formula says, or that have none."""
    lines = []
    for record, ring in known:
        due, name = ring.payload_formula_bytes, f"{record.implementation} {tables.where(record)}"
        if due is None:
            lines.append(f"- {name}: no formula of what it sends")
        elif due != _payload(record):
            lines.append(f"{tables.CROSS} {name}: {_payload(record)} bytes sent a rank, its formula says {due}")
    return lines


def _losses(known: list[tuple[Record, Ring]]) -> str:
    axes = tables.varying([record for record, _ in known])
    rows = [[*tables.head(record, axes), *_budget(ring.loss)] for record, ring in known if ring.loss]
    reasons = [f"- {r.implementation} {tables.where(r)}: no loss budget, {x.no_loss}" for r, x in known if x.no_loss]
    columns = ["ideal ms", *_TERMS.values(), "real ms"]
    table = [_laid_out(rows, axes, columns), "", _HOW_TO_READ_LOSS] if rows else []
    return "\n".join([*table, *reasons]) + "\n"


def _budget(loss: Loss) -> list[str]:
    terms = [f"{tables.short(loss.terms[name])} ({100 * loss.terms[name] / loss.real_ms:.0f} %)" for name in _TERMS]
    return [tables.short(loss.ideal_ms), *terms, tables.short(loss.real_ms)]


def _laid_out(rows: list[list[Any]], axes: list[str], columns: list[str]) -> str:
    headers = ["implementation", *axes, "ranks", *columns]
    align = ("left", *["right"] * (len(headers) - 1))
    return tabulate(rows, headers, tablefmt="simple", disable_numparse=True, colalign=align)


def _payload(record: Record) -> int | None:
    """None of a row that sends for itself, uncounted."""
    assert record.figures is not None
    return record.figures.payload_bytes


def plot(records: list[Record], path: Path, title: str) -> bool:
    """Stacked bars of the loss budgets of a grid; False where it has none."""
    from matplotlib.figure import Figure

    known = [(record, record.ring.loss) for record in records if record.ring and record.ring.loss]
    if not known:
        return False
    axes = tables.varying([record for record, _ in known])
    names = [f"{' '.join(map(str, tables.head(record, axes)))} ranks" for record, _ in known]
    figure = Figure(figsize=(8, 1.2 + 0.28 * len(known)), layout="constrained")
    axis = figure.subplots()
    left = [0.0] * len(known)
    for colour, (name, label) in enumerate([("ideal_ms", "ideal"), *_TERMS.items()]):
        shares = [100 * getattr(loss, name) / loss.real_ms for _, loss in known]
        axis.barh(names, shares, left=left, label=label, color=f"C{colour}", alpha=0.4 if colour == 0 else 1.0)
        left = [start + share for start, share in zip(left, shares, strict=True)]
    axis.axvline(100, color="grey", linestyle="--")
    axis.invert_yaxis()
    axis.set(title=title, xlabel="share of the ring's time (%)\na negative term is taken off the one before it")
    figure.legend(loc="outside lower center", ncols=5, fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return True
