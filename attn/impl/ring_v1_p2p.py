"""Ring attention: contiguous shards, k and v travel round, double-buffered behind the blocks.

Source: Liu et al. 2023 (arXiv 2310.01889).
Sends, per rank: (N - 1) KV bytes forward; backward as much again, and (N - 1) dKV in float32. Under a causal mask the
last rank computes N blocks and the first one 1: no more than N / (2N - 1) of the ideal speed.
"""

from torch import Tensor

from attn.contract import Mask
from attn.impl import _rotation
from attn.ring.communicator import Communicator

KIND = "ring"
DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16")
MASKS = ("full", "causal")
BACKWARD = True
LAYOUT = "contiguous"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask, comm: Communicator) -> Tensor:
    """Local shards in (batch, local_seq_len, heads, head_dim), local out."""
    return _rotation.attention(q, k, v, softmax_scale=softmax_scale, mask=mask, comm=comm, layout=LAYOUT)
