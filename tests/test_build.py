"""The build of our kernels: compiled for real, for GPUs that are not here, and what is read off that."""

import shutil
from pathlib import Path

import pytest

from attn.kernels.flash import candidates, configs
from attn.kernels.flash.configs import Config
from bench import build, build_peers, build_sass, build_tables, build_triton, closure
from bench.build_sass import Loop
from bench.files import read_json

SASS = """\
        .text.kernel:
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   STL [R1], R2 ;
.L_x_1:
        /*0020*/                   IADD3 R1, R1, 0x1, RZ ;
.L_x_2:
        /*0030*/                   LDGSTS.E.128 [R3], [R4.64] ;
        /*0040*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0050*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0060*/              @!P0 LDL R9, [R1] ;
        /*0070*/               @P1 BRA `(.L_x_2) ;
        /*0080*/                   FMUL R2, R2, R3 ;
        /*0090*/               @P2 BRA `(.L_x_1) ;
.L_x_3:
        /*00a0*/                   NANOSLEEP 0x20 ;
        /*00b0*/                   BRA `(.L_x_3) ;
        /*00c0*/               @P0 BRA `(.L_x_4) ;
.L_x_4:
        /*00d0*/                   EXIT ;
"""
ENTRY = {
    "key": "forward/sm_80/bfloat16/d64", "kernel": "forward", "arch": 80, "dtype": "bfloat16", "head_dim": 64,
    "config": "m128n64w8s3", "status": "compiled", "reason": None, "compile_s": 1.0, "registers": 173,
    "stack_bytes": 0, "shared_bytes": 49152, "resident_warps": 8, "loops": 2, "loop_instructions": 358,
    "loop_tensor": {"HMMA.16816.F32.BF16": 64}, "loop_async": 4, "loop_local": 0, "per_product": 5.59,
}  # fmt: skip


def test_a_main_loop_is_the_innermost_with_products():
    (loop,) = build_sass.loops(SASS)
    assert loop.opcodes == ("LDGSTS.E.128", "HMMA.16816.F32.BF16", "HMMA.16816.F32.BF16", "LDL", "BRA")
    assert (loop.tensor, loop.count("LDGSTS"), loop.count("LDL", "STL"), loop.per_product) == (2, 1, 1, 2.5)


def test_without_a_product_there_is_no_main_loop():
    assert build_sass.loops(SASS.replace("HMMA.16816.F32.BF16", "FADD")) == []


def test_a_wait_behind_the_end_of_a_kernel_is_no_loop():
    """As sm_90 and sm_100 have them: written after EXIT, entered from a loop, and back into it."""
    wait = ".L_x_9:\n        /*00e0*/                   SYNCS.PHASECHK.TRYWAIT P0, [R1] ;\n"
    back = "        /*00f0*/               @!P0 BRA `(.L_x_9) ;\n        /*0100*/                   BRA `(.L_x_2) ;\n"
    assert build_sass.loops(SASS + wait + back) == build_sass.loops(SASS)
    conditional = SASS.replace("STL [R1], R2", "@P0 EXIT").replace("FMUL R2, R2, R3", "NOP")
    assert [loop.tensor for loop in build_sass.loops(conditional)] == [2]


def test_of_loops_that_do_the_same_products_the_shortest_counts():
    longer = Loop(("HMMA.16816.F32.BF16",) * 2 + ("FSEL",) * 3)
    shorter, other = Loop(("HMMA.16816.F32.BF16",) * 2 + ("FADD",)), Loop(("HMMA.16816.F32.BF16",) * 3)
    assert build_sass._kinds([longer, shorter, other]) == [
        {"instructions": 3, "tensor": {"HMMA.16816.F32.BF16": 2}},
        {"instructions": 3, "tensor": {"HMMA.16816.F32.BF16": 3}},
    ]


def test_in_float32_products_are_many_fused_multiply_adds():
    of_loop = "        /*0040*/                   FFMA R4, R8, R12, R4 ;\n"
    softmax, product = (SASS.replace("HMMA.16816.F32.BF16", "FADD").replace(".L_x_2:\n", f".L_x_2:\n{of_loop * n}")
                        for n in (60, 128))  # fmt: skip
    assert build_sass.loops(softmax) == []
    (loop,) = build_sass.loops(product)
    assert loop.per_product == pytest.approx((128 + 5) / 128)
    assert Loop(()).per_product == 0


