"""FlexAttention's Triton kernels, as the installed torch has them: its own templates, rendered for plain attention.

Nothing of torch is imported or copied: the templates are read from where torch lies, and what torch's compiler would
write between the braces stands below, for static shapes and lengths that are whole blocks (the cheapest that there is).
Source: torch/_inductor/kernel/flex/templates, BSD-3-Clause.
"""

from __future__ import annotations

import importlib.util
import tempfile
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attn.kernels.flash.configs import Config

_BATCH, _HEADS, _SEQ_LEN = 4, 16, 4096
_SPARSE = {"full": 1 << 30, "causal": 128}  # keys and queries of a block of its mask; 2 ** 30: there is no mask
_INDEX = {"KV_NUM_BLKS", "KV_IDX", "Q_NUM_BLKS", "Q_IDX"}
_FLOAT32 = {"LSE", "MAX", "DELTA"}
_OUT = "OUT"
_DIVISIBLE = [["tt.divisibility", 16]]
Parts = tuple[Any, dict[str, str], dict[str, Any], dict[Any, Any]]


def parts(job: dict[str, Any], element: str) -> Parts:
    """The kernel of a job (`flex_forward` or `flex_backward`), types, constants and divisibilities of its arguments.

    A backward has a loop for dk and dv and one for dq, here both in the tile of the job.
    """
    from bench.build_compile import load

    text, types = rendered(job, element)
    with tempfile.TemporaryDirectory(prefix="attn-bench-") as folder:
        path = Path(folder) / "kernel.py"
        path.write_text(text, encoding="utf-8")
        function = load(path, job["kernel"]).kernel  # triton reads the text of a function when it is decorated
    return function, types, {}, dict.fromkeys(((i,) for i in range(len(types))), _DIVISIBLE)


def rendered(job: dict[str, Any], element: str) -> tuple[str, dict[str, str]]:
    """The text of a module with `kernel`, and the types of its arguments; `element` is triton's name of the dtype."""
    # jinja2 comes with torch, which needs it for the same
    import jinja2

    names: list[str] = []
    constants = _constants(job)
    options = {"USE_TMA": constants["USE_TMA"], "HAS_FULL_BLOCKS": constants["HAS_FULL_BLOCKS"]}
    environment = jinja2.Environment(undefined=jinja2.StrictUndefined, autoescape=False)  # noqa: S701  # no HTML
    environment.filters["indent_except_first"] = lambda text, n: textwrap.indent(text, " " * 4 * n).lstrip()
    defines = "\n".join(f"{name}: tl.constexpr = {value}" for name, value in constants.items())
    text = environment.from_string(_template(job["kernel"])).render(
        **options,
        **_shapes(job),
        def_kernel=lambda *given: _head(names, given, defines),
        gen_argdefs=lambda: ", ".join(f"arg_{name}" for name in names),
        gen_defines=lambda: defines,
        modification=_modification(job["mask"]),
        store_output=_store_output(job),
    )
    types = {f"arg_{name}": f"*{_type(name, element)}" for name in names}
    return text, types


def _template(kernel: str) -> str:
    found = importlib.util.find_spec("torch")
    assert found is not None
    assert found.submodule_search_locations
    folder = Path(found.submodule_search_locations[0]) / "_inductor" / "kernel" / "flex" / "templates"
    own = {"flex_forward": "flex_attention", "flex_backward": "flex_backwards"}[kernel]
    names = (own, "utilities", "common") if kernel == "flex_forward" else (own, "utilities")
    return "\n".join((folder / f"{name}.py.jinja").read_text(encoding="utf-8") for name in names)


def _constants(job: dict[str, Any]) -> dict[str, Any]:
    """What torch sets by itself for these shapes; the tile is the job's."""
    config, head_dim = Config.parse(job["config"]), job["head_dim"]
    tile = {"BLOCK_M": config.block_m, "BLOCK_N": config.block_n}
    if job["kernel"] == "flex_backward":
        tile = {name + str(i): size for i in (1, 2) for name, size in tile.items()}
    heads = {f"{x}_HEAD_DIM{rounded}": head_dim for x in ("QK", "V") for rounded in ("", "_ROUNDED")}
    sparse = {f"SPARSE_{x}_BLOCK_SIZE": _SPARSE[job["mask"]] for x in ("Q", "KV")}
    without = ("PRESCALE_QK", "ROWS_GUARANTEED_SAFE", "BLOCKS_ARE_CONTIGUOUS", "OUTPUT_MAX")
    has = ("IS_DIVISIBLE", "SAFE_HEAD_DIM", "OUTPUT_LOGSUMEXP", "WRITE_DQ")
    return {
        "INDEX_DTYPE": "tl.int32",
        "FLOAT32_PRECISION": "'ieee'",
        "SM_SCALE": head_dim**-0.5,
        "GQA_SHARED_HEADS": 1,
        "HAS_FULL_BLOCKS": job["mask"] == "causal",
        "USE_TMA": config.tma,
        **tile,
        **heads,
        **sparse,
        **dict.fromkeys(without, False),
        **dict.fromkeys(has, True),
    }


def _shapes(job: dict[str, Any]) -> dict[str, Callable[..., str]]:
    """`size` and `stride` of what a template asks for, dense."""
    blocks = -(-_SEQ_LEN // _SPARSE[job["mask"]])

    def shape(name: str) -> tuple[int, ...]:
        of_mask = {"NUM_BLKS": (1, 1, blocks), "IDX": (1, 1, blocks, blocks)}
        found = next((size for end, size in of_mask.items() if name.endswith(end)), None)
        return found or (_BATCH, _HEADS, _SEQ_LEN, job["head_dim"])

    def strides(name: str) -> list[int]:
        found = [1]
        for size in shape(name)[:0:-1]:
            found.insert(0, found[0] * size)
        return found

    def stride(name: str, i: int | None = None) -> str:
        return ", ".join(map(str, strides(name))) if i is None else str(strides(name)[i])

    return {"size": lambda name, i: str(shape(name)[i]), "stride": stride}


def _head(names: list[str], given: tuple[str, ...], defines: str) -> str:
    names += [*given, _OUT]
    lines = ["import triton", "import triton.language as tl", "", "", "@triton.jit"]
    lines.append(f"def kernel({', '.join(f'arg_{name}' for name in names)}):")
    lines += [textwrap.indent(defines, " " * 4), *(f"    {name} = arg_{name}" for name in names)]
    return "\n".join(lines)


def _modification(mask: str) -> Callable[..., str]:
    """Scores and their gradients as they are, and the mask: what follows from plain attention."""
    seen = {"full": "tl.full([1, 1], True, tl.int1)", "causal": "({m}) >= ({n})"}[mask]

    def modification(*, output_name: str | None, **given: Any) -> str:
        if output_name is None:  # gradients of what a score depends on: nothing here
            return ""
        same = {"post_mod_scores": given.get("score"), "grad_scores": given.get("grad_score_mod")}
        return f"{output_name} = {same.get(output_name) or seen.format(**given)}"

    return modification


def _store_output(job: dict[str, Any]) -> Callable[..., str]:
    strides = _shapes(job)["stride"](_OUT).split(", ")

    def store_output(indices: tuple[str, ...], value: str, mask: str, **_: Any) -> str:
        at = " + ".join(f"{index} * {stride}" for index, stride in zip(indices, strides, strict=True))
        return f"tl.store({_OUT} + {at}, {value}, mask={mask})"

    return store_output


def _type(name: str, element: str) -> str:
    if name.removeprefix("FULL_") in _INDEX:
        return "i32"
    return "fp32" if name in _FLOAT32 else element
