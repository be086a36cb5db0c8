"""Shards are merged by sums of exp(lse), without taking out the largest lse first.

The formula as it stands in papers; right until one lse exceeds 88, then infinity over infinity.
"""

import torch
from torch import Tensor

from attn.contract import Mask
from attn.kernels import block
from attn.ring import layouts
from attn.ring.communicator import Communicator

KIND = "ring"
DEVICES = ("cpu",)
DTYPES = ("float32",)
MASKS = ("full", "causal")
BACKWARD = False
REASON = r"^rank \d: out has \d+ values that are not finite"
WRONG_IN = r"-scale20_"
RIGHT_IN = r"^(?!.*-scale20_)"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask, comm: Communicator) -> Tensor:
    comm.begin()
    kv, total, weight = comm.all_gather(torch.stack((k, v))[None], dim=0), 0.0, 0.0
    for source, length in enumerate(layouts.lengths(comm.seq_len, "contiguous", comm.world_size)):
        if length and not (mask.kind == "causal" and source > comm.rank):
            held_k, held_v = kv[source, :, :, :length]
            causal = mask.kind == "causal" and source == comm.rank
            out, lse = block.forward(q, held_k, held_v, softmax_scale=softmax_scale, causal=causal)
            share = torch.exp(lse).transpose(1, 2)[..., None]
            total, weight = total + share * out, weight + share
    return total / weight
