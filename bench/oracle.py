"""Inputs, truth and error budget of one workload, computed once and kept.

Truth is float64 attention of the inputs as they are in the row's dtype; where scores of all queries would be
too many to hold, of some of them (`sampled_rows`), and dout is 0 elsewhere. Budgets are computed for every
case, never hand-tuned constants. Each row of a tensor (its last dimension) has one:

    budget   = 2 * (baseline error + rounding), both at this row
    rounding = largest change of the truth when every input, and the out and lse that a backward
               is handed, moves by one rounding of its dtype (3 draws), plus one unit in the last place of the output
    baseline error = rounding * the worst error of plain attention in the row's dtype, over all rows of
               the tensor (of all gradients together), three formulations and several orders of summation, as a
               multiple of the rounding there

Of a row that declares tf32, the factors of all products of plain attention are rounded to tf32: to the nearest in one
run and cut off in another, as tensor cores do to what is not rounded.

A row's own baseline error would be a budget by luck: where it happens to be exact, right kernels fail.
As a multiple of the rounding it is pooled over rows, and still each row answers for its own size.

And each head of a tensor has one (`Solved.rms`), for the root mean square of error / rounding over all its elements:
again 2 * (baseline error + rounding), each in root mean square and in the head and run where it is largest; its
rounding is that of the output's elements and of what a backward is handed, without that of the inputs.
See docs/how-we-judge.md.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from attn import reference, registry
from attn.contract import Precision, Workload
from bench import solved
from bench.jobs import Job
from bench.plain import plain
from bench.solved import Solved, Tensors, by_head

FORWARD_ROUNDINGS = 3
BACKWARD_ROUNDINGS = 16  # the gradient of a row that sees few keys hangs on one number, which 3 draws may leave small
MAX_SCORES, ROW_BLOCK = 1 << 28, 64  # scores held at once: 2 GiB in float64; beyond that queries are sampled
NEAR = 15  # queries whose lse is moved by about as much
MIN_RUNS, MAX_RUNS, ROWS_WANTED = 3, 16, 512  # more runs where a case has few rows to pool


def inputs(kind: str, workload: Workload, seed: int) -> Tensors:
    """Standard normals by seed, in the row's dtype; q, k, v or x and weights, and dout where gradients are asked for.

    Weights are scaled by embed_dim ** -0.5.
    """
    w, dtype = workload, getattr(torch, workload.dtype)
    shapes: dict[str, tuple[int, ...]]
    if kind == "module":
        kv_dim = w.n_kv_heads * w.head_dim
        shapes = {"x": (w.batch, w.seq_len, w.embed_dim)}
        weights = {"wq": w.embed_dim, "wk": kv_dim, "wv": kv_dim, "wo": w.embed_dim}
        shapes |= {name: (rows, w.embed_dim) for name, rows in weights.items()}
        out_shape = shapes["x"]
    else:
        kv = (w.batch, w.kv_seq_len, w.n_kv_heads, w.head_dim)
        out_shape = (w.batch, w.seq_len, w.n_heads, w.head_dim)
        shapes = {"q": out_shape, "k": kv, "v": kv}
    if w.backward:
        shapes["dout"] = out_shape
    made = {}
    for name, shape in shapes.items():
        made[name] = torch.randn(shape, generator=_generator(w.key, seed, 0, name))
        if name.startswith("w"):
            made[name] *= w.embed_dim**-0.5
    rows = sampled_rows(kind, w)
    if w.backward and rows is not None:  # so that every gradient is known, though few rows are
        others = torch.ones(w.seq_len, dtype=torch.bool).index_fill_(0, rows, value=False)
        made["dout"][:, others] = 0
    return {name: x.to(dtype) for name, x in made.items()}


def solve(
    kind: str, workload: Workload, given: Tensors, seed: int = 0, precision: Precision = "dtype", device: str = "cpu"
) -> Solved:
    """Truth and budgets for given inputs, computed on a device, kept on the CPU."""
    host, given = given, {name: x.to(device) for name, x in given.items()}
    rows = sampled_rows(kind, workload)
    truth = plain(kind, workload, _double(given), rows)
    rounding = {name: _ulp(_largest(name, x), name, workload) for name, x in truth.items()}
    ulps = dict(rounding)
    for draw in range(BACKWARD_ROUNDINGS if workload.backward else FORWARD_ROUNDINGS):
        moved = plain(kind, workload, *_shaken(given, workload, seed, draw, rows))
        for name, ulp in ulps.items():
            rounding[name] = torch.maximum(rounding[name], _largest(name, moved[name] - truth[name]) + ulp)
    if "lse" in rounding:  # a single number a row, which few draws may leave small: as much as near it
        rounding["lse"] = F.max_pool1d(rounding["lse"], NEAR, stride=1, padding=NEAR // 2)
        rounding["lse"] += _info("out", workload).eps / 2  # the weights that it is the sum of are of the row's dtype
    pool = {name: "gradients" if name.startswith("d") else name for name in truth}
    worst = dict.fromkeys(pool.values(), 0.0)
    rms = dict.fromkeys(truth.keys() - {"lse"}, 0.0)
    for baseline in _baselines(kind, workload, given, seed, rows, precision):
        error = {name: baseline[name].double() - x for name, x in truth.items()}
        for name in truth:
            worst[pool[name]] = max(worst[pool[name]], float((_largest(name, error[name]) / rounding[name]).max()))
        rms = {name: max(x, _rms(error[name], rounding[name])) for name, x in rms.items()}
    budget = {name: 2.0 * (1.0 + worst[pool[name]]) * x for name, x in rounding.items()}
    at_best = _rms_at_best(kind, workload, given, seed, truth, rounding, rows)
    rms = {name: 2.0 * (x + at_best[name]) / (2.0 * (1.0 + worst[pool[name]])) for name, x in rms.items()}
    of_heads = {name: torch.tensor(x, dtype=torch.float64) for name, x in rms.items()}
    truth, budget = ({name: x.cpu() for name, x in found.items()} for found in (truth, budget))
    return Solved(host, truth, budget, of_heads, rows)


def in_precision(problem: Solved, job: Job) -> Solved:
    """With the budgets of the precision that the job's row declares; what is kept is for that of its dtype."""
    implementation = registry.read(Path(job.implementation))
    if implementation.precision == "dtype":
        return problem
    workload, kind = Workload.from_dict(job.workload), "module" if implementation.kind == "module" else "core"
    return solve(kind, workload, problem.inputs, job.protocol["seed"], implementation.precision, job.device)


