"""PyTorch's FlexAttention, compiled by torch.compile; on the CPU forward only, where a C++ compiler is there.

Source: torch.nn.attention.flex_attention (BSD-3-Clause), the version that is installed; Dong et al. 2024
(arXiv 2412.05496). Without torch.compile it would hold all scores: that is never what runs here. In torch 2.13 its CPU
kernel makes 0 of a NaN in q or k, for which the judge refuses it there.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor, hub
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from torch.nn.attention.flex_attention import flex_attention as flex

from attn.contract import Mask, Unsupported

KIND = "core"
DEVICES = ("cpu", "cuda")
DTYPES = ("float32", "bfloat16", "float16")
MASKS = ("full", "causal")
BACKWARD = True
CROSS_LENGTH = True

_KINDS = 1000  # dtypes, shapes and masks in one process, each compiled; beyond them torch raises


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    """Shapes as in `attn.contract`; returns out, as q.

    Raises:
        Unsupported: gradients on the CPU, or no C++ compiler there.
    """
    if q.device.type == "cpu":
        _refuse_on_cpu(q, k, v)
    shift = k.shape[1] - q.shape[1]
    seen = _seen(q.shape[1], k.shape[1], shift, q.device) if mask.kind == "causal" else None
    q_bhsd, k_bgtd, v_bgtd = (x.transpose(1, 2) for x in (q, k, v))
    with (
        torch._dynamo.config.patch(recompile_limit=_KINDS, accumulated_recompile_limit=_KINDS),
        torch._inductor.config.patch(compile_threads=1),  # no thread is to be left behind
    ):
        out = _compiled()(
            q_bhsd, k_bgtd, v_bgtd, block_mask=seen, scale=softmax_scale, enable_gqa=q.shape[2] != k.shape[2]
        )
    return out.transpose(1, 2)  # type: ignore[no-any-return]


@cache
def _compiled() -> Callable[..., Any]:
    """With fullgraph, what cannot be compiled raises, and is not run another way."""
    vars(hub)[
        "tqdm"
    ].monitor_interval = 0  # torch shows progress while it compiles; no thread of that is to be left behind
    return torch.compile(flex, fullgraph=True)


@cache
def _seen(seq_len: int, kv_seq_len: int, shift: int, device: torch.device) -> BlockMask:
    def causal(_b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return key <= query + shift

    return create_block_mask(causal, None, None, seq_len, kv_seq_len, device=device)


def _refuse_on_cpu(*inputs: Tensor) -> None:
    if torch.is_grad_enabled() and any(x.requires_grad for x in inputs):
        raise Unsupported("gradients on cpu: FlexAttention is forward only there, on cuda it has them")
    _refuse_without_compiler()


@cache
def _refuse_without_compiler() -> None:
    from torch._inductor import cpp_builder, exc

    try:
        cpp_builder.get_cpp_compiler()
    except exc.InvalidCxxCompiler as error:
        raise Unsupported("torch.compile needs a C++ compiler on cpu, none is here: install g++") from error
