"""Ring attention under a causal mask in balance: each rank holds an early chunk and the late one that mirrors it.

Source: zigzag of github.com/zhuzilin/ring-flash-attention; Llama 3 (arXiv 2407.21783, section 3.3.2).
Sends what ring_v1_p2p sends. Causal, each rank computes half a block for every shard of another one: of earlier
ranks all its queries see the early chunk, of later ones its late queries see both chunks.
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
LAYOUT = "zigzag"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask, comm: Communicator) -> Tensor:
    """Local shards in (batch, local_seq_len, heads, head_dim), local out."""
    return _rotation.attention(q, k, v, softmax_scale=softmax_scale, mask=mask, comm=comm, layout=LAYOUT)
