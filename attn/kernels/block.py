"""Attention of q against one block of k and v, with its lse, and its gradients given the whole's lse.

Ring schedules merge such blocks. On the CPU PyTorch's fused kernel computes them, which returns lse and
takes it back (what it gets wrong, plain float32 products do); on CUDA our own (attn/kernels/flash).
Source: Dao et al. 2022 (arXiv 2205.14135); blocks with a global lse as in Liu et al. 2023 (arXiv 2310.01889).

Suffixes: b batch, s queries, t keys, h heads, g kv heads, d head_dim.
"""

from __future__ import annotations

import torch
from torch import Tensor

_FLASH = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_FLASH_BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def forward(
    q_bshd: Tensor, k_btgd: Tensor, v_btgd: Tensor, *, softmax_scale: float, causal: bool
) -> tuple[Tensor, Tensor]:
    """`out` (as q) and `lse` (b, h, s) float32. `causal`: query i sees keys 0 to i of this block.

    Raises:
        Unsupported: on CUDA, what our kernels lack.
    """
    if q_bshd.device.type == "cuda":
        from attn.kernels.flash import host

        return host.forward(q_bshd, k_btgd, v_btgd, softmax_scale=softmax_scale, shift=host.shift_of_block(causal))
    group = q_bshd.shape[2] // k_btgd.shape[2]
    q, k, v = _heads_first(q_bshd), _heads_first(k_btgd, group), _heads_first(v_btgd, group)
    if _fused(softmax_scale):
        out, lse = _FLASH(q, k, v, 0.0, causal, scale=softmax_scale)
        return out.transpose(1, 2), lse
    scores = _scores(q, k, softmax_scale, causal)
    lse = torch.logsumexp(scores, -1)
    out = torch.exp(scores - lse[..., None]) @ v.float()
    return out.to(q.dtype).transpose(1, 2), lse


def backward(
    dout_bshd: Tensor,
    q_bshd: Tensor,
    k_btgd: Tensor,
    v_btgd: Tensor,
    out_bshd: Tensor,
    lse_bhs: Tensor,
    *,
    softmax_scale: float,
    causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """This block's share of dq (b, s, h, d), dk and dv (b, t, g, d), given `out` and `lse` over all keys.

    float32, but for the fused kernel's, which are in the dtype of q.

    Raises:
        Unsupported: on CUDA, what our kernels lack.
    """
    if q_bshd.device.type == "cuda":
        from attn.kernels.flash import host

        inputs = (dout_bshd, q_bshd, k_btgd, v_btgd, out_bshd, lse_bhs)
        shift = host.shift_of_block(causal)
        return host.backward(*inputs, softmax_scale=softmax_scale, shift=shift, dtype=torch.float32)
    kv_heads = k_btgd.shape[2]
    group = q_bshd.shape[2] // kv_heads
    q, dout, out = (_heads_first(x) for x in (q_bshd, dout_bshd, out_bshd))
    k, v = _heads_first(k_btgd, group), _heads_first(v_btgd, group)
    if _fused(softmax_scale):
        dq, dk, dv = _FLASH_BACKWARD(dout, q, k, v, out, lse_bhs, 0.0, causal, scale=softmax_scale)
    else:
        weights = torch.exp(_scores(q, k, softmax_scale, causal) - lse_bhs[..., None])
        delta = (dout.float() * out.float()).sum(-1, keepdim=True)
        dscores = weights * (dout.float() @ v.float().mT - delta) * softmax_scale
        dq, dk, dv = dscores @ k.float(), dscores.mT @ q.float(), weights.mT @ dout.float()
    dk, dv = (x.unflatten(1, (kv_heads, group)).sum(2).transpose(1, 2) for x in (dk, dv))
    return dq.transpose(1, 2), dk, dv


def _fused(softmax_scale: float) -> bool:
    return softmax_scale != 0  # it hides keys before it scales: -inf x 0 is NaN


def _heads_first(x: Tensor, repeat: int = 1) -> Tensor:
    x = (x if x.stride(-1) == 1 else x.contiguous()).transpose(1, 2)  # the fused kernel reads head_dim side by side
    return x.repeat_interleave(repeat, dim=1) if repeat > 1 else x


def _scores(q: Tensor, k: Tensor, softmax_scale: float, causal: bool) -> Tensor:
    scores = softmax_scale * (q.float() @ k.float().mT)
    if causal:
        hidden = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores
