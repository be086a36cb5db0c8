"""Under a causal mask a rank sees the shards after its own instead of those before it.

The sign of the offset between the positions of queries and of keys, `rank - source`.
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
WRONG_IN = r"_causal_"
RIGHT_IN = r"_full_|_s000001_"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask, comm: Communicator) -> Tensor:
    comm.begin()
    kv, (out, lse) = comm.all_gather(torch.stack((k, v))[None], dim=0), merge.empty(q)
    for source, length in enumerate(layouts.lengths(comm.seq_len, "contiguous", comm.world_size)):
        if length and not (mask.kind == "causal" and source < comm.rank):
            held_k, held_v = kv[source, :, :, :length]
            causal = mask.kind == "causal" and source == comm.rank
            part = block.forward(q, held_k, held_v, softmax_scale=softmax_scale, causal=causal)
            merge.merge_(out, lse, *part)
    return out.to(q.dtype)
