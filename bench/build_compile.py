"""Compiles one configuration of a kernel ahead of time, for a GPU that need not be here: triton needs no driver for it.

Run as a process of its own: a line of JSON in (a job of `bench.build`), a line of JSON out.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from attn.kernels.flash.configs import Config
from bench import build_sass, guard

_TYPES = {"float32": "fp32", "tf32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
_FLOATS = ("scale", "softmax_scale")
_FLOAT32 = ("lse", "lse_2", "delta", "part_out", "part_lse", "block_lse")
_BY_QUERIES, _BY_KEYS = ("q", "dout"), ("k", "v")  # what is read by descriptors, in tiles of block_m or block_n rows
_LAST_LINES = 3


def compile_(job: dict[str, Any]) -> dict[str, Any]:
    """Figures of a job's cubin, which is written to `cubin`; where it does not compile, why, in the last lines."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler.errors import CompilationError

    config = Config.parse(job["config"])
    source = ASTSource(*_source(job, config))
    options = {"num_warps": config.num_warps, "num_stages": config.num_stages}
    start = time.perf_counter()
    try:
        compiled = triton.compile(source, target=GPUTarget("cuda", job["arch"], 32), options=options)
    except (CompilationError, RuntimeError, ValueError, IndexError, triton.TritonError) as error:
        return {"status": "failed", "reason": _last_lines(error)}
    compile_s = time.perf_counter() - start
    cubin = Path(job["cubin"])
    cubin.write_bytes(compiled.asm["cubin"])
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    warps = compiled.metadata.num_warps  # those that only load included
    found = build_sass.figures(cubin, tools, job["arch"], warps, compiled.metadata.shared)
    return {"status": "compiled", "reason": None, "compile_s": round(compile_s, 2), **found}


def load(path: Path, name: str) -> Any:
    """A module from a file, as `name`."""
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _source(job: dict[str, Any], config: Config) -> tuple[Any, dict[str, str], dict[str, Any], Any]:
    """A kernel, and types, constants and divisibilities of its arguments."""
    element, (whose, _, _) = _TYPES[job["dtype"]], job["kernel"].partition("_")
    if whose in ("flex", "triton"):
        return importlib.import_module(f"bench.build_{whose}").parts(job, element)  # type: ignore[no-any-return]
    function = getattr(importlib.import_module(f"attn.kernels.flash.{job['kernel']}"), f"{job['kernel']}_kernel")
    return function, *_signature(function, job, config)


def _signature(function: Any, job: dict[str, Any], config: Config) -> tuple[dict[str, str], dict[str, Any], Any]:
    """Types, constants and divisibilities, as a call on dense tensors has them."""
    given = {"HEAD_DIM": job["head_dim"], "BLOCK_D": job["head_dim"], "BLOCK_M": config.block_m}
    given |= {
        "BLOCK_N": config.block_n,
        "PRECISION": "tf32" if job["dtype"] == "tf32" else "ieee",
        "TMA": config.tma,
        "SPECIALIZE": config.specialize,
    }
    types, constants, attributes = {}, {}, {}
    element = _TYPES[job["dtype"]]
    for i, parameter in enumerate(function.params):
        name = parameter.name
        if parameter.is_constexpr:
            types[name], constants[name] = "constexpr", given[name]
        elif name in _FLOATS:
            types[name] = "fp32"
        elif config.tma and name in (*_BY_QUERIES, *_BY_KEYS):
            rows = config.block_m if name in _BY_QUERIES else config.block_n
            types[name] = f"tensordesc<{element}[1,{rows},1,{job['head_dim']}]>"
        elif name in _pointers(job["kernel"]):
            types[name] = "*fp32" if name in _FLOAT32 or (job["kernel"], name) == ("merge", "out") else f"*{element}"
            attributes[i,] = [["tt.divisibility", 16]]
        else:
            types[name] = "i32"
            if re.fullmatch(r"\w+_[bsh]", name):  # strides of dense tensors
                attributes[i,] = [["tt.divisibility", 16]]
    return types, constants, attributes


def _pointers(kernel: str) -> tuple[str, ...]:
    tensors = ("q", "k", "v", "out", "dout", "dq", "dk", "dv", "lse", "lse_2", "delta", "part_out", "part_lse")
    return (*tensors, "block_out", "block_lse") if kernel == "merge" else tensors


def _last_lines(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return f"{type(error).__name__}: " + " | ".join(lines[-_LAST_LINES:])[:400]


def main() -> None:
    """Until there are no more jobs. Triton's own cache is left out of it: a compilation is one."""
    guard.die_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a compiler prints is no answer
    with tempfile.TemporaryDirectory(prefix="attn-bench-") as cache:
        os.environ["TRITON_CACHE_DIR"] = cache
        for line in sys.stdin:
            print(json.dumps(compile_(json.loads(line))), file=answers, flush=True)


if __name__ == "__main__":
    main()
