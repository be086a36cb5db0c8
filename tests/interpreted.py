"""Our Triton kernels, run by Triton's interpreter on the CPU, in a process of its own: tests/test_flash.py starts it.

python tests/interpreted.py FUNCTION [ARGUMENT ...]     one of the functions below; what it asserts must hold
"""

import json
import os
import re
import sys
from dataclasses import replace
from pathlib import Path

# Read where kernels are decorated and numpy is loaded, that is on import. One thread: those of numpy's products go on
# spinning after a product, and what is busy after a call has returned is a fault of a row.
os.environ |= {"TRITON_INTERPRET": "1", "OPENBLAS_NUM_THREADS": "1"}
sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter

from attn import registry
from attn.contract import Mask, Unsupported
from attn.kernels.flash import configs, host
from attn.kernels.flash.configs import Config
from attn.reference import plain_attention
from attn.registry import Implementation
from attn.ring import merge
from bench import cases, check
from bench.jobs import CheckJob
from bench.spent import Spent
from bench.team import Solo


def as_a_gpu_does() -> None:
    """In triton 3.7 the interpreter multiplies the bit patterns of bfloat16, and cuts them off instead of rounding."""
    builder = interpreter.InterpreterBuilder
    cast, dot = builder.cast_impl, builder.create_dot

    def cast_impl(self, src, dst_type):
        if (src.dtype.scalar, dst_type.scalar) == (tl.float32, tl.bfloat16):
            rounded = torch.from_numpy(np.ascontiguousarray(src.data)).to(torch.bfloat16).view(torch.uint16)
            return interpreter.TensorHandle(rounded.numpy(), tl.bfloat16)
        return cast(self, src, dst_type)

    def create_dot(self, a, b, d, *more):
        a, b = (cast(self, x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x for x in (a, b))
        return dot(self, a, b, d, *more)

    builder.cast_impl, builder.create_dot = cast_impl, create_dot


def row() -> Implementation:
    """`triton_flash` as if it ran on a CPU."""
    return replace(registry.read(registry.IMPL_DIR / "triton_flash.py"), devices=("cpu",))


def judged(only: str, shard: str = "0", shards: str = "1") -> None:
    """Cases of `triton_flash`, one line of JSON each."""
    job = CheckJob(str(row().path), "cpu", 1, 7, 1, [], real=os.devnull)
    chosen = [one for one in cases.cases(row()) if re.search(only, one.name) and not one.variant.startswith("real")]
    for case in chosen[int(shard) :: int(shards)]:
        print(json.dumps(check._named(row(), case, job, Solo(), Spent())), flush=True)


def unwritten(only: str) -> None:
    """The same, where the last tile of every kernel is never started: only poisoned outputs show that."""
    tiles = host._tiles
    host._tiles = lambda x, rows: tiles(x, rows) - 1
    judged(only)


def descriptors() -> None:
    """Rows read by tensor descriptors are those read by pointers, bit for bit."""
    for head_dim, dtype in ((64, torch.float32), (40, torch.bfloat16), (96, torch.float16)):
        q, k, v, dout = drawn((2, 65, 4), (2, 97, 2), head_dim, dtype)
        assert all(host._fits_descriptor(x) for x in (q, k, v, dout))
        found = []
        for tma in (False, True):
            configs.interpreted = lambda _, tma=tma: Config(32, 32, 4, 1, tma=tma)
            out, lse = host.forward(q, k, v, softmax_scale=0.3, shift=32)
            how = {"softmax_scale": 0.3, "shift": 32, "dtype": torch.float32}
            found.append((out, lse, *host.backward(dout, q, k, v, out, lse, **how)))
        assert all(map(torch.equal, *found)), f"head_dim {head_dim}, {dtype}"


def strides() -> None:
    """What tensor descriptors cannot read is seen."""
    x = torch.zeros(2, 8, 2, 64, dtype=torch.bfloat16)
    assert host._fits_descriptor(x)
    assert not host._fits_descriptor(x[:, :, :, 1:])  # begins at an odd address
    assert not host._fits_descriptor(x[:, :1].expand(2, 8, 2, 64))
    assert not host._fits_descriptor(torch.zeros(2, 8, 2, 36, dtype=torch.bfloat16))


def blocks() -> None:
    """A block as rings call it: causal from its own top left, and gradients of two under the lse of the whole."""
    for seq_len, kv_seq_len in ((70, 33), (33, 70)):
        q, k, v, dout = drawn((1, seq_len, 2), (1, kv_seq_len, 1), 32)
        out, lse = host.forward(q, k, v, softmax_scale=0.3, shift=host.shift_of_block(True))
        for i in range(0, seq_len, 7):
            seen = slice(0, i + 1)
            one = plain_attention(q[:, i : i + 1], k[:, seen], v[:, seen], softmax_scale=0.3, mask=Mask("full"))
            torch.testing.assert_close((out[:, i : i + 1], lse[:, :, i : i + 1]), one)
    q, k, v, dout = drawn((2, 33, 4), (2, 65, 2), 32)
    how = {"softmax_scale": 0.3, "shift": host.shift_of_block(False)}
    whole_out, whole_lse = host.forward(q, k, v, **how)
    whole = host.backward(dout, q, k, v, whole_out, whole_lse, **how, dtype=torch.float32)
    out, lse = merge.empty(q)
    halves = [(k[:, part], v[:, part]) for part in (slice(0, 30), slice(30, None))]
    for half in halves:
        host.merge_(out, lse, *host.forward(q, *half, **how))
    torch.testing.assert_close((out, lse), (whole_out, whole_lse))
    parts = [host.backward(dout, q, *half, out, lse, **how, dtype=torch.float32) for half in halves]
    joined = (parts[0][0] + parts[1][0], *(torch.cat((parts[0][i], parts[1][i]), 1) for i in (1, 2)))
    torch.testing.assert_close(joined, whole)


def tiles() -> None:
    """Gradients where every head of a group has several whole tiles, tiles of the diagonal and a last short one."""
    chosen = configs.interpreted
    for tma, lengths in ((False, (112, 112)), (True, (112, 80)), (False, (64, 96))):
        configs.interpreted = lambda _, tma=tma: Config(32, 32, 4, 1, tma=tma)
        q, k, v, dout = drawn((1, lengths[0], 4), (1, lengths[1], 2), 32)
        for mask in (Mask("full"), Mask("causal")):
            shift = host.shift_of(mask, *lengths)
            out, lse = host.forward(q, k, v, softmax_scale=0.3, shift=shift)
            found = host.backward(dout, q, k, v, out, lse, softmax_scale=0.3, shift=shift, dtype=torch.float32)
            exact = [x.double().requires_grad_() for x in (q, k, v)]
            plain_attention(*exact, softmax_scale=0.3, mask=mask)[0].backward(dout.double())
            torch.testing.assert_close(found, tuple(x.grad.float() for x in exact))
    configs.interpreted = chosen


def merged() -> None:
    """One kernel does what attn/ring/merge.py does, rows without a key and those that outweigh all included."""
    q, block_out, _, _ = drawn((2, 37, 3), (2, 37, 3), 40, torch.bfloat16)
    lse, block_lse = torch.randn(2, 3, 37) * 50, torch.randn(2, 3, 37) * 50
    lse[0, 0, :9], block_lse[0, 0, 5:14], block_lse[1, 1, 3] = -torch.inf, -torch.inf, torch.nan
    out = q.float().masked_fill((lse == -torch.inf).transpose(1, 2)[..., None], 0.0)
    wanted = out.clone(), lse.clone()
    merge.merge_(*wanted, block_out, block_lse)
    host.merge_(out, lse, block_out, block_lse)
    torch.testing.assert_close((out, lse), wanted, equal_nan=True)
    some = slice(5, 30)  # as rings do on CUDA, of some queries only: the others stay as they are
    one, other = ([x.clone() for x in wanted] for _ in range(2))
    block = block_out[:, some], block_lse[:, :, some]
    merge._fused_(one[0][:, some], one[1][:, :, some], *block)
    merge.merge_(other[0][:, some], other[1][:, :, some], *block)
    torch.testing.assert_close(one, other, equal_nan=True)


def extremes() -> None:
    """Nothing to attend to or from, tokens further apart than 32 bits count, heads that are no whole groups."""
    for batch, seq_len, kv_seq_len in ((1, 2, 0), (1, 40, 0), (0, 2, 5), (0, 40, 5), (1, 0, 5)):
        q, k, v, dout = drawn((batch, seq_len, 2), (batch, kv_seq_len, 2), 32)
        out, lse = host.forward(q, k, v, softmax_scale=0.3, shift=0)
        grads = host.backward(dout, q, k, v, out, lse, softmax_scale=0.3, shift=0, dtype=torch.float32)
        assert (out == 0).all()
        assert (lse == -torch.inf).all()
        assert all((x == 0).all() for x in grads)
    apart = 1 << 26  # 34 of them pass 2^31; memory that nobody touches is not taken
    q, k, v, _ = drawn((1, 40, 1), (1, 40, 1), 32, torch.float16)
    far = torch.empty(40 * apart, dtype=torch.float16).as_strided(q.shape, (40 * apart, apart, 32, 1))
    how = {"softmax_scale": 0.3, "shift": 0}
    assert torch.equal(host.forward(far.copy_(q), k, v, **how)[0], host.forward(q, k, v, **how)[0])
    q, k, v, _ = drawn((1, 20, 5), (1, 20, 2), 32)
    with pytest.raises(Unsupported, match="5 heads to 2 of k and v, the kernels take whole multiples"):
        host.forward(q, k, v, **how)


def parts() -> None:
    """Decoding gives the same on any number of programs, also where the last part is short, or seen by no query."""
    q, k, v, _ = drawn((2, 3, 6), (2, 251, 2), 40)
    for mask in (Mask("full"), Mask("causal")):
        shift = host.shift_of(mask, 3, 251)
        wanted = plain_attention(q, k, v, softmax_scale=0.3, mask=mask)
        for programs in (1, 6, 20, 1000):
            host._PROGRAMS_WITHOUT_GPU = programs
            torch.testing.assert_close(host.forward(q, k, v, softmax_scale=0.3, shift=shift), wanted)
    few = host.forward(q, k, v, softmax_scale=0.3, shift=-2)  # the last of three queries sees key 0 only
    assert (few[0][:, :2] == 0).all()
    assert (few[1][:, :, :2] == -torch.inf).all()
    torch.testing.assert_close(few[0][:, 2], v[:, 0].repeat_interleave(3, 1))


def tf32() -> None:
    """The tf32 row asks every product, of gradients and of decoding too, for tf32, and the float32 row none."""
    asked, dot = [], interpreter.InterpreterBuilder.create_dot

    def noted(self, a, b, d, input_precision, *more):
        asked.append(input_precision.name)
        return dot(self, a, b, d, input_precision, *more)

    interpreter.InterpreterBuilder.create_dot = noted
    for queries in (20, 3):
        q, k, v, dout = (x.requires_grad_() for x in drawn((1, queries, 1), (1, 40, 1), 32))
        for name, wanted in (("triton_flash", "IEEE"), ("triton_flash_tf32", "TF32")):
            attention = registry.load(registry.find()[name]).attention
            attention(q, k, v, softmax_scale=0.3, mask=Mask("full")).backward(dout)
            assert set(asked) == {wanted}, (name, queries, asked)
            asked.clear()


def refusals() -> None:
    """What the kernels lack is Unsupported, with what was asked for and what there is."""
    asked = {
        r"dtype torch.float64, the kernels have float32, bfloat16, float16": (torch.float64, 32, 1.0),
        r"head_dim 264, the kernels have 1 to 256": (torch.float32, 264, 1.0),
        r"softmax_scale -1.0, the kernels take 0 and more": (torch.float32, 32, -1.0),
    }
    q = torch.zeros(1, 20, 1, 32, dtype=torch.bfloat16)
    with pytest.raises(Unsupported, match=r"dtype torch.bfloat16 with products in tf32, which are of float32"):
        host.attention(q, q, q, softmax_scale=1.0, mask=Mask("full"), precision="tf32")
    for words, (dtype, head_dim, softmax_scale) in asked.items():
        q = torch.zeros(1, 20, 1, head_dim, dtype=dtype)
        with pytest.raises(Unsupported, match=words):
            host.attention(q, q, q, softmax_scale=softmax_scale, mask=Mask("full"))


def drawn(queries, keys, head_dim, dtype=torch.float32):
    """q, k, v and dout."""
    torch.manual_seed(7)
    return [torch.randn(*shape, head_dim).to(dtype) for shape in (queries, keys, keys, queries)]


if __name__ == "__main__":
    torch.set_num_threads(1)
    as_a_gpu_does()
    globals()[sys.argv[1]](*sys.argv[2:])
