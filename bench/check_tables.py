"""Check reports -> what people read of them: how near to its budget, on real inputs, twice, on how many ranks."""

from __future__ import annotations

from typing import Any

from tabulate import tabulate

from attn.contract import DTYPES
from bench.jobs import shown_against_ranks

Report = dict[str, Any]


def worst(found: dict[str, Any] | None) -> str:
    """`out 3.8e-06 (0.77)`: tensor, largest error, and its worst share of the budget."""
    return f"{found['tensor']} {found['max_abs_error']:.1e} ({found['over_budget']:.2f})" if found else "-"


def on_real_inputs(report: Report | None, dtype: str) -> str:
    """The worst error of a row on what a trained model computed with; `-` where it was not judged on it."""
    return worst(report["summary"]["real"].get(dtype)) if report else "-"


def first_error(report: Report) -> tuple[str, str]:
    """The first wrong case of a row by name, and the first of its errors; empty where none is wrong."""
    wrong = [(one["case"], one["reason"].split("; ")[0]) for one in report["cases"] if one["status"] == "incorrect"]
    return wrong[0] if wrong else ("", "")


def not_judged(report: Report) -> list[str]:
    """The numbers of ranks that a ring could not be judged on, a line each, with the reason."""
    return [f"not judged on {ranks} ranks: {reason}" for ranks, reason in report.get("no_ranks", {}).items()]


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
        *(f"{report['implementation']}: {line}" for report in reports for line in not_judged(report)),
    ]
    return "\n".join([tabulate(rows, headers, tablefmt="simple", disable_numparse=True), "", *notes]) + "\n"


def world_sizes(reports: list[Report]) -> str | None:
    """Error of every tensor of a ring against the number of ranks; None where there is no ring, or all have one rank.

    What is not there (ranks that cannot be had here, a ring that fell) is said below the table.
    """
    rings = [report for report in reports if report["kind"] == "ring"]
    shown = [(report["implementation"], one) for report in rings for one in _against_ranks(report["cases"])]
    missing = [f"✗ {ring['implementation']}: {line}" for ring in rings for line in _missing(ring)]
    if not missing and not any(one["world_size"] > 1 for _, one in shown):
        return None
    names = list(dict.fromkeys(n for _, one in shown for n in one.get("over_budget", {}) if "_" not in n))
    headers = ["implementation", "dtype", "mask", "pass", "ranks", *(names or ["error"])]
    rows = [
        [name, one["dtype"], one["mask"], one["pass"], one["world_size"], *_errors(one, names)] for name, one in shown
    ]
    notes = ["Largest error against float64, and in brackets its share of the budget.", *missing]
    if shown:
        notes[0] = f"seq_len {shown[0][1]['seq_len']}. {notes[0]}"
    return "\n".join([tabulate(rows, headers, tablefmt="simple", disable_numparse=True), "", *notes]) + "\n"


def _against_ranks(cases: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By case, then by ranks."""
    chosen = [one for one in cases if shown_against_ranks(one)]
    problems = list(dict.fromkeys(_without_ranks(one) for one in chosen))
    return sorted(chosen, key=lambda one: (problems.index(_without_ranks(one)), one["world_size"]))


def _missing(ring: Report) -> list[str]:
    """Why figures that one would look for are not there."""
    fell = [f"{ring['status']}: {ring['reason']}"] if ring["status"] != "ok" else []
    cases = [one for one in _against_ranks(ring["cases"]) if not one.get("over_budget")]
    return [*fell, *(f"{one['case']}: {one['status']}: {one['reason']}" for one in cases), *not_judged(ring)]


def _without_ranks(one: dict[str, Any]) -> str:
    return str(one["case"]).removesuffix(f"_n{one['world_size']}")


def _errors(one: dict[str, Any], tensors: list[str]) -> list[str]:
    """A cell a tensor; the status where nothing was compared."""
    if not one.get("over_budget"):
        return [f"✗ {one['status']}"]
    found = {name: f"{one['max_abs_error'][name]:.1e} ({ratio:.2f})" for name, ratio in one["over_budget"].items()}
    return [found.get(tensor, "-") for tensor in tensors]


def _line(report: Report) -> list[str]:
    name, cases = report["implementation"], report["cases"]
    statuses = [one["status"] for one in cases]
    counts = ", ".join(f"{statuses.count(status)} {status}" for status in dict.fromkeys(statuses)) or "-"
    summary = report["summary"]
    apart = max((max(spread.values()) for spread in summary["spread"].values()), default=None)
    runs = "bitwise the same" if apart is None else f"up to {apart:.1e} apart"
    judged_nan = any(one["variant"] in ("nan-v", "nan-x") and one["mask"] == "causal" for one in cases)
    return [
        name,
        report["status"],
        counts,
        worst(summary["worst"]),
        summary["worst"]["case"] if summary["worst"] else "-",
        *(on_real_inputs(report, dtype) for dtype in DTYPES),
        runs if summary["worst"] else "-",
        ("leaks" if summary["nan_leaks"] else "stays") if judged_nan else "-",
    ]
