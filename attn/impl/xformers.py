"""xFormers' memory-efficient attention, by the operator that it chooses for the inputs.

Source: xformers.ops.memory_efficient_attention of the package xformers 0.0.35, BSD-3-Clause; Rabe and Staats 2021
(arXiv 2112.05682). Not in requirements: it is built for one CUDA and one torch.
"""

from torch import Tensor

from attn.contract import Mask, Unsupported
from attn.impl import _package

KIND = "core"
DEVICES = ("cuda",)
DTYPES = ("float32", "bfloat16", "float16")
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True
DETERMINISTIC = False  # its backward adds up in any order


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    """Shapes as in `attn.contract`; returns out, as q.

    Raises:
        Unsupported: no such package, fewer heads of k and v, queries that see no key, or no operator for the inputs.
    """
    with _package.wanted("pip install xformers"):
        from xformers import ops
        from xformers.ops.fmha.attn_bias import LowerTriangularFromBottomRightMask

    causal = mask.kind == "causal"
    if q.shape[2] != k.shape[2]:
        raise Unsupported(f"{q.shape[2]} heads to {k.shape[2]} of k and v: xFormers has gradients of as many only")
    if causal and q.shape[1] > k.shape[1]:
        raise Unsupported(
            f"{q.shape[1]} queries and {k.shape[1]} keys, causal xFormers takes no more queries than keys"
        )
    bias = None
    if causal:
        bias = ops.LowerTriangularMask() if q.shape[1] == k.shape[1] else LowerTriangularFromBottomRightMask()
    one = _package.side_by_side(q, k, v)
    try:
        return ops.memory_efficient_attention(*one, attn_bias=bias, p=0.0, scale=softmax_scale)  # type: ignore[no-any-return]
    except NotImplementedError as error:
        raise Unsupported(f"xFormers has no operator for {tuple(q.shape)} {q.dtype}: {error}") from error
