"""What people read of a build, and what it must hold: the table, the gate, the list that kernels are chosen from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tabulate import tabulate

from attn.kernels.flash import configs
from attn.kernels.flash.configs import Config
from bench import build, build_sass
from bench.files import read_json, write_text

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


_COMPARED: tuple[str, ...] = ("against", "loop", "sm", "head_dim", "mask", "tile", "instructions", "theirs")
_COMPARED += ("per unit", "theirs", "unit", "ours needs")
_PEERS = {"flex": "FlexAttention", "triton": "Triton's own"}
_COMPARISON = """\
Main loops in bfloat16 at the same tile, warps and stages, read off by the same tools. per unit: instructions for each
tensor-core instruction (op); where the sizes of those differ, for each 2048 multiply-adds of a warp. Ours is one kernel
for both masks: its loop without a mask. FlexAttention: the templates of the installed torch, by descriptors where ours
are (tma), the loop of full blocks; its dq and dkdv are loops of one kernel. Triton's own: by pointers; where causal it
masks every block; its backward is one loop of 5 products, ours two of 7 together: more instructions, less for each."""


def text(path: Path, part: str) -> str:
    """What the docs show of a report: `comparison`, `chosen` (first of each key in bfloat16) or `left-out`.

    Raises:
        ValueError: there is no such part.
    """
    found = read_json(path)
    ours = found["configurations"]
    first: dict[str, dict[str, Any]] = {}
    for entry in ours:
        if _passed(entry) and entry["loops"]:
            first.setdefault(entry["key"], entry)
    parts = {
        "comparison": comparison(found["comparison"]),
        "chosen": _lines([entry for entry in first.values() if entry["dtype"] == "bfloat16"]),
        "left-out": "\n".join(_left_out(ours)).strip() or "None: every configuration passed.",
    }
    if part not in parts:
        raise ValueError(f"{path}#{part}, allowed: {', '.join(parts)}")
    return parts[part] + "\n"


def comparison(rows: Sequence[dict[str, Any]]) -> str:
    """Ours beside others', one line for each of their loops."""
    known = [row for row in rows if "unit" in row]
    lines = [
        [
            *(_PEERS[row["peer"]], row["part"], row["arch"], row["head_dim"], row["mask"], row["config"]),
            *(row[name] for name in ("ours_instructions", "theirs_instructions", "ours", "theirs")),
            *("op" if row["unit"].startswith("tensor") else "2048", row["verdict"]),
        ]
        for row in known
    ]
    less = sum(row["verdict"] == "no more" for row in known)
    words = [f"Ours needs no more in {less} of {len(known)} loops; {len(rows) - len(known)} could not be compared."]
    words += sorted({row["verdict"] for row in rows if "unit" not in row})
    shown = tabulate(lines, headers=_COMPARED, tablefmt="simple", disable_numparse=True)
    return "\n".join([shown, "", *words, _COMPARISON])


def table(found: Sequence[dict[str, Any]]) -> str:
    """One line a configuration; one that cannot be chosen says why below."""
    return "\n".join([_lines(found), *_left_out(found)])


def _lines(found: Sequence[dict[str, Any]]) -> str:
    rows = [_row(entry) for entry in found]
    words = [
        "local bytes: stack of a thread, of which only accesses in a main loop speak against a configuration.",
        "warps: of an SM at a time. tensor cores: instructions in the main loop, of one warp (UTCHMMA: of a block).",
        "of due: multiply-adds that they do, to those that the tile needs; where it is more, warps repeat some.",
        "async: copies in the main loop (LDGSTS, UTMALDG). per product: instructions in the main loop for each of the",
        "tensor cores, or of float32 for each fused multiply-add; where loads and products have warps of their own",
        "(-ws), in the loop of the products. No GPU was used, nothing here is a time on one.",
    ]
    return "\n".join([tabulate(rows, headers=_HEADERS, tablefmt="simple", disable_numparse=True), "", *words])


def _left_out(found: Sequence[dict[str, Any]]) -> list[str]:
    failed = [f"{entry['key']} {entry['config']}: {entry['verdict']}" for entry in found if not _passed(entry)]
    return [f"\n{len(failed)} of {len(found)} cannot be chosen:", *failed] if failed else []


def faults(found: Sequence[dict[str, Any]]) -> list[str]:
    """What `gate` stops at: a key with nothing to choose, what was lost or has no product and fails, an old list."""
    passed = build.passed(found)
    lines = [f"{key}: no configuration passed" for key, names in passed.items() if not names]
    lost = any(entry["status"] == "lost" for entry in found)
    lines += [
        f"{entry['key']} {entry['config']}: {entry['verdict']}"
        for entry in found
        if entry["status"] == "lost" or (entry["key"] not in passed and not _passed(entry))
    ]
    lines += ["what was lost is tried again by `dvc repro -f build/dvc.yaml`"] if lost else []
    if passed != configs.passed() and not lost:
        lines.append(f"{configs.PASSED.name} is not what the build found: `python -m bench build --keep`")
    return lines


def keep(found: Sequence[dict[str, Any]]) -> None:
    """Write the list that kernels choose from."""
    write_text(configs.PASSED, json.dumps(build.passed(found), indent=1) + "\n")
    configs.passed.cache_clear()


def _row(entry: dict[str, Any]) -> list[Any]:
    row = [entry["kernel"], entry["arch"], entry["dtype"], entry["head_dim"], entry["config"]]
    if entry["status"] != "compiled":
        return [*row, *["-"] * (len(_HEADERS) - len(row) - 1), entry["status"]]
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
