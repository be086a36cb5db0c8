"""Rows of other libraries: without their package they say so; with one of the same signature they call it as it asks.

The packages are no requirement and none is here; what stands in for one has the parameters of its function, by name
and in order, and computes attention in plain torch, so that layout, scale and mask are seen in what comes back.
"""

import sys
import types
from dataclasses import replace

import pytest
import torch
from conftest import ROOT, measure_job
from made import figures, record
from test_breakdown import CEILING

from attn import registry
from attn.contract import Mask, Unsupported, Workload
from attn.impl import _sdpa, flex_attention
from attn.reference import plain_attention
from attn.ring.communicator import Communicator
from bench import cases, grid, launch, losses, outcomes, ring_tables

ROWS = registry.find()
OF_PACKAGES = {
    "flash_attn_2": "flash_attn",
    "flash_attn_3": "flash_attn_interface",
    "flash_attn_4": "flash_attn",
    "flashinfer": "flashinfer",
    "sage_attention": "sageattention",
    "xformers": "xformers",
    "ring_flash_attn_zigzag": "ring_flash_attn",
}
CORE = [name for name in OF_PACKAGES if ROWS[name].kind == "core"]
SCALE = 0.3


def drawn(n_kv_heads=2, seq_len=6, kv_seq_len=6, batch=1, head_dim=64):
    torch.manual_seed(7)
    q = torch.randn(batch, seq_len, 2, head_dim)
    return q, *torch.randn(2, batch, kv_seq_len, n_kv_heads, head_dim)


def called(name, q, k, v, mask="causal", **more):
    attention = registry.load(ROWS[name]).attention
    return attention(q, k, v, softmax_scale=SCALE, mask=Mask(mask), **more)


def plain(q, k, v, softmax_scale, causal):
    kind = Mask("causal" if causal else "full")
    return plain_attention(q, k, v, softmax_scale=softmax_scale, mask=kind)[0]


def flash_2(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, **_):
    """flash_attn.flash_attn_func of 2.8.3, its first parameters."""
    assert dropout_p == 0.0
    return plain(q, k, v, softmax_scale, causal)


def flash(q, k, v, softmax_scale=None, causal=False, **_):
    """flash_attn_interface.flash_attn_func of hopper/, its first parameters."""
    return plain(q, k, v, softmax_scale, causal)


def flash_with_lse(q, k, v, qv=None, gather_kv_indices=None, softmax_scale=None, causal=False, **_):
    """flash_attn.cute.flash_attn_func of 4.0.0b36."""
    assert qv is None
    assert gather_kv_indices is None
    return plain(q, k, v, softmax_scale, causal), None


def prefill(
    q, k, v, scale_q=None, scale_k=None, scale_v=None, o_dtype=None, custom_mask=None, packed_custom_mask=None,
    causal=False, kv_layout="NHD", pos_encoding_mode="NONE", use_fp16_qk_reduction=False, sm_scale=None,
):  # fmt: skip
    """flashinfer.single_prefill_with_kv_cache of 0.7.2: one sequence, (seq_len, heads, head_dim)."""
    assert kv_layout == "NHD"
    assert all(x.ndim == 3 for x in (q, k, v))
    return plain(q[None], k[None], v[None], sm_scale, causal)[0]


def sage(q, k, v, tensor_layout="HND", is_causal=False, sm_scale=None, smooth_k=True, **_):
    """sageattention.sageattn of 1.0.6, which takes the mean off k in place."""
    assert tensor_layout == "NHD"
    k -= k.mean(dim=1, keepdim=True)  # of each query all logits by as much: out is the same
    return plain(q, k, v, sm_scale, is_causal)


class LowerTriangularMask:
    """Aligned at the top left."""


class LowerTriangularFromBottomRightMask:
    """Aligned at the bottom right."""


def efficient(query, key, value, attn_bias=None, p=0.0, scale=None, *, op=None):
    """xformers.ops.memory_efficient_attention of 0.0.35."""
    assert p == 0.0
    assert op is None
    kind = LowerTriangularMask if query.shape[1] == key.shape[1] else LowerTriangularFromBottomRightMask
    assert attn_bias is None or isinstance(attn_bias, kind)
    return plain(query, key, value, scale, attn_bias is not None)


def zigzag(q, k, v, dropout_p=0.0, softmax_scale=None, causal=False, **_):
    """ring_flash_attn.zigzag_ring_flash_attn_func of 0.1.8."""
    assert dropout_p == 0.0
    assert causal
    return plain(q, k, v, softmax_scale, causal)


MODULES = {
    "flash_attn_interface": {"flash_attn_func": flash},
    "flash_attn": {"flash_attn_func": flash_2},
    "flash_attn.cute": {"flash_attn_func": flash_with_lse},
    "flashinfer": {"single_prefill_with_kv_cache": prefill},
    "sageattention": {"sageattn": sage},
    "xformers": {},
    "xformers.ops": {"memory_efficient_attention": efficient, "LowerTriangularMask": LowerTriangularMask},
    "xformers.ops.fmha": {},
    "xformers.ops.fmha.attn_bias": {"LowerTriangularFromBottomRightMask": LowerTriangularFromBottomRightMask},
    "ring_flash_attn": {"zigzag_ring_flash_attn_func": zigzag},
}


