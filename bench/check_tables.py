"""Check reports -> what people read of them: how near to its budget, on real inputs, twice, on how many ranks."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from attn.contract import DTYPES

Report = dict[str, Any]


def worst(found: dict[str, Any] | None) -> str:
    """`out 3.8e-06 (0.77)`: tensor, largest error, and its worst share of the budget."""
    return f"{found['tensor']} {found['max_abs_error']:.1e} ({found['over_budget']:.2f})" if found else "-"


def on_real_inputs(report: Report | None, dtype: str) -> str:
    """The worst error of a row on what a trained model computed with; `-` where it was not judged on it."""
    return worst(report["summary"]["real"].get(dtype)) if report and "summary" in report else "-"


def checks(reports: list[Report]) -> str:
    """One line a row."""
    headers = ["implementation", "verdict", "cases", "nearest to its budget", "in case"]
    headers += [*(f"real, {dtype}" for dtype in DTYPES), "two runs", "NaN in v, causal"]
    rows = [_line(report) for report in reports]
    notes = [
        "Errors: the worst tensor, its largest error, and in brackets its worst share of the budget (above 1: wrong).",
        "real: q, k, v (for modules x and weights) of a trained transformer that read a text, data/real.",
        "NaN in v, causal: whether it reaches rows that do not see it (0 x NaN), a property and no error.",
        *(f"{report['implementation']}: {report['reason']}" for report in reports if report["reason"]),
    ]
    return "\n".join([tabulate(rows, headers, tablefmt="simple", disable_numparse=True), "", *notes]) + "\n"


def world_sizes(reports: list[Report]) -> str | None:
    """Error of every tensor of a ring against the number of ranks; None where there is no ring."""
    rings = [report for report in reports if report["kind"] == "ring"]
    shown = [
        (report["implementation"], one)
        for report in rings
        for one in _on_every_size(report["cases"])
        if one.get("over_budget")
    ]
    if not shown:
        return None
    names = list(dict.fromkeys(name for _, one in shown for name in one["over_budget"] if "_" not in name))
    headers = ["implementation", "dtype", "mask", "pass", "ranks", *names]
    rows = [
        [name, one["dtype"], one["mask"], one["pass"], one["world_size"], *(_error(one, tensor) for tensor in names)]
        for name, one in shown
    ]
    notes = [
        f"seq_len {shown[0][1]['seq_len']}. Largest error against float64, and in brackets its share of the budget."
    ]
    return "\n".join([tabulate(rows, headers, tablefmt="simple", disable_numparse=True), "", *notes]) + "\n"


def _on_every_size(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Cases that were judged on the largest number of ranks, on all of them; by case, then by ranks."""
    largest = max((one["world_size"] for one in cases), default=1)
    wanted = [_without_ranks(one) for one in cases if one["world_size"] == largest > 1]
    found = [one for one in cases if _without_ranks(one) in wanted]
    return sorted(found, key=lambda one: (wanted.index(_without_ranks(one)), one["world_size"]))


def _without_ranks(one: dict[str, Any]) -> str:
    return str(one["case"]).removesuffix(f"_n{one['world_size']}")


def _error(one: dict[str, Any], tensor: str) -> str:
    if tensor not in one["over_budget"]:
        return "-"
    return f"{one['max_abs_error'][tensor]:.1e} ({one['over_budget'][tensor]:.2f})"


def _line(report: Report) -> list[str]:
    name, cases = report["implementation"], report["cases"]
    statuses = [one["status"] for one in cases]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)) or "-"
    if "summary" not in report:
        return [name, report["status"], counts, *["-"] * (4 + len(DTYPES))]
    summary = report["summary"]
    apart = max((max(spread.values()) for spread in summary["spread"].values()), default=None)
    judged_nan = any(one["variant"] in ("nan-v", "nan-x") and one["mask"] == "causal" for one in cases)
    return [
        name,
        report["status"],
        counts,
        worst(summary["worst"]),
        summary["worst"]["case"] if summary["worst"] else "-",
        *(on_real_inputs(report, dtype) for dtype in DTYPES),
        "bitwise the same" if apart is None else f"up to {apart:.1e} apart",
        ("leaks" if summary["nan_leaks"] else "stays") if judged_nan else "-",
    ]
