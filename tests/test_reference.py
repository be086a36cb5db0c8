"""attn.reference in float64, against attention written one query at a time."""

import math

import pytest
import torch

from attn.contract import Mask
from attn.reference import plain_attention, plain_module

SHAPES = [(5, 5), (1, 1), (4, 7), (7, 4), (1, 6), (6, 1)]  # (seq_len, kv_seq_len)


def by_loops(q, k, v, softmax_scale, causal):
    """One query at a time, over the list of keys that it sees; differentiable. Returns out and lse."""
    batch, seq_len, n_heads, _ = q.shape
    kv_seq_len, n_kv_heads = k.shape[1:3]
    out, lse = torch.zeros_like(q), torch.full((batch, n_heads, seq_len), -math.inf, dtype=q.dtype)
    for b in range(batch):
        for h in range(n_heads):
            g = h * n_kv_heads // n_heads
            for i in range(seq_len):
                seen = [j for j in range(kv_seq_len) if not causal or j - kv_seq_len <= i - seq_len]
                if seen:
                    powers = [torch.exp(softmax_scale * (q[b, i, h] * k[b, j, g]).sum()) for j in seen]
                    total = sum(powers)
                    weighted = sum(p * v[b, j, g] for p, j in zip(powers, seen, strict=True))
                    out = out.index_put((torch.tensor(b), torch.tensor(i), torch.tensor(h)), weighted / total)
                    lse[b, h, i] = total.detach().log()
    return out, lse


def draw(seq_len, kv_seq_len, n_heads=2, n_kv_heads=2, batch=2, head_dim=3):
    generator = torch.Generator().manual_seed(seq_len * 100 + kv_seq_len)
    shapes = [(batch, seq_len, n_heads, head_dim), *[(batch, kv_seq_len, n_kv_heads, head_dim)] * 2]
    return [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]


def close(one, other):
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize(("seq_len", "kv_seq_len"), SHAPES)
def test_out_lse_and_gradients_are_those_of_one_query_at_a_time(seq_len, kv_seq_len, mask):
    q, k, v = draw(seq_len, kv_seq_len)
    out, lse = plain_attention(q, k, v, softmax_scale=0.7, mask=Mask(mask))
    slow_out, slow_lse = by_loops(q, k, v, 0.7, mask == "causal")
    close(out, slow_out)
    close(lse, slow_lse)
    dout = torch.randn(out.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for fast, slow in zip(
        torch.autograd.grad(out, (q, k, v), dout), torch.autograd.grad(slow_out, (q, k, v), dout), strict=True
    ):
        close(fast, slow)


@pytest.mark.parametrize("mask", ["full", "causal"])
def test_gradients_are_those_of_finite_differences(mask):
    inputs = draw(4, 3, n_heads=2, n_kv_heads=1)
    assert torch.autograd.gradcheck(lambda *x: plain_attention(*x, softmax_scale=0.4, mask=Mask(mask))[0], inputs)


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
def test_query_head_h_reads_kv_head_h_div_group(n_kv_heads):
    q, k, v = draw(3, 3, n_heads=4, n_kv_heads=n_kv_heads)
    out, _ = plain_attention(q, k, v, softmax_scale=1.0, mask=Mask("full"))
    close(out, by_loops(q, k, v, 1.0, False)[0])
    gradients = torch.autograd.grad(out.sum(), (k, v))
    assert [g.shape for g in gradients] == [k.shape, v.shape]


def test_lse_is_a_natural_logarithm():
    q, k, v = (x.detach() for x in draw(2, 7))
    _, lse = plain_attention(torch.zeros_like(q), k, v, softmax_scale=1.0, mask=Mask("full"))
    close(lse, torch.full_like(lse, math.log(7)))


def test_lse_is_float32_for_rows_of_fewer_bits():
    q, k, v = (x.detach().bfloat16() for x in draw(2, 7))
    out, lse = plain_attention(q, k, v, softmax_scale=1.0, mask=Mask("full"))
    assert (out.dtype, lse.dtype) == (torch.bfloat16, torch.float32)


def test_causal_is_aligned_at_the_bottom_right():
    q, k, v = (x.detach() for x in draw(2, 5))
    out, _ = plain_attention(q, k, v, softmax_scale=1.0, mask=Mask("causal"))
    last, _ = plain_attention(q[:, 1:], k, v, softmax_scale=1.0, mask=Mask("full"))
    first, _ = plain_attention(q[:, :1], k[:, :4], v[:, :4], softmax_scale=1.0, mask=Mask("full"))
    close(out, torch.cat((first, last), 1))


def test_a_row_that_sees_no_key_has_out_0_lse_minus_infinity_and_gradient_0():
    q, k, v = draw(5, 2)
    out, lse = plain_attention(q, k, v, softmax_scale=1.0, mask=Mask("causal"))
    out.sum().backward()
    assert (out[:, :3] == 0).all()
    assert (lse[:, :, :3] == -math.inf).all()
    assert lse[:, :, 3:].isfinite().all()
    assert (q.grad[:, :3] == 0).all()
    assert all(x.grad.isfinite().all() for x in (q, k, v))


@pytest.mark.parametrize("n_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("mask", ["full", "causal"])
def test_a_module_is_its_projections_around_attention(n_kv_heads, mask):
    generator = torch.Generator().manual_seed(3)
    n_heads, head_dim, seq_len = 4, 3, 6
    width, kv_width = n_heads * head_dim, n_kv_heads * head_dim
    shapes = [(2, seq_len, width), (width, width), (kv_width, width), (kv_width, width), (width, width)]
    leaves = [torch.randn(s, generator=generator, dtype=torch.float64).requires_grad_() for s in shapes]
    x, wq, wk, wv, wo = leaves
    q = torch.einsum("bse,he->bsh", x, wq).reshape(2, seq_len, n_heads, head_dim)
    k, v = (torch.einsum("bse,he->bsh", x, w).reshape(2, seq_len, n_kv_heads, head_dim) for w in (wk, wv))
    heads, _ = by_loops(q, k, v, head_dim**-0.5, mask == "causal")
    wanted = torch.einsum("bshd,ohd->bso", heads, wo.reshape(width, n_heads, head_dim))
    out = plain_module(x, wq, wk, wv, wo, n_heads=n_heads, mask=Mask(mask))
    close(out, wanted)
    for fast, slow in zip(
        torch.autograd.grad(out.sum(), leaves), torch.autograd.grad(wanted.sum(), leaves), strict=True
    ):
        close(fast, slow)