@pytest.fixture
def packages(monkeypatch):
    """All of them, on a Hopper."""
    made = {name: types.ModuleType(name) for name in MODULES}
    for name, functions in MODULES.items():
        for function, stand_in in functions.items():
            setattr(made[name], function, stand_in)
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(made[parent], child, made[name])
        monkeypatch.setitem(sys.modules, name, made[name])
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))


@pytest.mark.parametrize("name", ["flash_attn_2", "flash_attn_3", "flash_attn_4", "sdpa_flash", "sdpa_efficient"])
def test_a_scale_of_0_under_a_causal_mask_is_refused_where_keys_are_hidden_before_they_are_scaled(
    name, packages, monkeypatch
):
    monkeypatch.setattr(_sdpa, "_ASKED", dict.fromkeys(_sdpa._ASKED, lambda _: True))
    attention, inputs = registry.load(ROWS[name]).attention, drawn()
    with pytest.raises(Unsupported, match=r"softmax_scale 0 under a causal mask: .+ computes"):
        attention(*inputs, softmax_scale=0.0, mask=Mask("causal"))


@pytest.mark.parametrize("name", OF_PACKAGES)
def test_without_its_package_a_row_says_what_to_install(name):
    more = {"comm": Communicator(0, 2, 8)} if ROWS[name].kind == "ring" else {}
    with pytest.raises(Unsupported, match=rf"needs the package {OF_PACKAGES[name]}\S*, which is not installed: \S+ "):
        called(name, *drawn(), **more)


@pytest.mark.parametrize("name", OF_PACKAGES)
def test_a_row_says_in_its_docstring_where_it_comes_from_which_version_and_which_licence(name):
    words = sys.modules[registry.load(ROWS[name]).__name__].__doc__
    assert "Source:" in words
    assert any(licence in words for licence in ("BSD-3-Clause", "Apache-2.0", "MIT"))
    assert any(part[0].isdigit() and "." in part for part in words.split())
    assert ROWS[name].fault is None


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("mask", ["full", "causal"])
@pytest.mark.parametrize("name", CORE)
def test_with_a_package_of_its_signature_a_row_is_attention_and_leaves_its_inputs_alone(name, mask):
    q, k, v = drawn()
    before = [x.clone() for x in (q, k, v)]
    torch.testing.assert_close(called(name, q, k, v, mask), plain(q, k, v, SCALE, mask == "causal"))
    assert all(map(torch.equal, (q, k, v), before))


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize("name", [name for name in CORE if name != "sage_attention"])
def test_causal_of_different_lengths_is_aligned_at_the_bottom_right(name):
    q, k, v = drawn(seq_len=3)
    torch.testing.assert_close(called(name, q, k, v), plain(q, k, v, SCALE, True))


@pytest.mark.usefixtures("packages")
@pytest.mark.parametrize(
    ("name", "shapes", "words"),
    [
        ("flash_attn_2", {"head_dim": 264}, "head_dim 264, FlashAttention-2 has 1 to 256"),
        ("flash_attn_3", {"head_dim": 264}, "head_dim 264, FlashAttention-3 has multiples of 8 up to 256"),
        ("flash_attn_3", {"head_dim": 20}, "head_dim 20, FlashAttention-3 has multiples of 8"),
        ("flash_attn_4", {"head_dim": 136}, "head_dim 136, FlashAttention-4 has multiples of 8 up to 128"),
        ("flash_attn_4", {"head_dim": 20}, "head_dim 20, FlashAttention-4 has multiples of 8"),
        ("flashinfer", {"head_dim": 40}, "head_dim 40, FlashInfer has 64, 128, 256"),
        ("flashinfer", {"batch": 3}, "batch 3, single_prefill_with_kv_cache takes 1 sequence"),
        ("flashinfer", {"seq_len": 7}, "7 queries and 6 keys"),
        ("sage_attention", {"head_dim": 80}, "head_dim 80, SageAttention has 64, 96, 128"),
        ("sage_attention", {"seq_len": 3}, "3 queries and 6 keys"),
        ("xformers", {"n_kv_heads": 1}, "2 heads to 1 of k and v"),
        ("xformers", {"seq_len": 7}, "7 queries and 6 keys"),
    ],
)
def test_what_a_library_lacks_is_unsupported_with_what_was_asked_for(name, shapes, words):
    with pytest.raises(Unsupported, match=words):
        called(name, *drawn(**shapes))


@pytest.mark.usefixtures("packages")
def test_a_gpu_that_a_library_has_no_kernels_for_is_unsupported(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (7, 5))
    for name, allowed in (("flash_attn_3", "9.x"), ("flash_attn_4", "8.x, 9.x, 10.x, 11.x, 12.x")):
        with pytest.raises(
            Unsupported, match=rf"compute capability 7\.5, FlashAttention-\d has kernels for {allowed}$"
        ):
            called(name, *drawn())