def _rms_at_best(
    kind: str, w: Workload, given: Tensors, seed: int, truth: Tensors, rounding: Tensors, rows: Tensor | None
) -> dict[str, float]:
    """What none avoids: a tensor's own rounding and, in gradients, that of the `out` and `lse` they are made of."""
    handed = dict.fromkeys(truth.keys() - {"lse"}, 0.0)
    for draw in range(_runs(w) if w.backward else 0):
        moved = plain(kind, w, _double(given), rows, _shaken(given, w, seed, draw, rows)[2])
        handed = {name: max(x, _rms(moved[name] - truth[name], rounding[name])) for name, x in handed.items()}
    own = {name: _rms(_ulp(truth[name].abs(), name, w) * 12**-0.5, rounding[name]) for name in handed}
    if "lse" in truth:  # partial results are merged by it
        by_lse = truth["out"] * truth["lse"].mT[..., None].nan_to_num(neginf=0.0) * (_info("lse", w).eps / 2)
        own["out"] += _rms(by_lse, rounding["out"])
    return {name: x + own[name] for name, x in handed.items()}


def _rms(error: Tensor, rounding: Tensor) -> float:
    """Of error / rounding, in the head where it is largest; what is not finite counts as nothing here."""
    return float(by_head((error / rounding[..., None]).nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)).max())


def sampled_rows(kind: str, w: Workload) -> Tensor | None:
    """Positions of the queries that are judged where all of them would be too many to hold; None: all are.

    The first and the last block of 64, and blocks spread evenly between them, as many as fit.
    """
    at_once = w.n_heads if kind == "module" else w.n_heads // w.n_kv_heads
    blocks = MAX_SCORES // (at_once * w.kv_seq_len * ROW_BLOCK)
    if blocks * ROW_BLOCK >= w.seq_len:
        return None
    starts = torch.linspace(0, w.seq_len - ROW_BLOCK, max(2, blocks)).long()
    positions: Tensor = torch.unique(starts[:, None] + torch.arange(ROW_BLOCK))
    return positions


def solve_and_write(job: dict[str, Any]) -> dict[str, Any]:
    """`write` as a worker's task: path, kind, workload, seed and device of the job."""
    write(Path(job["path"]), job["kind"], Workload.from_dict(job["workload"]), job["seed"], job["device"])
    return {"status": "ok"}


