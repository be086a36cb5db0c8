"""Named cases that every implementation is judged on before it is timed: odd lengths first, then what hurts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import safe_open
from torch import Tensor

from attn.contract import Dtype, MaskKind, Precision, Workload
from attn.registry import Implementation
from bench import oracle, solved
from bench.jobs import CHECKED_WORLD_SIZES, REAL, shown_against_ranks
from bench.solved import Solved, Tensors
from bench.variants import PLACED, PLACED_DOUT, VALUES

ODD_LENGTHS = (1, 2, 31, 63, 65, 97, 127, 251, 513, 1000)  # 2, 31, 97, 127 and 251 are prime
HEAD_DIMS = (16, 32, 40, 80, 96, 128, 256)
DTYPE_ORDER: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")
MASK_ORDER: tuple[MaskKind, ...] = ("full", "causal")
SLOW_LENGTH = 200  # forward only in float16: a CPU without such products takes seconds
REAL_LAYERS = (0, 1)  # one whose logits reach 79, one where a token takes a quarter of all attention
_Word = TypeVar("_Word", bound=str)
_BASE = Workload(1, 127, 2, 2, 64, "float32", "causal", "forward_backward")


@dataclass(frozen=True)
class Case:
    """One check: a workload, how its inputs are made (`variant`), on how many ranks, and in which precision."""

    workload: Workload
    variant: str = "normal"
    world_size: int = 1
    precision: Precision = "dtype"

    @property
    def problem(self) -> str:
        """Workload, variant and precision where they are not usual: cases of one problem share inputs and truth."""
        return "-".join(
            (self.workload.key, *(x for x in (self.variant, self.precision) if x not in ("normal", "dtype")))
        )

    @property
    def name(self) -> str:
        """The problem, and ranks where there are several."""
        return self.problem + (f"_n{self.world_size}" if self.world_size > 1 else "")

    @property
    def has_nan(self) -> bool:
        """Whether the inputs hold a NaN, so that only where it reaches is judged."""
        return self.variant.startswith("nan")

    def placed(self, name: str, x: Tensor) -> Tensor:
        """The same values, in memory as this case has them."""
        place = (PLACED | PLACED_DOUT).get(self.variant, {}).get(name)
        return place(x) if place else x


def cases(implementation: Implementation) -> list[Case]:
    """All cases that fit what an implementation declares; rings on each of the checked numbers of ranks.

    Where it has no gradients, or not the dtype or mask of a case, the same in what it has. On more than 4 ranks
    only what is shown against the number of ranks.
    """
    made = list(dict.fromkeys(_moved(case, implementation) for case in all_cases(implementation.kind)))
    fitting = [case for case in made if not implementation.why_not(case.workload, implementation.devices[0])]
    if implementation.kind != "ring":
        return fitting
    return [replace(case, world_size=n) for n in CHECKED_WORLD_SIZES for case in fitting if n <= 4 or _compared(case)]


def _moved(case: Case, implementation: Implementation) -> Case:
    """The case in what an implementation declares: none of what hurts is left out for a dtype or mask that it lacks.

    Such cases are not among the kept ones unless they are of `all_cases` too: they are solved as they are checked.
    Stays what it is, and is left out: what would overflow in float16, or is about a dout where there is none.
    """
    w = case.workload
    dtype = w.dtype if w.dtype in implementation.dtypes else _first(DTYPE_ORDER, implementation.dtypes)
    mask = w.mask if w.mask in implementation.masks else _first(MASK_ORDER, implementation.masks)
    slow = dtype == "float16" and max(w.seq_len, w.kv_seq_len) > SLOW_LENGTH
    pass_ = w.pass_ if implementation.backward and not slow else "forward"
    overflows = dtype == "float16" and case.variant == "values-1e4"
    if overflows or (pass_ == "forward" and case.variant in PLACED_DOUT):
        return case
    return replace(case, workload=replace(w, dtype=dtype, mask=mask, pass_=pass_), precision=implementation.precision)


def _first(order: tuple[_Word, ...], declared: tuple[str, ...]) -> _Word:
    return next(word for word in order if word in declared)


def _compared(case: Case) -> bool:
    return shown_against_ranks({**case.workload.as_dict(), "variant": case.variant})


def solve(case: Case, kind: str, seed: int, folder: Path | None = None, real: Path = Path(REAL)) -> Solved:
    """Inputs, truth and budgets of a case: from `folder` where they are kept there, else computed.

    A NaN belongs into every row that sees it: into the whole row where it is in q or k, into its column where
    it is in v. PyTorch's causal kernels let one in v into rows that do not see it too (0 x NaN): forgiven.

    Raises:
        FileNotFoundError: real inputs that are not in the file `real`.
    """
    kind = "core" if kind == "ring" else kind
    kept = folder / f"{case.problem}.safetensors" if folder else None
    found = solved.read(kept) if kept and kept.exists() else None
    if found is None:
        given = oracle.inputs(kind, case.workload, seed)
        if case.variant.startswith("real"):
            given |= _real(case, real, [name for name in given if name != "dout"])
        elif case.variant in VALUES:
            given = VALUES[case.variant](given)
        found = oracle.solve(kind, case.workload, given, seed, case.precision)
    return _with_nan(found, case) if case.has_nan else found


def solve_cases(job: dict[str, Any]) -> dict[str, Any]:
    """All problems of a kind (those of rings are of kind core), or those that match, into a folder; a worker's task."""
    kinds = ("core", "ring") if job["kind"] == "core" else (job["kind"],)
    every = (case for kind in kinds for case in all_cases(kind) if re.search(job.get("only", ""), case.name))
    problems = {case.problem: case for case in every if not case.has_nan}
    for name, case in problems.items():
        small = case.workload.seq_len < 500  # a second thread would spend its time waiting
        torch.set_num_threads(1 if small else job["threads"])
        solved.write(Path(job["folder"]) / f"{name}.safetensors", solve(case, job["kind"], job["seed"]))
    return {"status": "ok"}


