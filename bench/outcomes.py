"""What the processes of a cell found -> its record."""

from __future__ import annotations

import statistics
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from attn import registry
from bench import losses, machine, placement, roofline, stats
from bench.grid import Cell
from bench.records import KEPT, Figure, Figures, Record, Status
from bench.spent import total

if TYPE_CHECKING:
    from bench.runner import Campaign


def record(
    campaign: Campaign,
    cell: Cell,
    known: tuple[Status, str] | None,
    results: list[dict[str, Any]],
    state: dict[str, Any],
) -> Record:
    """Of a cell: why it was not measured, which process failed and how, or figures with all samples.

    known: what kept it from being measured. results: of its processes, in the order in which they ran. state: of the
    machine before they did.
    """
    identity = campaign.identity
    sharing = placement.most_on_a_host(cell.world_size, campaign.params.launch)
    common: dict[str, Any] = {
        "implementation": cell.implementation,
        "family": cell.family,
        "grid": cell.grid,
        "workload": cell.workload.as_dict(),
        "world_size": cell.world_size,
        "precision": registry.read(registry.IMPL_DIR / f"{cell.implementation}.py").precision,
        "threads": machine.threads_per_rank(identity["threads"], sharing),
        "oversubscribed": identity["device"] == "cpu" and sharing > identity["cpu_count"],
        "reference": campaign.params.reference_of(cell.family),
    }
    if known:
        return Record(**common, status=known[0], reason=known[1])
    common["spent_s"] = total(result.get("spent_s", {}) for result in results)
    common["state"] = state
    failed = next((result for result in results if result["status"] != "ok"), None)
    if failed:
        return Record(**common, **_failed(campaign, failed, state))
    return Record(**common, **_measured(campaign, cell, results, oversubscribed=common["oversubscribed"]))


def _failed(campaign: Campaign, result: dict[str, Any], state: dict[str, Any]) -> dict[str, Any]:
    """Of the first process that failed: status, reason, and what was judged."""
    judged = result.get("after") or result.get("before") or {}
    errors = {field: judged.get(field, {}) for field in ("max_abs_error", "over_budget")}
    keeps = campaign.identity["device"] == "cpu" and state.get("freed_memory") == KEPT
    hint = "; with protocol.keep_memory: false it needs less" if keeps and result["status"] == "out_of_memory" else ""
    return {"status": result["status"], "reason": result["reason"] + hint, **errors}


def _measured(campaign: Campaign, cell: Cell, results: list[dict[str, Any]], *, oversubscribed: bool) -> dict[str, Any]:
    """Of processes that all went well: figures, errors, and every sample."""
    first = next(result for result in results if "backend" in result)  # memory is measured in one process
    why_alone = not_compared(campaign, cell, results, oversubscribed=oversubscribed)
    return {
        "status": "ok",
        "reason": None,
        "backend": first["backend"],
        "configurations": first.get("configurations", {}),
        "max_abs_error": _worst(results, "max_abs_error"),
        "over_budget": _worst(results, "over_budget"),
        "sampled": results[0]["before"]["sampled"],
        "figures": _figures(cell, results, first, compared=why_alone is None),
        "ring": losses.ring(results, why_alone or _no_loss(first)) if cell.family == "ring" else None,
        "not_compared": why_alone,
        "processes": results,
        "measured_at": datetime.now(UTC).strftime("%Y%m%d_%H%M%S"),
    }


def not_compared(campaign: Campaign, cell: Cell, results: list[dict[str, Any]], *, oversubscribed: bool) -> str | None:
    """Why a cell has no relative time."""
    if oversubscribed:
        return f"{cell.world_size} ranks on {campaign.identity['cpu_count']} cores: oversubscribed"
    sharing, threads = placement.most_on_a_host(cell.world_size, campaign.params.launch), campaign.identity["threads"]
    if campaign.identity["device"] == "cpu" and sharing > threads:
        return f"{sharing} ranks have a thread each, the yardstick {threads}: params.yaml, threads"
    verdict = campaign.reference_verdict
    if verdict["status"] != "ok":
        return f"the yardstick is {verdict['status']}: {verdict['reason']}"
    return next((result["no_reference"] for result in results if result["no_reference"]), None)


def _no_loss(first: dict[str, Any]) -> str | None:
    """Why what a ring computes and what it sends cannot be told apart."""
    counted = first.get("payload_bytes") is not None
    return None if counted else "it sends for itself, so what it computes and what it sends cannot be told apart"


def _worst(results: list[dict[str, Any]], field: str) -> dict[str, float]:
    judged = [result[when][field] for result in results for when in ("before", "after")]
    return {name: max(one[name] for one in judged) for name in judged[0]}


def _figures(cell: Cell, results: list[dict[str, Any]], first: dict[str, Any], *, compared: bool) -> Figures:
    w = cell.workload
    series = [result["series"] for result in results]
    time = stats.estimate([one["samples_ms"] for one in series])
    ratios = [
        [mine / theirs for mine, theirs in zip(one["samples_ms"], one["reference_ms"], strict=True)]
        for one in series
        if compared
    ]
    relative = stats.estimate(ratios) if compared else None
    flops, hot = roofline.flops(w, cell.family), [one["hot_ms"] for one in series]

    def median(field: str) -> float:
        return float(statistics.median(result[field] for result in results))

    ring = compared and cell.family == "ring"
    alone = [[1 / ratio / results[0]["yardsticks"] for ratio in one] for one in ratios] if ring else []
    efficiency = stats.estimate(alone) if ring else None
    return Figures(
        time_ms=Figure(**asdict(time)),
        hot_ms=Figure(**asdict(stats.estimate(hot))) if all(hot) else None,
        relative_time=Figure(**asdict(relative)) if relative else None,
        efficiency=Figure(**asdict(efficiency)) if efficiency else None,
        throughput_tok_per_s=w.batch * w.seq_len / time.value * 1e3,
        flops=flops,
        tflops=flops / time.value / 1e9,
        first_call_ms=median("first_call_ms"),
        peak_mib=first["peak_mib"],
        peak_with_inputs_mib=first["peak_with_inputs_mib"],
        rss_growth_mib=median("rss_growth_mib"),
        payload_bytes=results[0].get("payload_bytes"),
        messages=results[0].get("messages"),
    )
