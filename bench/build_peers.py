"""Others' kernels beside ours: which are compiled, at which tile, and how many instructions theirs and ours need."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from attn.kernels.flash import candidates
from attn.kernels.flash.configs import ARCHITECTURES, Config

PEERS = "peers"  # the stage that compiles them
KERNELS = ("flex_forward", "flex_backward", "triton_forward", "triton_backward")
HEAD_DIMS, DTYPE, MASKS = (64, 128), "bfloat16", ("full", "causal")
PRODUCTS = {"forward": 2, "dq": 3, "dkdv": 4, "backward": 5}  # of a tile; backward: dq, dk and dv in one loop
_OURS = {"backward": ("dq", "dkdv")}
_ONE = 16 * 8 * 16  # multiply-adds: those of an HMMA
Entry = Mapping[str, Any]


def all_jobs() -> Iterator[dict[str, Any]]:
    """Kernel, architecture, dtype, head_dim, configuration and mask of each: the tile is one of ours."""
    for kernel in KERNELS:
        for arch in ARCHITECTURES:
            for head_dim in HEAD_DIMS:
                config = Config.parse(_tile(kernel, arch, head_dim))
                config = config if kernel.startswith("flex") else replace(config, tma=False)  # it has pointers only
                for mask in MASKS:
                    where = {"arch": arch, "dtype": DTYPE, "head_dim": head_dim, "config": config.name}
                    yield {"kernel": kernel, **where, "mask": mask}


def comparison(ours: Sequence[Entry], theirs: Sequence[Entry]) -> list[dict[str, Any]]:
    """For each of their loops the instructions of ours: `no more`, `more`, or why there is nothing to compare."""
    found = {_at(entry["kernel"], entry, entry["config"]): entry for entry in ours}
    rows = []
    for entry in theirs:
        peer, _, direction = entry["kernel"].partition("_")
        tile = _tile(entry["kernel"], entry["arch"], entry["head_dim"])
        for part in ("dq", "dkdv") if entry["kernel"] == "flex_backward" else (direction,):
            mine = [found[_at(kernel, entry, tile)] for kernel in _OURS.get(part, (part,))]
            where = {name: entry[name] for name in ("arch", "dtype", "head_dim", "mask")}
            rows.append({"peer": peer, "part": part, **where, "config": tile, **_compared(part, mine, entry)})
    return rows


def _at(kernel: str, entry: Entry, config: str) -> tuple[Any, ...]:
    return kernel, entry["arch"], entry["dtype"], entry["head_dim"], config


def _tile(kernel: str, arch: int, head_dim: int) -> str:
    if kernel.endswith("forward"):
        return candidates.candidates("forward", arch, DTYPE, head_dim)[0]
    return candidates.of_comparison(arch, head_dim)


def _compared(part: str, ours: list[Entry], theirs: Entry) -> dict[str, Any]:
    """Per tensor-core instruction where those are the same size, else per 2048 multiply-adds."""
    bad = next((entry for entry in (theirs, *ours) if entry["status"] != "compiled"), None)
    if bad is not None:
        return {"verdict": f"not compared, {bad['key']} {bad['config']}: {bad['reason']}"}
    mine = [_kind(entry, entry["loop_tensor"]) for entry in ours]
    other = _kind(theirs, mine[0]["tensor"])
    instructions = [sum(kind["instructions"] for kind in mine), other["instructions"]]
    tensor = [sum((Counter(kind["tensor"]) for kind in mine), Counter()), Counter(other["tensor"])]
    products = [sum(PRODUCTS[entry["kernel"]] for entry in ours), PRODUCTS[part]]
    alike = {name: n * products[1] for name, n in tensor[0].items()} == {
        name: n * products[0] for name, n in tensor[1].items()
    }
    config = Config.parse(theirs["config"])
    of_one = Fraction(config.block_m * config.block_n * theirs["head_dim"], _ONE * config.num_warps)
    units = [Fraction(n.total()) for n in tensor] if alike else [of_one * n for n in products]
    per = [n / unit for n, unit in zip(instructions, units, strict=True)]
    return {
        "unit": "tensor-core instruction" if alike else f"{_ONE} multiply-adds of a warp",
        "ours_instructions": instructions[0],
        "theirs_instructions": instructions[1],
        "ours": round(float(per[0]), 2),
        "theirs": round(float(per[1]), 2),
        "verdict": "no more" if per[0] <= per[1] else "more",
    }


def _kind(entry: Entry, tensor: Mapping[str, int]) -> Mapping[str, Any]:
    """The loop of a kernel that does these tensor-core instructions, or as nearly as many as it can."""
    wanted = sum(tensor.values())

    def far(kind: Mapping[str, Any]) -> tuple[bool, int]:
        return kind["tensor"] != tensor, abs(sum(kind["tensor"].values()) - wanted)

    return min(entry["loop_kinds"], key=far)
