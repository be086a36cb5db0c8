"""Flash attention as others call it: checks what is asked for, chooses a configuration, starts the kernels.

Under TRITON_INTERPRET=1 (set before the first import, by tests only) the same source runs on CPU tensors, for its
values: never timed.
Suffixes: b batch, s queries, t keys, h heads, g kv heads, d head_dim.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from attn.contract import Mask, Precision, Unsupported
from attn.kernels.flash import configs
from attn.kernels.flash.configs import Config
from attn.kernels.flash.decode import decode_kernel
from attn.kernels.flash.delta import delta_kernel
from attn.kernels.flash.dkdv import dkdv_kernel
from attn.kernels.flash.dq import dq_kernel
from attn.kernels.flash.forward import forward_kernel
from attn.kernels.flash.merge import merge_kernel
from attn.kernels.flash.reduce import reduce_kernel

EVERYTHING = 1 << 30  # a shift with which every query sees every key
_LONGEST = 1 << 29
_WIDEST = 1 << 23  # stride from token to token: within a tile of MOST_ROWS, kernels count in 32 bits
_LOG2_E = 1.4426950408889634
_FEW_ROWS = 16  # queries of a group: the least that a tensor core takes
_PROGRAMS_WITHOUT_GPU = 4
_DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


def shift_of(mask: Mask, seq_len: int, kv_seq_len: int) -> int:
    """Query i sees keys 0 to i + shift."""
    return kv_seq_len - seq_len if mask.kind == "causal" else EVERYTHING


def shift_of_block(causal: bool) -> int:
    """Of a block, where causal means that query i sees keys 0 to i."""
    return 0 if causal else EVERYTHING


def attention(
    q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask, precision: Precision = "dtype"
) -> Tensor:
    """Shapes as in `attn.contract`; out as q, differentiable. With precision tf32 q, k and v are float32.

    Raises:
        Unsupported: a device, dtype, head_dim, length or scale that the kernels lack.
    """
    shift = shift_of(mask, q.shape[1], k.shape[1])
    return _Flash.apply(q, k, v, softmax_scale, shift, precision)  # type: ignore[no-any-return]


def forward(
    q_bshd: Tensor, k_btgd: Tensor, v_btgd: Tensor, *, softmax_scale: float, shift: int, precision: Precision = "dtype"
) -> tuple[Tensor, Tensor]:
    """`out` (as q) and `lse` (b, h, s) float32, natural logarithm; -inf, and out 0, where a query sees no key.

    Raises:
        Unsupported: as `attention`.
    """
    q, k, v = (_side_by_side(x) for x in (q_bshd, k_btgd, v_btgd))
    _refuse(q, k, softmax_scale, precision)
    group = q.shape[2] // k.shape[2]
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty((q.shape[0], q.shape[2], q.shape[1]), dtype=torch.float32)
    with _on(q):
        if q.shape[1] * group <= _FEW_ROWS and q.numel() and k.numel():
            _decode(q, k, v, out, lse, softmax_scale, shift, precision)
            return out, lse
        config = choose("forward", q, (q, k, v), precision)
        m, n = config.block_m, config.block_n
        x = [_rows(y, config, rows) for y, rows in ((q, m), (k, n), (v, n))]
        forward_kernel[(_tiles(q, m),)](
            *x, out, lse, *_strides(q, k, v, out), softmax_scale * _LOG2_E, q.shape[1], k.shape[1], shift, q.shape[2],
            group, **_tile(q, config, precision), TMA=config.tma, SPECIALIZE=config.specialize, **_warps(config),
        )  # fmt: skip
    return out, lse


def backward(
    dout_bshd: Tensor,
    q_bshd: Tensor,
    k_btgd: Tensor,
    v_btgd: Tensor,
    out_bshd: Tensor,
    lse_bhs: Tensor,
    *,
    softmax_scale: float,
    shift: int,
    dtype: torch.dtype,
    precision: Precision = "dtype",
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients dq (b, s, h, d), dk and dv (b, t, g, d) in `dtype`, given `out` and `lse` over these keys or more.

    Raises:
        Unsupported: as `attention`.
    """
    dout, q, k, v, out = (_side_by_side(x) for x in (dout_bshd, q_bshd, k_btgd, v_btgd, out_bshd))
    _refuse(q, k, softmax_scale, precision)
    dq, dk, dv = (torch.empty(x.shape, dtype=dtype, device=x.device) for x in (q, k, v))
    row_len = -(-q.shape[1] // configs.MOST_ROWS) * configs.MOST_ROWS
    delta, lse = lse_bhs.new_empty((2, *lse_bhs.shape[:2], row_len))
    sizes = (q.shape[1], row_len, k.shape[1], shift, q.shape[2], q.shape[2] // k.shape[2])
    scales = (softmax_scale * _LOG2_E, softmax_scale)
    with _on(q):
        delta_kernel[(lse.numel() // configs.ROWS,)](
            out, dout, lse_bhs.contiguous(), delta, lse, *_strides(out, dout), q.shape[1], row_len, q.shape[2],
            **_without_product(q),
        )  # fmt: skip
        config = choose("dkdv", q, (q, k, v, dout), precision)
        m, n = config.block_m, config.block_n
        x = [_rows(y, config, rows) for y, rows in ((q, m), (k, n), (v, n), (dout, m))]
        dkdv_kernel[(_tiles(k, n),)](
            *x, lse, delta, dk, dv, *_strides(q, k, v, dout, dk, dv), *scales, *sizes, **_tile(q, config, precision),
            TMA=config.tma, **_warps(config),
        )  # fmt: skip
        config = choose("dq", q, (q, k, v, dout), precision)
        m, n = config.block_m, config.block_n
        x = [_rows(y, config, rows) for y, rows in ((q, m), (k, n), (v, n), (dout, m))]
        dq_kernel[(_tiles(q, m),)](
            *x, lse, delta, dq, *_strides(q, k, v, dout, dq), *scales, *sizes, **_tile(q, config, precision),
            TMA=config.tma, **_warps(config),
        )  # fmt: skip
    return dq, dk, dv


def merge_(out: Tensor, lse: Tensor, block_out: Tensor, block_lse: Tensor) -> None:
    """Add a block to `out` (b, s, h, d) and `lse` (b, h, s, contiguous) in place, both float32.

    As attn/ring/merge.py, in one kernel.
    """
    block_out, block_lse = _side_by_side(block_out), block_lse.contiguous()
    with _on(out):
        merge_kernel[(_tiles(out, configs.ROWS),)](
            out, lse, block_out, block_lse, *_strides(out, block_out), out.shape[1], out.shape[2],
            **_without_product(out),
        )  # fmt: skip


def choose(kernel: str, q: Tensor, read: tuple[Tensor, ...] = (), precision: Precision = "dtype") -> Config:
    """Of the configurations that passed the build, the first for the device that q is on, as `configs.order` has them.

    One that reads by tensor descriptors is left out where a tensor of `read` does not lie as those need it.

    Raises:
        Unsupported: none is left.
    """
    if q.device.type == "cpu":
        return configs.interpreted(q.shape[1])
    arch = configs.architecture(torch.cuda.get_device_capability(q.device))
    key = configs.key(kernel, arch, _precision(q, precision), q.shape[-1])
    lying = all(_fits_descriptor(x) for x in read)
    names = [configs.FORCED[key]] if key in configs.FORCED else configs.order().get(key, [])
    named = [Config.parse(name) for name in names]
    found = next((config for config in named if lying or not config.tma), None)
    if found is None:
        raise Unsupported(f"no configuration of {key} passed the build, of {len(named)} none reads these strides")
    configs.CHOSEN[key] = found.name
    return found


def _decode(
    q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, softmax_scale: float, shift: int, precision: Precision
) -> None:
    batch, seq_len, n_heads, head_dim = q.shape
    kv_seq_len, n_kv_heads = k.shape[1:3]
    config, group = choose("decode", q, precision=precision), n_heads // n_kv_heads
    tiles = batch * n_kv_heads * -(-seq_len * group // config.block_m)
    parts = min(-(-kv_seq_len // config.block_n), max(1, 2 * _processors(q) // tiles))
    part = -(-kv_seq_len // (parts * config.block_n)) * config.block_n
    parts = -(-kv_seq_len // part)
    part_out = q.new_empty((parts, batch, n_heads, seq_len, head_dim), dtype=torch.float32)
    part_lse = q.new_empty((parts, batch, n_heads, seq_len), dtype=torch.float32)
    decode_kernel[(tiles, parts)](
        q, k, v, part_out, part_lse, *_strides(q, k, v), softmax_scale * _LOG2_E, seq_len, kv_seq_len, shift, n_heads,
        group, batch, part, **_tile(q, config, precision), **_warps(config),
    )  # fmt: skip
    reduce_kernel[(-(-lse.numel() // configs.ROWS),)](
        part_out, part_lse, out, lse, *_strides(out), seq_len, n_heads, lse.numel(), parts, **_without_product(q)
    )


class _Flash(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, softmax_scale: float, shift: int, precision: Precision
    ) -> Tensor:
        out, lse = forward(q, k, v, softmax_scale=softmax_scale, shift=shift, precision=precision)
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.how = {"softmax_scale": softmax_scale, "shift": shift, "precision": precision, "dtype": q.dtype}
        return out

    @staticmethod
    def backward(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        return *backward(dout, q, k, v, out, lse, **ctx.how), None, None, None


def _refuse(q: Tensor, k: Tensor, softmax_scale: float, precision: Precision) -> None:
    """What the kernels lack, in words."""
    interpreted = triton.knobs.runtime.interpret
    if q.device.type != ("cpu" if interpreted else "cuda"):
        raise Unsupported(f"device {q.device.type}, the kernels run on cuda; on the CPU only in Triton's interpreter")
    if q.dtype not in _DTYPES:
        raise Unsupported(f"dtype {q.dtype}, the kernels have {', '.join(_DTYPES.values())}")
    if precision == "tf32" and q.dtype != torch.float32:
        raise Unsupported(f"dtype {q.dtype} with products in tf32, which are of float32")
    configs.padded(q.shape[-1])
    if q.shape[2] % k.shape[2]:
        raise Unsupported(f"{q.shape[2]} heads to {k.shape[2]} of k and v, the kernels take whole multiples")
    if not 0 <= softmax_scale < math.inf:
        raise Unsupported(f"softmax_scale {softmax_scale}, the kernels take 0 and more")
    if max(q.shape[1], k.shape[1]) > _LONGEST:
        raise Unsupported(f"{q.shape[1]} queries and {k.shape[1]} keys, the kernels count to {_LONGEST}")


def _side_by_side(x: Tensor) -> Tensor:
    """With head_dim side by side and tokens no further apart than kernels can count: copied where it is not."""
    return x if x.stride(-1) == 1 and x.stride(1) < _WIDEST else x.contiguous()


def _rows(x: Tensor, config: Config, rows: int) -> Tensor | TensorDescriptor:
    """What a kernel reads a tensor by."""
    if not config.tma:
        return x
    block = [1, rows, 1, configs.padded(x.shape[-1])]
    return TensorDescriptor(x, list(x.shape), list(x.stride()), block)


def _fits_descriptor(x: Tensor) -> bool:
    """Tensor descriptors need addresses and strides of whole 16 bytes, and none of 0."""
    strides = [stride * x.element_size() for stride in x.stride()[:-1]]
    return x.data_ptr() % 16 == 0 and all(stride > 0 and stride % 16 == 0 for stride in strides)


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:3]]


def _tiles(x: Tensor, rows: int) -> int:
    """Programs: tiles of that many rows of every head."""
    return x.shape[0] * x.shape[2] * -(-x.shape[1] // rows)


def _tile(q: Tensor, config: Config, precision: Precision) -> dict[str, Any]:
    products = {"float32": "ieee"}.get(_precision(q, precision), "tf32")  # of 16-bit ones it says nothing
    sizes = {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
    return {"HEAD_DIM": q.shape[-1], "BLOCK_D": configs.padded(q.shape[-1]), "PRECISION": products, **sizes}


def _without_product(x: Tensor) -> dict[str, Any]:
    return {"HEAD_DIM": x.shape[-1], "BLOCK_D": configs.padded(x.shape[-1]), "BLOCK_M": configs.ROWS, "num_warps": 4}


def _warps(config: Config) -> dict[str, int]:
    return {"num_warps": config.num_warps, "num_stages": config.num_stages}


def _precision(q: Tensor, precision: Precision) -> str:
    return _DTYPES[q.dtype] if precision == "dtype" else precision


def _processors(q: Tensor) -> int:
    if q.device.type == "cpu":
        return _PROGRAMS_WITHOUT_GPU
    return int(torch.cuda.get_device_properties(q.device).multi_processor_count)


def _on(x: Tensor) -> torch.cuda.device:
    """Triton starts kernels on the current device."""
    return torch.cuda.device(x.device.index if x.device.type == "cuda" else -1)
