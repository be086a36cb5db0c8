"""Named cases that every implementation is checked on before it is timed: odd lengths first."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from attn.contract import Dtype, MaskKind, Workload
from attn.registry import Implementation
from bench import oracle
from bench.jobs import CHECKED_WORLD_SIZES
from bench.oracle import Tensors

ODD_LENGTHS = (1, 2, 63, 65, 127, 513, 1000)
DTYPE_ORDER: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")
MASK_ORDER: tuple[MaskKind, ...] = ("full", "causal")


@dataclass(frozen=True)
class Case:
    """One check: a workload, how its inputs are made (`variant`), and for rings on how many ranks."""

    workload: Workload
    variant: str = "normal"
    world_size: int = 1

    @property
    def name(self) -> str:
        """Workload, variant where it is not normal, ranks where there are several."""
        variant = f"-{self.variant}" if self.variant != "normal" else ""
        return f"{self.workload.key}{variant}" + (f"_n{self.world_size}" if self.world_size > 1 else "")


def cases(implementation: Implementation) -> list[Case]:
    """All cases that fit what an implementation declares; rings on 1, 2 and 4 ranks.

    Where it has no gradients, the same cases forward only.
    """
    made = list(_all(implementation.kind))
    if not implementation.backward:
        made = list(dict.fromkeys(replace(c, workload=replace(c.workload, pass_="forward")) for c in made))
    fitting = [case for case in made if not _undeclared(implementation, case)]
    if implementation.kind == "ring":
        return [replace(case, world_size=n) for n in CHECKED_WORLD_SIZES for case in fitting]
    return fitting


def inputs(case: Case, kind: str, seed: int) -> Tensors:
    """The inputs of a case, by seed."""
    given = oracle.inputs(kind, case.workload, seed)
    if case.variant == "huge row":  # one query whose logits overflow a naive exponential
        given["q"][:, case.workload.seq_len // 2] *= 100
    if case.variant == "equal rows":
        given = {name: x[:, :1].expand_as(x).contiguous() if name in "qkv" else x for name, x in given.items()}
    return given


def _undeclared(implementation: Implementation, case: Case) -> str | None:
    device = implementation.devices[0]
    return implementation.why_not(case.workload, device)


def _all(kind: str) -> Iterator[Case]:
    base = Workload(1, 127, 2, 2, 64, "float32", "causal", "forward_backward")
    for dtype in DTYPE_ORDER:
        for length in ODD_LENGTHS if kind != "ring" else (1, 3, 127, 513):
            for mask in MASK_ORDER:
                slow = dtype == "float16" and length > 200  # a CPU without such products takes seconds
                yield Case(
                    replace(
                        base,
                        dtype=dtype,
                        mask=mask,
                        seq_len=length,
                        kv_seq_len=length,
                        pass_="forward" if slow else "forward_backward",
                    )
                )
    for head_dim in (16, 40, 80, 128) if kind != "ring" else (40,):
        yield Case(replace(base, head_dim=head_dim, softmax_scale=-1.0))
    for n_kv_heads in (1, 2):
        yield Case(replace(base, n_heads=4, n_kv_heads=n_kv_heads))
        yield Case(replace(base, n_heads=4, n_kv_heads=n_kv_heads, mask="full", dtype="bfloat16"))
    yield Case(replace(base, batch=3, seq_len=65, kv_seq_len=65))
    yield Case(replace(base, n_heads=16, n_kv_heads=16, mask="full"))
    yield Case(replace(base, dtype="bfloat16", pass_="forward", seq_len=513, kv_seq_len=513))
    if kind == "module":
        return
    for dtype in DTYPE_ORDER[:2]:
        yield Case(replace(base, softmax_scale=0.3, dtype=dtype))
        yield Case(replace(base, dtype=dtype), "huge row")
        yield Case(replace(base, dtype=dtype), "equal rows")
        yield Case(replace(base, dtype=dtype), "strided")
        yield Case(replace(base, dtype=dtype, pass_="forward"), "strided")
        for mask in MASK_ORDER:
            yield Case(replace(base, dtype=dtype, mask=mask, seq_len=65, kv_seq_len=127))
            yield Case(replace(base, dtype=dtype, mask=mask, seq_len=300, kv_seq_len=520, pass_="forward"))
    yield Case(replace(base, seq_len=127, kv_seq_len=65))  # the first queries see no key


def strided(x: torch.Tensor) -> torch.Tensor:
    """The same values as a slice of a wider buffer: every stride but the last is not what a dense tensor has."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan, dtype=x.dtype, device=x.device)
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]