@pytest.mark.parametrize(
    ("arch", "registers", "shared", "warps", "resident"),
    [
        (80, 32, 128, 4, 64),
        (80, 173, 49152, 8, 8),
        (120, 32, 128, 4, 48),
        (90, 64, 100 << 10, 4, 8),
        (80, 255, 0, 8, 8),
    ],
)
def test_resident_warps_are_the_least_that_a_limit_allows(arch, registers, shared, warps, resident):
    assert build_sass.resident_warps(arch, registers, shared, warps) == resident


def test_multiply_adds_of_tensor_cores():
    assert build_sass.products({"HMMA.16816.F32.BF16": 64}, 8) == 2 * 128 * 64 * 64
    assert build_sass.products({"HGMMA.64x128x16.F32.BF16": 16}, 8) == 2 * 128 * 128 * 128
    assert build_sass.products({"UTCHMMA": 16}, 4) is None


@pytest.mark.parametrize(
    ("change", "verdict"),
    [
        ({}, "passed"),
        ({"status": "failed", "reason": "no"}, "does not compile: no"),
        ({"shared_bytes": 200_000}, "200000 bytes of shared memory, sm_80 has 166912"),
        ({"loop_local": 3}, "3 accesses to local memory in a main loop"),
        ({"loops": 0}, "no loop with products found"),
        ({"loop_tensor": {}}, "no tensor-core instruction in the main loop"),
        ({"loop_tensor": {"HMMA.16816.F32.BF16": 32}}, "tensor cores do 524288 multiply-adds of 1048576"),
        ({"arch": 90}, "HMMA in the main loop, HGMMA is due from 64 rows on"),
        ({"arch": 100}, "HMMA in the main loop, UTCHMMA is due from 64 rows on"),
        ({"arch": 100, "loop_tensor": {"UTCHMMA": 16}}, "passed"),
        ({"arch": 90, "config": "m32n64w4s1"}, "passed"),
        ({"dtype": "float32", "loop_tensor": {}}, "passed"),
        ({"kernel": "delta", "loops": 0}, "passed"),
        ({"kernel": "delta", "loops": 0, "stack_bytes": 8}, "8 bytes of local memory"),
    ],
)
def test_what_can_be_chosen(change, verdict):
    assert build.verdict(ENTRY | change) == verdict


def test_every_key_has_candidates_whose_names_are_configurations_and_all_are_at_most_600():
    every = [(kernel, *one) for kernel in candidates.KERNELS for one in candidates.all_candidates(kernel)]
    assert len(every) == len(set(every)) <= 600
    assert len(every) + len(list(build_peers.all_jobs())) <= 640
    assert all(configs.MOST_ROWS % Config.parse(one[4]).block_m == 0 for one in every)
    keys = {one[:4] for one in every}
    kinds = [4 - (kernel in candidates.WITHOUT_PRODUCT) for kernel in candidates.KERNELS]  # tf32 is of products
    assert len(keys) == sum(kinds) * len(configs.ARCHITECTURES) * len(configs.HEAD_DIMS)
    assert all(Config.parse(one[4]).name == one[4] for one in every)


@pytest.mark.parametrize("arch", [90, 100])
def test_where_descriptors_are_chosen_first_pointers_can_be_chosen_after_them(arch):
    for kernel in ("forward", "dkdv", "dq"):
        for head_dim in configs.HEAD_DIMS:
            first, second, *_ = map(Config.parse, candidates.candidates(kernel, arch, "bfloat16", head_dim))
            assert (first.tma, second.tma) == (True, False)


@pytest.fixture
def few(monkeypatch):
    """Two configurations of one kernel, and one compiler."""
    chosen = [(80, "bfloat16", 32, "m32n32w4s1"), (90, "float32", 32, "m32n32w4s1")]
    monkeypatch.setattr(candidates, "all_candidates", lambda _: chosen)
    monkeypatch.setattr(build.machine, "cpu_count", lambda: 1)


