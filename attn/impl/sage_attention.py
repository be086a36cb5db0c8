"""SageAttention: q and k in int8, forward only. It is no row of its dtype, and the judge is expected to say so.

Source: Zhang et al. 2024 (arXiv 2410.02367), package sageattention 1.0.6 (BSD-3-Clause); 2.x, on
github.com/thu-ml/SageAttention only (Apache-2.0), has the same function. Not in requirements.
"""

from torch import Tensor

from attn.contract import Mask, Unsupported
from attn.impl import _package

KIND = "core"
DEVICES = ("cuda",)
DTYPES = ("bfloat16", "float16")
MASKS = ("full", "causal")
BACKWARD = False
CROSS_LENGTH = True

_HEAD_DIMS = (64, 96, 128)


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    """Shapes as in `attn.contract`; returns out, as q. Of k a copy: 1.0.6 takes the mean of all keys off it in place.

    Raises:
        Unsupported: no such package, another head_dim, or causal with q and k of different length.
    """
    with _package.wanted("pip install sageattention"):
        from sageattention import sageattn

    _package.refuse_head_dim(q, _HEAD_DIMS, "SageAttention")
    causal = mask.kind == "causal"
    if causal and q.shape[1] != k.shape[1]:
        raise Unsupported(f"{q.shape[1]} queries and {k.shape[1]} keys, causal SageAttention takes as many")
    q, v = _package.side_by_side(q, v)
    return sageattn(q, k.clone(), v, tensor_layout="NHD", is_causal=causal, sm_scale=softmax_scale)  # type: ignore[no-any-return]
