"""Each rank attends to its own shard and to nothing else: attention is block-diagonal, nothing is sent.

A "simulated ring" in which each rank computes its part, and the parts are put side by side.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from attn.contract import Mask
from attn.ring import layouts
from attn.ring.communicator import Communicator

KIND = "ring"
DEVICES = ("cpu",)
DTYPES = ("float32",)
MASKS = ("full", "causal")
BACKWARD = True
REASON = r"^rank \d: .*out is off"
RIGHT_IN = r"_s000001_"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask, comm: Communicator) -> Tensor:
    length, gqa = layouts.lengths(comm.seq_len, "contiguous", comm.world_size)[comm.rank], q.shape[2] != k.shape[2]
    allowed = torch.ones(q.shape[1], q.shape[1], dtype=torch.bool)
    allowed[:, length:] = False  # padding
    if mask.kind == "causal":
        allowed = allowed.tril()
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    return F.scaled_dot_product_attention(q, k, v, allowed, scale=softmax_scale, enable_gqa=gqa).transpose(1, 2)
