"""FlashInfer's prefill of one sequence, of the package flashinfer-python: forward only, compiled when first called.

Source: Ye et al. 2025 (arXiv 2501.01005), flashinfer.single_prefill_with_kv_cache of flashinfer-python 0.7.2.post1,
Apache-2.0. Not in requirements: it compiles with the nvcc that is there.
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

_HEAD_DIMS = (64, 128, 256)


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    """Shapes as in `attn.contract`; returns out, as q.

    Raises:
        Unsupported: no such package, several sequences, another head_dim, or queries that see no key.
    """
    with _package.wanted("pip install flashinfer-python"):
        from flashinfer import single_prefill_with_kv_cache

    _package.refuse_head_dim(q, _HEAD_DIMS, "FlashInfer")
    causal = mask.kind == "causal"
    if q.shape[0] != 1:
        raise Unsupported(f"batch {q.shape[0]}, single_prefill_with_kv_cache takes 1 sequence")
    if causal and q.shape[1] > k.shape[1]:
        raise Unsupported(
            f"{q.shape[1]} queries and {k.shape[1]} keys, causal FlashInfer takes no more queries than keys"
        )
    one = [x[0].contiguous() for x in (q, k, v)]  # (seq_len, heads, head_dim)
    return single_prefill_with_kv_cache(*one, causal=causal, kv_layout="NHD", sm_scale=softmax_scale)[None]  # type: ignore[no-any-return]
