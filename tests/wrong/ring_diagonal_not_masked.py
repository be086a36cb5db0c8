"""Under a causal mask a rank sees the whole of its own shard, and of others none but those before it.

A mask by shards, `source <= rank`, and none within the shard.
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
RIGHT_IN = r"_full_|_s00000[13]_"  # one token a rank has nothing to hide


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask, comm: Communicator) -> Tensor:
    comm.begin()
    kv, (out, lse) = comm.all_gather(torch.stack((k, v))[None], dim=0), merge.empty(q)
    for source, length in enumerate(layouts.lengths(comm.seq_len, "contiguous", comm.world_size)):
        if length and not (mask.kind == "causal" and source > comm.rank):
            held_k, held_v = kv[source, :, :, :length]
            merge.merge_(out, lse, *block.forward(q, held_k, held_v, softmax_scale=softmax_scale, causal=False))
    return out.to(q.dtype)
