"""What is wrong with params.yaml, in words: one line a fault, with key, value and what is allowed."""

from __future__ import annotations

import copy
import difflib
import itertools
import math
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from attn import registry
from attn.contract import DTYPES, KINDS

if TYPE_CHECKING:
    from bench.grid import Params

MOST_CELLS = 1000
TABLES = ("spread", "overhead")  # of all grids: `python -m bench table`

_ALLOWED = {
    "invalid_key": "keys that are words",
    "greater_than": "a whole number above 0",
    "greater_than_equal": "a whole number, 0 or more",
    "int_type": "a whole number",
    "bool_type": "true or false",
    "string_type": "a text",
    "too_short": "at least one entry",
    "string_pattern_mismatch": "letters, digits, _ and -",
    "list_type": "a list",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
}

_NAMES_OF_LAUNCH = {
    "hosts": "letters, digits, dots and -",
    "interface": 'the name of an interface, or "" to find it',
}


def in_words(error: Any, model: type[BaseModel]) -> str:
    """`grids.seed.n_heads[1] = -8, allowed: a whole number above 0`."""
    where = ""
    for part in error["loc"]:
        if isinstance(part, int):
            where += f"[{part}]"
        elif part != "[key]":
            where += f".{part}" if where else str(part)
    value = error["input"]
    kind = error["type"]
    if kind == "missing":
        return f"{where} is missing"
    if kind == "extra_forbidden":
        return f"{where}: unknown key, allowed: {', '.join(_siblings(model, error['loc']))}"
    if kind in ("string_pattern_mismatch", "string_too_long") and "exclude" in error["loc"][:-2]:
        return f"{where}: a reason, allowed: words of letters, digits, comma, colon, _ and -, 24 characters at most"
    return f"{where} = {value!r}, allowed: {_allowed(error, where)}"


def _allowed(error: Any, where: str) -> str:
    kind, context = error["type"], error.get("ctx", {})
    if kind == "less_than_equal":
        return f"at most {context['le']}"
    if _is_choice(error["loc"]) and kind in ("dict_type", "literal_error"):
        return "true; or no such line" if kind == "literal_error" else "a mapping, `NAME: true` each"
    if kind == "string_pattern_mismatch" and where.startswith("launch."):
        return _NAMES_OF_LAUNCH[error["loc"][1]]
    return str(_ALLOWED.get(kind) or context.get("expected", error["msg"]).replace("'", ""))


def _is_choice(loc: tuple[Any, ...]) -> bool:
    """Whether a location is one of the sets of names, or an entry of it."""
    return loc[0] == "families" or "rows" in loc[:-1] or loc[-1] == "rows"