@pytest.mark.usefixtures("packages")
def test_xformers_that_has_no_operator_for_the_inputs_is_unsupported(monkeypatch):
    def none(*_, **__):
        raise NotImplementedError("No operator found")

    monkeypatch.setattr(sys.modules["xformers.ops"], "memory_efficient_attention", none)
    with pytest.raises(Unsupported, match=r"xFormers has no operator for .* No operator found"):
        called("xformers", *drawn())


@pytest.mark.usefixtures("packages")
def test_the_zigzag_ring_is_called_causal_and_refuses_what_it_cannot_deal():
    q, k, v = drawn()
    out = called("ring_flash_attn_zigzag", q, k, v, comm=Communicator(0, 2, 12))
    torch.testing.assert_close(out, plain(q, k, v, SCALE, True))
    for words, comm in (("1 rank", Communicator(0, 1, 12)), ("13 tokens on 2 ranks", Communicator(0, 2, 13))):
        with pytest.raises(Unsupported, match=words):
            called("ring_flash_attn_zigzag", q, k, v, comm=comm)
    with pytest.raises(Unsupported, match="head_dim 20, ring-flash-attn has multiples of 8 up to 256"):
        called("ring_flash_attn_zigzag", *drawn(head_dim=20), comm=Communicator(0, 2, 12))


def test_torchs_ring_without_a_process_group_says_which_setting_makes_one():
    for words, ranks in (("1 rank", 1), ("no process group.*launch.transport: gloo", 2)):
        with pytest.raises(Unsupported, match=words):
            called("torch_context_parallel", *drawn(), comm=Communicator(0, ranks, 12))


@pytest.mark.mpi
def test_torchs_ring_is_right_on_2_ranks_over_gloo_and_refuses_what_it_cannot_deal(tmp_path):
    text = (ROOT / "params.yaml").read_text(encoding="utf-8").replace("transport: auto", "transport: gloo")
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    base = Workload(1, 20, 2, 2, 16, "float32", "causal", "forward_backward")
    asked = [base, replace(base, mask="full"), replace(base, dtype="bfloat16")]
    refused = [replace(base, seq_len=21, kv_seq_len=21), replace(base, n_kv_heads=1), replace(base, softmax_scale=0.0)]
    job = {
        "implementation": str(ROWS["torch_context_parallel"].path), "device": "cpu", "threads": 1, "seed": 7,
        "world_size": 2, "workloads": [w.as_dict() for w in asked + refused], "only": "no case",
    }  # fmt: skip
    on = grid.load(tmp_path / "params.yaml").launch
    (found,) = launch.run("check", [job], 2, deadline_s=100, on=on)
    assert found["status"] == "ok", found
    assert [(one["status"], one["reason"]) for one in found["cases"][:3]] == [("ok", None)] * 3
    assert [one["status"] for one in found["cases"][3:]] == ["unsupported"] * 3


@pytest.mark.mpi
def test_what_a_ring_sends_for_itself_is_not_counted_and_its_time_is_not_taken_apart(tmp_path):
    workload = Workload(1, 64, 2, 2, 16, "float32", "causal", "forward")
    job = measure_job(ROWS["torch_context_parallel"].path, workload, tmp_path, 2)
    (found,) = launch.run("measure", [job], 2, deadline_s=100, on=grid.Launch(transport="gloo"))
    assert found["status"] == "ok", found
    assert (found["payload_bytes"], found["messages"], found["payload_formula_bytes"]) == (None, None, None)
    section = losses.ring([found], outcomes._no_loss(found))
    assert (section.transport, section.loss, section.hidden, section.communication_ms) == ("gloo", None, None, None)
    assert section.no_loss == "it sends for itself, so what it computes and what it sends cannot be told apart"
    cell = record(family="ring", world_size=2, ring=section, figures=figures(payload_bytes=None, messages=None))
    shown = ring_tables.text([cell], CEILING, {})
    assert "no loss budget, it sends for itself" in shown


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # of torch, when it compiles
def test_flex_attention_compiled_on_the_cpu_is_attention_forward_only():
    q, k, v = drawn(n_kv_heads=1, seq_len=5, kv_seq_len=9, head_dim=16)
    torch.testing.assert_close(called("flex_attention", q, k, v), plain(q, k, v, SCALE, True))
    with pytest.raises(Unsupported, match="gradients on cpu: FlexAttention is forward only there"):
        called("flex_attention", q.requires_grad_(), k, v)


def test_flex_attention_without_a_compiler_is_unsupported(monkeypatch):
    monkeypatch.setattr(torch._inductor.config.cpp, "cxx", ("no-such-compiler",))
    flex_attention._refuse_without_compiler.cache_clear()
    with pytest.raises(Unsupported, match=r"needs a C\+\+ compiler on cpu, none is here"):
        called("flex_attention", *drawn())


@pytest.mark.parametrize("name", CORE)
def test_what_a_row_declares_leaves_it_some_cases(name):
    assert len(cases.cases(ROWS[name])) > 20
