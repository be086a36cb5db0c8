"""What is done to the inputs of a case: other values, or another place in memory. By the name of its variant."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from bench.solved import Tensors


def _huge_row(given: Tensors) -> Tensors:
    """One query (of a module: token) whose logits overflow a naive exponential."""
    name = "q" if "q" in given else "x"
    huge = given[name].clone()
    huge[:, huge.shape[1] // 2] *= 100
    return {**given, name: huge}


def _ones(given: Tensors) -> Tensors:
    """The dout that out.sum().backward() makes."""
    return {**given, "dout": torch.ones_like(given["dout"])}


def _equal_rows(given: Tensors) -> Tensors:
    return {name: x[:, :1].expand_as(x).contiguous() if name in "qkv" else x for name, x in given.items()}


def _one_hot(given: Tensors) -> Tensors:
    """Every row of q, k and v has one element that is not 0; keys that fit a query get nearly all its weight."""

    def made(x: Tensor) -> Tensor:
        return torch.zeros_like(x).scatter_(-1, x.float().argmax(-1, keepdim=True), 16.0)

    return {name: made(x) if name in "qkv" else x for name, x in given.items()}


def _times(factor: float) -> Callable[[Tensors], Tensors]:
    return lambda given: {name: x * factor if name in "qkv" else x for name, x in given.items()}


VALUES: dict[str, Callable[[Tensors], Tensors]] = {
    "huge-row": _huge_row,
    "equal-rows": _equal_rows,
    "one-hot": _one_hot,
    "values-1e4": _times(1e4),
    "values-1e-6": _times(1e-6),
    "dout-expanded": _ones,
}


def _strided(x: Tensor) -> Tensor:
    """A slice of a wider buffer: every stride but the last is not what a dense tensor has."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan, dtype=x.dtype, device=x.device)
    wide[..., : x.shape[-1]] = x
    return wide[..., : x.shape[-1]]


def _sliced(x: Tensor) -> Tensor:
    """Tokens out of the middle of a longer sequence that is stored heads first (of a module: tokens first)."""
    stored = x.transpose(1, 2) if x.ndim == 4 else x
    *outer, seq_len, width = stored.shape
    longer = torch.full((*outer, seq_len + 5, 2 * width), torch.nan, dtype=x.dtype, device=x.device)
    held = longer[..., 3:-2, :width]
    held.copy_(stored)
    return held.transpose(1, 2) if x.ndim == 4 else held


def _last_stride_2(x: Tensor) -> Tensor:
    """Every second element: what lies side by side is not head_dim."""
    wide = torch.full((*x.shape[:-1], 2 * x.shape[-1]), torch.nan, dtype=x.dtype, device=x.device)
    wide[..., ::2] = x
    return wide[..., ::2]


def _expanded(x: Tensor) -> Tensor:
    """One element in memory, seen everywhere: all strides 0."""
    return x.flatten()[:1].view([1] * x.ndim).expand_as(x)


_Placing = dict[str, dict[str, Callable[[Tensor], Tensor]]]
PLACED: _Placing = {  # each tensor in a way of its own
    "strided": {"q": _strided, "k": _sliced, "x": _strided, "dout": _strided},
    "sliced": {"q": _sliced, "v": _strided, "x": _sliced, "dout": _sliced},
    "last-stride-2": dict.fromkeys(("q", "k", "v", "x", "dout"), _last_stride_2),
}
PLACED_DOUT: _Placing = {"dout-expanded": {"dout": _expanded}}
