"""What a compiled kernel needs and does, read off its cubin by the programs that come with triton. No GPU needed."""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TENSOR = ("HMMA", "HGMMA", "UTCHMMA")
_SPILLS = ("LDL", "STL")
_ASYNC = ("LDGSTS", "UTMALDG")
_LINE = re.compile(r"^(?:(\.L_x_\d+):|\s+/\*[0-9a-f]{4,}\*/\s+(@!?\w+\s+)?([A-Z][\w.]*)\s*(.*?)\s*;.*)$", re.MULTILINE)
_USAGE = re.compile(r"REG:(\d+) STACK:(\d+)")


@dataclass(frozen=True)
class Limits:
    """Of an architecture: CUDA C++ programming guide, table of technical specifications per compute capability."""

    shared_per_block: int
    shared_per_sm: int
    warps_per_sm: int


LIMITS = {
    80: Limits(163 << 10, 164 << 10, 64),
    90: Limits(227 << 10, 228 << 10, 64),
    100: Limits(227 << 10, 228 << 10, 64),
    120: Limits(99 << 10, 100 << 10, 48),
}
_REGISTERS_PER_SM = 65536
_SHARED_OF_A_BLOCK = 1024  # kept by the system for each
_REGISTERS_AT_A_TIME = 256  # of a warp


@dataclass(frozen=True)
class Loop:
    """Instructions between a label and the branch back to it."""

    opcodes: tuple[str, ...]

    def count(self, *names: str) -> int:
        """How many begin with one of these names, as HMMA does HMMA.16816.F32."""
        return sum(opcode.split(".")[0] in names for opcode in self.opcodes)

    @property
    def tensor(self) -> int:
        """Tensor-core instructions."""
        return self.count(*TENSOR)

    @property
    def products(self) -> dict[str, int]:
        """Tensor-core instructions, by opcode."""
        return dict(sorted(Counter(opcode for opcode in self.opcodes if opcode.split(".")[0] in TENSOR).items()))

    @property
    def per_product(self) -> float:
        """Instructions for each that does the products: on tensor cores, or where there is none, fused in float32."""
        return len(self.opcodes) / max(1, self.tensor or self.count("FFMA", "FFMA2"))


def figures(cubin: Path, tools: Path, arch: int, num_warps: int, shared_bytes: int) -> dict[str, Any]:
    """What the build's table has of a kernel; `tools` is the folder of cuobjdump and nvdisasm."""
    usage = _USAGE.search(_run(tools / "cuobjdump", "--dump-resource-usage", str(cubin)))
    if usage is None:
        raise ValueError(f"{cubin.name}: cuobjdump does not say how many registers it needs")
    registers, stack_bytes = map(int, usage.groups())
    found = loops(_run(tools / "nvdisasm", "-c", str(cubin)))
    main = min(found, key=lambda loop: (not loop.tensor, loop.per_product), default=Loop(()))
    return {
        "registers": registers,
        "stack_bytes": stack_bytes,
        "shared_bytes": shared_bytes,
        "resident_warps": resident_warps(arch, registers, shared_bytes, num_warps),
        "loops": len(found),
        "loop_kinds": _kinds(found),
        "loop_instructions": len(main.opcodes),
        "loop_tensor": main.products,
        "loop_async": main.count(*_ASYNC),
        "loop_local": max((loop.count(*_SPILLS) for loop in found), default=0),
        "per_product": round(main.per_product, 2) if main.opcodes else None,
    }


def _kinds(found: Sequence[Loop]) -> list[dict[str, Any]]:
    """Of loops that do the same products (with and without a mask), the shortest; one kernel may have several kinds."""
    kinds: dict[str, dict[str, Any]] = {}
    for loop in sorted(found, key=lambda loop: -len(loop.opcodes)):
        kinds[str(loop.products)] = {"instructions": len(loop.opcodes), "tensor": loop.products}
    return [kinds[name] for name in sorted(kinds)]


def loops(sass: str) -> list[Loop]:
    """Innermost loops with products in them: those that a kernel spends its time in.

    Waits that take long are written behind the end of a kernel and jump back from there: no loop goes over that end.
    """
    labels: dict[str, int] = {}
    opcodes: list[str] = []
    back: list[tuple[int, int]] = []
    end = 0
    for label, predicate, opcode, operands in _LINE.findall(sass):
        if label:
            labels[label] = len(opcodes)
            continue
        if opcode == "EXIT" and not predicate:
            end = len(opcodes)
        target = re.search(r"`\((\.L_x_\d+)\)", operands)
        if opcode.startswith("BRA") and target and labels.get(target[1], -1) >= end:
            back.append((labels[target[1]], len(opcodes) + 1))
        opcodes.append(opcode)
    with_products = [(a, b) for a, b in back if _has_products(opcodes[a:b])]
    innermost = [one for one in with_products if not any(_inside(other, one) for other in with_products)]
    return [Loop(tuple(opcodes[a:b])) for a, b in innermost]


def resident_warps(arch: int, registers: int, shared_bytes: int, num_warps: int) -> int:
    """Warps of an SM at a time, as registers, shared memory and the architecture allow."""
    limits = LIMITS[arch]
    of_a_warp = -(-registers * 32 // _REGISTERS_AT_A_TIME) * _REGISTERS_AT_A_TIME
    blocks = (
        _REGISTERS_PER_SM // (of_a_warp * num_warps),
        limits.shared_per_sm // (shared_bytes + _SHARED_OF_A_BLOCK),
        limits.warps_per_sm // num_warps,
    )
    return min(blocks) * num_warps


def products(loop_tensor: dict[str, int], num_warps: int) -> int | None:
    """Multiply-adds of a block that a loop's tensor-core instructions do; None where they do not say their shape.

    HMMA.16816: 16 x 8 x 16 by each warp. HGMMA.64x128x16: that, by each 4 warps.
    """
    total = 0
    for opcode, count in loop_tensor.items():
        name, _, shape = opcode.partition(".")
        shape = shape.split(".")[0]
        if name == "HMMA":
            m, n, k = {"16816": (16, 8, 16), "1688": (16, 8, 8), "1684": (16, 8, 4)}[shape]
            total += m * n * k * count * num_warps
        elif name == "HGMMA":
            m, n, k = map(int, shape.split("x"))
            total += m * n * k * count * (num_warps // 4)
        else:
            return None
    return total


def _has_products(opcodes: Sequence[str]) -> bool:
    loop = Loop(tuple(opcodes))
    return loop.tensor > 0 or loop.count("FFMA", "FFMA2") > 64  # more than a softmax of a tile needs


def _inside(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one != other and other[0] <= one[0] and one[1] <= other[1]


def _run(*command: str | Path) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