def _siblings(model: Any, loc: tuple[Any, ...]) -> list[str]:
    """The keys that are allowed beside the last part of a location."""
    for part in loc[:-1]:
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            break
        field = model.model_fields.get(str(part))
        annotation: Any = field.annotation if field else model
        inner = [a for a in getattr(annotation, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
        model = inner[0] if inner else annotation
    fields = getattr(model, "model_fields", {})
    return [field.alias or name for name, field in fields.items()]


def disagreements(params: Params) -> list[str]:
    """How values that are right by themselves do not fit together, or with the files that they name."""
    known = registry.find()
    listed = params.implementations()
    rows_at_fault = any(".implementations." in fault for f in KINDS for fault in _family_faults(params, f, known))
    return [
        *_duplicates(params),
        *(fault for family in KINDS for fault in _family_faults(params, family, known)),
        *(
            f"families: {name} is listed in two families, allowed: one"
            for name in dict.fromkeys(n for n in listed if listed.count(n) > 1)
            if sum(name in params.family(f).implementations for f in KINDS) > 1
        ),
        *([] if rows_at_fault else _reference_faults(params)),
        *(f"grids.{name}: a table has that name, allowed: another" for name in params.grids if name in TABLES),
        *(fault for name in params.grids for fault in _grid_faults(params, name, known)),
        *_launch_faults(params),
        *(
            ["protocol.min_samples must be at most protocol.samples"]
            if params.protocol.min_samples > params.protocol.samples
            else []
        ),
    ]


def _duplicates(params: Params) -> list[str]:
    lists: dict[str, list[Any]] = {}
    for name, grid in params.grids.items():
        for key, values in grid.model_dump(by_alias=True).items():
            if isinstance(values, list):
                lists[f"grids.{name}.{key}"] = values
    lists["launch.hosts"] = params.launch.hosts
    return [
        f"{where} = {values}: {value} is given twice, allowed: once"
        for where, values in lists.items()
        for value in dict.fromkeys(v for v in values if values.count(v) > 1)
    ]


def _family_faults(params: Params, family: str, known: dict[str, registry.Implementation]) -> list[str]:
    faults = []
    for name in params.family(family).implementations:
        where = f"families.{family}.implementations.{name}"
        if name not in known:
            faults.append(f"{where}: no file attn/impl/{name}.py{_hint(name, list(known))}")
        elif not known[name].fault and known[name].kind != family:
            faults.append(f"{where}: its KIND is {known[name].kind}, allowed: {family}")
    for name in params.family(family).grids:
        if name not in params.grids:
            faults.append(f"families.{family}.grids.{name}: no such grid{_hint(name, list(params.grids))}")
    return faults


def _reference_faults(params: Params) -> list[str]:
    return [
        f"reference.{family} = {name}: must be one of families.{family}.implementations, allowed: "
        + ", ".join(params.family(family).implementations)
        for family, name in (("core", params.reference.core), ("module", params.reference.module))
        if name not in params.family(family).implementations
    ]


def _launch_faults(params: Params) -> list[str]:
    """A size of groups that no ring of any grid could be divided into."""
    size = params.launch.ulysses_size
    sizes = {n for name in params.families.ring.grids if name in params.grids for n in params.grids[name].world_size}
    if not size or not sizes or any(n % size == 0 for n in sizes):
        return []
    allowed = sorted({d for n in sizes for d in range(1, n + 1) if n % d == 0})
    world = ", ".join(map(str, sorted(sizes)))
    return [
        f"launch.ulysses_size = {size}: divides no world_size ({world}), allowed: 0, {', '.join(map(str, allowed))}"
    ]


def _grid_faults(params: Params, name: str, known: dict[str, registry.Implementation]) -> list[str]:
    grid, faults = params.grids[name], []
    for heads, kv_heads in itertools.product(grid.n_heads, grid.n_kv_heads or []):
        if heads % kv_heads:
            faults.append(f"grids.{name}.n_kv_heads = {kv_heads}: n_heads {heads} is not a multiple of it")
    users = [
        known[row]
        for family in KINDS
        if name in params.family(family).grids
        for row in params.family(family).implementations
        if row in known and not known[row].fault
    ]
    if users:
        for dtype in grid.dtype:
            if not any(dtype in row.dtypes for row in users):
                offered = [d for d in DTYPES if any(d in row.dtypes for row in users)]
                faults.append(
                    f"grids.{name}.dtype = {dtype}: no row of this grid has it, allowed: {', '.join(offered)}"
                )
    others = [family for family in ("core", "module") if name in params.family(family).grids]
    if others and grid.world_size != [1]:
        faults.append(f"grids.{name}.world_size = {grid.world_size}: {others[0]} uses this grid too, allowed: [1]")
    for length in [t for s, t in itertools.product(grid.seq_len, grid.kv_seq_len or []) if s != t][:1]:
        if "module" in others or (users and not any(row.cross_length for row in users)):
            whose = "a module has one length" if "module" in others else "no row of this grid takes two lengths"
            faults.append(f"grids.{name}.kv_seq_len = {length}: {whose}, allowed: as seq_len")
    return faults or _cell_faults(params, name)


def _cell_faults(params: Params, name: str) -> list[str]:
    grid = params.grids[name]
    axes = (
        grid.batch,
        grid.seq_len,
        grid.kv_seq_len or [0],
        grid.n_heads,
        grid.n_kv_heads or [0],
        grid.head_dim,
        grid.dtype,
        grid.mask,
    )
    count = math.prod(len(axis) for axis in (*axes, grid.pass_, grid.world_size))
    if count > MOST_CELLS:
        return [f"grids.{name} has {count} cells, allowed: at most {MOST_CELLS}"]
    workloads = grid.workloads()
    device = params.device if params.device != "auto" else "cpu"
    rows = params.implementations()
    if all(grid.why_excluded(w, device, row) for w in workloads for row in rows):
        return [f"grids.{name}.exclude: leaves no cell out of {len(workloads)}"]
    return [
        f"grids.{name}.exclude.{reason}: covers no cell of the grid"
        for reason, exclusion in grid.exclude.items()
        if not any(exclusion.covers(w, exclusion.device or device, row) for w in workloads for row in rows)
    ]


def _hint(name: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(name, allowed, n=1)
    return f", did you mean {close[0]}?" if close else f", allowed: {', '.join(allowed)}"


def without(raw: Any, places: list[tuple[Any, ...]]) -> Any:
    """A copy that lacks what is at these places (of an exclusion, the whole)."""
    rest = copy.deepcopy(raw)
    keys = [place[:-1] if place[-1] == "[key]" else place for place in places]
    whole = [place[:4] if "exclude" in place else place for place in keys]
    for *parents, last in reversed(list(dict.fromkeys(whole))):  # from the end: an index stays what it was
        found = rest
        for part in parents:
            found = found.get(part) if isinstance(found, dict) else found[part] if isinstance(found, list) else None
        if isinstance(found, list):
            found[last : last + 1] = []
        elif isinstance(found, dict):
            found.pop(last, None)
    return rest