def test_a_build_compiles_once_and_after_a_change_again(few, tmp_path, monkeypatch):
    found = build.build("delta", tmp_path)
    assert [(one["status"], one["key"]) for one in found] == [
        ("compiled", "delta/sm_80/bfloat16/d32"),
        ("compiled", "delta/sm_90/float32/d32"),
    ]
    assert all(one["registers"] > 0 and not one["stack_bytes"] for one in found)
    files = sorted(path.name for path in (tmp_path / "delta").iterdir())
    assert [Path(name).suffix for name in files] == [".cubin", ".json"] * 2
    (tmp_path / "delta" / "left-from-before.json").write_text("{}", encoding="utf-8")
    assert build.build("delta", tmp_path) == []
    assert sorted(path.name for path in (tmp_path / "delta").iterdir()) == files
    (tmp_path / "delta" / files[0]).unlink()
    assert [one["key"] for one in build.build("delta", tmp_path)] == ["delta/sm_80/bfloat16/d32"]
    monkeypatch.setattr(closure, "fingerprint", lambda *_: "other code")
    assert len(build.build("delta", tmp_path)) == 2


def test_code_of_another_kernel_and_words_change_nothing(tmp_path, monkeypatch):
    """What a configuration is kept by."""
    root = tmp_path / "tree"
    for name in ("attn", "bench"):
        shutil.copytree(closure.ROOT / name, root / name)
    flash = root.resolve() / "attn" / "kernels" / "flash"

    def code(kernel):
        closure._imports.cache_clear()
        closure._digest.cache_clear()
        return closure.fingerprint(
            flash / f"{kernel}.py", root.resolve() / "bench/build_compile.py", root=root.resolve()
        )

    before = {kernel: code(kernel) for kernel in candidates.KERNELS}
    for old, new, changed in (
        ("    3. blocks", "    3. Blocks", set()),
        ("l = l * shrink + tl.sum(weights, 1)", "l = tl.sum(weights, 1) + l * shrink", {"forward", "decode"}),
    ):
        text = (flash / "forward.py").read_text(encoding="utf-8")
        assert text.count(old) == 1
        (flash / "forward.py").write_text(text.replace(old, new), encoding="utf-8")
        assert {kernel for kernel in candidates.KERNELS if code(kernel) != before[kernel]} == changed


def test_what_does_not_compile_is_a_line_of_the_table_and_the_rest_goes_on(few, tmp_path, monkeypatch):
    chosen = [(80, "bfloat16", 32, "m24n32w4s1"), (80, "float32", 32, "m32n32w4s1")]
    monkeypatch.setattr(candidates, "all_candidates", lambda _: chosen)
    monkeypatch.setattr(candidates, "KERNELS", ("delta",))
    monkeypatch.setattr(build_peers, "all_jobs", lambda: [])
    bad, good = build.build("delta", tmp_path)
    assert (bad["status"], good["status"]) == ("failed", "compiled")
    assert "power of 2" in bad["reason"]
    assert build.build("delta", tmp_path) == []
    found = build.report(tmp_path)["configurations"]
    assert found[0]["verdict"] == f"does not compile: {bad['reason']}"
    assert "1 of 2 cannot be chosen:\ndelta/sm_80/bfloat16/d32 m24n32w4s1: does not compile" in build_tables.table(
        found
    )


def test_a_compiler_that_dies_is_a_failure_of_its_job_only(few, tmp_path, monkeypatch):
    program = (
        "import os, sys; line = sys.stdin.readline(); print('LLVM ERROR', file=sys.stderr, flush=True); os.abort()"
    )
    monkeypatch.setattr(build, "_COMPILER", (build.sys.executable, "-c", program))
    found = build.build("delta", tmp_path)
    assert [one["status"] for one in found] == ["lost", "lost"]
    assert all(one["reason"] == "the compiler ended with exit code -6: LLVM ERROR" for one in found)
    assert all(read_json(path)["status"] == "lost" for path in (tmp_path / "delta").glob("*.json"))
    assert len(build.build("delta", tmp_path)) == 2  # tried again
    (figures,) = (tmp_path / "delta").glob("*bfloat16*.json")
    for words in ("{}", "[]"):  # of a stranger
        figures.write_text(words)
        assert len(build.build("delta", tmp_path)) == 2
    entry = found[0] | {"verdict": build.verdict(found[0])}
    assert entry["verdict"] == "was lost: the compiler ended with exit code -6: LLVM ERROR"
    assert "what was lost is tried again by `dvc repro -f build/dvc.yaml`" in build_tables.faults([entry])


