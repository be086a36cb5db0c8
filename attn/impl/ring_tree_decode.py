"""Decoding: every rank has the query of the new token (or of a few) and a shard of k and v; results are reduced.

Source: Tree attention, Shyam et al. 2024 (arXiv 2408.04093).
Sends, per rank: two all-reduces, of the largest lse, and of numerators and denominators in float32: 2 (N - 1) / N
times 4 b h (d + 1) and 4 b h bytes a query, whatever the length of the sequence. Forward only.
"""

import torch
from torch import Tensor

from attn.contract import Mask
from attn.kernels import block
from attn.ring import layouts, merge
from attn.ring.communicator import Communicator

KIND = "ring"
DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16")
MASKS = ("full", "causal")
BACKWARD = False
CROSS_LENGTH = True
LAYOUT = "replicated_q"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask, comm: Communicator) -> Tensor:
    """Q (batch, seq_len, n_heads, head_dim) the same on all ranks, shards of k and v; out as q on all ranks."""
    comm.begin()
    out, lse = merge.empty(q)
    for seen in _seen(mask, q.shape[1], k.shape[1], comm):
        part = block.forward(
            q[:, seen.queries], k[:, seen.keys], v[:, seen.keys], softmax_scale=softmax_scale, causal=seen.causal
        )
        merge.merge_(out[:, seen.queries], lse[:, :, seen.queries], *part)
    largest = comm.all_reduce(lse, "max").clamp_min(torch.finfo(torch.float32).min)  # rows that see no key: exp(-inf)
    weight = torch.exp(lse - largest).transpose(1, 2)[..., None]
    total = comm.all_reduce(torch.cat((out * weight, weight), dim=3))
    numerator, denominator = total[..., :-1], total[..., -1:]
    return torch.where(denominator == 0, 0.0, numerator / denominator).to(q.dtype)


def _seen(mask: Mask, queries: int, local: int, comm: Communicator) -> list[layouts.Seen]:
    """What the queries, the last ones of the sequence, see of this rank's keys: a rectangle, then a triangle."""
    keys = layouts.lengths(comm.seq_len, "contiguous", comm.world_size, local)[comm.rank]
    shift = comm.seq_len - queries - comm.rank * local if mask.kind == "causal" else keys
    edge = max(0, min(shift + 1, keys))  # query i sees keys 0 to i + shift of this rank, as far as there are
    rectangle = layouts.Seen(slice(0, queries), slice(0, edge), causal=False)
    triangle = layouts.Seen(slice(max(1, -shift), queries), slice(edge, keys), causal=True)
    return [one for one in (rectangle, triangle) if one.queries.start < queries and one.keys.start < one.keys.stop]
