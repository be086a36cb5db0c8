"""Tiles that the build tries, for each kernel, architecture, dtype and head_dim: the first that passes is chosen first.

On sm_90 and sm_100 one that reads by tensor descriptors comes first, and one that reads by pointers after it, for
tensors that do not lie as descriptors need them. Imports no triton.
"""

from __future__ import annotations

from attn.kernels.flash.configs import ARCHITECTURES, HEAD_DIMS, PRECISIONS, ROWS

KERNELS = ("forward", "dkdv", "dq", "decode", "delta", "reduce", "merge")
WITHOUT_PRODUCT = ("delta", "reduce", "merge")
DTYPES = ("float32", "bfloat16", "float16")  # of the kernels without a product

_FLOAT32 = {  # fused multiply-adds: tiles that fit into registers
    "forward": {32: "m32n32w4s1", 64: "m32n32w4s1", 128: "m32n32w8s1", 256: "m16n16w8s1"},
    "dkdv": {32: "m32n32w4s1", 64: "m32n16w4s1", 128: "m16n16w4s1", 256: "m16n16w8s1"},
    "dq": {32: "m32n32w4s1", 64: "m32n16w4s1", 128: "m16n16w4s1", 256: "m16n16w4s1"},
    "decode": dict.fromkeys(HEAD_DIMS, "m16n16w4s1"),
}
_DECODE = {32: "m16n128w4s3", 64: "m16n64w4s3", 128: "m16n64w4s2", 256: "m16n32w4s2"}
_WITH_DESCRIPTORS = {
    "forward": {32: "m128n64w4s3", 64: "m128n128w8s3", 128: "m128n128w8s2", 256: "m128n64w8s2"},
    "dkdv": {32: "m64n64w4s2", 64: "m64n64w4s2", 128: "m64n64w8s2", 256: "m32n64w8s1"},
    "dq": {32: "m64n64w4s2", 64: "m128n64w8s2", 128: "m128n64w8s2", 256: "m64n32w8s1"},
}
_WITH_POINTERS = {
    "forward": {32: "m128n64w8s3", 64: "m128n64w8s3", 128: "m128n32w8s2", 256: "m64n32w8s1"},
    "dkdv": {32: "m32n64w4s2", 64: "m64n64w4s2", 128: "m64n64w8s2", 256: "m16n32w8s1"},
    "dq": {32: "m64n64w4s2", 64: "m64n64w4s2", 128: "m64n64w8s2", 256: "m32n32w4s1"},
}
_TF32 = {  # float32 in shared memory: a tile of half as many keys as in 16 bits, or fewer; by pointers
    "forward": {32: "m64n32w4s2", 64: "m64n32w4s2", 128: "m64n32w4s1", 256: "m32n16w4s1"},
    "dkdv": {32: "m32n32w4s1", 64: "m32n32w4s1", 128: "m16n32w4s1", 256: "m16n16w4s1"},
    "dq": {32: "m32n32w4s1", 64: "m32n32w4s1", 128: "m32n16w4s1", 256: "m16n16w4s1"},
    "decode": {32: "m16n64w4s2", 64: "m16n64w4s2", 128: "m16n32w4s2", 256: "m16n16w4s1"},
}
_DESCRIPTORS = (90, 100)  # architectures
_SPECIALIZED = {64: "m128n128w8s3-tma-ws", 128: "m128n128w8s2-tma-ws"}  # forward on sm_100; triton 3.7 cannot on sm_90
_INSTEAD = {("forward", 100, 128): "m128n64w8s2"}  # of _WITH_POINTERS
_AFTER = {  # of sm_80 and sm_120, chosen where the one before does not pass
    "forward": {32: "m64n64w4s3", 64: "m64n64w4s3", 128: "m64n32w4s2", 256: "m64n16w4s1"},
    "dkdv": {32: "m32n32w4s2", 64: "m32n64w4s2", 128: "m32n64w8s1", 256: "m16n16w4s1"},
    "dq": {32: "m32n32w4s2", 64: "m64n32w4s2", 128: "m64n32w4s2", 256: "m16n16w4s1"},
}


def of_comparison(arch: int, head_dim: int) -> str:
    """The tile of a backward (64 or 128) beside others', who have one for dq, dk and dv, of as many queries as keys."""
    return f"m64n64w{head_dim // 16}s2" + ("-tma" if arch in _DESCRIPTORS else "")


def candidates(kernel: str, arch: int, dtype: str, head_dim: int) -> list[str]:
    """Names of configurations, of a padded head_dim."""
    if kernel in WITHOUT_PRODUCT:
        return [f"m{ROWS}n{ROWS}w4s1"]
    if dtype == "float32":
        return [_FLOAT32[kernel][head_dim]]
    if dtype == "tf32":
        return [_TF32[kernel][head_dim]]
    if kernel == "decode":
        return [_DECODE[head_dim]]
    if arch in _DESCRIPTORS:
        by_pointers = _INSTEAD.get((kernel, arch, head_dim), _WITH_POINTERS[kernel][head_dim])
        found = [f"{_WITH_DESCRIPTORS[kernel][head_dim]}-tma", by_pointers]
    else:
        found = [_WITH_POINTERS[kernel][head_dim], _AFTER[kernel][head_dim]]
    if kernel == "forward" and arch == 100 and head_dim in _SPECIALIZED:
        found.append(_SPECIALIZED[head_dim])
    elif kernel != "forward" and dtype == "bfloat16" and head_dim in (64, 128):
        found.append(of_comparison(arch, head_dim))
    return list(dict.fromkeys(found))


def all_candidates(kernel: str) -> list[tuple[int, str, int, str]]:
    """(architecture, dtype, head_dim, configuration) of all that the build compiles of a kernel."""
    return [
        (arch, dtype, head_dim, config)
        for arch in ARCHITECTURES
        for dtype in (DTYPES if kernel in WITHOUT_PRODUCT else PRECISIONS)
        for head_dim in HEAD_DIMS
        for config in candidates(kernel, arch, dtype, head_dim)
    ]
