"""The last rank's shard is padded with zeros to the length of the others, and the padding takes weight.

Collectives want equal shapes, and nobody subtracts what was added; a causal mask hides it by chance.
"""

import torch
from torch import Tensor

from attn.contract import Mask
from attn.kernels import block
from attn.ring import merge
from attn.ring.communicator import Communicator

KIND = "ring"
DEVICES = ("cpu",)
DTYPES = ("float32",)
MASKS = ("full", "causal")
BACKWARD = False
REASON = r"^rank \d: out is off"
WRONG_IN = r"_full_"
RIGHT_IN = r"_causal_|_s000003_"  # 3 tokens, 3 ranks: no padding


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask, comm: Communicator) -> Tensor:
    comm.begin()
    kv, (out, lse) = comm.all_gather(torch.stack((k, v))[None], dim=0), merge.empty(q)
    for source in range(comm.world_size):
        if not (mask.kind == "causal" and source > comm.rank):
            causal = mask.kind == "causal" and source == comm.rank
            part = block.forward(q, *kv[source], softmax_scale=softmax_scale, causal=causal)
            merge.merge_(out, lse, *part)
    return out.to(q.dtype)