def write(path: Path, kind: str, workload: Workload, seed: int, device: str = "cpu") -> None:
    """Compute and store a workload's inputs, truth and budget."""
    solved.write(path, solve(kind, workload, inputs(kind, workload, seed), seed, device=device))


def _baselines(
    kind: str, w: Workload, given: Tensors, seed: int, rows: Tensor | None, precision: Precision = "dtype"
) -> Iterator[Tensors]:
    """Plain attention in the row's dtype and precision, in three formulations, its sums taken in several orders.

    What is exact by luck in one is not in all. head_dim is permuted (embed_dim of a module) and, where every query
    sees every key, the keys (tokens of a module), which changes nothing in exact arithmetic.
    """
    for run in range(_runs(w)):
        width, keys = _orders(kind, w, seed, run, rows)
        changed = {name: _in_order(kind, name, x, width, keys) for name, x in given.items()}
        back = torch.argsort(width), None if keys is None else torch.argsort(keys)
        for way, factors in itertools.product(get_args(reference.Way), reference.FACTORS[precision]):
            results = plain(kind, w, changed, rows, way=way, factors=factors)
            yield {name: _in_order(kind, name, x, *back) for name, x in results.items()}


def _runs(w: Workload) -> int:
    """How often what is random is drawn, where the worst of all rows counts: the fewer rows, the more often."""
    return min(MAX_RUNS, max(MIN_RUNS, -(-ROWS_WANTED // (w.batch * w.n_heads * w.seq_len))))


def _orders(kind: str, w: Workload, seed: int, run: int, rows: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Of the last dimension, and of the keys where none matters (None: as they are); the first run changes nothing."""
    width, generator = w.embed_dim if kind == "module" else w.head_dim, _generator(w.key, seed, run, "order")
    if run == 0:
        return torch.arange(width), None
    order = torch.randperm(width, generator=generator)
    stays = w.mask == "causal" or (kind == "module" and rows is not None)
    return order, None if stays else torch.randperm(w.kv_seq_len, generator=generator)


def _in_order(kind: str, name: str, x: Tensor, width: Tensor, keys: Tensor | None) -> Tensor:
    """An input, a result or a gradient, with head_dim (embed_dim) and keys (tokens) in another order."""
    tensor = name.removeprefix("d")
    if tensor in (("x", "wq", "wk", "wv") if kind == "module" else ("q", "k", "v", "out")):
        x = x[..., width]
    turns = keys is not None and tensor in (("x", "out") if kind == "module" else ("k", "v"))
    return x[:, keys] if turns else x


def _shaken(
    given: Tensors, w: Workload, seed: int, draw: int, rows: Tensor | None
) -> tuple[Tensors, Tensor | None, reference.Shake]:
    """Inputs with each element moved up or down by half a unit in its last place, and what moves `out` and `lse` so."""
    generator = _generator(w.key, seed, draw, "shake")

    def shake(x: Tensor, name: str) -> Tensor:
        return x * (1 + _info(name, w).eps / 2 * _signs(x.shape, generator).to(x.device))

    return {name: shake(x, name) for name, x in _double(given).items()}, rows, shake


def _double(given: Tensors) -> Tensors:
    return {name: x.double() for name, x in given.items()}


def _signs(shape: torch.Size, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, shape, generator=generator, dtype=torch.int8).mul_(2).sub_(1)


def _ulp(magnitude: Tensor, name: str, w: Workload) -> Tensor:
    """One unit in the last place of numbers of this size (lse of no keys is as 0)."""
    info = _info(name, w)
    finite = magnitude.nan_to_num(posinf=0.0).clamp_min(info.smallest_normal)
    return info.eps * torch.exp2(torch.floor(torch.log2(finite)))


def _info(name: str, w: Workload) -> torch.finfo:
    """Of the dtype that a tensor has at the interface: lse is float32 whatever the inputs are."""
    return torch.finfo(torch.float32 if name == "lse" else getattr(torch, w.dtype))


def _largest(name: str, x: Tensor) -> Tensor:
    """Largest magnitude of each row (lse has one number a row); what is not finite counts as nothing here."""
    magnitude = x.abs().nan_to_num_(nan=0.0, posinf=0.0)
    return magnitude if name == "lse" else magnitude.amax(-1)


def _generator(key: str, seed: int, draw: int, name: str) -> torch.Generator:
    digest = hashlib.sha256(f"{key} {seed} {draw} {name}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
