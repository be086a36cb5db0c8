"""dk and dv are what a rank's own queries give them: what the other ranks' queries give is never sent.

An all-gather whose backward takes its own slice, where a reduce-scatter is due (`torch.distributed.all_gather`
has no gradient at all, and putting the own tensor back into the list gives just this).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from attn.contract import Mask
from attn.ring.communicator import Communicator

KIND = "ring"
DEVICES = ("cpu",)
DTYPES = ("float32",)
MASKS = ("full", "causal")
BACKWARD = True
REASON = r"^rank \d: (dk is off.*)?dv is off"
WRONG_IN = r"_forward_backward"
RIGHT_IN = r"_forward(?!_backward)"


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, comm: Communicator) -> Tensor:
        ctx.rank = comm.rank
        return comm.keep(comm.all_gather(x[None], dim=0))

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> tuple[Tensor, None]:
        return dx[ctx.rank], None


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask, comm: Communicator) -> Tensor:
    comm.begin()
    k, v = (_Gather.apply(x, comm).transpose(0, 1).flatten(1, 2)[:, : comm.seq_len] for x in (k, v))
    own, gqa = comm.rank * q.shape[1] + torch.arange(q.shape[1]), q.shape[2] != k.shape[2]
    allowed = torch.arange(comm.seq_len) <= own[:, None] if mask.kind == "causal" else None
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, allowed, scale=softmax_scale, enable_gqa=gqa).transpose(1, 2)