def all_cases(kind: str) -> Iterator[Case]:
    """Every case of a kind, whatever an implementation may lack."""
    yield from _lengths(kind)
    yield from _shapes(kind)
    for dtype in DTYPE_ORDER:
        slow = dtype == "float16"
        real = Workload(1, 512, 12, 12, 32, dtype, "full", "forward" if slow else "forward_backward")
        yield from (Case(real, f"real-layer-{layer}") for layer in REAL_LAYERS)
    for dtype in DTYPE_ORDER[:2]:
        base = replace(_BASE, dtype=dtype)
        # of a module, gradients of a huge token would hang on rounding alone
        yield Case(replace(base, pass_="forward") if kind == "module" else base, "huge-row")
        yield from (Case(base, variant) for variant in PLACED)
        yield Case(replace(base, seq_len=128, kv_seq_len=128), "dout-expanded")
        if kind == "module":
            yield Case(replace(base, pass_="forward"), "nan-x")
            yield Case(replace(base, pass_="forward", batch=2), "nan-x-last")
        else:
            yield from _hurting(base)
    if kind != "module":
        yield from _covering()
        yield from _in_float16()
        yield Case(replace(_BASE, kv_seq_len=65))  # the first queries see no key
        yield Case(replace(_BASE, kv_seq_len=65, dtype="bfloat16", pass_="forward"))


def _lengths(kind: str) -> Iterator[Case]:
    heads = replace(_BASE, n_heads=8, n_kv_heads=8, head_dim=16, softmax_scale=-1.0)  # one for each of 8 ranks
    base = heads if kind == "ring" else _BASE
    for dtype in DTYPE_ORDER:
        for length in ODD_LENGTHS if kind != "ring" else (1, 3, 127, 513):
            slow = dtype == "float16" and length > SLOW_LENGTH
            sized = replace(base, dtype=dtype, seq_len=length, kv_seq_len=length)
            for mask in MASK_ORDER:
                yield Case(replace(sized, mask=mask, pass_="forward" if slow else "forward_backward"))


def _shapes(kind: str) -> Iterator[Case]:
    for head_dim in HEAD_DIMS if kind != "ring" else (40, 256):
        yield Case(replace(_BASE, head_dim=head_dim, softmax_scale=-1.0))
        yield Case(replace(_BASE, head_dim=head_dim, softmax_scale=-1.0, mask="full", dtype="bfloat16"))
    for n_kv_heads in (1, 2):
        yield Case(replace(_BASE, n_heads=4, n_kv_heads=n_kv_heads))
        yield Case(replace(_BASE, n_heads=4, n_kv_heads=n_kv_heads, mask="full", dtype="bfloat16"))
    yield Case(replace(_BASE, batch=3, seq_len=65, kv_seq_len=65))
    head_dim = 64 if kind != "module" else 16  # with 64, the truth of its weights alone is 50 MB
    yield Case(replace(_BASE, n_heads=16, n_kv_heads=16, mask="full", head_dim=head_dim))
    yield Case(replace(_BASE, dtype="bfloat16", pass_="forward", seq_len=513, kv_seq_len=513))


