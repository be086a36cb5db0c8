"""Samples of a ring's ranks -> what its record says: traffic, overlap, and the loss budget from ideal to real."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from typing import Any

from bench import stats
from bench.records import Figure, Loss, Ring

_MODES = ("real", "compute", "communication", "sequence")
_GIVEN = (
    "transport", "node_of_rank", "hosts", "threads", "payload_formula_bytes", "wire_bytes", "rank_peak_mib",
)  # fmt: skip


def ring(results: list[dict[str, Any]], no_loss: str | None) -> Ring:
    """The section of a cell whose processes all went well. no_loss: why there is no ideal to compare with."""
    first = next(result for result in results if "breakdown" in result)
    ranks = first["breakdown"]["ranks_ms"]
    slowest = {name: [max(times) for times in zip(*ranks[name], strict=True)] for name in ranks}
    rounds = zip(slowest["real"], slowest["compute"], slowest.get("communication", []), strict=False)
    hidden = [1 - (real - compute) / communication for real, compute, communication in rounds]
    figures: dict[str, Any] = {f"{name}_ms": _figure(slowest.get(name)) for name in _MODES}
    return Ring(
        **{name: first[name] for name in _GIVEN},
        rank_ms=_rank_medians(results),
        rank_compute_ms=[statistics.median(times) for times in ranks["compute"]],
        rounds=len(slowest["real"]),
        **figures,
        hidden=_figure(hidden),
        loss=None if no_loss else _loss(first["breakdown"], slowest, first["yardsticks"]),
        no_loss=no_loss,
    )


def _loss(found: dict[str, Any], slowest: dict[str, list[float]], yardsticks: int) -> Loss:
    """Of medians over rounds, so that the terms add up."""

    def mean_rank(name: str) -> float:
        rounds = zip(*found["ranks_ms"][name], strict=True)
        return statistics.median([statistics.fmean(times) for times in rounds])

    real, compute = statistics.median(slowest["real"]), statistics.median(slowest["compute"])
    mean_compute, merge = mean_rank("compute"), mean_rank("merge")
    ideal = statistics.median(found["ideal_ms"]) / yardsticks
    return Loss(
        ideal_ms=ideal,
        smaller_blocks_ms=mean_compute - merge - ideal,
        merge_ms=merge,
        imbalance_ms=compute - mean_compute,
        exposed_ms=real - compute,
        real_ms=real,
    )


def _rank_medians(results: list[dict[str, Any]]) -> list[float]:
    """Of each rank the median of its medians in all processes."""
    medians = [[statistics.median(times) for times in result["rank_samples_ms"]] for result in results]
    return [statistics.median(of_rank) for of_rank in zip(*medians, strict=True)]


def _figure(samples: list[float] | None) -> Figure | None:
    return Figure(**asdict(stats.estimate([samples]))) if samples else None
