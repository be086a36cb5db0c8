"""Shards travel upwards, and the rank counts upwards too when it names whose shard it holds.

`(rank + step) % n` where `(rank - step) % n` is due; on 2 ranks both are the same.
"""

import torch
from torch import Tensor

from attn.contract import Mask
from attn.kernels import block
from attn.ring import layouts, merge
from attn.ring.communicator import Communicator

KIND = "ring"
DEVICES = ("cpu",)
DTYPES = ("float32",)
MASKS = ("full", "causal")
BACKWARD = False
REASON = r"^rank \d: out is off"
RIGHT_IN = r"_s000001_"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask, comm: Communicator) -> Tensor:
    comm.begin()
    kv, (out, lse) = comm.all_gather(torch.stack((k, v))[None], dim=0), merge.empty(q)
    lengths = layouts.lengths(comm.seq_len, "contiguous", comm.world_size)
    for step in range(comm.world_size):
        held, source = (comm.rank - step) % comm.world_size, (comm.rank + step) % comm.world_size
        if lengths[source] and not (mask.kind == "causal" and source > comm.rank):
            held_k, held_v = kv[held, :, :, : lengths[source]]
            causal = mask.kind == "causal" and step == 0
            part = block.forward(q, held_k, held_v, softmax_scale=softmax_scale, causal=causal)
            merge.merge_(out, lse, *part)
    return out.to(q.dtype)
