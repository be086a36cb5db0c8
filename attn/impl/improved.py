"""Exact attention that never holds seq_len x seq_len scores, by what suits the device and dtype.

On CUDA: our own Triton kernels, the row `triton_flash`. On the CPU: PyTorch's fused kernel; for bfloat16 forward, where
an x86 processor multiplies bfloat16 itself, blocks of queries on the library's matrix products, faster than the fused
kernel there and no less accurate than `standard`. Without (AMD EPYC, family 25), they took 36 times as long.
Source: Dao et al. 2022 (arXiv 2205.14135) for the fused kernel; `attn.kernels` for the others.
"""

from functools import cache

import torch
from torch import Tensor

from attn.contract import Mask, Unsupported
from attn.impl import sdpa, triton_flash
from attn.kernels import block, query_blocks

KIND = "core"
DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16")
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    """Shapes as in `attn.contract`; returns out, as q."""
    if q.device.type == "cuda":
        return triton_flash.attention(q, k, v, softmax_scale=softmax_scale, mask=mask)
    if _in_query_blocks(q, k, v):
        return query_blocks.forward(q, k, v, softmax_scale=softmax_scale, mask=mask)[0]
    if softmax_scale == 0:  # the same logits, in a way that PyTorch's causal kernel survives
        q, softmax_scale = q * 0, 1.0
    return sdpa.attention(q, k, v, softmax_scale=softmax_scale, mask=mask)


def attention_with_lse(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> tuple[Tensor, Tensor]:
    """Forward only: out (as q) and lse (batch, n_heads, seq_len), float32, natural logarithm.

    Raises:
        Unsupported: gradients are asked for, or on the CPU, where not in blocks of queries, a causal mask over q and
            k of different length, which the fused kernel aligns at the top left.
    """
    if q.device.type == "cuda":
        return triton_flash.attention_with_lse(q, k, v, softmax_scale=softmax_scale, mask=mask)
    if torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        raise Unsupported("attention_with_lse is forward only: its lse carries no gradient")
    if _in_query_blocks(q, k, v):
        out, lse = query_blocks.forward(q, k, v, softmax_scale=softmax_scale, mask=mask, with_lse=True)
        assert lse is not None
        return out, lse
    causal = mask.kind == "causal"
    if causal and q.shape[1] != k.shape[1]:
        raise Unsupported(f"lse with a causal mask over {q.shape[1]} queries and {k.shape[1]} keys")
    return block.forward(q, k, v, softmax_scale=softmax_scale, causal=causal)


def _in_query_blocks(*tensors: Tensor) -> bool:
    needs_grad = torch.is_grad_enabled() and any(x.requires_grad for x in tensors)
    return tensors[0].dtype == torch.bfloat16 and not needs_grad and multiplies_bfloat16()


@cache
def multiplies_bfloat16() -> bool:
    """Whether this is an x86 processor with instructions for products of bfloat16; elsewhere nothing was measured."""
    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16"))