def _hurting(base: Workload) -> Iterator[Case]:
    for scale in (0.3, 1e-6, 0.0):
        yield Case(replace(base, softmax_scale=scale))
    for variant in ("equal-rows", "one-hot", "values-1e-6"):
        yield Case(base, variant)
    # logits of 1e8 hang on how products round, and gradients on nothing else: there the scale makes up for the values
    yield Case(replace(base, softmax_scale=1e-9), "values-1e4")
    if base.dtype == "float32":
        yield Case(replace(base, pass_="forward"), "values-1e4")
    yield from (Case(replace(base, pass_="forward"), variant) for variant in PLACED)
    for mask in MASK_ORDER:
        yield Case(replace(base, mask=mask, seq_len=65))
        yield Case(replace(base, mask=mask, seq_len=300, kv_seq_len=520, pass_="forward"))
        for name in "qkv":
            yield Case(replace(base, mask=mask, seq_len=97, kv_seq_len=97, pass_="forward"), f"nan-{name}")
    grouped = replace(base, batch=2, seq_len=65, kv_seq_len=65, n_heads=4, n_kv_heads=2, pass_="forward")
    yield from (Case(grouped, f"nan-{name}-last") for name in "qkv")


def _in_float16() -> Iterator[Case]:
    """What hurts, where numbers end at 65504."""
    base = replace(_BASE, dtype="float16")
    yield from (Case(base, variant) for variant in ("huge-row", "one-hot", "strided", "last-stride-2"))
    yield Case(replace(base, softmax_scale=0.3))
    yield Case(replace(base, n_heads=4, n_kv_heads=2))
    yield Case(replace(base, batch=3, n_heads=3, n_kv_heads=1, seq_len=65))


def _covering() -> Iterator[Case]:
    """Batch, groups, lengths, dtype, mask and pass in combinations: what is wrong only where two of them meet."""
    odd = Workload(2, 65, 6, 2, 40, "float32", "causal", "forward_backward", kv_seq_len=97)
    yield Case(odd)
    yield Case(replace(odd, dtype="bfloat16", mask="full"))
    yield Case(replace(odd, dtype="bfloat16", pass_="forward", n_kv_heads=3))
    yield Case(replace(odd, batch=3, n_heads=3, n_kv_heads=3, kv_seq_len=65, mask="full"))
    yield Case(replace(odd, batch=3, n_heads=3, n_kv_heads=1, kv_seq_len=65, pass_="forward"))
    yield Case(replace(odd, dtype="float16", mask="full", n_kv_heads=6, kv_seq_len=65))
    for dtype in DTYPE_ORDER[:2]:  # one query, or a few, after many keys: decoding
        yield Case(replace(odd, batch=1, seq_len=1, kv_seq_len=127, dtype=dtype, pass_="forward"))
        yield Case(replace(odd, seq_len=3, kv_seq_len=251, dtype=dtype, mask="full"))


def _real(case: Case, path: Path, names: list[str]) -> Tensors:
    """q, k, v (for a module: x and weights) of one layer of a transformer that read a text; see bench/capture.py."""
    layer, dtype = case.variant.rpartition("-")[2], getattr(torch, case.workload.dtype)
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(f"{layer}.{name}").to(dtype) for name in names}


def _with_nan(found: Solved, case: Case) -> Solved:
    """NaN in one element in the middle of the sequence, of the first head or of the last, and in what sees it."""
    _, name, *last = case.variant.split("-")
    w, middle, column = case.workload, case.workload.kv_seq_len // 2, 3
    batch = -1 if last else 0
    inputs = {**found.inputs, name: found.inputs[name].clone()}
    truth = {name: x.clone() for name, x in found.truth.items()}
    by_head = inputs[name].view(w.batch, w.kv_seq_len, -1, w.head_dim)
    by_head[batch, middle, batch, column] = math.nan
    group = 1 if name in "qx" else w.n_heads // w.n_kv_heads
    heads = slice(-group, None) if last else slice(0, group)
    first = middle if w.mask == "causal" or name == "q" else 0
    sees = slice(first, middle + 1 if name == "q" else None)
    leak = torch.zeros_like(truth["out"], dtype=torch.bool)
    if name == "x":  # through the output projection into every column
        truth["out"][batch, sees] = math.nan
        leak[batch, :first] = True
    elif name == "v":
        truth["out"][batch, sees, heads, column] = math.nan
        leak[batch, :first, heads, column] = True
    else:
        truth["out"][batch, sees, heads] = math.nan
        truth["lse"][batch, heads, sees] = math.nan
    return replace(found, inputs=inputs, truth=truth, may_leak=leak)