def test_a_compiler_leaves_nothing_in_the_folder_for_temporary_files(few, tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(build.tempfile, "tempdir", None)
    build.build("delta", tmp_path / "built")
    assert [path.name for path in tmp_path.iterdir()] == ["built"]


def test_a_compiler_that_does_not_end_is_killed(few, tmp_path, monkeypatch):
    program = "import sys, time; sys.stdin.readline(); time.sleep(600)"
    monkeypatch.setattr(build, "_COMPILER", (build.sys.executable, "-c", program))
    monkeypatch.setattr(build, "_DEADLINE_S", 0.2)
    found = build.build("delta", tmp_path)
    assert all(one["reason"].startswith("the compiler did not end within 0.2 s") for one in found)


def peer(kernel, **more):
    """An entry of others' kernels at the tile of ENTRY."""
    return ENTRY | {"key": f"{kernel}/sm_80/bfloat16/d64", "kernel": kernel, "mask": "full"} | more


def kind(instructions, **tensor):
    return {"instructions": instructions, "tensor": {name.replace("_", "."): n for name, n in tensor.items()}}


def test_ours_beside_theirs_by_the_loop_that_does_the_same(monkeypatch):
    monkeypatch.setattr(build_peers, "_tile", lambda *_: ENTRY["config"])
    dq, dkdv = kind(330, HMMA_16816=96), kind(424, HMMA_16816=128)
    ours = [
        ENTRY | {"loop_kinds": [kind(358, HMMA_16816=64)], "loop_tensor": {"HMMA.16816": 64}},
        ENTRY | {"kernel": "dq", "loop_kinds": [dq], "loop_tensor": dq["tensor"]},
        ENTRY | {"kernel": "dkdv", "loop_kinds": [dkdv], "loop_tensor": dkdv["tensor"]},
    ]
    theirs = [
        peer("flex_forward", loop_kinds=[kind(357, HMMA_16816=64)]),
        peer("flex_backward", loop_kinds=[kind(530, HMMA_16816=128), kind(330, HMMA_16816=96)]),
        peer("triton_backward", loop_kinds=[kind(742, HMMA_16816=160)]),
        peer("triton_forward", status="lost", reason="not to be had"),
    ]
    rows = build_peers.comparison(ours, theirs)
    assert [(row["peer"], row["part"], row.get("ours"), row.get("theirs"), row["verdict"]) for row in rows] == [
        ("flex", "forward", 5.59, 5.58, "more"),
        ("flex", "dq", 3.44, 3.44, "no more"),
        ("flex", "dkdv", 3.31, 4.14, "no more"),
        ("triton", "backward", 3.37, 4.64, "no more"),
        ("triton", "forward", None, None,
         "not compared, triton_forward/sm_80/bfloat16/d64 m128n64w8s3: not to be had"),
    ]  # fmt: skip
    shown = build_tables.comparison(rows)
    assert "Ours needs no more in 3 of 4 loops; 1 could not be compared.\nnot compared, triton_forward/sm_80" in shown


def test_where_tensor_cores_do_steps_of_other_sizes_multiply_adds_count():
    small, large = {"HGMMA.64x32x16": 32, "HGMMA.64x64x16": 4}, {"HGMMA.64x64x16": 20}
    where = {"arch": 90, "config": "m64n64w8s2", "head_dim": 128}
    ours = [
        ENTRY | where | {"kernel": "dq", "loop_kinds": [{"instructions": 300, "tensor": small}], "loop_tensor": small}
    ]
    theirs = [peer("flex_backward", **where, loop_kinds=[{"instructions": 299, "tensor": large}])]
    found = build_peers._compared("dq", ours, theirs[0])
    due = 3 * 64 * 64 * 128 / 2048 / 8
    assert found["unit"] == "2048 multiply-adds of a warp"
    assert (found["ours"], found["theirs"], found["verdict"]) == (round(300 / due, 2), round(299 / due, 2), "more")


@pytest.fixture
def a_peer(monkeypatch):
    """One configuration of each of others' kernels, and one compiler."""
    few = [job for job in build_peers.all_jobs() if (job["arch"], job["head_dim"], job["mask"]) == (80, 64, "causal")]
    monkeypatch.setattr(build_peers, "all_jobs", lambda: [dict(job) for job in few])
    monkeypatch.setattr(build.machine, "cpu_count", lambda: 1)


def test_what_cannot_be_downloaded_is_said_and_the_rest_is_compiled(a_peer, tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "flash_attention.py").write_text(
        "def _fwd_kernel(): ...\n", encoding="utf-8"
    )  # not that file
    found = {one["kernel"]: one for one in build.build(build_peers.PEERS, tmp_path)}
    for kernel in ("triton_forward", "triton_backward"):
        assert found[kernel]["status"] == "lost"
        assert found[kernel]["reason"].startswith("triton==2.1.0 could not be downloaded: ")
    assert [len(found[kernel]["loop_kinds"]) for kernel in ("flex_forward", "flex_backward")] == [1, 2]
    assert [kind["tensor"] for kind in found["flex_forward"]["loop_kinds"]] == [{"HMMA.16816.F32.BF16": 64}]
    again = build.build(build_peers.PEERS, tmp_path)
    assert sorted(one["kernel"] for one in again) == ["triton_backward", "triton_forward"]  # tried again


@pytest.mark.slow  # 89 MB are downloaded
def test_tritons_own_kernel_is_fetched_and_compiled(a_peer, tmp_path):
    found = {one["kernel"]: one for one in build.build(build_peers.PEERS, tmp_path)}
    assert {kernel: one["status"] for kernel, one in found.items()} == dict.fromkeys(build_peers.KERNELS, "compiled")
    assert sum(found["triton_backward"]["loop_tensor"].values()) == 160  # five products of 64 x 64 x 64
    kept = tmp_path / "peers" / "flash_attention.py"
    assert build_triton.fetch(kept) is None
    assert build.build(build_peers.PEERS, tmp_path) == []
    assert kept.exists()


def test_no_kernel_of_that_name(tmp_path):
    with pytest.raises(ValueError, match=r"no kernel backward, allowed: forward, dkdv.*, peers"):
        build.build("backward", tmp_path)


def test_the_gate_names_what_has_nothing_to_choose_and_a_list_that_is_old(tmp_path, monkeypatch):
    monkeypatch.setattr(configs, "PASSED", tmp_path / "passed.json")
    configs.passed.cache_clear()
    right = {**ENTRY, "verdict": "passed"}
    spilling = {**ENTRY, "config": "m64n64w4s3", "verdict": "3 accesses to local memory in a main loop"}
    build_tables.keep([right, spilling])
    assert configs.passed() == {ENTRY["key"]: ["m128n64w8s3"]}
    assert build_tables.faults([right, spilling]) == []
    assert build_tables.faults([spilling]) == [
        f"{ENTRY['key']}: no configuration passed",
        "passed.json is not what the build found: `python -m bench build --keep`",
    ]
    broken = {**ENTRY, "kernel": "delta", "key": "delta/sm_80/bfloat16/d64", "verdict": "8 bytes of local memory"}
    assert build_tables.faults([right, broken]) == [f"{broken['key']} {ENTRY['config']}: 8 bytes of local memory"]
    configs.passed.cache_clear()


def test_the_list_that_kernels_choose_from_names_candidates():
    for key, names in configs.passed().items():
        kernel, arch, dtype, head_dim = key.split("/")
        known = candidates.candidates(kernel, int(arch.removeprefix("sm_")), dtype, int(head_dim.removeprefix("d")))
        assert names == [name for name in known if name in names]
        assert names, f"{key}: nothing to choose"
