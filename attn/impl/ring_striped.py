"""Ring attention under a causal mask in balance: tokens are dealt to ranks one by one, as cards.

Source: Brandon et al. 2023 (arXiv 2311.09431).
Sends what ring_v1_p2p sends. Causal, every block is a triangle: of ranks before it with the diagonal, of later ones
without it, which is the triangle of all queries but the first.
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
LAYOUT = "striped"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask, comm: Communicator) -> Tensor:
    """Local shards in (batch, local_seq_len, heads, head_dim), local out."""
    return _rotation.attention(q, k, v, softmax_scale=softmax_scale, mask=mask, comm=comm, layout=LAYOUT)
