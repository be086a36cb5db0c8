"""Finds implementations: every file of impl/ whose name has no leading underscore.

What a file can do is read from its syntax tree, so that a list costs no import, and a file that
cannot even be parsed is still listed, with the reason.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from attn.contract import DEVICES, DTYPES, KINDS, LAYOUTS, MASKS, PRECISIONS, Precision, Unsupported, Workload

IMPL_DIR = Path(__file__).parent / "impl"

_ALLOWED: dict[str, tuple[str, ...]] = {
    "KIND": KINDS,
    "DEVICES": DEVICES,
    "DTYPES": DTYPES,
    "MASKS": MASKS,
    "LAYOUT": LAYOUTS,
    "PRECISION": PRECISIONS,
}
_REQUIRED = ("KIND", "DEVICES", "DTYPES", "MASKS", "BACKWARD")
_OPTIONAL: dict[str, Any] = {"CROSS_LENGTH": False, "LAYOUT": "contiguous", "DETERMINISTIC": True, "PRECISION": "dtype"}


@dataclass(frozen=True)
class Implementation:
    """What a file says of itself. With a `fault` (one line), the rest is empty and it cannot run."""

    name: str
    path: Path
    summary: str = ""
    kind: str = ""
    devices: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    masks: tuple[str, ...] = ()
    backward: bool = False
    cross_length: bool = False
    layout: str = "contiguous"
    deterministic: bool = True
    precision: Precision = "dtype"
    fault: str | None = None

    def why_not(self, workload: Workload, device: str) -> str | None:
        """Why this workload cannot run, in one line; None where nothing declared speaks against it."""
        if self.fault:
            return self.fault
        asked = {"device": device, "dtype": workload.dtype, "mask": workload.mask}
        offered = {"device": self.devices, "dtype": self.dtypes, "mask": self.masks}
        for what, value in asked.items():
            if value not in offered[what]:
                return f"{what} {value} is not among {', '.join(offered[what])}"
        if workload.backward and not self.backward:
            return "forward only, no gradients"
        if workload.kv_seq_len != workload.seq_len and not self.cross_length:
            return f"q and k of different length ({workload.seq_len} and {workload.kv_seq_len})"
        return None


def find(folder: Path = IMPL_DIR) -> dict[str, Implementation]:
    """All implementations of a folder by name, sorted; broken ones included, with their fault."""
    paths = sorted(path for path in folder.glob("*.py") if path.name[0] not in "_.")
    return {path.stem: read(path) for path in paths}


def read(path: Path) -> Implementation:
    """Read one file's declarations without importing it."""
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"), filename=str(path))
        constants = _constants(tree)
    except (SyntaxError, ValueError, TypeError, OSError) as error:
        return Implementation(path.stem, path, fault=f"broken file {path.name}: {_one_line(error)}")
    return Implementation(
        name=path.stem,
        path=path,
        summary=(ast.get_docstring(tree) or "").split("\n")[0],
        kind=constants["KIND"],
        devices=constants["DEVICES"],
        dtypes=constants["DTYPES"],
        masks=constants["MASKS"],
        backward=constants["BACKWARD"],
        cross_length=constants["CROSS_LENGTH"],
        layout=constants["LAYOUT"],
        deterministic=constants["DETERMINISTIC"],
        precision=constants["PRECISION"],
    )


def load(implementation: Implementation) -> ModuleType:
    """Import an implementation.

    Raises:
        Unsupported: the file is broken, or a third-party package that it imports is not installed.
    """
    if implementation.fault:
        raise Unsupported(implementation.fault)
    with third_party():
        if implementation.path.parent == IMPL_DIR:
            return importlib.import_module(f"attn.impl.{implementation.name}")
        return _load_from(implementation.path)


@contextmanager
def third_party() -> Iterator[None]:
    """A third-party package that is missing is Unsupported, in a file's head and in its functions alike."""
    try:
        yield
    except ModuleNotFoundError as error:
        missing = (error.name or "").split(".")[0]
        if missing in ("", "attn", "bench", "stages"):
            raise
        raise Unsupported(f"needs the package {missing}, which is not installed") from error


def entry_point(implementation: Implementation, module: ModuleType) -> Callable[..., Any]:
    """`Attention` of a module, `attention` of any other kind.

    Raises:
        Unsupported: the file does not define it.
    """
    name = "Attention" if implementation.kind == "module" else "attention"
    found = getattr(module, name, None)
    if not callable(found):
        raise Unsupported(f"broken file {implementation.path.name}: KIND {implementation.kind} needs {name}")
    return found  # type: ignore[no-any-return]  # what a file defines is known only once it runs


def _load_from(path: Path) -> ModuleType:
    name = f"attn_outside_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise Unsupported(f"broken file {path.name}: not a Python source file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _constants(tree: ast.Module) -> dict[str, Any]:
    found = dict(_OPTIONAL)
    for node in tree.body:
        pairs: list[tuple[str, ast.expr]] = []
        if isinstance(node, ast.Assign):
            pairs = [pair for target in node.targets for pair in _pairs(target, node.value)]
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            pairs = _pairs(node.target, node.value)
        found |= {name: _literal(name, value) for name, value in pairs if name in _REQUIRED or name in _OPTIONAL}
    missing = [name for name in _REQUIRED if name not in found]
    if missing:
        raise ValueError(f"{', '.join(missing)} missing at the top of the file")
    if found["PRECISION"] == "tf32" and found["DTYPES"] != ("float32",):
        raise ValueError(f"PRECISION = 'tf32' with DTYPES = {found['DTYPES']!r}, allowed: ('float32',)")
    return found


def _pairs(target: ast.expr, value: ast.expr) -> list[tuple[str, ast.expr]]:
    if isinstance(target, ast.Name):
        return [(target.id, value)]
    if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
        return [pair for one, other in zip(target.elts, value.elts, strict=False) for pair in _pairs(one, other)]
    return []


def _literal(name: str, node: ast.expr) -> Any:
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError):
        raise ValueError(f"{name} is not a literal") from None
    if name in ("BACKWARD", "CROSS_LENGTH", "DETERMINISTIC"):
        if not isinstance(value, bool):
            raise ValueError(f"{name} = {value!r}, allowed: True, False")
        return value
    single = name in ("KIND", "LAYOUT", "PRECISION")
    values = (value,) if single else value
    allowed = _ALLOWED[name]
    if not isinstance(values, tuple) or not values or any(item not in allowed for item in values):
        raise ValueError(f"{name} = {value!r}, allowed: {'one' if single else 'a tuple'} of {', '.join(allowed)}")
    return value


def _one_line(error: Exception) -> str:
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {error.msg}" if error.lineno else error.msg
    return str(error).split("\n")[0]
