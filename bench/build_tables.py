"""What people read of a build, and what it must hold: the table, the gate, the list that kernels are chosen from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tabulate import tabulate

from attn.kernels.flash import configs
from attn.kernels.flash.configs import Config
from bench import build, build_sass
from bench.files import write_text

_HEADERS: tuple[str, ...] = (
    "kernel",
    "sm",
    "dtype",
    "head_dim",
    "configuration",
    "compile s",
    "registers",
    "local bytes",
)
_HEADERS += ("shared KiB", "warps", "tensor cores", "of due", "async", "per product", "verdict")


def table(found: Sequence[dict[str, Any]]) -> str:
    """One line a configuration; one that cannot be chosen says why below."""
    rows = [_row(entry) for entry in found]
    failed = [f"{entry['key']} {entry['config']}: {entry['verdict']}" for entry in found if not _passed(entry)]
    words = [
        "local bytes: stack of a thread, of which only accesses in a main loop speak against a configuration.",
        "warps: of an SM at a time. tensor cores: instructions in the main loop, of one warp (UTCHMMA: of a block).",
        "of due: multiply-adds that they do, to those that the tile needs; where it is more, warps repeat some.",
        "async: copies in the main loop (LDGSTS, UTMALDG). per product: instructions in the main loop for each of the",
        "tensor cores, or of float32 for each fused multiply-add. No GPU was used, nothing here is a time on one.",
    ]
    lines = [tabulate(rows, headers=_HEADERS, tablefmt="simple", disable_numparse=True), "", *words]
    return "\n".join(lines + ([f"\n{len(failed)} of {len(found)} cannot be chosen:", *failed] if failed else []))


def faults(found: Sequence[dict[str, Any]]) -> list[str]:
    """What `gate` stops at: a key with nothing to choose, a kernel without product that fails, an old list."""
    passed = build.passed(found)
    lines = [f"{key}: no configuration passed" for key, names in passed.items() if not names]
    lines += [
        f"{entry['key']} {entry['config']}: {entry['verdict']}"
        for entry in found
        if entry["key"] not in passed and not _passed(entry)
    ]
    if passed != configs.passed():
        lines.append(f"{configs.PASSED.name} is not what the build found: `python -m bench build --keep`")
    return lines


def keep(found: Sequence[dict[str, Any]]) -> None:
    """Write the list that kernels choose from."""
    write_text(configs.PASSED, json.dumps(build.passed(found), indent=1) + "\n")
    configs.passed.cache_clear()


def _row(entry: dict[str, Any]) -> list[Any]:
    row = [entry["kernel"], entry["arch"], entry["dtype"], entry["head_dim"], entry["config"]]
    if entry["status"] != "compiled":
        return [*row, *["-"] * (len(_HEADERS) - len(row) - 1), "failed"]
    tensor = " ".join(f"{count} {_short(opcode)}" for opcode, count in entry["loop_tensor"].items())
    done = build_sass.products(entry["loop_tensor"], Config.parse(entry["config"]).num_warps)
    of_due = f"{done / build.needed(entry, Config.parse(entry['config'])):.2f}" if tensor and done else "-"
    return [
        *row,
        f"{entry['compile_s']:.1f}",
        entry["registers"],
        entry["stack_bytes"],
        f"{entry['shared_bytes'] / 1024:.1f}",
        entry["resident_warps"],
        tensor or "-",
        of_due,
        entry["loop_async"],
        entry["per_product"] or "-",
        "passed" if _passed(entry) else "cannot be chosen",
    ]


def _short(opcode: str) -> str:
    return ".".join(opcode.split(".")[:2])


def _passed(entry: dict[str, Any]) -> bool:
    return bool(entry["verdict"] == "passed")
