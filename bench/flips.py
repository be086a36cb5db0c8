"""Exact images of a problem: signs that inputs can change by, and how results change then, bit for bit.

Scores stay what they are where q and k change sign in the same column, and so do weights of the softmax; a column of v
that changes sign changes the same column of out. Rounding is symmetric about 0, so that every implementation returns
the very same bits, signs apart. There are 2 ** (2 * n_kv_heads * head_dim) such images of one problem: whoever keeps
results by looking at a few of their inputs has not seen this one before.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attn.contract import Workload
from bench.solved import Tensors


class Flips:
    """A random source of signs for every input and result of a workload: 1 and -1, of shapes that broadcast.

    They do not depend on the token, so that what holds for the whole holds for any rank's shard.
    """

    def __init__(self, kind: str, workload: Workload, seed: int, device: str = "cpu") -> None:
        self._kind, self._workload, self._device = kind, workload, device
        self._generator = torch.Generator().manual_seed(seed)
        self.weights: Tensors = {}
        self.redraw_weights()

    def redraw_weights(self) -> None:
        """Of a module, other signs for its weights: per column of q and k, v, input and output."""
        if self._kind != "module":
            return
        w = self._workload
        kv, self._x, self._out = w.n_kv_heads * w.head_dim, self._signs(w.embed_dim), self._signs(w.embed_dim)
        qk, v = self._signs(kv), self._signs(kv)
        columns = {"wq": self._wide(qk), "wk": qk, "wv": v}
        self.weights = {name: rows[:, None] * self._x for name, rows in columns.items()}
        self.weights["wo"] = self._out[:, None] * self._wide(v)

    def draw(self) -> Tensors:
        """By name of input or result; lse does not change."""
        w = self._workload
        if self._kind == "module":  # of each sequence, and of all gradients
            x, gradients = self._signs(w.batch, 1, 1), self._signs(1)
            signs = {"x": x * self._x, "out": x * self._out}
            signs |= {"dout": signs["out"] * gradients, "dx": signs["x"] * gradients}
            return signs | {f"d{name}": sign * gradients for name, sign in self.weights.items()}
        kv = (w.n_kv_heads, w.head_dim)
        qk, v = self._signs(*kv), self._signs(*kv)
        signs = {"q": self._wide(qk), "k": qk, "v": v, "out": self._wide(v)}
        return signs | {"dq": signs["q"], "dk": qk, "dv": v, "dout": signs["out"]}

    def _wide(self, signs: Tensor) -> Tensor:
        """Of kv heads, for the heads of q: each group of them has the signs of its kv head."""
        w = self._workload
        per_head = signs.view(w.n_kv_heads, w.head_dim).repeat_interleave(w.n_heads // w.n_kv_heads, 0)
        return per_head.view(-1, *signs.shape[1:])

    def _signs(self, *shape: int) -> Tensor:
        drawn = torch.randint(0, 2, shape, generator=self._generator).mul_(2).sub_(1)
        return drawn.to(self._device, getattr(torch, self._workload.dtype))
