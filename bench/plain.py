"""Plain attention and module (attn.reference) of a whole workload, with gradients, piece by piece so that it fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from attn import reference
from attn.contract import Mask, Workload
from bench.solved import Tensors


def plain(
    kind: str,
    w: Workload,
    given: Tensors,
    rows: Tensor | None,
    shake: reference.Shake | None = None,
    way: reference.Way = "plain",
    factors: reference.Factors | None = None,
) -> Tensors:
    """out, lse (of core), and gradients named d + input, in the dtype that is given; shapes as in `attn.contract`.

    rows: positions of the queries whose out and lse are wanted; None: of all. The rest as in `attn.reference`.
    """
    how: dict[str, Any] = {"mask": Mask(w.mask), "shake": shake, "way": way, "factors": factors}
    if kind == "module":
        return _differentiated(w, given, rows, partial(_module, how | {"n_heads": w.n_heads}))
    how["softmax_scale"] = w.softmax_scale
    pieces = [
        _differentiated(piece, {n: x[b : b + 1, :, heads[n]] for n, x in given.items()}, rows, partial(_core, how))
        for b in range(w.batch)
        for piece, heads in _one_kv_head_each(w)
    ]
    return {name: _together(name, [piece[name] for piece in pieces], w) for name in pieces[0]}


def _one_kv_head_each(w: Workload) -> Iterator[tuple[Workload, dict[str, slice]]]:
    """Pieces of a workload that fit in memory in float64, and the heads that each input gives to them."""
    group = w.n_heads // w.n_kv_heads
    piece = replace(w, batch=1, n_heads=group, n_kv_heads=1)
    for h in range(w.n_kv_heads):
        q_heads, kv_head = slice(h * group, (h + 1) * group), slice(h, h + 1)
        yield piece, {"q": q_heads, "dout": q_heads, "k": kv_head, "v": kv_head}


def _together(name: str, pieces: list[Tensor], w: Workload) -> Tensor:
    heads_dim = 1 if name == "lse" else 2
    by_batch = [torch.cat(pieces[b * w.n_kv_heads : (b + 1) * w.n_kv_heads], heads_dim) for b in range(w.batch)]
    return torch.cat(by_batch)


def _core(how: dict[str, Any], leaves: Tensors, rows: Tensor | None) -> Tensors:
    out, lse = reference.plain_attention(**how | leaves, rows=rows)
    return {"out": out, "lse": lse}


def _module(how: dict[str, Any], leaves: Tensors, rows: Tensor | None) -> Tensors:
    return {"out": reference.plain_module(**how | leaves, rows=rows)}


def _differentiated(
    w: Workload, given: Tensors, rows: Tensor | None, forward: Callable[[Tensors, Tensor | None], Tensors]
) -> Tensors:
    leaves = {n: x.detach().clone().requires_grad_(w.backward) for n, x in given.items() if n != "dout"}
    with torch.set_grad_enabled(w.backward):
        results = forward(leaves, rows)
    if w.backward:
        results["out"].backward(given["dout"] if rows is None else given["dout"][:, rows])  # type: ignore[no-untyped-call]
        results |= {f"d{name}": leaf.grad for name, leaf in leaves.items() if leaf.grad is not None}
    return {name: x.detach() for name, x in results.items()}
