"""The model of rings against measured rings, and which schedule is the fastest where: from `ring-model.json`."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tabulate import tabulate

from attn.contract import Workload
from bench import tables
from bench.files import read_json

NAME = "ring-model.json"
WITHIN = 0.15
PARTS = ("model", "crossover")


def text(path: Path, part: str) -> str:
    """One of `PARTS`, of a file.

    Raises:
        ValueError: another part.
    """
    if part not in PARTS:
        raise ValueError(f"{path}#{part}: no such table, allowed: {', '.join(PARTS)}")
    found = read_json(path)
    return model(found) if part == "model" else crossover(found)


def compared(found: dict[str, Any]) -> list[dict[str, Any]]:
    """One cell a link, workload and schedule: what was measured, and what the model says with that link's own rates."""
    from bench import calibration, project
    from bench.model_cells import SCHEDULES

    cells, workloads = [], [Workload.from_dict(one) for one in found["workloads"]]
    for rate, measured in found["links"].items():
        seconds = {name: slowest(samples) / 1e3 for name, samples in measured["ms"].items()}
        link = calibration.link(
            {size: seconds[f"message {size}"] for size in calibration.MESSAGE_BYTES},
            {size: slowest(measured["processor_ms"][f"message {size}"]) / 1e3 for size in calibration.MESSAGE_BYTES},
        )
        cluster = project.Cluster(2, 1, link, link, **calibration.rates(workloads[0], seconds))
        measured["calibration"] = {"link": vars(link), **calibration.rates(workloads[0], seconds)}
        for w in workloads:
            for schedule in SCHEDULES:
                said = project.project(schedule, w, cluster)
                cells.append({
                    "link": rate, "workload": w.as_dict(), "schedule": schedule, "payload_bytes": said.payload_bytes,
                    "measured_ms": 1e3 * seconds[f"{schedule} {w.key}"], "predicted_ms": 1e3 * said.seconds,
                })  # fmt: skip
    return cells


def slowest(samples_of_ranks: list[list[float]]) -> float:
    """The median over rounds of the slowest rank."""
    return float(statistics.median(max(of_round) for of_round in zip(*samples_of_ranks, strict=True)))


def model(found: dict[str, Any]) -> str:
    """One line a cell."""
    headers = ["link", "schedule", "seq_len", "kv heads", "mask", "measured ms", "predicted ms", "predicted / measured"]
    rows, close = [], 0
    for cell in found["cells"]:
        ratio = cell["predicted_ms"] / cell["measured_ms"]
        close += abs(ratio - 1) <= WITHIN
        times = [tables.short(cell[which]) for which in ("measured_ms", "predicted_ms")]
        rows.append([cell["link"], cell["schedule"], *_shape(cell), *times, f"{ratio:.2f}"])
    links = [_link(rate, one["calibration"]["link"]) for rate, one in found["links"].items()]
    said = f"{close} of {len(found['cells'])} cells are predicted within {100 * WITHIN:.0f} %."
    return _table(headers, rows, [said, *links, *_foot(found)])


def crossover(found: dict[str, Any]) -> str:
    """One line a link and shape: measured times of every schedule, and the fastest."""
    schedules = list(dict.fromkeys(cell["schedule"] for cell in found["cells"]))
    headers = ["link", "seq_len", "kv heads", "mask", *(f"{one} ms" for one in schedules), "fastest", "predicted"]
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for cell in found["cells"]:
        groups.setdefault((cell["link"], *_shape(cell)), []).append(cell)
    rows = []
    for key, cells in groups.items():
        fastest = [min(cells, key=lambda cell: cell[which])["schedule"] for which in ("measured_ms", "predicted_ms")]
        rows.append([*key, *(tables.short(cell["measured_ms"]) for cell in cells), *fastest])
    note = "Measured; the last column is the model's choice. Schedules that send as much may lie within noise."
    return _table(headers, rows, [note, *_foot(found)])


def _shape(cell: dict[str, Any]) -> list[str]:
    w = cell["workload"]
    return [str(w["seq_len"]), f"{w['n_kv_heads']} of {w['n_heads']}", w["mask"]]


def _link(rate: str, link: dict[str, float]) -> str:
    return (
        f"{rate}: {link['bytes_per_s'] / 1e6:.3g} MB/s one way, {1e6 * link['latency_s']:.0f} us, "
        f"{link['burst_bytes'] / 1024:.0f} KiB at once, {1e9 * link['processor_s_per_byte']:.2f} ns processor a byte."
    )


def _foot(found: dict[str, Any]) -> list[str]:
    load = " to ".join(f"{found['state'][when]['load_1min']:g}" for when in ("before", "after"))
    return [
        "2 hosts of one rank, one thread a rank, over gloo; head_dim 64, float32, forward. Median of the slowest rank.",
        f"{found['measured_at']}, {found['machine']}; load {load}.",
    ]


def _table(headers: list[str], rows: list[list[str]], notes: Iterable[str]) -> str:
    align = ("left", *["right"] * (len(headers) - 1))
    shown = tabulate(rows, headers, tablefmt="simple", disable_numparse=True, colalign=align)
    return "\n".join([shown, "", *notes]) + "\n"
